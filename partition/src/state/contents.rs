//! What a state's lock guards, and every way in which it changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use imbl::OrdMap;
use insula_api::quota::amounts::Amounts;
use tokio::sync::watch;

use super::{Image, attached, tally::Tallies};
use crate::{
    epochs,
    fences::{self, Fences},
    map::Shard,
    quota::Limit,
    ring::{LANES, Lane, Ring, RingLimits},
    seal::{Bunch, is_document, is_sealed},
    snapshot::Entry,
    store::{Collection, Committed, Expect, Revision, StoreError},
    text::{Templates, Text},
    value,
    watch::Event,
};

/// What the lock guards. Changed only inside [`State::apply`].
#[derive(Debug)]
pub(crate) struct Contents {
    pub(super) revision: Revision,
    /// History at or below is unknown in every collection.
    pub(super) floor: Revision,
    /// Open intervals of revisions that an unclean end may have handed out and lost.
    lost: Vec<(Revision, Revision)>,
    /// Why nothing changes any more, once the partition was shut down.
    closed: Option<&'static str>,
    pub(super) shelves: Vec<Shelf>,
    pub(super) index: HashMap<Collection, usize>,
    touched: Vec<usize>,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    pub(super) tallies: Tallies,
    limits: RingLimits,
    /// What is moving, as the newest applied table says.
    pub(super) fences: Arc<Fences>,
    /// The collection that holds the table.
    fence_shelf: usize,
    /// What opens values that are sealed.
    bunch: Arc<Bunch>,
    templates: Templates,
}

/// One collection: its live values and its recent changes.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) collection: Collection,
    pub(super) entries: OrdMap<Arc<str>, Entry>,
    pub(super) ring: Ring,
    /// For whoever follows all of it.
    pub(super) changed: watch::Sender<u64>,
    /// For those who follow one shard.
    lanes: BTreeMap<Lane, watch::Sender<u64>>,
    /// Lanes that changed since the last wake-up, a bit each.
    touched: u128,
    /// What changed up to here has been packed if that was worth it, see [`super::settle`].
    pub(super) settled: Revision,
}

const _: () = assert!(LANES <= u128::BITS as usize);

impl Shelf {
    /// Told of what changes in a lane.
    pub(super) fn follow(&mut self, lane: Lane) -> watch::Receiver<u64> {
        self.lanes.entry(lane).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }
}

impl Contents {
    pub(super) fn new(image: Image, limits: RingLimits, bunch: Arc<Bunch>) -> Self {
        let mut contents = Self {
            revision: image.revision,
            floor: image.revision,
            lost: Vec::new(),
            closed: None,
            shelves: Vec::new(),
            index: HashMap::new(),
            touched: Vec::new(),
            objects: 0,
            bytes: 0,
            tallies: Tallies::default(),
            limits,
            fences: Fences::none(),
            fence_shelf: 0,
            bunch,
            templates: Templates::new(),
        };
        contents.fence_shelf = contents.shelf(fences::FENCES);
        contents.fill(image);
        contents
    }

    /// Stops everything; the first reason stays.
    pub(super) fn close(&mut self, reason: &'static str) {
        self.closed.get_or_insert(reason);
        self.touch_all();
    }

    /// Whether a write may happen that is for a task, in an epoch.
    pub(crate) fn check_epoch(&self, epoch: Option<(&str, u64)>) -> Result<(), StoreError> {
        let Some((task, number)) = epoch else { return Ok(()) };
        let shelf = self.index.get(epochs::EPOCHS).map(|&shelf| &self.shelves[shelf]);
        epochs::check(shelf.and_then(|shelf| shelf.entries.get(task)), task, number)
    }

