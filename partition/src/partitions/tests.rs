//! Opening, closing and pinning, on both backends.

mod servers;

use std::path::PathBuf;

use super::*;
use crate::{
    contract::{pods, put},
    embedded::tests::options,
    etcd::tests::Server,
    map::PartitionInfo,
    moves::MoveError,
    store::{Expect, ReadAt, Revision},
};

async fn open(dir: &std::path::Path, count: u16) -> Result<Partitions, OpenError> {
    let store = StoreConfig::Embedded { partitions: count };
    Partitions::open_with(PartitionsConfig::alone(dir.into(), store), options()).await
}

fn tenant(name: &str) -> ShardKey {
    ShardKey::Tenant(name.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_have_revisions_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let partitions = open(dir.path(), 2).await.unwrap();
    assert_eq!(partitions.names(), ["p1", "p2"]);
    let [one, two] = ["p1", "p2"].map(|name| partitions.store(name).unwrap());
    put(&*one, "a", "1").await;
    put(&*one, "a", "2").await;
    assert_eq!(put(&*two, "a", "1").await.revision, Revision(1));
    assert!(partitions.store("p3").is_none());
    partitions.shutdown().await.unwrap();

    let partitions = open(dir.path(), 2).await.unwrap();
    let read = partitions.store("p1").unwrap().read(&pods(), ReadAt::Latest).await;
    assert_eq!(read.unwrap().revision(), Revision(2));
    partitions.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_find_their_partition_and_pins_survive() {
    let dir = tempfile::tempdir().unwrap();
    let partitions = open(dir.path(), 3).await.unwrap();
    let (home, _) = partitions.store_for(&tenant("acme"));
    assert_eq!(home, partitions.map().owner(&tenant("acme")));
    let other = partitions.names().iter().find(|name| **name != home).unwrap().clone();
    partitions.pin("acme", Some(&other)).await.unwrap();
    assert_eq!(partitions.store_for(&tenant("acme")).0, other);
    assert!(matches!(partitions.pin("acme", Some("p9")).await, Err(MoveError::Map(_))));
    partitions.shutdown().await.unwrap();

    let partitions = open(dir.path(), 3).await.unwrap();
    assert_eq!(partitions.store_for(&tenant("acme")).0, other);
    assert!(1 < partitions.map().epoch());
    partitions.pin("acme", None).await.unwrap();
    assert_ne!(partitions.store_for(&tenant("acme")).0, other);
    partitions.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_in_etcd() {
    let servers = [Server::start(), Server::start()];
    let config = |names: &[&str]| {
        let partitions = names
            .iter()
            .zip(&servers)
            .map(|(name, server)| EtcdPartition { name: (*name).into(), etcd: server.config() });
        let store = StoreConfig::Etcd { partitions: partitions.collect() };
        PartitionsConfig::alone(PathBuf::new(), store)
    };
    let partitions = Partitions::open(config(&["east", "west"])).await.unwrap();
    let home = partitions.store_for(&tenant("acme")).0.to_owned();
    let other = partitions.names().iter().find(|name| **name != home).unwrap().clone();
    partitions.pin("acme", Some(&other)).await.unwrap();
    let (_, store) = partitions.store_for(&tenant("acme"));
    put(&*store, "a", "1").await;
    partitions.shutdown().await.unwrap();

    let partitions = Partitions::open(config(&["east", "west"])).await.unwrap();
    let (name, store) = partitions.store_for(&tenant("acme"));
    assert_eq!(name, other);
    assert_eq!(store.read(&pods(), ReadAt::Latest).await.unwrap().len(), 1);
    partitions.shutdown().await.unwrap();

    // What is not named any more is found by the map.
    let partitions = Partitions::open(config(&["east"])).await.unwrap();
    assert_eq!(partitions.store_for(&tenant("acme")).0, other);
    partitions.shutdown().await.unwrap();
}

/// Pins and moves are in the map: one that is lost is never made up anew.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_lost_the_map_is_refused() {
    let (dir, servers) = (tempfile::tempdir().unwrap(), [Server::start(), Server::start()]);
    let open = async |server: &Server| {
        let partitions = vec![EtcdPartition { name: "east".into(), etcd: server.config() }];
        let store = StoreConfig::Etcd { partitions };
        Partitions::open(PartitionsConfig::alone(dir.path().into(), store)).await
    };
    open(&servers[0]).await.unwrap().shutdown().await.unwrap();
    let refused = open(&servers[1]).await;
    assert!(matches!(refused, Err(OpenError::EmptyEtcd { .. })), "{refused:?}");
    open(&servers[0]).await.unwrap().shutdown().await.unwrap();
}

#[test]
fn etcds_on_the_command_line() {
    let text = "east=http://a:2379,http://b:2379;west=https://c:2379";
    let StoreConfig::Etcd { partitions } = StoreConfig::parse_etcd(text).unwrap() else {
        panic!("not etcd");
    };
    let found: Vec<_> =
        partitions.iter().map(|p| (p.name.as_str(), p.etcd.endpoints.len())).collect();
    assert_eq!(found, [("east", 2), ("west", 1)]);
    for wrong in ["", "east", "east=", "=http://a", "east=a:2379", "east=http://a;"] {
        assert!(StoreConfig::parse_etcd(wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn two_partitions_at_one_url_are_refused() {
    let store = StoreConfig::parse_etcd("a=http://x:1;b=http://x:1/").unwrap();
    let opened = Partitions::open(PartitionsConfig::alone(PathBuf::new(), store)).await;
    assert!(matches!(opened, Err(OpenError::Config { .. })), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_partitions_come_later_and_fewer_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), 2).await.unwrap().shutdown().await.unwrap();
    let partitions = open(dir.path(), 3).await.unwrap();
    assert_eq!(partitions.names(), ["p1", "p2", "p3"]);
    assert_eq!(partitions.map().slots_of("p3"), 0);
    put(&*partitions.store("p3").unwrap(), "a", "1").await;
    partitions.shutdown().await.unwrap();
    let error = open(dir.path(), 2).await.unwrap_err();
    assert!(matches!(error, OpenError::Partitions { .. }), "{error}");
    assert!(error.to_string().contains("drain"), "{error}");
    // As many as there are, whoever does not care.
    let partitions = open(dir.path(), 0).await.unwrap();
    assert_eq!(partitions.names().len(), 3);
    let read = partitions.store("p3").unwrap().read(&pods(), ReadAt::Latest).await;
    assert_eq!(read.unwrap().len(), 1);
    partitions.shutdown().await.unwrap();
}

/// Under two URLs that cannot be told to be the same one.
#[tokio::test(flavor = "multi_thread")]
async fn two_partitions_in_one_etcd_are_refused() {
    let server = Server::start();
    let one = server.config();
    let two = one.endpoints.iter().map(|url| url.replace("127.0.0.1", "localhost")).collect();
    let partition = |name: &str, etcd| EtcdPartition { name: name.into(), etcd };
    let two = crate::etcd::EtcdConfig { endpoints: two, ..one.clone() };
    let store = StoreConfig::Etcd { partitions: vec![partition("a", one), partition("b", two)] };
    let opened = Partitions::open(PartitionsConfig::alone(PathBuf::new(), store)).await;
    assert!(matches!(opened, Err(OpenError::ForeignEtcd { .. })), "{opened:?}");
}

/// Its tenants hear that it is away; those of others notice nothing, at the start and later.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_down_stops_its_tenants_only() {
    let mut servers = [Server::start(), Server::start()];
    let dir = tempfile::tempdir().unwrap();
    let config = |servers: &[Server; 2]| {
        let names = ["east", "west"].iter().zip(servers);
        let partition = |(name, server): (&&str, &Server)| EtcdPartition {
            name: (*name).into(),
            etcd: server.config(),
        };
        let store = StoreConfig::Etcd { partitions: names.map(partition).collect() };
        PartitionsConfig::alone(dir.path().into(), store)
    };
    let partitions = Partitions::open(config(&servers)).await.unwrap();
    let (east, west) = (partitions.store("east").unwrap(), partitions.store("west").unwrap());
    put(&*west, "a", "1").await;
    servers[1].kill();
    let begun = std::time::Instant::now();
    while west.read(&pods(), ReadAt::Latest).await.is_ok() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }
    put(&*east, "a", "1").await;
    partitions.shutdown().await.unwrap();

    // It is not there at a start either, and comes later.
    let partitions = Partitions::open(config(&servers)).await.unwrap();
    put(&*partitions.store("east").unwrap(), "a", "2").await;
    let read = partitions.store("west").unwrap().read(&pods(), ReadAt::Latest).await;
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
    servers[1].spawn();
    let begun = std::time::Instant::now();
    while partitions.store("west").unwrap().read(&pods(), ReadAt::Latest).await.is_err() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(40));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    partitions.shutdown().await.unwrap();
}
