//! What each pod holds on which node: known from the server, or assumed because this scheduler
//! has decided so.
//!
//! The assumption makes the next decision see the last one, long before the server has told of
//! it; so a burst of pods cannot be put onto the same last CPU.
//!
//! Pods lie in chunks, which never move and have no room to spare; who looks for one, by its key or by
//! its node, finds the number of its place. Tenant and namespace are those of its shape.
//!
//! # Invariants
//!
//! * A pod holds on one node at most.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;
use insula_client::ObjectKey;
use uuid::Uuid;

use crate::pod::Shape;

/// Pods of one chunk.
const CHUNK: usize = 1 << 10;

/// The uid of a pod: 16 bytes if it is what servers make, or whatever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uid {
    /// As texts of it are written: lower case, with hyphens.
    Made(Uuid),
    Other(Arc<str>),
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let made = Uuid::try_parse(text).map(Self::Made);
        made.ok().filter(|it| *it == *text).unwrap_or_else(|| Self::Other(text.into()))
    }
}

impl PartialEq<str> for Uid {
    fn eq(&self, text: &str) -> bool {
        match self {
            Self::Made(uuid) => {
                *uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *text
            }
            Self::Other(other) => **other == *text,
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Made(uuid) => uuid.hyphenated().fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// What one pod holds.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) uid: Uid,
    pub(crate) shape: Arc<Shape>,
    pub(crate) row: usize,
    /// When it started, in seconds since 1970; far in the future if it has not.
    pub(crate) started: i64,
    /// Decided here, and not yet told by the server.
    pub(crate) is_assumed: bool,
}

/// A pod that holds something.
#[derive(Debug)]
pub(crate) struct Holder {
    name: Arc<str>,
    pub(crate) held: Held,
}

impl Holder {
    pub(crate) fn key(&self) -> ObjectKey {
        let Shape { tenant, namespace, .. } = &*self.held.shape;
        let (tenant, namespace) = (tenant.clone(), namespace.clone());
        ObjectKey { tenant, namespace, name: self.name.clone() }
    }

    fn is(&self, key: &ObjectKey) -> bool {
        let shape = &self.held.shape;
        self.name == key.name && shape.namespace == key.namespace && shape.tenant == key.tenant
    }
}

/// What all pods hold.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    chunks: Vec<Vec<Option<Holder>>>,
    /// Places that nobody has.
    free: Vec<u32>,
    /// Places by key.
    places: HashTable<u32>,
    hasher: RandomState,
    by_row: Vec<Vec<u32>>,
}

/// A place's chunk, and where it is in it.
fn split(place: u32) -> (usize, usize) {
    let place = place as usize;
    (place / CHUNK, place % CHUNK)
}

fn at(chunks: &[Vec<Option<Holder>>], place: u32) -> Option<&Holder> {
    let (chunk, within) = split(place);
    chunks.get(chunk)?.get(within)?.as_ref()
}

fn hash(hasher: &RandomState, tenant: &str, namespace: &str, name: &str) -> u64 {
    hasher.hash_one((tenant, namespace, name))
}

fn hash_of(hasher: &RandomState, chunks: &[Vec<Option<Holder>>], place: u32) -> u64 {
    at(chunks, place).map_or(0, |it| {
        let shape = &it.held.shape;
        hash(hasher, shape.tenant.as_str(), &shape.namespace, &it.name)
    })
}

impl Ledger {
    fn hash(&self, key: &ObjectKey) -> u64 {
        hash(&self.hasher, key.tenant.as_str(), &key.namespace, &key.name)
    }

    fn place(&self, key: &ObjectKey) -> Option<u32> {
        let is_it = |place: &u32| at(&self.chunks, *place).is_some_and(|it| it.is(key));
        self.places.find(self.hash(key), is_it).copied()
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Held> {
        Some(&at(&self.chunks, self.place(key)?)?.held)
    }

    pub(crate) fn get_mut(&mut self, key: &ObjectKey) -> Option<&mut Held> {
        let (chunk, within) = split(self.place(key)?);
        Some(&mut self.chunks.get_mut(chunk)?.get_mut(within)?.as_mut()?.held)
    }

    /// Notes what a pod holds. It must hold nothing.
    pub(crate) fn put(&mut self, key: &ObjectKey, held: Held) {
        if self.by_row.len() <= held.row {
            self.by_row.resize_with(held.row + 1, Vec::new);
        }
        let row = held.row;
        let holder = Holder { name: key.name.clone(), held };
        debug_assert!(holder.is(key), "a pod's shape says whose it is: {key}");
        let hash = self.hash(key);
        let place = self.keep(holder);
        self.by_row[row].push(place);
        let Self { places, hasher, chunks, .. } = self;
        places.insert_unique(hash, place, |place| hash_of(hasher, chunks, *place));
    }

    /// Gives a pod a place.
    fn keep(&mut self, holder: Holder) -> u32 {
        if let Some(place) = self.free.pop() {
            let (chunk, within) = split(place);
            self.chunks[chunk][within] = Some(holder);
            return place;
        }
        if self.chunks.last().is_none_or(|it| it.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let before = (self.chunks.len() - 1) * CHUNK;
        let last = &mut self.chunks[before / CHUNK];
        last.push(Some(holder));
        // There is no memory for more pods than that.
        u32::try_from(before + last.len() - 1).unwrap_or(u32::MAX)
    }

    /// Notes that a pod holds nothing any more.
    pub(crate) fn take(&mut self, key: &ObjectKey) -> Option<Held> {
        let place = self.place(key)?;
        if let Ok(found) = self.places.find_entry(self.hash(key), |it| *it == place) {
            found.remove();
        }
        let (chunk, within) = split(place);
        let held = self.chunks[chunk][within].take()?.held;
        self.free.push(place);
        let places = &mut self.by_row[held.row];
        if let Some(at) = places.iter().position(|it| *it == place) {
            places.swap_remove(at);
        }
        Some(held)
    }

    /// The pods that hold something on a row.
    pub(crate) fn on_row(&self, row: usize) -> impl Iterator<Item = &Holder> {
        let places = self.by_row.get(row).into_iter().flatten();
        places.filter_map(|place| at(&self.chunks, *place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_what_they_were() {
        let made = "5c1b1a5e-0c3b-4b9e-9f0e-1d2c3b4a5f60";
        for text in [made, &made.to_uppercase(), &made.replace('-', ""), "uid-7", ""] {
            let uid = Uid::from(text);
            assert_eq!(uid.to_string(), text);
            assert!(uid == *text && uid != *"other");
            assert_eq!(matches!(uid, Uid::Made(_)), text == made, "{text}");
        }
    }
}
