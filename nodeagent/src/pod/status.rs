//! The status of a pod, computed from what the runtime has. No I/O, no clock.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec,
        PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    observed::{Instance, Observed, State},
    plan::{RestartPolicy, Role, containers, usable_sandbox},
};

/// Why a container does not run, when the runtime does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub reason: &'static str,
    pub message: String,
}

/// The end of a pod for a reason of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub reason: String,
    pub message: String,
}

/// What a probe or the lack of one says about a running instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Health {
    pub started: bool,
    pub ready: bool,
}

/// All that a status depends on.
#[allow(missing_debug_implementations, reason = "has closures")]
pub(crate) struct Report<'a> {
    pub pod: &'a Pod,
    pub spec: &'a PodSpec,
    pub observed: &'a Observed,
    pub waiting: &'a BTreeMap<String, Waiting>,
    pub health: &'a dyn Fn(&str) -> Health,
    /// What an ended instance said last.
    pub last_words: &'a dyn Fn(&str) -> Option<String>,
    pub failure: Option<&'a Failure>,
    /// Nothing runs and nothing will.
    pub is_over: bool,
    pub host_ip: IpAddr,
    pub runtime_name: &'a str,
    pub now: Timestamp,
}

/// The status that the API should show.
pub(crate) fn status(report: &Report<'_>) -> PodStatus {
    let old = report.pod.status.clone().unwrap_or_default();
    let sandbox = usable_sandbox(report.spec, report.observed);
    let ips: Vec<IpAddr> = if report.spec.host_network == Some(true) {
        vec![report.host_ip]
    } else {
        sandbox.map(|it| it.ips.clone()).unwrap_or_default()
    };
    // An ended pod keeps the address it had.
    let (pod_ip, pod_ips) = if ips.is_empty() && report.is_over {
        (old.pod_ip.clone(), old.pod_ips.clone())
    } else {
        let all = ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect::<Vec<_>>();
        (ips.first().map(ToString::to_string), (!all.is_empty()).then_some(all))
    };

    let mut init = Vec::new();
    let mut main = Vec::new();
    for (role, container) in containers(report.spec) {
        let status = container_status(report, role, container);
        if role == Role::Main { main.push(status) } else { init.push(status) }
    }
    let phase = phase(report, &old, &init, &main);
    let conditions = conditions(report, &old, &phase, sandbox.is_some(), &init, &main);
    let host_ip = report.host_ip.to_string();
    let failure = report.failure.filter(|_| phase == "Failed");
    PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!main.is_empty()).then_some(main),
        reason: failure.map(|it| it.reason.clone()),
        message: failure.map(|it| it.message.clone()),
        host_ips: Some(vec![HostIP { ip: host_ip.clone() }]),
        host_ip: Some(host_ip),
        pod_ip,
        pod_ips,
        start_time: old.start_time.clone().or(Some(Time(report.now))),
        observed_generation: report.pod.metadata.generation.or(old.observed_generation),
        ..old
    }
}

fn container_status(report: &Report<'_>, role: Role, container: &Container) -> ContainerStatus {
    let all =
        report.observed.containers.get(&container.name).map(Vec::as_slice).unwrap_or_default();
    // One that was made and not yet started is not there as far as users see.
    let mut seen = all.iter().filter(|it| it.state != State::Created);
    let (current, previous) = (seen.next(), seen.next());
    let ended = |it: &Instance| terminated(report, it);
    let waiting = report.waiting.get(&container.name).filter(|_| !report.is_over);

    let mut health = Health::default();
    let (state, last_state) = match current {
        Some(instance) if instance.is_running() => {
            health = (report.health)(&instance.id);
            let started_at = match instance.state {
                State::Running { started_at } => Some(Time(started_at)),
                _ => None,
            };
            let running = ContainerStateRunning { started_at };
            let state = ContainerState { running: Some(running), ..ContainerState::default() };
            (state, previous.map(ended))
        }
        Some(instance) => match waiting {
            // It ended, and something keeps its successor from starting.
            Some(waiting) => {
                (waiting_state(waiting.reason, &waiting.message), Some(ended(instance)))
            }
            None => (ended(instance), previous.map(ended)),
        },
        None => {
            let state = match waiting {
                Some(waiting) => waiting_state(waiting.reason, &waiting.message),
                None => waiting_state(first_reason(report, role), ""),
            };
            (state, old_last_state(report, container))
        }
    };
    // A regular init container is ready when it is done.
    if role == Role::Init {
        let done = state.terminated.as_ref().is_some_and(|it| it.exit_code == 0);
        health = Health { started: health.started, ready: done };
    }
    let attempts = current.map_or(0, |it| it.attempt);
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: current.map(|it| it.image_ref.clone()).unwrap_or_default(),
        container_id: current.map(|it| container_id(report, it)),
        restart_count: i32::try_from(attempts).unwrap_or(i32::MAX),
        ready: health.ready,
        started: Some(health.started),
        state: Some(state),
        last_state,
        ..ContainerStatus::default()
    }
}

