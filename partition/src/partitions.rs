//! All partitions of the cluster as this server has them, and who lives where.
//!
//! ```text
//! config      what the server is told at its start
//! open        who this server is, and the first map
//! desk        where frames and requests of other servers arrive
//! stored_map  the map as a value of `meta`, and this server's copy of it
//! view        the map with the stores that answer for its partitions
//! moving      starting moves, waiting for them, cancelling them
//! follow      keeps what is open in step with the map
//! ```

mod config;
mod desk;
mod follow;
mod moving;
mod open;
mod stored_map;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    embedded::{Embedded, EmbeddedOptions},
    error::{OpenError, chain},
    etcd::EtcdConfig,
    map::{self, Backend, MapError, PartitionMap, ServerInfo, ShardKey},
    moves,
    peers::PeerService,
    remote::RemoteService,
    seal::{SealingStore, Vault},
    store::{Store, StoreError},
};

pub use self::{
    config::{EtcdPartition, PartitionsConfig, StoreConfig},
    view::Place,
};
use self::{
    desk::Desk,
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
    /// What is open, by name; `meta` too.
    open: Mutex<HashMap<String, Held>>,
    /// Why what should be open is not.
    failures: Mutex<HashMap<String, String>>,
    /// What a task is working on.
    opening: Mutex<HashSet<String>>,
    /// Whom partitions that are elsewhere are asked.
    remote: Mutex<HashMap<String, watch::Sender<Vec<String>>>>,
    view: ArcSwap<View>,
    epoch: watch::Sender<u64>,
    desk: Arc<Desk>,
    /// Whether the map was read from `meta` since the start. Before, it may be an old one.
    confirmed: AtomicBool,
}

/// Passes over the map at the start, and the pause between them.
const PASSES: usize = 5;
const PASS: Duration = Duration::from_millis(10);

