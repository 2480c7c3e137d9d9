//! Finding out who this server is and who lives where, before anything else can be opened.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    EtcdPartition, META, META_PREFIX, PartitionsConfig, StoreConfig,
    desk::Desk,
    stored_map::{self, read_map},
    view::Held,
};
use crate::{
    embedded::{Embedded, EmbeddedOptions, Identity},
    error::{OpenError, chain},
    etcd::{EtcdConfig, EtcdStore},
    map::{Backend, PartitionInfo, PartitionMap, ServerInfo},
    peers::PeerService,
    remote::RemoteStore,
    ring::RingLimits,
    store::{Store, StoreError},
};

/// How long to wait for others to say what the map is.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(300);

/// What is known once the map is.
pub(super) struct Opened {
    pub(super) embedded: Option<Arc<Embedded>>,
    pub(super) meta: Held,
    /// Whom a `meta` that is elsewhere is asked.
    pub(super) meta_servers: Option<watch::Sender<Vec<String>>>,
    pub(super) map: PartitionMap,
}

/// See the module. `desk` answers others from here on.
pub(super) async fn open(
    config: &PartitionsConfig,
    options: &EmbeddedOptions,
    desk: &Arc<Desk>,
) -> Result<Opened, OpenError> {
    let service: Arc<dyn PeerService> = desk.clone();
    config.peers.deliver_to(Arc::downgrade(&service));
    let opening = Opening { config, options, desk };
    let copy = stored_map::read_copy(&config.data_dir)?;
    let found = identity(&config.data_dir).await?;
    let opened = match &config.store {
        StoreConfig::Embedded { partitions } => opening.embedded(*partitions, copy, found).await,
        StoreConfig::Etcd { .. } => Box::pin(opening.etcd(copy, found)).await,
        StoreConfig::Join { servers } => opening.join(servers, copy, found).await,
    };
    if opened.is_err()
        && let Some(embedded) = desk.embedded.get()
        && let Err(error) = embedded.clone().shutdown().await
    {
        tracing::warn!(error = chain(&error), "what was opened could not be closed cleanly");
    }
    opened
}

struct Opening<'a> {
    config: &'a PartitionsConfig,
    options: &'a EmbeddedOptions,
    desk: &'a Arc<Desk>,
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| OpenError::Config { what: format!("opening was cut short: {error}") })?
}

async fn identity(data_dir: &Path) -> Result<Option<Identity>, OpenError> {
    if data_dir.as_os_str().is_empty() {
        return Ok(None);
    }
    let dir = data_dir.to_owned();
    blocking(move || Embedded::identity(&dir)).await
}

fn failed(source: StoreError) -> OpenError {
    OpenError::Partition { partition: META.into(), source }
}

