//! What the next step is for a claim, and for a volume.

use std::sync::Arc;

use insula_client::{EventType, Tenanted};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};

use super::matching::{Volume, best, class_of_claim, is_meant_for, is_open, misfit, modes_differ};
use crate::objects::annotation;

/// On a claim that was bound once, whatever became of its volume.
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume that did not ask for the other.
pub(super) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it for its claim.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: where its first pod is to run, says the scheduler.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const DEFAULTS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
/// What only upstream's own plugins could provide.
const IN_TREE: &str = "kubernetes.io/";

/// Something to tell about a claim or a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub(super) type_: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn news(type_: EventType, reason: &'static str, message: impl Into<String>) -> News {
    News { type_, reason, message: message.into() }
}

/// What is to be done for a claim.
#[derive(Debug)]
pub(super) enum ClaimStep {
    Bind(Volume),
    /// Nothing can be done now.
    Pend(Option<News>),
    /// It left its class open, and there is a default one.
    SetClass(String),
    /// A provisioner of this name makes a volume.
    Provision(String, News),
    /// Its volume is gone for good.
    Lose(News),
}

/// What is known beside claims and volumes.
pub(super) struct Known<'a> {
    pub(super) classes: &'a [Arc<Tenanted<StorageClass>>],
    /// Pods that use the claim and have no node yet.
    pub(super) waiting_pods: &'a dyn Fn() -> Vec<String>,
}

/// The class by its name.
fn class_named<'k>(known: &Known<'k>, name: &str) -> Option<&'k Tenanted<StorageClass>> {
    known.classes.iter().map(|it| &**it).find(|it| it.name() == name)
}

/// Of several default classes the tenant's own count before the platform's, then the one that was
/// created last, then the first by name.
fn default_class<'k>(known: &Known<'k>) -> Option<&'k Tenanted<StorageClass>> {
    let is_default = |it: &&Tenanted<StorageClass>| {
        DEFAULTS.iter().any(|key| annotation(&it.object, key) == Some("true"))
    };
    let created =
        |it: &Tenanted<StorageClass>| it.metadata.creation_timestamp.as_ref().map(|time| time.0);
    known.classes.iter().map(|it| &**it).filter(is_default).min_by(|one, two| {
        let is_platforms = |it: &Tenanted<StorageClass>| it.tenant.is_system();
        is_platforms(one)
            .cmp(&is_platforms(two))
            .then_with(|| created(two).cmp(&created(one)))
            .then_with(|| one.name().cmp(two.name()))
    })
}

/// Decides about a claim. `volumes` are those that it may have to do with, by name.
pub(super) fn plan_claim(
    claim: &Tenanted<PersistentVolumeClaim>,
    volumes: &[Volume],
    known: &Known<'_>,
) -> ClaimStep {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    let wanted = wanted.filter(|it| !it.is_empty());
    let named = wanted.and_then(|name| volumes.iter().find(|it| it.name() == name));
    match (annotation(&claim.object, BIND_COMPLETED).is_some(), wanted) {
        (true, _) => keep(claim, wanted, named),
        (false, Some(_)) => match named {
            Some(volume) => bind_named(claim, volume),
            None => ClaimStep::Pend(None),
        },
        (false, None) => find(claim, volumes, known),
    }
}

/// A claim that was bound once.
fn keep(
    claim: &Tenanted<PersistentVolumeClaim>,
    wanted: Option<&str>,
    named: Option<&Volume>,
) -> ClaimStep {
    let lost = |reason, message: &str| ClaimStep::Lose(news(EventType::Warning, reason, message));
    let Some(volume) = named else {
        return match wanted {
            None => lost(
                "ClaimLost",
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            ),
            Some(_) => lost(
                "ClaimLost",
                "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
            ),
        };
    };
    match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
        None => ClaimStep::Bind(volume.clone()),
        Some(named) if named.uid.as_deref() == Some(claim.uid()) => ClaimStep::Bind(volume.clone()),
        Some(_) => lost(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        ),
    }
}

/// A claim that asks for a volume by name, which is there.
fn bind_named(claim: &Tenanted<PersistentVolumeClaim>, volume: &Volume) -> ClaimStep {
    if volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_none()) {
        return match misfit(volume, claim) {
            None => ClaimStep::Bind(volume.clone()),
            Some(why) => {
                let name = volume.name();
                let message = format!("Cannot bind to requested volume \"{name}\": {why}");
                ClaimStep::Pend(Some(news(EventType::Warning, "VolumeMismatch", message)))
            }
        };
    }
    if is_meant_for(volume, claim) {
        return ClaimStep::Bind(volume.clone());
    }
    if annotation(&claim.object, BOUND_BY_CONTROLLER).is_none() {
        return ClaimStep::Pend(None);
    }
    let message = format!("volume \"{}\" already bound to a different claim.", volume.name());
    ClaimStep::Pend(Some(news(EventType::Warning, "FailedBinding", message)))
}

