//! Pods for which others were ended, and the nodes that were made free for them.

use std::{collections::HashMap, sync::Arc};

use insula_client::ObjectKey;

use crate::{pod::Shape, preempting::Victim};

/// All nominated pods.
#[derive(Debug, Default)]
pub(crate) struct Nominations {
    by_pod: HashMap<ObjectKey, usize>,
    by_row: HashMap<usize, Vec<(ObjectKey, Arc<Shape>)>>,
    /// Who was asked to end for a pod, on the row that it is nominated for.
    asked: HashMap<ObjectKey, Vec<Victim>>,
    version: u64,
}

impl Nominations {
    /// Notes which row a pod is nominated for, if any. Returns for which it was, and as what.
    pub(crate) fn set(
        &mut self,
        key: &ObjectKey,
        nominated: Option<(usize, Arc<Shape>)>,
    ) -> Option<(usize, Arc<Shape>)> {
        if nominated.is_none() && !self.by_pod.contains_key(key) {
            return None;
        }
        self.version += 1;
        // What was asked for one row says nothing of another.
        if self.of(key) != nominated.as_ref().map(|(row, _)| *row) {
            self.asked.remove(key);
        }
        let mut before = None;
        if let Some(row) = self.by_pod.remove(key)
            && let Some(pods) = self.by_row.get_mut(&row)
        {
            if let Some(place) = pods.iter().position(|(it, _)| it == key) {
                before = Some((row, pods.remove(place).1));
            }
            if pods.is_empty() {
                self.by_row.remove(&row);
            }
        }
        if let Some((row, shape)) = nominated {
            self.by_pod.insert(key.clone(), row);
            self.by_row.entry(row).or_default().push((key.clone(), shape));
        }
        before
    }

    /// Notes who was asked to end for a pod, which is nominated for their row.
    pub(crate) fn ask(&mut self, key: &ObjectKey, victims: Vec<Victim>) {
        self.asked.insert(key.clone(), victims);
    }

    /// Who was asked to end for a pod, be they gone by now or not.
    pub(crate) fn asked(&self, key: &ObjectKey) -> &[Victim] {
        self.asked.get(key).map_or(&[], Vec::as_slice)
    }

    /// Grows with every change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The row that a pod is nominated for.
    pub(crate) fn of(&self, key: &ObjectKey) -> Option<usize> {
        self.by_pod.get(key).copied()
    }

    /// Rows that some pod is nominated for.
    pub(crate) fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.by_row.keys().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_row.is_empty()
    }

    /// The pods nominated for a row that `pod` must leave room for: those of its tenant that are
    /// no less important, and all of others, whose priorities mean nothing to it.
    pub(crate) fn before(&self, row: usize, key: &ObjectKey, pod: &Shape) -> Vec<Arc<Shape>> {
        let pods = self.by_row.get(&row).into_iter().flatten();
        pods.filter(|(it, shape)| {
            it != key && (shape.tenant != pod.tenant || pod.priority <= shape.priority)
        })
        .map(|(_, shape)| shape.clone())
        .collect()
    }

    /// The pods nominated for a row that are less important than `pod`: they have to look again.
    pub(crate) fn behind(&self, row: usize, pod: &Shape) -> Vec<ObjectKey> {
        let pods = self.by_row.get(&row).into_iter().flatten();
        pods.filter(|(_, shape)| shape.tenant == pod.tenant && shape.priority < pod.priority)
            .map(|(key, _)| key.clone())
            .collect()
    }
}
