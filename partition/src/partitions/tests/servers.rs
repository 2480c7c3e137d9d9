//! Several servers in one process: they join, take on partitions and let go of them, die and
//! come back, and tenants move between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use tokio::time::Instant;

use super::*;
use crate::{
    contract::{pods, put},
    map::Scope,
    moves::Phase,
    peers::{PeerError, Peers, Pieces},
};

/// Who is there, and who is cut off.
#[derive(Default)]
struct Network {
    services: Mutex<BTreeMap<String, Weak<dyn PeerService>>>,
    cut: Mutex<BTreeSet<String>>,
}

struct Way {
    network: Arc<Network>,
    from: String,
    runtime: tokio::runtime::Handle,
}

impl Way {
    fn reach(&self, to: &str) -> Result<Arc<dyn PeerService>, PeerError> {
        let cut = self.network.cut.lock();
        let service = self.network.services.lock().get(to).and_then(Weak::upgrade);
        let connected = !cut.contains(to) && !cut.contains(&self.from);
        service
            .filter(|_| connected)
            .ok_or_else(|| PeerError::Unreachable { server: to.into(), reason: "cut off".into() })
    }
}

impl Peers for Way {
    fn deliver_to(&self, service: Weak<dyn PeerService>) {
        self.network.services.lock().insert(self.from.clone(), service);
    }

    fn send(&self, to: &str, frame: Bytes) {
        if let Ok(service) = self.reach(to) {
            let from = self.from.clone();
            self.runtime.spawn(async move { service.receive(&from, frame) });
        }
    }

    fn call(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        let to = to.to_owned();
        async move {
            let answer = self.reach(&to)?.answer(&self.from, request).await;
            answer.map_err(|reason| PeerError::Refused { server: to, reason })
        }
        .boxed()
    }

