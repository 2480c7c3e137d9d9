//! What has to be written of volumes before a pod is bound.

use std::time::Duration;

use insula_client::{Client, Informer, ObjectKey, Patch};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use super::NotBound;
use crate::storage::{SELECTED_NODE, Work};

/// Claims and volumes as they are, for those who wait for them.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    /// Ticks whenever a claim changes.
    pub(crate) claims_changed: watch::Receiver<u64>,
}

/// Has volumes bound and made, and waits until all claims have theirs.
pub(super) async fn bind_volumes(
    client: &Client,
    mut known: Volumes,
    work: &Work,
    node: &str,
) -> Result<(), NotBound> {
    for (volume, claim) in &work.bind {
        let (Some(live), Some(claim)) = (known.volumes.get(volume), known.claims.get(claim)) else {
            return Err(NotBound::Volumes("a volume or claim is gone".to_owned()));
        };
        let patch = Patch::Merge(json!({
            "metadata": {
                "resourceVersion": live.resource_version(),
                "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"},
            },
            "spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(), "name": claim.name(), "uid": claim.uid(),
                "resourceVersion": claim.resource_version(),
            }},
        }));
        let volumes = client.tenant(&volume.tenant).api::<PersistentVolume>();
        volumes.patch(&volume.name, &patch).await?;
    }
    for claim in &work.provision {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {SELECTED_NODE: node}}}));
        let claims =
            client.tenant(&claim.tenant).namespaced::<PersistentVolumeClaim>(&claim.namespace);
        claims.patch(&claim.name, &patch).await?;
    }
    let all: Vec<&ObjectKey> =
        work.bind.iter().map(|(_, claim)| claim).chain(&work.provision).collect();
    // When the copy may still be older than what was just written.
    let written = Instant::now();
    loop {
        known.claims_changed.mark_unchanged();
        let mut all_bound = true;
        for key in &all {
            let Some(claim) = known.claims.get(key).filter(|it| !it.is_deleting()) else {
                return Err(NotBound::Volumes(format!(
                    "persistentvolumeclaim \"{}\" is gone",
                    key.name
                )));
            };
            let spec = claim.spec.as_ref();
            let phase = claim.status.as_ref().and_then(|it| it.phase.as_deref());
            let has_volume =
                spec.and_then(|it| it.volume_name.as_deref()).is_some_and(|it| !it.is_empty());
            all_bound &= has_volume && phase == Some("Bound");
            let annotations = claim.metadata.annotations.as_ref();
            let is_selected = annotations.is_some_and(|it| it.contains_key(SELECTED_NODE));
            // Whoever was to make the volume could not, and wants another node.
            let grace = Duration::from_secs(5);
            if !has_volume
                && !is_selected
                && work.provision.contains(key)
                && grace < written.elapsed()
            {
                return Err(NotBound::Volumes(format!(
                    "provisioning failed for PVC \"{}\"",
                    key.name
                )));
            }
        }
        if all_bound {
            return Ok(());
        }
        // Looks from time to time also if nothing changes, for the grace above.
        let changed = known.claims_changed.changed();
        let _ = tokio::time::timeout(Duration::from_secs(5), changed).await;
    }
}
