//! One task per pod that brings the runtime to what the pod should be.
//!
//! A pass observes, plans (a pure function), acts and reports; then the task sleeps until the pod
//! changes in the API, the runtime or a probe has news, or a time the plan named has come. A pass
//! knows nothing of what woke it, so after a restart of the agent the first pass is like any other.
//!
//! A pass may take long: a sandbox takes a fraction of a second, a hook as long as it likes. When
//! the pod's end begins, the pass under way is dropped where it stands; what it left half done is
//! observed by the next one.

mod containers;
mod ending;
mod files;
mod images;
mod reporting;
mod volumes;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use insula_client::{Backoff, EventType, Tenanted, chain};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{ending::Stopping, images::Pull, volumes::Volumes};
use super::{
    identity::PodKey,
    observed::{Observed, Observer},
    plan::{Plan, World, plan},
    probe::{Findings, Prober},
    sandbox,
    snapshot::Snapshot,
    status::{Failure, Waiting},
    sysctls,
};
use crate::node::Node;

/// How often a pod is looked at though nothing seems to have happened.
const RESYNC: Duration = Duration::from_secs(60);
/// How soon after an outage of the runtime to look again.
const OUTAGE_DELAY: Duration = Duration::from_secs(1);

/// What failed, of a pod as a whole. No container is called so.
const SANDBOX: &str = "sandbox/";
const VOLUMES: &str = "volumes/";

/// What the API says about a pod.
#[derive(Debug, Clone)]
pub(crate) struct Desired {
    /// As last seen.
    pub pod: Arc<Tenanted<Pod>>,
    /// The API has it no more.
    pub is_gone: bool,
}

impl Desired {
    fn is_ending(&self) -> bool {
        self.is_gone || self.pod.is_deleting()
    }
}

/// What to do after a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The world was changed: look again.
    Now,
    /// Nothing to do until something happens, or until then.
    Wait(Duration),
    /// All traces of the pod are gone.
    Done,
}

/// The runtime failed in a way that makes the rest of a pass pointless.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Outage(#[from] crate::cri::RuntimeError);

/// The state of one pod's task. All of it can be lost: it is rebuilt from the runtime and the API.
#[derive(Debug)]
pub(crate) struct Worker {
    key: PodKey,
    node: Arc<Node>,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    snapshot: watch::Sender<Snapshot>,
    shutdown: CancellationToken,

    observer: Observer,
    probers: HashMap<String, Prober>,
    pulls: BTreeMap<String, Pull>,
    waiting: BTreeMap<String, Waiting>,
    /// When to try again what failed: by container, [`SANDBOX`], [`VOLUMES`], or image.
    retries: BTreeMap<String, Retry>,
    stopping: HashMap<String, Stopping>,
    volumes: Volumes,
    last_words: HashMap<String, Option<String>>,
    failure: Option<Failure>,
    /// The pod as the API last answered, which may be newer than what was watched.
    answered: Option<Arc<Tenanted<Pod>>>,
    /// Sandboxes and volumes of the ended pod are gone.
    is_cleaned: bool,
    is_removed: bool,
    last_outage: Option<String>,
}

/// Something that failed and when it may be tried again.
#[derive(Debug)]
struct Retry {
    backoff: Backoff,
    at: Instant,
}

/// What joins a worker to the rest of the agent. Outlives the worker.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    pub(crate) desired: watch::Receiver<Desired>,
    pub(crate) snapshot: watch::Sender<Snapshot>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) shutdown: CancellationToken,
}

impl Worker {
    pub(crate) fn new(node: Arc<Node>, key: PodKey, links: Links) -> Self {
        let Links { desired, snapshot, wake, shutdown } = links;
        Self {
            key,
            node,
            desired,
            wake,
            snapshot,
            shutdown,
            observer: Observer::default(),
            probers: HashMap::new(),
            pulls: BTreeMap::new(),
            waiting: BTreeMap::new(),
            retries: BTreeMap::new(),
            stopping: HashMap::new(),
            volumes: Volumes::default(),
            last_words: HashMap::new(),
            failure: None,
            answered: None,
            is_cleaned: false,
            is_removed: false,
            last_outage: None,
        }
    }

