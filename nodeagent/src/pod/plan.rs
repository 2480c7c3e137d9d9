//! Decides what to do next for a pod. No I/O, no clock, no memory.
//!
//! [`plan`] sees the pod's spec and what the runtime has, and says what brings the one closer to
//! the other. It is asked again after everything it said was done or tried, so each answer need
//! only be a step.
//!
//! # Invariants
//!
//! * A container of a pod that is ending, or has ended, is never started.
//! * A regular init container starts only when all before it are done, a main container only when
//!   all init containers are done and all sidecars have started.
//! * Of each container at most one instance runs.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::observed::{Instance, Observed, Sandbox, State};

/// A container that ran this long is forgiven its earlier ends.
const GOOD_RUN: SignedDuration = SignedDuration::from_mins(10);
const FIRST_DELAY: Duration = Duration::from_secs(10);
const MAX_DELAY: Duration = Duration::from_secs(300);
/// Instances kept of each container: the current one, and the one before for its logs.
const N_KEPT: usize = 2;

/// The part a container plays in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the main containers start.
    Init,
    /// Starts in the order of init containers and runs beside the main ones.
    Sidecar,
    Main,
}

/// All containers of a pod: init containers and sidecars in their order, then the main ones.
pub(crate) fn containers(spec: &PodSpec) -> impl DoubleEndedIterator<Item = (Role, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|it| {
        let is_sidecar = it.restart_policy.as_deref() == Some("Always");
        (if is_sidecar { Role::Sidecar } else { Role::Init }, it)
    });
    init.chain(spec.containers.iter().map(|it| (Role::Main, it)))
}

/// What to do about containers that end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// All that a decision depends on.
#[allow(missing_debug_implementations, reason = "has closures")]
pub(crate) struct World<'a> {
    pub spec: &'a PodSpec,
    pub observed: &'a Observed,
    /// The pod is being deleted, ran out of time, or its API object says that it has ended.
    pub is_ending: bool,
    /// Whether the instance with this id has passed its startup probe, if it has one.
    pub has_started: &'a dyn Fn(&str) -> bool,
    /// What a probe found wrong with the instance with this id.
    pub failed_probe: &'a dyn Fn(&str) -> Option<FailedProbe>,
    pub now: Timestamp,
}

/// A probe that asks for its container's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailedProbe {
    Liveness,
    Startup,
}

/// Why a container is to be stopped while its pod goes on, or that the pod does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopReason {
    PodEnds,
    Probe(FailedProbe),
    SpecChanged,
    SandboxGone,
    HookFailed,
}

/// One instance to be stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stop {
    pub id: String,
    pub container: String,
    pub reason: StopReason,
}

/// One instance to be made and started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub container: String,
    pub attempt: u32,
    /// How long its successor is to wait, should it end.
    pub restart_delay: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub stop: Vec<Stop>,
    /// Sandboxes to be stopped; what runs in them ends.
    pub stop_sandboxes: Vec<String>,
    /// Sandboxes to be removed with what is left in them.
    pub remove_sandboxes: Vec<String>,
    /// Instances to be removed that do not run.
    pub remove: Vec<String>,
    /// The attempt of a sandbox to be made.
    pub new_sandbox: Option<u32>,
    pub start: Vec<Start>,
    /// Containers that wait until they may start again, and their delay.
    pub backing_off: BTreeMap<String, Duration>,
    /// After this time the plan differs though nothing changed.
    pub look_again_after: Option<Duration>,
    /// Nothing runs and nothing will.
    pub is_over: bool,
}

/// The sandbox in which containers can be started.
pub(crate) fn usable_sandbox<'a>(spec: &PodSpec, observed: &'a Observed) -> Option<&'a Sandbox> {
    let newest = observed.sandboxes.first()?;
    let has_network = spec.host_network == Some(true) || !newest.ips.is_empty();
    (newest.is_ready && has_network).then_some(newest)
}

