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
//! | `autoscaler` | how many pods workloads have, by what they use |
//! | `node_ipam` | addresses that nodes have for their pods |
//! | `ttl`, `pod_gc` | the end of jobs and pods that nobody looks at any more |
//! | `bootstrap_tokens` | tokens to join with, and what they vouch for |
//! | `certificates` | certificate requests: signs and forgets them |
//! | `volume_binder`, `volume_expander`, `ephemeral_volume` | claims and volumes, for one another |
//! | `attachments` | volumes of pods on the nodes that the pods are on |
//! | `device_taints` | pods that use devices with taints |
//! | `resource_claims` | claims of devices: those of pods, and those that nobody uses |
//! | `protection` | claims, volumes and their classes, while they are used |
//! | `gc` | owners and what they own |
//! | `quota` | what is used of resource quotas |
//! | `service_network` | networks of services, while their addresses are used |
//!
//! `everything` is what those that are about objects of all kinds follow; `insula_membership` shares
//! the tenants among replicas.
//!
//! # Invariants
//!
//! * A reconcile gets a key and nothing else, and may run any number of times.
//! * Only keys of tenants that this replica owns are reconciled ([`Ownership`]).
//! * At shutdown nothing new begins, and what has begun ends.

mod attachments;
mod autoscaler;
mod bootstrap_tokens;
mod certificate_approval;
mod certificates;
mod claim;
mod controller;
mod copies;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taints;
mod disruption;
mod ephemeral_volume;
mod everything;
mod expectations;
#[cfg(test)]
mod fake;
pub mod framework;
mod gc;
mod informers;
mod job;
pub mod metrics;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod objects;
mod pod_control;
mod pod_gc;
mod protection;
mod queue;
mod quota;
mod replicaset;
mod resource_claims;
mod revisions;
mod root_ca;
mod service_network;
mod serviceaccount;
mod services;
mod starter;
mod statefulset;
mod status;
mod taint_eviction;
mod taints;
mod tenant;
mod token_secrets;
mod ttl;
mod volume_binder;
mod volume_expander;
mod written;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use insula_api::slots::Slots;
use insula_client::{Client, ClientError, ControllerInstance, EventRecorder};
use insula_membership::Membership;
pub use insula_membership::{Ownership, Permit, Sole};
use ipnet::IpNet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    certificate_approval::NodeAskedFor,
    certificates::{SignError, Signer},
    controller::{Observer, Unobserved},
    node_ipam::PoolError,
    starter::{Choice, UnknownController, controllers},
};
use self::{copies::Copies, everything::Everything, informers::Informers, starter::Starter};

/// How long reconciles that have begun may take to end after shutdown.
const DRAIN: Duration = Duration::from_secs(15);

/// For so long nothing need be heard of a node, if nothing else is configured.
const NODE_GRACE: Duration = Duration::from_secs(50);

/// How often autoscalers are looked at, if nothing else is configured.
const AUTOSCALE_EVERY: Duration = Duration::from_secs(15);

/// What the controllers must be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The certificate authority of the API server, PEM; published in every namespace.
    pub root_ca: String,
    /// Signs certificate requests that are approved.
    pub signer: Option<Arc<dyn Signer>>,
    /// Which certificate requests are for nodes, and so approved if their makers may be nodes.
    pub node_asked_for: NodeAskedFor,
    /// The host on which this is a replica among others, with which it shares the work. Without
    /// one it is the only one, and does all of it.
    pub host: Option<String>,
    /// Learns of every reconcile.
    pub observer: Arc<dyn Observer>,
    /// For so long nothing need be heard of a node.
    pub node_grace: Duration,
    /// How often autoscalers are looked at.
    pub autoscale_every: Duration,
    /// Ranges of which each node is given a part for its pods, with the prefix length of a part.
    /// Without one, nodes are given nothing.
    pub pod_ranges: Vec<(IpNet, u8)>,
    /// What of them is kept for others, such as services.
    pub kept_ranges: Vec<IpNet>,
    /// Which controllers run. The first choice that is about one counts.
    pub controllers: Vec<Choice>,
}

impl Config {
    /// All tenants, alone and unobserved.
    pub fn new(root_ca: impl Into<String>) -> Self {
        Self {
            root_ca: root_ca.into(),
            signer: None,
            node_asked_for: |_, _| None,
            host: None,
            observer: Arc::new(Unobserved),
            node_grace: NODE_GRACE,
            autoscale_every: AUTOSCALE_EVERY,
            pod_ranges: Vec::new(),
            kept_ranges: Vec::new(),
            controllers: vec![Choice::All],
        }
    }
}

/// Why the controllers cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot name the controllers' clients")]
    Client(#[from] ClientError),
    #[error("nodes cannot be given addresses for their pods")]
    PodRanges(#[from] PoolError),
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
    // Reads and events outlive the reconciles that use them.
    let supplies = CancellationToken::new();
    // One among others has nothing before it owns anything.
    let slots = if config.host.is_some() { Slots::none() } else { Slots::all() };
    let informers = Informers::start(&named(&client, "informers")?, &slots, &tasks, &supplies);
    let events = EventRecorder::start(named(&client, "events")?, "", "", &tasks, supplies.clone());

    let running = TaskTracker::new();
    let replica_client = named(&client, "replica")?;
    let replica = config
        .host
        .as_ref()
        .map(|host| Membership::<ControllerInstance>::new(host, &replica_client, &events));
    let ownership: Arc<dyn Ownership> = match &replica {
        Some(replica) => replica.held().clone(),
        None => Arc::new(Sole),
    };
    let metadata = named(&client, "metadata")?;
    let everything = Everything::new(metadata, &informers, slots, tasks.clone(), supplies.clone());
    let start = Starter {
        client: &client,
        config: &config,
        informers: &informers,
        everything: &everything,
        events: &events,
        ownership,
        running: &running,
        shutdown: &shutdown,
    };
    start.start_chosen()?;
    everything.start();
    let membership = replica.map(|replica| {
        let copies = Copies {
            informers: informers.clone(),
            everything: everything.clone(),
            observer: config.observer.clone(),
        };
        replica.run(Arc::new(copies), tasks.clone(), shutdown.clone(), supplies.clone())
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

/// A client that servers see as `name`.
fn named(client: &Client, name: &str) -> Result<Client, Error> {
    Ok(client.with_user_agent(&format!("insula-controllers/{name}"))?)
}
