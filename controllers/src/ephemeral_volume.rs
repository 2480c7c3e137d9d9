//! Makes the claims of volumes that live and die with their pod.

use std::sync::Arc;

use insula_client::{Client, EventRecorder, EventType, ObjectKey, Tenanted, chain};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{controller_reference, controller_uid},
    queue::Queue,
};

/// See the module. Keys are pods.
#[derive(Debug)]
pub(crate) struct EphemeralVolumes {
    client: Client,
    informers: Informers,
    events: EventRecorder,
}

/// The volumes of a pod that are made for it.
fn own_volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().filter(|it| it.ephemeral.is_some())
}

fn claim_name(pod: &Tenanted<Pod>, volume: &Volume) -> String {
    format!("{}-{}", pod.name(), volume.name)
}

impl EphemeralVolumes {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        Self { client, informers, events: events.named("ephemeral_volume") }
    }

    /// The volumes of a pod that have no claim yet; an error if one has somebody else's.
    fn missing<'p>(&self, pod: &'p Tenanted<Pod>) -> Result<Vec<&'p Volume>, ReconcileError> {
        let mut missing = Vec::new();
        for volume in own_volumes(pod) {
            let name = claim_name(pod, volume);
            let key = ObjectKey::new(&pod.tenant, pod.namespace(), &name);
            match self.informers.claims.get(&key) {
                None => missing.push(volume),
                Some(claim) if controller_uid(&claim.object) == Some(pod.uid()) => (),
                Some(_) => return Err(self.failed(pod, volume, &strange(pod, &name))),
            }
        }
        Ok(missing)
    }

    fn failed(&self, pod: &Tenanted<Pod>, volume: &Volume, why: &str) -> ReconcileError {
        let message = format!("ephemeral volume {}: {why}", volume.name);
        self.events.record(pod, EventType::Warning, "FailedBinding", message.clone());
        ReconcileError::Incomplete(message)
    }

    async fn create(&self, pod: &Tenanted<Pod>, volume: &Volume) -> Result<(), ReconcileError> {
        let template = volume.ephemeral.as_ref().and_then(|it| it.volume_claim_template.as_ref());
        let Some(template) = template else { return Ok(()) };
        let name = claim_name(pod, volume);
        let meta = template.metadata.clone().unwrap_or_default();
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                annotations: meta.annotations,
                labels: meta.labels,
                owner_references: Some(vec![controller_reference(pod)]),
                ..ObjectMeta::default()
            },
            spec: Some(template.spec.clone()),
            status: None,
        };
        let api = self.client.tenant(&pod.tenant);
        let api = api.namespaced::<PersistentVolumeClaim>(pod.namespace());
        match api.create(&claim).await {
            Ok(_) => Ok(()),
            // The local copy did not show it yet.
            Err(error) if error.is_already_exists() => {
                let found = api.get(&name).await?;
                match controller_uid(&found.object) == Some(pod.uid()) {
                    true => Ok(()),
                    false => Err(self.failed(pod, volume, &strange(pod, &name))),
                }
            }
            Err(error) => {
                let why = format!("create PVC {name}: {}", chain(&error));
                Err(self.failed(pod, volume, &why))
            }
        }
    }
}

fn strange(pod: &Tenanted<Pod>, claim: &str) -> String {
    let (namespace, name) = (pod.namespace(), pod.name());
    format!("PVC {namespace}/{claim} was not created for pod {namespace}/{name} (pod is not owner)")
}

impl Controller for EphemeralVolumes {
    const NAME: &'static str = "ephemeral-volume-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.pods.informer.on_change(move |change| {
            // What a pod asks for does not change.
            if let (None, Some(pod)) = (change.old, change.new)
                && own_volumes(pod).next().is_some()
            {
                keys.add(change.key.clone());
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.claims.on_change(move |change| {
            // Pods that only name it are soon done with.
            if change.new.is_none() {
                let pods = it.informers.keys_of_pods_with(change.key);
                pods.into_iter().for_each(|pod| keys.add(pod));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await && self.informers.claims.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let known = self.informers.pods.informer.get(key).filter(|it| !it.is_deleting());
        let Some(known) = known else { return Ok(Next::WhenChanged) };
        let missing = self.missing(&known)?;
        if missing.is_empty() {
            return Ok(Next::WhenChanged);
        }
        // What the claims are to be is not kept here.
        let api = self.client.tenant(&key.tenant).namespaced::<Pod>(&key.namespace);
        let Some(pod) = api.get_opt(&key.name).await? else { return Ok(Next::WhenChanged) };
        if pod.uid() != known.uid() || pod.is_deleting() {
            return Ok(Next::WhenChanged);
        }
        for volume in own_volumes(&pod) {
            if missing.iter().any(|it| it.name == volume.name) {
                self.create(&pod, volume).await?;
            }
        }
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::fake::{Fake, key, object};

    #[tokio::test]
    async fn pods_are_found_by_the_claims_that_were_made_for_them() {
        let pod = |name: &str, volume: serde_json::Value| {
            object(name, json!({"spec": {"containers": [], "volumes": [volume]}}))
        };
        let named = json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-v"}});
        let pods = vec![
            pod("p", json!({"name": "v", "ephemeral": {}})),
            pod("p-v", json!({"name": "v", "emptyDir": {}})),
            pod("q", named),
        ];
        let it = Fake::serving(&[("pods", pods)]).await;
        assert_eq!(it.informers.keys_of_pods_with(&key("p-v")), [key("p"), key("q")]);
        assert!(it.informers.keys_of_pods_with(&key("p")).is_empty());
    }
}
