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
//! | `replicaset`, `deployment`, `statefulset`, `daemonset`, `job`, `cronjob` | workloads |
//! | `services` | what is behind services |
//! | `ttl`, `pod_gc` | the end of jobs and pods that nobody looks at any more |
//! | `certificates` | certificate requests: signs and forgets them |
//! | `protection` | claims, volumes and their classes, while they are used |
//! | `gc` | owners and what they own |
//! | `quota` | what is used of resource quotas |
//! | `service_network` | networks of services, while their addresses are used |
//!
//! `everything` is what those that are about objects of all kinds follow; `membership` shares the
//! tenants among replicas.
//!
//! # Invariants
//!
//! * A reconcile gets a key and nothing else, and may run any number of times.
//! * Only keys of tenants that this replica owns are reconciled ([`Ownership`]).
//! * At shutdown nothing new begins, and what has begun ends.

mod certificates;
mod claim;
mod controller;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod everything;
mod expectations;
mod gc;
mod informers;
mod job;
mod membership;
pub mod metrics;
mod namespace;
mod node_lifecycle;
mod objects;
mod pod_control;
mod pod_gc;
mod protection;
mod queue;
mod quota;
mod replicaset;
mod revisions;
mod root_ca;
mod service_network;
mod serviceaccount;
mod services;
mod statefulset;
mod status;
mod taint_eviction;
mod taints;
mod tenant;
mod token_secrets;
mod ttl;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use insula_client::{Client, ClientError, EventRecorder};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{PersistentVolume, PersistentVolumeClaim, ReplicationController},
    storage::v1::VolumeAttributesClass,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    certificates::{SignError, Signer},
    controller::{Observer, Unobserved},
    queue::{Ownership, Permit, Sole},
};
use self::{
    controller::Controller,
    everything::Everything,
    informers::Informers,
    membership::{Copies, Membership},
    protection::Guarded as _,
};

/// How long reconciles that have begun may take to end after shutdown.
const DRAIN: Duration = Duration::from_secs(15);

/// For so long nothing need be heard of a node, if nothing else is configured.
const NODE_GRACE: Duration = Duration::from_secs(50);

/// What the controllers must be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The certificate authority of the API server, PEM; published in every namespace.
    pub root_ca: String,
    /// Signs certificate requests that are approved.
    pub signer: Option<Arc<dyn Signer>>,
    /// The host on which this is a replica among others, with which it shares the work. Without
    /// one it is the only one, and does all of it.
    pub host: Option<String>,
    /// Learns of every reconcile.
    pub observer: Arc<dyn Observer>,
    /// For so long nothing need be heard of a node.
    pub node_grace: Duration,
}

impl Config {
    /// All tenants, alone and unobserved.
    pub fn new(root_ca: impl Into<String>) -> Self {
        Self {
            root_ca: root_ca.into(),
            signer: None,
            host: None,
            observer: Arc::new(Unobserved),
            node_grace: NODE_GRACE,
        }
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
    let replica_client = named("replica")?;
    let replica = config.host.as_ref().map(|host| Membership::new(host, &replica_client, &events));
    let ownership = match &replica {
        Some(replica) => replica.ownership(),
        None => Arc::new(Sole),
    };
    let start = Starter { config: &config, ownership, running: &running, shutdown: &shutdown };
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
    start.start(token_secrets::TokenSecrets::new(
        named(token_secrets::TokenSecrets::NAME)?,
        informers.clone(),
        config.root_ca.clone(),
    ));
    start.start(certificates::Certificates::new(
        named(certificates::Certificates::NAME)?,
        informers.certificate_requests.clone(),
        config.signer.clone(),
    ));
    start.start(replicaset::ReplicaSets::<ReplicaSet>::new(
        named(replicaset::ReplicaSets::<ReplicaSet>::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(replicaset::ReplicaSets::<ReplicationController>::new(
        named(replicaset::ReplicaSets::<ReplicationController>::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(job::Jobs::new(named(job::Jobs::NAME)?, informers.clone(), &events));
    start.start(statefulset::StatefulSets::new(
        named(statefulset::StatefulSets::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(daemonset::DaemonSets::new(
        named(daemonset::DaemonSets::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(cronjob::CronJobs::new(
        named(cronjob::CronJobs::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(job::Strays::new(named(job::Strays::NAME)?, informers.clone()));
    start.start(deployment::Deployments::new(
        named(deployment::Deployments::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(services::Slices::new(named(services::Slices::NAME)?, informers.clone(), &events));
    start.start(services::EndpointsOfServices::new(
        named(services::EndpointsOfServices::NAME)?,
        informers.clone(),
    ));
    start.start(ttl::TtlAfterFinished::new(named(ttl::TtlAfterFinished::NAME)?, informers.clone()));
    start.start(node_lifecycle::NodeLifecycle::new(
        named(node_lifecycle::NodeLifecycle::NAME)?,
        informers.clone(),
        &events,
        config.node_grace,
    ));
    start.start(taint_eviction::TaintEviction::new(
        named(taint_eviction::TaintEviction::NAME)?,
        informers.clone(),
        &events,
    ));
    start.start(pod_gc::PodCollector::new(named(pod_gc::PodCollector::NAME)?, informers.clone()));
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
    start.start(disruption::Disruption::new(
        named(disruption::Disruption::NAME)?,
        informers.clone(),
        everything.clone(),
        &events,
    ));
    everything.start();
    let membership = replica.map(|replica| {
        let copies = Copies { informers: informers.clone(), everything: everything.clone() };
        replica.run(copies, tasks.clone(), shutdown.clone(), supplies.clone())
    });
    // It waits for the reconciles itself before it gives away what they are about.
    let membership = membership.map(|it| tasks.spawn(it));
    running.close();
    shutdown.cancelled().await;
    if tokio::time::timeout(DRAIN, running.wait()).await.is_err() {
        tracing::warn!("some reconciles did not end in time");
    }
    if let Some(membership) = membership
        && let Err(error) = membership.await
    {
        tracing::error!(%error, "what this replica held was not given away");
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
    ownership: Arc<dyn Ownership>,
    running: &'a TaskTracker,
    shutdown: &'a CancellationToken,
}

impl Starter<'_> {
    fn start(&self, controller: impl Controller) {
        self.running.spawn(controller::run(
            Arc::new(controller),
            self.ownership.clone(),
            self.config.observer.clone(),
            self.shutdown.clone(),
        ));
    }
}
