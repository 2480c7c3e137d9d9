//! What each pod holds on which node: known from the server, or assumed because this scheduler
//! has decided so.
//!
//! The assumption makes the next decision see the last one, long before the server has told of
//! it; so a burst of pods cannot be put onto the same last CPU.
//!
//! # Invariants
//!
//! * A pod holds on one node at most.

use std::{collections::HashMap, sync::Arc};

use insula_client::ObjectKey;

use crate::pod::Shape;

/// What one pod holds.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) uid: Arc<str>,
    pub(crate) shape: Arc<Shape>,
    pub(crate) row: usize,
    /// When it started, in seconds since 1970; far in the future if it has not.
    pub(crate) started: i64,
    /// Decided here, and not yet told by the server.
    pub(crate) is_assumed: bool,
}

/// What all pods hold.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pods: HashMap<ObjectKey, Held>,
    by_row: Vec<Vec<ObjectKey>>,
}

impl Ledger {
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Held> {
        self.pods.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &ObjectKey) -> Option<&mut Held> {
        self.pods.get_mut(key)
    }

    /// Notes what a pod holds. It must hold nothing.
    pub(crate) fn put(&mut self, key: &ObjectKey, held: Held) {
        if self.by_row.len() <= held.row {
            self.by_row.resize_with(held.row + 1, Vec::new);
        }
        self.by_row[held.row].push(key.clone());
        self.pods.insert(key.clone(), held);
    }

    /// Notes that a pod holds nothing any more.
    pub(crate) fn take(&mut self, key: &ObjectKey) -> Option<Held> {
        let held = self.pods.remove(key)?;
        let keys = &mut self.by_row[held.row];
        if let Some(at) = keys.iter().position(|it| it == key) {
            keys.swap_remove(at);
        }
        Some(held)
    }

    /// The pods that hold something on a row.
    pub(crate) fn on_row(&self, row: usize) -> impl Iterator<Item = (&ObjectKey, &Held)> {
        let keys = self.by_row.get(row).into_iter().flatten();
        keys.filter_map(|key| self.pods.get_key_value(key))
    }
}
