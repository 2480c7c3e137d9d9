//! A partition's applied state in memory, the same for every backend.
//!
//! One writer changes it through [`State::apply`]; any number of readers take snapshots and
//! follow the rings. The lock is held for single map operations only: snapshots are O(1)
//! because the maps are persistent.
//!
//! # Invariants
//!
//! * Whoever sees revision `n` sees every change up to `n` and none above.
//! * Watchers are woken after the change is visible, so a wake-up never finds less.
//! * History at or below a collection's floor is unknown; above it the ring has every change.

mod contents;
mod roots;
pub(crate) mod settle;
mod tally;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use imbl::OrdMap;
use insula_api::quota::amounts::Amounts;
use parking_lot::RwLock;
use tokio::sync::watch;

pub(crate) use self::contents::Contents;
use self::roots::Roots;
use crate::{
    fences::Fences,
    map::{Shard, ShardKey},
    ring::{Lane, RingLimits},
    seal::{Bunch, is_sealed},
    snapshot::{Entry, Snapshot},
    store::{Collection, ReadAt, Revision, StoreError, Tenants, Usage},
    watch::{Event, Feed, Watcher},
};

/// How long a read waits for a revision that is not there yet. Clients know these three seconds
/// from other API servers.
pub(crate) const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// See the module.
pub(crate) struct State {
    contents: RwLock<Contents>,
    /// Follows `Contents::revision`, for those who wait for one.
    revision: watch::Sender<Revision>,
    roots: Roots,
    /// What opens values that are sealed.
    bunch: Arc<Bunch>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

/// All live values at one revision: what a checkpoint holds and a state starts from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) revision: Revision,
    /// Ordered by name; collections without live values are left out.
    pub(crate) collections: Vec<(Collection, OrdMap<Arc<str>, Entry>)>,
}

/// Object and byte counts with the revisions they stand for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Totals {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) revision: Revision,
    pub(crate) floor: Revision,
}

impl State {
    /// As [`State::with_keys`], where nothing is sealed.
    #[cfg(test)]
    pub(crate) fn new(image: Image, limits: RingLimits) -> Arc<Self> {
        Self::with_keys(image, limits, Bunch::new(Arc::default()))
    }

    /// Starts from `image`; history up to its revision is unknown. `bunch` learns the data keys
    /// that are applied.
    pub(crate) fn with_keys(image: Image, limits: RingLimits, bunch: Arc<Bunch>) -> Arc<Self> {
        let revision = image.revision;
        let contents = Contents::new(image, limits, bunch.clone());
        Arc::new(Self {
            contents: RwLock::new(contents),
            revision: watch::Sender::new(revision),
            roots: Roots::default(),
            bunch,
        })
    }

    /// A value of this partition that came on another way than through the state.
    pub(crate) fn attached(&self, collection: &Collection, key: &str, entry: Entry) -> Entry {
        attached(&self.bunch, collection, key, entry)
    }

    /// Changes the state under the lock, then wakes whoever waits for what was changed.
    pub(crate) fn apply<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> T {
        let (result, revision, wakeups) = {
            let mut contents = self.contents.write();
            let result = change(&mut contents);
            (result, contents.revision, contents.take_wakeups())
        };
        self.revision.send_if_modified(|current| {
            let grown = *current < revision;
            *current = (*current).max(revision);
            grown
        });
        for wakeup in wakeups {
            wakeup.send_replace(revision.0);
        }
        result
    }

    pub(crate) fn revision(&self) -> Revision {
        self.contents.read().revision
    }

    pub(crate) fn totals(&self) -> Totals {
        self.roots.tidy();
        let contents = self.contents.read();
        Totals {
            objects: contents.objects,
            bytes: contents.bytes,
            revision: contents.revision,
            floor: contents.floor,
        }
    }

    /// Fails after [`State::close`].
    pub(crate) fn check_open(&self) -> Result<(), StoreError> {
        self.contents.read().check_open()
    }

    /// Names of the collections with live values, in order.
    pub(crate) fn collections(&self) -> Result<Vec<Collection>, StoreError> {
        let contents = self.contents.read();
        contents.check_open()?;
        let live = contents.shelves.iter().filter(|shelf| !shelf.entries.is_empty());
        let mut names: Vec<_> = live.map(|shelf| shelf.collection.clone()).collect();
        names.sort();
        Ok(names)
    }

    /// All that is live now. O(number of collections).
    pub(crate) fn image(&self) -> Image {
        let contents = self.contents.read();
        let live = contents.shelves.iter().filter(|shelf| !shelf.entries.is_empty());
        let mut collections: Vec<_> =
            live.map(|shelf| (shelf.collection.clone(), shelf.entries.clone())).collect();
        collections.sort_by(|(a, _), (b, _)| a.cmp(b));
        Image { revision: contents.revision, collections }
    }

    /// The collection as it is now.
    pub(crate) fn snapshot(&self, collection: &Collection) -> Result<Snapshot, StoreError> {
        let contents = self.contents.read();
        contents.check_open()?;
        let shelf = contents.index.get(collection).map(|&at| &contents.shelves[at]);
        let entries = shelf.map(|shelf| shelf.entries.clone()).unwrap_or_default();
        let fences = contents.fences.clone();
        Ok(Snapshot {
            revision: contents.revision,
            entries,
            collection: collection.clone(),
            fences,
        })
    }