    /// Does a guarded write at the next revision. An empty `value` is a delete. `by_move` is the
    /// token of the move that writes, if one does; `within` is what the key's tenant may have.
    pub(crate) fn write(
        &mut self,
        collection: &str,
        key: &str,
        expect: Expect,
        value: Option<&[u8]>,
        by_move: Option<u64>,
        within: &[Limit],
    ) -> Result<Committed, StoreError> {
        if by_move.is_some() || !self.fences.is_empty() {
            self.fences.check_write(collection, key, by_move)?;
        }
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
        if let Some(value) = value {
            self.check_limits(shelf, key, value, within)?;
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

    /// Whether the key's tenant may have `value` there.
    fn check_limits(
        &mut self,
        shelf: usize,
        key: &str,
        value: &[u8],
        within: &[Limit],
    ) -> Result<(), StoreError> {
        if within.is_empty() {
            return Ok(());
        }
        let Self { shelves, tallies, .. } = self;
        let Shelf { collection, entries, .. } = &shelves[shelf];
        let at = (collection.as_str(), key);
        let checked = tallies.check(shelves, at, value, entries.get(key), within);
        checked.map_err(|excess| StoreError::Exceeded(Box::new(excess)))
    }

    /// Judges a write that is done elsewhere, and says which key its tenant's turns are taken by,
    /// as it was then.
    pub(crate) fn judge(
        &mut self,
        (collection, key): (&str, &str),
        value: &[u8],
        within: &[Limit],
        turns: (&str, &str),
    ) -> (Option<Revision>, Result<(), StoreError>) {
        let turn = self.index.get(turns.0).and_then(|&at| self.shelves[at].entries.get(turns.1));
        let turn = turn.map(|it| it.modified);
        let shelf = self.shelf(collection);
        (turn, self.check_limits(shelf, key, value, within))
    }

    /// What a tenant has of what is named, see [`crate::store::Tenants`].
    pub(super) fn amounts(
        &mut self,
        tenant: &str,
        namespaces: Option<&BTreeSet<String>>,
        names: &[&str],
    ) -> Amounts {
        let Self { shelves, tallies, .. } = self;
        tallies.amounts(shelves, tenant, namespaces, names)
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

    /// Leaves out all revisions up to `revision`, which nobody was ever told here.
    pub(crate) fn raise(&mut self, revision: Revision) {
        self.advance(revision);
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
        self.tallies.clear();
        self.lost.clear();
        for shelf in &mut self.shelves {
            shelf.entries = OrdMap::new();
            shelf.settled = Revision(0);
            shelf.ring.forget(self.floor);
        }
        self.fill(image);
        self.touch_all();
    }

    fn fill(&mut self, image: Image) {
        let keys = image.collections.iter().filter(|(it, _)| is_document(it.as_str()));
        for (key, entry) in keys.flat_map(|(_, entries)| entries) {
            self.bunch.learn(key, Some(&entry.value.stored()));
        }
        for (collection, mut entries) in image.collections {
            let sealed: Vec<_> = entries
                .iter()
                .filter(|(_, entry)| entry.value.as_plain().is_some_and(|it| is_sealed(it)))
                .map(|(key, entry)| (key.clone(), entry.clone()))
                .collect();
            for (key, entry) in sealed {
                let entry = attached(&self.bunch, &collection, &key, entry);
                entries.insert(key, entry);
            }
            let shelf = self.shelf(collection.as_str());
            self.objects += entries.len() as u64;
            self.bytes += entries.iter().map(|(key, entry)| size_of_entry(key, entry)).sum::<u64>();
            for (key, entry) in &entries {
                self.tallies.change(collection.as_str(), key, Some(entry), None);
            }
            self.shelves[shelf].entries = entries;
        }
        self.read_fences();
    }

    /// Goes by the table as it is now.
    fn read_fences(&mut self) {
        let table = self.shelves[self.fence_shelf].entries.get(fences::TABLE);
        self.fences = match table {
            Some(entry) => Arc::new(Fences::parse(&entry.value.bytes(), entry.modified)),
            None => Fences::none(),
        };
        // Some may watch what is no longer here.
        self.touch_all();
    }

    fn put(
        &mut self,
        shelf: usize,
        key: &str,
        value: &[u8],
        revision: Revision,
    ) -> Option<Arc<Event>> {
        let value = value::own_with_revision(value, revision);
        let fresh = value.clone();
        let entry = Entry { value: self.kept(shelf, key, value), modified: revision };
        let entries = &mut self.shelves[shelf].entries;
        let (key, previous) = match entries.get_key_value_mut(key) {
            Some((key, slot)) => (key.clone(), Some(std::mem::replace(slot, entry.clone()))),
            None => {
                let key: Arc<str> = key.into();
                entries.insert(key.clone(), entry.clone());
                (key, None)
            }
        };
        self.count(shelf, &key, &entry, previous.as_ref());
        // Whoever follows gets it now, and then it goes: not worth unpacking what was at hand.
        let entry = match entry.value.is_alike() {
            true => Entry { value: fresh.into(), ..entry },
            false => entry,
        };
        Some(self.record(shelf, Event { revision, key, entry, previous, deleted: false }))
    }

    fn remove(&mut self, shelf: usize, key: &str, revision: Revision) -> Option<Arc<Event>> {
        let (key, previous) = self.shelves[shelf].entries.remove_with_key(key)?;
        self.objects -= 1;
        self.bytes -= size_of_entry(&key, &previous);
        let collection = self.shelves[shelf].collection.as_str();
        self.tallies.change(collection, &key, None, Some(&previous));
        let value = value::with_revision(&previous.value.stored(), revision);
        let value = match previous.value.is_alike() {
            true => value.into(),
            false => self.kept(shelf, &key, value),
        };
        let entry = Entry { value, modified: revision };
        let previous = Some(previous);
        Some(self.record(shelf, Event { revision, key, entry, previous, deleted: true }))
    }

    /// What will lie there for a while.
    fn kept(&mut self, shelf: usize, key: &str, value: Bytes) -> Text {
        let collection = &self.shelves[shelf].collection;
        match is_sealed(&value) {
            true => self.bunch.keep(collection, key, value),
            false => self.templates.keep(collection.as_str(), key, value),
        }
    }

    fn count(&mut self, shelf: usize, key: &str, entry: &Entry, previous: Option<&Entry>) {
        let collection = self.shelves[shelf].collection.as_str();
        self.tallies.change(collection, key, Some(entry), previous);
        self.bytes += size_of_entry(key, entry);
        match previous {
            Some(previous) => self.bytes -= size_of_entry(key, previous),
            None => self.objects += 1,
        }
    }

    fn record(&mut self, shelf: usize, event: Event) -> Arc<Event> {
        self.advance(event.revision);
        let event = Arc::new(event);
        if shelf == self.fence_shelf {
            self.read_fences();
        }
        let collection = self.shelves[shelf].collection.as_str();
        if is_document(collection) {
            let text = (!event.deleted).then(|| event.entry.value.stored());
            self.bunch.learn(&event.key, text.as_ref().map(|it| &***it));
        }
        if !self.fences.is_quiet(collection, &event.key) {
            let lane = Lane::of(Shard::of(collection, &event.key));
            self.shelves[shelf].ring.push(lane, event.clone());
            self.touch(shelf, 1 << lane.index());
        }
        event
    }

    /// The place of a collection, made if this is the first that is heard of it.
    pub(super) fn shelf(&mut self, name: &str) -> usize {
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
            lanes: BTreeMap::new(),
            touched: 0,
            settled: Revision(0),
        });
        self.index.insert(collection, shelf);
        shelf
    }

    fn touch(&mut self, shelf: usize, lanes: u128) {
        if self.shelves[shelf].touched == 0 {
            self.touched.push(shelf);
        }
        self.shelves[shelf].touched |= lanes;
    }

    fn touch_all(&mut self) {
        for shelf in 0..self.shelves.len() {
            self.touch(shelf, u128::MAX);
        }
    }

    /// Who is to be told of what changed: those who follow all of it, and those who follow a lane
    /// in which something did.
    pub(super) fn take_wakeups(&mut self) -> Vec<watch::Sender<u64>> {
        let mut wakeups = Vec::new();
        for shelf in std::mem::take(&mut self.touched) {
            let shelf = &mut self.shelves[shelf];
            let touched = std::mem::take(&mut shelf.touched);
            wakeups.push(shelf.changed.clone());
            let lanes = shelf.lanes.iter().filter(|(lane, _)| touched & (1 << lane.index()) != 0);
            wakeups.extend(lanes.map(|(_, sender)| sender.clone()));
        }
        wakeups
    }

    pub(super) fn check_open(&self) -> Result<(), StoreError> {
        match self.closed {
            Some(reason) => Err(StoreError::Unavailable { reason: reason.into(), source: None }),
            None => Ok(()),
        }
    }

    /// Whether all that happened after `revision` is known, as far as no single ring decides.
    pub(super) fn check_history(&self, revision: Revision) -> Result<(), StoreError> {
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
