//! Has pods of nodes that are not ready be no more ready than these.
//!
//! A key is a node as one tenant's pods are on it: whoever cares for the tenant tells them, not who
//! cares for the node.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use insula_api::names::TenantName;
use insula_client::{Change, Client, EventRecorder, EventType, ObjectKey, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;

use super::{key_of, plan::is_down};
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{is_pod_ready, node_of, to_time},
    queue::Queue,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct PodsOfNodes {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    /// Whose pods have been told of nodes that are not ready.
    told: Mutex<HashMap<String, HashSet<TenantName>>>,
}

impl PodsOfNodes {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named(super::NodeLifecycle::NAME);
        Self { client, informers, events, told: Mutex::default() }
    }

    fn node_changed(&self, change: &Change<'_, Node>, queue: &Queue<ObjectKey>) {
        let node = &*change.key.name;
        if !change.new.is_some_and(|node| is_down(node)) {
            self.told.lock().remove(node);
        } else if !change.old.is_some_and(|node| is_down(node)) {
            for tenant in self.informers.tenants_on(node) {
                queue.add(ObjectKey::new(&tenant, "", node));
            }
        }
    }

    /// A pod that is ready already when it is first heard of, as when a tenant was taken over.
    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        let Some(pod) = change.new.filter(|pod| change.old.is_none() && is_pod_ready(pod)) else {
            return;
        };
        if let Some(name) = node_of(pod)
            && self.informers.nodes.get(&key_of(name)).is_some_and(|node| is_down(&node))
        {
            queue.add(ObjectKey::new(&pod.tenant, "", name));
        }
    }

    fn is_told(&self, key: &ObjectKey) -> bool {
        self.told.lock().get(&*key.name).is_some_and(|tenants| tenants.contains(&key.tenant))
    }
}

impl Controller for PodsOfNodes {
    const NAME: &'static str = "node-pods-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| it.node_changed(change, &keys));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.nodes.synced().await && self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let node = self.informers.nodes.get(&key_of(&key.name));
        if !node.is_some_and(|node| is_down(&node)) || self.is_told(key) {
            return Ok(Next::WhenChanged);
        }
        let pods = self.informers.pods_on(&key.name);
        for pod in pods.iter().filter(|pod| pod.tenant == key.tenant && is_pod_ready(pod)) {
            let patch = json!({
                "metadata": {"uid": pod.uid()},
                "status": {"conditions": [{
                    "type": "Ready", "status": "False",
                    "lastTransitionTime": to_time(Timestamp::now()),
                }]},
            });
            let api = self.client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
            match api.patch_status(pod.name(), &Patch::Strategic(patch)).await {
                Ok(_) => (),
                Err(error) if error.is_not_found() || error.is_conflict() => continue,
                Err(error) => return Err(error.into()),
            }
            self.events.record(pod, EventType::Warning, "NodeNotReady", "Node is not ready");
        }
        // Once: agents that are not ready may go on to report of their pods.
        let mut told = self.told.lock();
        told.entry(key.name.to_string()).or_default().insert(key.tenant.clone());
        Ok(Next::WhenChanged)
    }
}
