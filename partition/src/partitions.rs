//! All partitions that this process serves, and who lives where.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::{
    embedded::{Embedded, EmbeddedOptions},
    error::OpenError,
    map::{PartitionMap, ShardKey},
    store::{Change, Collection, Durability, Expect, ReadAt, Store, StoreError, Write},
};

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
}

impl Partitions {
    /// Opens every partition, reads what they hold, and finds out who lives where.
    pub async fn open(config: PartitionsConfig) -> Result<Self, OpenError> {
        match config.store {
            StoreConfig::Embedded { partitions } => {
                let names: Vec<_> = (1..=partitions).map(|n| format!("p{n}")).collect();
                Self::open_embedded(config.data_dir, names, EmbeddedOptions::default()).await
            }
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

    /// Flushes and ends all partitions. Later calls on them fail `Unavailable`.
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Embedded(embedded) => embedded.clone().shutdown().await,
        }
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
