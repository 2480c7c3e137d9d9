//! What a reflector does with objects: the part of an informer that is compiled for each kind.
//!
//! It is as small as it can be: a cloud has informers of a hundred kinds, and all that is compiled
//! for each of them lies in memory as often. So a reflector knows objects by their text alone, and
//! what it remembers of them ([`Known`]) is the same for all.

use std::{collections::HashMap, sync::Arc};

use insula_api::slots::Slots;

use super::{Change, Shared};
use crate::{Object, ObjectKey, Tenanted, newer_version};

/// Deletions remembered to recognise their replay; forgotten all at once beyond.
const MAX_DELETIONS: usize = 65_536;

/// A copy of objects, by whoever follows them. What cannot be read changes nothing.
pub(super) trait Copied: Send + Sync {
    /// Shows an object that a list has, of some slots.
    fn listed(&self, text: &str, slots: &Slots, round: u64) -> Result<(), serde_json::Error>;

    /// Shows an object that an event tells of.
    fn changed(&self, text: &str, known: &mut Known) -> Result<(), serde_json::Error>;

    /// Shows no longer what an event tells the end of.
    fn deleted(&self, text: &str, known: &mut Known) -> Result<(), serde_json::Error>;

    /// Shows it no longer.
    fn forget(&self, key: &ObjectKey);

    /// What of some slots the list `round` did not show.
    fn unseen(&self, round: u64, slots: &Slots) -> Vec<ObjectKey>;

    /// What is not of these slots.
    fn outside(&self, slots: &Slots) -> Vec<ObjectKey>;
}

/// How far a copy is, and what it has to know of the past.
#[derive(Debug)]
pub(super) struct Known {
    /// From here on the next watch begins.
    pub(super) version: String,
    /// Counts lists begun. Objects that the newest did not show are gone.
    pub(super) round: u64,
    /// Counts watches begun.
    pub(super) watch: u64,
    /// The slots that the copy shows.
    pub(super) held: Slots,
    /// Slots are listed beside the watch: what comes after the list may begin further back.
    pub(super) is_gaining: bool,
    deleted: Deletions,
}

/// What was deleted since the version from which the watch would resume. An event of such an
/// object up to the deletion is a replay.
type Deletions = HashMap<ObjectKey, Deletion>;

#[derive(Debug)]
struct Deletion {
    version: String,
    /// The last watch that told of it. Only that one's bookmarks cover it.
    watch: u64,
}

/// Whether something at version `known` is as new as `version`, of the same object.
fn is_as_new(known: &str, version: &str) -> bool {
    known == version || newer_version(known, version).is_some_and(|order| order.is_gt())
}

impl Default for Known {
    fn default() -> Self {
        Self {
            version: String::new(),
            round: 0,
            watch: 0,
            held: Slots::none(),
            is_gaining: false,
            deleted: Deletions::default(),
        }
    }
}

impl Known {
    /// All there is at `version` has been listed.
    pub(super) fn listed(&mut self, version: String) {
        self.deleted.clear();
        self.version = version;
    }

    /// Nothing up to `version` was missed.
    pub(super) fn bookmark(&mut self, version: String) {
        if version.is_empty() {
            return;
        }
        self.version = version;
        if !self.is_gaining {
            self.deleted.retain(|_, it| it.watch != self.watch);
        }
    }

    /// Notes the version of an event, if versions here are those of single objects.
    fn advance(&mut self, reached: &str) {
        if newer_version(reached, &self.version).is_some_and(|order| order.is_gt()) {
            reached.clone_into(&mut self.version);
            // After a list beside the watch it begins where that was made, perhaps further back.
            if !self.is_gaining {
                self.deleted.retain(|_, it| !is_as_new(reached, &it.version));
            }
        }
    }

    fn was_deleted(&self, key: &ObjectKey, version: &str) -> bool {
        self.deleted.get(key).is_some_and(|it| is_as_new(&it.version, version))
    }

