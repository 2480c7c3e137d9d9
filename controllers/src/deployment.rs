//! Rolls a deployment's template out: one ReplicaSet per template, scaled against one another.
//!
//! [`plan`] and [`status`] decide; this file observes and acts.

mod limits;
mod plan;
mod revision;
mod status;

use std::{sync::Arc, time::Duration};

use insula_api::selector::{Selector, SelectorError};
use insula_client::{
    Change, Client, DeleteOptions, Error, EventRecorder, EventType, ObjectKey, Patch, Propagation,
    Tenanted, chain,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use serde_json::json;

use self::{
    plan::{Action, Observed, Set, plan, replicas},
    revision::{REVISION, new_set, revision},
    status::{Progress, next_check, status},
};
use crate::{
    claim::{Claimant, claim, wake_claimants},
    controller::{Controller, Next, ReconcileError, Rest},
    informers::Informers,
    objects::{compile, compile_of, controller_of, controller_uid, is_pod_finished},
    queue::Queue,
    status::write_status,
    written::Written,
};

/// Keeps Deployments.
#[derive(Debug)]
pub(crate) struct Deployments {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    written: Written,
}

impl Claimant for Deployment {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        self.spec.as_ref().map(|spec| compile(&spec.selector))
    }
}

impl Deployments {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("deployment-controller");
        Self { client, informers, events, written: Written::default() }
    }

    /// The end of an old pod may be what a deployment that recreates waits for.
    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        if change.new.is_some_and(|pod| !is_pod_finished(pod)) {
            return;
        }
        let Some(pod) = change.latest() else { return };
        let Some(owner) = controller_of(&pod.object) else { return };
        let set = ObjectKey::new(&pod.tenant, pod.namespace(), &owner.name);
        if let Some(set) = self.informers.replica_sets.informer.get(&set)
            && set.uid() == owner.uid
            && let Some(owner) = controller_of(&set.object)
        {
            queue.add(ObjectKey::new(&pod.tenant, pod.namespace(), &owner.name));
        }
    }

    /// Takes a note of what became of a write of a set; if that is not known, of what there is.
    async fn wrote(
        &self,
        deployment: &Tenanted<Deployment>,
        set: &str,
        written: Result<Tenanted<ReplicaSet>, Error>,
    ) -> Result<(), Error> {
        let found = match &written {
            Ok(set) => Some(set.resource_version().to_owned()),
            Err(error) if error.is_ambiguous() => {
                let api = self.client.tenant(&deployment.tenant);
                let sets = api.namespaced::<ReplicaSet>(deployment.namespace());
                let there = sets.get_opt(set).await.ok().flatten();
                there.map(|set| set.resource_version().to_owned())
            }
            Err(_) => None,
        };
        if let Some(version) = found {
            self.written.note(&deployment.key(), set, &version);
        }
        written.map(drop)
    }

    /// Whether the local copy shows all that was written.
    fn is_current(&self, deployment: &Tenanted<Deployment>) -> bool {
        let (tenant, namespace) = (&deployment.tenant, deployment.namespace());
        self.written.is_shown(&deployment.key(), |set| {
            let key = ObjectKey::new(tenant, namespace, set);
            let shown = self.informers.replica_sets.informer.get(&key);
            shown.map(|set| set.resource_version().to_owned())
        })
    }

    fn have_running_pods(&self, sets: &[Set]) -> bool {
        let mut pods = sets.iter().flat_map(|set| self.informers.pods.managed_by(set));
        pods.any(|pod| !is_pod_finished(&pod))
    }

    /// Carries out a plan; returns what the status tells of it.
    async fn act(
        &self,
        deployment: &Tenanted<Deployment>,
        actions: &[Action],
    ) -> Result<Progress, ActError> {
        let api = self.client.tenant(&deployment.tenant);
        let sets = api.namespaced::<ReplicaSet>(deployment.namespace());
        let mut progress = Progress::None;
        for action in actions {
            match action {
                Action::Create { replicas, revision } => {
                    progress = self.create(deployment, *replicas, *revision).await?;
                }
                Action::Change { set, replicas: target, min_ready_seconds, annotations } => {
                    let mut patch = json!({
                        "metadata": {
                            "uid": set.uid(),
                            "resourceVersion": set.resource_version(),
                            "annotations": annotations,
                        },
                        "spec": {},
                    });
                    if let Some(target) = target {
                        patch["spec"]["replicas"] = (*target).into();
                    }
                    if let Some(seconds) = min_ready_seconds {
                        patch["spec"]["minReadySeconds"] = (*seconds).into();
                    }
                    let written = sets.patch(set.name(), &Patch::Merge(patch)).await;
                    self.wrote(deployment, set.name(), written).await?;
                    if let Some(target) = target {
                        self.record_scaling(deployment, set.name(), replicas(set), *target);
                    }
                }
                Action::Delete { set } => {
                    let options = DeleteOptions::default()
                        .only_uid(set.uid())
                        .propagation(Propagation::Background);
                    match sets.delete(set.name(), &options).await {
                        Ok(_) => (),
                        Err(error) if error.is_not_found() || error.is_conflict() => (),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(progress)
    }

    async fn create(
        &self,
        deployment: &Tenanted<Deployment>,
        replicas: i32,
        revision: i64,
    ) -> Result<Progress, ActError> {
        let encode = |source| Error::Encode { request: "a ReplicaSet".to_owned(), source };
        let set = new_set(deployment, replicas, revision).map_err(encode)?;
        let name = set.metadata.name.clone().unwrap_or_default();
        let api = self.client.tenant(&deployment.tenant);
        let sets = api.namespaced::<ReplicaSet>(deployment.namespace());
        let written = sets.create(&set).await;
        match self.wrote(deployment, &name, written).await {
            Ok(()) => {
                if 0 < replicas {
                    self.record_scaling(deployment, &name, 0, replicas);
                }
                Ok(Progress::Created { set: name })
            }
            Err(error) if error.is_already_exists() => {
                let present = sets.get(&name).await?;
                if controller_uid(&present.object) == Some(deployment.uid()) {
                    // Made by an earlier pass; the local copy will show it.
                    self.written.note(&deployment.key(), &name, present.resource_version());
                    return Ok(Progress::Found { set: name });
                }
                Err(ActError::Collision)
            }
            Err(error) if error.is_namespace_terminating() => Ok(Progress::None),
            Err(error) => {
                let message =
                    format!("Failed to create new replica set \"{name}\": {}", chain(&error));
                let reason = "ReplicaSetCreateError";
                self.events.record(deployment, EventType::Warning, reason, message.clone());
                Err(ActError::Create { message, error })
            }
        }
    }

    fn record_scaling(&self, deployment: &Tenanted<Deployment>, set: &str, from: i32, to: i32) {
        let direction = if from < to { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.events.record(deployment, EventType::Normal, "ScalingReplicaSet", message);
    }

    /// Shows the present revision on the deployment, where `kubectl rollout` looks for it.
    async fn note_revision(
        &self,
        deployment: &Tenanted<Deployment>,
        wanted: i64,
    ) -> Result<(), Error> {
        if revision(&deployment.metadata) == wanted {
            return Ok(());
        }
        let api = self.client.tenant(&deployment.tenant);
        let patch = json!({
            "metadata": {
                "uid": deployment.uid(),
                "annotations": {REVISION: wanted.to_string()},
            },
        });
        let deployments = api.namespaced::<Deployment>(deployment.namespace());
        // With the status, as upstream: an annotation written otherwise makes another generation.
        deployments.patch_status(deployment.name(), &Patch::Merge(patch)).await.map(drop)
    }
}

/// Why a plan was not carried out.
enum ActError {
    Request(Error),
    /// The name of the new ReplicaSet is taken by one that is not ours.
    Collision,
    Create {
        message: String,
        error: Error,
    },
}

impl From<Error> for ActError {
    fn from(error: Error) -> Self {
        Self::Request(error)
    }
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";
    const WORKERS: usize = 16;
    const REST: Rest = Rest::COUNTING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.deployments.on_change(move |change| keys.add(change.key.clone()));
        let (all, keys) = (self.informers.selectors.deployments.clone(), queue.clone());
        let sets = &self.informers.replica_sets.informer;
        sets.on_change(move |change| wake_claimants(change, &all, &keys));
        let it = self.clone();
        sets.on_change(move |change| {
            if change.new.is_none()
                && let Some(set) = change.old
                && let Some(owner) = controller_of(&set.object)
            {
                let owner = ObjectKey::new(&set.tenant, set.namespace(), &owner.name);
                it.written.gone(&owner, set.name());
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.deployments.synced().await
            && self.informers.replica_sets.informer.synced().await
            && self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(deployment) = self.informers.deployments.get(key) else {
            self.written.forget(key);
            return Ok(Next::WhenChanged);
        };
        if !self.is_current(&deployment) {
            // Mostly the set's event comes first.
            return Ok(Next::After(Duration::from_secs(1)));
        }
        let Some(spec) = &deployment.spec else { return Ok(Next::WhenChanged) };
        let selector = compile_of(&deployment, &spec.selector)?;
        if selector.is_empty() {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.record(&deployment, EventType::Warning, "SelectingAll", message);
            return Ok(Next::WhenChanged);
        }
        let candidates = self.informers.replica_sets.candidates_of(&deployment, &selector);
        let claimed = claim(&self.client, &*deployment, &selector, candidates).await?;
        let observed = Observed::new(&deployment, claimed, |old| self.have_running_pods(old));
        let plan = plan(&observed);

        let acted = self.act(&deployment, &plan.actions).await;
        let (progress, failure) = match acted {
            Ok(Progress::None) => match &observed.new {
                Some(set) => (Progress::Found { set: set.name().to_owned() }, None),
                None => (Progress::None, None),
            },
            Ok(progress) => (progress, None),
            Err(ActError::Create { message, error }) => {
                (Progress::CreateFailed { message }, Some(error))
            }
            Err(ActError::Collision) => {
                return self.note_collision(&deployment).await;
            }
            Err(ActError::Request(error)) => return Err(error.into()),
        };
        let now = Timestamp::now();
        let new = status(&observed, plan.is_rollout, &progress, now);
        let api = self.client.tenant(&deployment.tenant);
        let deployments = api.namespaced::<Deployment>(deployment.namespace());
        write_status(&deployments, &deployment, deployment.status.as_ref(), &new).await?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        // Once the set shows its revision, so does the deployment.
        if plan.is_rollout
            && let Some(set) = &observed.new
            && revision(&set.metadata) != 0
        {
            self.note_revision(&deployment, revision(&set.metadata)).await?;
        }
        Ok(next_check(&deployment, &new, now).map_or(Next::WhenChanged, Next::After))
    }
}

impl Deployments {
    /// Makes the next pass choose another name for the new ReplicaSet.
    async fn note_collision(
        &self,
        deployment: &Tenanted<Deployment>,
    ) -> Result<Next, ReconcileError> {
        let mut new = deployment.status.clone().unwrap_or_default();
        new.collision_count = Some(new.collision_count.unwrap_or(0).saturating_add(1));
        let api = self.client.tenant(&deployment.tenant);
        let deployments = api.namespaced::<Deployment>(deployment.namespace());
        write_status(&deployments, deployment, deployment.status.as_ref(), &new).await?;
        Err(ReconcileError::Incomplete("the name of the new ReplicaSet is taken".to_owned()))
    }
}
