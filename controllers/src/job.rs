//! Runs pods until enough of them have succeeded, or too many have failed.
//!
//! [`observed`] is what a pass sees, [`verdict`] whether the Job goes on, [`plan`] which pods it
//! makes or deletes, [`status`] what it tells; this file observes and acts. A pod carries a
//! finalizer until it has been counted, so that none is lost and none is counted twice (KEP-2307).

mod indexes;
mod observed;
mod plan;
mod policy;
mod status;
mod strays;
#[cfg(test)]
mod tests;
mod verdict;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use insula_api::selector::{Selector, SelectorError};
use insula_client::{
    Change, Client, Error, EventRecorder, EventType, ObjectKey, Patch, Tenanted, chain,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use parking_lot::Mutex;
use serde_json::json;

use self::{
    observed::{INDEX, INDEX_FAILURES, INDEX_IGNORED, Observed, PodRef, TRACKING, is_tracked},
    plan::{New, Plan, Streak},
    verdict::{Verdict, until_deadline, verdict},
};
pub(crate) use self::{strays::Strays, verdict::is_finished};
use crate::{
    claim::{Claimant, claim, wake_claimants},
    controller::{Controller, Next, ReconcileError, Rest},
    informers::Informers,
    objects::{compile, compile_of, controller_uid, is_pod_active},
    pod_control::{PodControl, pod_from},
    queue::Queue,
    status::write_status_at,
};

/// Who else may keep a Job is named in `spec.managedBy`.
const OWN_NAME: &str = "kubernetes.io/job-controller";

/// Keeps Jobs.
#[derive(Debug)]
pub(crate) struct Jobs {
    client: Client,
    informers: Informers,
    events: EventRecorder,
    pods: PodControl,
    /// What is known of a Job beyond what it says itself, by its uid.
    memory: Mutex<HashMap<String, Memory>>,
}

#[derive(Debug, Clone, Default)]
struct Memory {
    streak: Streak,
    /// Uids of pods that were let go while the local copy shows them as they were.
    settled: HashSet<String>,
}

impl Claimant for Job {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        self.spec.as_ref()?.selector.as_ref().map(compile)
    }
}

