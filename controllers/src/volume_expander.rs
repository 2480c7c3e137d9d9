//! Tells of claims that are to grow: whoever provides their volumes resizes them.

use std::sync::Arc;

use insula_client::{Client, EventRecorder, EventType, ObjectKey};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    queue::Queue,
    volume_binder::matching::{requested, storage},
};

/// See the module. Keys are claims.
#[derive(Debug)]
pub(crate) struct VolumeExpander {
    client: Client,
    informers: Informers,
    events: EventRecorder,
}

impl VolumeExpander {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        Self { client, informers, events: events.named("volume_expand") }
    }
}

/// Whether a bound claim asks for more than it has.
fn is_to_grow(claim: &PersistentVolumeClaim) -> bool {
    let Some(status) = &claim.status else { return false };
    status.phase.as_deref() == Some("Bound") && storage(status.capacity.as_ref()) < requested(claim)
}

impl Controller for VolumeExpander {
    const NAME: &'static str = "persistentvolume-expander-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.claims.on_change(move |change| {
            let Some(claim) = change.new.filter(|it| is_to_grow(it)) else { return };
            // Said once for each size that is asked for.
            if change.old.is_none_or(|old| requested(old) != requested(claim) || !is_to_grow(old)) {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.claims.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let claim = self.informers.claims.get(key).filter(|it| is_to_grow(it));
        let Some(claim) = claim else { return Ok(Next::WhenChanged) };
        let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let volumes = self.client.tenant(&key.tenant).api::<PersistentVolume>();
        let volume = volumes.get_opt(name.unwrap_or_default()).await?;
        let named = volume.and_then(|it| it.object.spec?.claim_ref?.uid);
        if named.as_deref() != Some(claim.uid()) {
            let why = format!("persistent Volume is not bound to PVC being updated : {key}");
            return Err(ReconcileError::Incomplete(why));
        }
        let message = "waiting for an external controller to expand this PVC";
        self.events.record(&claim, EventType::Normal, "ExternalExpanding", message);
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(asked: &str, status: Value, expected: bool) {
        let claim = serde_json::from_value(json!({
            "spec": {"resources": {"requests": {"storage": asked}}}, "status": status,
        }));
        assert_eq!(is_to_grow(&claim.unwrap()), expected);
    }

    #[test]
    fn bound_claims_grow() {
        let bound = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        check("2Gi", bound.clone(), true);
        check("1024Mi", bound, false);
        check("2Gi", json!({"phase": "Pending"}), false);
    }
}
