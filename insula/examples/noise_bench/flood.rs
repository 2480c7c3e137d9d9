//! The noisy tenant: a process that asks for as much as it gets.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::{Failure, JSON, client::Client, neighbour::Neighbour};

/// Connections that write, and that list.
const WRITERS: usize = 32;
const LISTERS: usize = 4;
const LARGE: usize = 4;
/// Watches of what is written; a hundred on a connection.
const WATCHES: usize = 10_000;
/// Objects that are there before.
const OBJECTS: usize = 3_000;

/// What the process counts.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    refused: AtomicU64,
    events: AtomicU64,
}

/// Objects that lists find.
pub(crate) async fn prepare(neighbour: &Neighbour) -> Result<(), Failure> {
    let client = neighbour.connect().await?;
    for n in 0..OBJECTS {
        let map =
            json!({"metadata": {"name": format!("old-{n}")}, "data": {"a": "x".repeat(2000)}});
        let (code, _) =
            client.ask(Method::POST, &neighbour.path("configmaps"), JSON, map.to_string()).await?;
        if code != StatusCode::CREATED {
            return Err(format!("the noisy one was answered {code}").into());
        }
    }
    Ok(())
}

/// The process, seen from outside.
pub(crate) struct Flood {
    child: Child,
}

impl Flood {
    pub(crate) fn start(neighbour: &Neighbour, kinds: &[String]) -> Result<Self, Failure> {
        let file = neighbour.write(kinds)?;
        let own = std::env::current_exe()?;
        let start = |command: &mut Command| {
            command.arg("--flood").arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        };
        // Even what is least urgent keeps a processor for a while, unless it is of this class.
        let child = start(Command::new("chrt").args(["--idle", "0"]).arg(&own))
            .or_else(|_| start(&mut Command::new(&own)))?;
        Ok(Self { child })
    }

    /// Ends it, and tells what it did.
    pub(crate) fn stop(&mut self) -> Result<String, Failure> {
        // It ends when its input does.
        drop(self.child.stdin.take());
        let mut told = String::new();
        if let Some(out) = self.child.stdout.take() {
            BufReader::new(out).read_line(&mut told)?;
        }
        self.child.wait()?;
        Ok(told.trim().to_owned())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself.
pub(crate) async fn run(orders: &Path) -> Result<(), Failure> {
    rustix::process::setpriority_process(None, 19)?;
    let (neighbour, kinds) = Neighbour::read(orders)?;
    let wants = |kind: &str| kinds.is_empty() || kinds.iter().any(|it| it == kind);
    let counts = Arc::<Counts>::default();
    let neighbour = Arc::new(neighbour);
    if wants("watch") {
        for _ in 0..WATCHES / 100 {
            let client = neighbour.connect().await?;
            for n in 0..100 {
                tokio::spawn(watch(neighbour.clone(), client.clone(), counts.clone(), n));
            }
        }
    }
    for (kind, number) in [("write", WRITERS), ("list", LISTERS), ("large", LARGE)] {
        for n in 0..number {
            if wants(kind) {
                let client = neighbour.connect().await?;
                tokio::spawn(ask(neighbour.clone(), client, counts.clone(), kind, n));
            }
        }
    }
    // Counted from when it has begun.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let read = |it: &AtomicU64| it.load(Ordering::Relaxed);
    let before = [&counts.answered, &counts.refused, &counts.events].map(read);
    let begun = std::time::Instant::now();
    tokio::task::spawn_blocking(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
    })
    .await?;
    let after = [&counts.answered, &counts.refused, &counts.events].map(read);
    let rate = |at: usize| (after[at] - before[at]) as f64 / begun.elapsed().as_secs_f64();
    let mut out = std::io::stdout();
    let [answered, refused, events] = [rate(0), rate(1), rate(2)];
    writeln!(out, "{answered:.0} answers, {refused:.0} refusals, {events:.0} events a second")?;
    out.flush()?;
    std::process::exit(0)
}

/// Asks without end, one request after the other.
async fn ask(
    neighbour: Arc<Neighbour>,
    client: Client,
    counts: Arc<Counts>,
    kind: &'static str,
    own: usize,
) {
    let maps = neighbour.path("configmaps");
    let size = if kind == "large" { 500_000 } else { 1_000 };
    let name = format!("{kind}-{own}");
    let made = |n: u64| {
        let data = json!({"a": "x".repeat(size), "n": n.to_string()});
        json!({"metadata": {"name": name}, "data": data}).to_string()
    };
    let _ = client.ask(Method::POST, &maps, JSON, made(0)).await;
    for n in 1_u64.. {
        let answer = match kind {
            "list" => client.ask(Method::GET, &maps, JSON, String::new()).await,
            _ => client.ask(Method::PUT, &format!("{maps}/{name}"), JSON, made(n)).await,
        };
        match answer {
            Ok((code, _)) if code.is_success() => counts.answered.fetch_add(1, Ordering::Relaxed),
            // It does not wait as long as it is told to.
            Ok(_) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                counts.refused.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// Watches without end. One in ten is told of every change, the others look at it in vain.
async fn watch(neighbour: Arc<Neighbour>, client: Client, counts: Arc<Counts>, own: usize) {
    let maps = neighbour.path("configmaps");
    let path = match own % 10 {
        0 => format!("{maps}?watch=1"),
        _ => format!("{maps}?watch=1&labelSelector=none%3Dsuch"),
    };
    loop {
        if let Ok(response) = client.send(Method::GET, &path, JSON, String::new()).await {
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.frame().await {
                counts.events.fetch_add(1, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
