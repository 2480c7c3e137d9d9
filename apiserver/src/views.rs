//! Partitions, servers and moves as objects: made from the partition map, never kept.
//!
//! A view is a [`Store`], so the handlers of every other resource serve it. A read makes the
//! objects anew; a write is turned into a change of the map, or into a move. Its revisions are
//! times in milliseconds: each server counts for itself, and a watch that began at one server can
//! go on at another whose clock is not far off. Labels and annotations are kept as [`notes`].
//!
//! # Invariants
//!
//! * A change of what an operator asked for, or of an object's health, is an event at once.
//!   Counters alone are one every [`COUNTERS`], or watches would tell of nothing else.
//! * The map decides: what it refuses was never accepted here.

mod moves;
mod notes;
mod partitions;
mod servers;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use insula_partition::{
    fences::Fences,
    partitions::Partitions,
    snapshot::{Entry, Snapshot},
    store::{
        Change, Collection, Committed, Expect, ReadAt, Revision, Store, StoreError, StoreStats,
        Write,
    },
    value,
    watch::{Event, Feed, Watcher},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

pub(crate) use self::moves::{driver, phase};
use self::notes::Notes;
use crate::{
    Server,
    error::{ApiError, Result},
    peers::HttpPeers,
};

/// How often counters alone are worth an event.
const COUNTERS: Duration = Duration::from_secs(10);

/// How often somebody who watches looks.
const LOOK: Duration = Duration::from_millis(500);

/// Events that are kept for those who watch.
const KEPT: usize = 1000;

/// Which objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Partitions,
    Servers,
    Moves,
}

impl Kind {
    /// The kind that a resource of group `insula.io` shows.
    pub(crate) fn of(resource: &str) -> Option<Self> {
        match resource {
            "partitions" => Some(Self::Partitions),
            "servers" => Some(Self::Servers),
            "partitionmoves" => Some(Self::Moves),
            _ => None,
        }
    }
}

/// What an object is made of.
struct Made {
    name: String,
    object: Value,
    /// Of `status`: fields that change all the time.
    counters: &'static [&'static str],
}

