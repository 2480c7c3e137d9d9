//! Partitions that are killed, lose power, or find their disk full, failing or damaged.
//!
//! The killed process is this test binary itself, run again for one test function only.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{limited, open, options, p1, reopen};
use crate::{
    contract::{pods, put, value, write},
    embedded::EmbeddedOptions,
    error::OpenError,
    store::{Change, Durability, Expect, ReadAt, Revision, Store, StoreError, Write},
    wal::{WalOptions, faults::FaultyDisk, frame},
};

/// Tells the run that is to be killed where to work, and how.
const CHILD_DIR: &str = "INSULA_TEST_CRASH_DIR";
const CHILD_MODE: &str = "INSULA_TEST_CRASH_MODE";

/// Checkpoints all the time, so that some are under way at the kill.
pub(super) fn busy_options() -> EmbeddedOptions {
    let mut options = options();
    options.checkpoint.min_log_bytes = 256 << 10;
    options
}

/// This binary, about to run `tests::crash::child` in `dir`.
pub(super) fn child_command(dir: &Path, mode: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "embedded::tests::crash::child", "--nocapture", "--test-threads=1"])
        .env(CHILD_DIR, dir)
        .env(CHILD_MODE, mode)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Does nothing unless it is run by one of the tests below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(dir) = env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let mode = env::var(CHILD_MODE).unwrap();
    let embedded = open(&dir, &busy_options()).await.unwrap();
    let store = p1(&embedded);
    if let Some(count) = mode.strip_prefix("acks=") {
        for n in 0..count.parse::<u64>().unwrap() {
            put(&*store, "a", &n.to_string()).await;
            // One call for the line, whatever the harness does with `println!`.
            std::io::stdout().lock().write_all(format!("ack {n}\n").as_bytes()).unwrap();
        }
        return;
    }
    if mode == "limited" {
        return limited::write_until_killed(store).await;
    }
    match mode.strip_prefix("count=") {
        Some(count) => {
            for n in 0..count.parse::<u64>().unwrap() {
                put(&*store, "a", &n.to_string()).await;
            }
            println!("{}", embedded.log_counts().flushes);
        }
        None => write_until_killed(store, mode.parse().unwrap()).await,
    }
}

/// Writers that say what was acknowledged: `<key> <number> <revision>`.
async fn write_until_killed(store: Arc<dyn Store>, count: usize) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..count {
        let store = store.clone();
        writers.spawn(async move {
            let durability = if writer % 6 < 4 { Durability::Durable } else { Durability::Relaxed };
            let key = format!("{durability:?}-{writer}");
            let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
            let mut number = found.get(&key).map_or(0, |entry| number_of(&entry.value.bytes()));
            loop {
                number += 1;
                let width = 20 + writer % 6 * 300;
                let change = Change::Put(Bytes::from(format!("{number:0width$}")));
                let write = write(&key, Expect::Anything, change);
                let committed = store.write(Write { durability, ..write }).await.unwrap();
                // One call, so that no line is cut in two by the kill.
                let line = format!("{key} {number} {}\n", committed.revision);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        });
    }
    writers.join_all().await;
}

fn number_of(value: &Bytes) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_kill() {
    let dir = tempfile::tempdir().unwrap();
    // Of each key the last number that was acknowledged.
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut highest = Revision(0);
    for round in 0..6_u64 {
        // Many, so that batches are decided while others are being flushed.
        let writers = if round % 2 == 0 { "6" } else { "90" };
        let mut child = child_command(dir.path(), writers).spawn().unwrap();
        let pid = child.id();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // The test harness has its own say first.
        let is_ack = |line: &String| line.contains("Durable-") || line.contains("Relaxed-");
        let mut acks: Vec<String> = lines.by_ref().find(is_ack).into_iter().collect();
        let reader = std::thread::spawn(move || {
            acks.extend(lines.filter(is_ack));
            acks
        });
        std::thread::sleep(Duration::from_millis(40 + round * 130));
        child.kill().unwrap();
        child.wait().unwrap();
        let acks = reader.join().unwrap();
        assert!(!acks.is_empty(), "process {pid} acknowledged nothing");

        let before = highest;
        for ack in &acks {
            // The first line may share its line with the harness's own words.
            let fields: Vec<_> = ack.split_whitespace().rev().take(3).collect();
            let [revision, number, key] = fields[..] else { panic!("{ack}") };
            let revision = Revision(revision.parse().unwrap());
            assert!(before < revision, "revision {revision} was handed out twice");
            highest = highest.max(revision);
            if key.starts_with("Durable") {
                acknowledged.insert(key.into(), number.parse().unwrap());
            }
        }
        let embedded = open(dir.path(), &busy_options()).await.unwrap();
        let store = p1(&embedded);
        let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
        for (key, number) in &acknowledged {
            let entry = found.get(key).unwrap_or_else(|| panic!("{key} is gone"));
            let stored = number_of(&entry.value.bytes());
            assert!(*number <= stored, "{key}: {number} was acknowledged, {stored} is there");
        }
        let next = put(&*store, "next", "x").await.revision;
        assert!(highest < next);
        highest = next;
        embedded.shutdown().await.unwrap();
    }
}

