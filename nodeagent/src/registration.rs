//! The Node object: made, kept true, and its lease kept alive.
//!
//! The status is looked at every few seconds and written when it says something new, and every five
//! minutes in any case; that the node lives is told by its lease, which costs less.

pub(crate) mod conditions;
pub(crate) mod status;
mod thresholds;

use std::{collections::BTreeMap, time::Duration};

use insula_api::quantity::Quantity as Amount;
use insula_client::{
    Api, Client, Error, EventRecorder, EventType, Patch, Tenanted, chain, newer_version,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{ContainerImage, Node, NodeStatus},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    },
};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use self::thresholds::{ThresholdError, Thresholds};
use self::{conditions::Observation, status::Seen};
use crate::{
    NodeConfig,
    assigned::NodeNews,
    cri::RuntimeClient,
    machine::{self, Machine, Room},
};

const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// While the node is not ready, news of its readiness are awaited.
const LOOK_PERIOD_UNREADY: Duration = Duration::from_millis(500);
/// How often a status is written that says nothing new.
pub const WRITE_PERIOD: Duration = Duration::from_secs(300);
/// How often a node says that it lives.
pub const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// How late a heartbeat of the feed may be before the lease is written without it.
const LATE: Duration = Duration::from_secs(5);
/// Where nodes have their leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_secs(1);
/// Images told of; the largest.
const MAX_IMAGES: usize = 50;

/// What the rest of the agent may know of the node's condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RuntimeState {
    /// The API has been told that the node is ready.
    pub(crate) is_reported_ready: bool,
}

/// Registers the node and keeps its object.
#[derive(Debug)]
pub(crate) struct Registration {
    config: NodeConfig,
    client: Client,
    events: EventRecorder,
    runtime: RuntimeClient,
    machine: Machine,
    state: watch::Sender<RuntimeState>,
    /// What the node feed tells, where there is one.
    news: watch::Receiver<NodeNews>,
}

impl Registration {
    pub(crate) fn new(
        config: NodeConfig,
        (client, events): (Client, EventRecorder),
        runtime: RuntimeClient,
        machine: Machine,
        state: watch::Sender<RuntimeState>,
        news: watch::Receiver<NodeNews>,
    ) -> Self {
        Self { config, client, events, runtime, machine, state, news }
    }