impl Opening<'_> {
    /// Opens the directory in this server's name: one that belongs to another is refused.
    async fn directory(&self, identity: Identity) -> Result<Arc<Embedded>, OpenError> {
        let (dir, options) = (self.config.data_dir.clone(), self.options.clone());
        let identity = Identity { server: self.config.server.clone(), ..identity };
        let peers = self.config.peers.clone();
        let embedded = blocking(move || Embedded::open(&dir, &identity, peers, &options)).await?;
        // Only one open of a server is ever told to the desk.
        drop(self.desk.embedded.set(embedded.clone()));
        Ok(embedded)
    }

    fn first_map(
        &self,
        cluster: &str,
        meta: PartitionInfo,
        infos: Vec<PartitionInfo>,
    ) -> Result<PartitionMap, OpenError> {
        let server = ServerInfo {
            id: 1,
            name: self.config.server.clone(),
            address: self.config.address.clone(),
            ready: Vec::new(),
        };
        PartitionMap::first(cluster, Some(server), meta, infos)
            .map_err(|error| OpenError::Config { what: error.to_string() })
    }

    fn own(&self, name: &str) -> PartitionInfo {
        let info = PartitionInfo::embedded(name, &[&self.config.server]);
        PartitionInfo { first: vec![1], ..info }
    }

    async fn embedded(
        &self,
        count: u16,
        copy: Option<PartitionMap>,
        found: Option<Identity>,
    ) -> Result<Opened, OpenError> {
        let fresh = || Identity {
            cluster: uuid::Uuid::new_v4().to_string(),
            server: self.config.server.clone(),
            member: 1,
        };
        let identity = found.unwrap_or_else(fresh);
        let wanted = if count == 0 && copy.is_none() { 2 } else { count };
        let infos: Vec<_> = (1..=wanted).map(|n| self.own(&format!("p{n}"))).collect();
        let embedded = self.directory(identity.clone()).await?;
        if copy.is_none() {
            let voters = [(identity.member, identity.server.clone())].into();
            embedded.create(META, &voters).await?;
        }
        let (meta, meta_servers) = self.meta(Some(&embedded), copy.as_ref(), &[]).await?;
        let map = match copy {
            Some(map) => map,
            None => {
                let first = self.first_map(&identity.cluster, self.own(META), infos)?;
                stored_map::load_map(&*meta.store, &first).await?
            }
        };
        let map = self.grow(&meta, map, count).await?;
        Ok(Opened { embedded: Some(embedded), meta, meta_servers, map })
    }

    /// Adds partitions if more are asked for than there are. Fewer are refused.
    async fn grow(
        &self,
        meta: &Held,
        map: PartitionMap,
        count: u16,
    ) -> Result<PartitionMap, OpenError> {
        let numbered = |map: &PartitionMap| -> Vec<String> {
            let is_numbered = |info: &&PartitionInfo| {
                let number = info.name.strip_prefix('p').and_then(|it| it.parse::<u16>().ok());
                info.backend == Backend::Embedded && number.is_some()
            };
            map.infos().iter().filter(is_numbered).map(|info| info.name.clone()).collect()
        };
        let found = numbered(&map);
        if count == 0 || found.len() == usize::from(count) {
            return Ok(map);
        }
        if usize::from(count) < found.len() {
            let asked = (1..=count).map(|n| format!("p{n}")).collect();
            return Err(OpenError::Partitions { found, asked });
        }
        let id = map.server(&self.config.server).map_or(1, |server| server.id);
        let grow = |map: &PartitionMap| {
            (1..=count).map(|n| format!("p{n}")).try_fold(map.clone(), |map, name| {
                match map.info(&name) {
                    Some(_) => Ok(map),
                    None => map.with_partition(PartitionInfo {
                        first: vec![id],
                        ..PartitionInfo::embedded(&name, &[&self.config.server])
                    }),
                }
            })
        };
        let changed = stored_map::change_map(&*meta.store, grow).await;
        changed.map_err(|error| OpenError::Config { what: chain(&error) })
    }

    async fn etcd(
        &self,
        copy: Option<PartitionMap>,
        found: Option<Identity>,
    ) -> Result<Opened, OpenError> {
        let StoreConfig::Etcd { partitions } = &self.config.store else {
            return Err(OpenError::Config { what: "no etcd was given".into() });
        };
        let infos: Vec<_> = partitions
            .iter()
            .map(|partition| PartitionInfo {
                name: partition.name.clone(),
                backend: partition.etcd.place(),
                ..PartitionInfo::default()
            })
            .collect();
        let Some(first) = partitions.first() else {
            return Err(OpenError::Config { what: "no etcd was given".into() });
        };
        let meta_etcd = first.etcd.at_prefix(META_PREFIX);
        let backend = meta_etcd.place();
        let meta_info = PartitionInfo { name: META.into(), backend, ..PartitionInfo::default() };
        let fresh = uuid::Uuid::new_v4().to_string();
        let mut first = self.first_map(&fresh, meta_info, infos.clone())?;
        let store =
            EtcdStore::open(META, &meta_etcd, RingLimits::default(), &self.config.vault).await?;
        let known = copy.as_ref().map(PartitionMap::cluster).filter(|it| !it.is_empty());
        if store.whose(known).await?.is_none() {
            if let Some(cluster) = known {
                return Err(OpenError::EmptyEtcd { cluster: cluster.to_owned() });
            }
            check_etcds(partitions, known).await?;
        }
        let cluster = store.identify(known, &fresh).await?;
        first.set_cluster(&cluster);
        stored_map::load_map(&store, &first).await?;
        // What is new here comes into the map, and what has moved is found at its new address.
        let grow = |map: &PartitionMap| {
            infos.iter().try_fold(map.clone(), |map, info| match map.info(&info.name) {
                None => map.with_partition(info.clone()),
                Some(known) if known.backend != info.backend => {
                    map.with_backend(&info.name, info.backend.clone())
                }
                Some(_) => Ok(map),
            })
        };
        let map = stored_map::change_map(&store, grow).await;
        let map = map.map_err(|error| OpenError::Config { what: chain(&error) })?;
        let meta = Held { name: META.into(), store: Arc::new(store), local: true };
        let embedded = self.directory_if_needed(&map, found).await?;
        Ok(Opened { embedded, meta, meta_servers: None, map })
    }

    /// In a cluster on etcds only, a server needs no directory of its own.
    async fn directory_if_needed(
        &self,
        map: &PartitionMap,
        found: Option<Identity>,
    ) -> Result<Option<Arc<Embedded>>, OpenError> {
        let name = &self.config.server;
        let wanted = map.infos().iter().any(|info| info.servers.contains(name));
        let identity = match (found, map.server(name)) {
            (Some(identity), _) => identity,
            (None, Some(server)) if wanted => {
                Identity { cluster: map.cluster().into(), server: name.clone(), member: server.id }
            }
            _ => return Ok(None),
        };
        self.directory(identity).await.map(Some)
    }

    async fn join(
        &self,
        seeds: &[ServerInfo],
        copy: Option<PartitionMap>,
        found: Option<Identity>,
    ) -> Result<Opened, OpenError> {
        let names: Vec<_> = seeds.iter().map(|server| server.name.clone()).collect();
        let identity = match found {
            Some(identity) => identity,
            None => self.register(&names).await?,
        };
        let embedded = self.directory(identity.clone()).await?;
        let (meta, meta_servers) = self.meta(Some(&embedded), copy.as_ref(), &names).await?;
        let map = match copy {
            Some(map) => map,
            None => ask_map(&*meta.store).await?,
        };
        if !map.cluster().is_empty() && map.cluster() != identity.cluster {
            let what = format!(
                "the servers to join are of cluster {}, this directory is of cluster {}",
                map.cluster(),
                identity.cluster
            );
            return Err(OpenError::Config { what });
        }
        Ok(Opened { embedded: Some(embedded), meta, meta_servers, map })
    }

    /// Has others take this server into the map. One that was there before under this name and
    /// has lost its directory is another member now.
    async fn register(&self, seeds: &[String]) -> Result<Identity, OpenError> {
        let (_known, servers) = watch::channel(seeds.to_vec());
        let peers = self.config.peers.clone();
        let meta =
            RemoteStore::new(META, peers, servers, RingLimits::default(), &self.config.vault);
        let (name, address) = (&self.config.server, &self.config.address);
        ask_map(&meta).await?;
        let changed = stored_map::change_map(&meta, |map| map.with_new_server(name, address)).await;
        let map = changed.map_err(|error| OpenError::Config { what: chain(&error) })?;
        let lost = || OpenError::Config { what: format!("server {name} is not in the map") };
        let server = map.server(name).ok_or_else(lost)?;
        meta.shutdown().await.map_err(failed)?;
        Ok(Identity { cluster: map.cluster().into(), server: name.clone(), member: server.id })
    }

    /// The partition with the map: here, in an etcd, or on other servers.
    async fn meta(
        &self,
        embedded: Option<&Arc<Embedded>>,
        map: Option<&PartitionMap>,
        seeds: &[String],
    ) -> Result<(Held, Option<watch::Sender<Vec<String>>>), OpenError> {
        let held = |store: Arc<dyn Store>, local| Held { name: META.into(), store, local };
        if let Some(store) = embedded.and_then(|embedded| embedded.store(META)) {
            return Ok((held(store, true), None));
        }
        if let Some(map) = map
            && let Backend::Etcd(place) = &map.meta().backend
        {
            let config = EtcdConfig::of(place, access(self.config, META));
            let store =
                EtcdStore::open(META, &config, RingLimits::default(), &self.config.vault).await?;
            store.identify(Some(map.cluster()), map.cluster()).await?;
            return Ok((held(Arc::new(store), true), None));
        }
        let mut names: Vec<String> = map.map(|map| servers_of(map, map.meta())).unwrap_or_default();
        names
            .extend(seeds.iter().filter(|seed| !names.contains(seed)).cloned().collect::<Vec<_>>());
        let (known, servers) = watch::channel(names);
        let peers = self.config.peers.clone();
        let store =
            RemoteStore::new(META, peers, servers, RingLimits::default(), &self.config.vault);
        Ok((held(Arc::new(store), false), Some(known)))
    }
}

