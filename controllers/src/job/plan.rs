//! Which pods a Job makes or deletes next, and when.

use std::{cmp::Ordering, collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    indexes::Indexes,
    observed::{
        INDEX_FAILURES, INDEX_IGNORED, Observed, PodRef, end, failures_before, index_of,
        is_indexed, is_tracked, replaces_failed_only, saturate,
    },
    policy::{self, Failure},
    verdict::Verdict,
};
use crate::objects::{is_pod_ready, pod_phase};

/// Most pods made in one pass.
const BURST: i32 = 500;
/// How long after a failure a pod is replaced; doubled by each failure in a row.
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// One step.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<New>,
    pub(super) delete: Vec<PodRef>,
    /// More is to be made then.
    pub(super) wait: Option<Duration>,
}

/// A pod to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct New {
    pub(super) index: Option<i32>,
    /// How often pods of this index have failed, and been ignored, where that counts.
    pub(super) failures: Option<(i32, i32)>,
}

/// Failures of a Job's pods since one of them succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Streak {
    pub(super) n: u32,
    pub(super) last: Option<Timestamp>,
}

impl Streak {
    /// What becomes of it by what has ended since.
    pub(super) fn after(self, it: &Observed<'_>, now: Timestamp) -> Self {
        let won = it.succeeded.iter().map(|pod| (ended_at(pod, now), true));
        let lost = it.failed.iter().map(|(pod, _)| (ended_at(pod, now), false));
        let mut ended: Vec<_> = won.chain(lost).collect();
        ended.sort_unstable();
        ended.into_iter().fold(self, |streak, (at, is_won)| match is_won {
            true => Self::default(),
            false => Self { n: streak.n.saturating_add(1), last: streak.last.max(Some(at)) },
        })
    }

    fn wait(self, now: Timestamp) -> Duration {
        self.last.map_or(Duration::ZERO, |last| left(self.n, last, now))
    }
}

/// What is left of the delay after `n` failures, the last of them at `last`.
fn left(n: u32, last: Timestamp, now: Timestamp) -> Duration {
    let Some(doublings) = n.checked_sub(1) else { return Duration::ZERO };
    let delay = FIRST_DELAY.saturating_mul(1 << doublings.min(16)).min(LONGEST_DELAY);
    let since = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    delay.saturating_sub(since)
}

/// When a pod's last container ended, or what comes nearest to it.
fn ended_at(pod: &Pod, now: Timestamp) -> Timestamp {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let finished = containers.into_iter().flatten().filter_map(|container| {
        Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)
    });
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let not_ready = || {
        let found = conditions?.iter().find(|it| it.type_ == "Ready" && it.status == "False")?;
        found.last_transition_time.as_ref().map(|time| time.0)
    };
    let deleted = || pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    finished.max().or_else(not_ready).or_else(deleted).map_or(now, |at| at.min(now))
}

/// Decides.
pub(super) fn plan(it: &Observed<'_>, verdict: &Verdict, streak: Streak, now: Timestamp) -> Plan {
    if *verdict != Verdict::GoesOn {
        return Plan { delete: it.active.clone(), ..Plan::default() };
    }
    let active = saturate(it.active.len());
    let parallelism = it.spec.parallelism.unwrap_or(1).max(0);
    let wanted = match it.spec.completions {
        Some(completions) => (completions - it.n_succeeded).clamp(0, parallelism),
        None if 0 < it.n_succeeded => active.min(parallelism),
        None => parallelism,
    };
    let delete = superfluous(it, usize::try_from(active - wanted).unwrap_or_default());
    if !delete.is_empty() {
        return Plan { delete, ..Plan::default() };
    }
    let leaving = if replaces_failed_only(it.spec) { it.n_terminating } else { 0 };
    let missing = (wanted - active - leaving).clamp(0, BURST);
    if missing == 0 {
        return Plan::default();
    }
    if is_indexed(it.spec) && it.spec.backoff_limit_per_index.is_some() {
        return replacements(it, missing, now);
    }
    let wait = streak.wait(now);
    if !wait.is_zero() {
        return Plan { wait: Some(wait), ..Plan::default() };
    }
    let new = |index| New { index, failures: None };
    let create = match is_indexed(it.spec) {
        true => pending(it).take(length(missing)).map(|index| new(Some(index))).collect(),
        false => vec![new(None); length(missing)],
    };
    Plan { create, ..Plan::default() }
}

