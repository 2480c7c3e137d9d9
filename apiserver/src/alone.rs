//! One server with a store of its own in a directory: for benches, fuzzing and tests.

use std::{path::Path, sync::Arc};

use insula_api::names::TenantName;
use insula_partition::partitions::{Partitions, PartitionsConfig, StoreConfig};
use tokio_util::sync::CancellationToken;

use crate::{
    Server, ServerConfig, Tls, identity::MASTERS, pki::Authority, services::ServiceRanges,
    tokens::Keys,
};

/// Why it did not start: whoever starts one only says so.
pub type AloneError = Box<dyn std::error::Error + Send + Sync>;

impl Server {
    /// Starts a server with one partition that lies in `dir`, as do its keys. It listens nowhere:
    /// requests come through [`Server::handle_trusted`].
    pub async fn alone(dir: &Path) -> Result<Arc<Self>, AloneError> {
        let ca = Authority::open_or_create(dir)?;
        let config =
            PartitionsConfig::alone(dir.join("data"), StoreConfig::Embedded { partitions: 1 });
        let to_nodes = ca.client(&TenantName::system(), "system:apiserver", &[MASTERS])?;
        let config = ServerConfig {
            partitions: Arc::new(Partitions::open(config).await?),
            keys: Keys::open_or_create(&dir.join("sa.key"))?,
            node_tls: Tls::client(ca.certificate(), &to_nodes)?,
            advertise: "127.0.0.1:6443".into(),
            services: ServiceRanges::default(),
            peers: None,
            audit: None,
            shutdown: CancellationToken::new(),
        };
        Ok(Self::start(config).await?)
    }
}
