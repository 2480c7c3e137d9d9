//! The workload controller manager.
//!
//! Every controller follows the same pattern: informers tell which keys are worth a look, a
//! queue hands the keys out tenant by tenant, and a reconcile observes, plans (a pure function)
//! and acts. All controllers share one set of informers, each over all tenants.
//!
//! | file | keeps |
//! |---|---|
//! | `tenant` | tenants: their first namespaces, their end |
//! | `namespace` | the end of namespaces |
//! | `serviceaccount`, `root_ca` | what every namespace has |
//! | `replicaset`, `deployment` | workloads |
//! | `protection` | claims, volumes and their classes, while they are used |
//! | `gc` | owners and what they own |
//! | `quota` | what is used of resource quotas |
//! | `service_network` | networks of services, while their addresses are used |
//!
//! `everything` is what those that are about objects of all kinds follow.
//!
//! # Invariants
//!
//! * A reconcile gets a key and nothing else, and may run any number of times.
//! * Only keys of tenants that this replica owns are reconciled ([`Ownership`]).
//! * At shutdown nothing new begins, and what has begun ends.

mod claim;
mod controller;
mod deployment;
mod everything;
mod expectations;
mod gc;
mod informers;
pub mod metrics;
mod namespace;
mod objects;
mod protection;
mod queue;
mod quota;
mod replicaset;
mod root_ca;
mod service_network;
mod serviceaccount;
mod status;
mod tenant;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use insula_client::{Client, ClientError, EventRecorder};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::VolumeAttributesClass,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    controller::Controller, everything::Everything, informers::Informers, protection::Guarded as _,
};
pub use self::{
    controller::{Observer, Unobserved},
    queue::{Ownership, Sole},
};

/// How long reconciles that have begun may take to end after shutdown.
const DRAIN: Duration = Duration::from_secs(15);

/// What the controllers must be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The certificate authority of the API server, PEM; published in every namespace.
    pub root_ca: String,
    /// Which tenants' objects to reconcile.
    pub ownership: Arc<dyn Ownership>,
    /// Learns of every reconcile.
    pub observer: Arc<dyn Observer>,
}

impl Config {
    /// All tenants, unobserved.
    pub fn new(root_ca: impl Into<String>) -> Self {
        Self { root_ca: root_ca.into(), ownership: Arc::new(Sole), observer: Arc::new(Unobserved) }
    }
}

/// Why the controllers cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot name the controllers' clients")]
    Client(#[from] ClientError),
}

/// Runs all controllers until `shutdown`. `client` must be a user of tenant `system` who may do
/// all that controllers do.
pub fn run(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed so that it is compiled here, and not with every program around it.
    Box::pin(run_all(config, client, shutdown))
}

async fn run_all(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let tasks = TaskTracker::new();
    let named = |name: &str| client.with_user_agent(&format!("insula-controllers/{name}"));
    // Reads and events outlive the reconciles that use them.
    let supplies = CancellationToken::new();
    let informers = Informers::start(&named("informers")?, &tasks, &supplies);
    let events = EventRecorder::start(named("events")?, "", "", &tasks, supplies.clone());

    let running = TaskTracker::new();
    let start = Starter { config: &config, running: &running, shutdown: &shutdown };
    start.start(tenant::Tenants::new(named(tenant::Tenants::NAME)?, informers.clone(), &events));
    start.start(namespace::Namespaces::new(named(namespace::Namespaces::NAME)?, informers.clone()));
    start.start(serviceaccount::DefaultAccounts::new(
        named(serviceaccount::DefaultAccounts::NAME)?,
        informers.clone(),
    ));
    start.start(root_ca::RootCaPublisher::new(
        named(root_ca::RootCaPublisher::NAME)?,
        informers.clone(),
        config.root_ca.clone(),
    ));
    start.start(replicaset::ReplicaSets::new(
        named(replicaset::ReplicaSets::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(deployment::Deployments::new(
        named(deployment::Deployments::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(protection::Protection::new(
        named(PersistentVolumeClaim::CONTROLLER)?,
        informers.claims.clone(),
        informers.clone(),
    ));
    start.start(protection::Protection::new(
        named(PersistentVolume::CONTROLLER)?,
        informers.volumes.clone(),
        informers.clone(),
    ));
    start.start(protection::Protection::new(
        named(VolumeAttributesClass::CONTROLLER)?,
        informers.volume_classes.clone(),
        informers.clone(),
    ));
    let everything = Everything::new(named("metadata")?, tasks.clone(), supplies.clone());
    start.start(gc::GarbageCollector::new(named(gc::GarbageCollector::NAME)?, everything.clone()));
    start.start(quota::Quotas::new(named(quota::Quotas::NAME)?, &informers, everything.clone()));
    start.start(service_network::ServiceNetworks::new(
        named(service_network::ServiceNetworks::NAME)?,
        &informers,
        everything.clone(),
    ));
    everything.start();
    running.close();
    shutdown.cancelled().await;
    if tokio::time::timeout(DRAIN, running.wait()).await.is_err() {
        tracing::warn!("some reconciles did not end in time");
    }
    drop(events);
    supplies.cancel();
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::warn!("some watches did not end in time");
    }
    Ok(())
}

/// Starts controllers of every type in the same way.
struct Starter<'a> {
    config: &'a Config,
    running: &'a TaskTracker,
    shutdown: &'a CancellationToken,
}

impl Starter<'_> {
    fn start(&self, controller: impl Controller) {
        self.running.spawn(controller::run(
            Arc::new(controller),
            self.config.ownership.clone(),
            self.config.observer.clone(),
            self.shutdown.clone(),
        ));
    }
}
