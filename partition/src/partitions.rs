//! All partitions of the cluster as this server has them, and who lives where.
//!
//! ```text
//! config      what the server is told at its start
//! stored_map  the map as a value of `meta`, and this server's copy of it
//! view        the map with the stores that answer for its partitions
//! moving      starting moves, waiting for them, cancelling them
//! follow      keeps what is open in step with the map
//! ```

mod config;
mod follow;
mod moving;
mod stored_map;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, ready},
    stream::BoxStream,
};
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    embedded::{Embedded, EmbeddedOptions, Identity},
    error::OpenError,
    etcd::EtcdStore,
    map::{MapError, PartitionInfo, PartitionMap, ServerInfo, ShardKey},
    moves,
    peers::{Nobody, PeerService},
    ring::RingLimits,
    store::{Expect, Store, StoreError},
};

pub use self::{
    config::{EtcdPartition, PartitionsConfig, StoreConfig},
    view::Place,
};
use self::{
    stored_map::{load_map, read_map, write_map},
    view::{Held, View},
};
pub use crate::wal::LogCounts;

/// The partition that holds the partition map. Holds no tenant's objects.
pub const META: &str = "meta";

/// Where the partition map lies in etcd, beside the objects of the first partition.
const META_PREFIX: &str = "/insula-meta";

/// See the module.
pub struct Partitions {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl std::fmt::Debug for Partitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.names();
        f.debug_struct("Partitions").field("names", &names).finish_non_exhaustive()
    }
}

/// What the tasks work with, too.
pub(crate) struct Shared {
    pub(crate) config: PartitionsConfig,
    pub(crate) embedded: Option<Arc<Embedded>>,
    pub(crate) meta: Arc<dyn Store>,
    /// What is open, by name; `meta` too.
    open: Mutex<HashMap<String, Held>>,
    view: ArcSwap<View>,
    epoch: watch::Sender<u64>,
}

impl Partitions {
    /// Opens every partition, reads what they hold, and finds out who lives where.
    pub async fn open(config: PartitionsConfig) -> Result<Self, OpenError> {
        Self::open_with(config, EmbeddedOptions::default()).await
    }

    pub(crate) async fn open_with(
        config: PartitionsConfig,
        options: EmbeddedOptions,
    ) -> Result<Self, OpenError> {
        match config.store.clone() {
            StoreConfig::Embedded { partitions } => {
                let names: Vec<_> = (1..=partitions).map(|n| format!("p{n}")).collect();
                Self::open_embedded(config, names, options).await
            }
            StoreConfig::Etcd { partitions } => Self::open_etcd(config, partitions).await,
            StoreConfig::Join { .. } => {
                let what = "this server cannot join others yet".into();
                Err(OpenError::Config { what })
            }
        }
    }

    pub(crate) async fn open_embedded(
        config: PartitionsConfig,
        names: Vec<String>,
        options: EmbeddedOptions,
    ) -> Result<Self, OpenError> {
        let server = [config.server.as_str()];
        let infos: Vec<_> =
            names.iter().map(|name| PartitionInfo::embedded(name, &server)).collect();
        let meta_info = PartitionInfo::embedded(META, &server);
        let first = first_map(&config, meta_info, infos)?;
        let mut all: Vec<_> =
            std::iter::once(META.to_owned()).chain(names.iter().cloned()).collect();
        let identity =
            Identity { cluster: String::new(), server: config.server.clone(), member: 1 };
        let voters = BTreeMap::from([(identity.member, identity.server.clone())]);
        let data_dir = config.data_dir.clone();
        let open = move || Embedded::open(&data_dir, &identity, Arc::new(Nobody), &options);
        let embedded = tokio::task::spawn_blocking(open).await.map_err(|error| {
            OpenError::Config { what: format!("opening was cut short: {error}") }
        })??;
        let found = embedded.groups();
        all.sort();
        if !found.is_empty() && found != all {
            drop(embedded.shutdown().await);
            return Err(OpenError::Partitions { found, asked: all });
        }
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        for name in std::iter::once(META).chain(names.iter().map(String::as_str)) {
            embedded.create(name, &voters).await?;
            stores.extend(embedded.store(name).map(|store| store as Arc<dyn Store>));
        }
        let meta = stores.remove(0);
        let open = names.into_iter().zip(stores).collect();
        Self::assemble(config, Some(embedded), meta, open, first).await
    }

