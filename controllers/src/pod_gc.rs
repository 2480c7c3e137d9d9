//! Deletes pods that nobody else will: on nodes that are gone or out of service, ended before they had a node, or
//! ended long ago among too many others.
//!
//! Nobody looks through all pods for these. A node is missing when it goes and has pods, or when a
//! pod is new on one that is not known: both are heard of. Those that have ended or are being
//! deleted are found by an index, and looked at as long as there are any.

use std::{sync::Arc, time::Duration};

use insula_api::names::TenantName;
use insula_client::{Change, Client, DeleteOptions, Error, ObjectKey, Patch, Tenanted};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{disruption, is_node_ready, is_pod_finished, node_of, pod_phase},
    queue::Queue,
    taints::{OUT_OF_SERVICE, taints},
};

/// Ended pods of one tenant that are kept.
const KEPT: usize = 12_500;
/// How often pods are looked at that may have to go. What has ended or is being deleted is not
/// looked at sooner either: mostly its node is about to report its end.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// After so long a node is missed in earnest. It may have been made anew, or pods may have been
/// heard of before it was.
const QUARANTINE: Duration = Duration::from_secs(40);

/// See the module. A key names a tenant, whose pods are looked at that have ended or are being
/// deleted; or a node that was missing, as the tenant's pods are on it.
#[derive(Debug)]
pub(crate) struct PodCollector {
    client: Client,
    informers: Informers,
}