/// Refuses etcds that hold something else, before anything is written to any of them.
async fn check_etcds(partitions: &[EtcdPartition], cluster: Option<&str>) -> Result<(), OpenError> {
    for EtcdPartition { name, etcd } in partitions {
        let store = EtcdStore::open(name, etcd, RingLimits::default(), &Arc::default()).await?;
        let found = store.whose(cluster).await;
        store.shutdown().await.map_err(failed)?;
        if let (Some(found), None) = (found?, cluster) {
            let at = etcd.prefix.clone();
            let found = format!("this partition of cluster {found}");
            return Err(OpenError::ForeignEtcd { partition: name.clone(), at, found });
        }
    }
    Ok(())
}

/// How to log in to the etcd of a partition.
pub(super) fn access<'a>(config: &'a PartitionsConfig, name: &str) -> Option<&'a EtcdConfig> {
    if let StoreConfig::Etcd { partitions } = &config.store {
        let named = partitions.iter().find(|partition| partition.name == name);
        let named = named.or_else(|| partitions.first().filter(|_| name == META));
        if let Some(partition) = named {
            return Some(&partition.etcd);
        }
    }
    config.etcd.get(name).or_else(|| config.etcd.get("*"))
}

/// Names of the servers that have a partition, those that are ready first.
pub(super) fn servers_of(map: &PartitionMap, info: &PartitionInfo) -> Vec<String> {
    super::view::servers(map, info).iter().map(|server| server.name.clone()).collect()
}

/// The map, as soon as anybody says what it is.
async fn ask_map(meta: &dyn Store) -> Result<PartitionMap, OpenError> {
    let begun = Instant::now();
    loop {
        let reason = match read_map(meta).await {
            Ok(Some((map, _))) => return Ok(map),
            Ok(None) => StoreError::Unavailable {
                reason: "the cluster has no partition map yet".into(),
                source: None,
            },
            Err(error @ StoreError::Unavailable { .. }) => error,
            Err(error) => return Err(failed(error)),
        };
        if PATIENCE < begun.elapsed() {
            return Err(failed(reason));
        }
        tracing::debug!(error = chain(&reason), "waiting for others to say what the map is");
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is open at the beginning.
pub(super) fn held(opened: &Opened) -> HashMap<String, Held> {
    HashMap::from([(META.to_owned(), opened.meta.clone())])
}
