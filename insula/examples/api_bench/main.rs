//! The API server against Kubernetes' own, by the same client in the same run.
//!
//! ```text
//! cargo run --profile dist -p insula --example api_bench [-- --quick] [-- --pods 50000] [-- --only get,..]
//! ```
//!
//! Each subject is its own processes behind TLS: ours on the embedded store, ours on a real etcd,
//! and `kube-apiserver` with etcd if both are found in PATH or in the directory that `INSULA_PEERS`
//! names; who is absent is said. All of them write durably, speak HTTP/2 and JSON, authenticate by
//! client certificate, and authorize by RBAC. What counts is the CPU time of the server's
//! processes for each operation; rates are with the client on the same machine.
//!
//! It ends by itself and removes all it wrote.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a bench stops at what it did not expect, and prints"
)]

mod client;
mod load;
mod objects;
#[allow(dead_code, reason = "another bench uses more of it")]
mod subject;
mod watches;

use std::{error::Error, time::Duration};

use clap::Parser as _;
use http::{Method, StatusCode};
use load::{Row, measure, once};
use objects::{CONFIG_MAPS, PODS, label, pod};
use subject::{Subject, Which};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Requests under way at once, each on a connection of its own.
const CLIENTS: usize = 32;
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Ours on the embedded store and on etcd, and kube-apiserver on etcd, asked the same.
#[derive(Debug, Clone, clap::Parser)]
struct Asked {
    /// A tenth of the watchers, a fifth of the requests
    #[arg(long)]
    quick: bool,
    /// Pods that are made; lists and memory are measured with all of them [default: 20000, or 5000]
    #[arg(long)]
    pods: Option<usize>,
    /// These parts alone, beside making pods
    #[arg(long, value_delimiter = ',', value_parser = PARTS)]
    only: Vec<String>,
}

const PARTS: [&str; 7] = ["get", "patch", "update", "apply", "list", "watch", "restart"];

/// How much is done.
#[derive(Debug, Clone)]
struct Extent {
    pods: usize,
    /// Requests of each other row.
    requests: usize,
    watchers: usize,
    only: Vec<String>,
}

impl From<Asked> for Extent {
    fn from(asked: Asked) -> Self {
        let Asked { quick, pods, only } = asked;
        Self {
            pods: pods.unwrap_or(if quick { 5_000 } else { 20_000 }).max(1),
            requests: if quick { 2_000 } else { 10_000 },
            watchers: if quick { 100 } else { 1_000 },
            only,
        }
    }
}

impl Extent {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|it| it == part)
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let extent = Extent::from(Asked::parse());
    let mut results: Vec<(String, Vec<Row>)> = Vec::new();
    for which in [Which::Embedded, Which::OnEtcd, Which::Peer] {
        // One after the other, so that none is in another's way.
        match Subject::start(which).await {
            Ok(mut subject) => {
                eprintln!("{}", subject.name);
                let rows = Box::pin(run(&mut subject, &extent)).await?;
                results.push((subject.name.clone(), rows));
                subject.stop().await?;
            }
            Err(error) => eprintln!("left out: {error}"),
        }
    }
    print(&results);
    Ok(())
}

/// All rows of one subject.
async fn run(subject: &mut Subject, extent: &Extent) -> Result<Vec<Row>, Failure> {
    let mut rows = vec![Row::of_time("start to ready, empty", subject.started_in)];
    let clients = subject.connect(CLIENTS).await?;
    objects::prepare(&clients[0]).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    rows.push(Row::of_memory("memory, idle", subject.memory()?));

    let made = measure("create a pod", subject, &clients, extent.pods, StatusCode::CREATED, |n| {
        (Method::POST, PODS.into(), JSON, pod(n))
    });
    rows.push(made.await?);
    let each = |memory: u64| memory.saturating_sub(rows[1].memory) / extent.pods as u64;
    let memory = each(subject.memory()?);
    rows.push(Row::of_memory("memory for each pod", memory));
    let name = |n: usize| format!("{PODS}/web-{:06}", n % extent.pods);
    let (_, pod) = clients[0].ask(Method::GET, &name(0), JSON, String::new()).await?;
    rows.push(Row::of_memory("a pod, as it is got", pod.len() as u64));
    let count = extent.requests;
    if extent.wants("get") {
        let row = measure("get a pod", subject, &clients, count * 3, StatusCode::OK, |n| {
            (Method::GET, name(n * 7), JSON, String::new())
        });
        rows.push(row.await?);
    }
    if extent.wants("patch") {
        let row = measure("patch a label", subject, &clients, count, StatusCode::OK, |n| {
            (Method::PATCH, name(n), MERGE, label("changed", n))
        });
        rows.push(row.await?);
    }
    if extent.wants("update") {
        let row = measure("put a config map", subject, &clients, count, StatusCode::OK, |n| {
            let (path, body) = objects::config_map(n);
            (Method::PUT, path, JSON, body)
        });
        rows.push(row.await?);
    }
    if extent.wants("apply") {
        let row = measure("apply a label", subject, &clients, count, StatusCode::OK, |n| {
            let path = format!("{}?fieldManager=bench&force=true", name(n));
            (Method::PATCH, path, APPLY, objects::applied(n % extent.pods))
        });
        rows.push(row.await?);
    }
    if extent.wants("list") {
        for (what, path) in [
            (format!("list of {} pods", extent.pods), PODS.to_owned()),
            ("first page of 500".into(), format!("{PODS}?limit=500")),
            ("list by spec.nodeName".into(), format!("{PODS}?fieldSelector=spec.nodeName%3Dn7")),
        ] {
            rows.push(once(&what, subject, &clients[0], &path, 7).await?);
        }
    }
    if extent.wants("watch") {
        rows.extend(watches::measure(subject, extent.watchers, 300, CONFIG_MAPS).await?);
    }
    if extent.wants("restart") {
        drop(clients);
        let name = format!("killed, and ready again with {} pods", extent.pods);
        rows.push(Row::of_time(&name, subject.restart().await?));
    }
    Ok(rows)
}

/// A table with a line for each row, and how often the peer needs what the others need.
fn print(results: &[(String, Vec<Row>)]) {
    let peer = results.iter().find(|(name, _)| name.starts_with("kube-apiserver"));
    let Some((_, first)) = results.first() else { return };
    for (at, row) in first.iter().enumerate() {
        println!("\n{}", row.name);
        for (name, rows) in results {
            let row = &rows[at];
            let ratio = match peer {
                Some((peer, rows)) if peer != name => rows[at].ratio_to(row),
                _ => String::new(),
            };
            println!("    {name:28} {row} {ratio}");
        }
    }
    if peer.is_none() {
        println!("\nkube-apiserver was absent: no ratios. INSULA_PEERS names its directory.");
    }
}