    /// Runs until all traces of the pod are gone, or the agent ends. In the latter case containers
    /// run on.
    #[tracing::instrument(name = "pod", skip_all, fields(pod = %self.key, uid = %self.key.uid))]
    pub(crate) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let mut ahead = self.desired.clone();
            let is_ending = desired.is_ending();
            let end_begins = async {
                if is_ending || ahead.wait_for(Desired::is_ending).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = end_begins => continue,
                next = self.pass(&desired) => next,
            };
            let delay = match next {
                Ok(Next::Now) => continue,
                Ok(Next::Wait(delay)) => delay,
                Ok(Next::Done) => return,
                Err(outage) => self.on_outage(&outage),
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = self.desired.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    fn on_outage(&mut self, outage: &Outage) -> Duration {
        let text = chain(outage);
        if self.last_outage.as_deref() != Some(&text) {
            tracing::warn!(error = text, "cannot go on");
            self.last_outage = Some(text);
        }
        OUTAGE_DELAY
    }

    /// Observes, plans, acts, reports.
    async fn pass(&mut self, desired: &Desired) -> Result<Next, Outage> {
        let pod = self.newest(&desired.pod);
        let Some(spec) = &pod.spec else { return Ok(Next::Wait(RESYNC)) };
        let observed = self.observer.observe(&self.node.runtime, &self.key).await?;
        self.last_outage = None;
        self.forget_what_is_gone(&observed);
        self.keep_probing(&pod, spec, &observed);
        let now = Timestamp::now();
        self.check_sysctls(&pod, spec);
        self.check_deadline(&pod, now);
        let is_ending = desired.is_ending() || self.failure.is_some() || is_terminal(&pod);

        let plan = {
            let probers = &self.probers;
            let findings = |id: &str| probers.get(id).map(Prober::findings);
            let stopping = &self.stopping;
            plan(&World {
                spec,
                observed: &observed,
                is_ending,
                has_started: &|id| findings(id).is_some_and(|it| it.started),
                failed_probe: &|id| {
                    findings(id).and_then(|it| it.failed).filter(|_| !stopping.contains_key(id))
                },
                now,
            })
        };
        tracing::trace!(?plan, "planned");
        // Boxed, so that a pod at rest costs little.
        let has_acted = Box::pin(self.act(desired, &pod, spec, &observed, &plan)).await?;
        if has_acted {
            return Ok(Next::Now);
        }
        self.note_back_off(&pod, &plan);
        if plan.is_over && self.stopping.is_empty() {
            return self.finish(desired, &pod, &observed).await;
        }
        let is_reported = self.report(desired, &pod, &observed, false).await;
        let volumes_due = self.refresh_volumes(&pod, spec, &observed, is_ending).await;

        let mut delay = RESYNC.min(volumes_due);
        let start = Instant::now();
        // One whose time has come was tried above, or is no longer wanted.
        let retries = self.retries.values().map(|it| it.at).filter(|&at| at > start);
        let retries = retries.map(|at| at.duration_since(start));
        delay = retries.chain(plan.look_again_after).fold(delay, Duration::min);
        if let Some(left) = deadline_left(&pod, now) {
            delay = delay.min(left);
        }
        if let Some(again) = is_reported.err() {
            delay = delay.min(again);
        }
        Ok(Next::Wait(delay))
    }

    /// The API's answer to our last write may be ahead of what was watched.
    fn newest(&mut self, watched: &Arc<Tenanted<Pod>>) -> Arc<Tenanted<Pod>> {
        use std::cmp::Ordering::Greater;
        if let Some(answered) = &self.answered {
            let order = insula_client::newer_version(
                answered.resource_version(),
                watched.resource_version(),
            );
            if order == Some(Greater) {
                return answered.clone();
            }
            self.answered = None;
        }
        watched.clone()
    }

    /// What the plan says. Returns whether that changed the world, so that the plan is stale.
    async fn act(
        &mut self,
        desired: &Desired,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        observed: &Observed,
        plan: &Plan,
    ) -> Result<bool, Outage> {
        let runtime = self.node.runtime.clone();
        for stop in &plan.stop {
            self.begin_stop(desired, pod, spec, stop);
        }
        for id in &plan.remove {
            runtime.remove_container(id).await?;
        }
        for id in &plan.stop_sandboxes {
            tracing::info!(sandbox = id, "stopping a sandbox that is no longer of use");
            runtime.stop_pod_sandbox(id).await?;
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            self.event(None, EventType::Normal, "SandboxChanged", message);
        }
        for id in &plan.remove_sandboxes {
            runtime.remove_pod_sandbox(id).await?;
        }
        let mut has_acted = !(plan.stop_sandboxes.is_empty() && plan.remove_sandboxes.is_empty());
        if let Some(attempt) = plan.new_sandbox {
            has_acted |= self.make_sandbox(pod, spec, attempt).await?;
        }
        for start in &plan.start {
            has_acted |= self.start_container(pod, spec, observed, start).await?;
        }
        Ok(has_acted)
    }

    /// Returns whether there is a new sandbox.
    async fn make_sandbox(
        &mut self,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        attempt: u32,
    ) -> Result<bool, Outage> {
        if self.is_too_soon(SANDBOX) || self.is_too_soon(VOLUMES) {
            return Ok(false);
        }
        if !self.set_up_volumes(pod, spec, &[]).await {
            return Ok(false);
        }
        let logs = self.node.config.pod_logs_dir.join(self.key.log_directory());
        let is_ready = match tokio::fs::create_dir_all(&logs).await {
            Ok(()) => self.runtime_handler(spec).await,
            Err(error) => Err(format!("cannot make {}: {error}", logs.display())),
        };
        let made = match is_ready {
            Ok(handler) => {
                let config = sandbox::config(
                    &self.node.config,
                    &self.node.surroundings(),
                    &self.key,
                    spec,
                    attempt,
                );
                match self.node.runtime.run_pod_sandbox(config, &handler).await {
                    Ok(id) => Ok(id),
                    Err(error) if error.is_outage() => return Err(error.into()),
                    Err(error) => Err(error.to_string()),
                }
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(id) => {
                tracing::debug!(sandbox = id, attempt, "sandbox runs");
                self.retries.remove(SANDBOX);
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(error, "sandbox not made");
                let message = format!("Failed to create pod sandbox: {error}");
                self.event(None, EventType::Warning, "FailedCreatePodSandBox", message);
                self.try_later(SANDBOX);
                Ok(false)
            }
        }
    }

    /// Which of the runtime's ways to run pods is meant; empty for its usual one.
    async fn runtime_handler(&self, spec: &PodSpec) -> Result<String, String> {
        let Some(class) = spec.runtime_class_name.as_deref().filter(|it| !it.is_empty()) else {
            return Ok(String::new());
        };
        match self.node.cluster.runtime_handler(&self.key.tenant, class).await {
            Ok(Some(handler)) => Ok(handler),
            Ok(None) => Err(format!("RuntimeClass {class:?} not found")),
            Err(error) => {
                Err(format!("failed to lookup RuntimeClass {class:?}: {}", chain(&error)))
            }
        }
    }

    fn is_too_soon(&self, what: &str) -> bool {
        self.retries.get(what).is_some_and(|it| Instant::now() < it.at)
    }

    fn try_later(&mut self, what: &str) {
        self.try_later_within(what, Duration::from_secs(1), Duration::from_secs(15));
    }

    fn try_later_within(&mut self, what: &str, base: Duration, ceiling: Duration) {
        let retry = self
            .retries
            .entry(what.to_owned())
            .or_insert_with(|| Retry { backoff: Backoff::new(base, ceiling), at: Instant::now() });
        retry.at = Instant::now() + retry.backoff.next_delay();
    }

    fn forget_what_is_gone(&mut self, observed: &Observed) {
        let runs = |id: &str| observed.instances().any(|(_, it)| it.id == id && it.is_running());
        self.probers.retain(|id, _| runs(id));
        self.stopping.retain(|id, it| runs(id) && !it.is_finished());
        self.last_words.retain(|id, _| observed.instances().any(|(_, it)| it.id == *id));
    }

    /// Whether the pod asks for settings of the kernel that it may not have: then it is none of
    /// this node's.
    fn check_sysctls(&mut self, pod: &Pod, spec: &PodSpec) {
        if self.failure.is_none()
            && !is_terminal(pod)
            && let Some(Failure { reason, message }) = sysctls::forbidden(spec)
        {
            self.event(None, EventType::Warning, &reason, message.clone());
            self.failure =
                Some(Failure { reason, message: format!("Pod was rejected: {message}") });
        }
    }

    /// Whether the pod has used up the time its spec gives it.
    fn check_deadline(&mut self, pod: &Pod, now: Timestamp) {
        if self.failure.is_none()
            && !is_terminal(pod)
            && deadline_left(pod, now).is_some_and(|left| left.is_zero())
        {
            let message = "Pod was active on the node longer than the specified deadline";
            self.event(None, EventType::Normal, "DeadlineExceeded", message.to_owned());
            self.failure = Some(Failure {
                reason: "DeadlineExceeded".to_owned(),
                message: message.to_owned(),
            });
        }
    }

    fn findings(&self, id: &str) -> Option<Findings> {
        self.probers.get(id).map(Prober::findings)
    }

    /// Tells users what happened to the pod, or to one of its containers.
    fn event(&self, container: Option<&str>, kind: EventType, reason: &str, message: String) {
        let field = container.map(|it| format!("spec.containers{{{it}}}"));
        self.node.cluster.event(&self.key, field, kind, reason, message);
    }
}

/// The API says that the pod has ended, which is never taken back.
fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// How much of the pod's `activeDeadlineSeconds` is left.
fn deadline_left(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let limit = pod.spec.as_ref()?.active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    let left = SignedDuration::from_secs(limit) - now.duration_since(start);
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}
