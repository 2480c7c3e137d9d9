//! The unified scheduler of containers and virtual machines.
//!
//! Gives every pod of every tenant a node. All nodes are columns of packed arrays; filters and
//! scores are passes over them; a decision is a pure function of the table and the pod. One task
//! decides, and remembers at once what it decided, so that no two pods get the same last CPU;
//! bindings are written beside it.
//!
//! # Invariants
//!
//! * A pod is bound only to a node on which, by all that is known and decided, it fits.
//! * Tenants take turns: one tenant's flood of pods delays another's one pod by one decision.
//!
//! # What is deliberately absent
//!
//! No preemption, pod affinity, topology spread or volumes yet: each is a filter or a score more.

mod binding;
mod candidate;
mod decide;
mod dirty;
mod filters;
mod labels;
mod ledger;
mod nodes;
mod queue;
mod requests;
mod scheduler;
mod scores;

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use insula_client::{Client, ClientError, EventRecorder, Informer};
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::candidate::DEFAULT_SCHEDULER;
use self::{
    binding::{Binder, Reporter},
    scheduler::{DRAIN, Scheduler},
};

/// Learns what the scheduler does; for metrics.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// One look for a node ended.
    fn decided(&self, found: bool, took: Duration);
    /// A pod got its node, so long after it was first seen.
    fn scheduled(&self, took: Duration);
    /// So many pods look for a node.
    fn waiting(&self, n_pods: usize);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn decided(&self, _found: bool, _took: Duration) {}
    fn scheduled(&self, _took: Duration) {}
    fn waiting(&self, _n_pods: usize) {}
}

/// What the scheduler must be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The `schedulerName` of the pods to schedule.
    pub name: String,
    /// Learns of every decision.
    pub observer: Arc<dyn Observer>,
}

impl Default for Config {
    /// The default scheduler, unobserved.
    fn default() -> Self {
        Self { name: DEFAULT_SCHEDULER.to_owned(), observer: Arc::new(Unobserved) }
    }
}

/// Why the scheduler cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot name the scheduler's client")]
    Client(#[from] ClientError),
}

/// Schedules pods of all tenants until `shutdown`. `client` must be a user of tenant `system` who
/// may read nodes and pods, bind pods and write their conditions and events.
pub fn run(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed so that it is compiled here, and not with every program around it.
    Box::pin(schedule(config, client, shutdown))
}

async fn schedule(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let client = client.with_user_agent(&format!("insula-scheduler/{}", config.name))?;
    let tasks = TaskTracker::new();
    // Reads and events outlive the bindings that use them.
    let supplies = CancellationToken::new();
    let events = EventRecorder::start(client.clone(), &config.name, "", &tasks, supplies.clone());
    let pods = Informer::builder(client.all().collection::<Pod>())
        .field_selector("status.phase!=Succeeded,status.phase!=Failed")
        .trim(candidate::trim)
        .start(&tasks, supplies.clone());
    let nodes = Informer::builder(client.system().api::<Node>()).start(&tasks, supplies.clone());
    let reporter = Reporter::start(client.clone(), events.clone(), &tasks, supplies.clone());
    let (results, bound) = mpsc::unbounded_channel();
    let bindings = TaskTracker::new();
    let binder = Binder::new(client, events, bindings.clone(), results);
    let scheduler = Scheduler::new(config.name, pods, nodes, binder, reporter, config.observer);
    scheduler.run(bound, shutdown).await;
    bindings.close();
    if tokio::time::timeout(DRAIN, bindings.wait()).await.is_err() {
        tracing::warn!("some bindings did not end in time");
    }
    supplies.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("some watches did not end in time");
    }
    Ok(())
}
