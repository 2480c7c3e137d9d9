//! Keeps pods that have a name, a place in an order and claims of their own.
//!
//! [`plan`] decides the next step, [`pod`] is what the pods look like, [`claims`] whose their claims
//! are; this file observes and acts.
//! Names are given once, so a step that is taken twice meets what the first made.

mod claims;
mod plan;
mod pod;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use insula_api::selector::{Selector, SelectorError};
use insula_client::{
    Client, DeleteOptions, Error, EventRecorder, EventType, ObjectKey, Patch, Tenanted, chain,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use serde_json::json;

use self::{
    plan::{Action, Observed},
    pod::{claim_names, claims_of, pod_name, pod_of, revision_of},
};
use crate::{
    claim::{Claimant, claim, wake_claimants},
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{compile, compile_of, controller_uid, is_pod_available, is_pod_ready, pod_phase},
    queue::Queue,
    revisions::{Revisions, STATEFUL_HASH, Versioned, template_of},
    status::write_status,
};

/// Keeps StatefulSets.
#[derive(Debug)]
pub(crate) struct StatefulSets {
    client: Client,
    informers: Informers,
    events: EventRecorder,
}

impl Claimant for StatefulSet {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        self.spec.as_ref().map(|spec| compile(&spec.selector))
    }
}

