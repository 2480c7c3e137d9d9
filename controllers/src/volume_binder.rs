//! Brings claims and volumes together.
//!
//! [`matching`] knows which volume suits a claim, [`plan`] what the next step is; this file takes
//! it. A binding is four writes: the volume names the claim, then says that it is bound; the claim
//! names the volume, then says so. Each is guarded by the version that was seen, and whoever is
//! interrupted between them goes on from what is written: the volume's side decides.
//!
//! Nobody here makes or removes storage. External provisioners do, told by annotations and phases.

pub(crate) mod matching;
mod plan;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use insula_api::names::TenantName;
use insula_client::{Change, Client, EventRecorder, Object, ObjectKey, Patch, Tenanted};
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
    PersistentVolumeStatus, Pod,
};
use serde_json::{Map, Value, json};

pub(crate) use self::plan::BIND_COMPLETED;
use self::{
    matching::{class_of_claim, is_meant_for},
    plan::{
        BOUND_BY_CONTROLLER, ClaimStep, Known, News, Reclaim, VolumeStep, plan_claim, plan_volume,
    },
};
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{annotation, is_pod_finished, node_of},
    queue::Queue,
    status::write_status_at,
};

/// For which provisioner a claim waits; and as it was written before.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const OLD_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// How often is said for what a claim waits: as often as events of one object are let through.
const REMIND: Duration = Duration::from_secs(300);

type Claim = Tenanted<PersistentVolumeClaim>;
type Volume = Tenanted<PersistentVolume>;

/// See the module. Keys without a namespace are volumes, others claims.
#[derive(Debug)]
pub(crate) struct VolumeBinder {
    client: Client,
    informers: Informers,
    events: EventRecorder,
}

