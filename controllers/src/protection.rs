//! Lets go of what nobody uses any more: claims, volumes and classes of volume attributes.
//!
//! The API server gives each a finalizer when it is created, so that it stays while it is used:
//! a claim by pods that run, a volume by its claim, a class by claims and volumes.

use std::{sync::Arc, time::Duration};

use insula_api::names::TenantName;
use insula_client::{Client, Error, Informer, Kind, ListOptions, ObjectKey, Patch, Tenanted};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::VolumeAttributesClass,
};
use serde_json::json;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{claims_of, is_pod_finished, node_of},
    queue::Queue,
};

/// How often is asked about what is to go and is used, although nothing happened.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

/// What stays while it is used.
pub(crate) trait Guarded: Kind {
    const CONTROLLER: &'static str;
    const FINALIZER: &'static str;

    /// Whether somebody uses it now. That nobody does is asked of the server, because it decides
    /// what is lost.
    fn is_used(
        client: &Client,
        informers: &Informers,
        it: &Tenanted<Self>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Has `look` called with whatever may no longer be used. What changes itself is looked at
    /// anyway.
    fn on_freed(informers: &Informers, look: impl Look);
}

/// Looks again at one of them, if it is to go.
pub(crate) trait Look: Fn(ObjectKey) + Clone + Send + Sync + 'static {}

impl<F: Fn(ObjectKey) + Clone + Send + Sync + 'static> Look for F {}

impl Guarded for PersistentVolumeClaim {
    const CONTROLLER: &'static str = "persistentvolumeclaim-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pvc-protection";

    async fn is_used(
        client: &Client,
        informers: &Informers,
        it: &Tenanted<Self>,
    ) -> Result<bool, Error> {
        // The end of a pod that is known is heard of, too.
        if informers.pods_with(&it.key()).iter().any(|pod| uses(pod, it.name())) {
            return Ok(true);
        }
        let pods = client.tenant(&it.tenant).namespaced::<Pod>(it.namespace());
        let pods = pods.list_all(&ListOptions::default()).await?;
        Ok(pods.iter().any(|pod| uses(&pod.object, it.name())))
    }

    fn on_freed(informers: &Informers, look: impl Look) {
        informers.pods.informer.on_change(move |change| {
            let Some(pod) = change.latest() else { return };
            if change.new.is_none() || is_pod_finished(pod) {
                let key = |claim: &str| ObjectKey::new(&pod.tenant, pod.namespace(), claim);
                claims_of(pod).for_each(|claim| look(key(&claim)));
            }
        });
    }
}

/// Whether a pod that has a node and has not ended uses a claim.
fn uses(pod: &Pod, claim: &str) -> bool {
    !is_pod_finished(pod) && node_of(pod).is_some() && claims_of(pod).any(|it| it == claim)
}

impl Guarded for PersistentVolume {
    const CONTROLLER: &'static str = "persistentvolume-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pv-protection";

    async fn is_used(
        client: &Client,
        _informers: &Informers,
        it: &Tenanted<Self>,
    ) -> Result<bool, Error> {
        let found = client.tenant(&it.tenant).api::<Self>().get_opt(it.name()).await?;
        let phase = found.and_then(|it| it.object.status?.phase);
        Ok(phase.as_deref() == Some("Bound"))
    }

    /// It says itself whether it is bound.
    fn on_freed(_informers: &Informers, _look: impl Look) {}
}

impl Guarded for VolumeAttributesClass {
    const CONTROLLER: &'static str = "volumeattributesclass-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/vac-protection";

    async fn is_used(
        client: &Client,
        _informers: &Informers,
        it: &Tenanted<Self>,
    ) -> Result<bool, Error> {
        let (name, tenant) = (it.name(), client.tenant(&it.tenant));
        let volumes = tenant.api::<PersistentVolume>();
        let volumes = volumes.list_all(&ListOptions::default()).await?;
        let claims = tenant.api::<PersistentVolumeClaim>();
        let claims = claims.list_all(&ListOptions::default()).await?;
        Ok(volumes.iter().any(|it| class_of_volume(it) == Some(name))
            || claims.iter().any(|it| classes_of_claim(it).contains(&Some(name))))
    }

    fn on_freed(informers: &Informers, look: impl Look) {
        let class = |tenant: &TenantName, name: &str| ObjectKey::new(tenant, "", name);
        let also = look.clone();
        informers.volumes.on_change(move |change| {
            let name = change.old.and_then(|it| class_of_volume(it));
            name.iter().for_each(|name| look(class(&change.key.tenant, name)));
        });
        informers.claims.on_change(move |change| {
            let names = change.old.map(|it| classes_of_claim(it)).into_iter().flatten();
            names.flatten().for_each(|name| also(class(&change.key.tenant, name)));
        });
    }
}

fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref()
}

/// The class that a claim asks for, and the one that its volume has.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> [Option<&str>; 2] {
    let (spec, status) = (claim.spec.as_ref(), claim.status.as_ref());
    [
        spec.and_then(|it| it.volume_attributes_class_name.as_deref()),
        status.and_then(|it| it.current_volume_attributes_class_name.as_deref()),
    ]
}

/// Takes the finalizer away from what is to go and is not used.
#[derive(Debug)]
pub(crate) struct Protection<K: Guarded> {
    client: Client,
    informer: Informer<K>,
    informers: Informers,
}

