//! Keeps a pod on every node that takes it.
//!
//! [`eligible`] judges nodes, [`plan`] decides what is made and deleted, [`failing`] how long failed
//! pods stay; this file observes and acts. Pods are bound by the scheduler: each asks for its node by name.

mod eligible;
mod failing;
mod plan;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use insula_api::selector::{Selector, SelectorError};
use insula_client::{Change, Client, EventRecorder, EventType, ObjectKey, Tenanted};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus},
    core::v1::{Node, Pod},
};
use parking_lot::Mutex;

use self::{
    failing::{Failing, Held},
    plan::{Observed, plan},
};
use crate::{
    claim::{Claimant, claim, wake_claimants},
    controller::{Controller, Next, ReconcileError, Rest},
    informers::Informers,
    objects::{compile, compile_of, is_pod_ready, pod_phase},
    pod_control::{PodControl, pod_from},
    queue::Queue,
    revisions::{HASH, Versioned, hash_of},
    status::write_status,
    taints::taints,
};

/// The label that upstream's older clients look at.
const GENERATION: &str = "pod-template-generation";
/// The annotation with it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Keeps DaemonSets.
#[derive(Debug)]
pub(crate) struct DaemonSets {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    pods: PodControl,
    failing: Mutex<Failing>,
}

impl Claimant for DaemonSet {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        self.spec.as_ref().map(|spec| compile(&spec.selector))
    }
}

impl DaemonSets {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("daemonset-controller");
        let pods = PodControl::new(client.clone(), events.clone());
        Self { client, informers, events, pods, failing: Mutex::default() }
    }

    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        self.pods.saw(change);
        wake_claimants(change, &self.informers.selectors.daemon_sets, queue);
    }

    /// A change of a node that may change who runs there. Heartbeats do not.
    fn node_changed(&self, change: &Change<'_, Node>, queue: &Queue<ObjectKey>) {
        fn seen(node: &Tenanted<Node>) -> impl PartialEq {
            (&node.metadata.labels, taints(node))
        }
        if change.old.map(|it| seen(it)) == change.new.map(|it| seen(it)) {
            return;
        }
        let sets = self.informers.sets_placed(|placement| {
            let Ok(template) = serde_json::from_str(placement) else { return true };
            let judged = |node: Option<&Arc<Tenanted<Node>>>| {
                node.map(|it| eligible::eligible(&template, it))
            };
            judged(change.old) != judged(change.new)
        });
        sets.into_iter().for_each(|set| queue.add(set));
    }

    async fn pass(
        &self,
        set: &Tenanted<DaemonSet>,
        spec: &DaemonSetSpec,
    ) -> Result<Next, ReconcileError> {
        let selector = compile_of(set, &spec.selector)?;
        if selector.is_empty() {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.record(set, EventType::Warning, "SelectingAll", message);
            return Ok(Next::WhenChanged);
        }
        // Asked before the pods are read: what is met by then, the pods show.
        let is_current = self.pods.is_current(set.uid());
        let candidates = self.informers.pods.candidates_of(set, &selector);
        let pods = claim(&self.client, set, &selector, candidates).await?;
        let versioned = Versioned {
            owner: set,
            template: &spec.template,
            n_collisions: set.status.as_ref().and_then(|it| it.collision_count).unwrap_or(0),
            label: HASH,
        };
        let known = self.informers.revisions.managed_by(set);
        let revisions = versioned.settle(&self.client, known).await?;
        let hash = hash_of(revisions.present(), HASH);
        let in_use = pods.iter().filter_map(|pod| pod.metadata.labels.as_ref()?.get(HASH));
        let in_use: BTreeSet<String> = in_use.cloned().collect();
        let now = Timestamp::now();
        let it = Observed::new(set, spec, pods, &self.informers.nodes.list(), hash, now);
        let mut held = Held::default();
        let acted = match is_current {
            true => {
                let generation = set.metadata.generation.unwrap_or_default();
                held = self.failing.lock().replace(set.uid(), generation, it.failed());
                self.act(&it, &held).await
            }
            false => Ok(()),
        };
        let mut new = status(&it);
        if revisions.n_collisions != 0 {
            new.collision_count = Some(revisions.n_collisions);
        }
        let api = self.client.tenant(&set.tenant).namespaced::<DaemonSet>(set.namespace());
        write_status(&api, set, set.status.as_ref(), &new).await?;
        acted?;
        let limit = spec.revision_history_limit.unwrap_or(10);
        versioned.truncate(&self.client, &revisions, &in_use, limit).await?;
        // A pod becomes available by the passing of time alone.
        let waits = 0 < spec.min_ready_seconds.unwrap_or(0)
            && Some(new.number_ready) != new.number_available;
        let waits = waits.then_some(Duration::from_secs(1));
        Ok(waits.into_iter().chain(held.least).min().map_or(Next::WhenChanged, Next::After))
    }

    async fn act(&self, it: &Observed<'_>, held: &Held) -> Result<(), insula_client::Error> {
        let (set, plan) = (it.set, plan(it, &held.nodes));
        for pod in &plan.ended {
            let (kind, reason, phase, what) = match pod_phase(pod) {
                "Failed" => (EventType::Warning, "FailedDaemonPod", "failed", "kill"),
                _ => (EventType::Normal, "SucceededDaemonPod", "succeeded", "delete"),
            };
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let message = format!(
                "Found {phase} daemon pod {}/{} on node {}, will try to {what} it",
                pod.namespace(),
                pod.name(),
                node.unwrap_or_default()
            );
            self.events.record(set, kind, reason, message);
        }
        let make = |n: usize| pod_of(set, it.spec, &plan.create[n], &it.hash);
        let made = self.pods.create_many(set, plan.create.len(), make).await;
        self.pods.delete_many(set, &plan.delete).await?;
        made
    }
}

