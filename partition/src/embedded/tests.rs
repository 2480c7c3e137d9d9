//! The embedded backend as its callers see it.

pub(crate) mod cluster;
mod crash;
mod limited;
mod members;
mod three;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use super::{Embedded, EmbeddedOptions, EmbeddedStore, Identity};
use crate::{
    contract::{contract_tests, pods, put, stored, value, write},
    error::OpenError,
    peers::Nobody,
    store::{Durability, Expect, ReadAt, Revision, Store, StoreError, Write},
    wal::WalOptions,
};

/// Small files, so that tests are quick and cross from one segment to the next.
pub(crate) fn options() -> EmbeddedOptions {
    let wal =
        WalOptions { segment_bytes: 4 << 20, batch_bytes: 256 << 10, ..WalOptions::default() };
    EmbeddedOptions { wal, ..EmbeddedOptions::default() }
}

pub(crate) fn identity() -> Identity {
    Identity { cluster: "test".into(), server: "s1".into(), member: 1 }
}

/// A server on its own with partition `p1`, made if it is not there.
pub(crate) async fn open(
    dir: &Path,
    options: &EmbeddedOptions,
) -> Result<Arc<Embedded>, OpenError> {
    open_with(dir, options, &["p1"]).await
}

async fn open_with(
    dir: &Path,
    options: &EmbeddedOptions,
    names: &[&str],
) -> Result<Arc<Embedded>, OpenError> {
    let (dir, options) = (dir.to_owned(), options.clone());
    let open = move || Embedded::open(&dir, &identity(), Arc::new(Nobody), &options);
    let embedded = tokio::task::spawn_blocking(open).await.unwrap()?;
    for name in names {
        embedded.create(name, &BTreeMap::from([(1, "s1".to_owned())])).await?;
    }
    Ok(embedded)
}

pub(crate) fn p1(embedded: &Embedded) -> Arc<EmbeddedStore> {
    embedded.store("p1").unwrap()
}

async fn empty() -> (Arc<dyn Store>, (Arc<Embedded>, tempfile::TempDir)) {
    let dir = tempfile::tempdir().unwrap();
    let embedded = open(dir.path(), &options()).await.unwrap();
    (p1(&embedded), (embedded, dir))
}

contract_tests!(empty);

#[tokio::test(flavor = "multi_thread")]
async fn carries_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = Revision(0);
    for round in 0..4 {
        let embedded = open(dir.path(), &options()).await.unwrap();
        let store = p1(&embedded);
        assert_eq!(store.progress(), last);
        let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!(snapshot.len(), round * 10);
        for n in 0..10 {
            last = put(&*store, &format!("{round}-{n}"), "x").await.revision;
        }
        if round == 2 {
            store.checkpoint().await.unwrap();
        }
        embedded.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = open(dir.path(), &options()).await.unwrap();
    let first = put(&*p1(&embedded), "a", "1").await.revision;
    let second = put(&*p1(&embedded), "a", "2").await.revision;
    embedded.shutdown().await.unwrap();
    let embedded = open(dir.path(), &options()).await.unwrap();
    let mut watcher = p1(&embedded).watch(&pods(), first).unwrap();
    assert_eq!(watcher.next().await.unwrap()[0].revision, second);
    embedded.shutdown().await.unwrap();
}

/// Ends the partition, but does not close the log; opens it again.
async fn end_uncleanly(dir: &Path, embedded: Arc<Embedded>) -> Arc<Embedded> {
    p1(&embedded).shutdown().await.unwrap();
    drop(embedded);
    reopen(dir).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_end_leaves_out_revisions_that_may_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = open(dir.path(), &options()).await.unwrap();
    let relaxed = write("a", Expect::Anything, value("1"));
    let relaxed = Write { durability: Durability::Relaxed, ..relaxed };
    let last = p1(&embedded).write(relaxed).await.unwrap().revision;
    let embedded = end_uncleanly(dir.path(), embedded).await;
    let store = p1(&embedded);
    let lost = store.watch(&pods(), Revision(last.0 + 1));
    assert!(matches!(lost, Err(StoreError::Compacted { .. })));
    let next = put(&*store, "a", "2").await.revision;
    assert!(last.0 + 1 < next.0 && next.0 <= last.0 + super::reserve::MOST, "{next}");
    let mut watcher = store.watch(&pods(), last).unwrap();
    assert_eq!(watcher.next().await.unwrap()[0].revision, next);
    embedded.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_end_leaves_out_nothing_that_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut embedded = open(dir.path(), &options()).await.unwrap();
    for n in 1..=3 {
        let revision = put(&*p1(&embedded), "a", &n.to_string()).await.revision;
        assert_eq!(revision, Revision(n));
        embedded = end_uncleanly(dir.path(), embedded).await;
    }
    embedded.shutdown().await.unwrap();
}

