//! HTTPS requests that a tenant has the server make: to its webhooks and its own API servers.
//!
//! A tenant decides where the server connects to, so it is bounded whom it can reach, how much
//! may be answered, how many connections it holds and how many requests it has under way: only
//! TLS with a certificate that the tenant (or the machine) trusts, no address that means this
//! host, its link, a server or what an administrator closes ([`networks`]), no certificate of ours
//! but that of the tenant's own front proxy.
//!
//! A request is a [`Destination`], resolved to a [`Place`] ([`resolve`]) and sent over a
//! connection that trusts what [`Trust`] says ([`pool`]). What a webhook answers is collected, up
//! to a limit; what an extension server answers goes on to the client as it comes.

mod networks;
mod pool;
mod resolve;
mod tls;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use insula_api::names::TenantName;
use insula_custom::definition::ClientConfig;

pub use self::networks::OutboundNetworks;
use self::pool::Pool;
pub(crate) use self::{networks::Bounds, pool::dial, tls::Trust};
use crate::{
    Server,
    body::{Body, full},
    turns::Turns,
};

/// Most requests of one tenant that are under way at the same time.
const AT_ONCE: usize = 64;
/// How long it may take to connect to one address.
const CONNECT: Duration = Duration::from_secs(5);

/// What is wanted: a URL, or a service of the tenant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Destination<'a> {
    Url(&'a str),
    Service { namespace: &'a str, name: &'a str, port: u16, path: &'a str },
}

/// Where it is: what its certificate has to be for, and where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// As the certificate and the `Host` header have it.
    pub host: String,
    pub port: u16,
    /// To connect to; the host and port, if they are not looked up elsewhere.
    pub addresses: Vec<String>,
    /// The path, with its query if it has one.
    pub path: String,
}

/// Why there is no answer. The texts are those that clients know from upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error("the URL cannot be read")]
    Url,
    #[error("unable to load root certificates: unable to parse bytes as PEM block")]
    Bundle,
    #[error("service \"{0}\" not found")]
    NoService(String),
    #[error("unsupported service type {0:?}")]
    ServiceType(String),
    #[error("no service port {port} found for service \"{service}\"")]
    NoPort { port: u16, service: String },
    #[error("no endpoints available for service \"{0}\"")]
    NoEndpoints(String),
    #[error("dial tcp: lookup {0}: no such host")]
    NoHost(String),
    #[error("dial tcp {at}: {why}")]
    Dial { at: String, why: String },
    #[error("{at} is not an address that a tenant's server may have")]
    Forbidden { at: String },
    #[error("{0}")]
    Tls(String),
    #[error("EOF")]
    Broken,
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("{0}")]
    Http(String),
    #[error("context deadline exceeded")]
    Late,
    #[error("net/http: timeout awaiting response headers")]
    NoHead,
    #[error("it changed the protocol without being asked")]
    Unasked,
    #[error("{0}")]
    Lookup(String),
}

impl<'a> Destination<'a> {
    /// Where a client configuration points, as webhooks have it.
    pub(crate) fn of(config: &'a ClientConfig) -> Self {
        match &config.service {
            Some(service) => Self::Service {
                namespace: &service.namespace,
                name: &service.name,
                port: service.port.unwrap_or(443),
                path: service.path.as_deref().unwrap_or("/"),
            },
            None => Self::Url(config.url.as_deref().unwrap_or_default()),
        }
    }
}

impl Place {
    /// What is known of a destination before it is looked for.
    pub(crate) fn unresolved(destination: Destination<'_>) -> Self {
        match destination {
            Destination::Url(url) => resolve::of_url(url).unwrap_or_else(|_| Self {
                host: url.chars().take(256).collect(),
                port: 443,
                addresses: Vec::new(),
                path: "/".into(),
            }),
            Destination::Service { namespace, name, port, path } => Self {
                host: format!("{name}.{namespace}.svc"),
                port,
                addresses: Vec::new(),
                path: resolve::absolute(path),
            },
        }
    }

    /// The URL, as errors show it.
    pub(crate) fn url(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        format!("https://{host}:{}{}", self.port, self.path)
    }
}

/// The connections of all tenants.
#[derive(Debug)]
pub(crate) struct Outbound {
    pool: Arc<Pool>,
    turns: Turns,
    networks: OutboundNetworks,
}

impl Outbound {
    pub(crate) fn new(networks: OutboundNetworks) -> Self {
        Self { pool: Arc::default(), turns: Turns::new(AT_ONCE), networks }
    }
}

impl Server {
    /// Sends `request`, whose URI is only a path, and gives the answer as it comes. The caller
    /// sees to it that a tenant has not too many under way.
    pub(crate) async fn send_outbound(
        &self,
        tenant: &TenantName,
        place: &Place,
        trust: &Trust,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, OutboundError> {
        let bounds = self.outbound_bounds(tenant);
        self.outbound.pool.send((tenant, &bounds), place, trust, request).await
    }

    /// Sends `request`, whose URI is only a path, and waits for the answer, whose body may have
    /// `limit` bytes.
    ///
    /// The connection goes back to where it came from when the body was read to its end.
    pub(crate) async fn exchange_outbound(
        &self,
        tenant: &TenantName,
        place: &Place,
        trust: &Trust,
        request: Request<Bytes>,
        limit: usize,
    ) -> Result<Response<Bytes>, OutboundError> {
        let _permit = self.outbound.turns.wait(tenant).await;
        let answer = self.send_outbound(tenant, place, trust, request.map(full)).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|error| {
            match error.is::<http_body_util::LengthLimitError>() {
                true => OutboundError::TooLong(limit),
                false => OutboundError::Broken,
            }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
