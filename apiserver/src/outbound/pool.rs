//! Connections that are kept for the next request, and how many there may be.
//!
//! HTTP/1.1, one request at a time each: whoever is behind a service then gets its share of them.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, header};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use insula_api::names::TenantName;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Bounds, CONNECT, OutboundError, Place, Trust, tls::told};
use crate::body::Body;

/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(30);
/// Most idle connections to one place, and of all tenants together.
const IDLE_TO_ONE: usize = 8;
const IDLE_OF_ALL: usize = 1024;

/// What a connection is good for: whose it is, whom it reaches, what was proven.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    tenant: TenantName,
    host: String,
    address: String,
    trust: u128,
}

type Sender = SendRequest<Body>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    by_key: HashMap<Key, Vec<(Instant, Sender)>>,
    total: usize,
}

impl Idle {
    fn take(&mut self, key: &Key) -> Option<Sender> {
        let list = self.by_key.get_mut(key)?;
        let mut found = None;
        while let Some((since, sender)) = list.pop() {
            self.total = self.total.saturating_sub(1);
            if since.elapsed() < IDLE && sender.is_ready() {
                found = Some(sender);
                break;
            }
        }
        if list.is_empty() {
            self.by_key.remove(key);
        }
        found
    }

    fn put(&mut self, key: Key, sender: Sender) {
        if IDLE_OF_ALL <= self.total {
            self.sweep();
        }
        let list = self.by_key.entry(key).or_default();
        if list.len() < IDLE_TO_ONE && self.total < IDLE_OF_ALL {
            list.push((Instant::now(), sender));
            self.total += 1;
        }
    }

    /// Lets go of what is closed or has been idle for long.
    fn sweep(&mut self) {
        self.by_key.retain(|_, list| {
            list.retain(|(since, sender)| since.elapsed() < IDLE && !sender.is_closed());
            !list.is_empty()
        });
        self.total = self.by_key.values().map(Vec::len).sum();
    }
}

impl Pool {
    /// Sends over a kept connection, or a new one.
    pub(super) async fn send(
        self: &Arc<Self>,
        (tenant, bounds): (&TenantName, &Bounds<'_>),
        place: &Place,
        trust: &Trust,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, OutboundError> {
        let authority = match place.host.contains(':') {
            true => format!("[{}]:{}", place.host, place.port),
            false => format!("{}:{}", place.host, place.port),
        };
        let authority = HeaderValue::from_str(&authority).map_err(|_| OutboundError::Url)?;
        request.headers_mut().insert(header::HOST, authority);
        let key = |address: &str| Key {
            tenant: tenant.clone(),
            host: place.host.clone(),
            address: address.to_owned(),
            trust: trust.id(),
        };
        for address in &place.addresses {
            let key = key(address);
            let Some(mut sender) = self.idle.lock().take(&key) else { continue };
            // The other end may have closed it a moment ago: then nothing was sent, and the
            // request comes back.
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    self.keep(key, sender);
                    return Ok(answer);
                }
                Err(mut error) => match error.take_message() {
                    Some(back) => request = back,
                    None => return Err(OutboundError::Broken),
                },
            }
        }
        let (address, stream) = connect(bounds, place, trust).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|_| OutboundError::Broken)?;
        // It ends with its sender, or when the other end closes it.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a tenant's server ended");
            }
        });
        let answer = sender.send_request(request).await.map_err(|_| OutboundError::Broken)?;
        self.keep(key(&address), sender);
        Ok(answer)
    }

    /// Keeps a connection for others as soon as its answer was read.
    fn keep(self: &Arc<Self>, key: Key, mut sender: Sender) {
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            let ready = tokio::time::timeout(IDLE, sender.ready()).await;
            let (Ok(Ok(())), Some(kept)) = (ready, pool.upgrade()) else { return };
            kept.idle.lock().put(key, sender);
            drop(kept);
            // Nobody may come for it.
            tokio::time::sleep(IDLE + Duration::from_millis(1)).await;
            if let Some(pool) = pool.upgrade() {
                pool.idle.lock().sweep();
            }
        });
    }
}

/// Connects to the first address that takes it, and proves who it is.
async fn connect(
    bounds: &Bounds<'_>,
    place: &Place,
    trust: &Trust,
) -> Result<(String, TlsStream<TcpStream>), OutboundError> {
    let name = ServerName::try_from(place.host.clone()).map_err(|_| OutboundError::Url)?;
    let mut failed = None;
    for address in &place.addresses {
        match dial(bounds, address).await {
            Ok((_, stream)) => {
                let connector = TlsConnector::from(trust.config());
                let stream = connector.connect(name, stream).await;
                let stream = stream.map_err(|error| told(&error, &place.host))?;
                return Ok((address.clone(), stream));
            }
            Err(OutboundError::NoHost(_)) => {
                failed = Some(OutboundError::NoHost(place.host.clone()));
            }
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| OutboundError::NoHost(place.host.clone())))
}

/// Connects to `address`, a host and a port, if it is within `bounds`.
pub(crate) async fn dial(
    bounds: &Bounds<'_>,
    address: &str,
) -> Result<(SocketAddr, TcpStream), OutboundError> {
    let mut failed = OutboundError::NoHost(address.to_owned());
    let found = tokio::net::lookup_host(address).await;
    for at in found.map_err(|_| OutboundError::NoHost(address.to_owned()))? {
        // What was looked up is what is connected to: no second look at the name.
        if !bounds.is_open(at.ip()) {
            failed = OutboundError::Forbidden { at: at.to_string() };
            continue;
        }
        let why = match tokio::time::timeout(CONNECT, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok((at, stream));
            }
            Ok(Err(error)) => why(&error),
            Err(_) => "i/o timeout".to_owned(),
        };
        failed = OutboundError::Dial { at: at.to_string(), why };
    }
    Err(failed)
}

/// Why a connection was not made, as clients know it from upstream.
fn why(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        _ => error.to_string(),
    }
}