    async fn open_etcd(
        config: PartitionsConfig,
        partitions: Vec<EtcdPartition>,
    ) -> Result<Self, OpenError> {
        let infos = partitions.iter().map(|partition| PartitionInfo {
            name: partition.name.clone(),
            backend: partition.etcd.place(),
            ..PartitionInfo::default()
        });
        let Some(first) = partitions.first() else {
            return Err(OpenError::Config { what: "no etcd was given".into() });
        };
        let meta_etcd = first.etcd.at_prefix(META_PREFIX);
        let backend = meta_etcd.place();
        let meta_info = PartitionInfo { name: META.into(), backend, ..PartitionInfo::default() };
        let mut map = first_map(&config, meta_info, infos.collect())?;
        let meta = EtcdStore::open(META, &meta_etcd, RingLimits::default()).await?;
        let cluster = meta.identify(None, map.cluster()).await?;
        map.set_cluster(&cluster);
        let open = partitions.iter().map(|partition| async {
            let store =
                EtcdStore::open(&partition.name, &partition.etcd, RingLimits::default()).await?;
            store.identify(Some(&cluster), &cluster).await?;
            Ok::<_, OpenError>(store)
        });
        let stores = futures::future::try_join_all(open).await?;
        let stores = stores.into_iter().map(|store| Arc::new(store) as Arc<dyn Store>);
        let names = partitions.iter().map(|partition| partition.name.clone());
        let open = names.zip(stores).collect();
        Self::assemble(config, None, Arc::new(meta), open, map).await
    }

    async fn assemble(
        config: PartitionsConfig,
        embedded: Option<Arc<Embedded>>,
        meta: Arc<dyn Store>,
        open: Vec<(String, Arc<dyn Store>)>,
        first: PartitionMap,
    ) -> Result<Self, OpenError> {
        let map = load_map(&*meta, &first).await?;
        tracing::info!(
            partitions = map.partitions().len(),
            epoch = map.epoch(),
            "partitions are open"
        );
        let mut held: HashMap<String, Held> = HashMap::new();
        for (name, store) in open.into_iter().chain([(META.to_owned(), meta.clone())]) {
            held.insert(name.clone(), Held { name: name.into(), store, local: true });
        }
        let epoch = watch::Sender::new(map.epoch());
        let view = ArcSwap::from_pointee(View::new(Arc::new(map), &held));
        let shared = Shared { config, embedded, meta, open: Mutex::new(held), view, epoch };
        let shared = Arc::new(shared);
        let follow = tokio::spawn(follow::run(shared.clone())).abort_handle();
        let moves = tokio::spawn(moves::run(shared.clone())).abort_handle();
        Ok(Self { shared, tasks: Mutex::new(vec![follow, moves]) })
    }

    /// Who answers for `key` now.
    pub fn place(&self, key: &ShardKey) -> Place {
        self.shared.view.load().place(key)
    }

    /// The partition that `key` lives on, with its name.
    pub fn store_for(&self, key: &ShardKey) -> (String, Arc<dyn Store>) {
        let place = self.place(key);
        (place.partition.as_ref().to_owned(), place.store)
    }

    /// Names of all partitions that hold objects, in the map's order. [`META`] is not among them.
    pub fn names(&self) -> Vec<String> {
        self.map().partitions().to_vec()
    }

    /// The partition of that name; [`META`] too.
    pub fn store(&self, name: &str) -> Option<Arc<dyn Store>> {
        self.shared.store(name)
    }

    /// Whether the partition of that name is in this server's own memory.
    pub fn is_local(&self, name: &str) -> bool {
        self.shared.is_local(name)
    }

    /// Servers that have the partition of that name, those that are ready first.
    pub fn servers_of(&self, name: &str) -> Arc<[ServerInfo]> {
        self.shared.view.load().servers(name)
    }

    /// All servers of the cluster.
    pub fn servers(&self) -> Vec<ServerInfo> {
        self.map().servers().to_vec()
    }

    /// This server's name.
    pub fn server_name(&self) -> &str {
        &self.shared.config.server
    }

    /// The map in force, as far as this server knows.
    pub fn map(&self) -> Arc<PartitionMap> {
        self.shared.map()
    }