/// What decides about the nodes that a set has pods on: most sets say the same.
pub(crate) fn placement(set: &DaemonSet) -> Option<String> {
    let template = eligible::placement(&set.spec.as_ref()?.template);
    serde_json::to_string(&template).ok()
}

/// A new pod of a set, for one node.
fn pod_of(set: &Tenanted<DaemonSet>, spec: &DaemonSetSpec, node: &str, hash: &str) -> Pod {
    let mut pod = pod_from(set, &spec.template, &format!("{}-", set.name()));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let annotations = set.metadata.annotations.as_ref();
    if let Some(generation) = annotations.and_then(|it| it.get(TEMPLATE_GENERATION)) {
        labels.insert(GENERATION.to_owned(), generation.clone());
    }
    let inner = pod.spec.get_or_insert_default();
    inner.tolerations = Some(eligible::tolerations(inner));
    eligible::pin(inner, node);
    pod
}

/// What the status says of the pods as they are.
fn status(it: &Observed<'_>) -> DaemonSetStatus {
    let mut new = DaemonSetStatus {
        observed_generation: it.set.metadata.generation,
        collision_count: it.set.status.as_ref().and_then(|status| status.collision_count),
        conditions: it.set.status.as_ref().and_then(|status| status.conditions.clone()),
        ..DaemonSetStatus::default()
    };
    let (mut n_available, mut n_updated) = (0, 0);
    for (node, judged) in &it.nodes {
        let pods = it.pods.get(node).map_or(&[][..], Vec::as_slice);
        let mut alive: Vec<_> = pods.iter().filter(|pod| !pod.is_deleting()).collect();
        if !judged.runs {
            new.number_misscheduled += i32::from(!alive.is_empty());
            continue;
        }
        new.desired_number_scheduled += 1;
        if alive.is_empty() {
            continue;
        }
        new.current_number_scheduled += 1;
        alive.sort_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0));
        // While one takes over from another, the one that serves counts.
        let serving = alive.iter().find(|pod| is_pod_ready(pod)).unwrap_or(&alive[0]);
        new.number_ready += i32::from(is_pod_ready(serving));
        n_available += i32::from(it.is_available(serving));
        n_updated += i32::from(alive.iter().any(|pod| it.is_new(pod)));
    }
    let non_zero = |count: i32| (count != 0).then_some(count);
    new.number_available = non_zero(n_available);
    new.updated_number_scheduled = non_zero(n_updated);
    new.number_unavailable = non_zero(new.desired_number_scheduled - n_available);
    new
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset-controller";
    const WORKERS: usize = 16;
    const REST: Rest = Rest::COUNTING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.daemon_sets.on_change(move |change| {
            if change.new.is_none()
                && let Some(old) = change.old
            {
                it.pods.forget(old.uid());
                it.failing.lock().forget(old.uid());
            }
            keys.add(change.key.clone());
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| it.node_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.daemon_sets.synced().await
            && self.informers.pods.informer.synced().await
            && self.informers.revisions.informer.synced().await
            && self.informers.nodes.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(set) = self.informers.daemon_sets.get(key) else {
            return Ok(Next::WhenChanged);
        };
        match &set.spec {
            Some(spec) => self.pass(&set, spec).await,
            None => Ok(Next::WhenChanged),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::{Fake, key, object};

    fn node(labels: Value, taints: Value) -> Arc<Tenanted<Node>> {
        let it = json!({"metadata": {"tenant": "system", "name": "n", "labels": labels},
            "spec": {"taints": taints}});
        Arc::new(serde_json::from_value(it).unwrap())
    }

    #[tokio::test]
    async fn a_node_wakes_the_sets_for_which_it_is_another_one() {
        let set = |name: &str, spec: Value| {
            let mut spec = spec;
            spec["containers"] = json!([{"name": "c", "image": name}]);
            object(name, json!({"spec": {"selector": {}, "template": {"spec": spec}}}))
        };
        let sets = vec![
            set("any", json!({})),
            set("all", json!({})),
            set("ssd", json!({"nodeSelector": {"disk": "ssd"}})),
            set("firm", json!({"tolerations": [{"operator": "Exists"}]})),
        ];
        let fake = Fake::serving(&[("daemonsets", sets)]).await;
        let it = DaemonSets::new(fake.client.clone(), fake.informers.clone(), &fake.events);
        let queue = Fake::queue::<DaemonSets>();
        let plain = node(json!({}), json!([]));
        let ssd = node(json!({"disk": "ssd"}), json!([]));
        let tainted = node(json!({}), json!([{"key": "k", "effect": "NoSchedule"}]));
        let woken = async |old: Option<&Arc<Tenanted<Node>>>, new: Option<&Arc<Tenanted<Node>>>| {
            let of = new.or(old).unwrap().key();
            it.node_changed(&Change { key: &of, old, new }, &queue);
            Fake::keys(&queue).await
        };
        let keys = |names: &[&str]| names.iter().map(|it| key(it)).collect::<Vec<_>>();
        assert_eq!(woken(Some(&plain), Some(&plain)).await, keys(&[]));
        assert_eq!(woken(Some(&plain), Some(&ssd)).await, keys(&["ssd"]));
        assert_eq!(woken(Some(&plain), Some(&tainted)).await, keys(&["all", "any"]));
        // What is not to be there any more has to go.
        assert_eq!(woken(Some(&plain), None).await, keys(&["all", "any", "firm", "ssd"]));
    }
}
