//! The suite that every backend of [`Store`] must pass, on an empty store of its own per test.

pub(crate) mod limited;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;

pub(crate) use self::limited::{
    limits_are_kept, limits_are_of_bytes_kinds_and_namespaces, many_at_the_limit,
};

use crate::{
    epochs::{self, Epoch},
    snapshot::Entry,
    store::{
        Change, Collection, Committed, Durability, Expect, ReadAt, Revision, Store, StoreError,
        Write,
    },
    watch::Event,
};

/// Makes one test of each function of the suite. `$open` is an async function that gives an
/// empty store and something to keep until the test is over.
macro_rules! contract_tests {
    ($open:path) => {
        contract_tests!($open;
            a_create_needs_absence, an_update_needs_its_revision, a_delete_needs_its_revision,
            present_and_anything, revisions_grow, a_value_carries_its_revision,
            keys_are_apart, snapshots_stay, reads_an_exact_revision, compacted_history_is_gone,
            a_future_revision_is_awaited, a_watch_starts_in_the_past, a_watch_starts_in_the_future,
            a_watch_knows_what_was_before, a_watch_reports_progress,
            watches_have_no_gap_under_load, too_large_is_refused, a_counter_by_many,
            latest_sees_what_was_acknowledged, relaxed_writes_keep_their_order,
            collections_are_those_with_values, stats_count, a_shut_down_store_says_so,
            raised_revisions_stay_above, fences_hold_what_moves, limits_are_kept,
            limits_are_of_bytes_kinds_and_namespaces, many_at_the_limit,
            epochs_refuse_who_was_replaced, several_are_judged_each_by_itself,
        );
    };
    ($open:path; $($test:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (store, _keep) = $open().await;
                crate::contract::$test(store).await;
            }
        )*
    };
}
pub(crate) use contract_tests;

pub(crate) fn pods() -> Collection {
    Collection::new("", "pods")
}

/// A durable write of a pod.
pub(crate) fn write(key: &str, expect: Expect, change: Change) -> Write {
    let durability = Durability::Durable;
    Write {
        collection: pods(),
        key: key.into(),
        expect,
        change,
        durability,
        by_move: None,
        within: None,
        epoch: None,
    }
}

