//! All partitions that this process serves, and who lives where.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{
    embedded::{Embedded, EmbeddedOptions},
    error::OpenError,
    etcd::{EtcdConfig, EtcdStore},
    map::{PartitionMap, ShardKey},
    ring::RingLimits,
    store::{Change, Collection, Durability, Expect, ReadAt, Store, StoreError, Write},
};

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

fn map_collection() -> Collection {
    Collection::new("insula", "partitionmaps")
}

const MAP_KEY: &str = "current";

/// The stored map; the first start makes it.
async fn load_map(meta: &dyn Store, names: &[String]) -> Result<PartitionMap, OpenError> {
    let failed = |source| OpenError::Partition { partition: META.into(), source };
    let first = PartitionMap::even(names.to_vec())
        .map_err(|error| OpenError::Config { what: error.to_string() })?;
    loop {
        if let Some((map, _)) = read_map(meta).await.map_err(failed)? {
            let mut found = map.partitions().to_vec();
            let mut asked = names.to_vec();
            found.sort();
            asked.sort();
            return if found == asked {
                Ok(map)
            } else {
                Err(OpenError::Partitions { found, asked })
            };
        }
        match write_map(meta, &first, Expect::Absent).await {
            // Conflict: another server starts for the first time too, and was first.
            Ok(()) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

async fn read_map(
    meta: &dyn Store,
) -> Result<Option<(PartitionMap, crate::store::Revision)>, StoreError> {
    let snapshot = meta.read(&map_collection(), ReadAt::Latest).await?;
    let Some(entry) = snapshot.get(MAP_KEY) else { return Ok(None) };
    let map = serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Damaged { what: format!("partition map: {error}") })?;
    Ok(Some((map, entry.modified)))
}

async fn write_map(meta: &dyn Store, map: &PartitionMap, expect: Expect) -> Result<(), StoreError> {
    let value = serde_json::to_vec(map).map_err(|error| StoreError::Unavailable {
        reason: "the partition map cannot be written down".into(),
        source: Some(error.into()),
    })?;
    let write = Write {
        collection: map_collection(),
        key: MAP_KEY.into(),
        expect,
        change: Change::Put(Bytes::from(value)),
        durability: Durability::Durable,
    };
    meta.write(write).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::{pods, put},
        embedded::tests::options,
        etcd::tests::Server,
        store::Revision,
    };

    async fn open(dir: &std::path::Path, count: usize) -> Result<Partitions, OpenError> {
        let names = (1..=count).map(|n| format!("p{n}")).collect();
        Partitions::open_embedded(dir.into(), names, options()).await
    }

    fn tenant(name: &str) -> ShardKey {
        ShardKey::Tenant(name.into())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn partitions_have_revisions_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let partitions = open(dir.path(), 2).await.unwrap();
        assert_eq!(partitions.names(), ["p1", "p2"]);
        let [one, two] = ["p1", "p2"].map(|name| partitions.store(name).unwrap());
        put(&*one, "a", "1").await;
        put(&*one, "a", "2").await;
        assert_eq!(put(&*two, "a", "1").await.revision, Revision(1));
        assert!(partitions.store("p3").is_none());
        partitions.shutdown().await.unwrap();

        let partitions = open(dir.path(), 2).await.unwrap();
        let read = partitions.store("p1").unwrap().read(&pods(), ReadAt::Latest).await;
        assert_eq!(read.unwrap().revision(), Revision(2));
        partitions.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn keys_find_their_partition_and_pins_survive() {
        let dir = tempfile::tempdir().unwrap();
        let partitions = open(dir.path(), 3).await.unwrap();
        let (home, _) = partitions.store_for(&tenant("acme"));
        assert_eq!(home, partitions.map().owner(&tenant("acme")));
        let other = partitions.names().iter().find(|name| *name != home).unwrap().clone();
        partitions.pin("acme", Some(&other)).await.unwrap();
        assert_eq!(partitions.store_for(&tenant("acme")).0, other);
        assert!(matches!(partitions.pin("acme", Some("p9")).await, Err(PinError::Map(_))));
        partitions.shutdown().await.unwrap();

        let partitions = open(dir.path(), 3).await.unwrap();
        assert_eq!(partitions.store_for(&tenant("acme")).0, other);
        assert_eq!(partitions.map().epoch(), 2);
        partitions.pin("acme", None).await.unwrap();
        assert_ne!(partitions.store_for(&tenant("acme")).0, other);
        partitions.shutdown().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn partitions_in_etcd() {
        let servers = [Server::start(), Server::start()];
        let config = |names: &[&str]| {
            let partitions = names.iter().zip(&servers).map(|(name, server)| EtcdPartition {
                name: (*name).into(),
                etcd: server.config(),
            });
            let store = StoreConfig::Etcd { partitions: partitions.collect() };
            PartitionsConfig { data_dir: PathBuf::new(), store }
        };
        let partitions = Partitions::open(config(&["east", "west"])).await.unwrap();
        let home = partitions.store_for(&tenant("acme")).0.to_owned();
        let other = partitions.names().iter().find(|name| **name != home).unwrap().clone();
        partitions.pin("acme", Some(&other)).await.unwrap();
        let (_, store) = partitions.store_for(&tenant("acme"));
        put(&*store, "a", "1").await;
        partitions.shutdown().await.unwrap();

        let partitions = Partitions::open(config(&["east", "west"])).await.unwrap();
        let (name, store) = partitions.store_for(&tenant("acme"));
        assert_eq!(name, other);
        assert_eq!(store.read(&pods(), ReadAt::Latest).await.unwrap().len(), 1);
        partitions.shutdown().await.unwrap();

        let error = Partitions::open(config(&["east"])).await.unwrap_err();
        assert!(matches!(error, OpenError::Partitions { .. }), "{error}");
    }

    #[test]
    fn etcds_on_the_command_line() {
        let text = "east=http://a:2379,http://b:2379;west=https://c:2379";
        let StoreConfig::Etcd { partitions } = StoreConfig::parse_etcd(text).unwrap() else {
            panic!("not etcd");
        };
        let found: Vec<_> =
            partitions.iter().map(|p| (p.name.as_str(), p.etcd.endpoints.len())).collect();
        assert_eq!(found, [("east", 2), ("west", 1)]);
        for wrong in ["", "east", "east=", "=http://a", "east=a:2379", "east=http://a;"] {
            assert!(StoreConfig::parse_etcd(wrong).is_err(), "{wrong}");
        }
        let twice = StoreConfig::parse_etcd("a=http://x:1;b=http://x:1/").unwrap();
        let StoreConfig::Etcd { partitions } = twice else { panic!("not etcd") };
        assert!(check_apart(&partitions).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_number_of_partitions_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), 2).await.unwrap().shutdown().await.unwrap();
        let error = open(dir.path(), 3).await.unwrap_err();
        assert!(matches!(error, OpenError::Partitions { .. }), "{error}");
        open(dir.path(), 2).await.unwrap().shutdown().await.unwrap();
        let none = open(tempfile::tempdir().unwrap().path(), 0).await.unwrap_err();
        assert!(matches!(none, OpenError::Config { .. }), "{none}");
    }
}
