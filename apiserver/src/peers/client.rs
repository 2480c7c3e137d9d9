//! The calling end: this server's way to the others.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use insula_partition::peers::{PeerError, PeerService, Peers, Pieces};
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    MAX_FRAME, MEASURED, PREFIX,
    connection::{Config, Connection, SendError, Way},
    frame,
};
use crate::{
    body::{Body, channel, full},
    error::chain,
    measured::Measured,
    pki::Pair,
    serve::{ServeError, Tls},
};

/// Frames for one server that may wait, by number and by bytes. More are dropped.
const QUEUE: usize = 8192;
const QUEUE_BYTES: usize = 64 << 20;

/// Frames are sent together up to this many bytes.
const TOGETHER: usize = 1 << 20;

/// How long a call may take, and how long a stream may take to begin. Who calls has shorter deadlines of its own.
const CALL: Duration = Duration::from_secs(60);

/// Where the sender is reached.
const ADDRESS: HeaderName = HeaderName::from_static("x-insula-address");

/// Connections for forwarded requests, to each server.
const FORWARDING: usize = 2;

/// How this server shows itself to others.
#[derive(Debug, Clone)]
pub struct PeerTls {
    pub(super) h2: Config,
    h1: Config,
}

impl PeerTls {
    /// Trusts `ca` and presents `pair`, which must be a server's.
    pub fn new(ca: &str, pair: &Pair) -> Result<Self, ServeError> {
        let with = |protocol: &[u8]| -> Result<Config, ServeError> {
            let mut config = Arc::unwrap_or_clone(Tls::client(ca, pair)?);
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(Arc::new(config))
        };
        Ok(Self { h2: with(b"h2")?, h1: with(b"http/1.1")? })
    }
}

/// See the module.
#[derive(Clone)]
pub struct HttpPeers {
    shared: Arc<Shared>,
}

struct Shared {
    own: String,
    /// Where others reach this server; it tells everyone whom it talks to.
    own_address: HeaderValue,
    /// Where addresses are kept for the next start.
    memory: Option<PathBuf>,
    /// Connections live here. Storage has runtimes of its own, which do no I/O.
    runtime: tokio::runtime::Handle,
    tls: Arc<ArcSwap<PeerTls>>,
    peers: RwLock<HashMap<String, Arc<Peer>>>,
    service: RwLock<Option<Weak<dyn PeerService>>>,
    /// What others may ask of what is measured.
    measured: OnceLock<Measured>,
    shutdown: CancellationToken,
}

impl std::fmt::Debug for HttpPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpPeers").field("own", &self.shared.own).finish_non_exhaustive()
    }
}

/// Another server.
#[derive(Debug)]
struct Peer {
    way: Arc<Way>,
    frames: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
    calls: Connection,
    /// Of the task that sends frames.
    raft: Arc<Connection>,
    forwarding: Vec<Connection>,
    next: AtomicUsize,
}

impl HttpPeers {
    /// The way of the server `own`, which others reach at `address`, to the others. Where they are
    /// is kept in the file `memory`: when all servers start at once, nobody else can be asked. To
    /// be called on a runtime.
    pub fn new(
        own: &str,
        address: &str,
        tls: PeerTls,
        memory: Option<PathBuf>,
        shutdown: CancellationToken,
    ) -> Self {
        let known = memory.as_deref().map(remembered).unwrap_or_default();
        let shared = Shared {
            own: own.into(),
            own_address: HeaderValue::from_str(address)
                .unwrap_or_else(|_| HeaderValue::from_static("")),
            memory,
            runtime: tokio::runtime::Handle::current(),
            tls: Arc::new(ArcSwap::from_pointee(tls)),
            peers: RwLock::default(),
            service: RwLock::new(None),
            measured: OnceLock::new(),
            shutdown,
        };
        let peers = Self { shared: Arc::new(shared) };
        peers.set_addresses(known.iter().map(|(name, address)| (name.as_str(), address.as_str())));
        peers
    }

    /// This server's own name.
    pub fn own(&self) -> &str {
        &self.shared.own
    }

    /// Shows itself otherwise on connections that are opened from now on.
    pub fn set_tls(&self, tls: PeerTls) {
        self.shared.tls.store(Arc::new(tls));
    }