/// Refuses a write of a view's object that the map would refuse, in the terms of its request.
pub(crate) async fn check(
    server: &Server,
    kind: Kind,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<()> {
    if is_note(new, old) {
        return Ok(());
    }
    match kind {
        Kind::Partitions => partitions::check(&server.partitions, new, old),
        Kind::Servers => servers::check(&server.partitions, new, old),
        Kind::Moves => moves::check(&server.partitions, new, old).await,
    }
}

/// Whether an update leaves alone what the map decides.
fn is_note(new: Option<&Value>, old: Option<&Value>) -> bool {
    new.zip(old).is_some_and(|(new, old)| new["spec"] == old["spec"])
}

/// See the module.
pub(crate) struct View {
    kind: Kind,
    source: Source,
    notes: Notes,
    shelf: Arc<Shelf>,
}

/// What objects are made from.
#[derive(Clone)]
struct Source {
    partitions: Arc<Partitions>,
    peers: Option<HttpPeers>,
}

/// What was made last, and how it changed.
struct Shelf {
    contents: Mutex<Contents>,
    changed: watch::Sender<u64>,
}

struct Contents {
    /// Of the newest event.
    version: Revision,
    /// Nothing is known of what happened before.
    floor: Revision,
    objects: BTreeMap<Arc<str>, Shown>,
    events: VecDeque<Arc<Event>>,
}

struct Shown {
    entry: Entry,
    /// The object without its counters.
    core: Value,
    counted: Instant,
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

impl View {
    pub(crate) fn new(
        kind: Kind,
        partitions: Arc<Partitions>,
        peers: Option<HttpPeers>,
    ) -> Arc<Self> {
        let version = Revision(now());
        let contents =
            Contents { version, floor: version, objects: BTreeMap::new(), events: VecDeque::new() };
        let shelf = Shelf { contents: Mutex::new(contents), changed: watch::Sender::new(0) };
        let (notes, source) = (Notes::of(kind), Source { partitions, peers });
        Arc::new(Self { kind, source, notes, shelf: Arc::new(shelf) })
    }

    /// Looks for those who watch, until the task is ended.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut epochs = self.source.partitions.subscribe();
        loop {
            let _ = tokio::time::timeout(LOOK, epochs.changed()).await;
            if 0 < self.shelf.changed.receiver_count()
                && let Err(error) = self.refresh().await
            {
                tracing::debug!(error = crate::error::chain(&error), "a view is not made anew");
            }
        }
    }

    async fn make(&self) -> Result<Vec<Made>, StoreError> {
        let mut made = match self.kind {
            Kind::Partitions => partitions::make(&self.source.partitions),
            Kind::Servers => servers::make(&self.source),
            Kind::Moves => moves::make(&self.source.partitions).await?,
        };
        self.notes.add(&self.source.partitions, &mut made).await;
        Ok(made)
    }

    /// Makes all objects anew and tells what changed.
    async fn refresh(&self) -> Result<(), StoreError> {
        let made = self.make().await?;
        let mut contents = self.shelf.contents.lock();
        if contents.take(made) {
            self.shelf.changed.send_replace(contents.version.0);
        }
        Ok(())
    }

    async fn read(&self, collection: &Collection, at: ReadAt) -> Result<Snapshot, StoreError> {
        self.refresh().await?;
        let contents = self.shelf.contents.lock();
        let version = contents.version;
        if let ReadAt::Exactly(requested) = at
            && requested != version
        {
            return Err(StoreError::Compacted { requested, oldest: version });
        }
        let entries = contents.objects.iter().map(|(key, it)| (key.clone(), it.entry.clone()));
        Ok(Snapshot::of(collection.clone(), version, entries))
    }

    async fn write(&self, write: Write) -> Result<Committed, StoreError> {
        let found = self.read(&write.collection, ReadAt::Latest).await?.get(&write.key).cloned();
        let allowed = match write.expect {
            Expect::Absent => found.is_none(),
            Expect::At(revision) => found.as_ref().is_some_and(|it| it.modified == revision),
            Expect::Present => found.is_some(),
            Expect::Anything => true,
        };
        if !allowed {
            let Write { collection, key, .. } = write;
            return Err(StoreError::Conflict { collection, key, found });
        }
        let name = write.key.rsplit('/').next().unwrap_or_default();
        let new: Option<Value> = match &write.change {
            Change::Put(bytes) => Some(serde_json::from_slice(bytes).map_err(|error| {
                StoreError::Damaged { what: format!("an object of a view: {error}") }
            })?),
            Change::Delete => None,
        };
        let old: Option<Value> =
            found.as_ref().and_then(|it| serde_json::from_slice(&it.value.bytes()).ok());
        let partitions = &self.source.partitions;
        let (new, old) = (new.as_ref(), old.as_ref());
        let changed = match self.kind {
            _ if is_note(new, old) => Ok(()),
            Kind::Partitions => text(partitions::write(partitions, name, new, old.is_none()).await),
            Kind::Servers => text(servers::write(partitions, name, new).await),
            Kind::Moves => text(moves::write(partitions, name, new).await),
        };
        // It was allowed a moment ago, so this is a race, and what comes of it is decided anew.
        changed.map_err(|reason| StoreError::Unavailable { reason, source: None })?;
        self.notes.write(partitions, name, new).await?;
        let now = self.read(&write.collection, ReadAt::Latest).await?;
        let entry = now
            .get(&write.key)
            .cloned()
            .or(found)
            .unwrap_or_else(|| Entry { value: Default::default(), modified: now.revision() });
        Ok(Committed { revision: entry.modified, entry })
    }
}

impl Contents {
    /// Goes by `made` from now on. Whether that is news.
    fn take(&mut self, made: Vec<Made>) -> bool {
        let before = self.version;
        let mut gone: Vec<Arc<str>> = self.objects.keys().cloned().collect();
        for Made { name, object: it, counters } in made {
            let key: Arc<str> = format!("system//{name}").into();
            gone.retain(|known| *known != key);
            let core = core(&it, counters);
            let managed = object::metadata(&it).get("managedFields").map(Value::to_string);
            let encoded = bytes::Bytes::from(object::encode_with(&it, managed.as_deref()));
            if let Some(shown) = self.objects.get_mut(&key) {
                let counts =
                    shown.entry.value != value::with_revision(&encoded, shown.entry.modified);
                if shown.core == core && (!counts || shown.counted.elapsed() < COUNTERS) {
                    // Readers see the newest counters; nobody is told of them.
                    shown.entry.value = value::with_revision(&encoded, shown.entry.modified).into();
                    continue;
                }
            }
            let revision = self.next();
            let entry = Entry {
                value: value::with_revision(&encoded, revision).into(),
                modified: revision,
            };
            let shown = Shown { entry: entry.clone(), core, counted: Instant::now() };
            let previous = self.objects.insert(key.clone(), shown).map(|it| it.entry);
            self.push(Event { revision, key, entry, previous, deleted: false });
        }
        for key in gone {
            let Some(shown) = self.objects.remove(&key) else { continue };
            let revision = self.next();
            let value = value::with_revision(&shown.entry.value.bytes(), revision);
            let entry = Entry { value: value.into(), modified: revision };
            let previous = Some(shown.entry);
            self.push(Event { revision, key, entry, previous, deleted: true });
        }
        before < self.version
    }

    fn next(&mut self) -> Revision {
        self.version = Revision(now().max(self.version.0 + 1));
        self.version
    }

    fn push(&mut self, event: Event) {
        self.events.push_back(Arc::new(event));
        while KEPT < self.events.len() {
            if let Some(oldest) = self.events.pop_front() {
                self.floor = oldest.revision;
            }
        }
    }
}

/// The object without what changes all the time.
fn core(it: &Value, counters: &[&str]) -> Value {
    let mut core = it.clone();
    if let Some(status) = core.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|field, _| !counters.contains(&field.as_str()));
    }
    core
}