    /// Runs until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        // The lease belongs to the node, so it can only be made after it.
        let registered = Notify::new();
        let lease = async {
            registered.notified().await;
            self.keep_lease().await;
        };
        let work = Box::pin(async { tokio::join!(self.keep_status(&registered), lease) });
        shutdown.run_until_cancelled(work).await;
    }

    fn nodes(&self) -> Api<Node> {
        self.client.system().api()
    }

    async fn keep_status(&self, on_registered: &Notify) {
        let mut registered: Option<Tenanted<Node>> = None;
        let mut n_removals = 0;
        let mut written_at = Instant::now();
        loop {
            let node = match registered.take() {
                Some(node) => node,
                None => match self.register().await {
                    Ok(node) => {
                        on_registered.notify_one();
                        node
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "node not registered");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                },
            };
            let status = self.status(node.status.as_ref()).await;
            let is_ready = conditions::is_ready(&status);
            let is_due = written_at.elapsed() >= WRITE_PERIOD;
            if !is_due && node.status.as_ref().is_some_and(|old| is_same(old, &status)) {
                self.tell(is_ready);
                registered = Some(node);
            } else {
                let patch = Patch::Strategic(json!({"status": replaced(&status)}));
                match self.nodes().patch_status(&self.config.node_name, &patch).await {
                    Ok(written) => {
                        written_at = Instant::now();
                        self.tell(is_ready);
                        self.record_changes(&written, node.status.as_ref());
                        registered = Some(written);
                    }
                    // Somebody deleted it. It comes again.
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "node status not written");
                        registered = Some(node);
                    }
                }
            }
            registered = self.rest(registered, is_ready, &mut n_removals).await;
        }
    }

    /// Waits until it is time to look again: sooner if the feed tells of something that others
    /// have made of the node. Returns what is known of it then.
    async fn rest(
        &self,
        known: Option<Tenanted<Node>>,
        is_ready: bool,
        n_removals: &mut u32,
    ) -> Option<Tenanted<Node>> {
        let mut news = self.news.clone();
        tokio::time::sleep(LOOK_PERIOD_UNREADY).await;
        let is_newer = |node: &Tenanted<Node>| {
            known.as_ref().is_none_or(|known| {
                let versions = (node.resource_version(), known.resource_version());
                newer_version(versions.0, versions.1).is_some_and(|it| it.is_gt())
            })
        };
        if is_ready {
            let left = LOOK_PERIOD - LOOK_PERIOD_UNREADY;
            let is_news = |it: &NodeNews| {
                it.n_removals != *n_removals || it.node.as_ref().is_some_and(|it| is_newer(it))
            };
            // Where there is no feed this waits all the time.
            let _ = tokio::time::timeout(left, wait_for(&mut news, is_news)).await;
        }
        let news = news.borrow();
        if std::mem::replace(n_removals, news.n_removals) != news.n_removals {
            return None;
        }
        match news.node.as_ref().filter(|it| is_newer(it)) {
            Some(node) => Some(Tenanted::clone(node)),
            None => known,
        }
    }

    /// Tells users which of the node's conditions are others than they were.
    fn record_changes(&self, node: &Tenanted<Node>, before: Option<&NodeStatus>) {
        let name = &self.config.node_name;
        for reason in node.status.iter().flat_map(|now| conditions::changes(now, before)) {
            let message = format!("Node {name} status is now: {reason}");
            self.events.record(node, EventType::Normal, reason, message);
        }
    }

    fn tell(&self, is_reported_ready: bool) {
        let state = RuntimeState { is_reported_ready };
        let is_new = self.state.send_if_modified(|it| std::mem::replace(it, state) != state);
        if is_new {
            tracing::info!(
                node = self.config.node_name,
                is_ready = is_reported_ready,
                "told the API"
            );
        }
    }

    /// Makes the object, or makes the labels of the one there is right.
    async fn register(&self) -> Result<Tenanted<Node>, Error> {
        let name = &self.config.node_name;
        let labels = self.labels();
        let Some(node) = self.nodes().get_opt(name).await? else {
            let node = Node {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some(labels),
                    ..ObjectMeta::default()
                },
                status: Some(self.status(None).await),
                ..Node::default()
            };
            return match self.nodes().create(&node).await {
                Ok(node) => {
                    tracing::info!(node = name, "node registered");
                    self.record_changes(&node, None);
                    Ok(node)
                }
                Err(error) if error.is_already_exists() => self.nodes().get(name).await,
                Err(error) => Err(error),
            };
        };
        let has = |(key, value): (&String, &String)| {
            node.metadata.labels.as_ref().and_then(|it| it.get(key)) == Some(value)
        };
        if labels.iter().all(has) {
            return Ok(node);
        }
        let patch = Patch::Strategic(json!({"metadata": {"labels": labels}}));
        self.nodes().patch(name, &patch).await
    }

    fn labels(&self) -> BTreeMap<String, String> {
        labels(&self.config.node_name, &self.machine, &self.config.node_labels)
    }

    async fn status(&self, old: Option<&NodeStatus>) -> NodeStatus {
        let version = self.runtime.version().await;
        let runtime = match &version {
            Ok(_) => self.runtime.status().await.map(|it| it.status.unwrap_or_default()),
            Err(_) => Ok(Default::default()),
        };
        let runtime = match (&version, runtime) {
            (Err(error), _) => Err(error.to_string()),
            (Ok(_), other) => other.map_err(|error| error.to_string()),
        };
        let room = Room::at(&self.config.root_dir).ok();
        let seen = Seen {
            name: &self.config.node_name,
            address: self.config.node_ip,
            port: self.config.listen.port(),
            max_pods: self.config.max_pods,
            eviction_hard: self.config.eviction_hard,
            machine: &self.machine,
            runtime_version: version
                .ok()
                .map(|it| format!("{}://{}", it.runtime_name, it.runtime_version)),
            images: self.images().await,
            observation: Observation {
                runtime,
                memory_available: machine::memory_available().ok(),
                room,
                processes: machine::processes().ok(),
            },
        };
        status::status(&seen, old, Timestamp::now())
    }

    async fn images(&self) -> Option<Vec<ContainerImage>> {
        let mut images = self.runtime.list_images().await.ok()?;
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
        images.truncate(MAX_IMAGES);
        let images = images.into_iter().map(|it| ContainerImage {
            names: Some(it.repo_digests.into_iter().chain(it.repo_tags).collect()),
            size_bytes: i64::try_from(it.size).ok(),
        });
        Some(images.collect())
    }

    async fn keep_lease(&self) {
        let mut lease = None;
        loop {
            // Heartbeats ride on the feed as long as it carries them.
            let beaten = self.news.borrow().beaten.map(|it| it + LEASE_PERIOD + LATE);
            if let Some(until) = beaten.filter(|it| Instant::now() < *it) {
                lease = None;
                tokio::time::sleep_until(until).await;
                continue;
            }
            match self.renew(lease.take()).await {
                Ok(renewed) => {
                    lease = Some(renewed);
                    tokio::time::sleep(LEASE_PERIOD).await;
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "node lease not renewed");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Renews the lease last seen, or the one there is, or makes one.
    async fn renew(&self, last: Option<Tenanted<Lease>>) -> Result<Tenanted<Lease>, Error> {
        let leases = self.client.system().namespaced::<Lease>(LEASE_NAMESPACE);
        let name = &self.config.node_name;
        let now = Some(MicroTime(Timestamp::now()));
        let last = match last {
            Some(lease) => Some(lease),
            None => leases.get_opt(name).await?,
        };
        if let Some(lease) = last {
            let mut lease = lease.object;
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(name.clone());
            spec.lease_duration_seconds = Some(LEASE_SECONDS);
            spec.renew_time = now;
            return leases.update(&lease).await;
        }
        let node = self.nodes().get(name).await?;
        let lease = lease(name, node.uid(), Timestamp::now());
        leases.create(&lease).await
    }
}

/// Waits until `is_news`; for ever, if there will be none.
async fn wait_for(news: &mut watch::Receiver<NodeNews>, is_news: impl Fn(&NodeNews) -> bool) {
    if news.wait_for(|it| is_news(it)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The labels of a node: those that it is given, and what it is.
pub(crate) fn labels(
    name: &str,
    machine: &Machine,
    given: &[(String, String)],
) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    given.iter().cloned().chain(own).collect()
}

/// The lease that tells that a node lives. It goes with its node.
pub(crate) fn lease(name: &str, node_uid: &str, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid: node_uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// Whether two statuses say the same, whenever they say it.
pub(crate) fn is_same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let timeless = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        // Others add conditions of their own.
        let ours = |it: &k8s_openapi::api::core::v1::NodeCondition| {
            conditions::TYPES.contains(&it.type_.as_str())
        };
        status.conditions.iter_mut().for_each(|all| {
            all.retain(ours);
            all.sort_by(|a, b| a.type_.cmp(&b.type_));
        });
        status
    };
    let (old, new) = (timeless(old), timeless(new));
    old.addresses == new.addresses
        && are_same_amounts(old.capacity.as_ref(), new.capacity.as_ref())
        && are_same_amounts(old.allocatable.as_ref(), new.allocatable.as_ref())
        && old.conditions == new.conditions
        && old.daemon_endpoints == new.daemon_endpoints
        && old.images == new.images
        && old.node_info == new.node_info
}

/// Whether amounts are the same, however they are written: the server writes them its own way.
fn are_same_amounts(
    old: Option<&BTreeMap<String, Quantity>>,
    new: Option<&BTreeMap<String, Quantity>>,
) -> bool {
    let (old, new) = (old.into_iter().flatten(), new.into_iter().flatten());
    let amount = |it: &Quantity| Amount::parse(&it.0).ok();
    let is_same = |((one, old), (other, new)): ((&String, &Quantity), (&String, &Quantity))| {
        one == other && (old == new || amount(old).is_some_and(|it| amount(new) == Some(it)))
    };
    old.clone().count() == new.clone().count() && old.zip(new).all(is_same)
}

/// A status as a patch: addresses that are no more must not stay.
fn replaced(status: &NodeStatus) -> Value {
    let mut status = json!(status);
    if let Some(addresses) = status["addresses"].as_array_mut() {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_the_same_however_they_are_written() {
        let status = |memory: &str, cpu: &str| {
            let amounts = json!({"memory": memory, "cpu": cpu});
            let status = json!({"capacity": amounts, "allocatable": amounts});
            serde_json::from_value::<NodeStatus>(status).unwrap()
        };
        let ours = status("33554432Ki", "4000m");
        assert!(is_same(&status("32Gi", "4"), &ours));
        assert!(!is_same(&status("32Gi", "3"), &ours));
        assert!(!is_same(&NodeStatus::default(), &ours));
    }
}
