//! A pod's life: what comes next, and what its status says then. No I/O, no clock.
//!
//! ```text
//! New ─> Accepted ─> Running ─> Ready ─> Ended
//!                       ^  └──────┴──> Failing ─┐
//!                       └───────────────────────┘
//! ```
//!
//! [`plan`] says what comes next, [`Life::enter`] that it was written. A status is made from the
//! life alone, so nothing of it need be kept: what was written last can be made again.

use std::net::Ipv4Addr;

use insula_nodeagent::hollow::{Doing, Moment, Used, pod_status};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::behaviour::{Behaviour, Fault};

/// Milliseconds since 1970.
pub(crate) type Millis = i64;

/// How long containers wait before they are started again: the first time not at all.
const FIRST_BACK_OFF: Millis = 10_000;
const LONGEST_BACK_OFF: Millis = 300_000;

/// What a pod has come to, as its status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nobody has written a status yet.
    New,
    Accepted,
    Running,
    Ready,
    /// Its containers have ended, and will be started again.
    Failing,
    Ended,
}

/// What all pods of one template have in common.
#[derive(Debug, PartialEq)]
pub(crate) struct Shape {
    /// As much of it as a status depends on.
    pub(crate) spec: PodSpec,
    pub(crate) behaviour: Behaviour,
    pub(crate) restarts: Restarts,
    /// What each container uses while it runs.
    pub(crate) uses: Box<[(Box<str>, Used)]>,
}

/// What is done about containers that end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restarts {
    Always,
    OnFailure,
    Never,
}

impl Restarts {
    pub(crate) fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    fn after(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// That a pod is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deletion {
    /// When that was heard.
    pub(crate) heard: Millis,
    pub(crate) grace: Millis,
}

/// One pod's life so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stage: Stage,
    /// How often its containers were started again.
    pub(crate) attempt: u16,
    pub(crate) code: u8,
    /// Of the specification that was heard last, and of the one that the status was written for.
    pub(crate) generation: u32,
    pub(crate) told: u32,
    pub(crate) scheduled: Millis,
    pub(crate) accepted: Millis,
    pub(crate) started: Millis,
    pub(crate) readied: Millis,
    pub(crate) ended: Millis,
    pub(crate) deletion: Option<Deletion>,
    /// What places it in ranges of times.
    pub(crate) place: u32,
    pub(crate) address: Ipv4Addr,
}

/// What is to be done about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until something is heard of it.
    Rest,
    /// Nothing before this moment.
    Until(Millis),
    /// Write that it has come so far, and with what code its containers ended.
    To(Stage, u8),
    /// Write that its specification was seen.
    Tell,
    /// Have the API forget it.
    Remove,
}

