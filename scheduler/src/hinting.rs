//! Writing what pods are told that would be better off elsewhere: a condition, and an event.
//!
//! Whoever ends pods (a descheduler, an operator) goes by the condition; nobody is ended by this.

use std::sync::Arc;

use insula_client::{Client, Error, EventRecorder, EventType, Patch, Tenanted, chain};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{binding::Permit, pod::Pod};

/// The condition of pods that would be better off elsewhere.
pub(crate) const CONDITION: &str = "insula.io/DeschedulingHint";
/// The reason when it is not so any more.
const WELL_PLACED: &str = "WellPlaced";
/// Requests at the same time.
const PARALLEL: usize = 8;
/// What is to be written; what does not fit is found again in the next round.
const MAX_WAITING: usize = 4096;

/// Why a pod would be better off elsewhere, if it says that it would.
pub(crate) fn reason_of(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let mut said = conditions.filter(|it| it.type_ == CONDITION && it.status == "True");
    Some(said.next()?.reason.as_deref().unwrap_or_default())
}

/// Tells pods, each in a task of its own.
#[derive(Debug)]
pub(crate) struct Hinter {
    client: Client,
    events: EventRecorder,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    parallel: Arc<Semaphore>,
}

impl Hinter {
    pub(crate) fn new(client: Client, events: EventRecorder, tasks: TaskTracker) -> Self {
        let (places, parallel) = (Semaphore::new(MAX_WAITING), Semaphore::new(PARALLEL));
        Self { client, events, tasks, places: Arc::new(places), parallel: Arc::new(parallel) }
    }

    /// Tells `pod` the reason and the message for which it would be better off elsewhere; or, if there are
    /// none, that it would not any more. `permit` is for its node.
    pub(crate) fn tell(
        &self,
        pod: Arc<Tenanted<Pod>>,
        hint: Option<(&'static str, String)>,
        permit: Permit,
    ) {
        let Ok(place) = self.places.clone().try_acquire_owned() else { return };
        let (client, events) = (self.client.clone(), self.events.clone());
        let parallel = self.parallel.clone();
        self.tasks.spawn(async move {
            // A closed semaphore does not occur: nobody closes it.
            let _turn = parallel.acquire_owned().await;
            let written = write(&client, &pod, hint.as_ref());
            let written = match permit.fence.clone() {
                Some(fence) => fence.around(written).await,
                None => written.await,
            };
            match (written, hint) {
                (Ok(()), Some((reason, message))) => {
                    let text = format!("{reason}: {message}");
                    events.record(&pod, EventType::Normal, "DeschedulingHint", text);
                }
                (Ok(()), None) => (),
                // It is told in the next round, if it still is so.
                (Err(error), _) => {
                    tracing::debug!(pod = %pod.key(), error = chain(&error), "hint not written");
                }
            }
            drop(place);
        });
    }
}

async fn write(
    client: &Client,
    pod: &Tenanted<Pod>,
    hint: Option<&(&'static str, String)>,
) -> Result<(), Error> {
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let (status, reason, message) = match hint {
        Some((reason, message)) => ("True", *reason, message.as_str()),
        None => ("False", WELL_PLACED, ""),
    };
    let patch = Patch::Strategic(json!({
        "metadata": {"uid": pod.uid()},
        "status": {"conditions": [{
            "type": CONDITION, "status": status, "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": now.to_string(),
            "observedGeneration": pod.metadata.generation,
        }]},
    }));
    let pods = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    pods.patch_status(pod.name(), &patch).await.map(drop)
}