    /// Learns where servers are. Those that are not named stay where they were.
    pub fn set_addresses<'a>(&self, addresses: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut learned = false;
        for (name, address) in addresses {
            if name == self.shared.own || address.is_empty() {
                continue;
            }
            let peer = self.peer(name);
            let known = peer.way.address.read().as_deref() == Some(address);
            if !known {
                tracing::debug!(server = name, address, "a server's address");
                *peer.way.address.write() = Some(address.to_owned());
                learned = true;
            }
        }
        if learned {
            self.remember();
        }
    }

    /// A server has said itself where it is.
    pub(super) fn heard_from(&self, name: &str, headers: &http::HeaderMap) {
        if let Some(address) = headers.get(ADDRESS).and_then(|it| it.to_str().ok()) {
            self.set_addresses([(name, address)]);
        }
    }

    fn remember(&self) {
        let Some(path) = &self.shared.memory else { return };
        let known: BTreeMap<String, String> = {
            let peers = self.shared.peers.read();
            let known = peers.iter();
            known
                .filter_map(|(name, it)| Some((name.clone(), it.way.address.read().clone()?)))
                .collect()
        };
        let text = serde_json::to_string(&known).unwrap_or_default();
        if let Err(error) = crate::pki::write_private(path, &text) {
            tracing::warn!(error = chain(&error), "where the other servers are is not kept");
        }
    }

    /// Has others be told of what is measured.
    pub(crate) fn tell_measured(&self, measured: Measured) {
        // There is one server with these peers.
        let _ = self.shared.measured.set(measured);
    }

    /// What others may ask of what is measured.
    pub(super) fn measured(&self) -> Option<&Measured> {
        self.shared.measured.get()
    }

    /// Asks another server for what is measured; see [`crate::measured::ask`].
    pub(crate) async fn ask_measured(&self, to: &str, question: Bytes) -> Result<Bytes, PeerError> {
        self.ask(to, MEASURED, question).await
    }

    /// To whom frames and calls of others go.
    pub(super) fn service(&self) -> Option<Arc<dyn PeerService>> {
        self.shared.service.read().as_ref().and_then(Weak::upgrade)
    }

    fn peer(&self, name: &str) -> Arc<Peer> {
        if let Some(peer) = self.shared.peers.read().get(name) {
            return peer.clone();
        }
        let mut peers = self.shared.peers.write();
        let make = || {
            let way = Arc::new(Way { name: name.into(), address: RwLock::new(None) });
            let tls = &self.shared.tls;
            let connection = || Connection::new(way.clone(), tls.clone());
            let (frames, queue) = mpsc::channel(QUEUE);
            let waiting = Arc::new(AtomicUsize::new(0));
            let raft = Arc::new(connection());
            let sending = Sending {
                own_address: self.shared.own_address.clone(),
                connection: raft.clone(),
                name: name.into(),
                queue,
                waiting: waiting.clone(),
            };
            let shutdown = self.shared.shutdown.clone();
            self.shared.runtime.spawn(async move {
                tokio::select! {
                    () = sending.run() => (),
                    () = shutdown.cancelled() => (),
                }
            });
            Arc::new(Peer {
                calls: connection(),
                raft,
                forwarding: (0..FORWARDING).map(|_| connection()).collect(),
                next: AtomicUsize::new(0),
                way,
                frames,
                waiting,
            })
        };
        peers.entry(name.to_owned()).or_insert_with(make).clone()
    }

    async fn post(
        &self,
        to: &str,
        path: &str,
        request: Bytes,
    ) -> Result<Response<Incoming>, PeerError> {
        let peer = self.peer(to);
        let request = Request::new(full(request));
        let request = post(to, path, request, &self.shared.own_address);
        let sent = peer.calls.send(request).await;
        let response = sent.map_err(|error| peer_error(to, error))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let text = Limited::new(response.into_body(), 4096).collect().await;
        let text = text.map(|it| String::from_utf8_lossy(&it.to_bytes()).into_owned());
        let reason = format!("{status}: {}", text.unwrap_or_default());
        Err(PeerError::Refused { server: to.into(), reason })
    }

    /// Whether there is a connection to the server now. If there is none, one is tried.
    pub(crate) fn is_connected(&self, name: &str) -> bool {
        let peer = self.peer(name);
        if peer.calls.is_open() || peer.raft.is_open() {
            return true;
        }
        self.shared.runtime.spawn(async move { peer.calls.try_open().await });
        false
    }

    /// Sends a client's request on to another server.
    pub(crate) async fn forward(
        &self,
        to: &str,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, SendError> {
        let peer = self.peer(to);
        let next = peer.next.fetch_add(1, Ordering::Relaxed) % FORWARDING;
        peer.forwarding[next].send(request).await
    }

    /// Sends on a request that wants to upgrade its connection: over one of its own.
    pub(crate) async fn forward_upgrade(
        &self,
        to: &str,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, SendError> {
        let peer = self.peer(to);
        let tls = self.shared.tls.load().h1.clone();
        let stream = peer.way.dial(&tls).await.map_err(SendError::Unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| SendError::Unreachable(chain(&error)))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = chain(&error), "an upgraded connection ended");
            }
        });
        sender.send_request(request).await.map_err(|error| SendError::Broken(chain(&error)))
    }
}