impl PodCollector {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }

    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
        let Some(pod) = change.new else { return };
        if pod.is_deleting() || is_pod_finished(pod) {
            queue.add_after(ObjectKey::new(&pod.tenant, "", ""), LOOK_EVERY);
        }
        let was_on = change.old.and_then(|old| node_of(old));
        if let Some(node) = node_of(pod)
            && was_on != Some(node)
            && !self.is_known(node)
        {
            queue.add_after(ObjectKey::new(&pod.tenant, "", node), QUARANTINE);
        }
    }

    fn is_known(&self, node: &str) -> bool {
        self.informers.nodes.contains(&ObjectKey::new(&TenantName::system(), "", node))
    }

    /// Deletes a tenant's pods on a node that was missing, if it certainly is.
    async fn look_on(&self, node: &str, tenant: &TenantName) -> Result<Next, ReconcileError> {
        if self.is_known(node) {
            return Ok(Next::WhenChanged);
        }
        let keys = self.informers.keys_of_pods_on(node, tenant);
        if keys.is_empty() {
            return Ok(Next::WhenChanged);
        }
        if self.client.system().api::<Node>().get_opt(node).await?.is_none() {
            for key in &keys {
                let pod = self.informers.pods.informer.get(key);
                if let Some(pod) = pod.filter(|pod| node_of(pod) == Some(node)) {
                    self.delete(&pod, Some("PodGC: node no longer exists")).await?;
                }
            }
        }
        // Until the node is known or the pods are gone, which others may have to agree to.
        Ok(Next::After(LOOK_EVERY))
    }

    /// Deletes a tenant's pods that have ended or are being deleted, and that nobody else deletes.
    async fn look(&self, tenant: &TenantName) -> Result<Next, ReconcileError> {
        let (mut is_deleting, mut left) = (false, Vec::new());
        self.informers.each_deleting_pod(tenant, |pod| {
            is_deleting = true;
            let is_left = match node_of(pod) {
                Some(node) => self.is_out_of_service(node),
                None => !pod_phase(pod).is_empty(),
            };
            if is_left {
                left.push(pod.clone());
            }
        });
        for pod in &left {
            self.delete(pod, None).await?;
        }
        let n_surplus = self.informers.n_ended_pods(tenant).saturating_sub(KEPT);
        if n_surplus != 0 {
            let mut ended = Vec::new();
            self.informers.each_ended_pod(tenant, |pod| ended.push(Ended::of(pod)));
            for pod in surplus(ended, KEPT) {
                self.delete_ended(&pod.key, &pod.uid).await?;
            }
        }
        // A node may be said to be out of service at any time.
        Ok(match is_deleting || n_surplus != 0 {
            true => Next::After(LOOK_EVERY),
            false => Next::WhenChanged,
        })
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
        if !is_pod_finished(pod) {
            let api = self.client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
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
        self.delete_ended(&pod.key(), pod.uid()).await
    }

    async fn delete_ended(&self, key: &ObjectKey, uid: &str) -> Result<(), Error> {
        let api = self.client.tenant(&key.tenant).namespaced::<Pod>(&key.namespace);
        let options = DeleteOptions::default().only_uid(uid).grace_period(0);
        match api.delete(&key.name, &options).await {
            Ok(_) => {
                tracing::info!(pod = %key, "a pod that nobody keeps was deleted");
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Of a pod that has ended, what is asked of very many at once. The first are to go first: those
/// that failed by eviction, then the oldest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ended {
    was_not_evicted: bool,
    created: Option<Timestamp>,
    key: ObjectKey,
    uid: String,
}

impl Ended {
    fn of(pod: &Tenanted<Pod>) -> Self {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        Self {
            was_not_evicted: reason != Some("Evicted"),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            key: pod.key(),
            uid: pod.uid().to_owned(),
        }
    }
}

/// Those that are more than are kept.
fn surplus(mut ended: Vec<Ended>, kept: usize) -> Vec<Ended> {
    ended.sort_unstable();
    ended.truncate(ended.len().saturating_sub(kept));
    ended
}

impl Controller for PodCollector {
    const NAME: &'static str = "pod-garbage-collector";
    const WORKERS: usize = 2;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| {
            if change.new.is_none() {
                let node = &change.key.name;
                for tenant in it.informers.tenants_on(node) {
                    keys.add_after(ObjectKey::new(&tenant, "", node), QUARANTINE);
                }
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| it.pod_changed(change, &keys));
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await && self.informers.nodes.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        match &*key.name {
            "" => self.look(&key.tenant).await,
            node => self.look_on(node, &key.tenant).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, acme, object};

    #[tokio::test]
    async fn those_that_have_ended_are_counted_and_no_others() {
        let pod = |name: String, phase: &str| object(&name, json!({"status": {"phase": phase}}));
        let ended = (0..KEPT).map(|n| pod(format!("p{n:05}"), "Succeeded"));
        let others = ["Running", "Pending", ""].map(|phase| pod(format!("a-{phase}"), phase));
        let mut pods: Vec<_> = ended.chain(others).collect();
        let mut leaving = pod("a-leaving".into(), "Failed");
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        leaving["spec"] = json!({"nodeName": "n", "containers": []});
        pods.push(leaving);
        let mut other = pod("a-other".into(), "Failed");
        other["metadata"]["tenant"] = json!("acm");
        pods.push(other);
        for n_more in [0, 2] {
            pods.extend((0..n_more).map(|n| pod(format!("b{n}"), "Failed")));
            let fake = Fake::serving(&[("pods", pods.clone())]).await;
            let collector = PodCollector::new(fake.client.clone(), fake.informers.clone());
            assert_eq!(collector.informers.n_ended_pods(&acme()), KEPT + n_more);
            let next = collector.look(&acme()).await.unwrap();
            assert_eq!(next, Next::After(LOOK_EVERY), "one is being deleted");
            assert_eq!(fake.asked(), ["DELETE b0", "DELETE b1"][..n_more]);
            let acm = TenantName::parse("acm").unwrap();
            assert_eq!(collector.look(&acm).await.unwrap(), Next::WhenChanged);
        }
    }

    #[test]
    fn the_oldest_that_have_ended_go() {
        let pod = |name: &str, reason: &str, second: i64| {
            let at = Timestamp::from_second(second).unwrap().to_string();
            let it = json!({
                "metadata": {"name": name, "creationTimestamp": at},
                "status": {"phase": "Failed", "reason": reason},
            });
            let tenant = TenantName::parse("acme").unwrap();
            Tenanted { tenant, object: serde_json::from_value(it).unwrap() }
        };
        let pods = [
            pod("young", "", 3),
            pod("old-b", "", 1),
            pod("old-a", "", 1),
            pod("evicted", "Evicted", 9),
        ];
        let names = |kept| -> Vec<String> {
            let surplus = surplus(pods.iter().map(Ended::of).collect(), kept);
            surplus.iter().map(|pod| pod.key.name.to_string()).collect()
        };
        assert_eq!(names(1), ["evicted", "old-a", "old-b"]);
        assert_eq!(names(3), ["evicted"]);
        assert!(names(4).is_empty() && names(5).is_empty());
    }
}
