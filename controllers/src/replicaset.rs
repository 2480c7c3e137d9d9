//! Keeps the number of pods of a ReplicaSet, or of a ReplicationController, at its target.
//!
//! [`plan`] and [`status`] decide; this file observes and acts. What differs between the two kinds
//! is in [`Replicated`].

mod kinds;
mod plan;
mod status;

use std::{marker::PhantomData, sync::Arc, time::Duration};

use insula_client::{Change, Client, Error, EventRecorder, ObjectKey, Tenanted, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

pub(crate) use self::kinds::Replicated;
use self::plan::{Plan, Related};
use crate::{
    claim::{claim, wake_claimants},
    controller::{Controller, Next, ReconcileError, Rest},
    informers::Informers,
    objects::is_pod_active,
    pod_control::{PodControl, pod_from},
    queue::Queue,
    status::write_status,
};

/// Keeps ReplicaSets, or ReplicationControllers.
#[derive(Debug)]
pub(crate) struct ReplicaSets<K> {
    client: Client,
    informers: Informers,
    pods: PodControl,
    kind: PhantomData<fn() -> K>,
}

/// What scaling came to: the status shows its failure.
#[derive(Debug)]
struct ScaleFailure {
    reason: &'static str,
    error: Error,
}

impl<K: Replicated> ReplicaSets<K> {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let pods = PodControl::new(client.clone(), events.named(K::CONTROLLER));
        Self { client, informers, pods, kind: PhantomData }
    }

    /// Notes what a pod's change fulfils, and asks for reconciles of those it concerns.
    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        self.pods.saw(change);
        wake_claimants(change, K::selectors(&self.informers), queue);
    }

    /// The active pods of all sets that share this one's manager, for spreading.
    fn related(&self, set: &Tenanted<K>, own: &[Arc<Tenanted<Pod>>]) -> Related {
        let siblings = K::all(&self.informers).siblings_of(set);
        let others = siblings.iter().filter(|it| it.uid() != set.uid());
        let pods: Vec<_> = others.flat_map(|it| self.informers.pods.managed_by(it)).collect();
        Related::count(own.iter().chain(&pods))
    }

    async fn scale(
        &self,
        set: &Tenanted<K>,
        active: &[Arc<Tenanted<Pod>>],
    ) -> Option<ScaleFailure> {
        let related = self.related(set, active);
        let failed = |reason| move |error| ScaleFailure { reason, error };
        match plan::plan(set.wanted(), active, &related, Timestamp::now()) {
            Plan::Nothing => None,
            Plan::Create(count) => {
                let template = set.template()?;
                let base = format!("{}-", set.name());
                let made = self.pods.create_many(set, count, |_| pod_from(set, template, &base));
                made.await.err().map(failed("FailedCreate"))
            }
            Plan::Delete(victims) => {
                let deleted = self.pods.delete_many(set, &victims);
                deleted.await.err().map(failed("FailedDelete"))
            }
        }
    }
}

impl<K: Replicated> Controller for ReplicaSets<K> {
    const NAME: &'static str = K::CONTROLLER;
    const WORKERS: usize = 16;
    const REST: Rest = Rest::COUNTING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        K::all(&self.informers).informer.on_change(move |change| {
            if change.new.is_none_or(|new| change.old.is_some_and(|old| old.uid() != new.uid()))
                && let Some(old) = change.old
            {
                it.pods.forget(old.uid());
            }
            keys.add(change.key.clone());
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        K::all(&self.informers).informer.synced().await
            && self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(set) = K::all(&self.informers).informer.get(key) else {
            return Ok(Next::WhenChanged);
        };
        let Some(selector) = set.selector() else { return Ok(Next::WhenChanged) };
        let selector = selector.map_err(|error| ReconcileError::Invalid {
            object: set.key().to_string(),
            why: error.to_string(),
        })?;
        // Asked before the pods are read: what is met by then, the pods show.
        let is_current = self.pods.is_current(set.uid());
        let candidates = self.informers.pods.candidates_of(&set, &selector);
        let pods = claim(&self.client, &*set, &selector, candidates).await?;
        let (mut active, terminating): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| is_pod_active(pod));
        let failure =
            if is_current && !set.is_deleting() { self.scale(&set, &active).await } else { None };
        // The status is of this generation: whoever owns the set relies on what it says is there.
        active.retain(|pod| !self.pods.is_leaving(set.uid(), pod));

        let now = Timestamp::now();
        let n_terminating = terminating.iter().filter(|pod| pod.is_deleting()).count();
        let shown = failure.as_ref().map(|it| (it.reason, chain(&it.error)));
        let new = status::status(&set.object, &active, n_terminating, shown, now);
        let waiting = new.ready_replicas != new.available_replicas;
        let api = self.client.tenant(&set.tenant).namespaced::<K>(set.namespace());
        write_status(&api, &set, set.status(), &K::status_from(new)).await?;
        if let Some(ScaleFailure { error, .. }) = failure {
            return Err(error.into());
        }
        // A pod becomes available by the passing of time alone.
        Ok(match u64::try_from(set.min_ready_seconds()) {
            Ok(seconds @ 1..) if waiting => Next::After(
                status::until_available(&active, seconds, now).max(Duration::from_millis(100)),
            ),
            _ => Next::WhenChanged,
        })
    }
}