    fn note_deletion(&mut self, key: &ObjectKey, version: &str) {
        if self.deleted.len() >= MAX_DELETIONS {
            self.deleted.clear();
        }
        let deletion = Deletion { version: version.to_owned(), watch: self.watch };
        match self.deleted.get_mut(key) {
            // The replay of an earlier one; what was deleted last is not replayed yet.
            Some(known) if !is_as_new(version, &known.version) => (),
            Some(known) => *known = deletion,
            None => drop(self.deleted.insert(key.clone(), deletion)),
        }
    }
}

impl<K: Object> Copied for Shared<K> {
    fn listed(&self, text: &str, slots: &Slots, round: u64) -> Result<(), serde_json::Error> {
        let object = self.read(text)?;
        // A server that does not know of slots tells of all.
        if !slots.has_tenant(object.tenant.as_str()) {
            return Ok(());
        }
        let key = object.key();
        let is_known = self.store.read().get(&key).is_some_and(|old| {
            old.uid() == object.uid() && old.resource_version() == object.resource_version()
        });
        if is_known {
            self.store.write().touch(&key, round);
        } else {
            self.put(&key, object, round);
        }
        Ok(())
    }

    fn changed(&self, text: &str, known: &mut Known) -> Result<(), serde_json::Error> {
        let object = self.read(text)?;
        let version = object.resource_version();
        known.advance(version);
        if !known.held.has_tenant(object.tenant.as_str()) {
            return Ok(());
        }
        let key = object.key();
        let is_known = || {
            let store = self.store.read();
            store.get(&key).is_some_and(|old| is_as_new(old.resource_version(), version))
        };
        if !known.was_deleted(&key, version) && !is_known() {
            self.put(&key, object, known.round);
        }
        Ok(())
    }

    fn deleted(&self, text: &str, known: &mut Known) -> Result<(), serde_json::Error> {
        let object = self.read(text)?;
        let version = object.resource_version();
        known.advance(version);
        if !known.held.has_tenant(object.tenant.as_str()) {
            return Ok(());
        }
        let key = object.key();
        let is_newer = |known: &str| newer_version(known, version).is_some_and(|it| it.is_gt());
        let is_past = {
            let store = self.store.read();
            let old = store.get(&key);
            old.is_some_and(|old| old.uid() != object.uid() || is_newer(old.resource_version()))
        };
        known.note_deletion(&key, version);
        // Deleted long ago, and created anew since, or chosen by a selector anew: a replay.
        if !is_past {
            self.remove(&key, Some(self.trimmed(object)));
        }
        Ok(())
    }

    fn forget(&self, key: &ObjectKey) {
        self.remove(key, None);
    }

    fn unseen(&self, round: u64, slots: &Slots) -> Vec<ObjectKey> {
        self.store.read().unseen(round, slots)
    }

    fn outside(&self, slots: &Slots) -> Vec<ObjectKey> {
        let store = self.store.read();
        store.keys().filter(|key| !slots.has_tenant(key.tenant.as_str())).cloned().collect()
    }
}

impl<K: Object> Shared<K> {
    fn read(&self, text: &str) -> Result<Tenanted<K>, serde_json::Error> {
        Tenanted::read(&self.tenant, text)
    }

    fn trimmed(&self, mut object: Tenanted<K>) -> Arc<Tenanted<K>> {
        object.object.meta_mut().managed_fields = None;
        if let Some(trim) = &self.trim {
            trim(&mut object.object);
        }
        Arc::new(object)
    }

    fn put(&self, key: &ObjectKey, object: Tenanted<K>, round: u64) {
        let object = self.trimmed(object);
        let handlers = self.handlers.lock();
        let (key, old) = self.store.write().put(key, object.clone(), round);
        for handler in handlers.iter() {
            handler(&Change { key: &key, old: old.as_ref(), new: Some(&object) });
        }
    }

    /// `last` is the object's last state, where the server told it.
    fn remove(&self, key: &ObjectKey, last: Option<Arc<Tenanted<K>>>) {
        let handlers = self.handlers.lock();
        let Some(known) = self.store.write().remove(key) else {
            return;
        };
        let old = last.unwrap_or(known);
        for handler in handlers.iter() {
            handler(&Change { key, old: Some(&old), new: None });
        }
    }
}