impl Jobs {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("job-controller");
        let pods = PodControl::new(client.clone(), events.clone());
        Self { client, informers, events, pods, memory: Mutex::default() }
    }

    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        self.pods.saw(change);
        wake_claimants(change, &self.informers.selectors.jobs, queue);
        if change.new.is_none_or(|new| !is_tracked(new))
            && let Some(pod) = change.latest()
            && let Some(owner) = controller_uid(&pod.object)
            && let Some(it) = self.memory.lock().get_mut(owner)
        {
            it.settled.remove(pod.uid());
        }
    }

    /// Makes and deletes pods. What failed is told by events; the next pass goes on.
    async fn act(&self, it: &Observed<'_>, plan: &Plan) -> Result<(), Error> {
        let job = it.job;
        if !plan.delete.is_empty() {
            self.pods.delete_many(job, &plan.delete).await?;
        }
        let make = |n: usize| pod_of(job, it.spec, plan.create[n]);
        self.pods.create_many(job, plan.create.len(), make).await
    }

    /// Lets pods go that the status knows of.
    async fn let_go(&self, job: &Tenanted<Job>, pods: &[PodRef]) -> Result<(), Error> {
        let released = pods.iter().map(|pod| release(&self.client, pod));
        let results = join_all(released).await;
        let mut memory = self.memory.lock();
        let settled = &mut memory.entry(job.uid().to_owned()).or_default().settled;
        let mut failed = None;
        for (pod, result) in pods.iter().zip(results) {
            match result {
                // The change may have been seen meanwhile, and would not be noticed again.
                Ok(())
                    if self
                        .informers
                        .pods
                        .informer
                        .get(&pod.key())
                        .is_some_and(|it| it.uid() == pod.uid() && is_tracked(&it)) =>
                {
                    settled.insert(pod.uid().to_owned());
                }
                Ok(()) => (),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn pass(&self, job: &Tenanted<Job>, spec: &JobSpec) -> Result<Next, ReconcileError> {
        let Some(selector) = &spec.selector else { return Ok(Next::WhenChanged) };
        let selector = compile_of(job, selector)?;
        // Asked before the pods are read: what is met by then, the pods show.
        let is_current = self.pods.is_current(job.uid());
        let memory = self.memory.lock().get(job.uid()).cloned().unwrap_or_default();
        let candidates = self.informers.pods.candidates_of(job, &selector);
        let pods = claim(&self.client, job, &selector, candidates).await?;
        for pod in pods.iter().filter(|pod| is_pod_active(pod) && !is_tracked(pod)) {
            hold(&self.client, pod).await?;
        }
        let now = Timestamp::now();
        let it = Observed::new(job, spec, pods, &memory.settled);
        let verdict = verdict(&it, now);
        let streak = memory.streak.after(&it, now);
        let mut plan = match is_current && !job.is_deleting() {
            true => plan::plan(&it, &verdict, streak, now),
            false => Plan::default(),
        };
        let acted = self.act(&it, &plan).await;
        if acted.is_err() {
            // How many came to be, the next pass sees.
            plan.create.clear();
        }
        let told = status::tell(&it, &verdict, &plan, &memory.settled, now);
        let api = self.client.tenant(&job.tenant).namespaced::<Job>(job.namespace());
        write_status_at(&api, job, job.status.as_ref(), &told.status).await?;
        for (is_good, reason, message) in &told.news {
            let how = if *is_good { EventType::Normal } else { EventType::Warning };
            self.events.record(job, how, reason, message.clone());
        }
        let counted = !it.succeeded.is_empty() || !it.failed.is_empty();
        if counted {
            self.memory.lock().entry(job.uid().to_owned()).or_default().streak = streak;
        }
        self.let_go(job, &told.let_go).await?;
        acted?;
        if !told.let_go.is_empty() {
            // What was let go becomes a number.
            return Ok(Next::After(Duration::from_millis(20)));
        }
        let deadline = until_deadline(&it, now).filter(|_| verdict == Verdict::GoesOn);
        let deadline = deadline.and_then(|it| u64::try_from(it).ok()).map(Duration::from_secs);
        let next = plan.wait.into_iter().chain(deadline).min();
        Ok(next.map_or(Next::WhenChanged, |it| Next::After(it.max(Duration::from_millis(100)))))
    }
}

/// Takes away what keeps a pod until it is counted.
async fn release(client: &Client, pod: &Tenanted<Pod>) -> Result<(), Error> {
    let patch = Patch::Strategic(json!({
        "metadata": {"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [TRACKING]},
    }));
    let api = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    match api.patch(pod.name(), &patch).await {
        Ok(_) => Ok(()),
        // Gone, or another pod by this name.
        Err(error) if error.is_not_found() || error.is_conflict() || error.is_invalid() => {
            tracing::debug!(pod = %pod.key(), error = chain(&error), "there is nothing to let go");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Keeps a pod that was taken over until it is counted.
async fn hold(client: &Client, pod: &Tenanted<Pod>) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": pod.uid(), "finalizers": [TRACKING]}});
    let api = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    match api.patch(pod.name(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A new pod of a Job.
fn pod_of(job: &Tenanted<Job>, spec: &JobSpec, new: New) -> Pod {
    let base = match new.index {
        Some(index) => format!("{}-{index}-", job.name()),
        None => format!("{}-", job.name()),
    };
    let mut pod = pod_from(job, &spec.template, &base);
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING.to_owned());
    let Some(index) = new.index else { return pod };
    let index = index.to_string();
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.clone());
    if let Some((failures, ignored)) = new.failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
        if ignored != 0 {
            annotations.insert(INDEX_IGNORED.to_owned(), ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.clone());
    let inner = pod.spec.get_or_insert_default();
    inner.hostname.get_or_insert_with(|| format!("{}-{index}", job.name()));
    let first = inner.init_containers.iter_mut().flatten();
    for container in first.chain(&mut inner.containers) {
        let variables = container.env.get_or_insert_default();
        if !variables.iter().any(|it| it.name == "JOB_COMPLETION_INDEX") {
            variables.push(EnvVar {
                name: "JOB_COMPLETION_INDEX".to_owned(),
                value: None,
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        api_version: None,
                        field_path: format!("metadata.labels['{INDEX}']"),
                    }),
                    ..EnvVarSource::default()
                }),
            });
        }
    }
    pod
}

impl Controller for Jobs {
    const NAME: &'static str = "job-controller";
    const WORKERS: usize = 16;
    const REST: Rest = Rest::COUNTING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.jobs.informer.on_change(move |change| {
            if change.new.is_none_or(|new| change.old.is_some_and(|old| old.uid() != new.uid()))
                && let Some(old) = change.old
            {
                it.pods.forget(old.uid());
                it.memory.lock().remove(old.uid());
            }
            keys.add(change.key.clone());
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.jobs.informer.synced().await && self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(job) = self.informers.jobs.informer.get(key) else {
            return Ok(Next::WhenChanged);
        };
        let Some(spec) = &job.spec else { return Ok(Next::WhenChanged) };
        let is_own = spec.managed_by.as_deref().is_none_or(|it| it == OWN_NAME);
        if !is_own || is_finished(&job) {
            return Ok(Next::WhenChanged);
        }
        self.pass(&job, spec).await
    }
}
