//! Range reads: pages of 500 objects of 1 KiB, of the latest.

use std::{path::Path, time::Instant};

use etcd_client::{GetOptions, KvClient};
use insula_partition::store::{Durability, ReadAt, Store};

use crate::{
    Extent, Failure, etcd,
    load::{Target, object, pods},
    puts,
};

const OBJECTS: usize = 10_000;
const PAGE: usize = 500;
const READERS: [usize; 2] = [1, 16];

fn key(n: usize) -> String {
    format!("tenant/ns{:02}/pod-{n:05}", n / PAGE)
}

async fn fill(mut target: Target) -> Result<(), Failure> {
    let mut tasks = tokio::task::JoinSet::new();
    for part in 0..50 {
        let mut target = target.clone();
        tasks.spawn(async move {
            for n in (part..OBJECTS).step_by(50) {
                target.put(&key(n), object()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    target.put("tenant/other/last", object()).await
}

pub(crate) async fn ranges(dir: &Path, extent: Extent) -> Result<(), Failure> {
    let (partitions, store) = puts::open(&dir.join("reads")).await?;
    let etcds = etcd::start(&dir.join("reads-etcd"), 1, false).await?;
    let client = etcd::client(&etcds).await?.kv_client();
    fill(Target::Store(store.clone(), Durability::Durable)).await?;
    fill(Target::Etcd(Box::new(client.clone()))).await?;
    println!("\nLinearizable reads of {PAGE} objects of 1 KiB out of {OBJECTS}\n");
    println!("| readers | target | reads/s | embedded is |");
    println!("|---|---|---|---|");
    for readers in READERS {
        let ours = rate(readers, extent, async |n| ours(&*store, n).await).await?;
        let theirs = rate(readers, extent, async |n| theirs(client.clone(), n).await).await?;
        println!("| {readers} | embedded | {ours:.0} | 1.0x |");
        println!("| {readers} | etcd | {theirs:.0} | {:.1}x |", ours / theirs);
    }
    Ok(partitions.shutdown().await?)
}

async fn ours(store: &dyn Store, n: usize) -> Result<usize, Failure> {
    let snapshot = store.read(&pods(), ReadAt::Latest).await?;
    let prefix = format!("tenant/ns{:02}/", n % (OBJECTS / PAGE));
    // Taken as they would be sent: shared bytes, each looked at.
    let taken: Vec<_> =
        snapshot.range(&prefix, None).map(|(_, entry)| entry.value.clone()).collect();
    Ok(taken.iter().filter(|value| value.bytes().first() == Some(&b'{')).count())
}

async fn theirs(mut client: KvClient, n: usize) -> Result<usize, Failure> {
    let prefix = format!("tenant/ns{:02}/", n % (OBJECTS / PAGE));
    let found = client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
    Ok(found.kvs().iter().filter(|kv| kv.value().first() == Some(&b'{')).count())
}

async fn rate(
    readers: usize,
    extent: Extent,
    read: impl AsyncFn(usize) -> Result<usize, Failure>,
) -> Result<f64, Failure> {
    let begun = Instant::now();
    let reader = async |reader: usize| {
        let mut reads = 0;
        while begun.elapsed() < extent.length {
            let found = read(reader + reads).await?;
            if found != PAGE {
                return Err::<usize, Failure>(format!("{found} objects instead of {PAGE}").into());
            }
            reads += 1;
            tokio::task::yield_now().await;
        }
        Ok(reads)
    };
    let all = futures::future::try_join_all((0..readers).map(reader)).await?;
    Ok(all.iter().sum::<usize>() as f64 / begun.elapsed().as_secs_f64())
}
