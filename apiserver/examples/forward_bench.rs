//! What it costs that a request goes through another server: the same GET, first at the server
//! that has the object, then at one that has nothing, on loopback, by the same client.
//!
//! `cargo run --release -p insula-apiserver --example forward_bench [REQUESTS]`
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench stops at what it did not expect, and prints"
)]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use insula_api::names::TenantName;
use insula_apiserver::{
    Front, OutboundNetworks, Server, ServerConfig, Tls,
    identity::MASTERS,
    peers::{HttpPeers, PeerTls},
    pki::Authority,
    services::ServiceRanges,
    tokens::Keys,
};
use insula_partition::{
    map::ServerInfo,
    partitions::{Partitions, PartitionsConfig, StoreConfig},
};
use rustls_pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Requests before anything is counted.
const WARM_UP: usize = 500;

type Client = SendRequest<Empty<Bytes>>;

struct Node {
    address: SocketAddr,
    partitions: Arc<Partitions>,
}

async fn node(
    ca: &Authority,
    dir: &std::path::Path,
    name: &str,
    join: Option<&Node>,
    shutdown: &CancellationToken,
) -> Node {
    let ip = [127, 0, 0, 1].into();
    let pair = ca.api_server(name, &["localhost".to_owned()], &[ip]).unwrap();
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = PeerTls::new(ca.certificate(), &pair).unwrap();
    let at = address.to_string();
    let peers = HttpPeers::new(name, &at, tls, None, shutdown.clone());
    let tls = Tls::new(ca.certificate(), &pair).unwrap();
    let front = Front::new(tls, Some(peers.clone()), shutdown.clone(), shutdown.clone());
    tokio::spawn(front.clone().serve(listener));
    let store = match join {
        None => StoreConfig::Embedded { partitions: 1 },
        Some(seed) => {
            let address = seed.address.to_string();
            peers.set_addresses([("s1", address.as_str())]);
            let seed = ServerInfo { name: "s1".into(), address, ..ServerInfo::default() };
            StoreConfig::Join { servers: vec![seed] }
        }
    };
    let mut config = PartitionsConfig::alone(dir.join(name), store);
    config.server = name.into();
    config.address = at;
    config.peers = Arc::new(peers.clone());
    let partitions = Arc::new(Partitions::open(config).await.unwrap());
    let to_nodes = ca.client(&TenantName::system(), "system:apiserver", &[MASTERS]).unwrap();
    let server = Server::start(ServerConfig {
        partitions: partitions.clone(),
        keys: Keys::open_or_create(&dir.join("sa.key")).unwrap().into(),
        static_tokens: None,
        node_tls: Tls::client(ca.certificate(), &to_nodes).unwrap(),
        advertise: address.to_string(),
        services: ServiceRanges::default(),
        outbound: OutboundNetworks::default(),
        peers: Some(peers),
        audit: None,
        shutdown: shutdown.clone(),
    })
    .await
    .unwrap();
    front.open(server);
    Node { address, partitions }
}

async fn connect(ca: &Authority, node: &Node) -> Client {
    let pair = ca.client(&TenantName::system(), "bench", &[MASTERS]).unwrap();
    let mut tls = (*Tls::client(ca.certificate(), &pair).unwrap()).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(node.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (client, connection) = shaken.await.unwrap();
    tokio::spawn(connection);
    client
}

async fn get(client: &mut Client) -> Duration {
    let uri = "https://localhost/api/v1/tenants/system/namespaces/kube-system";
    let request = Request::get(uri).body(Empty::new()).unwrap();
    let begun = Instant::now();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(!body.is_empty());
    begun.elapsed()
}

fn at(sorted: &[Duration], part: f64) -> f64 {
    let index = ((sorted.len() - 1) as f64 * part).round() as usize;
    sorted[index].as_secs_f64() * 1e3
}

#[tokio::main]
async fn main() {
    let count: usize = std::env::args().nth(1).and_then(|it| it.parse().ok()).unwrap_or(20_000);
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open_or_create(dir.path()).unwrap();
    let shutdown = CancellationToken::new();
    let one = node(&ca, dir.path(), "s1", None, &shutdown).await;
    let two = node(&ca, dir.path(), "s2", Some(&one), &shutdown).await;
    let mut clients = [connect(&ca, &one).await, connect(&ca, &two).await];
    let mut took = [Vec::with_capacity(count), Vec::with_capacity(count)];
    // Turn by turn, so that whatever else the machine does is the same for both.
    for n in 0..WARM_UP + count {
        for (client, took) in clients.iter_mut().zip(&mut took) {
            let one = get(client).await;
            if WARM_UP <= n {
                took.push(one);
            }
        }
    }
    took.iter_mut().for_each(|it| it.sort());
    println!("{count} GETs of one object each, one after the other, in milliseconds");
    for (name, took) in [("at its server", &took[0]), ("through another", &took[1])] {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|part| at(took, part));
        println!("{name:16} p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}");
    }
    println!("added at p50     {:.3}", at(&took[1], 0.5) - at(&took[0], 0.5));
    shutdown.cancel();
    for node in [two, one] {
        let _ = node.partitions.shutdown().await;
    }
}