    /// The epoch of the map in force; changes with it.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.epoch.subscribe()
    }

    /// Changes the map: `change` makes the next one from the newest, again if another server was
    /// faster.
    pub async fn change_map(
        &self,
        change: impl Fn(&PartitionMap) -> Result<PartitionMap, MapError> + Send + Sync,
    ) -> Result<Arc<PartitionMap>, ChangeError> {
        self.shared.change_map(change).await
    }

    /// Writes down the state of every embedded partition, so that the next start has less to
    /// replay. An etcd takes care of this itself.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        if let Some(embedded) = &self.shared.embedded {
            for name in embedded.groups() {
                if let Some(store) = embedded.store(&name) {
                    store.checkpoint().await?;
                }
            }
        }
        Ok(())
    }

    /// What the embedded partitions' log did since it was opened; `None` with etcd.
    pub fn log_counts(&self) -> Option<LogCounts> {
        self.shared.embedded.as_ref().map(|embedded| embedded.log_counts())
    }

    /// Flushes and ends all partitions. Later calls on them fail `Unavailable`.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        if let Some(embedded) = &self.shared.embedded {
            embedded.clone().shutdown().await?;
        }
        let open: Vec<_> = self.shared.open.lock().values().cloned().collect();
        for held in open {
            held.store.shutdown().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Partitions {
    /// On stores that are made up.
    pub(crate) async fn of_stores(
        config: PartitionsConfig,
        meta: Arc<dyn Store>,
        open: Vec<(String, Arc<dyn Store>)>,
        first: PartitionMap,
    ) -> Result<Self, OpenError> {
        Self::assemble(config, None, meta, open, first).await
    }

    /// Whatever is done in the background ends where it is.
    pub(crate) fn end_tasks(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    pub(crate) fn meta(&self) -> Arc<dyn Store> {
        self.shared.meta.clone()
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Leaves moves to the test.
    pub(crate) fn stop_moves(&self) {
        if let Some(task) = self.tasks.lock().get(1) {
            task.abort();
        }
    }
}

impl Drop for Partitions {
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }
}

impl Shared {
    /// The map in force, as far as this server knows.
    pub(crate) fn map(&self) -> Arc<PartitionMap> {
        self.view.load().map.clone()
    }

    /// The partition of that name.
    pub(crate) fn store(&self, name: &str) -> Option<Arc<dyn Store>> {
        self.view.load().held(name).map(|held| held.store.clone())
    }

    /// Whether the partition of that name is in this server's own memory.
    pub(crate) fn is_local(&self, name: &str) -> bool {
        self.view.load().held(name).is_some_and(|held| held.local)
    }

    pub(crate) async fn change_map(
        &self,
        change: impl Fn(&PartitionMap) -> Result<PartitionMap, MapError> + Send + Sync,
    ) -> Result<Arc<PartitionMap>, ChangeError> {
        loop {
            let Some((current, revision)) = read_map(&*self.meta).await? else {
                let what = "the partition map is gone".into();
                return Err(StoreError::Damaged { what }.into());
            };
            let next = change(&current)?;
            if next.epoch() == current.epoch() {
                return Ok(self.adopt(current));
            }
            match write_map(&*self.meta, &next, Expect::At(revision)).await {
                Ok(()) => return Ok(self.adopt(next)),
                // Another server changed the map: decide again from its version.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Goes by `map` from now on, unless a newer one is known.
    fn adopt(&self, map: PartitionMap) -> Arc<PartitionMap> {
        let map = Arc::new(map);
        let open = self.open.lock();
        if self.view.load().map.epoch() < map.epoch() {
            self.view.store(Arc::new(View::new(map.clone(), &open)));
            drop(open);
            self.epoch.send_replace(map.epoch());
        }
        map
    }

    /// Goes by what is open now.
    fn refresh(&self) {
        let open = self.open.lock();
        let map = self.view.load().map.clone();
        self.view.store(Arc::new(View::new(map, &open)));
    }
}

/// Why the map was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("the partition map could not be changed")]
    Store(#[from] StoreError),
}

fn first_map(
    config: &PartitionsConfig,
    meta: PartitionInfo,
    infos: Vec<PartitionInfo>,
) -> Result<PartitionMap, OpenError> {
    let server = ServerInfo {
        id: 1,
        name: config.server.clone(),
        address: config.address.clone(),
        ready: Vec::new(),
    };
    let cluster = uuid::Uuid::new_v4().to_string();
    PartitionMap::first(&cluster, Some(server), meta, infos)
        .map_err(|error| OpenError::Config { what: error.to_string() })
}

/// Frames and requests of other servers, each for the part that its first byte names.
impl PeerService for Partitions {
    fn receive(&self, _from: &str, _frame: Bytes) {}

    fn answer(&self, _from: &str, _request: Bytes) -> BoxFuture<'_, Result<Bytes, String>> {
        ready(Err("this server does not know what it was asked".into())).boxed()
    }

    fn pieces(
        &self,
        _from: &str,
        _request: Bytes,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, String>> {
        ready(Err("this server does not know what it was asked".into())).boxed()
    }
}
