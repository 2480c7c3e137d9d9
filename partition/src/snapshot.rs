//! An immutable, ordered view of one collection at one revision.
//!
//! Taking one is O(1): the maps are persistent and share their nodes with the live state.

use std::{ops::Bound, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    fences::Fences,
    map::ShardKey,
    store::{Collection, Revision, StoreError},
    text::Text,
};

/// A live value with its history's two ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The object's JSON with its revision filled in.
    pub value: Text,
    /// Revision of the change that made this value.
    pub modified: Revision,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) entries: OrdMap<Arc<str>, Entry>,
    pub(crate) collection: Collection,
    /// As they are now, whichever revision the entries are of.
    pub(crate) fences: Arc<Fences>,
}

impl Snapshot {
    /// A view of things that no partition keeps.
    pub fn of(
        collection: Collection,
        revision: Revision,
        entries: impl IntoIterator<Item = (Arc<str>, Entry)>,
    ) -> Self {
        let entries = entries.into_iter().collect();
        Self { revision, entries, collection, fences: Fences::none() }
    }

    /// The same view with `others` where it has nothing of their keys. Costs what they are.
    pub fn with(mut self, others: impl IntoIterator<Item = (Arc<str>, Entry)>) -> Self {
        for (key, entry) in others {
            self.entries.entry(key).or_insert(entry);
        }
        self
    }

    /// The revision of the whole partition this view stands for; at least that of every entry.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Fails if what belongs to `key` is not here: with [`StoreError::Moving`] if it is
    /// elsewhere, with [`StoreError::Compacted`] if it was when this view was of.
    pub fn check(&self, key: &ShardKey) -> Result<(), StoreError> {
        self.fences.check_read(key, self.revision)
    }

    /// As [`Snapshot::check`], for those who read everything that is here.
    pub fn check_all(&self) -> Result<(), StoreError> {
        self.fences.check_history(self.revision)
    }

    /// What is moving, into and out of the partition.
    pub fn fences(&self) -> &Arc<Fences> {
        &self.fences
    }

    /// The live value of `key`, unless it is hidden by a move.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key).filter(|_| self.shows(key))
    }

    fn shows(&self, key: &str) -> bool {
        !self.fences.hides(self.collection.as_str(), key)
    }

    /// Entries whose key begins with `prefix`, in key order, from `start` (inclusive) if given.
    /// What a move hides is left out.
    pub fn range<'a>(
        &'a self,
        prefix: &'a str,
        start: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> + 'a {
        self.range_of_all(prefix, start).filter(|(key, _)| self.shows(key))
    }

    /// As [`Snapshot::range`], with what a move hides.
    pub(crate) fn range_of_all<'a>(
        &'a self,
        prefix: &'a str,
        start: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> + 'a {
        let from: &str = start.filter(|start| prefix < *start).unwrap_or(prefix);
        self.entries
            .range::<_, str>((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Entries that came or changed since `older`, an earlier view of the same collection; all, if
    /// there is none. Costs what has changed, not what there is. What a move hides is left out.
    pub fn changed_since<'a>(
        &'a self,
        older: Option<&'a Self>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> + 'a {
        let all = older.is_none().then(|| self.entries.iter()).into_iter().flatten();
        let differs = older.map(|older| older.entries.diff(&self.entries)).into_iter().flatten();
        let changed = differs.filter_map(|it| match it {
            DiffItem::Add(key, entry) => Some((key, entry)),
            DiffItem::Update { new, .. } => Some(new),
            DiffItem::Remove(..) => None,
        });
        all.chain(changed).filter(|(key, _)| self.shows(key))
    }

    /// Whether both views hold the very same entries, told by identity: what was derived from one
    /// is good for the other. May be false for views that happen to be equal.
    pub fn is_same(&self, other: &Self) -> bool {
        self.entries.ptr_eq(&other.entries) && Arc::ptr_eq(&self.fences, &other.fences)
    }

    /// Number of entries, with what a move hides.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
