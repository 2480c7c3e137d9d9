//! The embedded backend against a real etcd on the same disk, in turns, by the same client.
//!
//! ```text
//! cargo run --release -p insula-partition --example bench [-- --quick] [-- --only puts,slow,..]
//! ```
//!
//! What is compared is what an API server would have: the embedded backend is called in its
//! process, an etcd over loopback by its own client. Nothing is left out of either: both answer
//! a durable put after their log was flushed. `etcd` is a bare etcd client and server, without
//! the cache and the watch that our etcd backend adds to it.
//!
//! With slow flushes, `strace` makes every fdatasync and fsync of both take a millisecond longer;
//! there the embedded backend and its callers are a process of their own, as etcd is.
//!
//! It ends by itself and removes all it wrote.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is what it is for")]

mod child;
mod etcd;
mod group;
mod load;
mod memory;
mod puts;
mod reads;
mod watches;

use std::{error::Error, fs, path::Path, time::Duration};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// How long and how often to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) length: Duration,
    pub(crate) rounds: usize,
    pub(crate) objects: u64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "child") {
        return child::run(&arguments[1..]).await;
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let wanted = |part: &str| only.is_none_or(|only| only.split(',').any(|name| name == part));
    let extent = if quick {
        Extent { length: Duration::from_secs(1), rounds: 1, objects: 100_000 }
    } else {
        Extent { length: Duration::from_secs(2), rounds: 3, objects: 1_000_000 }
    };
    let dir = std::env::temp_dir().join(format!("insula-bench-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let outcome = Box::pin(run(&dir, extent, &wanted)).await;
    fs::remove_dir_all(&dir)?;
    outcome
}

async fn run(
    dir: &Path,
    extent: Extent,
    wanted: &(dyn Fn(&str) -> bool + Sync),
) -> Result<(), Failure> {
    println!("against etcd {}, {}\n", etcd::version()?, busy()?);
    if wanted("puts") {
        Box::pin(puts::durable(dir, extent)).await?;
        Box::pin(puts::relaxed(dir, extent)).await?;
    }
    if wanted("slow") {
        Box::pin(puts::slow_flushes(dir, extent)).await?;
    }
    if wanted("reads") {
        Box::pin(reads::ranges(dir, extent)).await?;
    }
    if wanted("watches") {
        Box::pin(watches::fan_out(dir, extent)).await?;
    }
    if wanted("group") {
        Box::pin(group::of_three(dir, extent)).await?;
    }
    if wanted("memory") {
        Box::pin(memory::million(dir, extent)).await?;
    }
    println!("\nat the end: {}", busy()?);
    Ok(())
}

/// How busy the machine is with other things: its load, and how many cores share it.
fn busy() -> Result<String, Failure> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    let cores = std::thread::available_parallelism()?;
    Ok(format!("load {} on {cores} cores", load.join(" ")))
}
