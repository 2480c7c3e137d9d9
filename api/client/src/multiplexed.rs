//! One HTTP/2 connection to the API server, made again when it has ended.
//!
//! The client of the libraries below speaks HTTP/1.1: a connection for each request that is under
//! way. Who has thousands of them under way, as load tests have, wants them on few.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::{client::ConfigExt as _, config::Config};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::{BoxError, Service};

use crate::said::Sent;

/// What the server may send unasked, on one stream and on all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How often a silent connection is asked whether it is there, and how long it may think.
const PING: std::time::Duration = std::time::Duration::from_secs(15);
const PONG: std::time::Duration = std::time::Duration::from_secs(15);
const H2: &[u8] = b"h2";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0} names no host")]
    NoHost(Uri),
    #[error("cannot connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no TLS with {address}")]
    Tls {
        address: String,
        #[source]
        source: std::io::Error,
    },
}

/// The connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    address: String,
    /// Whom the certificate has to name, and how; absent without TLS.
    tls: Option<(TlsConnector, ServerName<'static>)>,
    sender: Mutex<Option<SendRequest<Sent>>>,
    /// Held while connecting, so that all who wait get the same connection.
    connecting: tokio::sync::Mutex<()>,
}

impl Link {
    /// Connects with the first request.
    pub(crate) fn new(config: &Config) -> Result<Self, BoxError> {
        let url = &config.cluster_url;
        let host = url.host().ok_or_else(|| LinkError::NoHost(url.clone()))?;
        let is_tls = url.scheme_str() != Some("http");
        let address = format!("{host}:{}", url.port_u16().unwrap_or(if is_tls { 443 } else { 80 }));
        let tls = if is_tls {
            let mut rules = config.rustls_client_config()?;
            rules.alpn_protocols = vec![H2.to_vec()];
            let bare = host.trim_matches(['[', ']']);
            let name = config.tls_server_name.as_deref().unwrap_or(bare).to_owned();
            Some((TlsConnector::from(Arc::new(rules)), ServerName::try_from(name)?))
        } else {
            None
        };
        let (sender, connecting) = (Mutex::new(None), tokio::sync::Mutex::new(()));
        Ok(Self(Arc::new(Inner { address, tls, sender, connecting })))
    }
}

impl Inner {
    fn current(&self) -> Option<SendRequest<Sent>> {
        self.sender.lock().clone().filter(|it| !it.is_closed())
    }

    async fn sender(&self) -> Result<SendRequest<Sent>, BoxError> {
        if let Some(sender) = self.current() {
            return Ok(sender);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(sender) = self.current() {
            return Ok(sender);
        }
        let sender = self.connect().await?;
        *self.sender.lock() = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<SendRequest<Sent>, BoxError> {
        let address = || self.address.clone();
        let stream = TcpStream::connect(&self.address).await;
        let stream = stream.map_err(|source| LinkError::Connect { address: address(), source })?;
        stream.set_nodelay(true)?;
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        let Some((connector, name)) = &self.tls else {
            let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Ok(sender);
        };
        let stream = connector.connect(name.clone(), stream).await;
        let stream = stream.map_err(|source| LinkError::Tls { address: address(), source })?;
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        // Its end is seen by who sends next.
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Service<Request<Sent>> for Link {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Sent>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let mut sender = inner.sender().await?;
            sender.ready().await?;
            Ok(sender.send_request(request).await?)
        })
    }
}