pub(crate) fn value(text: &str) -> Change {
    let json = format!(r#"{{"kind":"Pod","metadata":{{"resourceVersion":"","name":"{text}"}}}}"#);
    Change::Put(Bytes::from(json))
}

/// What [`value`] becomes when it is stored.
pub(crate) fn stored(text: &str, revision: Revision) -> Bytes {
    let json = format!(
        r#"{{"kind":"Pod","metadata":{{"resourceVersion":"{revision}","name":"{text}"}}}}"#
    );
    Bytes::from(json)
}

pub(crate) async fn put(store: &dyn Store, key: &str, text: &str) -> Committed {
    store.write(write(key, Expect::Anything, value(text))).await.unwrap()
}

async fn latest(store: &dyn Store) -> BTreeMap<String, Bytes> {
    let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
    snapshot
        .range("", None)
        .map(|(key, entry)| (key.to_string(), entry.value.bytes().into_owned()))
        .collect()
}

#[track_caller]
fn conflict(outcome: Result<Committed, StoreError>) -> Option<Entry> {
    match outcome {
        Err(StoreError::Conflict { found, .. }) => found,
        other => panic!("expected a conflict, not {other:?}"),
    }
}

pub(crate) async fn a_create_needs_absence(store: Arc<dyn Store>) {
    let created = store.write(write("a", Expect::Absent, value("1"))).await.unwrap();
    assert_eq!(created.entry.modified, created.revision);
    let again = store.write(write("a", Expect::Absent, value("2"))).await;
    assert_eq!(conflict(again), Some(created.entry.clone()));
    let deleted = store.write(write("a", Expect::Present, Change::Delete)).await.unwrap();
    let anew = store.write(write("a", Expect::Absent, value("3"))).await.unwrap();
    assert!(created.revision < deleted.revision && deleted.revision < anew.revision);
}

pub(crate) async fn an_update_needs_its_revision(store: Arc<dyn Store>) {
    let missing = store.write(write("a", Expect::At(Revision(1)), value("0"))).await;
    assert_eq!(conflict(missing), None);
    let first = put(&*store, "a", "1").await;
    let second = store.write(write("a", Expect::At(first.revision), value("2"))).await.unwrap();
    let stale = store.write(write("a", Expect::At(first.revision), value("3"))).await;
    assert_eq!(conflict(stale), Some(second.entry.clone()));
    assert_eq!(latest(&*store).await["a"], stored("2", second.revision));
}

pub(crate) async fn a_delete_needs_its_revision(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await;
    let second = put(&*store, "a", "2").await;
    let stale = store.write(write("a", Expect::At(first.revision), Change::Delete)).await;
    assert_eq!(conflict(stale), Some(second.entry.clone()));
    let delete = write("a", Expect::At(second.revision), Change::Delete);
    let deleted = store.write(delete).await.unwrap();
    assert_eq!(deleted.entry.value, stored("2", deleted.revision));
    assert!(latest(&*store).await.is_empty());
    let again = store.write(write("a", Expect::At(second.revision), Change::Delete)).await;
    assert_eq!(conflict(again), None);
}

pub(crate) async fn present_and_anything(store: Arc<dyn Store>) {
    let update = store.write(write("a", Expect::Present, value("0"))).await;
    assert_eq!(conflict(update), None);
    // There is nothing to give back.
    let delete = store.write(write("a", Expect::Anything, Change::Delete)).await;
    assert_eq!(conflict(delete), None);
    store.write(write("a", Expect::Anything, value("1"))).await.unwrap();
    store.write(write("a", Expect::Anything, value("2"))).await.unwrap();
    let third = store.write(write("a", Expect::Present, value("3"))).await.unwrap();
    assert_eq!(latest(&*store).await["a"], stored("3", third.revision));
    store.write(write("a", Expect::Anything, Change::Delete)).await.unwrap();
    assert!(latest(&*store).await.is_empty());
}

pub(crate) async fn revisions_grow(store: Arc<dyn Store>) {
    let mut last = store.progress();
    for n in 0..20 {
        let committed = put(&*store, &format!("k{}", n % 3), "x").await;
        assert!(last < committed.revision);
        assert!(committed.revision <= store.progress());
        last = committed.revision;
    }
    // A refused write is no change.
    conflict(store.write(write("k0", Expect::Absent, value("y"))).await);
    let next = put(&*store, "k0", "z").await;
    assert!(last < next.revision);
}

pub(crate) async fn a_value_carries_its_revision(store: Arc<dyn Store>) {
    let committed = put(&*store, "a", "1").await;
    assert_eq!(committed.entry.value, stored("1", committed.revision));
    let plain = Change::Put(Bytes::from_static(b"no object at all"));
    let second = store.write(write("b", Expect::Absent, plain)).await.unwrap();
    let found = latest(&*store).await;
    assert_eq!(found["a"], stored("1", committed.revision));
    assert_eq!(found["b"], "no object at all");
    assert!(committed.revision < second.revision);
}

pub(crate) async fn keys_are_apart(store: Arc<dyn Store>) {
    for key in ["t/ns/a", "t/ns/b", "t/ns2/a", "u/ns/a", "t/ns"] {
        put(&*store, key, key).await;
    }
    let nodes = Collection::new("", "nodes");
    let other = Write { collection: nodes.clone(), ..write("t/ns/a", Expect::Absent, value("n")) };
    store.write(other).await.unwrap();
    let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
    let keys = |prefix: &str, start: Option<&str>| -> Vec<String> {
        snapshot.range(prefix, start).map(|(key, _)| key.to_string()).collect()
    };
    assert_eq!(keys("t/ns/", None), ["t/ns/a", "t/ns/b"]);
    assert_eq!(keys("t/ns/", Some("t/ns/b")), ["t/ns/b"]);
    assert_eq!(keys("t/", Some("t/ns/b")), ["t/ns/b", "t/ns2/a"]);
    assert_eq!(snapshot.len(), 5);
    assert_eq!(store.read(&nodes, ReadAt::Latest).await.unwrap().len(), 1);
}

pub(crate) async fn snapshots_stay(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await;
    let before = store.read(&pods(), ReadAt::Latest).await.unwrap();
    put(&*store, "a", "2").await;
    put(&*store, "b", "1").await;
    assert_eq!(before.len(), 1);
    assert_eq!(before.get("a").unwrap().value, stored("1", first.revision));
    assert!(before.revision() < store.read(&pods(), ReadAt::Latest).await.unwrap().revision());
}

pub(crate) async fn reads_an_exact_revision(store: Arc<dyn Store>) {
    let mut history = Vec::new();
    let mut expected = BTreeMap::new();
    for n in 0..30 {
        let key = format!("k{}", n % 4);
        if n % 7 == 6 && expected.contains_key(&key) {
            let deleted = store.write(write(&key, Expect::Present, Change::Delete)).await.unwrap();
            expected.remove(&key);
            history.push((deleted.revision, expected.clone()));
        } else {
            let committed = put(&*store, &key, &n.to_string()).await;
            expected.insert(key, committed.entry.value.into_bytes());
            history.push((committed.revision, expected.clone()));
        }
    }
    for (revision, expected) in history {
        let snapshot = store.read(&pods(), ReadAt::Exactly(revision)).await.unwrap();
        assert_eq!(snapshot.revision(), revision);
        let found: BTreeMap<_, _> = snapshot
            .range("", None)
            .map(|(key, entry)| (key.to_string(), entry.value.bytes().into_owned()))
            .collect();
        assert_eq!(found, expected);
    }
}

pub(crate) async fn compacted_history_is_gone(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await.revision;
    let second = put(&*store, "a", "2").await.revision;
    let third = put(&*store, "a", "3").await.revision;
    let mut behind = store.watch(&pods(), first).unwrap();
    store.compact(second).await.unwrap();
    let read = store.read(&pods(), ReadAt::Exactly(first)).await;
    assert!(matches!(read, Err(StoreError::Compacted { .. })), "{read:?}");
    assert!(matches!(store.watch(&pods(), first), Err(StoreError::Compacted { .. })));
    assert!(matches!(behind.next().await, Err(StoreError::Compacted { .. })));
    assert_eq!(latest(&*store).await["a"], stored("3", third));
    let mut rest = store.watch(&pods(), second).unwrap();
    assert_eq!(rest.next().await.unwrap()[0].revision, third);
    let future = store.compact(Revision(third.0 + 1_000)).await;
    assert!(matches!(future, Err(StoreError::Future { .. })), "{future:?}");
}

pub(crate) async fn a_future_revision_is_awaited(store: Arc<dyn Store>) {
    let now = put(&*store, "a", "1").await.revision;
    let next = Revision(now.0 + 1);
    let pods = pods();
    let (read, written) = tokio::join!(store.read(&pods, ReadAt::NotOlderThan(next)), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        put(&*store, "a", "2").await
    });
    let snapshot = read.unwrap();
    assert_eq!(snapshot.get("a").unwrap().modified, written.revision);
    let never = Revision(now.0 + 1_000_000);
    let read = store.read(&pods, ReadAt::NotOlderThan(never)).await;
    assert!(matches!(read, Err(StoreError::Future { .. })), "{read:?}");
}

