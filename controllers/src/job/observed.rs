//! A Job and its pods, as one pass sees them.

use std::{collections::HashSet, sync::Arc};

use insula_client::Tenanted;
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::Pod,
};

use super::{
    indexes::Indexes,
    policy::{Failure, judge},
};
use crate::objects::{is_pod_ready, pod_phase};

/// Keeps a pod until it has been counted.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The label and annotation with a pod's index.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often pods of an index have failed before, where that counts.
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The same, of those that the policy has us ignore.
pub(super) const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Most pods that one pass begins to count.
const BATCH: usize = 500;

pub(super) type PodRef = Arc<Tenanted<Pod>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Observed<'a> {
    pub(super) job: &'a Tenanted<Job>,
    pub(super) spec: &'a JobSpec,
    pub(super) pods: Vec<PodRef>,
    /// Neither finished nor on their way out.
    pub(super) active: Vec<PodRef>,
    pub(super) n_ready: i32,
    /// On their way out and not finished yet.
    pub(super) n_terminating: i32,
    /// Pods that ended and are not in the status in any way.
    pub(super) succeeded: Vec<PodRef>,
    pub(super) failed: Vec<(PodRef, Failure)>,
    /// What the status counts, with what it is about to count of earlier passes.
    pub(super) n_succeeded: i32,
    pub(super) n_failed: i32,
    pub(super) done: Indexes,
    /// Indexes that are given up.
    pub(super) lost: Indexes,
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// The end of the range of indexes; zero without.
pub(super) fn end(spec: &JobSpec) -> i32 {
    if is_indexed(spec) { spec.completions.unwrap_or(0) } else { 0 }
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|it| it == TRACKING)
}

/// Whether pods are replaced only when they have failed, and not already when they are deleted.
pub(super) fn replaces_failed_only(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// How often an index failed before this pod was made.
pub(super) fn failures_before(pod: &Pod, annotation: &str) -> i32 {
    let text = pod.metadata.annotations.as_ref().and_then(|it| it.get(annotation));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl<'a> Observed<'a> {
    /// `settled` are the uids of pods that were let go, whether the copies at hand show it or not.
    pub(super) fn new(
        job: &'a Tenanted<Job>,
        spec: &'a JobSpec,
        pods: Vec<PodRef>,
        settled: &HashSet<String>,
    ) -> Self {
        let status = job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
        let (was_won, was_lost) =
            (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
        let known: HashSet<&str> =
            was_won.iter().chain(&was_lost).chain(settled).map(String::as_str).collect();
        let end = end(spec);
        let read = |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), end);
        let count = |known: Option<i32>, more: &[String]| {
            known.unwrap_or(0).saturating_add(saturate(more.len()))
        };
        let mut it = Self {
            job,
            spec,
            active: Vec::new(),
            n_ready: 0,
            n_terminating: 0,
            succeeded: Vec::new(),
            failed: Vec::new(),
            n_succeeded: count(status.succeeded, &was_won),
            n_failed: count(status.failed, &was_lost),
            done: read(&status.completed_indexes),
            lost: read(&status.failed_indexes),
            pods: Vec::new(),
        };
        for pod in &pods {
            let is_new = is_tracked(pod) && !known.contains(pod.uid());
            let has_room = it.succeeded.len() + it.failed.len() < BATCH;
            match pod_phase(pod) {
                "Succeeded" if is_new && has_room => it.won(pod),
                "Failed" if is_new && has_room => it.lost(pod),
                "Succeeded" | "Failed" => (),
                _ if !pod.is_deleting() => {
                    it.n_ready += i32::from(is_pod_ready(pod));
                    it.active.push(pod.clone());
                }
                _ => {
                    it.n_terminating += 1;
                    if is_new && has_room && !replaces_failed_only(spec) {
                        it.lost(pod);
                    }
                }
            }
        }
        it.pods = pods;
        if is_indexed(spec) {
            it.n_succeeded = it.done.len();
        } else {
            it.n_succeeded = it.n_succeeded.saturating_add(saturate(it.succeeded.len()));
        }
        it
    }

    fn won(&mut self, pod: &PodRef) {
        if is_indexed(self.spec) {
            match index_of(pod) {
                // What has no index of this Job's counts for nothing, but it is let go.
                Some(index) if index < end(self.spec) => self.done.insert(index),
                _ => (),
            }
        }
        self.succeeded.push(pod.clone());
    }

    fn lost(&mut self, pod: &PodRef) {
        let failure = judge(self.job, pod);
        if failure != Failure::Ignored {
            self.n_failed = self.n_failed.saturating_add(1);
        }
        if let Some(limit) = self.spec.backoff_limit_per_index
            && let Some(index) = index_of(pod).filter(|index| *index < end(self.spec))
            && failure != Failure::Ignored
            && (failure == Failure::FailsIndex || limit <= failures_before(pod, INDEX_FAILURES))
        {
            self.lost.insert(index);
        }
        self.failed.push((pod.clone(), failure));
    }

    /// The active pods' indexes, and what is on its way out where that keeps an index taken.
    pub(super) fn taken(&self) -> Indexes {
        let mut taken = Indexes::default();
        let waits = replaces_failed_only(self.spec);
        for pod in &self.pods {
            let is_finished = matches!(pod_phase(pod), "Succeeded" | "Failed");
            if !is_finished
                && (!pod.is_deleting() || waits)
                && let Some(index) = index_of(pod)
            {
                taken.insert(index);
            }
        }
        taken
    }
}

pub(super) fn saturate(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
