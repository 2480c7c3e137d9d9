//! Watch fan-out: one writer, many watchers of everything it writes.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Client, WatchOptions};
use insula_partition::store::Durability;

use crate::{
    Extent, Failure, etcd,
    load::{Target, measure, pods},
    puts,
};

const WATCHERS: [usize; 2] = [100, 1000];

/// Watchers that share one connection to etcd, as an API server's do.
const PER_STREAM: usize = 100;

pub(crate) async fn fan_out(dir: &Path, extent: Extent) -> Result<(), Failure> {
    let (partitions, store) = puts::open(&dir.join("watches")).await?;
    let etcds = etcd::start(&dir.join("watches-etcd"), 1, false).await?;
    let client = etcd::client(&etcds).await?;
    println!("\nOne writer of 1 KiB and its watchers\n");
    println!("| watchers | target | puts/s | events delivered/s | embedded is |");
    println!("|---|---|---|---|---|");
    for watchers in WATCHERS {
        let seen = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..watchers {
            let mut watcher = store.watch(&pods(), store.progress())?;
            let seen = seen.clone();
            tasks.spawn(async move {
                while let Ok(events) = watcher.next().await {
                    seen.fetch_add(events.len() as u64, Ordering::Relaxed);
                }
            });
        }
        let target = Target::Store(store.clone(), Durability::Durable);
        let ours = deliver(target, watchers, extent, &seen).await?;
        tasks.shutdown().await;

        let seen = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..watchers.div_ceil(PER_STREAM) {
            follow(client.clone(), seen.clone(), &mut tasks).await?;
        }
        let target = Target::Etcd(Box::new(client.kv_client()));
        let theirs = deliver(target, watchers, extent, &seen).await?;
        tasks.shutdown().await;
        println!("| {watchers} | embedded | {:.0} | {:.0} | 1.0x |", ours.0, ours.1);
        println!(
            "| {watchers} | etcd | {:.0} | {:.0} | {:.1}x |",
            theirs.0,
            theirs.1,
            ours.1 / theirs.1
        );
    }
    Ok(partitions.shutdown().await?)
}

async fn follow(
    mut client: Client,
    seen: Arc<AtomicU64>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> Result<(), Failure> {
    let options = || Some(WatchOptions::new().with_prefix());
    let mut stream = client.watch("tenant/", options()).await?;
    for _ in 1..PER_STREAM {
        stream.watch("tenant/", options()).await?;
    }
    tasks.spawn(async move {
        while let Ok(Some(response)) = stream.message().await {
            seen.fetch_add(response.events().len() as u64, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Puts per second, and events delivered per second until all were.
async fn deliver(
    target: Target,
    watchers: usize,
    extent: Extent,
    seen: &AtomicU64,
) -> Result<(f64, f64), Failure> {
    let begun = Instant::now();
    let outcome = measure(&target, 1, extent.length).await?;
    let puts = (outcome.per_second * begun.elapsed().as_secs_f64()) as u64;
    let wanted = puts * watchers as u64 * 99 / 100;
    let patience = extent.length * 10 + Duration::from_secs(10);
    while seen.load(Ordering::Relaxed) < wanted && begun.elapsed() < patience {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let delivered = seen.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    Ok((outcome.per_second, delivered))
}