async fn collect(watcher: &mut crate::watch::Watcher, count: usize) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    let all = async {
        while events.len() < count {
            events.extend(watcher.next().await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("changes are missing");
    events
}

pub(crate) async fn a_watch_starts_in_the_past(store: Arc<dyn Store>) {
    let mut revisions = Vec::new();
    for n in 0..5 {
        revisions.push(put(&*store, "a", &n.to_string()).await.revision);
    }
    let other = Write {
        collection: Collection::new("", "nodes"),
        ..write("n", Expect::Absent, value("n"))
    };
    store.write(other).await.unwrap();
    let mut watcher = store.watch(&pods(), revisions[1]).unwrap();
    let events = collect(&mut watcher, 3).await;
    let seen: Vec<_> = events.iter().map(|event| event.revision).collect();
    assert_eq!(seen, revisions[2..]);
    let waiting = tokio::time::timeout(Duration::from_millis(50), watcher.next()).await;
    assert!(waiting.is_err(), "a change of another collection was delivered");
    revisions.push(put(&*store, "a", "5").await.revision);
    assert_eq!(collect(&mut watcher, 1).await[0].revision, revisions[5]);
}

pub(crate) async fn a_watch_starts_in_the_future(store: Arc<dyn Store>) {
    let now = put(&*store, "a", "0").await.revision;
    let mut watcher = store.watch(&pods(), Revision(now.0 + 2)).unwrap();
    let mut last = now;
    for n in 0..4 {
        last = put(&*store, "a", &n.to_string()).await.revision;
    }
    let events = collect(&mut watcher, 1).await;
    assert!(Revision(now.0 + 2) < events[0].revision && events[0].revision <= last);
}

pub(crate) async fn a_watch_knows_what_was_before(store: Arc<dyn Store>) {
    let mut watcher = store.watch(&pods(), store.progress()).unwrap();
    let first = put(&*store, "a", "1").await;
    let second = put(&*store, "a", "2").await;
    let deleted = store.write(write("a", Expect::Present, Change::Delete)).await.unwrap();
    let events = collect(&mut watcher, 3).await;
    let before: Vec<_> = events.iter().map(|event| event.previous.clone()).collect();
    assert_eq!(before, [None, Some(first.entry.clone()), Some(second.entry.clone())]);
    let after: Vec<_> = events.iter().map(|event| (event.deleted, event.entry.clone())).collect();
    assert_eq!(after, [(false, first.entry), (false, second.entry), (true, deleted.entry.clone())]);
    assert_eq!(deleted.entry.value, stored("2", deleted.revision));
}

pub(crate) async fn a_watch_reports_progress(store: Arc<dyn Store>) {
    let start = put(&*store, "a", "1").await.revision;
    let mut watcher = store.watch(&pods(), start).unwrap();
    assert_eq!(watcher.progress().unwrap(), Some(start.max(store.progress())));
    let other = Write {
        collection: Collection::new("", "nodes"),
        ..write("n", Expect::Absent, value("n"))
    };
    let elsewhere = store.write(other).await.unwrap().revision;
    // At once where the partition is; a little later where it is only followed.
    let begun = std::time::Instant::now();
    while watcher.progress().unwrap().is_none_or(|revision| revision < elsewhere) {
        assert!(begun.elapsed() < Duration::from_secs(30), "no progress");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    put(&*store, "a", "2").await;
    assert_eq!(watcher.progress().unwrap(), None);
    collect(&mut watcher, 1).await;
    assert!(watcher.progress().unwrap().is_some());
}

pub(crate) async fn watches_have_no_gap_under_load(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const EACH: usize = 60;
    let start = store.progress();
    let mut watchers = Vec::new();
    for _ in 0..3 {
        let mut watcher = store.watch(&pods(), start).unwrap();
        watchers.push(tokio::spawn(async move { collect(&mut watcher, WRITERS * EACH).await }));
    }
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0..EACH {
                let committed = put(&*store, &format!("w{writer}"), &n.to_string()).await;
                acknowledged.push((committed.revision, committed.entry.value.into_bytes()));
            }
            acknowledged
        }));
    }
    let mut expected = Vec::new();
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    expected.sort();
    for watcher in watchers {
        let events = watcher.await.unwrap();
        let seen: Vec<_> = events
            .iter()
            .map(|event| (event.revision, event.entry.value.bytes().into_owned()))
            .collect();
        assert_eq!(seen, expected);
    }
}

