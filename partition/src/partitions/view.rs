//! The map together with the stores that answer for its partitions: what a request looks at.
//!
//! Immutable. Each change of the map or of what is open makes a new one.

use std::{collections::HashMap, sync::Arc};

use futures::{
    FutureExt,
    future::{BoxFuture, ready},
};

use crate::{
    map::{PartitionInfo, PartitionMap, ServerInfo, ShardKey},
    snapshot::Snapshot,
    store::{Collection, Committed, ReadAt, Revision, Store, StoreError, StoreStats, Write},
    watch::Watcher,
};

/// Who answers for a shard key now.
#[derive(Clone)]
pub struct Place {
    /// The partition's name.
    pub partition: Arc<str>,
    /// Answers here, whether or not the partition has a member in this server.
    pub store: Arc<dyn Store>,
    /// Whether the store answers from this server's own memory.
    pub local: bool,
    /// Servers with the partition in their own memory, those that say so themselves first.
    pub servers: Arc<[ServerInfo]>,
    /// Of the map that says so.
    pub epoch: u64,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("partition", &self.partition)
            .field("local", &self.local)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// A partition as this server has it.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) name: Arc<str>,
    pub(super) store: Arc<dyn Store>,
    pub(super) local: bool,
}

/// See the module.
pub(super) struct View {
    pub(super) map: Arc<PartitionMap>,
    /// By name, every partition of the map; `meta` too.
    held: HashMap<String, (Held, Arc<[ServerInfo]>)>,
}

impl View {
    /// What `open` has, for all partitions of `map`.
    pub(super) fn new(
        map: Arc<PartitionMap>,
        open: &HashMap<String, Held>,
        failures: &HashMap<String, String>,
    ) -> Self {
        let infos = std::iter::once(map.meta()).chain(map.infos());
        let held = infos.map(|info| {
            let held = open.get(&info.name).cloned();
            let why = failures.get(&info.name).map(String::as_str);
            let held = held.unwrap_or_else(|| absent(&info.name, why));
            (info.name.clone(), (held, servers(&map, info)))
        });
        let held = held.collect();
        Self { map, held }
    }

    pub(super) fn place(&self, key: &ShardKey) -> Place {
        let name = self.map.owner(key);
        self.place_of(name).unwrap_or_else(|| self.placed(absent(name, None), Arc::default()))
    }

    /// The partition of that name, if the map has it.
    pub(super) fn place_of(&self, name: &str) -> Option<Place> {
        let (held, servers) = self.held.get(name)?;
        Some(self.placed(held.clone(), servers.clone()))
    }

    fn placed(&self, held: Held, servers: Arc<[ServerInfo]>) -> Place {
        let Held { name, store, local } = held;
        Place { partition: name, store, local, servers, epoch: self.map.epoch() }
    }

    pub(super) fn held(&self, name: &str) -> Option<&Held> {
        self.held.get(name).map(|(held, _)| held)
    }

    pub(super) fn servers(&self, name: &str) -> Arc<[ServerInfo]> {
        self.held.get(name).map(|(_, servers)| servers.clone()).unwrap_or_default()
    }
}

/// Servers that have the partition: those that are ready, then those that should be.
pub(super) fn servers(map: &PartitionMap, info: &PartitionInfo) -> Arc<[ServerInfo]> {
    let ready = |server: &&ServerInfo| server.ready.contains(&info.name);
    let wanted = |server: &&ServerInfo| info.servers.contains(&server.name);
    let ready_ones = map.servers().iter().filter(ready);
    let others = map.servers().iter().filter(|server| wanted(server) && !ready(server));
    ready_ones.chain(others).cloned().collect()
}

fn absent(name: &str, why: Option<&str>) -> Held {
    let why = why.unwrap_or("it is being opened").into();
    let store = Arc::new(Absent { name: name.into(), why });
    Held { name: name.into(), store, local: false }
}

/// A partition that nobody knows.
pub(super) fn no_store(name: &str) -> Arc<dyn Store> {
    absent(name, None).store
}

/// A partition that this server has no way to yet.
struct Absent {
    name: Arc<str>,
    why: String,
}

impl Absent {
    fn error(&self) -> StoreError {
        let reason = format!("this server has no way to partition {} yet: {}", self.name, self.why);
        StoreError::Unavailable { reason, source: None }
    }
}

impl Store for Absent {
    fn read<'a>(
        &'a self,
        _collection: &'a Collection,
        _at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        ready(Err(self.error())).boxed()
    }

    fn write(&self, _write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        ready(Err(self.error())).boxed()
    }

    fn watch(&self, _collection: &Collection, _after: Revision) -> Result<Watcher, StoreError> {
        Err(self.error())
    }

    fn progress(&self) -> Revision {
        Revision(0)
    }

    fn compact(&self, _revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Err(self.error())).boxed()
    }

    fn raise(&self, _revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Err(self.error())).boxed()
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        ready(Err(self.error())).boxed()
    }

    fn stats(&self) -> StoreStats {
        StoreStats { unhealthy: Some(self.error().to_string()), ..StoreStats::default() }
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        ready(Ok(())).boxed()
    }
}
