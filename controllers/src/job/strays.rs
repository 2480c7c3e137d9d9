//! Lets pods go that a Job would have counted, but whose Job is gone, is over, or does not want
//! them any more: nobody else would, and they could never be deleted.

use std::sync::Arc;

use insula_client::{Client, ObjectKey, Tenanted};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};

use super::{is_finished, observed::is_tracked, release};
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::controller_of,
    queue::Queue,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Strays {
    client: Client,
    informers: Informers,
}

impl Strays {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }

    /// Whether no Job will ever count a pod, as far as the local copies tell.
    fn seems_stray(&self, pod: &Tenanted<Pod>) -> bool {
        let jobs = &self.informers.jobs.informer;
        let Some(owner) = controller_of(&pod.object) else {
            // Whoever wants it takes it over.
            let wanting = self.informers.selectors.jobs.selecting(pod);
            return wanting.iter().all(|job| job.is_deleting());
        };
        if owner.kind != "Job" {
            return true;
        }
        let job = jobs.get(&ObjectKey::new(&pod.tenant, pod.namespace(), &owner.name));
        job.is_none_or(|job| job.uid() != owner.uid || is_finished(&job))
    }

    /// The same, by asking.
    async fn is_stray(&self, pod: &Tenanted<Pod>) -> Result<bool, ReconcileError> {
        let Some(owner) = controller_of(&pod.object).filter(|it| it.kind == "Job") else {
            return Ok(true);
        };
        let api = self.client.tenant(&pod.tenant).namespaced::<Job>(pod.namespace());
        let job = api.get_opt(&owner.name).await?;
        Ok(job.is_none_or(|job| job.uid() != owner.uid || is_finished(&job)))
    }
}

impl Controller for Strays {
    const NAME: &'static str = "job-stray-pods";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.pods.informer.on_change(move |change| {
            if let Some(pod) = change.new.filter(|pod| is_tracked(pod)) {
                keys.add(pod.key());
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.jobs.informer.on_change(move |change| {
            let ended = change.new.is_none_or(|job| is_finished(job));
            if let Some(job) = change.old.or(change.new).filter(|_| ended) {
                let pods = it.informers.pods.managed_by(job);
                pods.iter().filter(|pod| is_tracked(pod)).for_each(|pod| keys.add(pod.key()));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.jobs.informer.synced().await && self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(pod) = self.informers.pods.informer.get(key) else {
            return Ok(Next::WhenChanged);
        };
        // The local copies may know a pod before its Job.
        if is_tracked(&pod) && self.seems_stray(&pod) && self.is_stray(&pod).await? {
            release(&self.client, &pod).await?;
        }
        Ok(Next::WhenChanged)
    }
}
