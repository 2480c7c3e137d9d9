//! Sends pods away from nodes with taints that they do not tolerate, or no longer.
//!
//! Few nodes have such taints, so what pods tolerate is not kept in memory but asked for.

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_api::names::TenantName;
use insula_client::{Change, Client, Error, EventRecorder, EventType, ObjectKey, Tenanted};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::disruption,
    pod_control::disrupt,
    queue::Queue,
    taints::{Stay, no_execute, stay},
};

/// See the module.
#[derive(Debug)]
pub(crate) struct TaintEviction {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    /// Pods that will have to go, by their keys: their uids, and since when it counts.
    waiting: Mutex<HashMap<ObjectKey, (String, Timestamp)>>,
}

impl TaintEviction {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named(Self::NAME);
        Self { client, informers, events, waiting: Mutex::default() }
    }

    fn node_of(&self, pod: &Pod) -> Option<Arc<Tenanted<Node>>> {
        let name = pod.spec.as_ref()?.node_name.as_deref()?;
        self.informers.nodes.get(&ObjectKey::new(&TenantName::system(), "", name))
    }

    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        fn seen(pod: &Tenanted<Pod>) -> impl PartialEq {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            (node, pod.metadata.generation, pod.is_deleting(), pod.uid())
        }
        if change.old.map(|it| seen(it)) == change.new.map(|it| seen(it)) {
            return;
        }
        let is_near_taint = change
            .new
            .and_then(|pod| self.node_of(pod))
            .is_some_and(|node| no_execute(&node).next().is_some());
        if is_near_taint || self.waiting.lock().contains_key(change.key) {
            queue.add(change.key.clone());
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>, queue: &Queue<ObjectKey>) {
        let taints = |node: &&Arc<Tenanted<Node>>| {
            no_execute(node).map(|it| (it.key.clone(), it.value.clone())).collect::<Vec<_>>()
        };
        // Heartbeats of nodes without such taints cost nothing: an empty list needs no memory.
        let (old, new) = (change.old.as_ref().map(taints), change.new.as_ref().map(taints));
        if old.unwrap_or_default() != new.unwrap_or_default() {
            let pods = self.informers.pods_on(&change.key.name);
            pods.iter().for_each(|pod| queue.add(pod.key()));
        }
    }

    /// A pod need not go any more.
    fn cancel(&self, pod: &Tenanted<Pod>) {
        if self.waiting.lock().remove(&pod.key()).is_some() {
            let message = format!("Cancelling deletion of Pod {}/{}", pod.namespace(), pod.name());
            self.events.record(pod, EventType::Normal, "TaintManagerEviction", message);
        }
    }

    async fn evict(&self, pod: &Tenanted<Pod>) -> Result<(), Error> {
        let message = format!("Marking for deletion Pod {}/{}", pod.namespace(), pod.name());
        self.events.record(pod, EventType::Normal, "TaintManagerEviction", message);
        let why =
            disruption("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
        disrupt(&self.client, pod, &why).await
    }
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| it.node_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await && self.informers.nodes.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let pod = self.informers.pods.informer.get(key).filter(|pod| !pod.is_deleting());
        let Some(pod) = pod else {
            self.waiting.lock().remove(key);
            return Ok(Next::WhenChanged);
        };
        let Some(node) = self.node_of(&pod).filter(|node| no_execute(node).next().is_some()) else {
            self.cancel(&pod);
            return Ok(Next::WhenChanged);
        };
        let api = self.client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
        let live = api.get_opt(pod.name()).await?.filter(|live| live.uid() == pod.uid());
        let Some(live) = live else { return Ok(Next::WhenChanged) };
        let tolerations = live.spec.as_ref().and_then(|spec| spec.tolerations.as_deref());
        let now = Timestamp::now();
        let since = self.waiting.lock().get(key).filter(|it| it.0 == pod.uid()).map(|it| it.1);
        let since = since.unwrap_or(now);
        match stay(no_execute(&node), tolerations.unwrap_or_default(), since) {
            Stay::Forever => self.cancel(&pod),
            Stay::Until(end) if now < end => {
                self.waiting.lock().insert(key.clone(), (pod.uid().to_owned(), since));
                let wait = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                return Ok(Next::After(wait.max(Duration::from_millis(10))));
            }
            Stay::Until(_) | Stay::NotAtAll => {
                self.waiting.lock().remove(key);
                self.evict(&pod).await?;
            }
        }
        Ok(Next::WhenChanged)
    }
}
