//! One server with a store of its own in a directory, and requests without connections: for
//! benches, fuzzing and tests.

use std::{path::Path, sync::Arc};

use http::{Request, Response};
use insula_api::names::TenantName;
use insula_partition::partitions::{Partitions, PartitionsConfig, StoreConfig};
use tokio_util::sync::CancellationToken;

use crate::{
    OutboundNetworks, Server, ServerConfig, Tls,
    body::{Body, BodyError},
    gate::Peer,
    identity::{Identity, MASTERS},
    payload::Payload,
    pki::Authority,
    services::ServiceRanges,
    tokens::Keys,
};

/// Why it did not start: whoever starts one only says so.
pub type AloneError = Box<dyn std::error::Error + Send + Sync>;

impl Server {
    /// Starts a server with one partition that lies in `dir`, as do its keys. It listens nowhere:
    /// requests come through [`Server::handle_trusted`].
    pub async fn alone(dir: &Path) -> Result<Arc<Self>, AloneError> {
        let config =
            PartitionsConfig::alone(dir.join("data"), StoreConfig::Embedded { partitions: 1 });
        Self::alone_on(dir, Arc::new(Partitions::open(config).await?)).await
    }

    /// As [`Server::alone`], on partitions that its starter has opened.
    pub async fn alone_on(
        dir: &Path,
        partitions: Arc<Partitions>,
    ) -> Result<Arc<Self>, AloneError> {
        let ca = Authority::open_or_create(dir)?;
        let to_nodes = ca.client(&TenantName::system(), "system:apiserver", &[MASTERS])?;
        let config = ServerConfig {
            partitions,
            keys: Keys::open_or_create(&dir.join("sa.key"))?.into(),
            static_tokens: None,
            node_tls: Tls::client(ca.certificate(), &to_nodes)?,
            advertise: "127.0.0.1:6443".into(),
            services: ServiceRanges::default(),
            outbound: OutboundNetworks::default(),
            peers: None,
            audit: None,
            shutdown: CancellationToken::new(),
        };
        Ok(Self::start(config).await?)
    }

    /// Answers a request as one that came over a connection on which the client has shown this
    /// certificate (DER), which TLS has verified, or none.
    pub async fn handle_from<B>(
        self: &Arc<Self>,
        request: Request<B>,
        certificate: Option<&[u8]>,
    ) -> Response<Body>
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let peer =
            Peer { certificate: certificate.map(Identity::from_certificate), ..Peer::default() };
        self.handle(request.map(Payload::of), &peer).await
    }
}
