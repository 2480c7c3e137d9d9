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
//! * Tenants take turns, the more the less they have: one tenant's flood of pods delays another's
//!   first pod by one decision.

mod alike;
mod best;
mod binding;
mod budgets;
mod changes;
mod config;
mod core;
mod devices;
mod dirty;
mod framework;
mod gangs;
mod grouping;
mod hinting;
mod images;
mod informers;
mod kinds;
mod labels;
mod ledger;
mod measured;
mod nodes;
mod nominations;
mod offers;
mod outlook;
mod passes;
mod plugins;
mod pod;
mod preempting;
mod profile;
mod qos;
mod queue;
mod replica;
mod reporting;
mod requests;
mod reservations;
mod scheduler;
mod shares;
#[cfg(test)]
mod sim;
mod storage;
mod tables;
mod tally;
mod usage;
mod workloads;
mod world;

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use insula_client::{Client, ClientError, EventRecorder};
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    binding::{Binder, DeviceClaims, Volumes},
    grouping::Grouping,
    hinting::Hinter,
    informers::{Informers, Offered},
    preempting::Evictor,
    queue::{Backoff, Queue},
    replica::Copies,
    reporting::Reporter,
    scheduler::{DRAIN, Scheduler},
    shares::Shares,
};
pub use self::{
    config::{ConfigError, Configuration},
    core::Core,
    pod::{DEFAULT_SCHEDULER, Pod},
    profile::Profile,
};

/// Learns what the scheduler does; for metrics.
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// One look for a node ended.
    fn decided(&self, found: bool, took: Duration);
    /// A pod got its node, so long after it was first seen.
    fn scheduled(&self, took: Duration);
    /// So many pods look for a node.
    fn waiting(&self, n_pods: usize);
    /// One request was made that is to bind so many pods.
    fn asked_to_bind(&self, n_pods: usize);
}

/// Observes nothing.
#[derive(Debug, Clone, Copy)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn decided(&self, _found: bool, _took: Duration) {}
    fn scheduled(&self, _took: Duration) {}
    fn waiting(&self, _n_pods: usize) {}
    fn asked_to_bind(&self, _n_pods: usize) {}
}

/// What the scheduler must be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// What pods may ask for by `schedulerName`.
    pub profiles: Vec<Profile>,
    /// How long a pod waits after it found no node: after the first time, and at most.
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// The host on which this is a replica among others, with which it shares the work, if the
    /// server knows of replicas. Without one it is the only one, and does all of it.
    pub host: Option<String>,
    /// Learns of every decision.
    pub observer: Arc<dyn Observer>,
}

impl Config {
    /// What a configuration file says, unobserved.
    pub fn of(configuration: Configuration) -> Self {
        let Configuration { profiles, initial_backoff, max_backoff } = configuration;
        Self { profiles, initial_backoff, max_backoff, ..Self::default() }
    }
}

impl Default for Config {
    /// The default scheduler, unobserved.
    fn default() -> Self {
        let backoff = Backoff::default();
        Self {
            profiles: vec![Profile::default()],
            initial_backoff: backoff.first,
            max_backoff: backoff.longest,
            host: None,
            observer: Arc::new(Unobserved),
        }
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
    let name = config.profiles.first().map_or(DEFAULT_SCHEDULER, |it| &*it.name).to_owned();
    let client = client.with_user_agent(&format!("insula-scheduler/{name}"))?;
    let tasks = TaskTracker::new();
    // Reads and events outlive the bindings that use them.
    let supplies = CancellationToken::new();
    let events = EventRecorder::start(client.clone(), &name, "", &tasks, supplies.clone());
    let changed = Arc::new(Notify::new());
    let asked = offers::offers(&client, offers::GROUPS, "podgroups");
    let Some(has_groups) = shutdown.run_until_cancelled(asked).await else { return Ok(()) };
    let asked = offers::offers(&client, offers::DEVICES, "resourceclaims");
    let Some(has_devices) = shutdown.run_until_cancelled(asked).await else { return Ok(()) };
    let offered = Offered { groups: has_groups, devices: has_devices };
    let informers = Informers::start(&client, offered, &changed, &tasks, &supplies);
    if config.profiles.iter().any(Profile::looks_at_load) {
        let measurements = informers.measurements.clone();
        tasks.spawn(measurements.follow(client.clone(), changed.clone(), supplies.clone()));
    }
    let reporter = Reporter::start(client.clone(), events.clone(), &tasks, supplies.clone());
    let (results, done) = mpsc::unbounded_channel();
    let bindings = TaskTracker::new();
    let volumes = Volumes {
        claims: informers.claims.clone(),
        volumes: informers.volumes.clone(),
        claims_changed: informers.claims_changed.clone(),
    };
    let device_claims = DeviceClaims {
        claims: informers.devices.as_ref().map(|it| it.claims.clone()),
        changed: informers.device_claims_changed.clone(),
    };
    let grouping = Grouping::new(client.clone(), bindings.clone());
    let hinter = Hinter::new(client.clone(), events.clone(), bindings.clone());
    let evictor = Evictor::new(client.clone(), events.clone(), bindings.clone(), results.clone());
    let replica_client = client.clone();
    let binder = Binder::start(
        client,
        events.clone(),
        bindings.clone(),
        results,
        (volumes, device_claims),
        config.observer.clone(),
        (&tasks, &supplies),
    );
    let backoff = Backoff { first: config.initial_backoff, longest: config.max_backoff };
    let membership = match &config.host {
        Some(host) => shutdown
            .run_until_cancelled(replica::join(host, &replica_client, &events))
            .await
            .flatten(),
        None => None,
    };
    let shares = Shares::of(membership.as_ref().map(|it| it.held().clone()));
    let replica = membership.map(|membership| {
        let work = Copies { informers: informers.clone(), changed: changed.clone() };
        let leaving = shutdown.clone();
        let running = membership.run(Arc::new(work), tasks.clone(), leaving, supplies.clone());
        tasks.spawn(running)
    });
    let scheduler = Scheduler::new(
        Core::new(config.profiles),
        Queue::new(backoff),
        shares,
        informers,
        changed,
        binder,
        evictor,
        reporter,
        grouping,
        hinter,
        config.observer,
    );
    scheduler.run(done, shutdown).await;
    bindings.close();
    if tokio::time::timeout(DRAIN, bindings.wait()).await.is_err() {
        tracing::warn!("some bindings did not end in time");
    }
    // What it held is given away once nothing is bound there any more.
    if let Some(replica) = replica
        && let Err(error) = replica.await
    {
        tracing::error!(%error, "what this replica held was not given away");
    }
    supplies.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("some watches did not end in time");
    }
    Ok(())
}
