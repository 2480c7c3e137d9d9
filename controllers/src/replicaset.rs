//! Keeps the number of pods of a ReplicaSet at its target.
//!
//! [`plan`] and [`status`] decide; this file observes and acts. Pods are named here, not by the
//! server, so that a pod whose creation was asked for is recognised when it appears.

mod plan;
mod status;

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use insula_api::selector::Selector;
use insula_client::{
    Change, Client, DeleteOptions, Error, EventRecorder, EventType, ObjectKey, Tenanted, chain,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use self::plan::{Plan, Related};
use crate::{
    claim::claim,
    controller::{Controller, Next, ReconcileError},
    expectations::Expectations,
    informers::Informers,
    objects::{
        compile, compile_of, controller_of, controller_reference, controller_uid, generated_name,
        is_pod_active, selects,
    },
    queue::Queue,
    status::write_status,
};

/// Keeps ReplicaSets.
#[derive(Debug)]
pub(crate) struct ReplicaSets {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    expectations: Expectations,
}

/// What scaling came to: the status shows its failure.
#[derive(Debug)]
struct ScaleFailure {
    reason: &'static str,
    error: Error,
}

impl ReplicaSets {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("replicaset-controller");
        Self { client, informers, events, expectations: Expectations::default() }
    }

    /// Notes what a pod's change fulfils, and asks for reconciles of those it concerns.
    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        let Some(latest) = change.latest() else { return };
        for pod in [change.old, change.new].into_iter().flatten() {
            let Some(uid) = controller_uid(&pod.object) else { continue };
            if change.new.is_some() {
                self.expectations.created(uid, pod.name());
            }
            if change.new.is_none() || latest.is_deleting() {
                self.expectations.deleted(uid, pod.uid());
            }
            self.enqueue_owner(pod, queue);
        }
        if let Some(pod) = change.new
            && controller_of(&pod.object).is_none()
            && !pod.is_deleting()
        {
            let sets =
                self.informers.replica_sets.informer.in_namespace(&pod.tenant, pod.namespace());
            for set in sets {
                if selector_of(&set).is_some_and(|selector| selects(&selector, &pod.object)) {
                    queue.add(set.key());
                }
            }
        }
    }

    fn enqueue_owner(&self, pod: &Tenanted<Pod>, queue: &Queue<ObjectKey>) {
        if let Some(owner) = controller_of(&pod.object)
            && owner.kind == "ReplicaSet"
        {
            queue.add(ObjectKey::new(&pod.tenant, pod.namespace(), &owner.name));
        }
    }

    /// The active pods of all ReplicaSets that share this one's manager, for spreading.
    fn related(&self, set: &Tenanted<ReplicaSet>, own: &[Arc<Tenanted<Pod>>]) -> Related {
        let siblings = controller_uid(&set.object)
            .map(|uid| self.informers.replica_sets.managed_by(uid))
            .unwrap_or_default();
        let others = siblings.iter().filter(|it| it.uid() != set.uid());
        let pods: Vec<_> = others.flat_map(|it| self.informers.pods.managed_by(it.uid())).collect();
        Related::count(own.iter().chain(&pods))
    }

    async fn scale(
        &self,
        set: &Tenanted<ReplicaSet>,
        active: &[Arc<Tenanted<Pod>>],
    ) -> Option<ScaleFailure> {
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let related = self.related(set, active);
        match plan::plan(wanted, active, &related, Timestamp::now()) {
            Plan::Nothing => None,
            Plan::Create(count) => self
                .create(set, count)
                .await
                .err()
                .map(|error| ScaleFailure { reason: "FailedCreate", error }),
            Plan::Delete(victims) => self
                .delete(set, &victims)
                .await
                .err()
                .map(|error| ScaleFailure { reason: "FailedDelete", error }),
        }
    }

    /// Creates pods in batches that double, so that what fails for one fails for few.
    async fn create(&self, set: &Tenanted<ReplicaSet>, count: usize) -> Result<(), Error> {
        let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else {
            return Ok(());
        };
        let mut left = count;
        let mut batch = 1;
        while left != 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.create_one(set, template))).await;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                return Err(error);
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(
        &self,
        set: &Tenanted<ReplicaSet>,
        template: &PodTemplateSpec,
    ) -> Result<(), Error> {
        let pod = pod_of(set, template);
        let name = pod.metadata.name.clone().unwrap_or_default();
        self.expectations.expect_create(set.uid(), &name);
        let api = self.client.tenant(&set.tenant).namespaced::<Pod>(set.namespace());
        let mut created = api.create(&pod).await;
        // Where it is not known whether the pod came to be, its name tells.
        if created.as_ref().is_err_and(Error::is_ambiguous)
            && let Ok(Some(there)) = api.get_opt(&name).await
        {
            created = Ok(there);
        }
        match created {
            Ok(_) => {
                let message = format!("Created pod: {name}");
                self.events.record(set, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                self.expectations.created(set.uid(), &name);
                if error.is_namespace_terminating() {
                    return Ok(());
                }
                let message = format!("Error creating: {}", chain(&error));
                self.events.record(set, EventType::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    async fn delete(
        &self,
        set: &Tenanted<ReplicaSet>,
        victims: &[Arc<Tenanted<Pod>>],
    ) -> Result<(), Error> {
        for pod in victims {
            self.expectations.expect_delete(set.uid(), pod.uid());
        }
        let results = join_all(victims.iter().map(|pod| self.delete_one(set, pod))).await;
        results.into_iter().collect()
    }

    async fn delete_one(
        &self,
        set: &Tenanted<ReplicaSet>,
        pod: &Tenanted<Pod>,
    ) -> Result<(), Error> {
        let api = self.client.tenant(&set.tenant).namespaced::<Pod>(set.namespace());
        match api.delete(pod.name(), &DeleteOptions::default().only_uid(pod.uid())).await {
            Ok(_) => {
                let message = format!("Deleted pod: {}", pod.name());
                self.events.record(set, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                self.expectations.deleted(set.uid(), pod.uid());
                // Gone already, or another pod by that name.
                if error.is_not_found() || error.is_conflict() {
                    return Ok(());
                }
                let message = format!("Error deleting: {}", chain(&error));
                self.events.record(set, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";
    const WORKERS: usize = 16;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.replica_sets.informer.on_change(move |change| {
            if change.new.is_none_or(|new| change.old.is_some_and(|old| old.uid() != new.uid()))
                && let Some(old) = change.old
            {
                it.expectations.forget(old.uid());
            }
            keys.add(change.key.clone());
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.replica_sets.informer.synced().await
            && self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(set) = self.informers.replica_sets.informer.get(key) else {
            return Ok(Next::WhenChanged);
        };
        let Some(spec) = &set.spec else { return Ok(Next::WhenChanged) };
        let selector = compile_of(&set, &spec.selector)?;
        // Asked before the pods are read: what is met by then, the pods show.
        let is_current = self.expectations.are_met(set.uid());
        let mut candidates = self.informers.pods.managed_by(set.uid());
        candidates.extend(self.informers.pods.orphans(&set.tenant, set.namespace()));
        candidates.retain(|pod| {
            // Pods of one that only has the uid of this set by forgery are not its own.
            pod.tenant == set.tenant && pod.namespace() == set.namespace()
        });
        let pods = claim(&self.client, &*set, &selector, candidates).await?;
        let (active, terminating): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| is_pod_active(pod));
        let failure =
            if is_current && !set.is_deleting() { self.scale(&set, &active).await } else { None };

        let now = Timestamp::now();
        let n_terminating = terminating.iter().filter(|pod| pod.is_deleting()).count();
        let shown = failure.as_ref().map(|it| (it.reason, chain(&it.error)));
        let new = status::status(&set, &active, n_terminating, shown, now);
        let api = self.client.tenant(&set.tenant).namespaced::<ReplicaSet>(set.namespace());
        write_status(&api, &set, set.status.as_ref(), &new).await?;
        if let Some(ScaleFailure { error, .. }) = failure {
            return Err(error.into());
        }
        // A pod becomes available by the passing of time alone.
        let seconds = spec.min_ready_seconds.unwrap_or(0);
        let waiting = new.ready_replicas != new.available_replicas;
        Ok(match u64::try_from(seconds) {
            Ok(seconds @ 1..) if waiting => Next::After(
                status::until_available(&active, seconds, now).max(Duration::from_millis(100)),
            ),
            _ => Next::WhenChanged,
        })
    }
}

fn selector_of(set: &ReplicaSet) -> Option<Selector> {
    // An invalid selector selects nothing; the set's own reconcile reports it.
    compile(&set.spec.as_ref()?.selector).ok()
}

/// A new pod of a ReplicaSet.
fn pod_of(set: &Tenanted<ReplicaSet>, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let base = format!("{}-", set.name());
    Pod {
        metadata: ObjectMeta {
            name: Some(generated_name(&base)),
            generate_name: Some(base),
            namespace: Some(set.namespace().to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}