    /// Reads as asked, except that making [`ReadAt::Latest`] true is the backend's work: here it
    /// is whatever was applied.
    pub(crate) async fn read(
        &self,
        collection: &Collection,
        at: ReadAt,
    ) -> Result<Snapshot, StoreError> {
        match at {
            ReadAt::Latest | ReadAt::Any => self.snapshot(collection),
            ReadAt::NotOlderThan(revision) => {
                self.reach(revision, FUTURE_WAIT).await?;
                self.snapshot(collection)
            }
            ReadAt::Exactly(revision) => {
                self.reach(revision, FUTURE_WAIT).await?;
                self.snapshot_at(collection, revision)
            }
        }
    }

    /// Waits until `revision` is applied, at most `limit`.
    pub(crate) async fn reach(
        &self,
        revision: Revision,
        limit: Duration,
    ) -> Result<(), StoreError> {
        if revision <= *self.revision.borrow() {
            return Ok(());
        }
        let mut follow = self.revision.subscribe();
        let reached = follow.wait_for(|newest| revision <= *newest);
        match tokio::time::timeout(limit, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(StoreError::Future { requested: revision, newest: self.revision() })
            }
        }
    }

    /// Goes back to `revision` by undoing the ring's newer changes, unless somebody did just now.
    fn snapshot_at(
        &self,
        collection: &Collection,
        revision: Revision,
    ) -> Result<Snapshot, StoreError> {
        let collection = collection.clone();
        let (mut entries, newer, fences) = {
            let contents = self.contents.read();
            contents.check_open()?;
            contents.check_history(revision)?;
            let fences = contents.fences.clone();
            let Some(&at) = contents.index.get(&collection) else {
                return Ok(Snapshot { revision, entries: OrdMap::new(), collection, fences });
            };
            if let Some(entries) = self.roots.get(&collection, revision) {
                return Ok(Snapshot { revision, entries, collection, fences });
            }
            let shelf = &contents.shelves[at];
            (shelf.entries.clone(), shelf.ring.after(revision, usize::MAX)?, fences)
        };
        for event in newer.iter().rev() {
            match &event.previous {
                Some(previous) => entries.insert(event.key.clone(), previous.clone()),
                None => entries.remove(&event.key),
            };
        }
        if !newer.is_empty() {
            self.roots.put(&collection, revision, entries.clone());
        }
        Ok(Snapshot { revision, entries, collection, fences })
    }

    /// What is moving, as of what was applied.
    pub(crate) fn fences(&self) -> Arc<Fences> {
        self.contents.read().fences.clone()
    }

    /// Follows `collection` from `after` on.
    pub(crate) fn watch(
        self: &Arc<Self>,
        collection: &Collection,
        after: Revision,
    ) -> Result<Watcher, StoreError> {
        let known = self.contents.read().index.get(collection).copied();
        let shelf = match known {
            Some(shelf) => shelf,
            None => self.contents.write().shelf(collection.as_str()),
        };
        {
            let contents = self.contents.read();
            contents.check_open()?;
            contents.check_history(after)?;
            // Whoever watches one shard may still be told; who watches all learns it when it looks.
            let oldest = contents.shelves[shelf].ring.lowest_floor();
            if after < oldest {
                return Err(StoreError::Compacted { requested: after, oldest });
            }
        }
        let feed = CollectionFeed { state: self.clone(), shelf, of: None };
        Ok(Watcher::new(Arc::new(feed), after))
    }

    /// Ends all watches and refuses reads from now on.
    pub(crate) fn close(&self, reason: &'static str) {
        self.apply(|contents| contents.close(reason));
    }
}

/// An entry that `bunch` can open, if it is sealed.
pub(crate) fn attached(
    bunch: &Arc<Bunch>,
    collection: &Collection,
    key: &str,
    entry: Entry,
) -> Entry {
    match entry.value.as_plain().filter(|it| is_sealed(it)) {
        Some(bytes) => Entry { value: bunch.keep(collection, key, bytes.clone()), ..entry },
        None => entry,
    }
}

impl Tenants for State {
    fn usage(&self, tenant: &str) -> Usage {
        self.contents.read().tallies.usage(tenant)
    }

    fn all(&self) -> Vec<(String, Usage)> {
        self.contents.read().tallies.all()
    }

    fn amounts(
        &self,
        tenant: &str,
        namespaces: Option<&BTreeSet<String>>,
        names: &[&str],
    ) -> Amounts {
        self.contents.write().amounts(tenant, namespaces, names)
    }
}

/// One collection's changes, for its watchers.
struct CollectionFeed {
    state: Arc<State>,
    shelf: usize,
    /// Whose alone, if not all.
    of: Option<(Lane, ShardKey)>,
}

impl Feed for CollectionFeed {
    fn changes(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let contents = self.state.contents.read();
        contents.check_open()?;
        contents.check_history(after)?;
        let shelf = &contents.shelves[self.shelf];
        let events = match &self.of {
            None => shelf.ring.after(after, limit)?,
            Some((lane, shard)) => {
                let collection = shelf.collection.as_str();
                let wants = |event: &Event| Shard::of(collection, &event.key) == shard.as_shard();
                shelf.ring.after_in(*lane, wants, after, limit)?
            }
        };
        Ok((events, contents.revision))
    }

    fn fences(&self) -> Arc<Fences> {
        self.state.fences()
    }

    fn wakeups(&self) -> watch::Receiver<u64> {
        match &self.of {
            None => self.state.contents.read().shelves[self.shelf].changed.subscribe(),
            Some((lane, _)) => self.state.contents.write().shelves[self.shelf].follow(*lane),
        }
    }

    fn of_shard(&self, shard: &ShardKey) -> Option<Arc<dyn Feed>> {
        // What is not of a tenant or a node lies in many lanes.
        if *shard == ShardKey::System {
            return None;
        }
        let of = Some((Lane::of(shard.as_shard()), shard.clone()));
        Some(Arc::new(Self { state: self.state.clone(), shelf: self.shelf, of }))
    }
}
