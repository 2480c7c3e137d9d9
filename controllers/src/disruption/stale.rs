//! Takes back that pods are about to be disrupted, where nothing came of it.
//!
//! Whoever evicts or preempts a pod says so in its condition `DisruptionTarget` first. If the pod
//! is not being deleted two minutes later, the condition is set to False, as upstream does; what
//! the node's agent said stays, for it may take its time.

use std::{sync::Arc, time::Duration};

use insula_client::{Client, ObjectKey, Patch, Tenanted};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{is_pod_finished, to_time},
    queue::Queue,
};

const CONDITION: &str = "DisruptionTarget";
const BY_NODE: &str = "TerminationByKubelet";
const STALE: Duration = Duration::from_secs(120);

/// See the module. Keys are pods.
#[derive(Debug)]
pub(crate) struct StaleDisruptions {
    client: Client,
    informers: Informers,
}

impl StaleDisruptions {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }
}

/// How long until what is said of a pod is stale; `None` if nothing is, or for good.
fn left(pod: &Tenanted<Pod>, now: Timestamp) -> Option<Duration> {
    if pod.is_deleting() || is_pod_finished(pod) {
        return None;
    }
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let said = conditions.find(|it| it.type_ == CONDITION && it.status == "True")?;
    if said.reason.as_deref() == Some(BY_NODE) {
        return None;
    }
    let since = said.last_transition_time.as_ref().map_or(now, |it| it.0);
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(STALE.saturating_sub(age))
}

impl Controller for StaleDisruptions {
    const NAME: &'static str = "stale-pod-disruption";
    const WORKERS: usize = 2;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.pods.informer.on_change(move |change| {
            if change.new.is_some_and(|pod| left(pod, Timestamp::now()).is_some()) {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(pod) = self.informers.pods.informer.get(key) else {
            return Ok(Next::WhenChanged);
        };
        let now = Timestamp::now();
        match left(&pod, now) {
            None => return Ok(Next::WhenChanged),
            Some(left) if !left.is_zero() => return Ok(Next::After(left)),
            Some(_) => (),
        }
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": pod.uid(), "resourceVersion": pod.resource_version()},
            "status": {"conditions": [{
                "type": CONDITION, "status": "False", "lastTransitionTime": to_time(now),
                "reason": null, "message": null,
            }]},
        }));
        let api = self.client.tenant(&key.tenant).namespaced::<Pod>(&key.namespace);
        match api.patch_status(&key.name, &patch).await {
            Err(error) if error.is_not_found() => (),
            other => drop(other?),
        }
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_is_said_is_stale_after_two_minutes_if_the_pod_stays() {
        let left = |status: Value, deleted: bool| {
            let mut it = json!({"metadata": {"tenant": "acme", "name": "p"}, "status": status});
            if deleted {
                it["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
            }
            let pod: Tenanted<Pod> = serde_json::from_value(it).unwrap();
            left(&pod, Timestamp::from_second(100).unwrap()).map(|it| it.as_secs())
        };
        let said = |status: &str, reason: &str, second: i64| {
            let at = Timestamp::from_second(second).unwrap();
            json!({"phase": "Running", "conditions": [{
                "type": CONDITION, "status": status, "reason": reason, "lastTransitionTime": at,
            }]})
        };
        assert_eq!(left(said("True", "EvictionByEvictionAPI", 40), false), Some(60));
        assert_eq!(left(said("True", "PreemptionByScheduler", -20), false), Some(0));
        assert_eq!(left(said("True", "PreemptionByScheduler", -90), false), Some(0));
        assert_eq!(left(said("False", "EvictionByEvictionAPI", 40), false), None);
        assert_eq!(left(said("True", BY_NODE, -90), false), None);
        assert_eq!(left(said("True", "EvictionByEvictionAPI", -90), true), None);
        let mut ended = said("True", "EvictionByEvictionAPI", -90);
        ended["phase"] = "Failed".into();
        assert_eq!(left(ended, false), None);
        assert_eq!(left(json!({}), false), None);
    }
}
