//! Writing down where a pod goes, and why one goes nowhere.

use std::sync::Arc;

use insula_client::{
    Client, Error, EventRecorder, EventType, Kind, ObjectKey, Patch, Tenanted, chain,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Binding, Node, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status, Time},
};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::candidate::node_of;

/// Requests at the same time.
const PARALLEL_BINDINGS: usize = 64;
const PARALLEL_REPORTS: usize = 16;
/// Reports waiting to be written. What does not fit is told after the next attempt.
const MAX_REPORTS: usize = 4096;

/// What came of a binding.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) result: Result<(), Error>,
}

/// Writes bindings, each in a task of its own.
#[derive(Debug)]
pub(crate) struct Binder {
    pub(crate) client: Client,
    pub(crate) events: EventRecorder,
    pub(crate) tasks: TaskTracker,
    pub(crate) results: mpsc::UnboundedSender<Bound>,
    places: Arc<Semaphore>,
}

impl Binder {
    pub(crate) fn new(
        client: Client,
        events: EventRecorder,
        tasks: TaskTracker,
        results: mpsc::UnboundedSender<Bound>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(PARALLEL_BINDINGS));
        Self { client, events, tasks, results, places }
    }

    /// Binds `pod` to `node`; the result arrives in `results`.
    pub(crate) fn bind(&self, pod: Arc<Tenanted<Pod>>, node: Arc<str>) {
        let (client, events) = (self.client.clone(), self.events.clone());
        let (results, places) = (self.results.clone(), self.places.clone());
        self.tasks.spawn(async move {
            // A closed semaphore does not occur: nobody closes it.
            let _place = places.acquire_owned().await;
            let result = bind(&client, &pod, &node).await;
            if result.is_ok() {
                let (namespace, name) = (pod.namespace(), pod.name());
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                events.record(&pod, EventType::Normal, "Scheduled", message);
            }
            let bound = Bound { key: pod.key(), uid: pod.uid().to_owned(), result };
            if results.send(bound).is_err() {
                tracing::debug!("the scheduler ended before a binding");
            }
        });
    }
}

async fn bind(client: &Client, pod: &Tenanted<Pod>, node: &str) -> Result<(), Error> {
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name().to_owned()),
            namespace: Some(pod.namespace().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some(Node::resource().kind.into_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let answer: Result<Status, Error> =
        pods.create_subresource(pod.name(), "binding", &binding).await;
    match answer {
        Ok(_) => Ok(()),
        // The binding may have been written all the same; assuming otherwise would let another
        // pod have its place.
        Err(error) if error.is_ambiguous() || error.is_conflict() => {
            match pods.get_opt(pod.name()).await? {
                Some(live) if live.uid() == pod.uid() && node_of(&live) == Some(node) => Ok(()),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// A pod that found no node, and why.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) pod: Arc<Tenanted<Pod>>,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Tells users why their pods wait. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    queue: mpsc::Sender<Failure>,
    events: EventRecorder,
}

impl Reporter {
    pub(crate) fn start(
        client: Client,
        events: EventRecorder,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Failure>(MAX_REPORTS);
        let write = async move {
            let places = Arc::new(Semaphore::new(PARALLEL_REPORTS));
            let writes = TaskTracker::new();
            while let Some(failure) = waiting.recv().await {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let client = client.clone();
                writes.spawn(async move {
                    write_condition(&client, &failure).await;
                    drop(place);
                });
            }
        };
        tasks.spawn(shutdown.run_until_cancelled_owned(write));
        Self { queue, events }
    }

    /// Tells why `pod` waits: by its condition, if that says otherwise, and by an event, if
    /// waiting is not what the pod itself asks for.
    pub(crate) fn report(&self, failure: Failure) {
        if failure.reason == UNSCHEDULABLE {
            let message = failure.message.clone();
            self.events.record(&failure.pod, EventType::Warning, "FailedScheduling", message);
        }
        if says_so(&failure) {
            return;
        }
        if let Err(error) = self.queue.try_send(failure) {
            tracing::debug!(%error, "report put off until the next attempt");
        }
    }
}

/// The pod found no node.
pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";
/// The pod asked not to be looked at yet.
pub(crate) const GATED: &str = "SchedulingGated";

fn says_so(failure: &Failure) -> bool {
    let conditions = failure.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| {
        it.type_ == "PodScheduled"
            && it.status == "False"
            && it.reason.as_deref() == Some(failure.reason)
            && it.message.as_deref() == Some(&failure.message)
    })
}

async fn write_condition(client: &Client, failure: &Failure) {
    let pod = &failure.pod;
    let known = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let before =
        known.into_iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    let now = Timestamp::now();
    let since = before
        .and_then(|it| it.last_transition_time.clone())
        .unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
    // The version keeps this from overtaking a binding.
    let patch = Patch::Strategic(json!({
        "metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()},
        "status": {"conditions": [{
            "type": "PodScheduled", "status": "False",
            "reason": failure.reason, "message": failure.message,
            "lastProbeTime": null, "lastTransitionTime": since,
            "observedGeneration": pod.metadata.generation,
        }]},
    }));
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    if let Err(error) = pods.patch_status(pod.name(), &patch).await {
        // The pod changed or went: then what it says is out of date anyway.
        tracing::debug!(pod = %pod.key(), error = chain(&error), "condition not written");
    }
}
