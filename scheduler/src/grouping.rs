//! Telling what came of groups of pods: the condition `PodGroupScheduled` of their objects.

use std::{sync::Arc, time::Duration};

use insula_client::{Backoff, Client, Patch, Tenanted, chain};
use jiff::Timestamp;
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::reporting::UNSCHEDULABLE;

/// Requests at the same time.
const PARALLEL: usize = 16;
/// How often a server is asked that does not answer. What is not written is after the next attempt.
const ATTEMPTS: usize = 5;

const CONDITION: &str = "PodGroupScheduled";
/// Enough pods of the group have places.
const SCHEDULED: &str = "Scheduled";

/// What came of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    is_scheduled: bool,
    reason: &'static str,
    message: &'static str,
}

/// What upstream says of a group that does not fit.
pub(crate) const TOO_FEW: &str = "pod group is unschedulable";

impl Verdict {
    pub(crate) fn scheduled() -> Self {
        Self { is_scheduled: true, reason: SCHEDULED, message: "" }
    }

    pub(crate) fn unschedulable(message: &'static str) -> Self {
        Self { is_scheduled: false, reason: UNSCHEDULABLE, message }
    }

    fn status(&self) -> &'static str {
        if self.is_scheduled { "True" } else { "False" }
    }

    /// Whether an object says this already, or something that it does not take back: a group that
    /// was scheduled once has been, also when pods of it look for places later.
    fn is_told_by(&self, group: &PodGroup) -> bool {
        let conditions = group.status.as_ref().and_then(|it| it.conditions.as_ref());
        conditions.into_iter().flatten().filter(|it| it.type_ == CONDITION).any(|it| {
            let is_same = it.status == self.status() && it.reason == self.reason;
            (is_same && it.message == self.message) || (it.status == "True" && !self.is_scheduled)
        })
    }
}

/// Writes conditions, each in a task of its own.
#[derive(Debug)]
pub(crate) struct Grouping {
    client: Client,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
}

impl Grouping {
    pub(crate) fn new(client: Client, tasks: TaskTracker) -> Self {
        Self { client, tasks, places: Arc::new(Semaphore::new(PARALLEL)) }
    }

    /// Writes what came of a group, if its object says otherwise.
    pub(crate) fn tell(&self, group: Arc<Tenanted<PodGroup>>, verdict: Verdict) {
        if verdict.is_told_by(&group) {
            return;
        }
        let (client, places) = (self.client.clone(), self.places.clone());
        self.tasks.spawn(async move {
            // A closed semaphore does not occur: nobody closes it.
            let _place = places.acquire_owned().await;
            write(&client, &group, verdict).await;
        });
    }
}

async fn write(client: &Client, group: &Tenanted<PodGroup>, verdict: Verdict) {
    let known = group.status.as_ref().and_then(|it| it.conditions.as_ref());
    let before = known.into_iter().flatten().find(|it| it.type_ == CONDITION);
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let since = before
        .filter(|it| it.status == verdict.status())
        .map_or(now, |it| it.last_transition_time.0.to_string());
    let patch = Patch::Strategic(json!({
        "metadata": {"uid": group.uid()},
        "status": {"conditions": [{
            "type": CONDITION, "status": verdict.status(), "reason": verdict.reason,
            "message": verdict.message, "lastTransitionTime": since,
            "observedGeneration": group.metadata.generation,
        }]},
    }));
    let groups = client.tenant(&group.tenant).namespaced::<PodGroup>(group.namespace());
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    for _ in 0..ATTEMPTS {
        let Err(error) = groups.patch_status(group.name(), &patch).await else { return };
        tracing::debug!(group = %group.key(), error = chain(&error), "condition not written");
        if !error.is_ambiguous() {
            return;
        }
        tokio::time::sleep(pause.next_delay()).await;
    }
}
