//! Lets go of what nobody uses any more: claims, volumes and classes of volume attributes.
//!
//! The API server gives each a finalizer when it is created, so that it stays while it is used:
//! a claim by pods that run, a volume by its claim, a class by claims and volumes.

use std::sync::Arc;

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

/// What stays while it is used.
pub(crate) trait Guarded: Kind {
    const CONTROLLER: &'static str;
    const FINALIZER: &'static str;

    /// Whether somebody uses it now; asked of the server, because it decides what is lost.
    fn is_used(
        client: &Client,
        it: &Tenanted<Self>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Has `look` called whenever something of a tenant and a namespace may no longer be used.
    /// What changes itself is looked at anyway.
    fn on_freed(informers: &Informers, look: impl Look);
}

/// Looks again at all that is to go of a tenant and a namespace.
pub(crate) trait Look: Fn(&TenantName, &str) + Clone + Send + Sync + 'static {}

impl<F: Fn(&TenantName, &str) + Clone + Send + Sync + 'static> Look for F {}

impl Guarded for PersistentVolumeClaim {
    const CONTROLLER: &'static str = "persistentvolumeclaim-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pvc-protection";

    async fn is_used(client: &Client, it: &Tenanted<Self>) -> Result<bool, Error> {
        let pods = client.tenant(&it.tenant).namespaced::<Pod>(it.namespace());
        let pods = pods.list_all(&ListOptions::default()).await?;
        Ok(pods.iter().any(|pod| uses(&pod.object, it.name())))
    }

    fn on_freed(informers: &Informers, look: impl Look) {
        informers.pods.informer.on_change(move |change| {
            if change.new.is_none_or(|pod| is_pod_finished(pod)) {
                look(&change.key.tenant, &change.key.namespace);
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

    async fn is_used(client: &Client, it: &Tenanted<Self>) -> Result<bool, Error> {
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

    async fn is_used(client: &Client, it: &Tenanted<Self>) -> Result<bool, Error> {
        let (name, tenant) = (it.name(), client.tenant(&it.tenant));
        let volumes = tenant.api::<PersistentVolume>();
        let volumes = volumes.list_all(&ListOptions::default()).await?;
        let claims = tenant.api::<PersistentVolumeClaim>();
        let claims = claims.list_all(&ListOptions::default()).await?;
        let of_volume = |it: &Tenanted<PersistentVolume>| {
            let spec = it.object.spec.as_ref();
            spec.and_then(|it| it.volume_attributes_class_name.as_deref()) == Some(name)
        };
        let of_claim = |it: &Tenanted<PersistentVolumeClaim>| {
            let wanted =
                it.object.spec.as_ref().and_then(|it| it.volume_attributes_class_name.as_deref());
            let status = it.object.status.as_ref();
            let current = status.and_then(|it| it.current_volume_attributes_class_name.as_deref());
            wanted == Some(name) || current == Some(name)
        };
        Ok(volumes.iter().any(of_volume) || claims.iter().any(of_claim))
    }

    fn on_freed(informers: &Informers, look: impl Look) {
        let also = look.clone();
        informers.volumes.on_change(move |change| look(&change.key.tenant, ""));
        informers.claims.on_change(move |change| also(&change.key.tenant, ""));
    }
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
        K::on_freed(&self.informers, move |tenant: &TenantName, namespace: &str| {
            for it in informer.in_namespace(tenant, namespace).iter().filter(|it| is_leaving(it)) {
                keys.add(ObjectKey::new(tenant, namespace, it.name()));
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
        if K::is_used(&self.client, &it).await? {
            // Whoever lets go of it is heard of.
            return Ok(Next::WhenChanged);
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