impl Life {
    /// The life of a pod that was heard of at `now`, as far as its status tells it.
    pub(crate) fn of(pod: &Pod, place: u32, address: Ipv4Addr, now: Millis) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let condition = |kind: &str| -> Option<&PodCondition> {
            status.conditions.iter().flatten().find(|it| it.type_ == kind && it.status == "True")
        };
        let since =
            |kind: &str| condition(kind).and_then(|it| millis(it.last_transition_time.as_ref()));
        let main = status.container_statuses.as_deref().and_then(<[_]>::first);
        let state = main.and_then(|it| it.state.as_ref());
        let running = state.and_then(|it| it.running.as_ref());
        let ended = state.and_then(|it| it.terminated.as_ref());
        let accepted = millis(status.start_time.as_ref());
        let stage = match status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Stage::Ended,
            _ if accepted.is_none() => Stage::New,
            _ if running.is_some() && condition("Ready").is_some() => Stage::Ready,
            _ if running.is_some() => Stage::Running,
            _ => Stage::Accepted,
        };
        let accepted = accepted.unwrap_or(now);
        let started = running.and_then(|it| millis(it.started_at.as_ref()));
        let started = started.or_else(|| ended.and_then(|it| millis(it.started_at.as_ref())));
        let started = started.unwrap_or(accepted);
        Self {
            stage,
            attempt: main.and_then(|it| u16::try_from(it.restart_count).ok()).unwrap_or_default(),
            code: ended.and_then(|it| u8::try_from(it.exit_code).ok()).unwrap_or_default(),
            generation: generation(pod),
            told: status.observed_generation.map_or_else(|| generation(pod), in_few_bits),
            scheduled: since("PodScheduled").unwrap_or(now),
            accepted,
            started,
            readied: since("Ready").unwrap_or(started),
            ended: ended.and_then(|it| millis(it.finished_at.as_ref())).unwrap_or(started),
            deletion: None,
            place,
            address: status.pod_ip.and_then(|it| it.parse().ok()).unwrap_or(address),
        }
    }

    /// Learns what is said of the pod now; whether that is anything new.
    pub(crate) fn hear(&mut self, pod: &Pod, now: Millis) -> bool {
        let before = (self.stage, self.deletion, self.generation);
        self.generation = generation(pod);
        let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            self.stage = Stage::Ended;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30).max(0);
            let heard = self.deletion.map_or(now, |it| it.heard);
            self.deletion = Some(Deletion { heard, grace: seconds.saturating_mul(1000) });
        }
        before != (self.stage, self.deletion, self.generation)
    }

    /// It was written down as it is now.
    pub(crate) fn tell(&mut self) {
        self.told = self.generation;
    }

    /// As it was written down last.
    pub(crate) fn as_told(&self) -> Self {
        Self { generation: self.told, ..self.clone() }
    }

    /// It has come to `stage`.
    pub(crate) fn enter(&mut self, stage: Stage, code: u8, now: Millis) {
        match stage {
            Stage::New => {}
            Stage::Accepted => self.accepted = now,
            Stage::Running => {
                if self.stage == Stage::Failing {
                    self.attempt = self.attempt.saturating_add(1);
                }
                self.started = now;
            }
            Stage::Ready => {
                if self.stage != Stage::Running {
                    self.started = now;
                }
                self.readied = now;
            }
            Stage::Failing | Stage::Ended => {
                self.ended = now;
                self.code = code;
            }
        }
        self.stage = stage;
    }

    /// The status that an agent on a node of `node_address` would have written by now.
    pub(crate) fn status(&self, shape: &Shape, uid: &str, node_address: Ipv4Addr) -> PodStatus {
        let mut status = PodStatus {
            phase: Some("Pending".to_owned()),
            conditions: Some(vec![PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(time(self.scheduled))),
                observed_generation: Some(self.generation.into()).filter(|it| 0 < *it),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        };
        let mut add = |doing: Doing, now: Millis| {
            let moment = Moment {
                spec: &shape.spec,
                generation: Some(self.generation.into()).filter(|it| 0 < *it),
                uid,
                node_address,
                pod_address: self.address,
                doing,
                attempt: self.attempt.into(),
                now: time(now),
            };
            status = pod_status(&moment, std::mem::take(&mut status));
        };
        if self.stage == Stage::New {
            return status;
        }
        let fault = (shape.behaviour.fault == Some(Fault::Image))
            .then(|| ("ImagePullBackOff", "Back-off pulling image: it is not there".to_owned()));
        add(Doing::Nothing(fault), self.accepted);
        let since = time(self.started);
        let running = |is_ready| Doing::Running { since, is_ready };
        let (code, at) = (i32::from(self.code), time(self.ended));
        match self.stage {
            Stage::New | Stage::Accepted => {}
            Stage::Running => add(running(false), self.started),
            Stage::Ready => {
                add(running(false), self.started);
                add(running(true), self.readied);
            }
            Stage::Failing => add(Doing::Failing { since, code, at }, self.ended),
            Stage::Ended => {
                add(running(true), self.started);
                add(Doing::Ended { since, code, at }, self.ended);
            }
        }
        status
    }
}

/// What comes next in a life.
pub(crate) fn plan(life: &Life, shape: &Shape, now: Millis) -> Step {
    match next(life, shape, now) {
        // What ends says so soon enough.
        Step::Rest | Step::Until(_) if life.told != life.generation && life.deletion.is_none() => {
            Step::Tell
        }
        step => step,
    }
}

