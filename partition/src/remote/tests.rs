//! Remote stores over servers in this process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{RemoteService, RemoteStore};
use crate::{
    contract::{contract_tests, pods, put, stored, value, write},
    embedded::{
        Embedded,
        tests::{open, options, p1},
    },
    peers::{PeerError, Peers, Pieces},
    ring::RingLimits,
    store::{Collection, Durability, Expect, ReadAt, Store, StoreError, Write},
};

/// Servers and what they reach.
#[derive(Default)]
struct Network {
    services: Mutex<BTreeMap<String, Arc<RemoteService>>>,
    /// Not reached at all.
    down: Mutex<BTreeSet<String>>,
    /// Take what is asked and never answer.
    mute: Mutex<BTreeSet<String>>,
    /// Counts up when open streams break off.
    breaks: watch::Sender<u64>,
    calls: Mutex<Vec<String>>,
}

impl Network {
    fn service(&self, to: &str) -> Result<Arc<RemoteService>, PeerError> {
        self.calls.lock().push(to.into());
        let found = self.services.lock().get(to).cloned();
        found.filter(|_| !self.down.lock().contains(to)).ok_or_else(|| PeerError::Unreachable {
            server: to.into(),
            reason: "it is down".into(),
        })
    }

    fn cut(&self, server: &str) {
        self.down.lock().insert(server.into());
        self.breaks.send_modify(|count| *count += 1);
    }
}

impl Peers for Network {
    fn send(&self, _: &str, _: Bytes) {}

    fn call(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        let to = to.to_owned();
        async move {
            let service = self.service(&to)?;
            if self.mute.lock().contains(&to) {
                let _ = service.answer(&request).await;
                return Err(PeerError::Broken { server: to, reason: "it went away".into() });
            }
            let refused = |reason| PeerError::Refused { server: to, reason };
            service.answer(&request).await.map_err(refused)
        }
        .boxed()
    }

    fn stream(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Pieces, PeerError>> {
        let to = to.to_owned();
        async move {
            let service = self.service(&to)?;
            let refused = |reason| PeerError::Refused { server: to.clone(), reason };
            let pieces: BoxStream<'static, Bytes> = service.pieces(&request).map_err(refused)?;
            let mut breaks = self.breaks.subscribe();
            let broken = async move {
                let _ = breaks.changed().await;
            };
            Ok(pieces.map(Ok).take_until(Box::pin(broken)).boxed())
        }
        .boxed()
    }
}

/// An embedded partition that several servers give access to, and one that has it not.
struct Cluster {
    network: Arc<Network>,
    local: Arc<dyn Store>,
    servers: watch::Sender<Vec<String>>,
    _embedded: Arc<Embedded>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn new(servers: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let embedded = open(dir.path(), &options()).await.unwrap();
        let local: Arc<dyn Store> = p1(&embedded);
        let network = Arc::new(Network::default());
        for server in servers {
            let store: Weak<dyn Store> = Arc::downgrade(&local);
            let service =
                RemoteService::new(move |name| if name == "p1" { store.upgrade() } else { None });
            network.services.lock().insert((*server).into(), Arc::new(service));
        }
        let names: Vec<String> = servers.iter().map(|it| (*it).into()).collect();
        let servers = watch::Sender::new(names);
        Self { network, local, servers, _embedded: embedded, _dir: dir }
    }

    fn remote(&self) -> Arc<RemoteStore> {
        self.named("p1")
    }