impl VolumeBinder {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        Self { client, informers, events: events.named("persistentvolume-controller") }
    }

    fn tell_claim(&self, claim: &Claim, it: &News) {
        self.events.record(claim, it.type_, it.reason, it.message.clone());
    }

    fn tell_volume(&self, volume: &Volume, it: &News) {
        self.events.record(volume, it.type_, it.reason, it.message.clone());
    }

    /// Asks for reconciles of the claims that have found no volume yet, and may now.
    fn wake_unbound(&self, tenant: &TenantName, queue: &Queue<ObjectKey>) {
        self.informers.unbound_claims(tenant).iter().for_each(|claim| queue.add(claim.key()));
    }

    fn volume_changed(&self, change: &Change<'_, PersistentVolume>, queue: &Queue<ObjectKey>) {
        queue.add(change.key.clone());
        for volume in [change.old, change.new].into_iter().flatten() {
            let named = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            if let Some(ObjectReference { name: Some(name), namespace: Some(namespace), .. }) =
                named
            {
                queue.add(ObjectKey::new(&volume.tenant, namespace, name));
            }
        }
        // One that is free may be what others wait for.
        let is_free = |it: &Arc<Volume>| {
            it.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Available")
                && it.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
        };
        if change.new.is_some_and(is_free) {
            self.wake_unbound(&change.key.tenant, queue);
        }
    }

    /// The names of pods that use a claim and have no node yet.
    fn waiting_pods(&self, claim: &Claim) -> Vec<String> {
        let pods = self.informers.pods_with(&claim.key());
        let waits = |pod: &&Arc<Tenanted<Pod>>| node_of(pod).is_none() && !is_pod_finished(pod);
        pods.iter().filter(waits).map(|pod| pod.name().to_owned()).collect()
    }

    async fn patch_claim(&self, claim: &Claim, change: Value) -> Result<Claim, ReconcileError> {
        let api = self.client.tenant(&claim.tenant).namespaced(claim.namespace());
        Ok(api.patch(claim.name(), &Patch::Merge(guarded(claim, change))).await?)
    }

    async fn patch_volume(&self, volume: &Volume, change: Value) -> Result<Volume, ReconcileError> {
        let api = self.client.tenant(&volume.tenant).api();
        Ok(api.patch(volume.name(), &Patch::Merge(guarded(volume, change))).await?)
    }

    /// Sets a volume's phase; returns whether it was another one.
    async fn phase_of_volume(
        &self,
        volume: &Volume,
        phase: &str,
        message: &str,
    ) -> Result<bool, ReconcileError> {
        let old = volume.status.as_ref();
        if old.and_then(|it| it.phase.as_deref()) == Some(phase) {
            return Ok(false);
        }
        let status = PersistentVolumeStatus {
            phase: Some(phase.to_owned()),
            message: Some(message.to_owned()).filter(|it| !it.is_empty()),
            ..old.cloned().unwrap_or_default()
        };
        let api = self.client.tenant(&volume.tenant).api::<PersistentVolume>();
        Ok(write_status_at(&api, volume, old, &status).await?)
    }

    /// Sets a claim's phase, and what it has of `volume`; returns whether anything was to be done.
    async fn phase_of_claim(
        &self,
        claim: &Claim,
        phase: &str,
        volume: Option<&Volume>,
    ) -> Result<bool, ReconcileError> {
        let old = claim.status.as_ref();
        let status = claim_status(old, phase, volume);
        let api = self.client.tenant(&claim.tenant);
        let api = api.namespaced::<PersistentVolumeClaim>(claim.namespace());
        Ok(write_status_at(&api, claim, old, &status).await?)
    }

    async fn bind(&self, claim: &Claim, volume: &Volume) -> Result<(), ReconcileError> {
        let mut volume = volume.clone();
        if let Some(change) = naming_claim(&volume, claim) {
            volume = self.patch_volume(&volume, change).await?;
        }
        self.phase_of_volume(&volume, "Bound", "").await?;
        let mut claim = claim.clone();
        if let Some(change) = naming_volume(&claim, &volume) {
            claim = self.patch_claim(&claim, change).await?;
        }
        self.phase_of_claim(&claim, "Bound", Some(&volume)).await?;
        Ok(())
    }

    /// The volumes that a claim may have to do with, by name: the one it names, those that name it,
    /// and, if it has none, those of its class that are free.
    fn volumes_for(&self, claim: &Claim) -> Vec<Arc<Volume>> {
        let mut volumes = self.informers.volumes_naming(&claim.key());
        let named = claim.spec.as_ref().and_then(|it| it.volume_name.as_deref());
        match named.filter(|it| !it.is_empty()) {
            Some(name) => {
                volumes.extend(self.informers.volumes.get(&ObjectKey::new(
                    &claim.tenant,
                    "",
                    name,
                )));
            }
            None if annotation(&claim.object, BIND_COMPLETED).is_some() => (),
            None => {
                let class = class_of_claim(&claim.object);
                volumes.extend(self.informers.free_volumes(&claim.tenant, class));
            }
        }
        volumes.sort_unstable_by(|one, other| one.name().cmp(other.name()));
        volumes.dedup_by(|one, other| one.name() == other.name());
        volumes
    }

    fn plan(&self, claim: &Claim) -> ClaimStep {
        let volumes = self.volumes_for(claim);
        let classes = self.informers.classes_of(&claim.tenant);
        let known = Known { classes: &classes, waiting_pods: &|| self.waiting_pods(claim) };
        plan_claim(claim, &volumes, &known)
    }

    async fn pass_claim(&self, claim: &Claim) -> Result<Next, ReconcileError> {
        match self.plan(claim) {
            ClaimStep::Bind(volume) => {
                self.bind(claim, &volume).await?;
                Ok(Next::WhenChanged)
            }
            ClaimStep::SetClass(name) => {
                self.patch_claim(claim, json!({"spec": {"storageClassName": name}})).await?;
                Ok(Next::WhenChanged)
            }
            ClaimStep::Provision(by, told) => {
                let is_set = |key| annotation(&claim.object, key) == Some(by.as_str());
                if !is_set(PROVISIONER) {
                    let annotations = json!({PROVISIONER: by, OLD_PROVISIONER: by});
                    let change = json!({"metadata": {"annotations": annotations}});
                    self.patch_claim(claim, change).await?;
                }
                self.tell_claim(claim, &told);
                Ok(Next::After(REMIND))
            }
            ClaimStep::Pend(told) => {
                if let Some(told) = &told {
                    self.tell_claim(claim, told);
                }
                self.phase_of_claim(claim, "Pending", None).await?;
                Ok(told.map_or(Next::WhenChanged, |_| Next::After(REMIND)))
            }
            ClaimStep::Lose(told) => {
                // The local copy may be older than the claim.
                let name = claim.spec.as_ref().and_then(|it| it.volume_name.as_deref());
                if let Some(name) = name.filter(|it| !it.is_empty() && told.reason == "ClaimLost") {
                    let api = self.client.tenant(&claim.tenant).api::<PersistentVolume>();
                    if api.get_opt(name).await?.is_some() {
                        let why = format!("volume {name} is not known here yet");
                        return Err(ReconcileError::Incomplete(why));
                    }
                }
                if self.phase_of_claim(claim, "Lost", None).await? {
                    self.tell_claim(claim, &told);
                }
                Ok(Next::WhenChanged)
            }
        }
    }

    /// The claim that a volume names, as it is now: what it decides is lost.
    async fn claim_of(&self, volume: &Volume) -> Result<Option<Arc<Claim>>, ReconcileError> {
        let named = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let Some(named) = named else { return Ok(None) };
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        let (namespace, name) = (text(&named.namespace), text(&named.name));
        let known = self.informers.claims.get(&ObjectKey::new(&volume.tenant, &namespace, &name));
        if known.as_ref().is_some_and(|it| Some(it.uid()) == named.uid.as_deref()) {
            return Ok(known);
        }
        let api = self.client.tenant(&volume.tenant);
        let api = api.namespaced::<PersistentVolumeClaim>(&namespace);
        Ok(api.get_opt(&name).await?.map(Arc::new))
    }

    async fn pass_volume(&self, volume: &Volume) -> Result<Next, ReconcileError> {
        let claim = self.claim_of(volume).await?;
        let phase = volume.status.as_ref().and_then(|it| it.phase.as_deref());
        match plan_volume(&volume.object, claim.as_deref()) {
            VolumeStep::Phase(phase) => {
                self.phase_of_volume(volume, phase, "").await?;
            }
            // What led here leads there, too.
            VolumeStep::LeaveToClaim => (),
            VolumeStep::Mismatch(of_volume, of_claim) => {
                self.tell_volume(volume, &of_volume);
                claim.iter().for_each(|claim| self.tell_claim(claim, &of_claim));
            }
            VolumeStep::Unbind => {
                let volume = self.patch_volume(volume, unbinding(volume)).await?;
                self.phase_of_volume(&volume, "Available", "").await?;
            }
            // What failed stays failed, for somebody to see.
            VolumeStep::Reclaim(Reclaim::Release) => {
                if !matches!(phase, Some("Released" | "Failed")) {
                    self.phase_of_volume(volume, "Released", "").await?;
                }
            }
            VolumeStep::Reclaim(Reclaim::Fail(why)) => {
                if !volume.is_deleting()
                    && self.phase_of_volume(volume, "Failed", &why.message).await?
                {
                    self.tell_volume(volume, &why);
                }
            }
        }
        Ok(Next::WhenChanged)
    }
}