impl StatefulSets {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        Self { client, informers, events: events.named("statefulset-controller") }
    }

    async fn act(
        &self,
        it: &Observed<'_>,
        revisions: &Revisions,
        actions: &[Action],
    ) -> Result<(), Error> {
        for (ordinal, pod) in &it.pods {
            self.settle_claims(it, pod, *ordinal).await?;
        }
        for action in actions {
            match action {
                Action::Create { ordinal, is_update } => {
                    let name = if *is_update { &it.update } else { &it.current };
                    let found = revisions.find(name).and_then(|it| template_of(it));
                    let template = found.as_ref().unwrap_or(&it.spec.template);
                    self.ensure_claims(it.set, *ordinal).await?;
                    self.create(it.set, &pod_of(it.set, template, name, *ordinal)).await?;
                }
                Action::Delete { ordinal } => {
                    let Some(pod) = it.pods.get(ordinal) else { continue };
                    self.delete(it.set, pod).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes the claims that a pod lacks. Whoever made one before, it is used.
    async fn ensure_claims(&self, set: &Tenanted<StatefulSet>, ordinal: i32) -> Result<(), Error> {
        let api = self.client.tenant(&set.tenant).namespaced(set.namespace());
        for claim in claims_of(set, ordinal) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            let key = ObjectKey::new(&set.tenant, set.namespace(), &name);
            if self.informers.claims.get(&key).is_some() {
                continue;
            }
            let pod = pod_name(set.name(), ordinal);
            match api.create(&claim).await {
                Ok(_) => {
                    let message = format!(
                        "Create Claim {name} Pod {pod} in StatefulSet {} success",
                        set.name()
                    );
                    self.events.record(set, EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => (),
                Err(error) => {
                    let message = format!(
                        "Create Claim {name} for Pod {pod} in StatefulSet {} failed error: {}",
                        set.name(),
                        chain(&error)
                    );
                    self.events.record(set, EventType::Warning, "FailedCreate", message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Has the claims of a pod go with whom they are to go.
    async fn settle_claims(
        &self,
        it: &Observed<'_>,
        pod: &Tenanted<Pod>,
        ordinal: i32,
    ) -> Result<(), Error> {
        let (set, is_scaled) = (it.set, !it.wanted().contains(&ordinal));
        for name in claim_names(set, ordinal) {
            let key = ObjectKey::new(&set.tenant, set.namespace(), &name);
            let api = self.client.tenant(&set.tenant);
            let api = api.namespaced::<PersistentVolumeClaim>(set.namespace());
            let claim = match self.informers.claims.get(&key) {
                // The pod goes now; there is no later time for a copy that is late.
                None if is_scaled => api.get_opt(&name).await?.map(Arc::new),
                known => known,
            };
            let Some(claim) = claim else { continue };
            let Some(owners) = claims::owners(&claim, set, pod, is_scaled) else { continue };
            let patch = Patch::Merge(json!({"metadata": {
                "uid": claim.uid(),
                "resourceVersion": claim.resource_version(),
                "ownerReferences": owners,
            }}));
            match api.patch(&name, &patch).await {
                Err(error) if error.is_not_found() => (),
                other => drop(other?),
            }
        }
        Ok(())
    }

    async fn create(&self, set: &Tenanted<StatefulSet>, pod: &Pod) -> Result<(), Error> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let api = self.client.tenant(&set.tenant).namespaced::<Pod>(set.namespace());
        let outcome = api.create(pod).await;
        if let Err(error) = &outcome
            && error.is_already_exists()
            && let Some(there) = api.get_opt(&name).await?
            && controller_uid(&there.object) == Some(set.uid())
        {
            // Made by an earlier pass; the local copy will show it.
            return Ok(());
        }
        self.tell(set, "Create", &name, outcome.map(drop))
    }

    async fn delete(&self, set: &Tenanted<StatefulSet>, pod: &Tenanted<Pod>) -> Result<(), Error> {
        let api = self.client.tenant(&set.tenant).namespaced::<Pod>(set.namespace());
        let outcome = api.delete(pod.name(), &DeleteOptions::default().only_uid(pod.uid())).await;
        match outcome {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            outcome => self.tell(set, "Delete", pod.name(), outcome.map(drop)),
        }
    }

    fn tell(
        &self,
        set: &Tenanted<StatefulSet>,
        verb: &str,
        pod: &str,
        outcome: Result<(), Error>,
    ) -> Result<(), Error> {
        let what = format!("{verb} Pod {pod} in StatefulSet {}", set.name());
        let reason = |how: &str| format!("{how}{verb}");
        match outcome {
            Ok(()) => {
                let message = format!("{what} successful");
                self.events.record(set, EventType::Normal, &reason("Successful"), message);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!("{what} failed error: {}", chain(&error));
                self.events.record(set, EventType::Warning, &reason("Failed"), message);
                Err(error)
            }
        }
    }
}

/// What the status says of the pods as they are.
fn status(it: &Observed<'_>, n_collisions: i32) -> StatefulSetStatus {
    let old = it.set.status.clone().unwrap_or_default();
    let seconds = it.spec.min_ready_seconds.unwrap_or(0);
    let count = |test: &dyn Fn(&Tenanted<Pod>) -> bool| {
        let there = it.pods.values().filter(|pod| !pod_phase(pod).is_empty());
        i32::try_from(there.filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let is_running = |pod: &Tenanted<Pod>| pod_phase(pod) == "Running" && is_pod_ready(pod);
    let of =
        |revision: &str, pod: &Tenanted<Pod>| !pod.is_deleting() && revision_of(pod) == revision;
    let mut new = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: Some(count(&is_running)),
        available_replicas: Some(count(&|pod| {
            is_running(pod) && is_pod_available(pod, seconds, it.now)
        })),
        current_replicas: Some(count(&|pod| of(&it.current, pod))),
        updated_replicas: Some(count(&|pod| of(&it.update, pod))),
        current_revision: Some(it.current.clone()),
        update_revision: Some(it.update.clone()),
        collision_count: Some(n_collisions),
        observed_generation: it.set.metadata.generation,
        conditions: old.conditions,
    };
    let strategy = it.spec.update_strategy.as_ref().and_then(|it| it.type_.as_deref());
    let is_done = [new.updated_replicas, new.ready_replicas, Some(new.replicas)]
        .iter()
        .all(|count| *count == Some(it.replicas()));
    if is_done && strategy != Some("OnDelete") {
        new.current_replicas = new.updated_replicas;
        new.current_revision = new.update_revision.clone();
    }
    new
}

impl StatefulSets {
    async fn pass(
        &self,
        set: &Tenanted<StatefulSet>,
        spec: &StatefulSetSpec,
    ) -> Result<Next, ReconcileError> {
        let selector = compile_of(set, &spec.selector)?;
        let mut candidates = self.informers.pods.candidates_of(set, &selector);
        candidates.retain(|pod| pod::ordinal(set.name(), pod.name()).is_some());
        let pods = claim(&self.client, set, &selector, candidates).await?;
        let versioned = Versioned {
            owner: set,
            template: &spec.template,
            n_collisions: set.status.as_ref().and_then(|it| it.collision_count).unwrap_or(0),
            label: STATEFUL_HASH,
        };
        let known = self.informers.revisions.managed_by(set);
        let revisions = versioned.settle(&self.client, known).await?;
        let update = revisions.present().name();
        let current = set.status.as_ref().and_then(|it| it.current_revision.as_deref());
        let current = current.filter(|it| revisions.find(it).is_some()).unwrap_or(update);
        let in_use = pods.iter().map(|pod| revision_of(pod).to_owned());
        let in_use: BTreeSet<String> = in_use.chain([current.to_owned()]).collect();
        let now = Timestamp::now();
        let it = Observed::new(set, spec, pods, (current, update), now);
        let acted = self.act(&it, &revisions, &plan::plan(&it)).await;
        let new = status(&it, revisions.n_collisions);
        let api = self.client.tenant(&set.tenant).namespaced::<StatefulSet>(set.namespace());
        write_status(&api, set, set.status.as_ref(), &new).await?;
        acted?;
        let limit = spec.revision_history_limit.unwrap_or(10);
        versioned.truncate(&self.client, &revisions, &in_use, limit).await?;
        // A pod becomes available by the passing of time alone.
        let waits =
            0 < spec.min_ready_seconds.unwrap_or(0) && new.ready_replicas != new.available_replicas;
        Ok(if waits { Next::After(Duration::from_secs(1)) } else { Next::WhenChanged })
    }
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset-controller";
    const WORKERS: usize = 16;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.stateful_sets.on_change(move |change| keys.add(change.key.clone()));
        let (sets, keys) = (self.informers.selectors.stateful_sets.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| wake_claimants(change, &sets, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.stateful_sets.synced().await
            && self.informers.pods.informer.synced().await
            && self.informers.revisions.informer.synced().await
            && self.informers.claims.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(set) = self.informers.stateful_sets.get(key) else {
            return Ok(Next::WhenChanged);
        };
        match &set.spec {
            Some(spec) => self.pass(&set, spec).await,
            None => Ok(Next::WhenChanged),
        }
    }
}