/// Where the servers were that a file tells of; nobody if it does not make sense.
fn remembered(path: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn post(to: &str, path: &str, mut request: Request<Body>, from: &HeaderValue) -> Request<Body> {
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(ADDRESS, from.clone());
    // Both parts were checked when the server's name was; a name that is none fails to connect.
    if let Ok(uri) = format!("https://{}{PREFIX}{path}", super::dns_name(to)).parse() {
        *request.uri_mut() = uri;
    }
    request
}

fn peer_error(to: &str, error: SendError) -> PeerError {
    let server = to.to_owned();
    match error {
        SendError::Unreachable(reason) => PeerError::Unreachable { server, reason },
        SendError::Broken(reason) => PeerError::Broken { server, reason },
    }
}

impl Peers for HttpPeers {
    fn deliver_to(&self, service: Weak<dyn PeerService>) {
        *self.shared.service.write() = Some(service);
    }

    fn send(&self, to: &str, frame: Bytes) {
        let peer = self.peer(to);
        let size = frame.len();
        if QUEUE_BYTES < peer.waiting.fetch_add(size, Ordering::AcqRel) + size
            || peer.frames.try_send(frame).is_err()
        {
            peer.waiting.fetch_sub(size, Ordering::AcqRel);
        }
    }

    fn call(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        self.ask(to, "call", request)
    }

    fn stream(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Pieces, PeerError>> {
        let (peers, to) = (self.clone(), to.to_owned());
        self.here(to.clone(), async move {
            let response = peers.post(&to, "stream", request).await?;
            let pieces = frame::frames(response.into_body()).map(move |piece| {
                let broken = |reason| PeerError::Broken { server: to.clone(), reason };
                piece.map_err(|error| broken(chain(&error)))
            });
            Ok(pieces.boxed())
        })
    }
}

impl HttpPeers {
    /// Asks for one answer.
    fn ask(
        &self,
        to: &str,
        path: &'static str,
        request: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        let (peers, to) = (self.clone(), to.to_owned());
        self.here(to.clone(), async move {
            let response = peers.post(&to, path, request).await?;
            let body = Limited::new(response.into_body(), MAX_FRAME).collect().await;
            let broken = |reason| PeerError::Broken { server: to, reason };
            body.map(|it| it.to_bytes()).map_err(|error| broken(chain(&*error)))
        })
    }

    /// Does `work` on the runtime of the connections, within the time that a call has. Dropping
    /// the future ends it.
    fn here<T: Send + 'static>(
        &self,
        to: String,
        work: impl Future<Output = Result<T, PeerError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, PeerError>> {
        let task = self.shared.runtime.spawn(tokio::time::timeout(CALL, work));
        let task = AbortOnDropHandle::new(task);
        async move {
            let broken = |reason: &str| PeerError::Broken { server: to, reason: reason.into() };
            match task.await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(broken("it took too long")),
                Err(_) => Err(broken("this server is ending")),
            }
        }
        .boxed()
    }
}

/// The task that sends frames to one server.
struct Sending {
    own_address: HeaderValue,
    connection: Arc<Connection>,
    name: String,
    queue: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl Sending {
    async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let (body, stream) = channel();
            let request = post(&self.name, "raft", Request::new(stream), &self.own_address);
            let connection = &self.connection;
            let mut sent = std::pin::pin!(connection.send(request));
            let mut next = Some(first);
            let ended = loop {
                let Some(frame) = next.take() else { return };
                let bytes = gather(frame, &mut self.queue, &self.waiting);
                tokio::select! {
                    ended = &mut sent => break ended,
                    taken = body.send(bytes) => if !taken { break sent.await },
                }
                tokio::select! {
                    ended = &mut sent => break ended,
                    frame = self.queue.recv() => next = frame,
                }
            };
            let reason = match ended {
                Ok(response) => response.status().to_string(),
                Err(error) => error.to_string(),
            };
            tracing::debug!(server = self.name, reason, "cannot send to a server now");
            // What waited is old news.
            while let Ok(frame) = self.queue.try_recv() {
                self.waiting.fetch_sub(frame.len(), Ordering::AcqRel);
            }
        }
    }
}

/// `first` and what else waits, framed.
fn gather(first: Bytes, queue: &mut mpsc::Receiver<Bytes>, waiting: &AtomicUsize) -> Bytes {
    let mut out = BytesMut::with_capacity(first.len() + 4);
    let mut taken = first.len();
    frame::put(&mut out, &first);
    while out.len() < TOGETHER
        && let Ok(frame) = queue.try_recv()
    {
        taken += frame.len();
        frame::put(&mut out, &frame);
    }
    waiting.fetch_sub(taken, Ordering::AcqRel);
    out.freeze()
}