impl<K: Guarded> Protection<K> {
    /// `informer` is that of the kind among `informers`.
    pub(crate) fn new(client: Client, informer: Informer<K>, informers: Informers) -> Self {
        Self { client, informer, informers }
    }
}

/// Whether its deletion has begun.
fn is_leaving<K: Guarded>(it: &Tenanted<K>) -> bool {
    it.object.meta().deletion_timestamp.is_some()
}

impl<K: Guarded> Controller for Protection<K> {
    const NAME: &'static str = K::CONTROLLER;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informer.on_change(move |change| {
            if change.new.is_some_and(|it| is_leaving(it)) {
                keys.add(change.key.clone());
            }
        });
        let (keys, informer) = (queue.clone(), self.informer.clone());
        K::on_freed(&self.informers, move |key| {
            if informer.get(&key).is_some_and(|it| is_leaving(&it)) {
                keys.add(key);
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(it) = self.informer.get(key) else { return Ok(Next::WhenChanged) };
        let meta = it.object.meta();
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        let is_held = finalizers.iter().any(|it| it == K::FINALIZER);
        if meta.deletion_timestamp.is_none() || !is_held {
            return Ok(Next::WhenChanged);
        }
        if K::is_used(&self.client, &self.informers, &it).await? {
            // Whoever lets go of it is heard of, unless it comes and goes unseen.
            return Ok(Next::After(LOOK_AGAIN));
        }
        let rest: Vec<&String> = finalizers.iter().filter(|it| *it != K::FINALIZER).collect();
        let patch = json!({"metadata": {
            "uid": it.uid(), "resourceVersion": meta.resource_version, "finalizers": rest,
        }});
        let scope = self.client.tenant(&key.tenant);
        let api = match it.namespace() {
            "" => scope.api::<K>(),
            namespace => scope.namespaced::<K>(namespace),
        };
        match api.patch(it.name(), &Patch::Merge(patch)).await {
            Err(error) if error.is_not_found() => (),
            other => drop(other?),
        }
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, key, object};

    fn leaving(name: &str, finalizer: &str) -> serde_json::Value {
        object(
            name,
            json!({"metadata": {
                "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [finalizer],
            }}),
        )
    }

    #[tokio::test]
    async fn only_what_was_used_by_who_ends_is_looked_at_again() {
        let finalizer = PersistentVolumeClaim::FINALIZER;
        let pod = |name: &str, claim: &str, phase: &str| {
            let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": claim}});
            let spec = json!({"nodeName": "n", "containers": [], "volumes": [volume]});
            object(name, json!({"spec": spec, "status": {"phase": phase}}))
        };
        let pods = vec![
            pod("a", "runs", "Running"),
            pod("b", "ended", "Failed"),
            pod("c", "stays", "Failed"),
        ];
        let claims = vec![
            leaving("ended", finalizer),
            leaving("runs", finalizer),
            leaving("unused", finalizer),
            object("stays", json!({"metadata": {"finalizers": [finalizer]}})),
        ];
        let objects = [("pods", pods), ("persistentvolumeclaims", claims)];
        let fake = Fake::serving(&objects).await;
        let freed = Arc::<parking_lot::Mutex<Vec<ObjectKey>>>::default();
        let noted = freed.clone();
        PersistentVolumeClaim::on_freed(&fake.informers, move |key| noted.lock().push(key));
        assert_eq!(*freed.lock(), [key("ended"), key("stays")]);

        let claims = fake.informers.claims.clone();
        let it = Protection::new(fake.client.clone(), claims, fake.informers.clone());
        let it = Arc::new(it);
        let queue = Fake::queue::<Protection<PersistentVolumeClaim>>();
        it.watch(&queue);
        assert_eq!(Fake::keys(&queue).await, [key("ended"), key("runs"), key("unused")]);
        // It is known who uses it: nobody need be asked.
        assert_eq!(it.reconcile(&key("runs")).await.unwrap(), Next::After(LOOK_AGAIN));
        assert_eq!(fake.asked(), [""; 0]);
        // That nobody does is asked of the server, and so it may go.
        let _ = it.reconcile(&key("unused")).await;
        assert_eq!(fake.asked(), ["GET pods", "PATCH unused"]);
    }

    #[test]
    fn a_claim_has_to_do_with_two_classes() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {},
            "spec": {"volumeAttributesClassName": "gold"},
            "status": {"currentVolumeAttributesClassName": "silver"}}))
        .unwrap();
        assert_eq!(classes_of_claim(&claim), [Some("gold"), Some("silver")]);
        assert_eq!(classes_of_claim(&PersistentVolumeClaim::default()), [None, None]);
    }

    #[test]
    fn pods_that_run_use_claims() {
        let pod = |node: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"},
                "spec": {"nodeName": node, "containers": [], "volumes": [
                    {"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "b", "ephemeral": {}}]},
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        assert!(uses(&pod("n", "Running"), "c"));
        assert!(uses(&pod("n", "Running"), "p-b"));
        assert!(!uses(&pod("n", "Running"), "other"));
        assert!(!uses(&pod("n", "Succeeded"), "c"));
        assert!(!uses(&pod("", "Pending"), "c"));
    }
}
