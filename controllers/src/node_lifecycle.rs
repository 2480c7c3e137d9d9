//! Notices nodes from which nothing is heard, and has their pods know ([`pods`]).
//!
//! A node is heard of when its agent renews its lease or reports its status; what counts is when
//! that is seen here, not what clocks elsewhere say. Before a node is given up the server is asked
//! for its lease: where much happens at once, the local copy may be late, and all nodes that it
//! has not shown meanwhile would lose their pods. [`plan`] says what is written of a node,
//! [`zones`] how fast nodes are given up; [`crate::taint_eviction`] sends the pods away.

mod plan;
mod pods;
mod zones;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::{Change, Client, Error, EventRecorder, EventType, ObjectKey, Patch, Tenanted};
use jiff::Timestamp;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

pub(crate) use self::pods::PodsOfNodes;
use self::{
    plan::{conditions, has_no_execute, is_down, lost, retainted, status, wants_no_execute},
    zones::Zones,
};
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::{Informers, NODE_LEASES},
    queue::Queue,
    taints::taints,
};

/// For so long nothing need be heard of a node that has not said anything yet.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// Where a node is.
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// See the module.
#[derive(Debug)]
pub(crate) struct NodeLifecycle {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    /// For so long nothing need be heard of a node.
    grace: Duration,
    memory: Mutex<Memory>,
    /// To look at all nodes again when what holds of one changes for all.
    queue: OnceLock<Queue<ObjectKey>>,
}

#[derive(Debug, Default)]
struct Memory {
    /// When nodes were heard of.
    heard: HashMap<String, Instant>,
    zones: Zones,
    /// No node is ready: none is given up.
    all_are_down: bool,
    /// Nodes of which it was told that they are not ready.
    told: HashSet<String>,
    /// Nodes that the local copy shows silent and the server does not: when they renewed their
    /// leases last, as the server had it.
    asked: HashMap<String, MicroTime>,
}

impl NodeLifecycle {
    pub(crate) fn new(
        client: Client,
        informers: Informers,
        events: &EventRecorder,
        grace: Duration,
    ) -> Self {
        let events = events.named(Self::NAME);
        Self { client, informers, events, grace, memory: Mutex::default(), queue: OnceLock::new() }
    }

