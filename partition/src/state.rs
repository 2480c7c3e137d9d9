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

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use imbl::OrdMap;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{
    ring::{Ring, RingLimits},
    snapshot::{Entry, Snapshot},
    store::{Collection, Committed, Expect, ReadAt, Revision, StoreError},
    value,
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

/// What the lock guards. Changed only inside [`State::apply`].
#[derive(Debug)]
pub(crate) struct Contents {
    revision: Revision,
    /// History at or below is unknown in every collection.
    floor: Revision,
    /// Open intervals of revisions that an unclean end may have handed out and lost.
    lost: Vec<(Revision, Revision)>,
    /// Why nothing changes any more, once the partition was shut down.
    closed: Option<&'static str>,
    shelves: Vec<Shelf>,
    index: HashMap<Collection, usize>,
    touched: Vec<usize>,
    objects: u64,
    bytes: u64,
    limits: RingLimits,
}

/// One collection: its live values and its recent changes.
#[derive(Debug)]
struct Shelf {
    collection: Collection,
    entries: OrdMap<Arc<str>, Entry>,
    ring: Ring,
    changed: watch::Sender<u64>,
    touched: bool,
}

impl State {
    /// Starts from `image`; history up to its revision is unknown.
    pub(crate) fn new(image: Image, limits: RingLimits) -> Arc<Self> {
        let mut contents = Contents {
            revision: image.revision,
            floor: image.revision,
            lost: Vec::new(),
            closed: None,
            shelves: Vec::new(),
            index: HashMap::new(),
            touched: Vec::new(),
            objects: 0,
            bytes: 0,
            limits,
        };
        let revision = image.revision;
        contents.fill(image);
        Arc::new(Self { contents: RwLock::new(contents), revision: watch::Sender::new(revision) })
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
        Ok(Snapshot { revision: contents.revision, entries })
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

    /// Goes back to `revision` by undoing the ring's newer changes.
    fn snapshot_at(
        &self,
        collection: &Collection,
        revision: Revision,
    ) -> Result<Snapshot, StoreError> {
        let (mut entries, newer) = {
            let contents = self.contents.read();
            contents.check_open()?;
            contents.check_history(revision)?;
            let Some(&at) = contents.index.get(collection) else {
                return Ok(Snapshot { revision, entries: OrdMap::new() });
            };
            let shelf = &contents.shelves[at];
            (shelf.entries.clone(), shelf.ring.after(revision, usize::MAX)?)
        };
        for event in newer.iter().rev() {
            match &event.previous {
                Some(previous) => entries.insert(event.key.clone(), previous.clone()),
                None => entries.remove(&event.key),
            };
        }
        Ok(Snapshot { revision, entries })
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
        let feed = CollectionFeed { state: self.clone(), shelf };
        feed.changes(after, 0)?;
        Ok(Watcher::new(Arc::new(feed), after))
    }

    /// Ends all watches and refuses reads from now on.
    pub(crate) fn close(&self, reason: &'static str) {
        self.apply(|contents| {
            contents.closed.get_or_insert(reason);
            contents.touch_all();
        });
    }
}

impl Contents {
    /// Does a guarded write at the next revision. An empty `value` is a delete.
    pub(crate) fn write(
        &mut self,
        collection: &str,
        key: &str,
        expect: Expect,
        value: Option<&[u8]>,
    ) -> Result<Committed, StoreError> {
        let shelf = self.shelf(collection);
        let found = self.shelves[shelf].entries.get(key);
        let allowed = match expect {
            Expect::Absent => found.is_none(),
            Expect::At(revision) => found.is_some_and(|entry| entry.modified == revision),
            Expect::Present => found.is_some(),
            Expect::Anything => true,
        };
        // There is nothing that a delete of nothing could give back.
        if !allowed || (value.is_none() && found.is_none()) {
            return Err(StoreError::Conflict {
                collection: self.shelves[shelf].collection.clone(),
                key: key.into(),
                found: found.cloned(),
            });
        }
        let revision = Revision(self.revision.0 + 1);
        let event = match value {
            Some(value) => self.put(shelf, key, value, revision),
            None => self.remove(shelf, key, revision),
        };
        // `remove` finds nothing only where `found` is `None`, which was refused above.
        event.map(|event| Committed { revision, entry: event.entry.clone() }).ok_or_else(|| {
            StoreError::Damaged {
                what: format!("{collection} {key} vanished while it was deleted"),
            }
        })
    }

    /// Records a put that got its revision elsewhere.
    pub(crate) fn put_at(&mut self, collection: &str, key: &str, value: &[u8], at: Revision) {
        let shelf = self.shelf(collection);
        self.put(shelf, key, value, at);
    }

    /// Records a delete that got its revision elsewhere; without a live value it only counts.
    pub(crate) fn delete_at(&mut self, collection: &str, key: &str, at: Revision) {
        let shelf = self.shelf(collection);
        self.remove(shelf, key, at);
        self.advance(at);
    }

    /// Nothing happened in this partition up to `revision` but what was recorded.
    pub(crate) fn advance(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// Leaves out `count` revisions: an unclean end may have handed them out and lost them.
    pub(crate) fn skip(&mut self, count: u64) {
        let to = Revision(self.revision.0 + count);
        self.lost.push((self.revision, to));
        self.revision = to;
    }

    /// Forgets history at or below `revision`.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if self.revision < revision {
            return Err(StoreError::Future { requested: revision, newest: self.revision });
        }
        self.floor = self.floor.max(revision);
        let floor = self.floor;
        self.lost.retain(|(_, end)| floor < *end);
        for shelf in &mut self.shelves {
            shelf.ring.forget(floor);
        }
        Ok(())
    }

    /// Replaces everything by `image`. Watchers that were behind it must start anew.
    pub(crate) fn reset(&mut self, image: Image) {
        self.revision = self.revision.max(image.revision);
        self.floor = self.revision;
        self.objects = 0;
        self.bytes = 0;
        self.lost.clear();
        for shelf in &mut self.shelves {
            shelf.entries = OrdMap::new();
            shelf.ring.forget(self.floor);
        }
        self.fill(image);
        self.touch_all();
    }

    fn fill(&mut self, image: Image) {
        for (collection, entries) in image.collections {
            let shelf = self.shelf(collection.as_str());
            self.objects += entries.len() as u64;
            self.bytes += entries.iter().map(|(key, entry)| size_of_entry(key, entry)).sum::<u64>();
            self.shelves[shelf].entries = entries;
        }
    }

    fn put(
        &mut self,
        shelf: usize,
        key: &str,
        value: &[u8],
        revision: Revision,
    ) -> Option<Arc<Event>> {
        let entry = Entry { value: value::own_with_revision(value, revision), modified: revision };
        let entries = &mut self.shelves[shelf].entries;
        let key = entries.get_key_value(key).map_or_else(|| key.into(), |(key, _)| key.clone());
        let previous = entries.insert(key.clone(), entry.clone());
        self.count(&key, &entry, previous.as_ref());
        Some(self.record(shelf, Event { revision, key, entry, previous, deleted: false }))
    }

    fn remove(&mut self, shelf: usize, key: &str, revision: Revision) -> Option<Arc<Event>> {
        let (key, previous) = self.shelves[shelf].entries.remove_with_key(key)?;
        self.objects -= 1;
        self.bytes -= size_of_entry(&key, &previous);
        let value: Bytes = value::with_revision(&previous.value, revision);
        let entry = Entry { value, modified: revision };
        let previous = Some(previous);
        Some(self.record(shelf, Event { revision, key, entry, previous, deleted: true }))
    }

    fn count(&mut self, key: &str, entry: &Entry, previous: Option<&Entry>) {
        self.bytes += size_of_entry(key, entry);
        match previous {
            Some(previous) => self.bytes -= size_of_entry(key, previous),
            None => self.objects += 1,
        }
    }

    fn record(&mut self, shelf: usize, event: Event) -> Arc<Event> {
        self.advance(event.revision);
        let event = Arc::new(event);
        self.shelves[shelf].ring.push(event.clone());
        self.touch(shelf);
        event
    }

    /// The place of a collection, made if this is the first that is heard of it.
    fn shelf(&mut self, name: &str) -> usize {
        if let Some(&shelf) = self.index.get(name) {
            return shelf;
        }
        let collection = Collection::of(name);
        let shelf = self.shelves.len();
        self.shelves.push(Shelf {
            collection: collection.clone(),
            entries: OrdMap::new(),
            ring: Ring::new(self.floor, self.limits),
            changed: watch::Sender::new(0),
            touched: false,
        });
        self.index.insert(collection, shelf);
        shelf
    }

    fn touch(&mut self, shelf: usize) {
        if !std::mem::replace(&mut self.shelves[shelf].touched, true) {
            self.touched.push(shelf);
        }
    }

    fn touch_all(&mut self) {
        for shelf in 0..self.shelves.len() {
            self.touch(shelf);
        }
    }

    fn take_wakeups(&mut self) -> Vec<watch::Sender<u64>> {
        let touched = std::mem::take(&mut self.touched);
        let wakeup = |shelf: usize| {
            self.shelves[shelf].touched = false;
            self.shelves[shelf].changed.clone()
        };
        touched.into_iter().map(wakeup).collect()
    }

    fn check_open(&self) -> Result<(), StoreError> {
        match self.closed {
            Some(reason) => Err(StoreError::Unavailable { reason: reason.into(), source: None }),
            None => Ok(()),
        }
    }

    /// Whether all that happened after `revision` is known, as far as no single ring decides.
    fn check_history(&self, revision: Revision) -> Result<(), StoreError> {
        if revision < self.floor {
            return Err(StoreError::Compacted { requested: revision, oldest: self.floor });
        }
        match self.lost.iter().find(|(start, end)| *start < revision && revision < *end) {
            Some(&(_, end)) => Err(StoreError::Compacted { requested: revision, oldest: end }),
            None => Ok(()),
        }
    }
}

/// What an entry counts in `StoreStats::bytes`.
fn size_of_entry(key: &str, entry: &Entry) -> u64 {
    (key.len() + entry.value.len()) as u64
}

/// One collection's changes, for its watchers.
struct CollectionFeed {
    state: Arc<State>,
    shelf: usize,
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
        let events = contents.shelves[self.shelf].ring.after(after, limit)?;
        Ok((events, contents.revision))
    }

    fn wakeups(&self) -> watch::Receiver<u64> {
        self.state.contents.read().shelves[self.shelf].changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Arc<State> {
        State::new(Image::default(), RingLimits { events: 4, bytes: 1 << 20 })
    }

    fn put(state: &State, key: &str, value: &str) -> Revision {
        let write = |contents: &mut Contents| {
            contents.write("core/pods", key, Expect::Anything, Some(value.as_bytes()))
        };
        state.apply(write).unwrap().revision
    }

    fn pods() -> Collection {
        Collection::new("", "pods")
    }

    #[tokio::test]
    async fn reads_exactly_an_older_revision() {
        let state = state();
        let first = put(&state, "a", "1");
        put(&state, "b", "2");
        put(&state, "a", "3");
        state.apply(|contents| contents.write("core/pods", "b", Expect::Present, None)).unwrap();
        let old = state.read(&pods(), ReadAt::Exactly(first)).await.unwrap();
        assert_eq!(old.revision(), first);
        assert_eq!(old.get("a").unwrap().value, "1");
        assert_eq!(old.len(), 1);
        assert_eq!(state.read(&pods(), ReadAt::Latest).await.unwrap().get("a").unwrap().value, "3");
        assert_eq!((state.totals().objects, state.totals().bytes), (1, 2));
    }

    #[tokio::test]
    async fn history_that_left_the_ring_is_compacted() {
        let state = state();
        let first = put(&state, "a", "1");
        for n in 0..5 {
            put(&state, "a", &n.to_string());
        }
        let read = state.read(&pods(), ReadAt::Exactly(first)).await;
        assert!(matches!(read, Err(StoreError::Compacted { oldest: Revision(2), .. })));
        assert!(matches!(state.watch(&pods(), first), Err(StoreError::Compacted { .. })));
        // A collection without a ring of its own is not affected.
        assert!(state.watch(&Collection::new("", "nodes"), first).is_ok());
    }

    #[tokio::test]
    async fn lost_revisions_are_compacted_but_their_ends_are_not() {
        let state = state();
        let before = put(&state, "a", "1");
        state.apply(|contents| contents.skip(100));
        let after = put(&state, "a", "2");
        assert_eq!(after, Revision(before.0 + 101));
        let inside = state.watch(&pods(), Revision(before.0 + 50));
        assert!(matches!(inside, Err(StoreError::Compacted { .. })));
        let mut watcher = state.watch(&pods(), before).unwrap();
        assert_eq!(watcher.next().await.unwrap()[0].revision, after);
    }

    #[tokio::test]
    async fn a_closed_state_ends_its_watches() {
        let state = state();
        let mut watcher = state.watch(&pods(), Revision(0)).unwrap();
        let waiting = tokio::spawn(async move { watcher.next().await });
        tokio::task::yield_now().await;
        state.close("the partition was shut down");
        assert!(matches!(waiting.await.unwrap(), Err(StoreError::Unavailable { .. })));
    }

    #[tokio::test]
    async fn a_reset_sends_watchers_back_to_the_list() {
        let state = state();
        put(&state, "a", "1");
        let mut watcher = state.watch(&pods(), Revision(1)).unwrap();
        let entry = Entry { value: Bytes::from_static(b"9"), modified: Revision(9) };
        let entries = OrdMap::unit("z".into(), entry);
        state.apply(|contents| {
            contents.reset(Image { revision: Revision(9), collections: vec![(pods(), entries)] });
        });
        assert!(matches!(watcher.next().await, Err(StoreError::Compacted { .. })));
        assert_eq!(state.totals().objects, 1);
        assert_eq!(state.revision(), Revision(9));
    }

    #[tokio::test]
    async fn a_revision_that_never_comes_is_in_the_future() {
        let state = state();
        let reached = state.reach(Revision(5), Duration::from_millis(5)).await;
        assert!(matches!(reached, Err(StoreError::Future { requested: Revision(5), .. })));
    }
}