/// Counted by the kernel's own witness: a write that is alone is one fdatasync, no more.
#[test]
fn a_write_is_one_fdatasync_says_strace() {
    let strace = Command::new("strace").arg("--version").stdout(Stdio::null()).status();
    if !strace.is_ok_and(|status| status.success()) {
        return;
    }
    let count = |writes: u64| {
        let dir = tempfile::tempdir().unwrap();
        let child = child_command(dir.path(), &format!("count={writes}"));
        let trace = dir.path().join("trace");
        let mut traced = Command::new("strace");
        traced.args(["-f", "-e", "trace=fdatasync", "-o"]).arg(&trace).arg(child.get_program());
        traced.args(child.get_args());
        traced.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = traced.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let trace = fs::read_to_string(trace).unwrap();
        let calls = trace.lines().filter(|line| line.contains("fdatasync(")).count() as u64;
        let text = String::from_utf8(output.stdout).unwrap();
        // The test harness has its own say before.
        let flushes = text.split_once("child ...").unwrap().1.split_whitespace().next().unwrap();
        (calls, flushes.parse::<u64>().unwrap())
    };
    let ((calls, flushes), (more_calls, more_flushes)) = (count(5), count(45));
    assert_eq!((more_calls - calls, more_flushes - flushes), (40, 40), "{calls} {flushes}");
}

