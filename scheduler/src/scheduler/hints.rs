//! Telling pods on nodes of this replica that they would be better off elsewhere: all nodes, a few at
//! a time, so that nobody who looks for a node has to wait for it.

use std::collections::HashMap;

use insula_client::ObjectKey;
use tokio::time::Instant;

use super::Scheduler;
use crate::{
    core::{PodHint, Review},
    hinting::{Hinter, reason_of},
    plugins::DeschedulingHints,
    pod::Pod,
};

/// Nodes that are looked at at once.
const SLICE: usize = 32;

/// What is known of hints; made only if they are given.
#[derive(Debug)]
pub(super) struct Hints {
    settings: DeschedulingHints,
    hinter: Hinter,
    /// What is under way, and the rows that are still to be looked at.
    under_way: Option<(Review, Vec<usize>)>,
    next: Instant,
    /// Why pods say that they would be better off elsewhere.
    said: HashMap<ObjectKey, String>,
}

impl Hints {
    /// The first round begins when nodes have been measured.
    pub(super) fn new(settings: DeschedulingHints, hinter: Hinter) -> Self {
        let next = Instant::now() + settings.every;
        Self { settings, hinter, under_way: None, next, said: HashMap::new() }
    }

    /// Notes what a pod says, or that it is gone.
    pub(super) fn note(&mut self, key: &ObjectKey, pod: Option<&Pod>) {
        match pod.and_then(reason_of) {
            Some(reason) => {
                self.said.insert(key.clone(), reason.to_owned());
            }
            None => {
                self.said.remove(key);
            }
        }
    }

    /// When the next round begins; at once if one is under way.
    pub(super) fn next(&self) -> Instant {
        if self.under_way.is_some() { Instant::now() } else { self.next }
    }
}

impl Scheduler {
    /// Looks at some nodes, if a round is under way or due. Returns whether there are more.
    pub(super) fn give_hints(&mut self) -> bool {
        let Some(mut hints) = self.hints.take() else { return false };
        let is_under_way = self.give_some_hints(&mut hints);
        self.hints = Some(hints);
        is_under_way
    }

    fn give_some_hints(&mut self, hints: &mut Hints) -> bool {
        if hints.under_way.is_none() && hints.next <= Instant::now() {
            let nodes = &self.core.world.nodes;
            let rows = nodes.rows().filter(|row| self.shares.has_node(nodes.name(*row))).collect();
            hints.under_way = Some((self.core.begin_review(&hints.settings), rows));
            hints.next = Instant::now() + hints.settings.every;
        }
        let Some((review, rows)) = &mut hints.under_way else { return false };
        let slice = rows.split_off(rows.len().saturating_sub(SLICE));
        let mut found = Vec::new();
        for row in slice {
            found.push((row, self.core.review(review, row)));
        }
        let is_over = rows.is_empty();
        for (row, of_row) in found {
            self.tell_row(hints, row, of_row);
        }
        if is_over {
            hints.under_way = None;
        }
        !is_over
    }

    /// Tells the pods of a row what is new.
    fn tell_row(&self, hints: &Hints, row: usize, found: Vec<PodHint>) {
        let node = self.core.world.nodes.name(row);
        if !hints.said.is_empty() {
            for it in self.core.world.pods_on(row) {
                let key = it.key();
                if hints.said.contains_key(&key) && !found.iter().any(|hint| hint.key == key) {
                    self.tell(hints, node, &key, None);
                }
            }
        }
        for PodHint { key, uid, reason, message } in found {
            let is_it = self.core.world.held(&key).is_some_and(|it| it.uid == uid);
            if is_it && hints.said.get(&key).is_none_or(|said| said != reason) {
                self.tell(hints, node, &key, Some((reason, message)));
            }
        }
    }

    fn tell(
        &self,
        hints: &Hints,
        node: &str,
        key: &ObjectKey,
        hint: Option<(&'static str, String)>,
    ) {
        if let Some(pod) = self.informers.pods.get(key).filter(|it| !it.is_deleting())
            && let Some(permit) = self.shares.begin_on(node)
        {
            hints.hinter.tell(pod, hint, permit);
        }
    }
}
