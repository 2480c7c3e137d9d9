//! Servers on loopback with real certificates.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use insula_api::names::TenantName;
use insula_partition::peers::{PeerError, PeerService, Peers};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{HttpPeers, PeerTls, SERVERS, user};
use crate::{
    pki::{Authority, Pair},
    serve::{Front, Tls},
};

/// Answers with what it is asked, and keeps the frames it gets.
#[derive(Default)]
struct Echo {
    frames: Mutex<Vec<(String, Bytes)>>,
    /// Streams that somebody still reads.
    open: Arc<()>,
}

impl PeerService for Echo {
    fn receive(&self, from: &str, frame: Bytes) {
        self.frames.lock().push((from.into(), frame));
    }

    fn answer(&self, from: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, String>> {
        let answer = match &request[..] {
            b"refuse" => Err("no".to_owned()),
            _ => Ok([from.as_bytes(), b":", &request].concat().into()),
        };
        std::future::ready(answer).boxed()
    }

    fn pieces(
        &self,
        _: &str,
        request: Bytes,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, String>> {
        let (keep, size) = (self.open.clone(), request.len() * 1000);
        let pieces = futures::stream::iter(0..3).map(move |n| {
            let _ = &keep;
            Bytes::from(vec![n; size])
        });
        let pieces = match &request[..] {
            b"for ever" => {
                let keep = self.open.clone();
                let rest = async move {
                    let _keep = keep;
                    std::future::pending().await
                };
                pieces.chain(futures::stream::once(rest)).boxed()
            }
            _ => pieces.boxed(),
        };
        std::future::ready(Ok(pieces)).boxed()
    }
}

struct Node {
    peers: HttpPeers,
    echo: Arc<Echo>,
    address: SocketAddr,
    closed: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn pair(ca: &Authority, name: &str) -> Pair {
    ca.api_server(name, &[], &[]).unwrap()
}

async fn node(ca: &Authority, name: &str, at: Option<SocketAddr>) -> Node {
    remembering(ca, name, at, None).await
}

async fn remembering(
    ca: &Authority,
    name: &str,
    at: Option<SocketAddr>,
    memory: Option<PathBuf>,
) -> Node {
    let pair = pair(ca, name);
    let closed = CancellationToken::new();
    let tls = PeerTls::new(ca.certificate(), &pair).unwrap();
    let at = at.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let peers = HttpPeers::new(name, &address.to_string(), tls, memory, closed.clone());
    let echo = Arc::new(Echo::default());
    let service: Arc<dyn PeerService> = echo.clone();
    peers.deliver_to(Arc::downgrade(&service));
    let tls = Tls::new(ca.certificate(), &pair).unwrap();
    let front = Front::new(tls, Some(peers.clone()), closed.clone(), closed.clone());
    let task = tokio::spawn(front.serve(listener));
    Node { peers, echo, address, closed, task }
}

impl Node {
    fn knows(&self, name: &str, other: &Self) {
        self.peers.set_addresses([(name, other.address.to_string().as_str())]);
    }

    async fn stop(self) {
        self.closed.cancel();
        self.task.await.unwrap();
    }
}

fn authority() -> (Authority, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Authority::open_or_create(dir.path()).unwrap(), dir)
}

async fn until(what: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_frames_and_streams_arrive() {
    let (ca, _dir) = authority();
    let (one, two) = (node(&ca, "s1", None).await, node(&ca, "s2", None).await);
    one.knows("s2", &two);
    let answer = one.peers.call("s2", Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(answer, "s1:hello");
    let refused = one.peers.call("s2", Bytes::from_static(b"refuse")).await;
    assert!(matches!(refused, Err(PeerError::Refused { .. })), "{refused:?}");
    let big = Bytes::from(vec![7; 3 << 20]);
    assert_eq!(one.peers.call("s2", big.clone()).await.unwrap().len(), big.len() + 3);

    for n in 0..1000_u32 {
        one.peers.send("s2", Bytes::copy_from_slice(&n.to_be_bytes()));
    }
    until(|| two.echo.frames.lock().len() == 1000).await;
    let frames = std::mem::take(&mut *two.echo.frames.lock());
    let numbers = frames.iter().map(|(from, frame)| {
        assert_eq!(from, "s1");
        u32::from_be_bytes(frame[..].try_into().unwrap())
    });
    assert!(numbers.eq(0..1000));

    let pieces = one.peers.stream("s2", Bytes::from_static(b"xyz")).await.unwrap();
    let sizes: Vec<_> = pieces.map(|piece| piece.unwrap().len()).collect().await;
    assert_eq!(sizes, [3000, 3000, 3000]);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_ends_on_both_sides() {
    let (ca, _dir) = authority();
    let (one, two) = (node(&ca, "s1", None).await, node(&ca, "s2", None).await);
    one.knows("s2", &two);
    let mut pieces = one.peers.stream("s2", Bytes::from_static(b"for ever")).await.unwrap();
    pieces.next().await.unwrap().unwrap();
    assert!(1 < Arc::strong_count(&two.echo.open));
    drop(pieces);
    until(|| Arc::strong_count(&two.echo.open) == 1).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_reached_again() {
    let (ca, _dir) = authority();
    let (one, two) = (node(&ca, "s1", None).await, node(&ca, "s2", None).await);
    one.knows("s2", &two);
    one.peers.call("s2", Bytes::from_static(b"1")).await.unwrap();
    one.peers.send("s2", Bytes::from_static(b"1"));
    let address = two.address;
    let mut stream = one.peers.stream("s2", Bytes::from_static(b"for ever")).await.unwrap();
    two.stop().await;
    // It ends: with an error, or without.
    while let Some(Ok(_)) =
        tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap()
    {}
    let begun = std::time::Instant::now();
    let gone = one.peers.call("s2", Bytes::from_static(b"2")).await;
    assert!(matches!(gone, Err(PeerError::Unreachable { .. })), "{gone:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());

    let two = node(&ca, "s2", Some(address)).await;
    let begun = std::time::Instant::now();
    while one.peers.call("s2", Bytes::from_static(b"3")).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "not reached again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begun = std::time::Instant::now();
    while two.echo.frames.lock().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "no frame arrives");
        one.peers.send("s2", Bytes::from_static(b"4"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_servers_are_heard() {
    let (ca, _dir) = authority();
    let two = node(&ca, "s2", None).await;
    let (acme, system) = (TenantName::parse("acme").unwrap(), TenantName::system());
    let strangers = [
        // A tenant may name its users and groups as it likes.
        ca.client(&acme, &user("s1"), &[SERVERS]).unwrap(),
        ca.client(&system, &user("s1"), &["system:masters"]).unwrap(),
        ca.client(&system, "admin", &[SERVERS]).unwrap(),
    ];
    for pair in strangers {
        let closed = CancellationToken::new();
        let tls = PeerTls::new(ca.certificate(), &pair).unwrap();
        let stranger = HttpPeers::new("s1", "", tls, None, closed.clone());
        stranger.set_addresses([("s2", two.address.to_string().as_str())]);
        let refused = stranger.call("s2", Bytes::from_static(b"hello")).await;
        let Err(PeerError::Refused { reason, .. }) = &refused else { panic!("{refused:?}") };
        assert!(reason.contains("403"), "{reason}");
        stranger.send("s2", Bytes::from_static(b"hello"));
        assert!(stranger.stream("s2", Bytes::from_static(b"hello")).await.is_err());
        closed.cancel();
    }
    assert!(two.echo.frames.lock().is_empty());
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_proves_its_name() {
    let (ca, _dir) = authority();
    let (one, three) = (node(&ca, "s1", None).await, node(&ca, "s3", None).await);
    // Somebody has put another server at s2's address.
    one.knows("s2", &three);
    let refused = one.peers.call("s2", Bytes::from_static(b"hello")).await;
    assert!(matches!(refused, Err(PeerError::Unreachable { .. })), "{refused:?}");
    one.stop().await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_others_are_is_learned_and_kept() {
    let (ca, dir) = authority();
    let memory = Some(dir.path().join("servers.json"));
    let one = remembering(&ca, "s1", None, memory.clone()).await;
    let two = node(&ca, "s2", None).await;
    // Only the second knows the first, and calls it.
    two.knows("s1", &one);
    two.peers.call("s1", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(one.peers.call("s2", Bytes::from_static(b"y")).await.unwrap(), "s1:y");
    one.stop().await;
    // After a restart it knows by itself.
    let one = remembering(&ca, "s1", None, memory).await;
    assert_eq!(one.peers.call("s2", Bytes::from_static(b"z")).await.unwrap(), "s1:z");
    one.stop().await;
    two.stop().await;
}
