//! Makes and deletes pods for the objects that manage them, and keeps in mind what it asked for.
//!
//! Pods are named here, not by the server, so that a pod whose creation was asked for is
//! recognised when it appears.

use std::sync::Arc;

use futures::future::join_all;
use insula_client::{
    Change, Client, DeleteOptions, Error, EventRecorder, EventType, Kind, Patch, Tenanted, chain,
};
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use crate::{
    expectations::Expectations,
    objects::{controller_reference, controller_uid, generated_name},
};

/// See the module.
#[derive(Debug)]
pub(crate) struct PodControl {
    client: Client,
    events: EventRecorder,
    expectations: Expectations,
}

impl PodControl {
    pub(crate) fn new(client: Client, events: EventRecorder) -> Self {
        Self { client, events, expectations: Expectations::default() }
    }

    /// Whether the local copy shows all that was asked for on behalf of this owner.
    pub(crate) fn is_current(&self, owner: &str) -> bool {
        self.expectations.are_met(owner)
    }

    /// Whether a pod is on its way out although the local copy does not show it yet.
    pub(crate) fn is_leaving(&self, owner: &str, pod: &Tenanted<Pod>) -> bool {
        self.expectations.is_leaving(owner, pod.uid())
    }

    /// Forgets an owner that is gone.
    pub(crate) fn forget(&self, owner: &str) {
        self.expectations.forget(owner);
    }

    /// Notes what a pod's change fulfils.
    pub(crate) fn saw(&self, change: &Change<'_, Pod>) {
        let Some(latest) = change.latest() else { return };
        for pod in [change.old, change.new].into_iter().flatten() {
            let Some(uid) = controller_uid(&pod.object) else { continue };
            if change.new.is_some() {
                self.expectations.created(uid, pod.name());
            }
            if change.new.is_none() || latest.is_deleting() {
                self.expectations.deleted(uid, pod.uid());
            }
        }
    }

    /// Creates `count` pods in batches that double, so that what fails for all fails for few.
    pub(crate) async fn create_many<K: Kind>(
        &self,
        owner: &Tenanted<K>,
        count: usize,
        make: impl Fn(usize) -> Pod,
    ) -> Result<(), Error> {
        let mut begun = 0;
        let mut batch = 1;
        while begun < count {
            let size = batch.min(count - begun);
            let pods = (begun..begun + size).map(|n| self.create(owner, make(n)));
            if let Some(error) = join_all(pods).await.into_iter().find_map(Result::err) {
                return Err(error);
            }
            begun += size;
            batch *= 2;
        }
        Ok(())
    }

    /// Creates a pod that has its name.
    pub(crate) async fn create<K: Kind>(&self, owner: &Tenanted<K>, pod: Pod) -> Result<(), Error> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        self.expectations.expect_create(owner.uid(), &name);
        let api = self.client.tenant(&owner.tenant).namespaced::<Pod>(owner.namespace());
        let mut created = api.create_unread(&pod).await;
        // Where it is not known whether the pod came to be, its name tells.
        if created.as_ref().is_err_and(Error::is_ambiguous)
            && let Ok(Some(there)) = api.get_opt(&name).await
            && controller_uid(&there.object) == Some(owner.uid())
        {
            created = Ok(());
        }
        match created {
            Ok(()) => {
                let message = format!("Created pod: {name}");
                self.events.record(owner, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                self.expectations.created(owner.uid(), &name);
                if error.is_namespace_terminating() {
                    return Ok(());
                }
                let message = format!("Error creating: {}", chain(&error));
                self.events.record(owner, EventType::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }

    /// Deletes pods, all at once.
    pub(crate) async fn delete_many<K: Kind>(
        &self,
        owner: &Tenanted<K>,
        pods: &[Arc<Tenanted<Pod>>],
    ) -> Result<(), Error> {
        for pod in pods {
            self.expectations.expect_delete(owner.uid(), pod.uid());
        }
        let results = join_all(pods.iter().map(|pod| self.delete_one(owner, pod))).await;
        results.into_iter().collect()
    }

    async fn delete_one<K: Kind>(
        &self,
        owner: &Tenanted<K>,
        pod: &Tenanted<Pod>,
    ) -> Result<(), Error> {
        let api = self.client.tenant(&owner.tenant).namespaced::<Pod>(owner.namespace());
        match api.delete(pod.name(), &DeleteOptions::default().only_uid(pod.uid())).await {
            Ok(_) => {
                let message = format!("Deleted pod: {}", pod.name());
                self.events.record(owner, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                self.expectations.deleted(owner.uid(), pod.uid());
                // Gone already, or another pod by that name.
                if error.is_not_found() || error.is_conflict() {
                    return Ok(());
                }
                let message = format!("Error deleting: {}", chain(&error));
                self.events.record(owner, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }
}

/// A new pod of `owner`, by its template; its name is generated from `base`.
pub(crate) fn pod_from<K: Kind>(
    owner: &Tenanted<K>,
    template: &PodTemplateSpec,
    base: &str,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            name: Some(generated_name(base)),
            generate_name: Some(base.to_owned()),
            namespace: Some(owner.namespace().to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Has a pod go in good order, and says in its status why. One that has gone already is fine.
pub(crate) async fn disrupt(
    client: &Client,
    pod: &Tenanted<Pod>,
    why: &Value,
) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [why]}});
    let api = client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
    let gone = |error: &Error| error.is_not_found() || error.is_conflict();
    match api.patch_status(pod.name(), &Patch::Strategic(patch)).await {
        Ok(_) => (),
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    match api.delete(pod.name(), &DeleteOptions::default().only_uid(pod.uid())).await {
        Ok(_) => Ok(()),
        Err(error) if gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
