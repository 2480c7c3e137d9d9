//! Lets go of what nobody uses any more: claims, volumes and classes of volume attributes.
//!
//! The API server gives each a finalizer when it is created, so that it stays while it is used:
//! a claim by pods that run, a volume by its claim, a class by claims and volumes.

use std::{sync::Arc, time::Duration};

use insula_client::{Client, Error, Informer, Kind, ListOptions, ObjectKey, Patch, Tenanted};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::VolumeAttributesClass,
};
use serde_json::json;

use crate::{
    controller::{Controller, Next, ReconcileError},
    queue::Queue,
};

/// When something that is used and is to go is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// What stays while it is used.
pub(crate) trait Guarded: Kind {
    const CONTROLLER: &'static str;
    const FINALIZER: &'static str;

    /// Whether somebody uses it now; asked of the server, because it decides what is lost.
    fn is_used(
        client: &Client,
        it: &Tenanted<Self>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;
}

impl Guarded for PersistentVolumeClaim {
    const CONTROLLER: &'static str = "persistentvolumeclaim-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pvc-protection";

    async fn is_used(client: &Client, it: &Tenanted<Self>) -> Result<bool, Error> {
        let pods = client.tenant(&it.tenant).namespaced::<Pod>(it.namespace());
        let pods = pods.list_all(&ListOptions::default()).await?;
        Ok(pods.iter().any(|pod| uses(&pod.object, it.name())))
    }
}

/// Whether a pod that has a node and has not ended uses a claim.
fn uses(pod: &Pod, claim: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    let Some(spec) = &pod.spec else { return false };
    let is_over = matches!(phase, Some("Succeeded" | "Failed"));
    if is_over || spec.node_name.as_deref().unwrap_or_default().is_empty() {
        return false;
    }
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    spec.volumes.iter().flatten().any(|volume| {
        let is_named =
            volume.persistent_volume_claim.as_ref().is_some_and(|it| it.claim_name == claim);
        let is_own = volume.ephemeral.is_some() && format!("{pod_name}-{}", volume.name) == claim;
        is_named || is_own
    })
}

impl Guarded for PersistentVolume {
    const CONTROLLER: &'static str = "persistentvolume-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pv-protection";

    async fn is_used(client: &Client, it: &Tenanted<Self>) -> Result<bool, Error> {
        let found = client.tenant(&it.tenant).api::<Self>().get_opt(it.name()).await?;
        let phase = found.and_then(|it| it.object.status?.phase);
        Ok(phase.as_deref() == Some("Bound"))
    }
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
}

/// Takes the finalizer away from what is to go and is not used.
#[derive(Debug)]
pub(crate) struct Protection<K: Guarded> {
    client: Client,
    informer: Informer<K>,
}

impl<K: Guarded> Protection<K> {
    pub(crate) fn new(client: Client, informer: Informer<K>) -> Self {
        Self { client, informer }
    }
}

impl<K: Guarded> Controller for Protection<K> {
    const NAME: &'static str = K::CONTROLLER;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informer.on_change(move |change| {
            if change.new.as_ref().is_some_and(|it| it.object.meta().deletion_timestamp.is_some()) {
                keys.add(change.key.clone());
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
            return Ok(Next::After(AGAIN));
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