/// Opens a directory whose former user may still be letting go of it.
async fn reopen(dir: &Path) -> Arc<Embedded> {
    loop {
        match open(dir, &options()).await {
            Ok(embedded) => return embedded,
            Err(OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_a_write_is_one_flush() {
    let (store, (embedded, _dir)) = empty().await;
    put(&*store, "warm", "up").await;
    let before = embedded.log_counts();
    for n in 0..20 {
        put(&*store, "a", &n.to_string()).await;
    }
    let after = embedded.log_counts();
    assert_eq!((after.batches - before.batches, after.flushes - before.flushes), (20, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_share_a_flush() {
    let (store, (embedded, _dir)) = empty().await;
    let before = embedded.log_counts();
    let writes = (0..2_000).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { put(&*store, &format!("k{n}"), "x").await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    let after = embedded.log_counts();
    assert_eq!(after.batches - before.batches, after.flushes - before.flushes);
    assert!(after.flushes - before.flushes < 1_000, "{:?}", after);
}

#[tokio::test(flavor = "multi_thread")]
async fn relaxed_writes_do_not_wait_for_the_disk() {
    let (store, (embedded, _dir)) = empty().await;
    let before = embedded.log_counts().flushes;
    for n in 0..50 {
        let write = write("lease", Expect::Anything, value(&n.to_string()));
        store.write(Write { durability: Durability::Relaxed, ..write }).await.unwrap();
    }
    assert!(embedded.log_counts().flushes - before <= 1);
    // On disk within a second, with nobody asking.
    let flushed = async {
        while embedded.log_counts().flushes == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), flushed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_let_go_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.checkpoint.min_log_bytes = 2 << 20;
    let embedded = open(dir.path(), &options).await.unwrap();
    let store = p1(&embedded);
    let value = crate::store::Change::Put(bytes::Bytes::from(vec![b'x'; 100 << 10]));
    let mut last = Revision(0);
    for n in 0..400 {
        let write = write(&format!("k{}", n % 8), Expect::Anything, value.clone());
        last = store.write(write).await.unwrap().revision;
    }
    embedded.shutdown().await.unwrap();
    let log = std::fs::read_dir(dir.path().join("log")).unwrap().count();
    assert!(log <= 8, "{log} segments of 4 MiB are left after 40 MiB");
    let embedded = open(dir.path(), &options).await.unwrap();
    let snapshot = p1(&embedded).read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!((snapshot.len(), snapshot.revision()), (8, last));
    assert_eq!(snapshot.get("k7").unwrap().modified, last);
    embedded.shutdown().await.unwrap();
}

/// A partition that nobody writes to must not keep the log of all others from shrinking.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_partition_does_not_pin_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.checkpoint.min_log_bytes = 2 << 20;
    options.checkpoint.max_log_bytes = 16 << 20;
    let names = ["p1", "p2"];
    let embedded = open_with(dir.path(), &options, &names).await.unwrap();
    let [busy, idle] = names.map(|name| embedded.store(name).unwrap());
    let kept = put(&*idle, "a", "1").await;
    let value = crate::store::Change::Put(bytes::Bytes::from(vec![b'x'; 1 << 20]));
    for _ in 0..120 {
        let write = write("k", Expect::Anything, value.clone());
        busy.write(write).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    // Those that wait to be written again hold nothing.
    let log = || {
        let files = std::fs::read_dir(dir.path().join("log")).unwrap();
        files.filter(|it| it.as_ref().unwrap().path().extension() != Some("old".as_ref())).count()
    };
    let shrunk = async {
        // The idle one takes its turns only once in a while.
        while 16 < log() {
            busy.write(write("k", Expect::Anything, value.clone())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let shrunk = tokio::time::timeout(Duration::from_secs(30), shrunk).await;
    assert!(shrunk.is_ok(), "{} segments of 4 MiB are left after 120 MiB", log());
    embedded.shutdown().await.unwrap();
    let embedded = open_with(dir.path(), &options, &names).await.unwrap();
    let snapshot = embedded.store("p2").unwrap().read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(snapshot.get("a").unwrap().value, stored("1", kept.revision));
    embedded.shutdown().await.unwrap();
}

/// Clocks are set back; what is decided here must not notice.
#[test]
fn nothing_here_asks_what_time_it_is() {
    fn visit(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            if text.contains(&format!("System{}", "Time")) {
                found.push(path.display().to_string());
            }
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for part in ["embedded", "wal", "state"] {
        visit(&source.join(part), &mut found);
        let text = std::fs::read_to_string(source.join(format!("{part}.rs"))).unwrap();
        assert!(!text.contains(&format!("System{}", "Time")), "{part}.rs");
    }
    assert!(found.is_empty(), "{found:?}");
}
