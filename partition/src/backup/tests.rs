//! Archives of real partitions: whole, damaged, and restored to other partitions.

use std::io::Cursor;

use bytes::Bytes;

use super::*;
use crate::{
    embedded::tests::options,
    map::ShardKey,
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    store::{Change, Collection, Durability, Expect, ReadAt, Write},
};

async fn open(partitions: u16) -> (Partitions, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig::Embedded { partitions };
    let config = PartitionsConfig::alone(dir.path().into(), store);
    (Partitions::open_with(config, options()).await.unwrap(), dir)
}

fn pods() -> Collection {
    Collection::new("", "pods")
}

async fn put(partitions: &Partitions, tenant: &str, name: &str, n: usize) {
    let key = format!("{tenant}/ns/{name}");
    let json = format!(r#"{{"metadata":{{"resourceVersion":"","name":"{name}"}},"n":{n}}}"#);
    let write = Write {
        collection: pods(),
        key: key.as_str().into(),
        expect: Expect::Anything,
        change: Change::Put(Bytes::from(json)),
        durability: Durability::Durable,
        by_move: None,
        within: None,
        epoch: None,
    };
    partitions.place(&ShardKey::of("core/pods", &key)).store.write(write).await.unwrap();
}

const TENANTS: [&str; 4] = ["acme", "globex", "umbrella", "initech"];

async fn fill(partitions: &Partitions, objects: usize) {
    for tenant in TENANTS {
        for n in 0..objects {
            put(partitions, tenant, &format!("o{n:04}"), n).await;
        }
    }
}

async fn archive(partitions: &Partitions) -> Vec<u8> {
    let mut bytes = Vec::new();
    take(partitions, |piece| {
        bytes.extend_from_slice(&piece);
        std::future::ready(Ok(()))
    })
    .await
    .unwrap();
    bytes
}

/// All objects: key, content without its revision, revision.
async fn all(partitions: &Partitions) -> Vec<(String, serde_json::Value, u64)> {
    let mut all = Vec::new();
    for name in partitions.names() {
        let store = partitions.store(&name).unwrap();
        let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
        for (key, entry) in snapshot.range("", None) {
            let mut value: serde_json::Value =
                serde_json::from_slice(&entry.value.bytes()).unwrap();
            value["metadata"]["resourceVersion"] = "".into();
            all.push((key.to_string(), value, entry.modified.0));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_on_other_partitions() {
    let (from, _dir) = open(2).await;
    from.pin("acme", Some("p2")).await.unwrap();
    fill(&from, 150).await;
    let bytes = archive(&from).await;
    let summary = check(Cursor::new(&bytes)).unwrap();
    assert_eq!(summary.objects(), 600);
    assert_eq!(summary.bytes, bytes.len() as u64);
    let before = all(&from).await;

    let (to, _dir) = open(3).await;
    let mut told = 0;
    restore(Cursor::new(&bytes), &to, |written| told = written).await.unwrap();
    assert_eq!(told, 600);
    let after = all(&to).await;
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.0, &before.1), (&after.0, &after.1));
        assert!(before.2 < after.2, "{} went back from {} to {}", before.0, before.2, after.2);
    }
    assert_eq!(to.map().pins()["acme"], "p2");
    // It is no longer empty.
    let again = restore(Cursor::new(&bytes), &to, |_| {}).await.unwrap_err();
    assert!(matches!(again, RestoreError::NotEmpty { .. }), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_nothing_is_written() {
    let (from, _dir) = open(2).await;
    fill(&from, 40).await;
    let bytes = archive(&from).await;
    let (to, _dir) = open(1).await;
    // Every length that is not the whole.
    for end in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let error = check(Cursor::new(&bytes[..end])).unwrap_err();
        assert!(matches!(error, ArchiveError::Short { .. } | ArchiveError::NotOne), "{error}");
    }
    for at in (0..bytes.len()).step_by(61) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let error = restore(Cursor::new(&damaged), &to, |_| {}).await.unwrap_err();
        assert!(matches!(error, RestoreError::Archive(_)), "byte {at}: {error}");
        if 12 < at {
            let text = error.to_string();
            assert!(text.contains("block") || text.contains("ends at byte"), "{text}");
        }
    }
    assert!(all(&to).await.is_empty());
    let other = check(Cursor::new(b"PK\x03\x04 something else altogether")).unwrap_err();
    assert_eq!(other.to_string(), "this is no backup");
}

/// Each writer writes its own key to one value everywhere, so that a cut shows either.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_taken_at_one_revision() {
    let (from, _dir) = open(1).await;
    put(&from, "acme", "first", 0).await;
    put(&from, "acme", "second", 0).await;
    let from = std::sync::Arc::new(from);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let (from, stop) = (from.clone(), stop.clone());
        async move {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                put(&from, "acme", "first", n).await;
                put(&from, "acme", "second", n).await;
            }
            n
        }
    });
    for _ in 0..20 {
        let bytes = archive(&from).await;
        let (to, _dir) = open(1).await;
        restore(Cursor::new(&bytes), &to, |_| {}).await.unwrap();
        let all = all(&to).await;
        let [first, second] = [0, 1].map(|at| all[at].1["n"].as_u64().unwrap());
        assert!(first == second || first == second + 1, "{first} and {second}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(0 < writer.await.unwrap());
}

/// Of a tenant that moves there is everything, once, whenever the backup is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_during_moves_has_everything_once() {
    let (from, _dir) = open(2).await;
    fill(&from, 200).await;
    let from = std::sync::Arc::new(from);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mover = tokio::spawn({
        let (from, stop) = (from.clone(), stop.clone());
        async move {
            let mut moves = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let to = if moves % 2 == 0 { "p1" } else { "p2" };
                from.pin("acme", Some(to)).await.unwrap();
                moves += 1;
            }
            moves
        }
    });
    for _ in 0..15 {
        let bytes = archive(&from).await;
        let (to, _dir) = open(2).await;
        restore(Cursor::new(&bytes), &to, |_| {}).await.unwrap();
        let all = all(&to).await;
        assert_eq!(all.len(), 800);
        assert!(all.windows(2).all(|two| two[0].0 < two[1].0), "something is there twice");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(2 < mover.await.unwrap(), "nothing moved");
}