fn length(count: i32) -> usize {
    usize::try_from(count).unwrap_or_default()
}

/// Indexes that nobody has, in order.
fn pending<'i>(it: &'i Observed<'_>) -> impl Iterator<Item = i32> + use<'i> {
    let taken = it.taken();
    let is_free = move |index: &i32| {
        !(taken.contains(*index) || it.done.contains(*index) || it.lost.contains(*index))
    };
    (0..end(it.spec)).filter(is_free)
}

/// New pods where each index has its own count of failures, and its own delay.
fn replacements(it: &Observed<'_>, missing: i32, now: Timestamp) -> Plan {
    let last = last_failures(it);
    let mut plan = Plan::default();
    for index in pending(it) {
        if length(missing) <= plan.create.len() {
            break;
        }
        let (mut failures, mut ignored) = (0, 0);
        if let Some(pod) = last.get(&index) {
            let is_ignored = policy::judge(it.job, pod) == Failure::Ignored;
            failures = failures_before(pod, INDEX_FAILURES) + i32::from(!is_ignored);
            ignored = failures_before(pod, INDEX_IGNORED) + i32::from(is_ignored);
            let n = u32::try_from(failures.saturating_add(ignored)).unwrap_or_default();
            let wait = left(n, ended_at(pod, now), now);
            if !wait.is_zero() {
                plan.wait = Some(plan.wait.map_or(wait, |known| known.min(wait)));
                continue;
            }
        }
        plan.create.push(New { index: Some(index), failures: Some((failures, ignored)) });
    }
    plan
}

/// The pod of each index that failed last and has not been let go.
pub(super) fn last_failures(it: &Observed<'_>) -> BTreeMap<i32, PodRef> {
    let mut last: BTreeMap<i32, PodRef> = BTreeMap::new();
    let n_before = |pod: &Pod| {
        failures_before(pod, INDEX_FAILURES).saturating_add(failures_before(pod, INDEX_IGNORED))
    };
    let has_failed = |pod: &&PodRef| {
        pod_phase(pod) == "Failed"
            || pod.is_deleting() && pod_phase(pod) != "Succeeded" && !replaces_failed_only(it.spec)
    };
    for pod in it.pods.iter().filter(has_failed).filter(|pod| is_tracked(pod)) {
        let Some(index) = index_of(pod) else { continue };
        let is_later = last.get(&index).is_none_or(|known| n_before(known) <= n_before(pod));
        if is_later {
            last.insert(index, pod.clone());
        }
    }
    last
}

/// Active pods that are one too many: of an index that is not wanted or is there twice, and at
/// least so many in all, those that have come least far first.
fn superfluous(it: &Observed<'_>, at_least: usize) -> Vec<PodRef> {
    let mut active = it.active.clone();
    active.sort_by(|a, b| most_advanced_first(a, b));
    let (mut kept, mut victims) = (Vec::new(), Vec::new());
    let mut seen = Indexes::default();
    for pod in active {
        let is_wrong = is_indexed(it.spec)
            && index_of(&pod).is_none_or(|index| {
                end(it.spec) <= index || it.done.contains(index) || seen.contains(index)
            });
        match (is_wrong, index_of(&pod)) {
            (true, _) => victims.push(pod),
            (false, index) => {
                index.into_iter().for_each(|index| seen.insert(index));
                kept.push(pod);
            }
        }
    }
    while victims.len() < at_least
        && let Some(pod) = kept.pop()
    {
        victims.push(pod);
    }
    victims
}

fn most_advanced_first(a: &Pod, b: &Pod) -> Ordering {
    let rank = |pod: &Pod| {
        let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        (is_pod_ready(pod), pod_phase(pod) == "Running", has_node)
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    rank(b).cmp(&rank(a)).then_with(|| created(a).cmp(&created(b)))
}