    fn named(&self, name: &str) -> Arc<RemoteStore> {
        let peers: Arc<dyn Peers> = self.network.clone();
        let servers = self.servers.subscribe();
        Arc::new(RemoteStore::new(name, peers, servers, RingLimits::default(), &Arc::default()))
    }
}

async fn empty() -> (Arc<dyn Store>, Cluster) {
    let cluster = Cluster::new(&["s1"]).await;
    (cluster.remote(), cluster)
}

contract_tests!(empty);

#[tokio::test(flavor = "multi_thread")]
async fn reads_what_another_server_wrote() {
    let cluster = Cluster::new(&["s1"]).await;
    let remote = cluster.remote();
    for n in 0..100 {
        let committed = put(&*cluster.local, "a", &n.to_string()).await;
        // So that the partition's revision is beyond what the collection's stream tells.
        let collection = Collection::new("", "nodes");
        let other = Write { collection, ..write("n", Expect::Anything, value("n")) };
        cluster.local.write(other).await.unwrap();
        let snapshot = remote.read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!(snapshot.get("a").unwrap(), &committed.entry);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_collection_comes_in_pieces() {
    let cluster = Cluster::new(&["s1"]).await;
    let big = "x".repeat(100_000);
    for n in 0..20 {
        put(&*cluster.local, &format!("k{n:02}"), &big).await;
    }
    let remote = cluster.remote();
    let snapshot = remote.read(&pods(), ReadAt::Any).await.unwrap();
    assert_eq!(snapshot.len(), 20);
    let here = cluster.local.read(&pods(), ReadAt::Latest).await.unwrap();
    assert!(here.range("", None).eq(snapshot.range("", None)));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_fetched_when_it_is_asked_for() {
    let cluster = Cluster::new(&["s1"]).await;
    let first = put(&*cluster.local, "a", "1").await;
    let second = put(&*cluster.local, "a", "2").await;
    let third = put(&*cluster.local, "a", "3").await;
    let remote = cluster.remote();
    // Followed from now on, without history.
    remote.read(&pods(), ReadAt::Latest).await.unwrap();
    let mut watcher = remote.watch(&pods(), first.revision).unwrap();
    let events = watcher.next().await.unwrap();
    let seen: Vec<_> = events.iter().map(|event| event.revision).collect();
    assert_eq!(seen, [second.revision, third.revision]);
    assert_eq!(events[0].previous, Some(first.entry.clone()));
    let then = remote.read(&pods(), ReadAt::Exactly(second.revision)).await.unwrap();
    assert_eq!(then.get("a").unwrap(), &second.entry);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_takes_over() {
    let cluster = Cluster::new(&["s1", "s2"]).await;
    let remote = cluster.remote();
    let first = put(&*remote, "a", "1").await;
    let mut watcher = remote.watch(&pods(), first.revision).unwrap();
    remote.read(&pods(), ReadAt::Latest).await.unwrap();
    for (down, round) in [("s1", 2), ("s2", 3), ("s1", 4)] {
        cluster.network.down.lock().clear();
        cluster.network.cut(down);
        let committed = put(&*remote, "a", &round.to_string()).await;
        let events = watcher.next().await.unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].entry, committed.entry);
        let snapshot = remote.read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!(snapshot.get("a").unwrap(), &committed.entry);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_outcome_is_unknown_is_not_repeated() {
    let cluster = Cluster::new(&["s1", "s2"]).await;
    let remote = cluster.remote();
    cluster.network.mute.lock().insert("s1".into());
    let refused = remote.write(write("a", Expect::Anything, value("1"))).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    // It happened, once.
    assert_eq!(*cluster.network.calls.lock(), ["s1"]);
    let found = cluster.local.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(found.len(), 1);
    // Reads may be asked of both.
    let snapshot = remote.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(snapshot.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_unavailable() {
    let cluster = Cluster::new(&["s1", "s2"]).await;
    let elsewhere = cluster.named("p2");
    let read = elsewhere.read(&pods(), ReadAt::Latest).await;
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    let refused = elsewhere.write(write("a", Expect::Anything, value("1"))).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");

    let remote = cluster.remote();
    let committed = put(&*remote, "a", "1").await;
    remote.read(&pods(), ReadAt::Latest).await.unwrap();
    for server in ["s1", "s2"] {
        cluster.network.cut(server);
    }
    let read = remote.read(&pods(), ReadAt::Latest).await;
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    // What may be old is served on.
    let any = remote.read(&pods(), ReadAt::Any).await.unwrap();
    assert_eq!(any.get("a").unwrap().value, stored("1", committed.revision));
    cluster.network.down.lock().clear();
    let begun = std::time::Instant::now();
    while remote.read(&pods(), ReadAt::Latest).await.is_err() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "no recovery");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_and_is_gone_ends_watches() {
    let cluster = Cluster::new(&["s1"]).await;
    let remote = cluster.remote();
    let first = put(&*remote, "a", "1").await;
    let mut watcher = remote.watch(&pods(), first.revision).unwrap();
    remote.read(&pods(), ReadAt::Latest).await.unwrap();
    cluster.network.cut("s1");
    let last = put(&*cluster.local, "a", "2").await;
    cluster.local.compact(last.revision).await.unwrap();
    cluster.network.down.lock().clear();
    let ended = watcher.next().await;
    assert!(matches!(ended, Err(StoreError::Compacted { .. })), "{ended:?}");
    let snapshot = remote.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(snapshot.get("a").unwrap(), &last.entry);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_in_order_and_once() {
    let cluster = Cluster::new(&["s1"]).await;
    let remote = cluster.remote();
    let pods = pods();
    let mut last = put(&*cluster.local, "a", "0").await.revision;
    let mut watcher = remote.watch(&pods, last).unwrap();
    for n in 0..200 {
        let collection = if n % 5 == 0 { Collection::new("x", "others") } else { pods.clone() };
        let durability = Durability::Relaxed;
        let one = write("a", Expect::Anything, value(&n.to_string()));
        let written =
            cluster.local.write(Write { collection: collection.clone(), durability, ..one });
        let written = written.await.unwrap();
        if collection == pods {
            last = written.revision;
        }
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.extend(watcher.next().await.unwrap().iter().map(|event| event.revision));
    }
    assert_eq!(seen.len(), 160);
    assert!(seen.is_sorted());
}
