//! Claims of devices: those of pods are made from templates, and nobody keeps one that he does
//! not need.
//!
//! What devices a claim gets is a scheduler's to decide. Here pods are given claims, and a claim
//! is let go of once no pod that may still run holds it.

use std::{collections::BTreeMap, sync::Arc};

use insula_client::{
    Api, Client, DeleteOptions, EventRecorder, EventType, ObjectKey, Patch, Tenanted, chain,
};
use k8s_openapi::{
    api::{
        core::v1::{Pod, PodResourceClaim},
        resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{
        annotation, controller_of, controller_reference, controller_uid, is_pod_finished, node_of,
    },
    queue::Queue,
    status::write_status_at,
};

/// On a claim made for a pod: which of the pod's claims it is.
const OF_POD: &str = "resource.kubernetes.io/pod-claim-name";
/// Keeps a claim while it is allocated.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// The longest base of a generated name with both names in it.
const MAX_BASE: usize = 57;

type Claim = Tenanted<ResourceClaim>;

/// Whether no container of a pod runs, or ever will.
fn is_over(pod: &Tenanted<Pod>) -> bool {
    is_pod_finished(pod) || pod.is_deleting() && node_of(pod).is_none()
}

/// The claims that a pod asks for.
pub(crate) fn asked_by(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().filter_map(|spec| spec.resource_claims.as_ref()).flatten()
}

/// How a pod's claim is called.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Called<'p> {
    /// It names one that is others'.
    ByName(&'p str),
    /// One was made for it.
    Made(&'p str),
    /// One is to be made from this template.
    ToBeMade(&'p str),
    /// None is needed.
    NotNeeded,
}

pub(crate) fn called<'p>(pod: &'p Pod, asked: &'p PodResourceClaim) -> Called<'p> {
    if let Some(name) = &asked.resource_claim_name {
        return Called::ByName(name);
    }
    let Some(template) = &asked.resource_claim_template_name else { return Called::NotNeeded };
    let made = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
    match made.into_iter().flatten().find(|it| it.name == asked.name) {
        None => Called::ToBeMade(template),
        Some(it) => it.resource_claim_name.as_deref().map_or(Called::NotNeeded, Called::Made),
    }
}

/// The base of the name of a claim: both names are to be seen in it, however long they are.
fn base_name(pod: &str, claim: &str) -> String {
    let whole = pod.len() + claim.len() + 2;
    if whole <= MAX_BASE {
        return format!("{pod}-{claim}-");
    }
    let part = |name: &str| name[..name.len() * MAX_BASE / whole].to_owned();
    format!("{}-{}", part(pod), part(claim))
}

/// Gives pods their claims. Keys are pods.
#[derive(Debug)]
pub(crate) struct ClaimsOfPods {
    client: Client,
    informers: Informers,
    events: EventRecorder,
}

impl ClaimsOfPods {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        Self { client, informers, events: events.named("resource_claim") }
    }

    fn claim(&self, pod: &Tenanted<Pod>, name: &str) -> Option<Arc<Claim>> {
        let key = ObjectKey::new(&pod.tenant, pod.namespace(), name);
        self.informers.resource_claims.informer.get(&key)
    }

    /// The name of a claim made for `pod`, if one has to be made, or was and is not known of.
    async fn provide(
        &self,
        pod: &Tenanted<Pod>,
        asked: &PodResourceClaim,
    ) -> Result<Option<String>, ReconcileError> {
        let template = match called(pod, asked) {
            Called::ByName(_) | Called::NotNeeded => return Ok(None),
            Called::Made(name) => {
                let claim = self.claim(pod, name);
                if claim.is_some_and(|it| controller_uid(&it.object) == Some(pod.uid())) {
                    return Ok(None);
                }
                asked.resource_claim_template_name.as_deref().unwrap_or_default()
            }
            Called::ToBeMade(template) => template,
        };
        let made = self.informers.resource_claims.managed_by(pod);
        if let Some(known) =
            made.iter().find(|it| annotation(&it.object, OF_POD) == Some(&asked.name))
        {
            return Ok(Some(known.name().to_owned()));
        }
        self.make(pod, asked, template).await.map(Some)
    }

    async fn make(
        &self,
        pod: &Tenanted<Pod>,
        asked: &PodResourceClaim,
        template: &str,
    ) -> Result<String, ReconcileError> {
        let templates = &self.informers.resource_claim_templates;
        let key = ObjectKey::new(&pod.tenant, pod.namespace(), template);
        let Some(it) = templates.get(&key) else {
            let why = format!("resourceclaimtemplate.resource.k8s.io \"{template}\" not found");
            let why = format!("resource claim template \"{template}\": {why}");
            return Err(ReconcileError::Incomplete(why));
        };
        let meta = it.spec.metadata.clone().unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.insert(OF_POD.to_owned(), asked.name.clone());
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(base_name(pod.name(), &asked.name)),
                annotations: Some(annotations),
                labels: meta.labels,
                owner_references: Some(vec![controller_reference(pod)]),
                ..ObjectMeta::default()
            },
            spec: it.spec.spec.clone(),
            status: None,
        };
        let api = self.client.tenant(&pod.tenant).namespaced::<ResourceClaim>(pod.namespace());
        Ok(api.create(&claim).await?.name().to_owned())
    }

    /// Writes into a pod's status which claims were made for it.
    async fn tell(
        &self,
        pod: &Tenanted<Pod>,
        made: &BTreeMap<&str, String>,
    ) -> Result<(), ReconcileError> {
        let statuses: Vec<_> = made
            .iter()
            .map(|(name, claim)| json!({"name": name, "resourceClaimName": claim}))
            .collect();
        let patch = json!({
            "metadata": {"uid": pod.uid()}, "status": {"resourceClaimStatuses": statuses},
        });
        let api = self.client.tenant(&pod.tenant).namespaced::<Pod>(pod.namespace());
        api.patch_status(pod.name(), &Patch::Strategic(patch)).await?;
        Ok(())
    }

    /// Reserves what is allocated for a pod that was given its node by hand: a scheduler reserves
    /// before it does.
    async fn reserve(&self, pod: &Tenanted<Pod>) -> Result<(), ReconcileError> {
        for asked in asked_by(pod) {
            let (Called::ByName(name) | Called::Made(name)) = called(pod, asked) else { continue };
            let Some(claim) = self.claim(pod, name) else { continue };
            let Some(status) = claim.status.as_ref().filter(|it| it.allocation.is_some()) else {
                continue;
            };
            let reserved = status.reserved_for.as_deref().unwrap_or_default();
            if claim.is_deleting() || reserved.iter().any(|it| it.uid == pod.uid()) {
                continue;
            }
            let mut with_pod = status.clone();
            with_pod.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
                api_group: None,
                resource: "pods".to_owned(),
                name: pod.name().to_owned(),
                uid: pod.uid().to_owned(),
            });
            let api = self.client.tenant(&pod.tenant);
            let api = api.namespaced::<ResourceClaim>(pod.namespace());
            write_status_at(&api, &claim, claim.status.as_ref(), &with_pod).await?;
        }
        Ok(())
    }
}

