//! The listener: TLS 1.3, 1.2 if asked for, HTTP/1.1 and HTTP/2, graceful end.

mod crowd;
mod heads;
mod link;

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::{Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Server, answer,
    body::{self, Body},
    error::ApiError,
    fair,
    gate::Peer,
    gather::gather,
    identity::Identity,
    payload::{self, Payload},
    peers::{self, HttpPeers},
    pki::Pair,
};

use self::{
    crowd::Crowd,
    heads::Heads,
    link::{Known, Link},
};

pub use self::link::Patience;

/// After how long of silence the other host is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How often it is asked before it is taken to be gone.
const KEEP_ALIVE_TRIES: u32 = 4;
/// Concurrent requests of one HTTP/2 connection.
const STREAMS: u32 = 250;
/// As above, for other servers: all of their clients' requests may come over one connection.
const SERVER_STREAMS: u32 = 100_000;
/// How long open requests have when the server ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the server's certificate or the CA cannot be used")]
    Tls(#[from] rustls::Error),
    #[error("the server's certificate or the CA is not PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the CA cannot verify client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// TLS of a server and of its connections to nodes.
#[derive(Debug)]
pub struct Tls {
    acceptor: Arc<ServerConfig>,
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

fn roots(ca: &str) -> Result<RootCertStore, ServeError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

impl Tls {
    /// Presents `pair`; client certificates are optional and must be signed by `ca`. TLS 1.3.
    pub fn new(ca: &str, pair: &Pair) -> Result<Self, ServeError> {
        Self::of_versions(ca, pair, &[&rustls::version::TLS13])
    }

    /// As [`Tls::new`], of these versions.
    pub fn of_versions(
        ca: &str,
        pair: &Pair,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self, ServeError> {
        let verifier =
            WebPkiClientVerifier::builder(Arc::new(roots(ca)?)).allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder_with_protocol_versions(versions)
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                certificates(&pair.certificate)?,
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?,
            )?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: Arc::new(config) })
    }

    /// A client's side: trusts `ca` and presents `pair`.
    pub fn client(ca: &str, pair: &Pair) -> Result<Arc<rustls::ClientConfig>, ServeError> {
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots(ca)?)
            .with_client_auth_cert(
                certificates(&pair.certificate)?,
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?,
            )?;
        Ok(Arc::new(config))
    }
}

/// The listener's side of a server: takes connections before the server can answer, because
/// storage needs other servers to start, and until the last of them has been told goodbye.
pub struct Front {
    acceptor: ArcSwap<ServerConfig>,
    server: OnceLock<Arc<Server>>,
    peers: Option<HttpPeers>,
    /// How likely a request is to be the last of its connection, as the bits of a number.
    goaway: AtomicU64,
    crowd: Arc<Crowd>,
    heads: Heads,
    patience: Patience,
    /// Clients are no longer answered.
    shutdown: CancellationToken,
    /// Nobody is.
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").finish_non_exhaustive()
    }
}

impl Front {
    /// Cancelling `shutdown` ends what clients do; `closed`, after that, everything.
    pub fn new(
        tls: Tls,
        peers: Option<HttpPeers>,
        shutdown: CancellationToken,
        closed: CancellationToken,
    ) -> Arc<Self> {
        Self::with_patience(tls, peers, shutdown, closed, Patience::default())
    }

    /// As [`Front::new`], with more or less of it.
    pub fn with_patience(
        tls: Tls,
        peers: Option<HttpPeers>,
        shutdown: CancellationToken,
        closed: CancellationToken,
        patience: Patience,
    ) -> Arc<Self> {
        Arc::new(Self {
            acceptor: ArcSwap::new(tls.acceptor),
            server: OnceLock::new(),
            peers,
            goaway: AtomicU64::new(0),
            crowd: Arc::default(),
            heads: Heads::default(),
            patience,
            shutdown,
            closed,
            tasks: TaskTracker::new(),
        })
    }

    /// From now on clients are answered.
    pub fn open(&self, server: Arc<Server>) {
        // A second server is ignored: there is one per process.
        let _ = self.server.set(server);
    }

    /// Presents other certificates to those who connect from now on.
    pub fn set_tls(&self, tls: Tls) {
        self.acceptor.store(tls.acceptor);
    }

    /// From now on each request of a client over HTTP/2 is, with this probability, the last new
    /// one of its connection: the next may go to another server behind the same address.
    pub fn set_goaway_chance(&self, chance: f64) {
        self.goaway.store(chance.to_bits(), Ordering::Relaxed);
    }

    /// Takes no more than so many connections of one address at once; 0 for any number.
    pub fn set_connections_per_address(&self, most: usize) {
        self.crowd.set_most(most);
    }

    fn is_last(&self) -> bool {
        let chance = f64::from_bits(self.goaway.load(Ordering::Relaxed));
        0.0 < chance && rand::random::<f64>() < chance
    }