impl Partitions {
    /// Opens what this server has of the cluster, and finds out who lives where.
    ///
    /// What cannot be reached now is opened later: until then it is `Unavailable`.
    pub fn open(config: PartitionsConfig) -> BoxFuture<'static, Result<Self, OpenError>> {
        // Boxed so that it is compiled here, and not with every program around it.
        Box::pin(Self::open_with(config, EmbeddedOptions::default()))
    }

    pub(crate) async fn open_with(
        config: PartitionsConfig,
        options: EmbeddedOptions,
    ) -> Result<Self, OpenError> {
        if !map::is_name(&config.server) {
            let what = format!("a server cannot be named {:?}", config.server);
            return Err(OpenError::Config { what });
        }
        let options = EmbeddedOptions { vault: config.vault.clone(), ..options };
        let desk = Arc::new(Desk::default());
        let opened = Box::pin(open::open(&config, &options, &desk)).await?;
        let held = open::held(&opened);
        let open::Opened { embedded, meta: _, meta_servers, map } = opened;
        let remote = meta_servers.map(|servers| (META.to_owned(), servers)).into_iter().collect();
        let shared = Shared::new(config, embedded, held, remote, map, desk);
        shared.keep_copy();
        let opening = shared.open_all().await;
        let partitions = Self::start(shared);
        if let Err(error) = opening {
            drop(partitions.shutdown().await);
            return Err(error);
        }
        let map = partitions.map();
        tracing::info!(
            server = partitions.server_name(),
            partitions = map.partitions().len(),
            epoch = map.epoch(),
            "partitions are open"
        );
        Ok(partitions)
    }

    fn start(shared: Arc<Shared>) -> Self {
        let tasks = [
            tokio::spawn(follow::run(shared.clone())).abort_handle(),
            tokio::spawn(moves::run(shared.clone())).abort_handle(),
            tokio::spawn(follow::compact(shared.clone())).abort_handle(),
        ];
        Self { shared, tasks: Mutex::new(tasks.into()) }
    }

    /// Who answers for `key` now.
    pub fn place(&self, key: &ShardKey) -> Place {
        self.shared.view.load().place(key)
    }

    /// Who answers for the partition of that name now, if there is one.
    pub fn place_of(&self, name: &str) -> Option<Place> {
        self.shared.view.load().place_of(name)
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

    /// What seals and opens values here.
    pub fn vault(&self) -> &Arc<Vault> {
        &self.shared.config.vault
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
        let map = stored_map::load_map(&*meta, &first).await?;
        let open = open.into_iter().chain([(META.to_owned(), meta)]);
        let held = open.map(|(name, store)| {
            (name.clone(), Held { name: name.as_str().into(), store, local: true })
        });
        let (held, desk) = (held.collect(), Arc::new(Desk::default()));
        Ok(Self::start(Shared::new(config, None, held, HashMap::new(), map, desk)))
    }

    /// Whatever is done in the background ends where it is.
    pub(crate) fn end_tasks(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    pub(crate) fn meta(&self) -> Arc<dyn Store> {
        self.shared.meta()
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
    fn new(
        config: PartitionsConfig,
        embedded: Option<Arc<Embedded>>,
        held: HashMap<String, Held>,
        remote: HashMap<String, watch::Sender<Vec<String>>>,
        map: PartitionMap,
        desk: Arc<Desk>,
    ) -> Arc<Self> {
        let epoch = watch::Sender::new(map.epoch());
        let failures = HashMap::new();
        let view = ArcSwap::from_pointee(View::new(Arc::new(map), &held, &failures));
        let shared = Arc::new(Self {
            config,
            embedded,
            open: Mutex::new(held),
            failures: Mutex::new(failures),
            opening: Mutex::default(),
            remote: Mutex::new(remote),
            view,
            epoch,
            desk: desk.clone(),
            confirmed: AtomicBool::new(false),
        });
        let here = Arc::downgrade(&shared);
        let service = RemoteService::new(move |name| {
            let shared = here.upgrade()?;
            let open = shared.open.lock();
            open.get(name).filter(|held| held.local).map(|held| held.store.clone())
        });
        // The desk is this one's alone.
        drop(desk.remote.set(service));
        shared
    }

    /// The partition that holds the map.
    pub(crate) fn meta(&self) -> Arc<dyn Store> {
        let open = self.open.lock();
        // It is there from the beginning.
        open.get(META).map_or_else(|| view::no_store(META), |held| held.store.clone())
    }

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
        self.open.lock().get(name).is_some_and(|held| held.local)
    }

    fn is_open(&self, name: &str) -> bool {
        self.open.lock().contains_key(name)
    }

    fn put(&self, held: Held) {
        let store = SealingStore::new(held.store, self.config.vault.clone());
        let held = Held { store: Arc::new(store), ..held };
        self.failures.lock().remove(&*held.name);
        self.open.lock().insert(held.name.to_string(), held);
    }

    fn failed(&self, name: &str, why: String) {
        self.failures.lock().insert(name.into(), why);
        self.refresh();
    }

    /// Whether nobody works on it yet. To be ended by [`Shared::end_opening`].
    fn begin_opening(&self, name: &str) -> bool {
        self.opening.lock().insert(name.into())
    }

    fn end_opening(&self, name: &str) {
        self.opening.lock().remove(name);
    }

    /// Opens everything once, so that whoever was waiting for it finds it. An etcd that does not
    /// answer is tried again later; one that is not ours is an error.
    async fn open_all(self: &Arc<Self>) -> Result<(), OpenError> {
        let map = self.map();
        let etcd = map.infos().iter().filter_map(|info| match &info.backend {
            Backend::Etcd(place) => Some((info, place)),
            Backend::Embedded => None,
        });
        let open = etcd.map(|(info, place)| async {
            let config = EtcdConfig::of(place, open::access(&self.config, &info.name));
            match follow::open_one(self, &info.name, &config).await {
                Ok(store) => {
                    self.put(Held { name: info.name.as_str().into(), store, local: true });
                    Ok(())
                }
                Err(error @ OpenError::Partition { .. }) => {
                    tracing::error!(partition = info.name, error = chain(&error), "not open yet");
                    self.failed(&info.name, chain(&error));
                    Ok(())
                }
                Err(error) => Err(error),
            }
        });
        futures::future::try_join_all(open).await?;
        // Groups begin in one pass and are there in the next.
        for _ in 0..PASSES {
            if follow::step(self).await {
                break;
            }
            tokio::time::sleep(PASS).await;
        }
        Ok(())
    }

    pub(crate) async fn change_map(
        &self,
        change: impl Fn(&PartitionMap) -> Result<PartitionMap, MapError> + Send + Sync,
    ) -> Result<Arc<PartitionMap>, ChangeError> {
        let map = stored_map::change_map(&*self.meta(), change).await?;
        Ok(self.adopt(map))
    }

    /// Goes by `map` from now on, unless a newer one is known.
    fn adopt(&self, map: PartitionMap) -> Arc<PartitionMap> {
        let map = Arc::new(map);
        let open = self.open.lock();
        if self.view.load().map.epoch() < map.epoch() {
            self.view.store(Arc::new(View::new(map.clone(), &open, &self.failures.lock())));
            drop(open);
            self.epoch.send_replace(map.epoch());
            self.keep_copy();
        }
        map
    }

    /// Goes by what is open now.
    fn refresh(&self) {
        let open = self.open.lock();
        let map = self.view.load().map.clone();
        self.view.store(Arc::new(View::new(map, &open, &self.failures.lock())));
    }

    fn keep_copy(&self) {
        if let Err(error) = stored_map::write_copy(&self.config.data_dir, &self.map()) {
            tracing::warn!(error = chain(&error), "the map could not be kept for the next start");
        }
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

/// Frames and requests of other servers. Whoever made the way to the others is told so when the
/// partitions are opened, see [`crate::peers::Peers::deliver_to`].
impl PeerService for Partitions {
    fn receive(&self, from: &str, frame: Bytes) {
        self.shared.desk.receive(from, frame);
    }

    fn answer(&self, from: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, String>> {
        self.shared.desk.answer(from, request)
    }

    fn pieces(
        &self,
        from: &str,
        request: Bytes,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, String>> {
        self.shared.desk.pieces(from, request)
    }
}