fn old_last_state(report: &Report<'_>, container: &Container) -> Option<ContainerState> {
    let status = report.pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|it| it.name == container.name)?.last_state.clone()
}

/// What a container that was never made waits for.
fn first_reason(report: &Report<'_>, role: Role) -> &'static str {
    let has_init = containers(report.spec).any(|(role, _)| role != Role::Main);
    if role == Role::Main && has_init
        || role != Role::Main && report.spec.init_containers.as_ref().is_some_and(|it| it.len() > 1)
    {
        "PodInitializing"
    } else {
        "ContainerCreating"
    }
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()).filter(|it| !it.is_empty()),
    };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn container_id(report: &Report<'_>, instance: &Instance) -> String {
    format!("{}://{}", report.runtime_name, instance.id)
}

fn terminated(report: &Report<'_>, instance: &Instance) -> ContainerState {
    let State::Exited { exit_code, reason, message, started_at, finished_at } = &instance.state
    else {
        // Only asked for instances that have ended; an older one still running ends soon.
        return ContainerState::default();
    };
    let reason = match (reason.as_str(), exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let message = Some(message.clone()).filter(|it| !it.is_empty());
    let terminated = ContainerStateTerminated {
        exit_code: *exit_code,
        reason: Some(reason.to_owned()),
        message: (report.last_words)(&instance.id).or(message),
        started_at: started_at.or(Some(*finished_at)).map(Time),
        finished_at: Some(Time(*finished_at)),
        container_id: Some(container_id(report, instance)),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// A pod that has ended never comes back to life, whatever is seen later.
fn phase(
    report: &Report<'_>,
    old: &PodStatus,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> String {
    if let Some(phase @ ("Succeeded" | "Failed")) = old.phase.as_deref() {
        return phase.to_owned();
    }
    if report.failure.is_some() {
        return if report.is_over { "Failed" } else { old.phase.as_deref().unwrap_or("Pending") }
            .to_owned();
    }
    let policy = RestartPolicy::of(report.spec);
    let roles = containers(report.spec).filter(|(role, _)| *role != Role::Main);
    let mut is_pending = false;
    for ((role, _), status) in roles.zip(init) {
        let state = status.state.as_ref();
        let exit_code = state.and_then(|it| it.terminated.as_ref()).map(|it| it.exit_code);
        match role {
            Role::Init if exit_code == Some(0) => {}
            Role::Init if exit_code.is_some() && policy == RestartPolicy::Never => {
                return "Failed".to_owned();
            }
            Role::Sidecar if status.started == Some(true) || exit_code.is_some() => {}
            _ => is_pending = true,
        }
    }
    // Init containers that were cleaned away are known by what came after them.
    let has_begun = main.iter().any(|it| it.container_id.is_some());
    if is_pending && !has_begun {
        return "Pending".to_owned();
    }
    let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in main {
        let state = status.state.clone().unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|it| it.terminated.as_ref());
        if state.running.is_some() {
            running += 1;
        } else if let Some(terminated) = &state.terminated {
            stopped += 1;
            succeeded += usize::from(terminated.exit_code == 0);
        } else if last.is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    let phase = if waiting > 0 {
        "Pending"
    } else if running > 0 {
        "Running"
    } else if stopped == 0 {
        "Pending"
    } else if report.is_over {
        if succeeded == stopped { "Succeeded" } else { "Failed" }
    } else if policy == RestartPolicy::Always
        || stopped != succeeded && policy == RestartPolicy::OnFailure
    {
        "Running"
    } else if sidecars_run(report, init) {
        // The end is only reported once nothing runs any more.
        "Running"
    } else if succeeded == stopped {
        "Succeeded"
    } else {
        "Failed"
    };
    phase.to_owned()
}

fn sidecars_run(report: &Report<'_>, init: &[ContainerStatus]) -> bool {
    let roles = containers(report.spec).filter(|(role, _)| *role != Role::Main);
    roles.zip(init).any(|((role, _), status)| {
        role == Role::Sidecar && status.state.as_ref().is_some_and(|it| it.running.is_some())
    })
}

fn conditions(
    report: &Report<'_>,
    old: &PodStatus,
    phase: &str,
    has_sandbox: bool,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let spec = report.spec;
    let has_begun = main.iter().any(|it| it.container_id.is_some());
    let roles = containers(spec).filter(|(role, _)| *role != Role::Main);
    let incomplete: Vec<&str> = roles
        .zip(init)
        .filter(|((role, _), status)| match role {
            Role::Init => !status.ready,
            _ => status.started != Some(true),
        })
        .map(|(_, status)| status.name.as_str())
        .collect();
    let sidecars = containers(spec)
        .filter(|(role, _)| *role != Role::Main)
        .zip(init)
        .filter(|((role, _), _)| *role == Role::Sidecar)
        .map(|(_, status)| status);
    let unready: Vec<&str> =
        sidecars.chain(main).filter(|it| !it.ready).map(|it| it.name.as_str()).collect();
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    let old_conditions = old.conditions.as_deref().unwrap_or_default();
    let closed_gates: Vec<String> = gates
        .iter()
        .filter(|gate| {
            !old_conditions.iter().any(|it| it.type_ == gate.condition_type && it.status == "True")
        })
        .map(|gate| {
            format!(
                "corresponding condition of pod readiness gate {:?} does not exist or is not True.",
                gate.condition_type
            )
        })
        .collect();

    let yes = || (true, None, None);
    let no = |reason: &str, message: String| {
        (false, Some(reason.to_owned()), Some(message).filter(|it| !it.is_empty()))
    };
    let initialized = if phase == "Succeeded" {
        (true, Some("PodCompleted".to_owned()), None)
    } else if incomplete.is_empty() || has_begun && phase != "Failed" {
        yes()
    } else {
        no(
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", incomplete.join(" ")),
        )
    };
    let containers_ready = match phase {
        "Succeeded" => no("PodCompleted", String::new()),
        "Failed" => no("PodFailed", String::new()),
        _ if unready.is_empty() => yes(),
        _ => no(
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        ),
    };
    let ready = if !containers_ready.0 {
        containers_ready.clone()
    } else if let Some(gate) = closed_gates.first() {
        no("ReadinessGatesNotReady", gate.clone())
    } else {
        yes()
    };
    let sandbox = (has_sandbox && !report.is_over, None, None);
    let ours = [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", yes()),
    ];
    let mut conditions: Vec<PodCondition> = old_conditions
        .iter()
        .filter(|it| !ours.iter().any(|(type_, _)| *type_ == it.type_))
        .cloned()
        .collect();
    for (type_, (is_true, reason, message)) in ours {
        let status = if is_true { "True" } else { "False" };
        let before = old_conditions.iter().find(|it| it.type_ == type_);
        let since = before.filter(|it| it.status == status);
        conditions.push(PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: since
                .and_then(|it| it.last_transition_time.clone())
                .or(Some(Time(report.now))),
            // Written by the API server when it admits the pod's status; ours say the same.
            observed_generation: report.pod.metadata.generation,
            last_probe_time: before.and_then(|it| it.last_probe_time.clone()),
        });
    }
    conditions
}

#[cfg(test)]
mod tests;
