//! One HTTP/2 connection to another server, opened when it is needed and again when it is lost.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::{Mutex, RwLock};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{PeerTls, dns_name};
use crate::{body::Body, error::chain};

/// How long a server has to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);

/// How long to leave a server alone that could not be reached, at first and at most.
const BACKOFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// A connection on which nothing comes back for so long is dead.
const SILENCE: Duration = Duration::from_secs(5);

/// Bytes that may be on their way, per stream and per connection.
const WINDOW: [u32; 2] = [4 << 20, 32 << 20];

/// Why a request got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SendError {
    /// The server was not reached: nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// It may have been done.
    #[error("{0}")]
    Broken(String),
}

/// How to reach one server. Its address may change.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) name: String,
    pub(super) address: RwLock<Option<String>>,
}

/// TLS for one kind of connection.
pub(super) type Config = Arc<rustls::ClientConfig>;

impl Way {
    /// Opens a connection on which the other end has proven its name.
    pub(super) async fn dial(&self, tls: &Config) -> Result<TlsStream<TcpStream>, String> {
        let address = self.address.read().clone().ok_or("its address is not known")?;
        let dial = async {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(dns_name(&self.name)).map_err(std::io::Error::other)?;
            TlsConnector::from(tls.clone()).connect(name, stream).await
        };
        match tokio::time::timeout(CONNECT, dial).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("{address}: {}", chain(&error))),
            Err(_) => Err(format!("{address} does not answer")),
        }
    }
}

/// See the module.
pub(super) struct Connection {
    way: Arc<Way>,
    tls: Arc<ArcSwap<PeerTls>>,
    sender: RwLock<Option<http2::SendRequest<Body>>>,
    /// Held while connecting.
    connecting: tokio::sync::Mutex<()>,
    failed: Mutex<Option<Failed>>,
}

struct Failed {
    reason: String,
    until: Instant,
    pause: Duration,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("to", &self.way.name).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(way: Arc<Way>, tls: Arc<ArcSwap<PeerTls>>) -> Self {
        Self {
            way,
            tls,
            sender: RwLock::new(None),
            connecting: tokio::sync::Mutex::new(()),
            failed: Mutex::new(None),
        }
    }

    fn open(&self) -> Option<http2::SendRequest<Body>> {
        self.sender.read().as_ref().filter(|sender| !sender.is_closed()).cloned()
    }

    /// Whether it is there now.
    pub(super) fn is_open(&self) -> bool {
        self.open().is_some()
    }

    /// Opens it, if it can be opened now.
    pub(super) async fn try_open(&self) {
        if let Err(error) = self.connect().await {
            tracing::debug!(server = self.way.name, %error, "not reached");
        }
    }

    async fn connect(&self) -> Result<http2::SendRequest<Body>, SendError> {
        let _alone = self.connecting.lock().await;
        if let Some(sender) = self.open() {
            return Ok(sender);
        }
        if let Some(failed) = &*self.failed.lock()
            && Instant::now() < failed.until
        {
            return Err(SendError::Unreachable(failed.reason.clone()));
        }
        match self.handshake().await {
            Ok(sender) => {
                *self.failed.lock() = None;
                *self.sender.write() = Some(sender.clone());
                Ok(sender)
            }
            Err(reason) => {
                let mut failed = self.failed.lock();
                let pause = failed.as_ref().map_or(BACKOFF[0], |it| (it.pause * 2).min(BACKOFF[1]));
                let until = Instant::now() + pause;
                *failed = Some(Failed { reason: reason.clone(), until, pause });
                Err(SendError::Unreachable(reason))
            }
        }
    }

    async fn handshake(&self) -> Result<http2::SendRequest<Body>, String> {
        let tls = self.tls.load().h2.clone();
        let stream = self.way.dial(&tls).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW[0])
            .initial_connection_window_size(WINDOW[1])
            .max_frame_size(256 << 10)
            .keep_alive_interval(SILENCE)
            .keep_alive_timeout(SILENCE)
            .keep_alive_while_idle(true);
        let shaken = builder.handshake::<_, Body>(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| chain(&error))?;
        let name = self.way.name.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(server = name, error = chain(&error), "a connection ended");
            }
        });
        Ok(sender)
    }

    /// Sends a request and waits for the answer's head.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut request = request;
        // The connection may end between the look and the sending; then nothing was sent.
        for _ in 0..2 {
            let mut sender = match self.open() {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(chain(error.error()))),
                },
            }
        }
        Err(SendError::Unreachable("the connection ends as soon as it is made".into()))
    }
}
