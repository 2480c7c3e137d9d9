//! Telling users why their pods wait.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use insula_client::{Client, EventRecorder, EventType, ObjectKey, Patch, Tenanted, chain};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::pod::{Pod, node_of};

/// Requests at the same time.
const PARALLEL_REPORTS: usize = 16;
/// Reports waiting to be written. What does not fit is told after the next attempt.
const MAX_REPORTS: usize = 4096;
/// How often a condition is written anew that met another write.
const ATTEMPTS: usize = 5;

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

/// What is to be told of pods of which something is being written; so what was found last is what
/// is told last.
type Next = Arc<Mutex<HashMap<ObjectKey, Option<Report>>>>;

/// Tells users why their pods wait. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    queue: mpsc::Sender<Report>,
    next: Next,
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
        let next = Next::default();
        let all = next.clone();
        let write = async move {
            let places = Arc::new(Semaphore::new(PARALLEL_REPORTS));
            let writes = TaskTracker::new();
            while let Some(report) = waiting.recv().await {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let (client, next) = (client.clone(), all.clone());
                writes.spawn(async move {
                    write_all(&client, &next, report).await;
                    drop(place);
                });
            }
        };
        tasks.spawn(shutdown.run_until_cancelled_owned(write));
        Self { queue, next, events }
    }

    /// Tells why `pod` waits: by its condition, if that says otherwise, and by an event, if
    /// waiting is not what the pod itself asks for.
    pub(crate) fn report(&self, report: Report) {
        if report.reason != GATED {
            let message = report.message.to_string();
            self.events.record(&report.pod, EventType::Warning, "FailedScheduling", message);
        }
        match self.next.lock().entry(report.pod.key()) {
            Entry::Occupied(mut being_written) => {
                being_written.insert(Some(report));
            }
            Entry::Vacant(_) if says_so(&report) => (),
            Entry::Vacant(place) => match self.queue.try_send(report) {
                Ok(()) => {
                    place.insert(None);
                }
                Err(error) => tracing::debug!(%error, "report put off until the next attempt"),
            },
        }
    }
}

/// Writes what is told of a pod, until nothing newer is.
async fn write_all(client: &Client, next: &Next, first: Report) {
    let key = first.pod.key();
    let mut report = first;
    loop {
        let seen = report.pod.clone();
        let written = write_condition(client, report).await;
        let mut next = next.lock();
        let Some(newer) = next.get_mut(&key).and_then(Option::take) else {
            next.remove(&key);
            return;
        };
        report = newer;
        // What was known when it was found has just been replaced here, and by nobody else.
        if let Some(written) = written
            && report.pod.uid() == seen.uid()
            && report.pod.resource_version() == seen.resource_version()
        {
            report.pod = written;
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

/// Whether what is found of a pod still says something of it as it is now: it looks for a node, and
/// nobody has decided on it since.
fn concerns(report: &Report, now: &Tenanted<Pod>) -> bool {
    let nominated = |pod: &Pod| pod.status.as_ref().and_then(|it| it.nominated_node_name.clone());
    report.pod.uid() == now.uid()
        && node_of(now).is_none()
        && !now.is_deleting()
        && nominated(&report.pod) == nominated(now)
}

/// Writes the condition, and returns the pod as it is then; nothing if it is of no account.
async fn write_condition(client: &Client, mut report: Report) -> Option<Arc<Tenanted<Pod>>> {
    let pods = client.tenant(&report.pod.tenant).namespaced::<Pod>(report.pod.namespace());
    for _ in 0..ATTEMPTS {
        if says_so(&report) {
            return Some(report.pod);
        }
        let patch = Patch::Strategic(condition(&report));
        let error = match pods.patch_status(report.pod.name(), &patch).await {
            Ok(written) => return Some(Arc::new(written)),
            Err(error) => error,
        };
        // Others write to the pod, too, and what was found of it holds all the same.
        if error.is_conflict()
            && let Ok(Some(now)) = pods.get_opt(report.pod.name()).await
            && concerns(&report, &now)
        {
            report.pod = Arc::new(now);
            continue;
        }
        // The pod changed or went: then what it says is out of date anyway.
        tracing::debug!(pod = %report.pod.key(), error = chain(&error), "condition not written");
        return None;
    }
    None
}

fn condition(report: &Report) -> Value {
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
    patch
}