impl Controller for ClaimsOfPods {
    const NAME: &'static str = "resourceclaim-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.pods.informer.on_change(move |change| {
            if change.new.is_some_and(|pod| asked_by(pod).next().is_some()) {
                keys.add(change.key.clone());
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.resource_claims.informer.on_change(move |change| {
            it.informers.keys_of_pods_asking(change.key).into_iter().for_each(|pod| keys.add(pod));
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.resource_claim_templates.on_change(move |change| {
            if change.old.is_none() {
                let pods = it.informers.keys_of_pods_awaiting(change.key);
                pods.into_iter().for_each(|pod| keys.add(pod));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await
            && self.informers.resource_claims.informer.synced().await
            && self.informers.resource_claim_templates.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let pod = self.informers.pods.informer.get(key);
        let Some(pod) = pod.filter(|it| !it.is_deleting() && !is_pod_finished(it)) else {
            return Ok(Next::WhenChanged);
        };
        let mut made = BTreeMap::new();
        for asked in asked_by(&pod) {
            match self.provide(&pod, asked).await {
                Ok(Some(name)) => drop(made.insert(&*asked.name, name)),
                Ok(None) => (),
                Err(error) => {
                    let message = format!("PodResourceClaim {}: {}", asked.name, chain(&error));
                    let reason = "FailedResourceClaimCreation";
                    self.events.record(&pod, EventType::Warning, reason, message);
                    return Err(error);
                }
            }
        }
        if !made.is_empty() {
            self.tell(&pod, &made).await?;
        }
        if node_of(&pod).is_some() {
            self.reserve(&pod).await?;
        }
        Ok(Next::WhenChanged)
    }
}

/// Lets go of claims that no pod needs. Keys are claims.
#[derive(Debug)]
pub(crate) struct UnusedClaims {
    client: Client,
    informers: Informers,
}

impl UnusedClaims {
    pub(crate) fn new(client: Client, informers: Informers) -> Self {
        Self { client, informers }
    }

    /// Whether a pod for which a claim is reserved may still need it.
    async fn holds(
        &self,
        claim: &Claim,
        holder: &ResourceClaimConsumerReference,
    ) -> Result<bool, ReconcileError> {
        let is_pod =
            holder.api_group.as_deref().unwrap_or_default().is_empty() && holder.resource == "pods";
        if !is_pod {
            let why = format!("reserved for {} {}", holder.resource, holder.name);
            return Err(ReconcileError::Invalid { object: claim.key().to_string(), why });
        }
        let key = ObjectKey::new(&claim.tenant, claim.namespace(), &holder.name);
        if let Some(pod) = self.informers.pods.informer.get(&key) {
            return Ok(pod.uid() == holder.uid && !is_over(&pod));
        }
        // Perhaps it is not known here yet.
        let api = self.client.tenant(&claim.tenant).namespaced::<Pod>(claim.namespace());
        let pod = api.get_opt(&holder.name).await?;
        Ok(pod.is_some_and(|pod| pod.uid() == holder.uid))
    }

    async fn release(&self, claim: &Claim) -> Result<(), ReconcileError> {
        let api = self.client.tenant(&claim.tenant);
        let api = api.namespaced::<ResourceClaim>(claim.namespace());
        let none = ResourceClaimStatus::default();
        let status = claim.status.as_ref().unwrap_or(&none);
        let reserved = status.reserved_for.as_deref().unwrap_or_default();
        let mut kept = Vec::with_capacity(reserved.len());
        for holder in reserved {
            if self.holds(claim, holder).await? {
                kept.push(holder.clone());
            }
        }
        let finalizers = claim.metadata.finalizers.as_deref().unwrap_or_default();
        let is_protected = finalizers.iter().any(|it| it == FINALIZER);
        let (is_free, was_held) = (kept.is_empty(), kept.len() < reserved.len());
        let mut after = status.clone();
        after.reserved_for = (!is_free).then_some(kept);
        // The last who used it lets go of the devices, too; what nobody has used yet stays.
        let is_deallocated = is_protected && is_free && (was_held || claim.is_deleting());
        if is_deallocated {
            after.allocation = None;
        }
        let is_written = write_status_at(&api, claim, claim.status.as_ref(), &after).await?;
        if is_deallocated {
            // As it is now: a scheduler protects a claim before it allocates it again.
            let live = api.get_opt(claim.name()).await?.filter(|it| it.uid() == claim.uid());
            return match live {
                Some(live) => unprotect(&api, &live).await,
                None => Ok(()),
            };
        }
        if is_written {
            // The next pass sees what was written.
            return Ok(());
        }
        let owner = controller_of(&claim.object).filter(|it| it.kind == "Pod");
        let Some(owner) = owner.filter(|_| is_free && !claim.is_deleting()) else { return Ok(()) };
        // The garbage collector would remove it with its pod, which may stay for long.
        let key = ObjectKey::new(&claim.tenant, claim.namespace(), &owner.name);
        let pod = self.informers.pods.informer.get(&key);
        if pod.is_some_and(|pod| pod.uid() != owner.uid || is_over(&pod)) {
            let options = DeleteOptions::default().only_uid(claim.uid());
            match api.delete(claim.name(), &options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => {
                    return Err(error.into());
                }
                _ => (),
            }
        }
        Ok(())
    }
}

/// Takes the finalizer away from a claim that has no devices and that nobody holds.
async fn unprotect(api: &Api<ResourceClaim>, claim: &Claim) -> Result<(), ReconcileError> {
    let is_used = claim.status.as_ref().is_some_and(|it| {
        it.allocation.is_some() || it.reserved_for.as_ref().is_some_and(|it| !it.is_empty())
    });
    if is_used {
        return Ok(());
    }
    let finalizers = claim.metadata.finalizers.iter().flatten();
    let rest: Vec<&String> = finalizers.filter(|it| *it != FINALIZER).collect();
    let patch = json!({"metadata": {
        "uid": claim.uid(), "resourceVersion": claim.resource_version(), "finalizers": rest,
    }});
    api.patch(claim.name(), &Patch::Merge(patch)).await?;
    Ok(())
}

impl Controller for UnusedClaims {
    const NAME: &'static str = "resourceclaim-release-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.resource_claims.informer.on_change(move |change| {
            if change.new.is_some() {
                keys.add(change.key.clone());
            }
        });
        let keys = queue.clone();
        self.informers.pods.informer.on_change(move |change| {
            let Some(pod) = change.latest() else { return };
            if change.new.is_some_and(|it| !is_over(it)) {
                return;
            }
            for asked in asked_by(pod) {
                if let Called::ByName(name) | Called::Made(name) = called(pod, asked) {
                    keys.add(ObjectKey::new(&pod.tenant, pod.namespace(), name));
                }
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.pods.informer.synced().await
            && self.informers.resource_claims.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        if let Some(claim) = self.informers.resource_claims.informer.get(key) {
            self.release(&claim).await?;
        }
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, key, object};

    #[tokio::test]
    async fn pods_are_found_by_their_claims_and_templates() {
        let pod = |name: &str, asked: serde_json::Value, made: serde_json::Value| {
            let status = json!({"resourceClaimStatuses": made});
            let spec = json!({"containers": [], "resourceClaims": asked});
            object(name, json!({"spec": spec, "status": status}))
        };
        let shared = json!([
            {"name": "a", "resourceClaimName": "shared"}, {"name": "b", "resourceClaimName": "shared"},
        ]);
        let mut elsewhere = pod("elsewhere", shared.clone(), json!([]));
        elsewhere["metadata"]["namespace"] = json!("ns2");
        let of_template = json!([{"name": "a", "resourceClaimTemplateName": "shared"}]);
        let made = json!([{"name": "a", "resourceClaimName": "made-x"}]);
        let pods = vec![
            pod("named", shared, json!([])),
            pod("made", of_template.clone(), made),
            pod("waits", of_template.clone(), json!([])),
            pod("needs-none", of_template, json!([{"name": "a"}])),
            pod("plain", json!([]), json!([])),
            elsewhere,
        ];
        let it = Fake::serving(&[("pods", pods)]).await.informers.clone();
        assert_eq!(it.keys_of_pods_asking(&key("shared")), [key("named")]);
        assert_eq!(it.keys_of_pods_asking(&key("made-x")), [key("made")]);
        assert_eq!(it.keys_of_pods_awaiting(&key("shared")), [key("waits")]);
        assert!(it.keys_of_pods_awaiting(&key("made-x")).is_empty());
    }

    #[test]
    fn both_names_are_in_the_base() {
        assert_eq!(base_name("web-0", "gpu"), "web-0-gpu-");
        let long = base_name(&"p".repeat(90), &"c".repeat(30));
        assert!(long.len() <= MAX_BASE, "{long}");
        assert!(long.contains("ppp-ccc"), "{long}");
    }

    #[test]
    fn how_a_claim_is_called() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [], "resourceClaims": [
                {"name": "a", "resourceClaimName": "shared"},
                {"name": "b", "resourceClaimTemplateName": "t"},
                {"name": "c", "resourceClaimTemplateName": "t"},
                {"name": "d", "resourceClaimTemplateName": "t"},
            ]},
            "status": {"resourceClaimStatuses": [
                {"name": "b", "resourceClaimName": "p-b-x"}, {"name": "c"},
            ]},
        }))
        .unwrap();
        let all: Vec<_> = asked_by(&pod).map(|asked| called(&pod, asked)).collect();
        let expected = [
            Called::ByName("shared"),
            Called::Made("p-b-x"),
            Called::NotNeeded,
            Called::ToBeMade("t"),
        ];
        assert_eq!(all, expected);
    }
}
