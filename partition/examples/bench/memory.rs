//! What a million objects weigh, and how long a start takes after the process was killed.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    time::{Duration, Instant},
};

use insula_partition::store::Durability;

use crate::{
    Extent, Failure, child,
    load::{Target, measure, object},
    puts,
};

const WRITERS: u64 = 100;

/// How long puts are measured beside a checkpoint.
const CHECKPOINT: Duration = Duration::from_secs(4);

pub(crate) async fn million(dir: &Path, extent: Extent) -> Result<(), Failure> {
    let at = dir.join("memory");
    println!("\n{} objects of 1 KiB\n", extent.objects);
    let mut filling =
        child::command()?.arg("fill").arg(&at).arg(extent.objects.to_string()).spawn()?;
    let output = filling.stdout.take().ok_or("no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line == "filled" {
            break;
        }
        println!("{line}");
    }
    // In the middle of its work: nothing is put in order before.
    filling.kill()?;
    filling.wait()?;
    // A second time, from what the first one left.
    for what in ["after kill -9", "after a clean end, from a checkpoint"] {
        let started = child::command()?.arg("start").arg(&at).output()?;
        print!("{what}: {}", String::from_utf8(started.stdout)?);
    }
    Ok(())
}

/// Resident memory of this process, in bytes.
fn resident() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kib << 10)
}

/// Writes the objects, says what they weigh, and waits to be killed.
pub(crate) async fn fill(dir: &Path, objects: u64) -> Result<(), Failure> {
    let before = resident()?;
    let (partitions, store) = puts::open(dir).await?;
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let mut target = Target::Store(store.clone(), Durability::Durable);
        tasks.spawn(async move {
            for n in (writer..objects).step_by(WRITERS as usize) {
                target.put(&format!("tenant/default/pod-{n:08}"), object()).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let took = begun.elapsed();
    weigh("right after", before, &*store)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    weigh("at rest", before, &*store)?;
    println!("written durably in {took:.1?}");
    let target = Target::Store(store.clone(), Durability::Durable);
    let quiet = measure(&target, 16, CHECKPOINT).await?;
    let (checkpoint, busy) =
        tokio::join!(timed(partitions.checkpoint()), measure(&target, 16, CHECKPOINT));
    let (checkpoint, busy) = (checkpoint?, busy?);
    println!(
        "16 writers: {:.0} puts/s (worst {:.0?}); {:.0} (worst {:.0?}) with a checkpoint of {checkpoint:.1?}",
        quiet.per_second, quiet.worst, busy.per_second, busy.worst
    );
    weigh("after that", before, &*store)?;
    println!("filled");
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}

async fn timed<E: Into<Failure>>(
    work: impl Future<Output = Result<(), E>>,
) -> Result<Duration, Failure> {
    let begun = Instant::now();
    work.await.map_err(Into::into)?;
    Ok(begun.elapsed())
}

fn weigh(
    when: &str,
    before: u64,
    store: &dyn insula_partition::store::Store,
) -> Result<(), Failure> {
    let (stats, resident) = (store.stats(), resident()?);
    println!(
        "{when}: {} MiB of memory for {} MiB of keys and values, {:.2}x",
        (resident - before) >> 20,
        stats.bytes >> 20,
        (resident - before) as f64 / stats.bytes as f64
    );
    Ok(())
}

/// Opens what is there, says how long it took and what it weighs, and ends in good order.
pub(crate) async fn start(dir: &Path) -> Result<(), Failure> {
    let before = resident()?;
    let begun = Instant::now();
    let (partitions, store) = puts::open(dir).await?;
    let took = begun.elapsed();
    let stats = store.stats();
    let weight = (resident()? - before) as f64 / stats.bytes as f64;
    println!("{} objects are back in {took:.1?}, {weight:.2}x their size in memory", stats.objects);
    let begun = Instant::now();
    partitions.checkpoint().await?;
    println!("    a checkpoint takes {:.1?} in the background", begun.elapsed());
    Ok(partitions.shutdown().await?)
}