fn next(life: &Life, shape: &Shape, now: Millis) -> Step {
    let Shape { behaviour, restarts, .. } = shape;
    let place = u64::from(life.place);
    let reach = |from: Millis, after: std::time::Duration, then: Step| {
        let at = from.saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
        if now < at { Step::Until(at) } else { then }
    };
    if let Some(Deletion { heard, grace }) = life.deletion {
        let runs = matches!(life.stage, Stage::Running | Stage::Ready);
        if !runs || grace == 0 {
            return Step::Remove;
        }
        let takes = behaviour.stop_after.at(place);
        // Who takes longer is killed.
        let grace = std::time::Duration::from_millis(grace.unsigned_abs());
        let code = if takes <= grace { 0 } else { 137 };
        return reach(heard, takes.min(grace), Step::To(Stage::Ended, code));
    }
    let code = u8::try_from(behaviour.exit_code).unwrap_or(u8::MAX);
    let exit = behaviour.exit_after.map(|after| {
        let then = if restarts.after(code.into()) { Stage::Failing } else { Stage::Ended };
        reach(life.started, after.at(place), Step::To(then, code))
    });
    match life.stage {
        Stage::New => Step::To(Stage::Accepted, 0),
        Stage::Accepted if behaviour.fault == Some(Fault::Image) => Step::Rest,
        Stage::Accepted => {
            // Who is ready at once says both in one.
            let is_ready = behaviour.fault.is_none() && behaviour.ready_after.to.is_zero();
            let then = if is_ready { Stage::Ready } else { Stage::Running };
            reach(life.accepted, behaviour.start_after.at(place), Step::To(then, 0))
        }
        Stage::Running => {
            let is_ready = (behaviour.fault != Some(Fault::NeverReady)).then(|| {
                reach(life.started, behaviour.ready_after.at(place), Step::To(Stage::Ready, 0))
            });
            match (exit, is_ready) {
                (Some(Step::Until(end)), Some(Step::Until(at))) => Step::Until(end.min(at)),
                (Some(end @ Step::To(..)), _) | (Some(end), None) => end,
                (_, Some(step)) => step,
                (None, None) => Step::Rest,
            }
        }
        Stage::Ready => exit.unwrap_or(Step::Rest),
        Stage::Failing => {
            let back_off = match life.attempt {
                0 => 0,
                n => {
                    let factor = 1_i64.checked_shl(u32::from(n) - 1).unwrap_or(i64::MAX);
                    FIRST_BACK_OFF.saturating_mul(factor.max(1)).min(LONGEST_BACK_OFF)
                }
            };
            let wait = std::time::Duration::from_millis(back_off.unsigned_abs());
            reach(life.ended, wait, Step::To(Stage::Running, 0))
        }
        Stage::Ended => Step::Rest,
    }
}

/// As much of a pod's spec as its status depends on.
pub(crate) fn trimmed(spec: &PodSpec) -> PodSpec {
    let containers = |all: &[k8s_openapi::api::core::v1::Container]| {
        let trim =
            |it: &k8s_openapi::api::core::v1::Container| k8s_openapi::api::core::v1::Container {
                name: it.name.clone(),
                image: it.image.clone(),
                restart_policy: it.restart_policy.clone(),
                ..Default::default()
            };
        all.iter().map(trim).collect::<Vec<_>>()
    };
    PodSpec {
        containers: containers(&spec.containers),
        init_containers: spec.init_containers.as_deref().map(containers),
        restart_policy: spec.restart_policy.clone(),
        host_network: spec.host_network,
        readiness_gates: spec.readiness_gates.clone(),
        ..PodSpec::default()
    }
}

fn generation(pod: &Pod) -> u32 {
    pod.metadata.generation.map_or(0, in_few_bits)
}

fn in_few_bits(generation: i64) -> u32 {
    u32::try_from(generation).unwrap_or_default()
}

fn millis(time: Option<&Time>) -> Option<Millis> {
    time.map(|it| it.0.as_millisecond())
}

/// Statuses have whole seconds.
fn time(millis: Millis) -> Timestamp {
    Timestamp::from_second(millis.div_euclid(1000)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
