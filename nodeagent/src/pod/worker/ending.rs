//! The end of containers and of pods.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use insula_client::{EventType, Tenanted, chain};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Desired, Next, Outage, RESYNC, Worker};
use crate::{
    cri::RuntimeClient,
    leftovers,
    pod::{
        action,
        observed::Observed,
        plan::{FailedProbe, Stop, StopReason, containers},
    },
};

/// A container gets this long at least, so that it can end by itself at all.
const MIN_GRACE: Duration = Duration::from_secs(1);
/// What a container gets after a hook that used up all its time.
const MIN_GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);
const DEFAULT_GRACE: i64 = 30;
/// How long after a failure to try again.
const RETRY: Duration = Duration::from_secs(2);

/// A container that is being stopped.
#[derive(Debug)]
pub(super) struct Stopping {
    /// When it is killed. May be moved forward.
    deadline: watch::Sender<Instant>,
    is_done: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

impl Stopping {
    /// It ended, or could not be stopped.
    pub(super) fn is_finished(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }
}

impl Worker {
    /// Begins to stop an instance. If that has begun, its end is moved forward at most.
    pub(super) fn begin_stop(
        &mut self,
        desired: &Desired,
        pod: &Tenanted<Pod>,
        spec: &PodSpec,
        stop: &Stop,
    ) {
        let container = containers(spec).map(|(_, it)| it).find(|it| it.name == stop.container);
        let grace = grace(desired, pod, spec, container, stop.reason);
        if let Some(stopping) = self.stopping.get(&stop.id) {
            // Counted from now, as a second delete with a shorter grace means it.
            let deadline = Instant::now() + grace;
            stopping.deadline.send_if_modified(|current| {
                let is_sooner = deadline < *current;
                if is_sooner {
                    *current = deadline;
                }
                is_sooner
            });
            return;
        }
        let name = &stop.container;
        let message = match stop.reason {
            StopReason::PodEnds | StopReason::SandboxGone => format!("Stopping container {name}"),
            StopReason::Probe(FailedProbe::Liveness) => {
                format!("Container {name} failed liveness probe, will be restarted")
            }
            StopReason::Probe(FailedProbe::Startup) => {
                format!("Container {name} failed startup probe, will be restarted")
            }
            StopReason::SpecChanged => {
                format!("Container {name} definition changed, will be restarted")
            }
            StopReason::HookFailed => format!("Container {name} failed its PostStartHook"),
        };
        tracing::info!(container = name, id = stop.id, ?grace, reason = ?stop.reason, "stopping");
        self.event(Some(name), EventType::Normal, "Killing", message);

        let (deadline, deadlines) = watch::channel(Instant::now() + grace);
        let hook = container
            .filter(|_| stop.reason != StopReason::HookFailed)
            .and_then(|it| it.lifecycle.as_ref())
            .and_then(|it| it.pre_stop.clone());
        let pod_ip = self.snapshot.borrow().pod_ips.first().copied();
        let (runtime, id, wake) = (self.node.runtime.clone(), stop.id.clone(), self.wake.clone());
        let (container, key, cluster) =
            (container.cloned(), self.key.clone(), self.node.cluster.clone());
        let is_done = Arc::new(AtomicBool::new(false));
        let done = is_done.clone();
        let task = tokio::spawn(async move {
            if let (Some(hook), Some(container)) = (&hook, &container) {
                let left = deadlines.borrow().duration_since(Instant::now());
                let done = action::hook(&runtime, hook, container, &id, pod_ip, left);
                if let Err(error) = done.await {
                    let field = format!("spec.containers{{{}}}", container.name);
                    let message = format!("PreStopHook failed: {error}");
                    let kind = EventType::Warning;
                    cluster.event(&key, Some(field), kind, "FailedPreStopHook", message);
                }
            }
            let least = if hook.is_some() { MIN_GRACE_AFTER_HOOK } else { MIN_GRACE };
            stop_until(&runtime, &id, deadlines, least).await;
            done.store(true, Ordering::Release);
            wake.notify_one();
        });
        let stopping = Stopping { deadline, is_done, _task: AbortOnDropHandle::new(task) };
        self.stopping.insert(stop.id.clone(), stopping);
    }

    /// The last steps of a pod in which nothing runs any more: its end is told, its sandbox and
    /// files go, and if it was deleted, it goes too.
    pub(super) async fn finish(
        &mut self,
        desired: &Desired,
        pod: &Tenanted<Pod>,
        observed: &Observed,
    ) -> Result<Next, Outage> {
        let runtime = self.node.runtime.clone();
        for sandbox in observed.sandboxes.iter().filter(|it| it.is_ready) {
            runtime.stop_pod_sandbox(&sandbox.id).await?;
        }
        if !desired.is_gone
            && let Err(again) = self.report(desired, pod, observed, true).await
        {
            return Ok(Next::Wait(again));
        }
        if !self.is_cleaned {
            if !leftovers::remove_volumes(&self.node, &self.key).await {
                return Ok(Next::Wait(RETRY));
            }
            self.is_cleaned = true;
        }
        let is_deleted = desired.is_gone || pod.is_deleting();
        if !is_deleted {
            return Ok(Next::Wait(RESYNC));
        }
        for sandbox in &observed.sandboxes {
            runtime.remove_pod_sandbox(&sandbox.id).await?;
        }
        leftovers::remove_files(&self.node, &self.key).await;
        if desired.is_gone {
            tracing::info!("pod is gone");
            return Ok(Next::Done);
        }
        if !self.is_removed {
            match self.node.cluster.delete(&self.key).await {
                Ok(()) => self.is_removed = true,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "pod not removed from the API");
                    return Ok(Next::Wait(RETRY));
                }
            }
        }
        Ok(Next::Wait(RESYNC))
    }
}

/// How long a container has to end.
fn grace(
    desired: &Desired,
    pod: &Tenanted<Pod>,
    spec: &PodSpec,
    container: Option<&Container>,
    reason: StopReason,
) -> Duration {
    let of_probe = || {
        let probe = match reason {
            StopReason::Probe(FailedProbe::Liveness) => container?.liveness_probe.as_ref(),
            StopReason::Probe(FailedProbe::Startup) => container?.startup_probe.as_ref(),
            _ => None,
        };
        probe?.termination_grace_period_seconds
    };
    let of_deletion = || {
        // A newer deletion may be known than the one this pass started from.
        let newest = desired.pod.metadata.deletion_grace_period_seconds;
        newest.or(pod.metadata.deletion_grace_period_seconds)
    };
    let seconds = of_probe()
        .or_else(of_deletion)
        .or(spec.termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).max(MIN_GRACE)
}

/// Stops a container by the deadline, which may move forward meanwhile.
async fn stop_until(
    runtime: &RuntimeClient,
    id: &str,
    mut deadlines: watch::Receiver<Instant>,
    least: Duration,
) {
    loop {
        let left = deadlines.borrow_and_update().duration_since(Instant::now()).max(least);
        tokio::select! {
            stopped = runtime.stop_container(id, left) => {
                if let Err(error) = stopped {
                    tracing::warn!(id, error = chain(&error), "container not stopped");
                    // The worker asks again when this task has ended.
                    tokio::time::sleep(RETRY).await;
                }
                return;
            }
            Ok(()) = deadlines.changed() => {}
        }
    }
}
