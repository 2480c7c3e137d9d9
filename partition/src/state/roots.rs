//! Collections as they were at revisions that somebody pages through.
//!
//! Going back to an older revision undoes every change since, and a list of many pages asks for
//! the same one again and again. The maps are persistent, so keeping what the first page found
//! costs only what has changed since.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::OrdMap;
use parking_lot::Mutex;

use crate::{
    snapshot::Entry,
    store::{Collection, Revision},
};

/// Most roots kept at once.
const KEPT: usize = 16;

/// A root that nobody asked for during this time is let go of: it keeps old values alive.
const UNUSED: Duration = Duration::from_secs(30);

type Entries = OrdMap<Arc<str>, Entry>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roots(Mutex<VecDeque<Root>>);

#[derive(Debug)]
struct Root {
    collection: Collection,
    revision: Revision,
    entries: Entries,
    used: Instant,
}

impl Roots {
    pub(super) fn get(&self, collection: &Collection, revision: Revision) -> Option<Entries> {
        let mut roots = self.0.lock();
        let at = roots
            .iter()
            .position(|root| root.revision == revision && root.collection == *collection)?;
        // The one used last is the last to go.
        let mut root = roots.remove(at)?;
        root.used = Instant::now();
        let entries = root.entries.clone();
        roots.push_back(root);
        Some(entries)
    }

    pub(super) fn put(&self, collection: &Collection, revision: Revision, entries: Entries) {
        let mut roots = self.0.lock();
        roots.retain(|root| root.revision != revision || root.collection != *collection);
        let collection = collection.clone();
        roots.push_back(Root { collection, revision, entries, used: Instant::now() });
        while KEPT < roots.len() {
            roots.pop_front();
        }
    }

    /// Lets go of what nobody asks for any more.
    pub(super) fn tidy(&self) {
        // Ordered by their last use.
        let mut roots = self.0.lock();
        while roots.pop_front_if(|root| UNUSED < root.used.elapsed()).is_some() {}
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}
