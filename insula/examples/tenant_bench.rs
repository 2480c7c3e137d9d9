//! Many tenants on one server: how fast they are made, what an idle one costs, and how soon one
//! answers that was never asked anything.
//!
//! ```text
//! cargo run --profile dist -p insula --example tenant_bench [-- --tenants 20000]
//! ```
//!
//! The server runs alone, on the embedded store, without controllers: so a tenant here is what the
//! API server writes when it is made (roles, bindings, priorities, the API as a service), and not
//! yet the namespaces and accounts that controllers add. Memory is that of the server's process.
//! It ends by itself and removes all it wrote.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints")]

#[path = "api_bench/client.rs"]
mod client;
#[path = "api_bench/load.rs"]
#[allow(dead_code, reason = "another bench measures more of it")]
mod load;
#[path = "api_bench/subject.rs"]
#[allow(dead_code, reason = "another bench measures more of it")]
mod subject;

use std::{error::Error, time::Duration};

use clap::Parser as _;
use http::{Method, StatusCode};
use load::{measure, once};
use subject::{Subject, Which};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;
pub(crate) const JSON: &str = "application/json";

const MERGE: &str = "application/merge-patch+json";
const TENANTS: &str = "/apis/insula.io/v1/tenants";
/// Requests under way at once, each on a connection of its own.
const CLIENTS: usize = 32;

#[derive(Debug, Clone, clap::Parser)]
struct Asked {
    /// How many are made
    #[arg(long, default_value_t = 5_000)]
    tenants: usize,
}

fn tenant(n: usize) -> String {
    format!(r#"{{"apiVersion":"insula.io/v1","kind":"Tenant","metadata":{{"name":"t{n}"}}}}"#)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let n_tenants = Asked::parse().tenants.max(CLIENTS);
    let subject = Subject::start(Which::Embedded).await?;
    let clients = subject.connect(CLIENTS).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = subject.memory()?;
    let made = measure("", &subject, &clients, n_tenants, StatusCode::CREATED, |n| {
        (Method::POST, TENANTS.to_owned(), JSON, tenant(n))
    });
    println!("{:40} {}", "make a tenant", made.await?);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let each = subject.memory()?.saturating_sub(idle) / n_tenants as u64;
    println!("{:40} {:.1} KB", "memory of a tenant", each as f64 / 1e3);
    // Each is asked for the first time, by one client, so that none waits for another.
    let first = measure("", &subject, &clients[..1], n_tenants.min(2_000), StatusCode::OK, |n| {
        let path = format!("/tenants/t{n}/apis/rbac.authorization.k8s.io/v1/clusterroles/admin");
        (Method::GET, path, JSON, String::new())
    });
    println!("{:40} {}", "a tenant's first request", first.await?);
    let listed = once("", &subject, &clients[0], TENANTS, 5).await?;
    println!("{:40} {listed}", "list of all tenants");
    // Nobody else is there to do what is done before: it is the server's part that is measured.
    let marked = measure("", &subject, &clients, n_tenants, StatusCode::OK, |n| {
        (Method::DELETE, format!("{TENANTS}/t{n}"), JSON, String::new())
    });
    println!("{:40} {}", "ask a tenant to end", marked.await?);
    let ended = measure("", &subject, &clients, n_tenants, StatusCode::OK, |n| {
        let none = r#"{"metadata":{"finalizers":null}}"#.to_owned();
        (Method::PATCH, format!("{TENANTS}/t{n}"), MERGE, none)
    });
    println!("{:40} {}", "remove all that it has", ended.await?);
    subject.stop().await
}
