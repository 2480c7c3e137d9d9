//! Deletes Jobs some time after they are finished, where they ask for it.

use std::{sync::Arc, time::Duration};

use insula_client::{Client, DeleteOptions, ObjectKey, Propagation};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    job::is_finished,
    queue::Queue,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct TtlAfterFinished {
    client: Client,
    informers: Informers,
}

impl TtlAfterFinished {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }
}

/// How long a finished Job is kept from now on; `None` for one that is kept for good.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if !is_finished(job) {
        return None;
    }
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended = conditions
        .iter()
        .find(|it| matches!(&*it.type_, "Complete" | "Failed") && it.status == "True")?
        .last_transition_time
        .as_ref()?;
    let at = ended.0.checked_add(jiff::SignedDuration::from_secs(ttl.into())).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

impl Controller for TtlAfterFinished {
    const NAME: &'static str = "ttl-after-finished-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.jobs.informer.on_change(move |change| {
            if change.new.is_some_and(|job| left(job, Timestamp::now()).is_some()) {
                keys.add(change.key.clone());
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.jobs.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(job) = self.informers.jobs.informer.get(key).filter(|it| !it.is_deleting()) else {
            return Ok(Next::WhenChanged);
        };
        let Some(wait) = left(&job, Timestamp::now()) else { return Ok(Next::WhenChanged) };
        if !wait.is_zero() {
            return Ok(Next::After(wait));
        }
        // It may have been given more time a moment ago.
        let api = self.client.tenant(&job.tenant).namespaced::<Job>(job.namespace());
        let Some(live) = api.get_opt(job.name()).await? else { return Ok(Next::WhenChanged) };
        match left(&live, Timestamp::now()) {
            Some(Duration::ZERO) if live.uid() == job.uid() => {
                let options = DeleteOptions::default()
                    .only_uid(live.uid())
                    .only_version(live.resource_version())
                    .propagation(Propagation::Foreground);
                match api.delete(live.name(), &options).await {
                    Ok(_) => Ok(Next::WhenChanged),
                    Err(error) if error.is_not_found() => Ok(Next::WhenChanged),
                    Err(error) => Err(error.into()),
                }
            }
            wait => Ok(wait.map_or(Next::WhenChanged, Next::After)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    #[test]
    fn counted_from_the_end() {
        let left = |ttl: Value, condition: &str| {
            let condition = json!([{
                "type": condition, "status": "True", "lastTransitionTime": "2026-11-21T00:00:00Z",
            }]);
            let job = json!({
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": condition},
            });
            let now = "2026-11-21T00:00:10Z".parse().unwrap();
            super::left(&serde_json::from_value(job).unwrap(), now).map(|it| it.as_secs())
        };
        assert_eq!(left(json!(60), "Complete"), Some(50));
        assert_eq!(left(json!(0), "Failed"), Some(0));
        assert_eq!(left(json!(60), "Suspended"), None);
        assert_eq!(left(json!(null), "Complete"), None);
    }
}
