//! Telling users why their pods wait.

use std::sync::Arc;

use insula_client::{Client, EventRecorder, EventType, Patch, Tenanted, chain};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::pod::Pod;

/// Requests at the same time.
const PARALLEL_REPORTS: usize = 16;
/// Reports waiting to be written. What does not fit is told after the next attempt.
const MAX_REPORTS: usize = 4096;

/// A pod that found no node, and why.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) pod: Arc<Tenanted<Pod>>,
    pub(crate) reason: &'static str,
    pub(crate) message: Arc<str>,
    pub(crate) nominated: Nominated,
}

/// The node that is promised to a pod.
#[derive(Debug)]
pub(crate) enum Nominated {
    AsItIs,
    Nowhere,
    On(Arc<str>),
}

/// Tells users why their pods wait. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    queue: mpsc::Sender<Report>,
    events: EventRecorder,
}

impl Reporter {
    pub(crate) fn start(
        client: Client,
        events: EventRecorder,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Report>(MAX_REPORTS);
        let write = async move {
            let places = Arc::new(Semaphore::new(PARALLEL_REPORTS));
            let writes = TaskTracker::new();
            while let Some(report) = waiting.recv().await {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let client = client.clone();
                writes.spawn(async move {
                    write_condition(&client, &report).await;
                    drop(place);
                });
            }
        };
        tasks.spawn(shutdown.run_until_cancelled_owned(write));
        Self { queue, events }
    }

    /// Tells why `pod` waits: by its condition, if that says otherwise, and by an event, if
    /// waiting is not what the pod itself asks for.
    pub(crate) fn report(&self, report: Report) {
        if report.reason != GATED {
            let message = report.message.to_string();
            self.events.record(&report.pod, EventType::Warning, "FailedScheduling", message);
        }
        if says_so(&report) {
            return;
        }
        if let Err(error) = self.queue.try_send(report) {
            tracing::debug!(%error, "report put off until the next attempt");
        }
    }
}

/// The pod found no node.
pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";
/// Something else went wrong.
pub(crate) const SCHEDULER_ERROR: &str = "SchedulerError";
/// The pod asked not to be looked at yet.
pub(crate) const GATED: &str = "SchedulingGated";

fn says_so(report: &Report) -> bool {
    let conditions = report.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| {
        it.type_ == "PodScheduled"
            && it.status == "False"
            && it.reason.as_deref() == Some(report.reason)
            && it.message.as_deref() == Some(&report.message)
    }) && !changes_nomination(report)
}

fn changes_nomination(report: &Report) -> bool {
    let status = report.pod.status.as_ref();
    let told = status.and_then(|it| it.nominated_node_name.as_deref()).unwrap_or_default();
    match &report.nominated {
        Nominated::AsItIs => false,
        Nominated::Nowhere => !told.is_empty(),
        Nominated::On(node) => *told != **node,
    }
}

async fn write_condition(client: &Client, report: &Report) {
    let pod = &report.pod;
    let known = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let before =
        known.into_iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    let now = Timestamp::now();
    let since = before
        .and_then(|it| it.last_transition_time.clone())
        .unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
    // The version keeps this from overtaking a binding.
    let mut patch = json!({
        "metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()},
        "status": {"conditions": [{
            "type": "PodScheduled", "status": "False",
            "reason": report.reason, "message": report.message,
            "lastProbeTime": null, "lastTransitionTime": since,
            "observedGeneration": pod.metadata.generation,
        }]},
    });
    if changes_nomination(report) {
        patch["status"]["nominatedNodeName"] = match &report.nominated {
            Nominated::On(node) => json!(node),
            Nominated::AsItIs | Nominated::Nowhere => json!(null),
        };
    }
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    if let Err(error) = pods.patch_status(pod.name(), &Patch::Strategic(patch)).await {
        // The pod changed or went: then what it says is out of date anyway.
        tracing::debug!(pod = %pod.key(), error = chain(&error), "condition not written");
    }
}
