//! Puts: durable, relaxed, and durable where a flush is slow.

use std::{path::Path, time::Duration};

use insula_partition::{
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    store::{Durability, Store},
};
use std::sync::Arc;

use crate::{
    Extent, Failure, child, etcd,
    load::{Outcome, Target, heading, measure, middle, row},
};

const WRITERS: [usize; 3] = [1, 16, 256];

pub(crate) async fn open(dir: &Path) -> Result<(Partitions, Arc<dyn Store>), Failure> {
    let store = StoreConfig::Embedded { partitions: 1 };
    let partitions = Partitions::open(PartitionsConfig::alone(dir.into(), store)).await?;
    let store = partitions.store("p1").ok_or("p1 is missing")?;
    Ok((partitions, store))
}

pub(crate) async fn durable(dir: &Path, extent: Extent) -> Result<(), Failure> {
    let (partitions, store) = open(&dir.join("durable")).await?;
    let etcds = etcd::start(&dir.join("durable-etcd"), 1, false).await?;
    let client = etcd::client(&etcds).await?;
    let ours = Target::Store(store, Durability::Durable);
    let theirs = Target::Etcd(Box::new(client.kv_client()));
    heading("Durable puts of 1 KiB");
    // The first files are made, and the first connections.
    measure(&ours, 16, extent.length).await?;
    measure(&theirs, 16, extent.length).await?;
    for writers in WRITERS {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..extent.rounds {
            a.push(measure(&ours, writers, extent.length).await?);
            b.push(measure(&theirs, writers, extent.length).await?);
        }
        report(writers, a, b);
    }
    Ok(partitions.shutdown().await?)
}

fn report(writers: usize, ours: Vec<Outcome>, theirs: Vec<Outcome>) {
    let (ours, theirs) = (middle(ours), middle(theirs));
    row(&writers.to_string(), "embedded", ours, ours);
    row(&writers.to_string(), "etcd", theirs, ours);
}

/// etcd has no such class: there the same puts are durable.
pub(crate) async fn relaxed(dir: &Path, extent: Extent) -> Result<(), Failure> {
    let (partitions, store) = open(&dir.join("relaxed")).await?;
    let etcds = etcd::start(&dir.join("relaxed-etcd"), 1, false).await?;
    let client = etcd::client(&etcds).await?;
    let ours = Target::Store(store, Durability::Relaxed);
    let theirs = Target::Etcd(Box::new(client.kv_client()));
    heading("Relaxed puts of 1 KiB, as for events and heartbeats; etcd's are durable");
    for writers in WRITERS {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..extent.rounds {
            a.push(measure(&ours, writers, extent.length).await?);
            b.push(measure(&theirs, writers, extent.length).await?);
        }
        report(writers, a, b);
    }
    Ok(partitions.shutdown().await?)
}

pub(crate) async fn slow_flushes(dir: &Path, extent: Extent) -> Result<(), Failure> {
    let etcds = etcd::start(&dir.join("slow-etcd"), 1, true).await?;
    let client = etcd::client(&etcds).await?;
    let theirs = Target::Etcd(Box::new(client.kv_client()));
    heading("The same, with 1 ms added to every flush of both");
    for writers in WRITERS {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for round in 0..extent.rounds {
            let at = dir.join(format!("slow-{writers}-{round}"));
            a.push(child::slow_puts(&at, writers, extent.length)?);
            b.push(measure(&theirs, writers, extent.length).await?);
        }
        report(writers, a, b);
    }
    Ok(())
}

/// What the process below the strace does.
pub(crate) async fn as_child(
    dir: &Path,
    writers: usize,
    length: Duration,
) -> Result<Outcome, Failure> {
    let (partitions, store) = open(dir).await?;
    let target = Target::Store(store, Durability::Durable);
    // The first files are made; etcd has made its own long before.
    measure(&target, writers, length / 2).await?;
    let outcome = measure(&target, writers, length).await?;
    partitions.shutdown().await?;
    Ok(outcome)
}
