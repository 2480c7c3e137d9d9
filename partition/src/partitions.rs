//! All partitions that this process serves, and who lives where.

mod stored_map;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;

use crate::{
    embedded::{Embedded, EmbeddedOptions},
    error::OpenError,
    etcd::{EtcdConfig, EtcdStore},
    map::{PartitionMap, ShardKey},
    ring::RingLimits,
    store::{Expect, Store, StoreError},
};

use self::stored_map::{load_map, read_map, write_map};
pub use crate::wal::LogCounts;

/// The partition that holds the partition map. Holds no tenant's objects.
pub const META: &str = "meta";

/// Where partitions live.
#[derive(Debug, Clone)]
pub struct PartitionsConfig {
    /// This process's own directory. Made if it is not there.
    pub data_dir: PathBuf,
    pub store: StoreConfig,
}

/// The backend of all partitions.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// In this process, named `p1` to `pn`.
    Embedded { partitions: u16 },
    /// One etcd cluster each. The first one also holds the partition map.
    Etcd { partitions: Vec<EtcdPartition> },
}

/// A partition in an etcd cluster.
#[derive(Debug, Clone)]
pub struct EtcdPartition {
    pub name: String,
    pub etcd: EtcdConfig,
}

impl StoreConfig {
    /// Reads `NAME=URL[,URL..][;NAME=URL..]`, for clusters without TLS files and users.
    pub fn parse_etcd(text: &str) -> Result<Self, OpenError> {
        let partition = |part: &str| {
            let (name, urls) = part.split_once('=')?;
            let endpoints: Vec<_> = urls.split(',').map(|url| url.trim().to_owned()).collect();
            let known = |url: &String| url.starts_with("http://") || url.starts_with("https://");
            let valid = !name.trim().is_empty() && endpoints.iter().all(known);
            let etcd = EtcdConfig::plain(endpoints);
            valid.then(|| EtcdPartition { name: name.trim().into(), etcd })
        };
        let partitions = text.split(';').map(partition).collect::<Option<_>>();
        let partitions = partitions.ok_or_else(|| OpenError::Config {
            what: format!("{text:?} is not of the form NAME=URL[,URL..][;NAME=URL..]"),
        })?;
        Ok(Self::Etcd { partitions })
    }
}

/// See the module.
pub struct Partitions {
    backend: Backend,
    meta: Arc<dyn Store>,
    names: Vec<String>,
    /// In the order of `names`.
    stores: Vec<Arc<dyn Store>>,
    map: ArcSwap<PartitionMap>,
}

impl std::fmt::Debug for Partitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let backend = &self.backend;
        f.debug_struct("Partitions").field("backend", backend).field("names", &self.names).finish()
    }
}

#[derive(Debug)]
enum Backend {
    Embedded(Arc<Embedded>),
    Etcd,
}

/// Where the partition map lies, beside the objects of the first partition.
const META_PREFIX: &str = "/insula-meta";

impl Partitions {
    /// Opens every partition, reads what they hold, and finds out who lives where.
    pub async fn open(config: PartitionsConfig) -> Result<Self, OpenError> {
        match config.store {
            StoreConfig::Embedded { partitions } => {
                let names: Vec<_> = (1..=partitions).map(|n| format!("p{n}")).collect();
                Self::open_embedded(config.data_dir, names, EmbeddedOptions::default()).await
            }
            StoreConfig::Etcd { partitions } => Self::open_etcd(partitions).await,
        }
    }

    pub(crate) async fn open_embedded(
        data_dir: PathBuf,
        names: Vec<String>,
        options: EmbeddedOptions,
    ) -> Result<Self, OpenError> {
        check_names(&names)?;
        let all: Vec<_> = std::iter::once(META.to_owned()).chain(names.iter().cloned()).collect();
        let open = move || Embedded::open(&data_dir, &all, &options);
        let embedded = tokio::task::spawn_blocking(open).await.map_err(|error| {
            OpenError::Config { what: format!("opening was cut short: {error}") }
        })??;
        let embedded = Arc::new(embedded);
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        stores.extend(embedded.stores().iter().map(|store| store.clone() as Arc<dyn Store>));
        let meta = stores.remove(0);
        Self::assemble(Backend::Embedded(embedded), meta, names, stores).await
    }

    async fn open_etcd(partitions: Vec<EtcdPartition>) -> Result<Self, OpenError> {
        let names: Vec<_> = partitions.iter().map(|partition| partition.name.clone()).collect();
        check_names(&names)?;
        check_apart(&partitions)?;
        let Some(first) = partitions.first() else {
            return Err(OpenError::Config { what: "no etcd was given".into() });
        };
        let meta = EtcdConfig { prefix: META_PREFIX.into(), ..first.etcd.clone() };
        let meta = EtcdStore::open(META, &meta, RingLimits::default()).await?;
        let open = partitions.iter().map(|partition| {
            EtcdStore::open(&partition.name, &partition.etcd, RingLimits::default())
        });
        let stores = futures::future::try_join_all(open).await?;
        let stores = stores.into_iter().map(|store| Arc::new(store) as Arc<dyn Store>).collect();
        Self::assemble(Backend::Etcd, Arc::new(meta), names, stores).await
    }

