//! What a deployment's status says.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::{
    limits::Limits,
    plan::{Observed, replicas},
};
use crate::{objects::to_time, status::non_zero};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// What a pass did, as far as the status tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing that counts as a step of a rollout.
    None,
    Found {
        set: String,
    },
    Created {
        set: String,
    },
    CreateFailed {
        message: String,
    },
}

/// The status after a pass.
pub(super) fn status(
    observed: &Observed<'_>,
    is_rollout: bool,
    progress: &Progress,
    now: Timestamp,
) -> DeploymentStatus {
    let deployment = &observed.deployment.object;
    let mut status = counts(observed, now);
    let mut conditions = Conditions::of(&mut status, now);
    conditions.note_pause(deployment);
    if deadline(deployment).is_some() {
        match progress {
            Progress::None => (),
            Progress::Found { .. } if conditions.get(PROGRESSING).is_some() => (),
            Progress::Found { set } => {
                let message = format!("Found new replica set \"{set}\"");
                conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", message);
            }
            Progress::Created { set } => {
                let message = format!("Created new replica set \"{set}\"");
                conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", message);
            }
            Progress::CreateFailed { message } => {
                conditions.set(PROGRESSING, "False", "ReplicaSetCreateError", message.clone());
            }
        }
    }
    if is_rollout {
        note_progress(observed, &mut status, now);
    }
    status.conditions = status.conditions.filter(|it| !it.is_empty());
    status
}

/// The counts, and whether they amount to being available.
fn counts(observed: &Observed<'_>, now: Timestamp) -> DeploymentStatus {
    let deployment = &observed.deployment.object;
    let limits = Limits::of(deployment);
    let old = deployment.status.as_ref();
    let sum = |count: fn(&ReplicaSet) -> i32| {
        observed.all().map(|set| count(set)).fold(0, i32::saturating_add)
    };
    let n_available = sum(|set| of_status(set, |status| status.available_replicas));
    let terminating = observed.all().map(|set| set.status.as_ref()?.terminating_replicas);
    let n_unavailable = (sum(replicas) - n_available).max(0);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: non_zero(sum(|set| of_status(set, |status| Some(status.replicas)))),
        updated_replicas: observed
            .new
            .as_ref()
            .and_then(|set| non_zero(of_status(set, |status| Some(status.replicas)))),
        ready_replicas: non_zero(sum(|set| of_status(set, |status| status.ready_replicas))),
        available_replicas: non_zero(n_available),
        unavailable_replicas: non_zero(n_unavailable),
        terminating_replicas: terminating.sum(),
        collision_count: old.and_then(|old| old.collision_count),
        conditions: old.and_then(|old| old.conditions.clone()),
    };
    let mut conditions = Conditions::of(&mut status, now);
    if limits.fewest_available() <= n_available {
        let message = "Deployment has minimum availability.".to_owned();
        conditions.set(AVAILABLE, "True", "MinimumReplicasAvailable", message);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        conditions.set(AVAILABLE, "False", "MinimumReplicasUnavailable", message);
    }
    status
}

fn of_status(
    set: &ReplicaSet,
    count: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>,
) -> i32 {
    set.status.as_ref().and_then(count).unwrap_or(0)
}