/// A merge patch that counts only for what was seen.
fn guarded<K: Object>(seen: &Tenanted<K>, mut change: Value) -> Value {
    change["metadata"]["uid"] = seen.uid().into();
    change["metadata"]["resourceVersion"] = seen.resource_version().into();
    change
}

/// What makes a volume name a claim; `None` if it does.
fn naming_claim(volume: &Volume, claim: &Claim) -> Option<Value> {
    let mut change = Map::new();
    let named = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let is_meant = is_meant_for(volume, claim);
    if !is_meant || named.and_then(|it| it.uid.as_deref()) != Some(claim.uid()) {
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: Some(claim.namespace().to_owned()),
            name: Some(claim.name().to_owned()),
            uid: Some(claim.uid().to_owned()),
            resource_version: Some(claim.resource_version().to_owned()),
            ..ObjectReference::default()
        };
        change.insert("spec".to_owned(), json!({"claimRef": reference}));
    }
    if !is_meant && annotation(&volume.object, BOUND_BY_CONTROLLER).is_none() {
        let annotations = json!({"annotations": {BOUND_BY_CONTROLLER: "yes"}});
        change.insert("metadata".to_owned(), annotations);
    }
    (!change.is_empty()).then_some(Value::Object(change))
}

/// What makes a claim name a volume; `None` if it does.
fn naming_volume(claim: &Claim, volume: &Volume) -> Option<Value> {
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    let mut annotations = Map::new();
    let mut change = json!({});
    if named != Some(volume.name()) {
        change["spec"] = json!({"volumeName": volume.name()});
        annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".into());
    }
    annotations.insert(BIND_COMPLETED.to_owned(), "yes".into());
    annotations.retain(|key, _| annotation(&claim.object, key).is_none());
    if annotations.is_empty() && change.get("spec").is_none() {
        return None;
    }
    change["metadata"] = json!({"annotations": annotations});
    Some(change)
}