impl Feed for Shelf {
    fn changes(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let contents = self.contents.lock();
        if after < contents.floor {
            return Err(StoreError::Compacted { requested: after, oldest: contents.floor });
        }
        let start = contents.events.partition_point(|event| event.revision <= after);
        let events = contents.events.range(start..).take(limit).cloned().collect();
        Ok((events, contents.version))
    }

    fn fences(&self) -> Arc<Fences> {
        Fences::none()
    }

    fn wakeups(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Store for View {
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.read(collection, at).boxed()
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        self.write(write).boxed()
    }

    fn watch(&self, _: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.shelf.changes(after, 0)?;
        // From a server whose clock is ahead, or from before this one's was set back: what happens
        // from now on comes after it.
        let mut contents = self.shelf.contents.lock();
        contents.version = contents.version.max(after);
        drop(contents);
        Ok(Watcher::new(self.shelf.clone(), after))
    }

    fn progress(&self) -> Revision {
        self.shelf.contents.lock().version
    }

    fn compact(&self, _: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn raise(&self, _: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }

    fn stats(&self) -> StoreStats {
        StoreStats::default()
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }
}

fn text<E: std::error::Error + 'static>(outcome: Result<(), E>) -> Result<(), String> {
    outcome.map_err(|error| crate::error::chain(&error))
}

/// The uid of a view's object: always the same for the same thing, whichever server makes it.
pub(crate) fn uid(kind: &str, cluster: &str, name: &str) -> String {
    let hash = xxhash_rust::xxh3::xxh3_128(format!("{cluster}/{kind}/{name}").as_bytes());
    uuid::Uuid::from_u128(hash).to_string()
}

/// What all objects of views have.
fn base(kind: &str, cluster: &str, name: &str) -> Value {
    json!({
        "apiVersion": "insula.io/v1", "kind": kind,
        "metadata": {"name": name, "tenant": "system", "uid": uid(kind, cluster, name)},
    })
}

fn texts(it: &Value) -> Vec<String> {
    let list = it.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A refusal of a create or an update.
fn invalid(kind: &str, it: &Value, field: &str, why: &str) -> ApiError {
    let mut error = crate::error::FieldError::forbidden(field, why);
    error.message = format!("Invalid value: {why}");
    error.reason = "FieldValueInvalid";
    ApiError::invalid("insula.io", kind, object::name(it), &[error])
}
