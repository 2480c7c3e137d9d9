//! What has to be written of device claims before a pod is bound.

use std::time::Duration;

use insula_client::{Api, Backoff, Client, Error, Informer, Patch, Tenanted, fence::Fence};
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use serde_json::json;
use tokio::sync::watch;

use super::NotBound;
use crate::{
    devices::{ClaimWork, allocation_of, is_reserved_for},
    pod::Pod,
};

/// Keeps a claim that has devices from being removed.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a claim is written anew that others write to as well.
const ATTEMPTS: usize = 8;

/// Claims as they are, for those who wait for them; none if the server has none.
#[derive(Debug, Clone)]
pub(crate) struct DeviceClaims {
    pub(crate) claims: Option<Informer<ResourceClaim>>,
    /// Ticks whenever one changes.
    pub(crate) changed: watch::Receiver<u64>,
}

impl DeviceClaims {
    /// Gives claims their devices, notes them as a pod's, and waits until the copies show it. What
    /// several replicas might give is written under a fence of its own.
    pub(super) async fn give(
        mut self,
        client: &Client,
        work: &[ClaimWork],
        pod: &Tenanted<Pod>,
        fence: Option<&Fence>,
    ) -> Result<(), NotBound> {
        for it in work {
            let own = it.permit.as_ref().and_then(|permit| permit.fence.as_ref());
            if it.is_shared && fence.is_some() && own.is_none() {
                return Err(not_given("its devices are another scheduler's to give".to_owned()));
            }
            let fence = own.or(fence);
            let given = Box::pin(give_one(client, it, pod));
            match fence {
                Some(fence) => fence.clone().around(given).await?,
                None => given.await?,
            }
        }
        let Some(claims) = &self.claims else { return Ok(()) };
        loop {
            self.changed.mark_unchanged();
            let is_known = |it: &ClaimWork| {
                let known = claims.get(&it.key).filter(|known| known.uid() == it.uid);
                known.is_none_or(|known| is_reserved_for(&known, pod.uid()))
            };
            if work.iter().all(is_known) {
                return Ok(());
            }
            // Looks from time to time also if nothing changes: a claim may be gone.
            let _ = tokio::time::timeout(Duration::from_secs(5), self.changed.changed()).await;
        }
    }
}

fn not_given(why: String) -> NotBound {
    NotBound::Devices(why)
}

async fn give_one(client: &Client, work: &ClaimWork, pod: &Tenanted<Pod>) -> Result<(), NotBound> {
    let key = &work.key;
    let claims = client.tenant(&key.tenant).namespaced::<ResourceClaim>(&key.namespace);
    let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(3));
    let mut n_attempts = 0;
    loop {
        n_attempts += 1;
        match give_once(&claims, work, pod).await {
            Err(NotBound::Api(error))
                if n_attempts < ATTEMPTS && (error.is_conflict() || error.is_ambiguous()) =>
            {
                tokio::time::sleep(pause.next_delay()).await;
            }
            other => return other,
        }
    }
}

async fn give_once(
    claims: &Api<ResourceClaim>,
    work: &ClaimWork,
    pod: &Tenanted<Pod>,
) -> Result<(), NotBound> {
    let shown = format!("{}/{}", work.key.namespace, work.key.name);
    let live = claims.get(&work.key.name).await?;
    if live.is_deleting() || live.uid() != work.uid {
        return Err(not_given(format!("claim {shown} got deleted in the meantime")));
    }
    let mut version = live.resource_version().to_owned();
    let mut status = json!({});
    match (&work.allocation, allocation_of(&live)) {
        (Some(wanted), Some(had)) if wanted.devices != had.devices => {
            return Err(not_given(format!(
                "claim {shown} got allocated elsewhere in the meantime"
            )));
        }
        (_, Some(_)) => (),
        (None, None) => {
            return Err(not_given(format!(
                "claim {shown} got deallocated elsewhere in the meantime"
            )));
        }
        (Some(allocation), None) => {
            version = protect(claims, &live, version).await?;
            let mut allocation = allocation.clone();
            allocation.allocation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
            status["allocation"] = json!(allocation);
        }
    }
    if !is_reserved_for(&live, pod.uid()) {
        let consumers = live.status.as_ref().and_then(|it| it.reserved_for.clone());
        let mut consumers = consumers.unwrap_or_default();
        consumers.push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
        });
        status["reservedFor"] = json!(consumers);
    }
    let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "status": status}));
    claims.patch_status(&work.key.name, &patch).await?;
    Ok(())
}

/// Has a claim stay as long as it has devices. Returns its version by then.
async fn protect(
    claims: &Api<ResourceClaim>,
    live: &Tenanted<ResourceClaim>,
    version: String,
) -> Result<String, Error> {
    let mut finalizers = live.metadata.finalizers.clone().unwrap_or_default();
    if finalizers.iter().any(|it| it == FINALIZER) {
        return Ok(version);
    }
    finalizers.push(FINALIZER.to_owned());
    let metadata = json!({"resourceVersion": version, "finalizers": finalizers});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let written = claims.patch(live.name(), &patch).await?;
    Ok(written.resource_version().to_owned())
}

/// Takes the devices of a claim that nobody uses, if it is as it was.
pub(super) async fn free(client: &Client, claim: &Tenanted<ResourceClaim>) -> Result<(), Error> {
    let claims = client.tenant(&claim.tenant).namespaced::<ResourceClaim>(claim.namespace());
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": claim.resource_version()},
        "status": {"allocation": null, "reservedFor": null, "devices": null},
    }));
    claims.patch_status(claim.name(), &patch).await.map(drop)
}

/// Takes a pod's name off claims: it was not bound.
pub(super) async fn give_back(
    client: &Client,
    claims: &[insula_client::ObjectKey],
    uid: &str,
) -> Result<(), Error> {
    for key in claims {
        let api = client.tenant(&key.tenant).namespaced::<ResourceClaim>(&key.namespace);
        let Some(live) = api.get_opt(&key.name).await? else { continue };
        if !is_reserved_for(&live, uid) {
            continue;
        }
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": live.uid()},
            "status": {"reservedFor": [{"$patch": "delete", "uid": uid}]},
        }));
        api.patch_status(&key.name, &patch).await?;
    }
    Ok(())
}
