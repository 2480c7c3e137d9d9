//! Keeps account of how many pods of each disruption budget may be evicted.
//!
//! [`budget`] judges; this file finds the pods, and asks those who manage them how many there are
//! to be. Evictions themselves are allowed by the API server, which counts them in the status.

mod budget;
mod stale;

use std::{collections::BTreeMap, sync::Arc};

use insula_api::selector::{Selector, SelectorError};
use insula_client::{
    Change, Client, EventRecorder, EventType, Informer, Kind, ObjectKey, Tenanted, chain,
};
use jiff::Timestamp;
use k8s_openapi::{
    Resource,
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        autoscaling::v1::Scale,
        core::v1::{Pod, ReplicationController},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use self::budget::{Verdict, counts_wanted, failed, judge};
pub(crate) use self::stale::StaleDisruptions;
use crate::{
    claim::Claimant,
    controller::{Controller, Next, ReconcileError, Rest},
    everything::Everything,
    informers::Informers,
    objects::{compile, controller_of, controller_uid, is_pod_ready},
    queue::Queue,
    status::write_status_at,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Disruption {
    client: Client,
    informers: Informers,
    everything: Everything,
    events: EventRecorder,
}

/// Why nobody knows how many pods there are to be.
#[derive(Debug, thiserror::Error)]
enum CountError {
    #[error("found no controllers for pod \"{0}\"")]
    Unknown(String),
    #[error(transparent)]
    Request(#[from] insula_client::Error),
}

impl Claimant for PodDisruptionBudget {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        self.spec.as_ref()?.selector.as_ref().map(compile)
    }
}

impl Disruption {
    pub(crate) fn new(
        client: Client,
        informers: Informers,
        everything: Everything,
        events: &EventRecorder,
    ) -> Self {
        Self { client, informers, everything, events: events.named("controllermanager") }
    }

    /// Asks for reconciles of the budgets that a pod's change may be about.
    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        fn seen(pod: &Tenanted<Pod>) -> impl PartialEq {
            let owner = controller_uid(&pod.object);
            (&pod.metadata.labels, pod.is_deleting(), is_pod_ready(pod), owner, pod.uid())
        }
        if change.old.map(|it| seen(it)) == change.new.map(|it| seen(it)) {
            return;
        }
        let budgets = &self.informers.selectors.budgets;
        let mut n_budgets = 0;
        budgets.selecting_either(change, |it| {
            n_budgets += 1;
            queue.add(it.key());
        });
        // As it was and as it is.
        if 1 < n_budgets
            && let Some(pod) = change.new.filter(|it| !it.is_deleting())
        {
            self.tell_if_shared(pod);
        }
    }

    /// Tells that a pod has several budgets, so that no eviction of it is allowed.
    fn tell_if_shared(&self, pod: &Tenanted<Pod>) {
        let budgets = self.informers.selectors.budgets.selecting(pod);
        let mut names: Vec<&str> = budgets.iter().map(|it| it.name()).collect();
        names.sort_unstable();
        if names.len() < 2 {
            return;
        }
        let message = format!(
            "Pod {:?}/{:?} matches multiple PodDisruptionBudgets, and cannot be evicted: {}",
            pod.namespace(),
            pod.name(),
            names.join(", ")
        );
        self.events.record(pod, EventType::Warning, "MultiplePodDisruptionBudgets", message);
    }

    /// Asks for reconciles where the number of pods that a workload wants changes.
    fn follow<K: Kind>(
        &self,
        workloads: &Informer<K>,
        queue: &Queue<ObjectKey>,
        replicas: impl Fn(&K) -> Option<i32> + Send + Sync + 'static,
    ) {
        let (budgets, queue) = (self.informers.budgets.clone(), queue.clone());
        workloads.on_change(move |change| {
            let wanted = |it: Option<&Arc<Tenanted<K>>>| it.map(|it| replicas(&it.object));
            if wanted(change.old) == wanted(change.new) {
                return;
            }
            for it in budgets.in_namespace(&change.key.tenant, &change.key.namespace) {
                if it.spec.as_ref().is_some_and(counts_wanted) {
                    queue.add(it.key());
                }
            }
        });
    }

    /// How many pods those who manage `pods` want, each asked once.
    async fn n_wanted(&self, pods: &[Arc<Tenanted<Pod>>]) -> Result<i32, CountError> {
        let mut counted: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            // One that nobody manages is not waited for when it is gone.
            let Some(owner) = controller_of(&pod.object) else { continue };
            if !counted.contains_key(&owner.uid) {
                let (uid, count) = self.scale(pod, owner).await?;
                counted.insert(owner.uid.clone(), 0);
                counted.insert(uid, count);
            }
        }
        Ok(counted.values().fold(0, |sum, count| sum.saturating_add(*count)))
    }

    /// Who in the end decides about the number of `pod` and its like, and how many that are.
    async fn scale(
        &self,
        pod: &Tenanted<Pod>,
        owner: &OwnerReference,
    ) -> Result<(String, i32), CountError> {
        let key =
            |owner: &OwnerReference| ObjectKey::new(&pod.tenant, pod.namespace(), &owner.name);
        let own = |count: Option<i32>| (owner.uid.clone(), count.unwrap_or(1));
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let it = &self.informers;
        match (group, &*owner.kind) {
            (ReplicaSet::GROUP, ReplicaSet::KIND) => {
                let set = it.replica_sets.informer.get(&key(owner));
                let Some(set) = set.filter(|it| it.uid() == owner.uid) else {
                    return Ok(own(Some(0)));
                };
                let above = controller_of(&set.object).filter(|it| it.kind == Deployment::KIND);
                let above = above.and_then(|above| {
                    it.deployments.get(&key(above)).filter(|it| it.uid() == above.uid)
                });
                Ok(match above {
                    Some(above) => {
                        let replicas = above.spec.as_ref().and_then(|spec| spec.replicas);
                        (above.uid().to_owned(), replicas.unwrap_or(1))
                    }
                    None => own(set.spec.as_ref().and_then(|spec| spec.replicas)),
                })
            }
            (StatefulSet::GROUP, StatefulSet::KIND) => {
                let set = it.stateful_sets.get(&key(owner)).filter(|it| it.uid() == owner.uid);
                Ok(own(set.map_or(Some(0), |set| set.spec.as_ref()?.replicas)))
            }
            (ReplicationController::GROUP, ReplicationController::KIND) => {
                let set = it.replication_controllers.informer.get(&key(owner));
                let set = set.filter(|it| it.uid() == owner.uid);
                Ok(own(set.map_or(Some(0), |set| set.spec.as_ref()?.replicas)))
            }
            (group, kind) => {
                let unknown = || CountError::Unknown(pod.name().to_owned());
                let resource = self.everything.of_kind(&pod.tenant, group, kind).await?;
                let resource = resource.ok_or_else(unknown)?;
                let api = self.client.tenant(&pod.tenant);
                let api = api.resource::<Scale>(resource, Some(pod.namespace()));
                match api.get_subresource::<Scale>(&owner.name, "scale").await {
                    Ok(scale) => Ok(own(scale.spec.and_then(|spec| spec.replicas).or(Some(0)))),
                    Err(error) if error.is_not_found() => Err(unknown()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    async fn pass(
        &self,
        it: &Tenanted<PodDisruptionBudget>,
        spec: &PodDisruptionBudgetSpec,
    ) -> Result<Next, ReconcileError> {
        let pods = match it.object.selector() {
            Some(Ok(selector)) => {
                self.informers.pods.selected(&it.tenant, it.namespace(), &selector)
            }
            _ => Vec::new(),
        };
        if pods.is_empty() {
            self.events.record(it, EventType::Normal, "NoPods", "No matching pods found");
        }
        let n_wanted = match counts_wanted(spec) {
            true => self.n_wanted(&pods).await,
            false => Ok(0),
        };
        let api = self.client.tenant(&it.tenant);
        let api = api.namespaced::<PodDisruptionBudget>(it.namespace());
        let now = Timestamp::now();
        let n_wanted = match n_wanted {
            Ok(n_wanted) => n_wanted,
            Err(error) => {
                let why = chain(&error).to_string();
                let message = format!("Failed to calculate the number of expected pods: {why}");
                let reason = "CalculateExpectedPodCountFailed";
                self.events.record(it, EventType::Warning, reason, message);
                let status = failed(it, &why, now);
                write_status_at(&api, it, it.status.as_ref(), &status).await?;
                return match error {
                    // Nothing changes by trying again.
                    CountError::Unknown(_) => Ok(Next::WhenChanged),
                    CountError::Request(error) => Err(error.into()),
                };
            }
        };
        let Verdict { status, not_deleted, next } = judge(it, spec, &pods, n_wanted, now);
        for name in not_deleted {
            let message = format!(
                "Pod was expected by PDB {}/{} to be deleted but it wasn't",
                it.namespace(),
                it.name()
            );
            if let Some(pod) = pods.iter().find(|pod| pod.name() == name) {
                self.events.record(pod, EventType::Warning, "NotDeleted", message);
            }
        }
        // Evictions count in the status too: it has to be as it was seen.
        write_status_at(&api, it, it.status.as_ref(), &status).await?;
        Ok(next.map_or(Next::WhenChanged, Next::After))
    }
}

impl Controller for Disruption {
    const NAME: &'static str = "disruption-controller";
    const REST: Rest = Rest::LOOKING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.budgets.on_change(move |change| keys.add(change.key.clone()));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
        self.follow(&self.informers.deployments, queue, |it| it.spec.as_ref()?.replicas);
        self.follow(&self.informers.replica_sets.informer, queue, |it| it.spec.as_ref()?.replicas);
        self.follow(&self.informers.stateful_sets, queue, |it| it.spec.as_ref()?.replicas);
        self.follow(&self.informers.replication_controllers.informer, queue, |it| {
            it.spec.as_ref()?.replicas
        });
    }

    async fn synced(&self) -> bool {
        self.informers.budgets.synced().await
            && self.informers.pods.informer.synced().await
            && self.informers.replica_sets.informer.synced().await
            && self.informers.deployments.synced().await
            && self.informers.stateful_sets.synced().await
            && self.informers.replication_controllers.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(it) = self.informers.budgets.get(key) else { return Ok(Next::WhenChanged) };
        match &it.spec {
            Some(spec) => self.pass(&it, spec).await,
            None => Ok(Next::WhenChanged),
        }
    }
}