/// Says how the rollout goes: done, going on, or stuck.
fn note_progress(observed: &Observed<'_>, status: &mut DeploymentStatus, now: Timestamp) {
    let deployment = &observed.deployment.object;
    let subject = match &observed.new {
        Some(set) => format!("ReplicaSet \"{}\"", set.name()),
        None => format!("Deployment \"{}\"", observed.deployment.name()),
    };
    let has_deadline = deadline(deployment).is_some();
    let is_done = is_complete_with(deployment, status);
    let is_going_on = is_further(deployment.status.as_ref(), status);
    let is_late = has_timed_out(deployment, status, now);
    let was_done = status.replicas == status.updated_replicas
        && find(status, PROGRESSING)
            .is_some_and(|it| it.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    let mut conditions = Conditions::of(status, now);
    if !has_deadline {
        conditions.remove(PROGRESSING);
    } else if !was_done {
        if is_done {
            let message = format!("{subject} has successfully progressed.");
            conditions.set(PROGRESSING, "True", NEW_SET_AVAILABLE, message);
        } else if is_going_on {
            // Each step forward is news, even if the last one was, too.
            conditions.renew(
                PROGRESSING,
                "True",
                "ReplicaSetUpdated",
                format!("{subject} is progressing."),
            );
        } else if is_late {
            let message = format!("{subject} has timed out progressing.");
            conditions.set(PROGRESSING, "False", DEADLINE_EXCEEDED, message);
        }
    }
    let failure = observed.new.iter().chain(&observed.old).find_map(|set| {
        let of_set = set.status.as_ref()?.conditions.as_ref()?;
        of_set.iter().find(|it| it.type_ == REPLICA_FAILURE)
    });
    match failure {
        Some(failure) => conditions.set(
            REPLICA_FAILURE,
            &failure.status,
            failure.reason.as_deref().unwrap_or_default(),
            failure.message.clone().unwrap_or_default(),
        ),
        None => conditions.remove(REPLICA_FAILURE),
    }
}

/// Whether all pods are of the present template and available, by what is observed now.
pub(super) fn is_complete(observed: &Observed<'_>) -> bool {
    let status = counts(observed, Timestamp::UNIX_EPOCH);
    is_complete_with(&observed.deployment.object, &status)
}

fn is_complete_with(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = Limits::of(deployment).desired;
    [status.updated_replicas, status.replicas, status.available_replicas]
        .into_iter()
        .all(|count| count.unwrap_or(0) == desired)
}

/// Whether the rollout came further since the last status.
fn is_further(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let none = DeploymentStatus::default();
    let old = old.unwrap_or(&none);
    let count = |count: Option<i32>| count.unwrap_or(0);
    let n_old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(old.updated_replicas) < count(new.updated_replicas)
        || n_old(new) < n_old(old)
        || count(old.ready_replicas) < count(new.ready_replicas)
        || count(old.available_replicas) < count(new.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let Some(condition) = find(status, PROGRESSING) else { return false };
    match condition.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(DEADLINE_EXCEEDED) => true,
        _ => time_left(deployment, condition, now).is_some_and(|left| left < 0),
    }
}

/// Seconds until `condition`, unless renewed, means that the rollout is stuck.
fn time_left(
    deployment: &Deployment,
    condition: &DeploymentCondition,
    now: Timestamp,
) -> Option<i64> {
    let since = condition.last_update_time.as_ref()?.0.as_second();
    Some(since + i64::from(deadline(deployment)?) - now.as_second())
}

/// When to look again, should nothing happen until then, to tell that a rollout is stuck.
pub(super) fn next_check(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let condition = find(status, PROGRESSING)?;
    let is_settled = condition.reason.as_deref() == Some(DEADLINE_EXCEEDED)
        || is_complete_with(deployment, status);
    if is_settled || deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true) {
        return None;
    }
    let left = time_left(deployment, condition, now)?;
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1))
}

fn deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then_some(seconds)
}

fn find<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|it| it.type_ == kind)
}

/// A status' conditions, with the rules by which they change.
struct Conditions<'a> {
    list: &'a mut Vec<DeploymentCondition>,
    now: Timestamp,
}

impl<'a> Conditions<'a> {
    fn of(status: &'a mut DeploymentStatus, now: Timestamp) -> Self {
        Self { list: status.conditions.get_or_insert_default(), now }
    }

    fn get(&self, kind: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|it| it.type_ == kind)
    }

    /// Sets a condition, unless it says the same already.
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let says_so =
            |it: &DeploymentCondition| it.status == status && it.reason.as_deref() == Some(reason);
        if !self.get(kind).is_some_and(says_so) {
            self.renew(kind, status, reason, message);
        }
    }

    /// Sets a condition and its time of update, whatever it says.
    fn renew(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        let now = to_time(self.now);
        let since = self.get(kind).filter(|it| it.status == status);
        let last_transition_time =
            since.map_or_else(|| Some(now.clone()), |it| it.last_transition_time.clone());
        self.remove(kind);
        self.list.push(DeploymentCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: Some(now),
            last_transition_time,
        });
    }

    fn remove(&mut self, kind: &str) {
        self.list.retain(|it| it.type_ != kind);
    }

    /// Says that the deployment was paused, or goes on; a rollout's time runs anew from then.
    fn note_pause(&mut self, deployment: &Deployment) {
        let reason = self.get(PROGRESSING).and_then(|it| it.reason.as_deref());
        if deadline(deployment).is_none() || reason == Some(DEADLINE_EXCEEDED) {
            return;
        }
        let is_paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        match (is_paused, reason == Some(PAUSED)) {
            (true, false) => {
                self.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".to_owned());
            }
            (false, true) => {
                let message = "Deployment is resumed".to_owned();
                self.set(PROGRESSING, "Unknown", "DeploymentResumed", message);
            }
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests;