    /// Takes connections until it is closed, and waits for them to end.
    pub fn serve(self: Arc<Self>, listener: TcpListener) -> BoxFuture<'static, ()> {
        // Boxed so that it is compiled here, and not with every program around it.
        Box::pin(self.take_connections(listener))
    }

    async fn take_connections(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closed.cancelled() => break,
            };
            match accepted {
                Ok((stream, from)) => {
                    let from = from.ip().to_canonical();
                    // One too many is closed: there is nothing that it could be told before TLS.
                    let Some(present) = self.crowd.enter(from) else {
                        tracing::debug!(%from, "too many connections of one address");
                        continue;
                    };
                    let connection = self.clone().connection(stream, from);
                    self.tasks.spawn(async move {
                        connection.await;
                        drop(present);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, for one: others may free some.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Waits until no client is connected. Call after cancelling `shutdown`.
    pub async fn drain(&self) {
        if let Some(server) = self.server.get() {
            server.drain().await;
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, from: IpAddr) {
        if let Err(error) = self.run_connection(stream, from).await {
            tracing::debug!(%error, "a connection ended");
        }
    }

    async fn run_connection(self: Arc<Self>, stream: TcpStream, from: IpAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let keep_alive = TcpKeepalive::new()
            .with_time(KEEP_ALIVE)
            .with_interval(KEEP_ALIVE / KEEP_ALIVE_TRIES)
            .with_retries(KEEP_ALIVE_TRIES);
        SockRef::from(&stream).set_tcp_keepalive(&keep_alive)?;
        let acceptor = TlsAcceptor::from(self.acceptor.load_full());
        let stream =
            tokio::time::timeout(self.patience.handshake, acceptor.accept(stream)).await??;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|it| it.first());
        let mut peer = Peer {
            certificate: certificate.map(|it| Identity::from_certificate(it)),
            address: Some(from),
            ..Peer::default()
        };
        if let (Some(_), Some(Ok(identity))) = (&self.peers, &peer.certificate) {
            peer.server = identity.server().map(str::to_owned);
        }
        let is_server = peer.server.is_some();
        let payer = peer.pays.clone();
        let (front, peer) = (self.clone(), Arc::new(peer));
        let renew = CancellationToken::new();
        let renewed = renew.clone();
        let known = Arc::new(Known::default());
        let link = Link::new(stream, known.clone(), self.patience);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (front, peer, known) = (front.clone(), peer.clone(), known.clone());
            known.asked();
            if request.version() == http::Version::HTTP_2 && !is_server && front.is_last() {
                renew.cancel();
            }
            async move {
                let response = front.answer(request, &peer).await;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    known.is_pipe();
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(self.patience.head);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(if is_server { SERVER_STREAMS } else { STREAMS })
            .max_header_list_size(heads::MAX)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        if is_server {
            // They send much, and for many.
            builder
                .http2()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(32 << 20);
        }
        let (stream, gathering) = gather(link);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let end = if is_server { &self.closed } else { &self.shutdown };
        let mut is_renewed = false;
        let ended = loop {
            let ended = {
                let running = async { connection.as_mut().await.map_err(io::Error::other) };
                let driven = pin!(gathering.drive(running));
                tokio::select! {
                    ended = fair::Connection::new(payer.clone(), driven) => Some(Some(ended)),
                    () = end.cancelled() => Some(None),
                    // What is under way goes on, for as long as it likes.
                    () = renewed.cancelled(), if !is_renewed => None,
                }
            };
            if let Some(ended) = ended {
                break ended;
            }
            is_renewed = true;
            connection.as_mut().graceful_shutdown();
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                let patience = if is_server { Duration::from_millis(100) } else { DRAIN };
                let running = async { connection.await.map_err(io::Error::other) };
                match tokio::time::timeout(patience, gathering.drive(running)).await {
                    Ok(ended) => ended,
                    Err(_) => return Ok(()),
                }
            }
        };
        // What it said last.
        tokio::time::timeout(DRAIN, gathering.finish()).await??;
        ended
    }

    async fn answer(&self, request: hyper::Request<Incoming>, peer: &Peer) -> Response<Body> {
        if request.uri().path().starts_with(peers::PREFIX) {
            return match (&self.peers, &peer.server) {
                (Some(peers), Some(from)) => peers::serve(peers, from, request).await,
                // The same words whether this server has others or not.
                _ => {
                    payload::drain(request.into_body()).await;
                    answer::error(&ApiError::only_for_servers())
                }
            };
        }
        let Ok(large) = self.heads.enter(request.uri(), request.headers()) else {
            payload::drain(request.into_body()).await;
            let why = "too many requests with large heads, please try again later";
            return answer::error(&ApiError::too_many_requests(why, 1));
        };
        match self.server.get() {
            Some(server) => {
                let response = server.handle(request.map(Payload::of), peer).await;
                match large {
                    // What is answered bit by bit may remember what was asked.
                    Some(large) => response.map(|it| body::with_end(it, large)),
                    None => response,
                }
            }
            None => answer::error(&ApiError::unavailable("the server is starting")),
        }
    }
}

impl Server {
    /// Takes connections until the server's shutdown is cancelled. For a server without others.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Tls) {
        let shutdown = self.shutdown.clone();
        let front = Front::new(tls, None, shutdown.clone(), shutdown);
        front.open(self);
        front.serve(listener).await;
    }
}
