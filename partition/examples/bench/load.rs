//! The client: writers that put as fast as they are answered, and what that gave.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_client::KvClient;
use insula_partition::store::{Change, Collection, Durability, Expect, Store, Write};

use crate::Failure;

/// Keys that a writer goes through again and again.
const KEYS: usize = 500;

/// Who takes the puts.
#[derive(Clone)]
pub(crate) enum Target {
    Store(Arc<dyn Store>, Durability),
    Etcd(Box<KvClient>),
}

pub(crate) fn pods() -> Collection {
    Collection::new("", "pods")
}

/// An object of 1 KiB.
pub(crate) fn object() -> Bytes {
    Bytes::from(format!(
        r#"{{"kind":"Pod","metadata":{{"resourceVersion":"","name":"{}"}}}}"#,
        "x".repeat(1024 - 58)
    ))
}

impl Target {
    pub(crate) async fn put(&mut self, key: &str, value: Bytes) -> Result<(), Failure> {
        match self {
            Self::Store(store, durability) => {
                let write = Write {
                    collection: pods(),
                    key: key.into(),
                    expect: Expect::Anything,
                    change: Change::Put(value),
                    durability: *durability,
                    by_move: None,
                    within: None,
                    epoch: None,
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

/// What one round gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) per_second: f64,
    pub(crate) median: Duration,
    pub(crate) worst_of_100: Duration,
    pub(crate) worst: Duration,
}

/// Has `writers` put for `length`.
pub(crate) async fn measure(
    target: &Target,
    writers: usize,
    length: Duration,
) -> Result<Outcome, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let (mut target, stop) = (target.clone(), stop.clone());
        tasks.spawn(async move {
            let value = object();
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
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    Ok(Outcome {
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        median: at(0.5),
        worst_of_100: at(0.99),
        worst: at(1.0),
    })
}

/// The round in the middle.
pub(crate) fn middle(mut outcomes: Vec<Outcome>) -> Outcome {
    outcomes.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    outcomes[outcomes.len() / 2]
}

pub(crate) fn row(what: &str, target: &str, outcome: Outcome, ours: Outcome) {
    println!(
        "| {what} | {target} | {:.0} | {:.2?} | {:.1?} | {:.1}x |",
        outcome.per_second,
        outcome.median,
        outcome.worst_of_100,
        ours.per_second / outcome.per_second,
    );
}

pub(crate) fn heading(title: &str) {
    println!("\n{title}\n");
    println!("| writers | target | puts/s | p50 | p99 | embedded is |");
    println!("|---|---|---|---|---|---|");
}