pub(crate) async fn too_large_is_refused(store: Arc<dyn Store>) {
    let limit = 3 << 19;
    let big = Change::Put(Bytes::from(vec![b'x'; limit + 1]));
    let refused = store.write(write("a", Expect::Absent, big)).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    let key = "k".repeat(10_000);
    let refused = store.write(write(&key, Expect::Absent, value("1"))).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
    // What is a little smaller is taken, and read back whole.
    let fits = Bytes::from(vec![b'x'; 1 << 20]);
    store.write(write("a", Expect::Absent, Change::Put(fits.clone()))).await.unwrap();
    assert_eq!(latest(&*store).await["a"], fits);
}

pub(crate) async fn a_counter_by_many(store: Arc<dyn Store>) {
    const WRITERS: usize = 12;
    const EACH: usize = 25;
    let number = |entry: &Entry| -> usize {
        std::str::from_utf8(&entry.value.bytes()).unwrap().parse().unwrap()
    };
    let zero = Change::Put(Bytes::from_static(b"0"));
    store.write(write("counter", Expect::Absent, zero)).await.unwrap();
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            let mut entry = {
                let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
                snapshot.get("counter").unwrap().clone()
            };
            for _ in 0..EACH {
                loop {
                    let next = Change::Put(Bytes::from((number(&entry) + 1).to_string()));
                    match store.write(write("counter", Expect::At(entry.modified), next)).await {
                        Ok(committed) => {
                            entry = committed.entry;
                            break;
                        }
                        Err(StoreError::Conflict { found, .. }) => entry = found.unwrap(),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(number(snapshot.get("counter").unwrap()), WRITERS * EACH);
}

pub(crate) async fn latest_sees_what_was_acknowledged(store: Arc<dyn Store>) {
    for n in 0..50 {
        let committed = put(&*store, "a", &n.to_string()).await;
        let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!(snapshot.get("a").unwrap(), &committed.entry);
        assert!(committed.revision <= snapshot.revision());
    }
}

pub(crate) async fn relaxed_writes_keep_their_order(store: Arc<dyn Store>) {
    let mut watcher = store.watch(&pods(), store.progress()).unwrap();
    let mut expected = Vec::new();
    for n in 0..40 {
        let durability = if n % 4 == 3 { Durability::Durable } else { Durability::Relaxed };
        let write = Write { durability, ..write("a", Expect::Anything, value(&n.to_string())) };
        let committed = store.write(write).await.unwrap();
        let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!(snapshot.get("a").unwrap(), &committed.entry);
        expected.push(committed.revision);
    }
    let events = collect(&mut watcher, 40).await;
    assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), expected);
}

pub(crate) async fn collections_are_those_with_values(store: Arc<dyn Store>) {
    assert!(store.collections().await.unwrap().is_empty());
    for (group, resource) in [("apps", "deployments"), ("", "pods"), ("", "nodes")] {
        let collection = Collection::new(group, resource);
        let write = Write { collection, ..write("a", Expect::Absent, value("1")) };
        store.write(write).await.unwrap();
    }
    store.write(write("a", Expect::Present, Change::Delete)).await.unwrap();
    let expected = [Collection::new("apps", "deployments"), Collection::new("", "nodes")];
    assert_eq!(store.collections().await.unwrap(), expected);
}

pub(crate) async fn stats_count(store: Arc<dyn Store>) {
    let first = put(&*store, "a", "1").await;
    let second = put(&*store, "bb", "22").await;
    store.read(&pods(), ReadAt::Latest).await.unwrap();
    let stats = store.stats();
    let bytes = 3 + first.entry.value.len() + second.entry.value.len();
    assert_eq!((stats.objects, stats.bytes), (2, bytes as u64));
    assert!(second.revision <= stats.revision);
    assert_eq!(stats.unhealthy, None);
    assert!(!stats.leader.is_empty());
    for key in ["a", "bb"] {
        store.write(write(key, Expect::Present, Change::Delete)).await.unwrap();
    }
    store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!((store.stats().objects, store.stats().bytes), (0, 0));
}

pub(crate) async fn a_shut_down_store_says_so(store: Arc<dyn Store>) {
    let revision = put(&*store, "a", "1").await.revision;
    let mut watcher = store.watch(&pods(), revision).unwrap();
    store.shutdown().await.unwrap();
    let refused = store.write(write("a", Expect::Present, value("2"))).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    let refused = store.read(&pods(), ReadAt::Latest).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(matches!(watcher.next().await, Err(StoreError::Unavailable { .. })));
    store.shutdown().await.unwrap();
}

pub(crate) async fn raised_revisions_stay_above(store: Arc<dyn Store>) {
    let before = put(&*store, "a", "1").await;
    let mut watcher = store.watch(&pods(), before.revision).unwrap();
    for above in [1_000, 500, 1_000_000] {
        store.raise(Revision(above)).await.unwrap();
        let after = put(&*store, "b", "1").await;
        assert!(Revision(above) < after.revision, "{above}");
        assert_eq!(collect(&mut watcher, 1).await[0].revision, after.revision);
        let read = store.read(&pods(), ReadAt::Exactly(after.revision)).await.unwrap();
        assert_eq!(read.get("b").unwrap(), &after.entry);
        let stale = store.write(write("b", Expect::At(before.revision), value("2"))).await;
        assert_eq!(conflict(stale).unwrap(), after.entry);
        store.write(write("b", Expect::At(after.revision), value("2"))).await.unwrap();
        collect(&mut watcher, 1).await;
    }
    // What was there before is as it was.
    let read = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(read.get("a").unwrap(), &before.entry);
    store.write(write("a", Expect::At(before.revision), value("2"))).await.unwrap();
    let read = store.read(&pods(), ReadAt::Exactly(before.revision)).await.unwrap();
    assert_eq!(read.len(), 1);
    store.compact(Revision(900_000)).await.unwrap();
    assert!(store.watch(&pods(), Revision(899_999)).is_err());
}

pub(crate) async fn fences_hold_what_moves(store: Arc<dyn Store>) {
    use crate::{
        fences::{Fence, FenceState, TABLE, Table},
        map::{Scope, ShardKey},
    };
    let acme = ShardKey::Tenant("acme".into());
    let set = async |state: FenceState, token: u64| {
        let mut table = Table::default();
        let fence = Fence {
            move_id: "m".into(),
            scope: Scope::Tenant("acme".into()),
            state,
            token,
            since: Revision(0),
            other: "elsewhere".into(),
            other_at: None,
            moved: true,
        };
        table.claim(fence).unwrap();
        let json = Change::Put(serde_json::to_vec(&table).unwrap().into());
        let collection = crate::fences::collection();
        let write = Write { collection, ..write(TABLE, Expect::Anything, json) };
        store.write(write).await.unwrap().revision
    };
    let mine = |key: &str| write(key, Expect::Anything, value("1"));
    let by_move = |key: &str, token| Write { by_move: Some(token), ..mine(key) };
    let refused = async |write: Write| {
        let outcome = store.write(write).await;
        assert!(matches!(outcome, Err(StoreError::Moving { .. })), "{outcome:?}");
    };
    refused(by_move("acme/ns/a", 1)).await;
    put(&*store, "acme/ns/a", "1").await;
    put(&*store, "other/ns/a", "1").await;
    let start = store.progress();
    let all = store.watch(&pods(), start).unwrap();
    let mut others = all.scoped(ShardKey::Tenant("other".into())).unwrap();
    let mut scoped = store.watch(&pods(), start).unwrap().scoped(acme.clone()).unwrap();

    set(FenceState::Frozen, 1).await;
    refused(mine("acme/ns/a")).await;
    refused(by_move("acme/ns/a", 1)).await;
    let read = store.read(&pods(), ReadAt::Latest).await.unwrap();
    read.check(&acme).unwrap();
    assert!(read.get("acme/ns/a").is_some());
    let other = put(&*store, "other/ns/a", "2").await;

    set(FenceState::Closed, 2).await;
    refused(mine("acme/ns/b")).await;
    refused(by_move("acme/ns/a", 1)).await;
    let read = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert!(matches!(read.check(&acme), Err(StoreError::Moving { .. })));
    assert!(read.get("acme/ns/a").is_none() && read.range("", None).count() == 1);
    let ended = loop {
        if let Err(error) = scoped.next().await {
            break error;
        }
    };
    assert!(matches!(ended, StoreError::Compacted { .. }), "{ended:?}");
    let delete = Write { change: Change::Delete, ..by_move("acme/ns/a", 2) };
    store.write(delete).await.unwrap();

    set(FenceState::Importing, 3).await;
    refused(by_move("acme/ns/c", 2)).await;
    store.write(by_move("acme/ns/c", 3)).await.unwrap();
    let read = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert!(read.get("acme/ns/c").is_none());
    let open = set(FenceState::Open, 4).await;
    let read = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert!(read.get("acme/ns/c").is_some());
    read.check(&acme).unwrap();
    let watch = |after| store.watch(&pods(), after).unwrap().scoped(acme.clone());
    let gone = match watch(start) {
        Ok(mut watcher) => watcher.next().await.map(drop),
        Err(error) => Err(error),
    };
    assert!(matches!(gone, Err(StoreError::Compacted { .. })), "{gone:?}");
    watch(open).unwrap();
    put(&*store, "acme/ns/c", "2").await;
    let last = put(&*store, "other/ns/a", "3").await;
    // Of all that, whoever watches others heard only of them.
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let next = tokio::time::timeout(Duration::from_secs(30), others.next()).await;
        match next.expect("changes are missing") {
            Ok(events) => heard.extend(events),
            // A copy of the partition had to begin anew.
            Err(StoreError::Compacted { .. }) => return,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(heard[0].revision, other.revision);
    assert_eq!(heard[1].revision, last.revision);
}

pub(crate) async fn epochs_refuse_who_was_replaced(store: Arc<dyn Store>) {
    let of = |task: &str, number| Epoch { task: task.into(), number };
    let by = |number, key: &str, expect| Write {
        epoch: Some(of("t.1", number)),
        ..write(key, expect, value(&number.to_string()))
    };
    let refused = async |write: Write, told: u64| {
        let outcome = store.write(write).await;
        let Err(StoreError::Superseded { newest, .. }) = outcome else {
            panic!("expected to be refused, not {outcome:?}");
        };
        assert_eq!(newest, told);
    };
    refused(by(1, "a", Expect::Anything), 0).await;
    assert_eq!(epochs::raise(&*store, &[of("t.1", 1), of("t.2", 9)]).await.unwrap(), []);
    let first = store.write(by(1, "a", Expect::Absent)).await.unwrap();
    refused(by(2, "a", Expect::Anything), 1).await;
    assert_eq!(epochs::raise(&*store, &[of("t.1", 2)]).await.unwrap(), []);
    // Whatever else would be said of the write: it is not this one's to make.
    refused(by(1, "b", Expect::Absent), 2).await;
    refused(by(1, "a", Expect::At(first.revision)), 2).await;
    refused(by(1, "a", Expect::Absent), 2).await;
    let delete = Write { change: Change::Delete, ..by(1, "a", Expect::Present) };
    refused(delete.clone(), 2).await;
    assert!(conflict(store.write(by(2, "a", Expect::Absent)).await).is_some());
    let second = store.write(by(2, "a", Expect::At(first.revision))).await.unwrap();
    assert_eq!(latest(&*store).await, BTreeMap::from([("a".into(), stored("2", second.revision))]));
    store.write(Write { epoch: Some(of("t.2", 9)), ..delete }).await.unwrap();
    // Who comes late raises nothing, and hears of it; writes for no task know no epochs.
    assert_eq!(epochs::raise(&*store, &[of("t.1", 1)]).await.unwrap(), [of("t.1", 2)]);
    refused(by(1, "c", Expect::Anything), 2).await;
    put(&*store, "c", "1").await;
}

pub(crate) async fn several_are_judged_each_by_itself(store: Arc<dyn Store>) {
    let there = put(&*store, "there", "1").await;
    epochs::raise(&*store, &[Epoch { task: "t".into(), number: 2 }]).await.unwrap();
    let by = |number, key: &str| Write {
        epoch: Some(Epoch { task: "t".into(), number }),
        ..write(key, Expect::Absent, value("2"))
    };
    let writes = vec![
        by(2, "a"),
        by(1, "late"),
        write("there", Expect::Absent, value("2")),
        write("there", Expect::At(there.revision), value("3")),
        write("b", Expect::Present, Change::Delete),
        by(2, "c"),
    ];
    let done = store.write_all(writes).await;
    let told: Vec<_> = done
        .iter()
        .map(|it| match it {
            Ok(_) => "done",
            Err(StoreError::Conflict { .. }) => "conflict",
            Err(StoreError::Superseded { .. }) => "superseded",
            Err(other) => panic!("{other}"),
        })
        .collect();
    assert_eq!(told, ["done", "superseded", "conflict", "done", "conflict", "done"]);
    let revisions: Vec<_> = done.iter().flatten().map(|it| it.revision).collect();
    assert!(revisions.iter().all(|it| there.revision < *it));
    let found = latest(&*store).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "c", "there"]);
    assert_eq!(store.write_all(Vec::new()).await.len(), 0);
}
