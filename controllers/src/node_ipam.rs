//! Gives each node addresses for its pods: a part of each range that the cloud has for them.
//!
//! What nodes have is never changed, and nothing is given twice: one replica cares for all nodes,
//! one after the other, and what it gave counts before it is seen at the node.

mod pool;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use insula_client::{Client, EventRecorder, EventType, ObjectKey, Patch, Tenanted};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use self::pool::Pool;
pub use self::pool::PoolError;
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    queue::Queue,
};

/// See the module. Without ranges it does nothing.
#[derive(Debug)]
pub(crate) struct NodeAddresses {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pools: Vec<Pool>,
    /// By the names of nodes: what they have, or were given and do not show yet.
    held: HashMap<Arc<str>, Vec<IpNet>>,
}

/// What a node says that it has; what cannot be read is nobody's.
fn shown(node: &Node) -> Vec<IpNet> {
    let all = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
    all.into_iter().flatten().filter_map(|it| it.parse().ok()).collect()
}

impl State {
    /// From now on `node` has `nets`, and nothing else.
    fn set(&mut self, node: &Arc<str>, nets: Vec<IpNet>) {
        let before = match nets.is_empty() {
            true => self.held.remove(node),
            false => match self.held.entry(node.clone()) {
                Entry::Occupied(mut it) => Some(std::mem::replace(it.get_mut(), nets.clone())),
                Entry::Vacant(it) => {
                    it.insert(nets.clone());
                    None
                }
            },
        };
        for pool in &mut self.pools {
            nets.iter().for_each(|net| pool.hold(net));
            before.iter().flatten().for_each(|net| pool.release(net));
        }
    }

    /// What `node` is to have: one part of each range, or nothing where one is used up.
    fn give(&mut self, node: &Arc<str>) -> Option<Vec<IpNet>> {
        if let Some(given) = self.held.get(node) {
            return Some(given.clone());
        }
        let mut given = Vec::with_capacity(self.pools.len());
        for pool in &mut self.pools {
            given.extend(pool.take());
        }
        if given.len() == self.pools.len() {
            self.held.insert(node.clone(), given.clone());
            return Some(given);
        }
        for pool in &mut self.pools {
            given.iter().for_each(|net| pool.release(net));
        }
        None
    }
}

impl NodeAddresses {
    /// `ranges`: each with the prefix length of a node's part; `kept` is for others.
    pub(crate) fn new(
        client: Client,
        informers: Informers,
        events: &EventRecorder,
        ranges: &[(IpNet, u8)],
        kept: &[IpNet],
    ) -> Result<Self, PoolError> {
        let pools = ranges.iter().map(|(range, prefix)| Pool::new(*range, *prefix));
        let mut pools = pools.collect::<Result<Vec<_>, _>>()?;
        for pool in &mut pools {
            kept.iter().for_each(|net| pool.hold(net));
        }
        let state = Mutex::new(State { pools, held: HashMap::new() });
        Ok(Self { client, informers, events: events.named("cidrAllocator"), state })
    }

    fn tell(&self, node: &Tenanted<Node>, status: &str) {
        let message = format!("Node {} status is now: {status}", node.name());
        self.events.record(node, EventType::Normal, status, message);
    }
}

impl Controller for NodeAddresses {
    const NAME: &'static str = "node-ipam-controller";
    const WORKERS: usize = 1;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| {
            let mut state = it.state.lock();
            if state.pools.is_empty() {
                return;
            }
            let nets = change.new.map(|node| shown(node)).unwrap_or_default();
            match change.new {
                // What it was given it will show.
                Some(_) if nets.is_empty() => keys.add(change.key.clone()),
                _ => state.set(&change.key.name, nets),
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.nodes.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(node) = self.informers.nodes.get(key) else { return Ok(Next::WhenChanged) };
        if node
            .spec
            .as_ref()
            .is_some_and(|it| it.pod_cidrs.as_ref().is_some_and(|it| !it.is_empty()))
        {
            return Ok(Next::WhenChanged);
        }
        let given = self.state.lock().give(&key.name);
        let Some(given) = given else {
            self.tell(&node, "CIDRNotAvailable");
            return Err(ReconcileError::Incomplete(
                "no addresses are left for its pods".to_owned(),
            ));
        };
        let given: Vec<String> = given.iter().map(IpNet::to_string).collect();
        let patch = json!({
            "metadata": {"uid": node.uid()},
            "spec": {"podCIDR": given.first(), "podCIDRs": given},
        });
        let api = self.client.system().api::<Node>();
        match api.patch(node.name(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Next::WhenChanged),
            // Gone, or another one of this name: what it was given is told by its next change.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Next::WhenChanged),
            Err(error) => {
                self.tell(&node, "CIDRAssignmentFailed");
                Err(error.into())
            }
        }
    }
}
