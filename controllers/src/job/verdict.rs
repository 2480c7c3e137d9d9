//! Whether a Job goes on, and how it ends.

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::Pod,
};

use super::{
    observed::{Observed, end, is_indexed},
    policy::{self, Failure},
};
use crate::objects::pod_phase;

/// What becomes of a Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    GoesOn,
    Suspended,
    Fails { reason: String, message: String },
    Succeeds { reason: String, message: String },
}

impl Verdict {
    /// The conditions that say it: at once, and when the last pod has ended and is counted.
    pub(super) fn conditions(&self) -> Option<(&'static str, &'static str, &str, &str)> {
        match self {
            Self::GoesOn | Self::Suspended => None,
            Self::Fails { reason, message } => Some((FAILS, "Failed", reason, message)),
            Self::Succeeds { reason, message } => Some((SUCCEEDS, "Complete", reason, message)),
        }
    }
}

const FAILS: &str = "FailureTarget";
const SUCCEEDS: &str = "SuccessCriteriaMet";

/// The condition of a type, if it holds.
pub(super) fn holding<'j>(job: &'j Job, type_: &str) -> Option<&'j JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|it| it.type_ == type_ && it.status == "True")
}

/// Whether a Job has come to its end.
pub(crate) fn is_finished(job: &Job) -> bool {
    holding(job, "Complete").or_else(|| holding(job, "Failed")).is_some()
}

pub(super) fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true))
}

/// Decides. What was decided once stays.
pub(super) fn verdict(it: &Observed<'_>, now: Timestamp) -> Verdict {
    let known = |condition: &JobCondition| {
        (
            condition.reason.clone().unwrap_or_default(),
            condition.message.clone().unwrap_or_default(),
        )
    };
    if let Some((reason, message)) = holding(it.job, FAILS).map(known) {
        return Verdict::Fails { reason, message };
    }
    if let Some((reason, message)) = holding(it.job, SUCCEEDS).map(known) {
        return Verdict::Succeeds { reason, message };
    }
    if let Some((reason, message)) = failure(it, now) {
        return Verdict::Fails { reason: reason.to_owned(), message };
    }
    let succeeds =
        |reason: &str, message: String| Verdict::Succeeds { reason: reason.to_owned(), message };
    if let Some(rule) = policy::success(it.job, &it.done) {
        return succeeds("SuccessPolicy", format!("Matched rules at index {rule}"));
    }
    let is_complete = match it.spec.completions {
        Some(wanted) => wanted <= it.n_succeeded,
        // Of a queue of work: one has found it empty, and the others end by themselves.
        None => 0 < it.n_succeeded,
    };
    match is_complete && it.active.is_empty() {
        true => succeeds("CompletionsReached", "Reached expected number of succeeded pods".into()),
        false if is_suspended(it.job) => Verdict::Suspended,
        false => Verdict::GoesOn,
    }
}

fn failure(it: &Observed<'_>, now: Timestamp) -> Option<(&'static str, String)> {
    let by_policy = it.failed.iter().find_map(|(_, failure)| match failure {
        Failure::FailsJob { message } => Some(message.clone()),
        _ => None,
    });
    if let Some(message) = by_policy {
        return Some(("PodFailurePolicy", message));
    }
    let limit = it.spec.backoff_limit.unwrap_or(6);
    if limit < it.n_failed || restarts_too_often(it, limit) {
        let message = "Job has reached the specified backoff limit".to_owned();
        return Some(("BackoffLimitExceeded", message));
    }
    if until_deadline(it, now).is_some_and(|seconds| seconds <= 0) {
        let message = "Job was active longer than specified deadline".to_owned();
        return Some(("DeadlineExceeded", message));
    }
    if it.spec.backoff_limit_per_index.is_none() || !is_indexed(it.spec) {
        return None;
    }
    if it.spec.max_failed_indexes.is_some_and(|most| most < it.lost.len()) {
        let message = "Job has exceeded the specified maximal number of failed indexes".to_owned();
        return Some(("MaxFailedIndexesExceeded", message));
    }
    let is_over = end(it.spec) <= it.done.len() + it.lost.len();
    (is_over && !it.lost.is_empty()).then(|| ("FailedIndexes", "Job has failed indexes".to_owned()))
}

/// Seconds until the Job has been active for too long, if it may be.
pub(super) fn until_deadline(it: &Observed<'_>, now: Timestamp) -> Option<i64> {
    let longest = it.spec.active_deadline_seconds?;
    let started = it.job.status.as_ref()?.start_time.as_ref()?;
    if is_suspended(it.job) {
        return None;
    }
    Some(longest.saturating_sub(now.as_second() - started.0.as_second()))
}

/// Containers that are restarted where they are count as failures too.
fn restarts_too_often(it: &Observed<'_>, limit: i32) -> bool {
    let policy = it.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = it.active.iter().filter(|pod| matches!(pod_phase(pod), "Running" | "Pending"));
    let restarts = running.fold(0_i32, |sum, pod| sum.saturating_add(n_restarts(pod)));
    if limit == 0 { 0 < restarts } else { limit <= restarts }
}

fn n_restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_ref());
    let then = status.and_then(|status| status.container_statuses.as_ref());
    let counts = first.into_iter().chain(then).flatten().map(|it| it.restart_count);
    counts.fold(0, i32::saturating_add)
}
