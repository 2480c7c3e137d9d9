//! Deletes pods that nobody else will: on nodes that are gone or out of service, ended before they had a node, or
//! ended long ago among too many others.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::{Client, DeleteOptions, Error, ObjectKey, Patch, Tenanted};
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{disruption, is_node_ready, is_pod_finished, node_of, pod_phase},
    queue::Queue,
    taints::{OUT_OF_SERVICE, taints},
};

/// Ended pods of one tenant that are kept.
const KEPT: usize = 12_500;
/// How often a tenant's pods are looked through.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// For so long a node must be gone before its pods are.
const QUARANTINE: Duration = Duration::from_secs(40);

/// See the module. A key names a tenant alone: all its pods are looked through.
#[derive(Debug)]
pub(crate) struct PodCollector {
    client: Client,
    informers: Informers,
    /// Since when nodes that pods are on are missing.
    missing: Mutex<HashMap<String, Instant>>,
}

impl PodCollector {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers, missing: Mutex::default() }
    }

    /// Nodes of these names that have been missing for long enough, and certainly are.
    async fn gone(&self, named: BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
        let is_known = |name: &str| {
            self.informers.nodes.get(&ObjectKey::new(&TenantName::system(), "", name)).is_some()
        };
        let mut suspects = Vec::new();
        {
            let mut missing = self.missing.lock();
            missing.retain(|name, _| !is_known(name));
            for name in named.into_iter().filter(|name| !is_known(name)) {
                let since = *missing.entry(name.clone()).or_insert_with(Instant::now);
                if QUARANTINE <= since.elapsed() {
                    suspects.push(name);
                }
            }
        }
        let mut gone = BTreeSet::new();
        for name in suspects {
            if self.client.system().api::<Node>().get_opt(&name).await?.is_none() {
                gone.insert(name);
            }
        }
        Ok(gone)
    }

    /// Whether somebody has said that a node is down, and it does not say otherwise.
    fn is_out_of_service(&self, name: &str) -> bool {
        let node = self.informers.nodes.get(&ObjectKey::new(&TenantName::system(), "", name));
        node.is_some_and(|node| {
            !is_node_ready(&node) && taints(&node).iter().any(|it| it.key == OUT_OF_SERVICE)
        })
    }

    /// Deletes a pod at once: no agent will report its end.
    async fn delete(&self, pod: &Tenanted<Pod>, why: Option<&str>) -> Result<(), Error> {
        let api = self.client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
        if !is_pod_finished(pod) {
            // Who counts pods has to see how this one ended.
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = why {
                status["conditions"] = json!([disruption("DeletionByPodGC", message)]);
            }
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
            match api.patch_status(pod.name(), &Patch::Strategic(patch)).await {
                Ok(_) => (),
                Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let options = DeleteOptions::default().only_uid(pod.uid()).grace_period(0);
        match api.delete(pod.name(), &options).await {
            Ok(_) => {
                tracing::info!(pod = %pod.key(), "a pod that nobody keeps was deleted");
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The pods of a tenant that have ended, more than are kept: those that failed by eviction first,
/// then the oldest.
fn surplus(pods: &[Arc<Tenanted<Pod>>], kept: usize) -> Vec<Arc<Tenanted<Pod>>> {
    let ended = |pod: &&Arc<Tenanted<Pod>>| is_pod_finished(pod) && !pod.is_deleting();
    let mut all: Vec<_> = pods.iter().filter(ended).cloned().collect();
    let n_surplus = all.len().saturating_sub(kept);
    if n_surplus == 0 {
        return Vec::new();
    }
    all.sort_by_key(|pod| {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (reason != Some("Evicted"), created, pod.name().to_owned())
    });
    all.truncate(n_surplus);
    all
}

impl Controller for PodCollector {
    const NAME: &'static str = "pod-garbage-collector";
    const WORKERS: usize = 2;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.pods.informer.on_change(move |change| {
            // What may be left behind: it ended, has to end, or has a node.
            if let Some(pod) = change.new
                && change.old.is_none()
            {
                keys.add(ObjectKey::new(&pod.tenant, "", ""));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await && self.informers.nodes.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let (mut is_any, mut named, mut pods) = (false, BTreeSet::new(), Vec::new());
        let all = &self.informers.pods.informer;
        all.each_in_tenant(&key.tenant, |pod| {
            is_any = true;
            if let Some(node) = node_of(pod)
                && !named.contains(node)
            {
                named.insert(node.to_owned());
            }
            if pod.is_deleting() || is_pod_finished(pod) {
                pods.push(pod.clone());
            }
        });
        if !is_any {
            return Ok(Next::WhenChanged);
        }
        let gone = self.gone(named).await?;
        if !gone.is_empty() {
            all.each_in_tenant(&key.tenant, |pod| {
                let is_new = !pod.is_deleting() && !is_pod_finished(pod);
                if is_new && node_of(pod).is_some_and(|node| gone.contains(node)) {
                    pods.push(pod.clone());
                }
            });
        }
        for pod in &pods {
            let of_node = node_of(pod);
            if pod.is_deleting() && of_node.is_some_and(|name| self.is_out_of_service(name)) {
                self.delete(pod, None).await?;
            } else if of_node.is_some_and(|name| gone.contains(name)) {
                let message = "PodGC: node no longer exists";
                self.delete(pod, Some(message)).await?;
            } else if of_node.is_none() && pod.is_deleting() && !pod_phase(pod).is_empty() {
                self.delete(pod, None).await?;
            }
        }
        for pod in surplus(&pods, KEPT) {
            self.delete(&pod, None).await?;
        }
        Ok(Next::After(LOOK_EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_have_ended_go() {
        let pod = |name: &str, phase: &str, reason: &str, second: i64| {
            let at = jiff::Timestamp::from_second(second).unwrap().to_string();
            let it = json!({
                "metadata": {"name": name, "creationTimestamp": at},
                "status": {"phase": phase, "reason": reason},
            });
            let tenant = TenantName::parse("acme").unwrap();
            Arc::new(Tenanted { tenant, object: serde_json::from_value(it).unwrap() })
        };
        let pods = [
            pod("running", "Running", "", 0),
            pod("old", "Succeeded", "", 1),
            pod("young", "Failed", "", 3),
            pod("evicted", "Failed", "Evicted", 9),
        ];
        let names = |kept| -> Vec<String> {
            surplus(&pods, kept).iter().map(|pod| pod.name().to_owned()).collect()
        };
        assert_eq!(names(1), ["evicted", "old"]);
        assert!(names(3).is_empty());
    }
}