/// A claim that takes any volume that suits it.
fn find(
    claim: &Tenanted<PersistentVolumeClaim>,
    volumes: &[Volume],
    known: &Known<'_>,
) -> ClaimStep {
    let name = class_of_claim(claim);
    let class = class_named(known, name);
    let waits =
        class.is_some_and(|it| it.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    match best(claim, volumes, waits) {
        Ok(Some(volume)) => return ClaimStep::Bind(volume),
        Ok(None) => (),
        Err(error) => {
            let message = format!("invalid selector: {error}");
            return ClaimStep::Pend(Some(news(EventType::Warning, "FailedBinding", message)));
        }
    }
    if is_open(claim)
        && let Some(class) = default_class(known)
    {
        return ClaimStep::SetClass(class.name().to_owned());
    }
    if waits && annotation(&claim.object, SELECTED_NODE).is_none() {
        return ClaimStep::Pend(Some(waiting(&(known.waiting_pods)())));
    }
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return ClaimStep::Pend(Some(news(EventType::Normal, "FailedBinding", message)));
    }
    let failed = |message: String| {
        ClaimStep::Pend(Some(news(EventType::Warning, "ProvisioningFailed", message)))
    };
    match class {
        None => failed(format!("storageclass.storage.k8s.io \"{name}\" not found")),
        Some(class) if class.provisioner.starts_with(IN_TREE) => {
            failed(format!("no volume plugin matched name: {}", class.provisioner))
        }
        Some(class) => {
            let by = &class.provisioner;
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{by}' or \
                 manually by the system administrator. If volume creation is delayed, please \
                 verify that the provisioner is running and correctly registered."
            );
            let told = news(EventType::Normal, "ExternalProvisioning", message);
            ClaimStep::Provision(by.clone(), told)
        }
    }
}

/// For what a claim waits that is bound for its first pod.
fn waiting(pods: &[String]) -> News {
    let (reason, message) = match pods {
        [] => (
            "WaitForFirstConsumer",
            "waiting for first consumer to be created before binding".to_owned(),
        ),
        [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
        all => {
            ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", all.join(",")))
        }
    };
    news(EventType::Normal, reason, message)
}

/// What is to be done for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VolumeStep {
    /// Its phase is this.
    Phase(&'static str),
    /// The claim's own pass goes on.
    LeaveToClaim,
    /// It and its claim can never go together; says so of the volume, and of the claim.
    Mismatch(News, News),
    /// Its claim is bound elsewhere.
    Unbind,
    /// Its claim is gone: what its policy says is to be done.
    Reclaim(Reclaim),
}

/// What becomes of a volume whose claim is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reclaim {
    /// It stays, or who made it removes it.
    Release,
    /// Nobody can do what its policy says.
    Fail(News),
}

/// Decides about a volume. `claim` is what lies under the name that it says, if anything.
pub(super) fn plan_volume(
    volume: &PersistentVolume,
    claim: Option<&Tenanted<PersistentVolumeClaim>>,
) -> VolumeStep {
    let spec = volume.spec.as_ref();
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let named = spec.and_then(|spec| spec.claim_ref.as_ref());
    let uid = named.and_then(|it| it.uid.as_deref()).unwrap_or_default();
    if uid.is_empty() {
        return VolumeStep::Phase("Available");
    }
    let Some(claim) = claim.filter(|it| it.uid() == uid) else {
        return VolumeStep::Reclaim(reclaim(volume));
    };
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    match wanted.unwrap_or_default() {
        "" if modes_differ(volume, claim) => {
            let mismatch = |message| news(EventType::Warning, "VolumeMismatch", message);
            VolumeStep::Mismatch(
                mismatch(format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{}\" due \
                     to incompatible volumeMode.",
                    claim.name()
                )),
                mismatch(format!(
                    "Cannot bind PersistentVolume \"{name}\" to requested PersistentVolumeClaim \
                     due to incompatible volumeMode."
                )),
            )
        }
        "" => VolumeStep::LeaveToClaim,
        wanted if wanted == name => VolumeStep::Phase("Bound"),
        _ => {
            // Made for a claim that found another one first: nobody needs it.
            let policy = spec.and_then(|it| it.persistent_volume_reclaim_policy.as_deref());
            match annotation(volume, PROVISIONED_BY).is_some() && policy == Some("Delete") {
                true => VolumeStep::Reclaim(reclaim(volume)),
                false => VolumeStep::Unbind,
            }
        }
    }
}

fn reclaim(volume: &PersistentVolume) -> Reclaim {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let policy = volume.spec.as_ref().and_then(|it| it.persistent_volume_reclaim_policy.as_deref());
    let fail = |reason, message: String| Reclaim::Fail(news(EventType::Warning, reason, message));
    match policy {
        None | Some("Retain") => Reclaim::Release,
        Some("Delete") => match annotation(volume, PROVISIONED_BY) {
            Some(by) if !by.is_empty() && !by.starts_with(IN_TREE) => Reclaim::Release,
            _ => fail(
                "VolumeFailedDelete",
                format!(
                    "error getting deleter volume plugin for volume \"{name}\": no deletable \
                     volume plugin matched"
                ),
            ),
        },
        Some("Recycle") => {
            let why = "No recycler plugin found for the volume!";
            fail("VolumeFailedRecycle", why.to_owned())
        }
        Some(_) => fail(
            "VolumeUnknownReclaimPolicy",
            "Volume has unrecognized PersistentVolumeReclaimPolicy".to_owned(),
        ),
    }
}