/// What makes a volume free of its claim. Who named the claim by hand keeps the name.
fn unbinding(volume: &Volume) -> Value {
    match annotation(&volume.object, BOUND_BY_CONTROLLER) {
        Some(_) => json!({
            "metadata": {"annotations": {BOUND_BY_CONTROLLER: null}},
            "spec": {"claimRef": null},
        }),
        None => json!({"spec": {"claimRef": {"uid": null}}}),
    }
}

/// A claim's status in a phase, with what it has of its volume.
fn claim_status(
    old: Option<&PersistentVolumeClaimStatus>,
    phase: &str,
    volume: Option<&Volume>,
) -> PersistentVolumeClaimStatus {
    let mut status = old.cloned().unwrap_or_default();
    let is_new = status.phase.as_deref() != Some(phase);
    status.phase = Some(phase.to_owned());
    match volume.and_then(|it| it.spec.as_ref()) {
        None => {
            status.access_modes = None;
            status.capacity = None;
        }
        Some(spec) => {
            status.access_modes.clone_from(&spec.access_modes);
            // Of a bound one it is the size of what is on the volume, which may lag behind it.
            if is_new {
                status.capacity.clone_from(&spec.capacity);
                let class = spec.volume_attributes_class_name.as_ref();
                status.current_volume_attributes_class_name =
                    class.filter(|it| !it.is_empty()).cloned();
            }
        }
    }
    status
}

impl Controller for VolumeBinder {
    const NAME: &'static str = "persistentvolume-binder-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.claims.on_change(move |change| {
            keys.add(change.key.clone());
            // The volumes that name it, whether it names them or not.
            for volume in it.informers.volumes_naming(change.key) {
                keys.add(volume.key());
            }
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.volumes.on_change(move |change| it.volume_changed(change, &keys));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.storage_classes.on_change(move |change| {
            it.wake_unbound(&change.key.tenant, &keys);
        });
    }

    async fn synced(&self) -> bool {
        self.informers.claims.synced().await
            && self.informers.volumes.synced().await
            && self.informers.storage_classes.synced().await
            && self.informers.pods.informer.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        if !key.namespace.is_empty() {
            let Some(claim) = self.informers.claims.get(key) else { return Ok(Next::WhenChanged) };
            return self.pass_claim(&claim).await;
        }
        let Some(volume) = self.informers.volumes.get(key) else { return Ok(Next::WhenChanged) };
        self.pass_volume(&volume).await
    }
}
