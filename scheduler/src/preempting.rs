//! Ending pods so that a more important one has room.

use std::sync::Arc;

use insula_client::{
    Client, DeleteOptions, Error, EventRecorder, EventType, ObjectKey, Patch, Tenanted, chain,
};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use crate::{
    binding::{Done, NotBound, Permit},
    ledger::Uid,
    pod::{Pod, scheduler_of},
};

/// Requests at the same time.
const PARALLEL: usize = 16;

/// A pod that has to end.
#[derive(Debug, Clone)]
pub(crate) struct Victim {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Uid,
}

/// Ends pods, each in a task of its own.
#[derive(Debug)]
pub(crate) struct Evictor {
    client: Client,
    events: EventRecorder,
    tasks: TaskTracker,
    results: mpsc::UnboundedSender<Done>,
    places: Arc<Semaphore>,
}

impl Evictor {
    pub(crate) fn new(
        client: Client,
        events: EventRecorder,
        tasks: TaskTracker,
        results: mpsc::UnboundedSender<Done>,
    ) -> Self {
        let places = Arc::new(Semaphore::new(PARALLEL));
        Self { client, events, tasks, results, places }
    }

    /// Ends `victims` on `node` so that `pod` has room. Only what goes wrong arrives in `results`.
    /// `permit` is for the pod's tenant.
    pub(crate) fn evict(
        &self,
        pod: &Arc<Tenanted<Pod>>,
        node: &Arc<str>,
        victims: Vec<Victim>,
        permit: Permit,
    ) {
        let permit = Arc::new(permit);
        for victim in victims {
            let permit = permit.clone();
            let (client, events) = (self.client.clone(), self.events.clone());
            let (results, places) = (self.results.clone(), self.places.clone());
            let (pod, node) = (pod.clone(), node.clone());
            self.tasks.spawn(async move {
                // A closed semaphore does not occur: nobody closes it.
                let _place = places.acquire_owned().await;
                let ended = end(&client, &events, &pod, &node, &victim);
                let ended = match permit.fence.clone() {
                    Some(fence) => fence.around(ended).await,
                    None => ended.await,
                };
                if let Err(error) = ended {
                    tracing::warn!(pod = %victim.key, error = chain(&error), "not preempted");
                    let uid = pod.uid().to_owned();
                    let done =
                        Done { number: 0, key: pod.key(), uid, result: Err(NotBound::NoRoom) };
                    if results.send(done).is_err() {
                        tracing::debug!("the scheduler ended before a preemption");
                    }
                }
            });
        }
    }
}

async fn end(
    client: &Client,
    events: &EventRecorder,
    pod: &Tenanted<Pod>,
    node: &str,
    victim: &Victim,
) -> Result<(), Error> {
    let key = &victim.key;
    let pods = client.tenant(&key.tenant).namespaced::<Pod>(&key.namespace);
    let Some(live) = pods.get_opt(&key.name).await?.filter(|it| victim.uid == *it.uid()) else {
        return Ok(());
    };
    if live.is_deleting() {
        return Ok(());
    }
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let message = format!("{}: preempting to accommodate a higher priority pod", scheduler_of(pod));
    let condition = Patch::Strategic(json!({
        "metadata": {"uid": live.uid()},
        "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": message, "lastProbeTime": null, "lastTransitionTime": now.to_string(),
            "observedGeneration": live.metadata.generation,
        }]},
    }));
    let gone_is_fine = |result: Result<(), Error>| match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    };
    gone_is_fine(pods.patch_status(&key.name, &condition).await.map(drop))?;
    let only_it = DeleteOptions::default().only_uid(live.uid());
    gone_is_fine(pods.delete(&key.name, &only_it).await.map(drop))?;
    let message = format!("Preempted by pod {} on node {node}", pod.uid());
    events.record(&live, EventType::Normal, "Preempted", message);
    Ok(())
}