    async fn assemble(
        backend: Backend,
        meta: Arc<dyn Store>,
        names: Vec<String>,
        stores: Vec<Arc<dyn Store>>,
    ) -> Result<Self, OpenError> {
        let map = load_map(&*meta, &names).await?;
        tracing::info!(partitions = names.len(), epoch = map.epoch(), "partitions are open");
        Ok(Self { backend, meta, names, stores, map: ArcSwap::from_pointee(map) })
    }

    /// The partition that `key` lives on, with its name.
    pub fn store_for(&self, key: &ShardKey) -> (&str, Arc<dyn Store>) {
        let map = self.map.load();
        let owner = map.owner(key);
        // `load_map` made sure that the map's partitions are these.
        let at = self.names.iter().position(|name| name == owner).unwrap_or_default();
        (&self.names[at], self.stores[at].clone())
    }

    /// Names of all partitions that hold objects. [`META`] is not among them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The partition of that name; [`META`] too.
    pub fn store(&self, name: &str) -> Option<Arc<dyn Store>> {
        if name == META {
            return Some(self.meta.clone());
        }
        self.names.iter().position(|known| known == name).map(|at| self.stores[at].clone())
    }

    /// The map in force.
    pub fn map(&self) -> Arc<PartitionMap> {
        self.map.load_full()
    }

    /// Sets where a tenant lives, before it has anything: data is not moved. `None` leaves it to
    /// the tenant's slot.
    pub async fn pin(&self, tenant: &str, partition: Option<&str>) -> Result<(), PinError> {
        loop {
            let found = read_map(&*self.meta).await?;
            let (current, expect) = match found {
                Some((map, revision)) => (map, Expect::At(revision)),
                None => ((*self.map()).clone(), Expect::Absent),
            };
            if current.pins().get(tenant).map(String::as_str) == partition {
                return Ok(());
            }
            let next = current.with_pin(tenant, partition)?;
            match write_map(&*self.meta, &next, expect).await {
                Ok(()) => {
                    self.map.store(Arc::new(next));
                    return Ok(());
                }
                // Another server changed the map: decide again from its version.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes down the state of every embedded partition, so that the next start has less to
    /// replay. An etcd takes care of this itself.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        if let Backend::Embedded(embedded) = &self.backend {
            for store in embedded.stores() {
                store.checkpoint().await?;
            }
        }
        Ok(())
    }

    /// What the embedded partitions' log did since it was opened; `None` with etcd.
    pub fn log_counts(&self) -> Option<LogCounts> {
        match &self.backend {
            Backend::Embedded(embedded) => Some(embedded.log_counts()),
            Backend::Etcd => None,
        }
    }

    /// Flushes and ends all partitions. Later calls on them fail `Unavailable`.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        if let Backend::Embedded(embedded) = &self.backend {
            return embedded.clone().shutdown().await;
        }
        for store in self.stores.iter().chain([&self.meta]) {
            store.shutdown().await?;
        }
        Ok(())
    }
}

/// Why a tenant was not pinned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    #[error(transparent)]
    Map(#[from] crate::map::MapError),
    #[error("the partition map could not be changed")]
    Store(#[from] StoreError),
}

fn check_names(names: &[String]) -> Result<(), OpenError> {
    let valid = |name: &String| {
        !name.is_empty()
            && name.len() <= 63
            && name != META
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    match names.iter().find(|name| !valid(name)) {
        Some(name) => {
            Err(OpenError::Config { what: format!("a partition cannot be named {name:?}") })
        }
        None => Ok(()),
    }
}

/// Two partitions must not share their keys.
fn check_apart(partitions: &[EtcdPartition]) -> Result<(), OpenError> {
    let mut places = BTreeSet::new();
    for EtcdPartition { name, etcd } in partitions {
        let prefix = etcd.prefix.trim_matches('/');
        if prefix.is_empty() || prefix == META_PREFIX.trim_matches('/') {
            let what = format!("partition {name} cannot have prefix {:?}", etcd.prefix);
            return Err(OpenError::Config { what });
        }
        for endpoint in &etcd.endpoints {
            if !places.insert((endpoint.trim_end_matches('/'), prefix)) {
                let what = format!("partition {name} shares {endpoint} {prefix} with another");
                return Err(OpenError::Config { what });
            }
        }
    }
    Ok(())
}