    fn lease_changed(&self, change: &Change<'_, Lease>, queue: &Queue<ObjectKey>) {
        let Some(new) = change.new else { return };
        let is_of_node = new.tenant.is_system() && new.namespace() == NODE_LEASES;
        if is_of_node && change.old.is_none_or(|old| renewed(old) != renewed(new)) {
            self.heard(new.name(), queue);
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>, queue: &Queue<ObjectKey>) {
        let Some(new) = change.new else { return queue.add(change.key.clone()) };
        fn beat(node: &Node) -> impl PartialEq {
            let ready = conditions(node).iter().find(|it| it.type_ == "Ready");
            ready.map(|it| (&it.last_heartbeat_time, &it.status))
        }
        fn seen(node: &Node) -> impl PartialEq {
            let states: Vec<_> =
                conditions(node).iter().map(|it| (&it.type_, &it.status)).collect();
            let is_off = node.spec.as_ref().and_then(|spec| spec.unschedulable);
            (states, taints(node), is_off, place(node))
        }
        // What was written here is no sign of life.
        if change.old.is_none_or(|old| !is_lost(new) && beat(old) != beat(new)) {
            self.heard(new.name(), queue);
        }
        if change.old.is_none_or(|old| seen(old) != seen(new)) {
            queue.add(change.key.clone());
        }
    }

    /// A node was heard of.
    fn heard(&self, node: &str, queue: &Queue<ObjectKey>) {
        let now = Instant::now();
        let mut memory = self.memory.lock();
        if !memory.asked.is_empty() {
            memory.asked.remove(node);
        }
        let before = match memory.heard.get_mut(node) {
            Some(at) => Some(std::mem::replace(at, now)),
            None => memory.heard.insert(node.to_owned(), now),
        };
        drop(memory);
        // One that was heard of in time has its next reconcile waiting.
        if before.is_none_or(|before| self.grace <= now - before) {
            queue.add(key_of(node));
        }
    }

    /// How long a node may stay silent yet.
    fn patience(&self, node: &Node, name: &str) -> Duration {
        let grace = match status(node, "Ready") {
            Some(_) => self.grace,
            None => self.grace.max(STARTUP_GRACE),
        };
        let heard = self.memory.lock().heard.get(name).copied();
        heard.map_or(grace, |at| grace.saturating_sub(at.elapsed()))
    }

    /// Whether the server has heard of a node since it was seen last, here or there.
    async fn is_heard_there(&self, node: &str) -> Result<bool, Error> {
        let leases = self.client.system().namespaced::<Lease>(NODE_LEASES);
        let there = leases.get_opt(node).await?.and_then(|it| renewed(&it).cloned());
        let key = ObjectKey::new(&TenantName::system(), NODE_LEASES, node);
        let here = self.informers.leases.get(&key).and_then(|it| renewed(&it).cloned());
        let mut memory = self.memory.lock();
        let is_new = there.is_some() && there != here && there.as_ref() != memory.asked.get(node);
        if let Some(there) = there.filter(|_| is_new) {
            memory.asked.insert(node.to_owned(), there);
            memory.heard.insert(node.to_owned(), Instant::now());
        }
        Ok(is_new)
    }

    /// Writes down that nothing is heard of a node.
    async fn give_up(&self, node: Arc<Tenanted<Node>>) -> Result<Arc<Tenanted<Node>>, Error> {
        let conditions = lost(&node, Timestamp::now());
        if conditions.is_empty() {
            return Ok(node);
        }
        let patch = json!({
            // Should the agent have said something meanwhile, it is heard first.
            "metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
            "status": {"conditions": conditions},
        });
        let api = self.client.system().api::<Node>();
        let written = api.patch_status(node.name(), &Patch::Strategic(patch)).await?;
        tracing::warn!(node = node.name(), "nothing is heard of a node");
        Ok(Arc::new(written))
    }

    /// Tells once that a node is not ready.
    fn tell(&self, node: &Tenanted<Node>) {
        if !is_down(node) {
            self.memory.lock().told.remove(node.name());
        } else if self.memory.lock().told.insert(node.name().to_owned()) {
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            self.events.record(node, EventType::Normal, "NodeNotReady", message);
        }
    }

    /// Notes how a node is; returns whether it may be given up, or when to ask again.
    fn turn(&self, node: &Tenanted<Node>) -> Result<(), Option<Duration>> {
        let wants = wants_no_execute(node);
        let mut memory = self.memory.lock();
        memory.zones.saw(node.name(), &place(node), wants.is_none());
        let is_alone = self.note_all(&mut memory);
        match wants {
            None => Err(None),
            // Once all have been given up, it was us.
            Some(_) if is_alone => Err(None),
            Some(key) if has_no_execute(node, key) => Ok(()),
            Some(_) => memory.zones.turn(node.name(), Instant::now()).map_err(Some),
        }
    }

    /// Looks at all nodes again if it is new that none is ready, or that one is.
    fn note_all(&self, memory: &mut Memory) -> bool {
        let all_are_down = memory.zones.all_are_down();
        if std::mem::replace(&mut memory.all_are_down, all_are_down) != all_are_down {
            if !all_are_down {
                // Who could not be heard has its time from now on.
                memory.heard.values_mut().for_each(|at| *at = Instant::now());
            }
            if let Some(queue) = self.queue.get() {
                self.informers.nodes.list().iter().for_each(|node| queue.add(node.key()));
            }
        }
        all_are_down
    }

    async fn taint(&self, node: &Tenanted<Node>, no_execute: Option<&str>) -> Result<(), Error> {
        let Some(taints) = retainted(node, no_execute, Timestamp::now()) else { return Ok(()) };
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.resource_version()},
            "spec": {"taints": taints},
        });
        let api = self.client.system().api::<Node>();
        api.patch(node.name(), &Patch::Merge(patch)).await.map(drop)
    }
}

fn key_of(node: &str) -> ObjectKey {
    ObjectKey::new(&TenantName::system(), "", node)
}

fn renewed(lease: &Lease) -> Option<&MicroTime> {
    lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref())
}

/// Whether it is written down of a node that nothing is heard of it.
fn is_lost(node: &Node) -> bool {
    status(node, "Ready") == Some("Unknown")
}

/// The zone of a node, as one word.
fn place(node: &Node) -> String {
    let label = |key: &str| {
        let labels = node.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(key)).map_or("", String::as_str)
    };
    format!("{}/{}", label(REGION), label(ZONE))
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        // Set once: a controller is run once.
        let _ = self.queue.set(queue.clone());
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| it.node_changed(change, &keys));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.leases.on_change(move |change| it.lease_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.nodes.synced().await && self.informers.leases.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(node) = self.informers.nodes.get(key) else {
            let mut memory = self.memory.lock();
            memory.heard.remove(&*key.name);
            memory.told.remove(&*key.name);
            memory.asked.remove(&*key.name);
            memory.zones.forget(&key.name);
            self.note_all(&mut memory);
            return Ok(Next::WhenChanged);
        };
        let mut patience = self.patience(&node, node.name());
        if patience.is_zero() && !is_lost(&node) && self.is_heard_there(node.name()).await? {
            patience = self.patience(&node, node.name());
        }
        let node = if patience.is_zero() { self.give_up(node).await? } else { node };
        let turn = self.turn(&node);
        let no_execute = wants_no_execute(&node).filter(|_| turn.is_ok());
        self.taint(&node, no_execute).await?;
        self.tell(&node);
        let again = turn.err().flatten();
        let next = again.into_iter().chain((!patience.is_zero()).then_some(patience)).min();
        Ok(next.map_or(Next::WhenChanged, Next::After))
    }
}
