//! Durable 1 KiB puts per second: the embedded backend against a real etcd, in turns.
//!
//! ```text
//! cargo run --release -p insula-partition --example bench [SECONDS] [ROUNDS]
//! ```
//!
//! Both flush to the same file system. `etcd` is a bare etcd client and server; `store on etcd`
//! is this crate's etcd backend, whose writes also wait for their own echo on the watch.
//! CPU time is that of all processes that take part, per put. Last, how long a start takes with
//! 100,000 objects, from the log alone and from a checkpoint.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::{
    error::Error,
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_client::{Client, KvClient};
use insula_partition::{
    etcd::EtcdConfig,
    partitions::{EtcdPartition, Partitions, PartitionsConfig, StoreConfig},
    store::{Change, Collection, Durability, Expect, Store, Write},
};

type Failure = Box<dyn Error + Send + Sync>;

const WRITERS: [usize; 3] = [1, 16, 256];
const KEYS: usize = 500;

/// Who takes the puts.
#[derive(Clone)]
enum Target {
    Store(Arc<dyn Store>),
    Etcd(Box<KvClient>),
}

impl Target {
    async fn put(&mut self, key: &str, value: Bytes) -> Result<(), Failure> {
        match self {
            Self::Store(store) => {
                let write = Write {
                    collection: Collection::new("", "pods"),
                    key: key.into(),
                    expect: Expect::Anything,
                    change: Change::Put(value),
                    durability: Durability::Durable,
                    by_move: None,
                };
                store.write(write).await?;
            }
            Self::Etcd(client) => {
                client.put(key, &*value, None).await?;
            }
        }
        Ok(())
    }
}

/// What one round of one target gave.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    per_second: f64,
    median: Duration,
    worst_of_100: Duration,
    cpu_per_put: Duration,
}

async fn measure(
    target: &Target,
    writers: usize,
    length: Duration,
    etcd: Option<u32>,
) -> Result<Outcome, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let cpu = cpu_time(etcd)?;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let (mut target, stop) = (target.clone(), stop.clone());
        tasks.spawn(async move {
            let value = Bytes::from(format!(
                r#"{{"kind":"Pod","metadata":{{"resourceVersion":"","name":"{}"}}}}"#,
                "x".repeat(1024 - 58)
            ));
            let mut latencies = Vec::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("tenant/default/writer-{writer:04}-{}", n % KEYS);
                let sent = Instant::now();
                target.put(&key, value.clone()).await?;
                latencies.push(sent.elapsed());
            }
            Ok::<_, Failure>(latencies)
        });
    }
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let elapsed = begun.elapsed();
    let cpu = cpu_time(etcd)?.saturating_sub(cpu);
    latencies.sort_unstable();
    let puts = latencies.len();
    let at = |share: f64| latencies[((puts - 1) as f64 * share) as usize];
    Ok(Outcome {
        per_second: puts as f64 / elapsed.as_secs_f64(),
        median: at(0.5),
        worst_of_100: at(0.99),
        cpu_per_put: cpu / puts as u32,
    })
}

/// CPU time so far of this process and, if given, the etcd's.
fn cpu_time(etcd: Option<u32>) -> Result<Duration, Failure> {
    let mut ticks = 0;
    for pid in [Some(std::process::id()), etcd].into_iter().flatten() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").ok_or("unknown format of /proc/PID/stat")?;
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
    }
    // The kernel tells these in hundredths of a second, whatever its own clock does.
    Ok(Duration::from_millis(ticks * 10))
}

/// An etcd that ends with the bench.
struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

