//! Moves under writers that count what was acknowledged to them, with servers that die or sleep
//! before any step.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

use super::{
    driver::{Driver, Hook},
    *,
};
use crate::{
    embedded::tests::options,
    etcd::tests::Server,
    map::{Backend, EtcdPlace, PartitionInfo, ShardKey},
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    store::{Change, Collection, Durability, Expect, Write},
};

/// `p1` and `p2` in this process, `e1` in an etcd.
struct World {
    partitions: Arc<Partitions>,
    _dir: tempfile::TempDir,
    etcd: Option<Server>,
}

async fn world(with_etcd: bool) -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig::Embedded { partitions: 2 };
    let config = PartitionsConfig::alone(dir.path().into(), store);
    let partitions = Arc::new(Partitions::open_with(config, options()).await.unwrap());
    let etcd = with_etcd.then(Server::start);
    if let Some(etcd) = &etcd {
        let place = EtcdPlace {
            endpoints: etcd.config().endpoints,
            prefix: "/insula".into(),
            relaxed: Vec::new(),
        };
        let backend = Backend::Etcd(place);
        let info = PartitionInfo { name: "e1".into(), backend, ..PartitionInfo::default() };
        partitions.change_map(|map| map.with_partition(info.clone())).await.unwrap();
        until("the etcd is open", || partitions.is_local("e1")).await;
    }
    World { partitions, _dir: dir, etcd }
}

async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !check() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: never");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tenant(name: &str) -> ShardKey {
    ShardKey::Tenant(name.into())
}

fn pods() -> Collection {
    Collection::new("", "pods")
}

fn counted(n: u64) -> Change {
    Change::Put(Bytes::from(format!(
        r#"{{"kind":"Pod","metadata":{{"resourceVersion":"","name":"x"}},"n":{n}}}"#
    )))
}

fn count_in(value: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(value).unwrap()["n"].as_u64().unwrap()
}

fn write(key: &str, expect: Expect, change: Change) -> Write {
    Write {
        collection: pods(),
        key: key.into(),
        expect,
        change,
        durability: Durability::Durable,
        by_move: None,
        within: None,
        epoch: None,
    }
}

