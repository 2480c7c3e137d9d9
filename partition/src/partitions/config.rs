//! What a process is told about its partitions when it starts.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::{
    error::OpenError,
    etcd::EtcdConfig,
    map::ServerInfo,
    peers::{Nobody, Peers},
    seal::Vault,
};

/// Where partitions live, and who this server is among those that serve them.
#[derive(Clone)]
pub struct PartitionsConfig {
    /// This process's own directory. Made if it is not there.
    pub data_dir: PathBuf,
    pub store: StoreConfig,
    /// This server's name, a DNS label that no other server of the cluster has.
    pub server: String,
    /// `HOST:PORT` at which other servers reach this one. Empty if there are none.
    pub address: String,
    /// The way to the others.
    pub peers: Arc<dyn Peers>,
    /// How to log in to the etcd of a partition that was added to the map later, by the
    /// partition's name; `*` for all others. Endpoints and prefix come from the map.
    pub etcd: BTreeMap<String, EtcdConfig>,
    /// What seals and opens values. By default nothing is sealed.
    pub vault: Arc<Vault>,
}

impl PartitionsConfig {
    /// A server that has no others.
    pub fn alone(data_dir: PathBuf, store: StoreConfig) -> Self {
        Self {
            data_dir,
            store,
            server: "s1".into(),
            address: String::new(),
            peers: Arc::new(Nobody),
            etcd: BTreeMap::new(),
            vault: Arc::default(),
        }
    }
}

impl std::fmt::Debug for PartitionsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionsConfig")
            .field("data_dir", &self.data_dir)
            .field("store", &self.store)
            .field("server", &self.server)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What there is at the first start. Later starts go by the map, and add to it what is new here.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// In this process, named `p1` to `pn`.
    Embedded { partitions: u16 },
    /// One etcd cluster each. The first one also holds the partition map.
    Etcd { partitions: Vec<EtcdPartition> },
    /// A cluster that other servers began. At least one of `servers` must be reached; only their
    /// names matter here, their addresses to whoever made the way to them.
    Join { servers: Vec<ServerInfo> },
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