/// Whether the pod has run to its end, by its restart policy.
pub(crate) fn has_ended(spec: &PodSpec, observed: &Observed) -> bool {
    let policy = RestartPolicy::of(spec);
    let exit_code = |container: &Container| match observed.latest(&container.name)?.state {
        State::Exited { exit_code, .. } => Some(exit_code),
        _ => None,
    };
    let init_failed = || {
        containers(spec).any(|(role, container)| {
            role == Role::Init && exit_code(container).is_some_and(|code| code != 0)
        })
    };
    if policy == RestartPolicy::Never && init_failed() {
        return true;
    }
    !spec.containers.is_empty()
        && spec.containers.iter().all(|it| exit_code(it).is_some_and(|code| !policy.restarts(code)))
}

/// Decides what to do next.
pub(crate) fn plan(world: &World<'_>) -> Plan {
    let World { spec, observed, .. } = *world;
    let mut plan = Plan::default();
    if world.is_ending || has_ended(spec, observed) {
        end(world, &mut plan);
        return plan;
    }
    let current = usable_sandbox(spec, observed);
    drop_old(world, current, &mut plan);
    if !plan.stop_sandboxes.is_empty() {
        return plan;
    }
    match current {
        Some(sandbox) => run(world, sandbox, &mut plan),
        None => {
            plan.new_sandbox = Some(observed.sandboxes.first().map_or(0, |it| it.attempt + 1));
        }
    }
    plan
}

/// Stops the main containers together, then the sidecars one by one from the last to the first.
fn end(world: &World<'_>, plan: &mut Plan) {
    let running = |container: &Container| {
        let instances = world.observed.containers.get(&container.name)?;
        instances.iter().find(|it| it.is_running())
    };
    let stop = |container: &Container, instance: &Instance| Stop {
        id: instance.id.clone(),
        container: container.name.clone(),
        reason: StopReason::PodEnds,
    };
    for (role, container) in containers(world.spec) {
        if role != Role::Sidecar
            && let Some(instance) = running(container)
        {
            plan.stop.push(stop(container, instance));
        }
    }
    if plan.stop.is_empty() {
        let sidecars = containers(world.spec).rev().filter(|(role, _)| *role == Role::Sidecar);
        let mut running = sidecars.filter_map(|(_, it)| Some((it, running(it)?)));
        plan.stop.extend(running.next().map(|(container, instance)| stop(container, instance)));
    }
    plan.is_over = plan.stop.is_empty();
}

/// Gets rid of sandboxes and instances that no longer serve.
fn drop_old(world: &World<'_>, current: Option<&Sandbox>, plan: &mut Plan) {
    let observed = world.observed;
    let kept = |id: &str| {
        observed
            .containers
            .values()
            .any(|all| all.iter().take(N_KEPT).any(|it| it.sandbox_id == id))
    };
    for sandbox in &observed.sandboxes {
        if current.is_some_and(|it| it.id == sandbox.id) {
            continue;
        }
        let still_runs =
            observed.instances().any(|(_, it)| it.sandbox_id == sandbox.id && it.is_running());
        if sandbox.is_ready || still_runs {
            plan.stop_sandboxes.push(sandbox.id.clone());
        } else if !kept(&sandbox.id) {
            plan.remove_sandboxes.push(sandbox.id.clone());
        }
    }
    let old = observed.containers.values().flat_map(|all| all.iter().skip(N_KEPT));
    plan.remove.extend(old.filter(|it| !it.is_running()).map(|it| it.id.clone()));
}