fn start_etcd(dir: &Path) -> Result<(Etcd, String), Failure> {
    let free = || TcpListener::bind("127.0.0.1:0")?.local_addr().map(|address| address.port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (url(free()?), url(free()?));
    let child = Command::new("etcd")
        .args(["--name=bench", "--log-level=error", "--quota-backend-bytes=8589934592"])
        .arg(format!("--data-dir={}", dir.display()))
        .args([
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
        ])
        .args([
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
        ])
        .arg(format!("--initial-cluster=bench={peer}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((Etcd(child), client))
}

fn middle(mut outcomes: Vec<Outcome>) -> Outcome {
    outcomes.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    outcomes[outcomes.len() / 2]
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |default: u64| match arguments.next() {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    let length = Duration::from_secs(argument(3)?);
    let rounds = argument(3)?;
    let dir = std::env::temp_dir().join(format!("insula-bench-{}", std::process::id()));
    let outcome = Box::pin(run(&dir, length, rounds)).await;
    fs::remove_dir_all(&dir)?;
    outcome
}

async fn run(dir: &Path, length: Duration, rounds: u64) -> Result<(), Failure> {
    fs::create_dir_all(dir)?;
    let (etcd, url) = start_etcd(&dir.join("etcd"))?;
    let pid = Some(etcd.0.id());
    let on_etcd =
        vec![EtcdPartition { name: "p1".into(), etcd: EtcdConfig::plain(vec![url.clone()]) }];
    let open = |store| Partitions::open(PartitionsConfig::alone(dir.join("embedded"), store));
    let embedded = open(StoreConfig::Embedded { partitions: 1 }).await?;
    let etcd_store = open(StoreConfig::Etcd { partitions: on_etcd }).await?;
    let p1 = |partitions: &Partitions| partitions.store("p1").ok_or("p1 is missing");
    let client = Client::connect([url], None).await?;
    let targets = [
        ("embedded", Target::Store(p1(&embedded)?), None),
        ("etcd", Target::Etcd(Box::new(client.kv_client())), pid),
        ("store on etcd", Target::Store(p1(&etcd_store)?), pid),
    ];

    println!("durable 1 KiB puts, median of {rounds} rounds of {length:?}\n");
    println!("| writers | target | puts/s | p50 | p99 | CPU/put | embedded is |");
    println!("|---|---|---|---|---|---|---|");
    for writers in WRITERS {
        let mut outcomes = [const { Vec::new() }; 3];
        let before = embedded.log_counts();
        for _ in 0..rounds {
            for ((_, target, etcd), outcomes) in targets.iter().zip(&mut outcomes) {
                outcomes.push(measure(target, writers, length, *etcd).await?);
            }
        }
        let [first, others @ ..] = outcomes.map(middle);
        for ((name, ..), outcome) in targets.iter().zip([first].into_iter().chain(others)) {
            println!(
                "| {writers} | {name} | {:.0} | {:.0?} | {:.0?} | {:.1?} | {:.1}x |",
                outcome.per_second,
                outcome.median,
                outcome.worst_of_100,
                outcome.cpu_per_put,
                first.per_second / outcome.per_second,
            );
        }
        if let (Some(before), Some(after)) = (before, embedded.log_counts()) {
            let (batches, flushes) =
                (after.batches - before.batches, after.flushes - before.flushes);
            println!("| {writers} | | {batches} batches, {flushes} flushes | | | | |");
        }
    }
    embedded.shutdown().await?;
    etcd_store.shutdown().await?;
    drop(etcd);
    restart(&dir.join("restart")).await
}

async fn restart(dir: &Path) -> Result<(), Failure> {
    const OBJECTS: usize = 100_000;
    let open = || {
        let store = StoreConfig::Embedded { partitions: 1 };
        Partitions::open(PartitionsConfig::alone(dir.into(), store))
    };
    let partitions = open().await?;
    let store = partitions.store("p1").ok_or("p1 is missing")?;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let mut target = Target::Store(store.clone());
        tasks.spawn(async move {
            let value = Bytes::from("x".repeat(1024));
            for n in 0..OBJECTS / 100 {
                target.put(&format!("tenant/default/{writer:03}-{n}"), value.clone()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    partitions.shutdown().await?;

    let begun = Instant::now();
    let partitions = open().await?;
    let from_log = begun.elapsed();
    let begun = Instant::now();
    partitions.checkpoint().await?;
    let checkpoint = begun.elapsed();
    partitions.shutdown().await?;
    let begun = Instant::now();
    let partitions = open().await?;
    let from_checkpoint = begun.elapsed();
    let objects = partitions.store("p1").ok_or("p1 is missing")?.stats().objects;
    partitions.shutdown().await?;
    println!("\nstart with {objects} objects of 1 KiB: {from_log:.0?} from the log alone, ");
    println!("{from_checkpoint:.0?} from a checkpoint, which took {checkpoint:.0?} to write");
    Ok(())
}