    fn stream(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Pieces, PeerError>> {
        let to = to.to_owned();
        async move {
            let pieces = self.reach(&to)?.pieces(&self.from, request).await;
            let pieces = pieces.map_err(|reason| PeerError::Refused { server: to, reason })?;
            Ok(pieces.map(Ok).boxed())
        }
        .boxed()
    }
}

async fn start(network: &Arc<Network>, dir: &Path, name: &str) -> Partitions {
    let store = match name {
        "s1" => StoreConfig::Embedded { partitions: 2 },
        _ => {
            let server = |name: &str| ServerInfo { name: name.into(), ..ServerInfo::default() };
            StoreConfig::Join { servers: vec![server("s1"), server("s2")] }
        }
    };
    let mut config = PartitionsConfig::alone(dir.join(name), store);
    config.server = name.into();
    config.address = format!("{name}:1");
    config.peers = Arc::new(Way {
        network: network.clone(),
        from: name.into(),
        runtime: tokio::runtime::Handle::current(),
    });
    Partitions::open_with(config, options()).await.unwrap()
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !check().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: never");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn servers(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Writes again until somebody decides.
async fn put_soon(partitions: &Partitions, name: &str, key: &str, text: &str) {
    until("a write", async || {
        let store = partitions.store(name).unwrap();
        let write = crate::contract::write(key, Expect::Anything, crate::contract::value(text));
        store.write(write).await.is_ok()
    })
    .await;
}

/// Changes the map, again until somebody decides.
async fn change_soon(
    partitions: &Partitions,
    change: impl Fn(&PartitionMap) -> Result<PartitionMap, MapError> + Send + Sync,
) {
    until("a change of the map", async || partitions.change_map(&change).await.is_ok()).await;
}

async fn count(partitions: &Partitions, name: &str) -> usize {
    let store = partitions.store(name).unwrap();
    let begun = Instant::now();
    loop {
        match store.read(&pods(), ReadAt::Latest).await {
            Ok(snapshot) => return snapshot.range("", None).count(),
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_join_take_on_partitions_and_survive_one() {
    let (network, dir) = (Arc::new(Network::default()), tempfile::tempdir().unwrap());
    let s1 = start(&network, dir.path(), "s1").await;
    put(&*s1.store("p1").unwrap(), "acme/ns/a", "1").await;
    let s2 = start(&network, dir.path(), "s2").await;
    let s3 = start(&network, dir.path(), "s3").await;
    until("all are known", async || s1.servers().len() == 3).await;
    // What is elsewhere is read and written from everywhere.
    assert!(!s2.is_local("p1"));
    assert_eq!(count(&s2, "p1").await, 1);
    put_soon(&s3, "p1", "acme/ns/b", "1").await;
    assert_eq!(count(&s1, "p1").await, 2);

    for name in [META, "p1", "p2"] {
        let all = servers(&["s1", "s2", "s3"]);
        change_soon(&s2, |map| map.with_members(name, all.clone())).await;
    }
    for server in [&s1, &s2, &s3] {
        until("members are taken in", async || {
            [META, "p1", "p2"].iter().all(|name| server.is_local(name))
        })
        .await;
    }
    until("everybody says so", async || s3.servers().iter().all(|it| it.ready.len() == 3)).await;
    assert_eq!(count(&s3, "p1").await, 2);

    // One dies; the others go on.
    network.cut.lock().insert("s1".into());
    put_soon(&s2, "p1", "acme/ns/c", "1").await;
    put_soon(&s3, "p2", "acme/ns/d", "1").await;
    change_soon(&s2, |map| map.with_draining("p2", true)?.with_draining("p2", false)).await;
    drop(s1.shutdown().await);
    drop(s1);
    network.cut.lock().clear();
    // It comes back on its directory and has it all again.
    let s1 = start(&network, dir.path(), "s1").await;
    assert_eq!(count(&s1, "p1").await, 3);
    assert_eq!(count(&s1, "p2").await, 1);

    // An operator takes one out for good.
    network.cut.lock().insert("s3".into());
    change_soon(&s1, |map| match map.server("s3") {
        Some(_) => map.without_server("s3"),
        None => Ok(map.clone()),
    })
    .await;
    until("the members follow", async || {
        let embedded = s1.shared.embedded.as_ref().unwrap();
        ["meta", "p1", "p2"]
            .iter()
            .all(|name| embedded.members(name).is_some_and(|it| it.len() == 2))
    })
    .await;
    put_soon(&s2, "p1", "acme/ns/e", "1").await;
    for server in [s1, s2, s3] {
        drop(server.shutdown().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_to_another_server() {
    let (network, dir) = (Arc::new(Network::default()), tempfile::tempdir().unwrap());
    let s1 = start(&network, dir.path(), "s1").await;
    let s2 = start(&network, dir.path(), "s2").await;
    s1.change_map(|map| map.with_partition(PartitionInfo::embedded("q1", &["s2"]))).await.unwrap();
    until("the new partition is there", async || s2.is_local("q1") && s1.store("q1").is_some())
        .await;
    let home = s1.place(&tenant("acme")).partition.to_string();
    for n in 0..100 {
        put(&*s1.store(&home).unwrap(), &format!("acme/ns/o{n}"), "1").await;
    }
    for (to, from) in [("q1", home.as_str()), (home.as_str(), "q1")] {
        let it = s1.start_move(None, Scope::Tenant("acme".into()), to).await.unwrap();
        until("it has moved", async || {
            let moves = s1.moves().await.unwrap_or_default();
            moves.iter().any(|(found, _)| found.id == it.id && found.phase == Phase::Done)
        })
        .await;
        for server in [&s1, &s2] {
            until("everybody knows", async || &*server.place(&tenant("acme")).partition == to)
                .await;
            assert_eq!(count(server, to).await, 100);
            assert_eq!(count(server, from).await, 0);
        }
        put_soon(&s1, to, "acme/ns/o1", "2").await;
        put_soon(&s2, to, "acme/ns/o2", "2").await;
    }
    // The whole partition leaves again.
    s1.change_map(|map| map.without_partition("q1")).await.unwrap();
    until("it is gone", async || s2.store("q1").is_none()).await;
    drop(s2.shutdown().await);
    drop(s1.shutdown().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_server_is_refused() {
    let (network, dir) = (Arc::new(Network::default()), tempfile::tempdir().unwrap());
    let s1 = start(&network, dir.path(), "s1").await;
    s1.shutdown().await.unwrap();
    drop(s1);
    let store = StoreConfig::Embedded { partitions: 2 };
    let mut config = PartitionsConfig::alone(dir.path().join("s1"), store);
    config.server = "s9".into();
    let error = Partitions::open_with(config, options()).await.unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
}