/// Brings the containers in a usable sandbox closer to what they should be.
fn run(world: &World<'_>, sandbox: &Sandbox, plan: &mut Plan) {
    let spec = world.spec;
    let here = |container: &Container| {
        let latest = world.observed.latest(&container.name)?;
        (latest.sandbox_id == sandbox.id).then_some(latest)
    };
    // Once a main container was made in this sandbox, its init containers are done for good, even
    // if they were removed since.
    let initialized = spec.containers.iter().any(|it| here(it).is_some());
    for (role, container) in containers(spec) {
        let instance = here(container);
        let policy = match role {
            Role::Sidecar => RestartPolicy::Always,
            Role::Main => RestartPolicy::of(spec),
            // A regular init container that succeeded is never run again in its sandbox.
            Role::Init => match RestartPolicy::of(spec) {
                RestartPolicy::Never => RestartPolicy::Never,
                _ => RestartPolicy::OnFailure,
            },
        };
        if role == Role::Init && initialized {
            continue;
        }
        let is_up = advance(world, container, instance, policy, plan);
        if role != Role::Main && !initialized && !is_up {
            return;
        }
    }
}

/// One container's next step. Returns whether what depends on it may go on.
fn advance(
    world: &World<'_>,
    container: &Container,
    here: Option<&Instance>,
    policy: RestartPolicy,
    plan: &mut Plan,
) -> bool {
    let stop =
        |id: &str, reason| Stop { id: id.to_owned(), container: container.name.clone(), reason };
    // What an older sandbox left counts too: for the number of restarts, for the delay, and for
    // whether the container is done.
    let latest = here.or_else(|| world.observed.latest(&container.name));
    let Some(latest) = latest else {
        plan.start.push(start(container, 0, Duration::ZERO));
        return false;
    };
    match &latest.state {
        State::Running { .. } if here.is_none() => {
            plan.stop.push(stop(&latest.id, StopReason::SandboxGone));
            false
        }
        State::Running { .. } => {
            if let Some(probe) = (world.failed_probe)(&latest.id) {
                plan.stop.push(stop(&latest.id, StopReason::Probe(probe)));
                return false;
            }
            if container.image.as_ref().is_some_and(|it| *it != latest.spec_image) {
                plan.stop.push(stop(&latest.id, StopReason::SpecChanged));
                return false;
            }
            let is_sidecar = container.restart_policy.as_deref() == Some("Always");
            is_sidecar && (world.has_started)(&latest.id)
        }
        State::Unknown => {
            plan.stop.push(stop(&latest.id, StopReason::SandboxGone));
            false
        }
        State::Created => {
            // Whoever made it went away before starting it. It never ran, so it does not count.
            plan.remove.push(latest.id.clone());
            plan.start.push(start(container, latest.attempt, latest.restart_delay));
            false
        }
        State::Exited { exit_code, started_at, finished_at, .. } => {
            // Init containers run again in a new sandbox, whatever became of them in the old one.
            let is_init_again = here.is_none() && policy != RestartPolicy::Always && {
                containers(world.spec)
                    .any(|(role, it)| role == Role::Init && it.name == container.name)
            };
            if !is_init_again && !policy.restarts(*exit_code) {
                return *exit_code == 0;
            }
            let ran = started_at.map_or(SignedDuration::ZERO, |it| finished_at.duration_since(it));
            let delay = if ran >= GOOD_RUN { Duration::ZERO } else { latest.restart_delay };
            let waited = world.now.duration_since(*finished_at);
            let waited = Duration::try_from(waited).unwrap_or_default();
            if is_init_again || waited >= delay {
                let next = if delay.is_zero() { FIRST_DELAY } else { (delay * 2).min(MAX_DELAY) };
                plan.start.push(start(container, latest.attempt + 1, next));
            } else {
                plan.backing_off.insert(container.name.clone(), delay);
                let left = delay - waited;
                plan.look_again_after =
                    Some(plan.look_again_after.map_or(left, |other| other.min(left)));
            }
            false
        }
    }
}

fn start(container: &Container, attempt: u32, restart_delay: Duration) -> Start {
    Start { container: container.name.clone(), attempt, restart_delay }
}

#[cfg(test)]
mod tests;