/// No acknowledgement leaves the process before a flush that began after the one before it.
#[test]
fn no_acknowledgement_is_ahead_of_its_flush_says_strace() {
    let strace = Command::new("strace").arg("--version").stdout(Stdio::null()).status();
    if !strace.is_ok_and(|status| status.success()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let child = child_command(dir.path(), "acks=50");
    let trace = dir.path().join("trace");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-e", "trace=fdatasync,write", "-o"]).arg(&trace).arg(child.get_program());
    traced.args(child.get_args());
    traced.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(traced.output().unwrap().status.success());
    let trace = fs::read_to_string(trace).unwrap();
    let (mut flushed, mut acks) = (false, 0);
    for line in trace.lines() {
        // A call that another thread interrupts in the trace ends on a line of its own.
        if line.contains("fdatasync") && line.trim_end().ends_with("= 0") {
            flushed = true;
        } else if line.contains("write(1, \"ack ") {
            assert!(flushed, "acknowledged without a flush: {line}");
            (flushed, acks) = (false, acks + 1);
        }
    }
    assert_eq!(acks, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    let mut options = options();
    options.wal.disk = disk.clone();
    let embedded = open(dir.path(), &options).await.unwrap();
    let store = p1(&embedded);
    let big = Change::Put(Bytes::from(vec![b'x'; 200 << 10]));
    let write = |n: u64| {
        let key = format!("k{n}");
        store.write(write(&key, Expect::Absent, big.clone()))
    };
    disk.set_full(true);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let n = acknowledged.len() as u64;
        match write(n).await {
            Ok(committed) => acknowledged.push(committed.revision),
            Err(error) => break error,
        }
        assert!(n < 200, "never full");
    };
    let StoreError::Unavailable { reason, .. } = &refused else { panic!("{refused}") };
    assert!(reason.contains("no space"), "{reason}");
    assert!(store.stats().unhealthy.unwrap().contains("no space"));
    // It says so at once, and goes on serving what it has.
    let again = tokio::time::timeout(Duration::from_millis(500), write(900)).await.unwrap();
    assert!(matches!(again, Err(StoreError::Unavailable { .. })));
    let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(found.len(), acknowledged.len());

    disk.set_full(false);
    let recovered = async {
        loop {
            match write(901).await {
                Ok(committed) => return committed.revision,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let last = tokio::time::timeout(Duration::from_secs(10), recovered).await.unwrap();
    assert!(acknowledged.iter().all(|revision| *revision < last));
    assert_eq!(store.stats().unhealthy, None);
    embedded.shutdown().await.unwrap();
    let embedded = open(dir.path(), &options).await.unwrap();
    let found = p1(&embedded).read(&pods(), ReadAt::Latest).await.unwrap();
    for (n, revision) in acknowledged.iter().enumerate() {
        assert_eq!(found.get(&format!("k{n}")).unwrap().modified, *revision);
    }
    assert_eq!(found.get("k901").unwrap().modified, last);
    assert!(found.get("k900").is_none());
    embedded.shutdown().await.unwrap();
}

/// The disk is full while several batches are on their way to it.
#[tokio::test(flavor = "multi_thread")]
async fn many_who_find_the_disk_full_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    disk.slow_down(Duration::from_millis(2));
    let mut options = options();
    options.wal.disk = disk.clone();
    let embedded = open(dir.path(), &options).await.unwrap();
    disk.set_full(true);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..60 {
        let store = p1(&embedded);
        writers.spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0.. {
                let key = format!("{writer}-{n}");
                let change = Change::Put(Bytes::from(vec![b'x'; 20 << 10]));
                match store.write(write(&key, Expect::Absent, change)).await {
                    Ok(committed) => acknowledged.push((key, committed.revision)),
                    Err(StoreError::Unavailable { reason, .. }) => {
                        assert!(reason.contains("no space"), "{reason}");
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            acknowledged
        });
    }
    let acknowledged: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
    disk.set_full(false);
    let store = p1(&embedded);
    let recovered = async {
        while store.write(write("after", Expect::Anything, value("x"))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recovered).await.unwrap();
    let check = async |store: Arc<dyn Store>| {
        let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
        for (key, revision) in &acknowledged {
            assert_eq!(found.get(key).unwrap().modified, *revision);
        }
    };
    check(store).await;
    embedded.shutdown().await.unwrap();
    let embedded = reopen(dir.path()).await;
    check(p1(&embedded)).await;
    embedded.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_stops_writes_until_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    let mut failing = options();
    failing.wal.disk = disk.clone();
    let embedded = open(dir.path(), &failing).await.unwrap();
    let store = p1(&embedded);
    let kept = put(&*store, "a", "1").await;
    disk.fail_syncs();
    for _ in 0..2 {
        let refused = store.write(write("a", Expect::Present, value("2"))).await.unwrap_err();
        assert!(refused.to_string().contains("must be restarted"), "{refused}");
    }
    let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
    assert_eq!(found.get("a").unwrap(), &kept.entry);
    drop((store, embedded));
    let embedded = reopen(dir.path()).await;
    let next = put(&*p1(&embedded), "b", "1").await;
    assert!(kept.revision < next.revision);
    embedded.shutdown().await.unwrap();
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("log")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Offsets of the batches in a segment, and where they end.
fn batches(path: &Path) -> Vec<usize> {
    let data = fs::read(path).unwrap();
    let mut offsets = vec![frame::SEGMENT_HEADER];
    while let Some(batch) = frame::batch_at(&data, offsets[offsets.len() - 1], 1) {
        offsets.push(offsets[offsets.len() - 1] + frame::Batch::size(batch.body.len()));
    }
    offsets
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_write_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = open(dir.path(), &options()).await.unwrap();
    let store = p1(&embedded);
    for n in 0..20 {
        put(&*store, &format!("k{n:02}"), &"x".repeat(n * 37)).await;
    }
    // Ends without closing the log, as if killed.
    store.shutdown().await.unwrap();
    drop((store, embedded));
    wait_for_lock(dir.path()).await;
    let path = segments(dir.path()).remove(0);
    let offsets = batches(&path);
    let [.., last, end] = offsets[..] else { panic!("no batches") };
    let original = fs::read(&path).unwrap();
    for torn in [last + 1, last + 20, last + frame::BATCH_HEADER, (last + end) / 2, end] {
        let mut data = original.clone();
        data[torn..].fill(0);
        fs::write(&path, data).unwrap();
        let embedded = reopen(dir.path()).await;
        let found = p1(&embedded).read(&pods(), ReadAt::Latest).await.unwrap();
        assert_eq!(found.len(), if torn == end { 20 } else { 19 });
        drop((found, embedded));
        wait_for_lock(dir.path()).await;
    }
}

/// Waits until nobody uses a directory any more.
async fn wait_for_lock(dir: &Path) {
    let lock = fs::File::open(dir.join("LOCK")).unwrap();
    while lock.try_lock().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_changed_in_the_middle_is_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = open(dir.path(), &options()).await.unwrap();
    for n in 0..20 {
        put(&*p1(&embedded), &format!("k{n}"), &"x".repeat(100)).await;
    }
    embedded.shutdown().await.unwrap();
    let path = segments(dir.path()).remove(0);
    let offsets = batches(&path);
    let original = fs::read(&path).unwrap();
    for offset in (0..offsets[offsets.len() - 2]).step_by(211) {
        let mut data = original.clone();
        data[offset] ^= 4;
        fs::write(&path, data).unwrap();
        let error = open(dir.path(), &options()).await.unwrap_err();
        let OpenError::Damaged { what } = &error else { panic!("{error}") };
        assert!(what.contains("0000000000000001.log at offset"), "{what}");
    }
    fs::write(&path, original).unwrap();
    open(dir.path(), &options()).await.unwrap().shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_is_made_up_for_by_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = open(dir.path(), &options()).await.unwrap();
    let store = p1(&embedded);
    let mut expected = BTreeMap::new();
    for round in 0..3 {
        for n in 0..200 {
            let committed = put(&*store, &format!("k{}", n * (round + 1)), "x").await;
            expected.insert(format!("k{}", n * (round + 1)), committed.entry);
        }
        store.checkpoint().await.unwrap();
    }
    let last = put(&*store, "last", "x").await;
    expected.insert("last".into(), last.entry);
    embedded.shutdown().await.unwrap();

    let checkpoints = dir.path().join("checkpoints/0-p1");
    let mut found: Vec<_> =
        fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert_eq!(found.len(), 2);
    let newest = found[1].join("0000/db");
    let mut data = fs::read(&newest).unwrap();
    let middle = data.len() / 2;
    data[middle..middle + 512].fill(0xa5);
    fs::write(&newest, data).unwrap();

    let embedded = open(dir.path(), &options()).await.unwrap();
    let snapshot = p1(&embedded).read(&pods(), ReadAt::Latest).await.unwrap();
    let read: BTreeMap<_, _> =
        snapshot.range("", None).map(|(key, entry)| (key.to_string(), entry.clone())).collect();
    assert_eq!(read, expected);
    assert_eq!(snapshot.revision(), last.revision);
    embedded.shutdown().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Power goes while many write. Every durable write that was acknowledged is there, no
    /// revision is given twice, and what is there of each key is something that was written.
    #[test]
    fn a_power_cut_keeps_every_durable_write(
        after in 1_u64..60,
        sectors in prop::collection::vec(any::<bool>(), 1..50),
        writers in prop_oneof![Just(5_usize), Just(80)],
        slow in 0_u64..4,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (acknowledged, told) = runtime.block_on(power_cut(dir.path(), after, sectors, writers, slow));
        runtime.block_on(async {
            let embedded = reopen(dir.path()).await;
            let store = p1(&embedded);
            let found = store.read(&pods(), ReadAt::Latest).await.unwrap();
            for (key, number) in acknowledged {
                let stored = found.get(&key).map_or(0, |entry| number_of(&entry.value.bytes()));
                assert!(number <= stored, "{key}: {number} was acknowledged, {stored} is there");
            }
            assert!(told < put(&*store, "next", "x").await.revision);
            embedded.shutdown().await.unwrap();
        });
    }
}

/// The last durable number of each key that was acknowledged, and the highest revision of all.
async fn power_cut(
    dir: &Path,
    after: u64,
    sectors: Vec<bool>,
    writers: usize,
    slow: u64,
) -> (BTreeMap<String, u64>, Revision) {
    let disk = FaultyDisk::new();
    disk.slow_down(Duration::from_millis(slow));
    let mut faulty = busy_options();
    faulty.wal = WalOptions { disk: disk.clone(), ..faulty.wal };
    let embedded = open(dir, &faulty).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let store = p1(&embedded);
        tasks.spawn(async move {
            let durability = if writer % 5 < 3 { Durability::Durable } else { Durability::Relaxed };
            let key = format!("k{writer}");
            let mut told = Revision(0);
            for number in 1.. {
                let width = 20 + writer % 5 * 700;
                let change = Change::Put(Bytes::from(format!("{number:0width$}")));
                let write = write(&key, Expect::Anything, change);
                match store.write(Write { durability, ..write }).await {
                    Ok(committed) => told = committed.revision,
                    Err(_) if durability == Durability::Relaxed => return (key, 0, told),
                    Err(_) => return (key, number - 1, told),
                }
            }
            unreachable!()
        });
    }
    tokio::time::sleep(Duration::from_millis(after)).await;
    let mut sectors = sectors.into_iter().cycle();
    disk.cut_power(|| sectors.next().unwrap());
    let outcomes = tasks.join_all().await;
    let told = outcomes.iter().map(|(.., told)| *told).max().unwrap();
    (outcomes.into_iter().map(|(key, number, _)| (key, number)).collect(), told)
}
