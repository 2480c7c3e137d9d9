//! What a Job's status says.

use std::collections::HashSet;

use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods};

use super::{
    observed::{Observed, PodRef, is_indexed, is_tracked, saturate},
    plan::{Plan, last_failures},
    policy::Failure,
    verdict::{Verdict, is_suspended},
};
use crate::{objects::to_time, status::non_zero};

/// A new status, and what goes with it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) status: JobStatus,
    /// Pods to be let go once the status is written.
    pub(super) let_go: Vec<PodRef>,
    /// News for the users: whether it is good, the reason, and what is said.
    pub(super) news: Vec<(bool, String, String)>,
}

/// Tells what was observed and what is done about it.
///
/// Pods are counted in three steps, so that each is counted once whatever breaks in between: its
/// uid is written down as not yet counted, the pod is let go, and then the uid becomes a number.
pub(super) fn tell(
    it: &Observed<'_>,
    verdict: &Verdict,
    plan: &Plan,
    settled: &HashSet<String>,
    now: Timestamp,
) -> Told {
    let mut status = it.job.status.clone().unwrap_or_default();
    let (uncounted, let_go) = count(it, verdict, &mut status, settled);
    let is_all_counted = uncounted == UncountedTerminatedPods::default() && let_go.is_empty();
    status.uncounted_terminated_pods = Some(uncounted);
    if is_indexed(it.spec) {
        status.completed_indexes = (!it.done.is_empty()).then(|| it.done.to_string());
        status.succeeded = non_zero(it.done.len());
        if it.spec.backoff_limit_per_index.is_some() {
            // With such a limit it is there from the beginning.
            status.failed_indexes = Some(it.lost.to_string());
        }
    }
    let n_deleted = plan.delete.len();
    let n_ready = it.active.iter().filter(|pod| !is_among(pod, &plan.delete));
    let n_ready = n_ready.filter(|pod| crate::objects::is_pod_ready(pod)).count();
    status.active =
        non_zero(saturate((it.active.len() + plan.create.len()).saturating_sub(n_deleted)));
    status.ready = Some(saturate(n_ready));
    let n_terminating = it.n_terminating.saturating_add(saturate(n_deleted));
    status.terminating = Some(n_terminating);
    if status.start_time.is_none() && !is_suspended(it.job) {
        status.start_time = Some(to_time(now));
    }
    let mut news = Vec::new();
    let mut conditions = status.conditions.take().unwrap_or_default();
    match verdict.conditions() {
        Some((first, last, reason, message)) => {
            set(&mut conditions, first, "True", reason, message, now);
            let is_over = is_all_counted
                && it.active.is_empty()
                && n_terminating == 0
                && it.pods.iter().all(|pod| !is_tracked(pod) || settled.contains(pod.uid()));
            if is_over && set(&mut conditions, last, "True", reason, message, now) {
                let is_good = last == "Complete";
                if is_good {
                    status.completion_time = Some(to_time(now));
                    news.push((true, "Completed".into(), "Job completed".into()));
                } else {
                    news.push((false, reason.into(), message.into()));
                }
            }
        }
        None if *verdict == Verdict::Suspended => {
            if set(&mut conditions, "Suspended", "True", "JobSuspended", "Job suspended", now) {
                news.push((true, "Suspended".into(), "Job suspended".into()));
            }
        }
        None => {
            let was = conditions.iter().any(|it| it.type_ == "Suspended" && it.status == "True");
            if was && set(&mut conditions, "Suspended", "False", "JobResumed", "Job resumed", now) {
                status.start_time = Some(to_time(now));
                news.push((true, "Resumed".into(), "Job resumed".into()));
            }
        }
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    Told { status, let_go, news }
}

fn is_among(pod: &Tenanted<k8s_openapi::api::core::v1::Pod>, them: &[PodRef]) -> bool {
    them.iter().any(|it| it.uid() == pod.uid())
}

/// Moves what was let go into the numbers, and begins to count what has ended since. Returns what
/// is on its way, and which pods are let go now.
fn count(
    it: &Observed<'_>,
    verdict: &Verdict,
    status: &mut JobStatus,
    settled: &HashSet<String>,
) -> (UncountedTerminatedPods, Vec<PodRef>) {
    let known = status.uncounted_terminated_pods.take().unwrap_or_default();
    let held: HashSet<&str> = it
        .pods
        .iter()
        .filter(|pod| is_tracked(pod) && !settled.contains(pod.uid()))
        .map(|pod| pod.uid())
        .collect();
    let mut let_go: Vec<PodRef> = Vec::new();
    let mut fold = |known: Option<Vec<String>>, number: &mut Option<i32>| -> Vec<String> {
        let (waiting, gone): (Vec<_>, Vec<_>) =
            known.unwrap_or_default().into_iter().partition(|uid| held.contains(uid.as_str()));
        *number = non_zero(number.unwrap_or(0).saturating_add(saturate(gone.len())));
        let again = it.pods.iter().filter(|pod| waiting.iter().any(|uid| uid == pod.uid()));
        let_go.extend(again.cloned());
        waiting
    };
    let mut won = fold(known.succeeded, &mut status.succeeded);
    let mut lost = fold(known.failed, &mut status.failed);
    for pod in &it.succeeded {
        won.push(pod.uid().to_owned());
        let_go.push(pod.clone());
    }
    // Where each index has its limit, its last failure is what tells how many there were.
    let kept = match it.spec.backoff_limit_per_index {
        Some(_) if *verdict == Verdict::GoesOn => last_failures(it),
        _ => std::collections::BTreeMap::new(),
    };
    let taken = it.taken();
    for (pod, failure) in &it.failed {
        let is_kept = kept.iter().any(|(index, last)| {
            last.uid() == pod.uid()
                && !taken.contains(*index)
                && !it.done.contains(*index)
                && !it.lost.contains(*index)
        });
        if is_kept {
            continue;
        }
        if *failure != Failure::Ignored {
            lost.push(pod.uid().to_owned());
        }
        let_go.push(pod.clone());
    }
    let some = |them: Vec<String>| (!them.is_empty()).then_some(them);
    (UncountedTerminatedPods { succeeded: some(won), failed: some(lost) }, let_go)
}

/// Sets a condition; whether it was not so before.
fn set(
    conditions: &mut Vec<JobCondition>,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let known = conditions.iter().position(|it| it.type_ == type_);
    if known.is_some_and(|at| {
        conditions[at].status == value && conditions[at].reason.as_deref() == Some(reason)
    }) {
        return false;
    }
    let condition = JobCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(to_time(now)),
        last_transition_time: Some(to_time(now)),
    };
    match known {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    true
}