/// Writes to wherever the tenant is, as a handler does: again after a map change.
async fn anywhere(
    partitions: &Partitions,
    name: &str,
    write: &Write,
) -> Result<crate::store::Committed, StoreError> {
    loop {
        let outcome = partitions.place(&tenant(name)).store.write(write.clone()).await;
        match outcome {
            Err(StoreError::Moving { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            outcome => return outcome,
        }
    }
}

async fn read(partitions: &Partitions, name: &str) -> crate::snapshot::Snapshot {
    loop {
        let read = partitions.place(&tenant(name)).store.read(&pods(), ReadAt::Latest).await;
        match read.and_then(|snapshot| snapshot.check(&tenant(name)).map(|()| snapshot)) {
            Err(StoreError::Moving { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            snapshot => return snapshot.unwrap(),
        }
    }
}

async fn fill(partitions: &Partitions, name: &str, objects: usize) {
    let store = partitions.place(&tenant(name)).store;
    let writes = (0..objects).map(|n| {
        let write = write(&format!("{name}/ns/o{n:05}"), Expect::Absent, counted(0));
        store.write(write)
    });
    futures::future::try_join_all(writes).await.unwrap();
}

/// Writers that each count up keys of their own, and all of them a shared one.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Acknowledged>>,
}

#[derive(Default)]
struct Acknowledged {
    last: BTreeMap<String, (u64, Revision)>,
    shared: u64,
    slowest: Duration,
    writes: usize,
}

impl Writers {
    fn start(partitions: &Arc<Partitions>, name: &str, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = |writer: usize| {
            let (partitions, stop) = (partitions.clone(), stop.clone());
            let name = name.to_owned();
            tokio::spawn(async move { work(&partitions, &name, writer, &stop).await })
        };
        Self { tasks: (0..count).map(task).collect(), stop }
    }

    /// Ends the writers and checks that what is stored is what they were told.
    async fn check(self, partitions: &Partitions, name: &str) -> (Duration, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Acknowledged::default();
        for task in self.tasks {
            let one = task.await.unwrap();
            all.last.extend(one.last);
            all.shared += one.shared;
            all.slowest = all.slowest.max(one.slowest);
            all.writes += one.writes;
        }
        let snapshot = read(partitions, name).await;
        for (key, (n, revision)) in &all.last {
            let entry = snapshot.get(key).unwrap_or_else(|| panic!("{key} is lost"));
            assert_eq!(count_in(&entry.value.bytes()), *n, "{key}");
            assert!(*revision <= entry.modified, "{key} went back");
        }
        let shared =
            snapshot.get(&format!("{name}/ns/shared")).map(|it| count_in(&it.value.bytes()));
        assert_eq!(shared.unwrap_or(0), all.shared, "increments were lost or done twice");
        (all.slowest, all.writes)
    }
}

async fn work(
    partitions: &Partitions,
    name: &str,
    writer: usize,
    stop: &AtomicBool,
) -> Acknowledged {
    let mut told = Acknowledged::default();
    let shared = format!("{name}/ns/shared");
    let mut newest = Revision(0);
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let begun = Instant::now();
        let key = format!("{name}/ns/w{writer}-{}", n % 5);
        let expect = match told.last.get(&key) {
            Some((_, revision)) => Expect::At(*revision),
            None => Expect::Absent,
        };
        match anywhere(partitions, name, &write(&key, expect, counted(n))).await {
            Ok(committed) => {
                assert!(newest < committed.revision, "revisions went back");
                newest = committed.revision;
                told.last.insert(key, (n, committed.revision));
                told.slowest = told.slowest.max(begun.elapsed());
                told.writes += 1;
            }
            // A moved object has a new revision: as clients do, read it and go on from there.
            Err(StoreError::Conflict { found, .. }) => {
                let found = found.unwrap_or_else(|| panic!("{key} is lost"));
                let (had, revision) = told.last[&key];
                assert_eq!(count_in(&found.value.bytes()), had, "{key}");
                assert!(revision < found.modified, "{key} went back");
                told.last.insert(key, (had, found.modified));
            }
            Err(error) => panic!("{error}"),
        }
        let mut found = read(partitions, name).await.get(&shared).cloned();
        loop {
            let (expect, next) = match &found {
                Some(entry) => (Expect::At(entry.modified), count_in(&entry.value.bytes()) + 1),
                None => (Expect::Absent, 1),
            };
            match anywhere(partitions, name, &write(&shared, expect, counted(next))).await {
                Ok(_) => break told.shared += 1,
                Err(StoreError::Conflict { found: now, .. }) => found = now,
                Err(error) => panic!("{error}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    told
}

fn other(partitions: &Partitions, name: &str) -> &'static str {
    if &*partitions.place(&tenant(name)).partition == "p1" { "p2" } else { "p1" }
}

async fn run_move(partitions: &Partitions, name: &str, to: &str) -> Move {
    let it = partitions.start_move(None, Scope::Tenant(name.into()), to).await.unwrap();
    partitions.wait_for_move(&it.id).await.unwrap();
    let all = partitions.moves().await.unwrap();
    all.into_iter().map(|(it, _)| it).find(|found| found.id == it.id).unwrap()
}

async fn wait_over(partitions: &Partitions, id: &str) -> Move {
    let begun = Instant::now();
    loop {
        let found = super::read(&*partitions.meta(), id).await.unwrap().unwrap();
        if found.phase.is_over() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "never over: {found:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_while_clients_write() {
    let world = world(false).await;
    let partitions = &world.partitions;
    fill(partitions, "acme", 500).await;
    fill(partitions, "globex", 50).await;
    let writers = Writers::start(partitions, "acme", 4);
    for _ in 0..3 {
        let to = other(partitions, "acme");
        let it = run_move(partitions, "acme", to).await;
        assert_eq!(&*partitions.place(&tenant("acme")).partition, to);
        let over = wait_over(partitions, &it.id).await;
        assert_eq!(over.phase, Phase::Done, "{over:?}");
        assert!(over.pause.is_some_and(|pause| pause < 3_000), "{over:?}");
    }
    writers.check(partitions, "acme").await;
    // It is in one place, and others were left alone.
    let mut objects = 0;
    for name in ["p1", "p2"] {
        let store = partitions.store(name).unwrap();
        let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
        objects += snapshot.range_of_all("acme/", None).count();
    }
    assert_eq!(read(partitions, "acme").await.range("acme/", None).count(), objects);
    assert_eq!(read(partitions, "globex").await.range("globex/", None).count(), 50);
    partitions.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_moves_to_an_etcd_and_back() {
    let world = world(true).await;
    let partitions = &world.partitions;
    fill(partitions, "acme", 200).await;
    let home = partitions.place(&tenant("acme")).partition.to_string();
    let writers = Writers::start(partitions, "acme", 3);
    for to in ["e1", &home, "e1", &home] {
        let it = run_move(partitions, "acme", to).await;
        let over = wait_over(partitions, &it.id).await;
        assert_eq!(over.phase, Phase::Done, "{over:?}");
    }
    writers.check(partitions, "acme").await;
    partitions.shutdown().await.unwrap();
    drop(world.etcd);
}

/// A partition with an etcd of its own for events takes a tenant and gives it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_in_an_etcd_of_their_own_move_along() {
    let world = world(false).await;
    let partitions = &world.partitions;
    let (main, second) = (Server::start(), Server::start());
    let place = EtcdPlace {
        endpoints: main.config().endpoints,
        prefix: "/insula".into(),
        relaxed: second.config().endpoints,
    };
    let backend = Backend::Etcd(place);
    let info = PartitionInfo { name: "e1".into(), backend, ..PartitionInfo::default() };
    partitions.change_map(|map| map.with_partition(info.clone())).await.unwrap();
    until("the etcds are open", || partitions.is_local("e1")).await;

    let events = Collection::new("", "events");
    let event = |key: &str| Write {
        collection: events.clone(),
        durability: Durability::Relaxed,
        ..write(key, Expect::Absent, counted(1))
    };
    let home = partitions.place(&tenant("acme")).partition.to_string();
    fill(partitions, "acme", 20).await;
    let mut newest = Revision(0);
    for n in 0..30 {
        let key = format!("acme/ns/e{n}");
        newest = anywhere(partitions, "acme", &event(&key)).await.unwrap().revision;
    }
    let writers = Writers::start(partitions, "acme", 2);
    for (at, to) in ["e1", home.as_str(), "e1"].into_iter().enumerate() {
        let it = run_move(partitions, "acme", to).await;
        assert_eq!(wait_over(partitions, &it.id).await.phase, Phase::Done);
        let store = partitions.store(to).unwrap();
        let snapshot = store.read(&events, ReadAt::Latest).await.unwrap();
        snapshot.check(&tenant("acme")).unwrap();
        assert_eq!(snapshot.range("acme/", None).count(), 30 + at);
        assert!(snapshot.range("acme/", None).all(|(_, entry)| newest < entry.modified));
        let key = format!("acme/ns/later{at}");
        let written = anywhere(partitions, "acme", &event(&key)).await.unwrap();
        assert!(newest < written.revision);
        newest = written.revision;
        // Both sides can be listed as one.
        let mut all = Vec::new();
        for name in partitions.names() {
            let store = partitions.store(&name).unwrap();
            all.push((name, store.read(&events, ReadAt::Latest).await.unwrap()));
        }
        let pairs = all.iter().map(|(name, snapshot)| (name.as_str(), snapshot));
        crate::fences::check_together(pairs).unwrap();
    }
    writers.check(partitions, "acme").await;
    let mut client = etcd_client::Client::connect(second.config().endpoints, None).await.unwrap();
    let all = etcd_client::GetOptions::new().with_prefix().with_count_only();
    let found = client.get("/insula/core/events/", Some(all.clone())).await.unwrap();
    assert_eq!(found.count(), 33);
    assert_eq!(client.get("/insula/core/pods/", Some(all)).await.unwrap().count(), 0);
    partitions.shutdown().await.unwrap();
}

/// How long writers wait while a tenant of 10,000 objects moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_wait_less_than_a_second() {
    let world = world(false).await;
    let partitions = &world.partitions;
    fill(partitions, "acme", 10_000).await;
    let writers = Writers::start(partitions, "acme", 4);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let it = run_move(partitions, "acme", other(partitions, "acme")).await;
        let over = wait_over(partitions, &it.id).await;
        pauses.push(over.pause.unwrap());
    }
    let (slowest, writes) = writers.check(partitions, "acme").await;
    println!("pauses {pauses:?} ms; slowest of {writes} writes {slowest:?}");
    assert!(pauses.iter().all(|pause| *pause < 1_000), "{pauses:?}");
    partitions.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_everything_see_each_object_once() {
    let world = world(false).await;
    let partitions = world.partitions.clone();
    fill(&partitions, "acme", 200).await;
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (partitions, stop) = (partitions.clone(), stop.clone());
        async move {
            let mut lists = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut snapshots = Vec::new();
                for name in partitions.names() {
                    let store = partitions.store(&name).unwrap();
                    snapshots.push((name, store.read(&pods(), ReadAt::Latest).await.unwrap()));
                }
                let pairs = snapshots.iter().map(|(name, snapshot)| (name.as_str(), snapshot));
                if crate::fences::check_together(pairs).is_err() {
                    continue;
                }
                let seen = snapshots.iter().map(|(_, it)| it.range("acme/", None).count());
                assert_eq!(seen.sum::<usize>(), 200);
                lists += 1;
            }
            lists
        }
    });
    for _ in 0..6 {
        let to = other(&partitions, "acme");
        run_move(&partitions, "acme", to).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(0 < reader.await.unwrap());
    partitions.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_end_and_begin_anew() {
    let world = world(false).await;
    let partitions = &world.partitions;
    fill(partitions, "acme", 20).await;
    fill(partitions, "globex", 1).await;
    let (from, to) = (partitions.place(&tenant("acme")).store, other(partitions, "acme"));
    let target = partitions.store(to).unwrap();
    let mine = from.watch(&pods(), from.progress()).unwrap();
    let mut mine = mine.scoped(tenant("acme")).unwrap();
    let mut all = target.watch(&pods(), target.progress()).unwrap();
    let others = target.watch(&pods(), target.progress()).unwrap();
    let mut others = others.scoped(tenant("initech")).unwrap();
    let before = from.progress();
    run_move(partitions, "acme", to).await;
    let gone = |it: Result<_, StoreError>| matches!(it, Err(StoreError::Compacted { .. }));
    assert!(gone(mine.next().await));
    assert!(gone(all.next().await), "those who watch everything must see the objects come");
    // Whoever watches another tenant there heard nothing.
    assert!(others.progress().unwrap().is_some());
    // The old place is not empty, it is elsewhere.
    let stale = from.read(&pods(), ReadAt::Latest).await.unwrap();
    assert!(matches!(stale.check(&tenant("acme")), Err(StoreError::Moving { .. })));
    let watch = from.watch(&pods(), from.progress()).unwrap().scoped(tenant("acme"));
    assert!(matches!(watch, Err(StoreError::Moving { .. })));
    // Old history is gone, and new revisions are higher than all old ones.
    let watch = target.watch(&pods(), before).unwrap().scoped(tenant("acme"));
    assert!(matches!(watch, Err(StoreError::Compacted { .. })));
    let now = target.read(&pods(), ReadAt::Latest).await.unwrap();
    assert!(now.range("acme/", None).all(|(_, entry)| before < entry.modified));
    let mut again = target.watch(&pods(), now.revision()).unwrap().scoped(tenant("acme")).unwrap();
    let change = write("acme/ns/new", Expect::Absent, counted(1));
    let written = target.write(change).await.unwrap();
    assert_eq!(again.next().await.unwrap()[0].revision, written.revision);
    partitions.shutdown().await.unwrap();
}

/// Stops dead before the `n`th step, and before every one after it.
fn dies_at(n: usize) -> (Hook, Arc<AtomicUsize>) {
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = steps.clone();
    let hook: Hook = Arc::new(move |_| {
        let step = counted.fetch_add(1, Ordering::Relaxed);
        async move { n <= step }.boxed()
    });
    (hook, steps)
}

/// Sleeps before the `n`th step until it is woken, and then goes on as if nothing had happened.
fn sleeps_at(n: usize) -> (Hook, Arc<AtomicBool>, Arc<Notify>) {
    let (steps, asleep, wake) =
        (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let (sleeps, woken) = (asleep.clone(), wake.clone());
    let hook: Hook = Arc::new(move |_| {
        let sleep = steps.fetch_add(1, Ordering::Relaxed) == n;
        sleeps.fetch_or(sleep, Ordering::Relaxed);
        let woken = woken.clone();
        async move {
            if sleep {
                woken.notified().await;
            }
            false
        }
        .boxed()
    });
    (hook, asleep, wake)
}

async fn act(driver: &Driver, partitions: &Partitions, id: &str) {
    let stored = record::read(&*partitions.meta(), id).await.unwrap().unwrap();
    if !stored.it.phase.is_over() {
        driver.act(&stored).await;
    }
}

async fn act_until_over(driver: &Driver, partitions: &Partitions, id: &str) -> Move {
    for _ in 0..20 {
        act(driver, partitions, id).await;
        let found = super::read(&*partitions.meta(), id).await.unwrap().unwrap();
        if found.phase.is_over() {
            return found;
        }
    }
    panic!("never over");
}

async fn check_one_place(partitions: &Partitions, name: &str, expected: usize) {
    let mut found = 0;
    for partition in partitions.names() {
        let store = partitions.store(&partition).unwrap();
        let snapshot = store.read(&pods(), ReadAt::Latest).await.unwrap();
        found += snapshot.range_of_all(&format!("{name}/"), None).count();
        let fences = snapshot.fences().table();
        assert!(
            fences.fences.iter().all(|it| !matches!(
                it.state,
                crate::fences::FenceState::Importing
                    | crate::fences::FenceState::Frozen
                    | crate::fences::FenceState::Leaving
            )),
            "{fences:?}"
        );
    }
    assert_eq!(found, expected);
    assert!(partitions.map().moves().is_empty());
}

/// A server dies before every step in turn; another one finishes, or undoes if that is asked.
async fn dies_before_every_step(with_etcd: bool, to_etcd: bool, cancel: bool) {
    let world = world(with_etcd).await;
    let partitions = &world.partitions;
    partitions.stop_moves();
    let mut dead = 0;
    for n in 0..100 {
        let name = format!("t{n}");
        fill(partitions, &name, 30).await;
        let to = match (with_etcd, to_etcd) {
            (false, _) => other(partitions, &name),
            (true, true) => "e1",
            (true, false) => {
                // Onto the etcd first, undisturbed.
                let driver = Driver::new(partitions.shared(), None);
                let it = partitions.start_move(None, Scope::Tenant(name.clone()), "e1");
                act_until_over(&driver, partitions, &it.await.unwrap().id).await;
                "p1"
            }
        };
        let writers = Writers::start(partitions, &name, 2);
        let scope = Scope::Tenant(name.clone());
        let it = partitions.start_move(None, scope, to).await.unwrap();
        let (hook, steps) = dies_at(n);
        act(&Driver::new(partitions.shared(), Some(hook)), partitions, &it.id).await;
        let died = n < steps.load(Ordering::Relaxed);
        let cancelled = cancel && partitions.cancel_move(&it.id).await.is_ok();
        let driver = Driver::new(partitions.shared(), None);
        let over = act_until_over(&driver, partitions, &it.id).await;
        let expected = if cancelled { Phase::Failed } else { Phase::Done };
        assert_eq!(over.phase, expected, "died before step {n}: {over:?}");
        let here = &*partitions.place(&tenant(&name)).partition == to;
        assert_eq!(here, !cancelled);
        writers.check(partitions, &name).await;
        let objects = read(partitions, &name).await.range(&format!("{name}/"), None).count();
        check_one_place(partitions, &name, objects).await;
        if !died {
            break;
        }
        dead += 1;
    }
    assert!(15 < dead, "only {dead} steps");
    partitions.shutdown().await.unwrap();
    drop(world.etcd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_is_taken_over_from() {
    dies_before_every_step(false, false, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_can_be_undone() {
    dies_before_every_step(false, false, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_moving_to_an_etcd() {
    dies_before_every_step(true, true, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_moving_from_an_etcd() {
    dies_before_every_step(true, false, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_moving_to_an_etcd_can_be_undone() {
    dies_before_every_step(true, true, true).await;
}

/// A server dies before every step in turn, and the tenant moves back as soon as it may. When the
/// first move is resumed, what the second one said still holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_resumed_after_the_next_one_does_no_harm() {
    let world = world(false).await;
    let partitions = &world.partitions;
    partitions.stop_moves();
    let driver = Driver::new(partitions.shared(), None);
    let mut moved_back = 0;
    for n in 0..100 {
        let name = format!("t{n}");
        fill(partitions, &name, 10).await;
        let (here, to) =
            (partitions.place(&tenant(&name)).partition.to_string(), other(partitions, &name));
        let scope = Scope::Tenant(name.clone());
        let first = partitions.start_move(None, scope.clone(), to).await.unwrap();
        let (hook, steps) = dies_at(n);
        act(&Driver::new(partitions.shared(), Some(hook)), partitions, &first.id).await;
        let died = n < steps.load(Ordering::Relaxed);
        let flipped = &*partitions.place(&tenant(&name)).partition == to;
        // Refused while the first one is under way.
        if flipped && let Ok(back) = partitions.start_move(None, scope, &here).await {
            let over = act_until_over(&driver, partitions, &back.id).await;
            assert_eq!(over.phase, Phase::Done, "died before step {n}: {over:?}");
            moved_back += 1;
        }
        act_until_over(&driver, partitions, &first.id).await;
        let owner = partitions.place(&tenant(&name)).partition.to_string();
        for partition in partitions.names().into_iter().filter(|it| *it != owner) {
            // As a server would that has not heard of the last map.
            let late = write(&format!("{name}/ns/late"), Expect::Absent, counted(1));
            let refused = partitions.store(&partition).unwrap().write(late).await;
            assert!(matches!(refused, Err(StoreError::Moving { .. })), "{n}: {refused:?}");
        }
        check_one_place(partitions, &name, 10).await;
        if !died {
            break;
        }
    }
    assert!(1 < moved_back, "moved back {moved_back} times");
    partitions.shutdown().await.unwrap();
}

/// A server sleeps before every step in turn while another one takes over and finishes, or
/// undoes and the tenant goes on where it was. When the first one wakes it does no harm.
async fn sleeps_before_every_step(cancel: bool) {
    let world = world(false).await;
    let partitions = &world.partitions;
    partitions.stop_moves();
    let mut slept = 0;
    for n in 0..100 {
        let name = format!("t{n}");
        fill(partitions, &name, 20).await;
        let to = other(partitions, &name);
        let scope = Scope::Tenant(name.clone());
        let it = partitions.start_move(None, scope.clone(), to).await.unwrap();
        let (hook, asleep, wake) = sleeps_at(n);
        let first = Driver::new(partitions.shared(), Some(hook));
        let late = tokio::spawn({
            let (partitions, id) = (partitions.clone(), it.id.clone());
            async move { act(&first, &partitions, &id).await }
        });
        until("asleep or done", || asleep.load(Ordering::Relaxed) || late.is_finished()).await;
        let sleeping = !late.is_finished();
        if cancel {
            drop(partitions.cancel_move(&it.id).await);
        }
        let driver = Driver::new(partitions.shared(), None);
        act_until_over(&driver, partitions, &it.id).await;
        let writers = Writers::start(partitions, &name, 2);
        tokio::time::sleep(Duration::from_millis(5)).await;
        wake.notify_one();
        late.await.unwrap();
        writers.check(partitions, &name).await;
        // A move that was given up and was still admitted after that is taken off the map.
        driver.look_once().await.unwrap();
        // Nothing it may have left behind is in the way of the next move.
        let to = other(partitions, &name);
        let again = partitions.start_move(None, scope, to).await.unwrap();
        let over = act_until_over(&driver, partitions, &again.id).await;
        assert_eq!(over.phase, Phase::Done, "slept before step {n}: {over:?}");
        let objects = read(partitions, &name).await.range(&format!("{name}/"), None).count();
        check_one_place(partitions, &name, objects).await;
        if !sleeping {
            break;
        }
        slept += 1;
    }
    assert!(15 < slept, "only {slept} steps");
    partitions.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wakes_late_does_no_harm() {
    sleeps_before_every_step(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wakes_after_it_was_undone_does_no_harm() {
    sleeps_before_every_step(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_without_pinned_tenants() {
    let world = world(false).await;
    let partitions = &world.partitions;
    let names: Vec<String> = (0..40).map(|n| format!("t{n}")).collect();
    for name in &names {
        fill(partitions, name, 5).await;
    }
    let pinned = &names[7];
    let home = partitions.place(&tenant(pinned)).partition.to_string();
    partitions.pin(pinned, Some(&home)).await.unwrap();
    let added = PartitionInfo::embedded("p3", &["s1"]);
    let writers = Writers::start(partitions, "t3", 2);
    // Another partition of this process comes with the groups; until then the two that are.
    drop(added);
    let from = partitions.map().owner_of_slot(tenant("t3").slot()).to_owned();
    partitions.change_map(|map| map.with_draining(&from, true)).await.unwrap();
    let begun = Instant::now();
    while partitions.map().slots_of(&from) != 0
        || partitions.map().pins().values().any(|it| *it == from)
    {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", partitions.moves().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    writers.check(partitions, "t3").await;
    for name in &names {
        let expected = if name == "t3" { 5..50 } else { 5..6 };
        let found = read(partitions, name).await.range(&format!("{name}/"), None).count();
        assert!(expected.contains(&found), "{name} has {found}");
        assert_ne!(*partitions.place(&tenant(name)).partition, *from);
    }
    partitions.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_moved_is_refused() {
    let world = world(false).await;
    let partitions = &world.partitions;
    let here = partitions.place(&tenant("acme")).partition.to_string();
    let to = other(partitions, "acme");
    let start = async |scope: Scope, to: &str| partitions.start_move(None, scope, to).await;
    let acme = || Scope::Tenant("acme".into());
    let already = start(acme(), &here).await;
    assert!(matches!(already, Err(MoveError::Map(MapError::Already { .. }))), "{already:?}");
    let unknown = start(acme(), "p9").await;
    assert!(matches!(unknown, Err(MoveError::Map(MapError::Unknown(_)))), "{unknown:?}");
    let across = start(Scope::slots(0, 16_383), to).await;
    assert!(matches!(across, Err(MoveError::Map(_))), "{across:?}");
    partitions.change_map(|map| map.with_draining(to, true)).await.unwrap();
    let draining = start(acme(), to).await;
    assert!(matches!(draining, Err(MoveError::Map(MapError::Draining(_)))), "{draining:?}");
    let pinned = partitions.pin("acme", Some(to)).await;
    assert!(matches!(pinned, Err(MoveError::Map(MapError::Draining(_)))), "{pinned:?}");
    assert!(matches!(partitions.cancel_move("m").await, Err(MoveError::Unknown(_))));
    let named = partitions.start_move(Some("No!"), acme(), to).await;
    assert!(matches!(named, Err(MoveError::Map(_) | MoveError::Name(_))), "{named:?}");
    partitions.shutdown().await.unwrap();
}
