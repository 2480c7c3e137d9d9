//! Which volume suits a claim.

use std::{collections::BTreeMap, sync::Arc};

use insula_api::{quantity::Quantity, selector::SelectorError};
use insula_client::Tenanted;
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::api::resource::Quantity as Written,
};

use crate::objects::{annotation, compile, selects};

/// The class of a claim or of a volume, as it was written before there were fields.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const STORAGE: &str = "storage";

pub(super) type Volume = Arc<Tenanted<PersistentVolume>>;

/// Of what is asked for, or of what there is, how much storage that is.
pub(crate) fn storage(amounts: Option<&BTreeMap<String, Written>>) -> Quantity {
    let text = amounts.and_then(|it| it.get(STORAGE)).map_or("", |it| it.0.as_str());
    Quantity::parse(text).unwrap_or(Quantity::ZERO)
}

/// How much storage a claim asks for.
pub(crate) fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|it| it.requests.as_ref()))
}

/// `None` where a claim leaves its class open; an empty one is none.
fn named_class(claim: &PersistentVolumeClaim) -> Option<&str> {
    let old = annotation(claim, OLD_CLASS);
    old.or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
}

/// Whether a claim leaves its class open.
pub(super) fn is_open(claim: &PersistentVolumeClaim) -> bool {
    named_class(claim).is_none()
}

pub(super) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    named_class(claim).unwrap_or_default()
}

pub(crate) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let old = annotation(volume, OLD_CLASS);
    old.or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref()).unwrap_or_default()
}

/// Whether a volume is meant for a claim: by its name, and by its uid if it says one.
pub(super) fn is_meant_for(
    volume: &PersistentVolume,
    claim: &Tenanted<PersistentVolumeClaim>,
) -> bool {
    let Some(named) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return false;
    };
    let uid = named.uid.as_deref().unwrap_or_default();
    named.name.as_deref() == Some(claim.name())
        && named.namespace.as_deref() == Some(claim.namespace())
        && (uid.is_empty() || uid == claim.uid())
}

/// Whether one is a block device, and the other has a file system.
pub(super) fn modes_differ(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    of(wanted) != of(volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
}

fn accesses(modes: Option<&Vec<String>>) -> &[String] {
    modes.map_or(&[], Vec::as_slice)
}

/// Whether a volume can be accessed in all ways that a claim asks for.
fn is_accessible(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = accesses(volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()));
    let wanted = accesses(claim.spec.as_ref().and_then(|spec| spec.access_modes.as_ref()));
    wanted.iter().all(|mode| offered.contains(mode))
}

fn attributes_differ(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|it| it.volume_attributes_class_name.as_deref());
    let has = volume.spec.as_ref().and_then(|it| it.volume_attributes_class_name.as_deref());
    wanted.unwrap_or_default() != has.unwrap_or_default()
}

fn capacity(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// Why a volume that a claim asks for by name does not suit it.
pub(super) fn misfit(
    volume: &Tenanted<PersistentVolume>,
    claim: &PersistentVolumeClaim,
) -> Option<String> {
    let why = if volume.is_deleting() {
        return Some(format!("the volume is marked for deletion \"{}\"", volume.name()));
    } else if capacity(volume) < requested(claim) {
        "requested PV is too small"
    } else if class_of_volume(volume) != class_of_claim(claim) {
        "storageClassName does not match"
    } else if attributes_differ(volume, claim) {
        "volumeAttributesClassName does not match"
    } else if modes_differ(volume, claim) {
        "incompatible volumeMode"
    } else if !is_accessible(volume, claim) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// The volume that suits a claim best: one that is meant for it, or else of those that can be
/// accessed in the fewest other ways the smallest.
///
/// Where binding waits for a pod, a scheduler chooses, and only what is meant for the claim suits.
pub(super) fn best(
    claim: &Tenanted<PersistentVolumeClaim>,
    volumes: &[Volume],
    waits: bool,
) -> Result<Option<Volume>, SelectorError> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(compile).transpose()?;
    let fits = |volume: &&Volume| {
        let is_free = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none());
        (is_free || is_meant_for(volume, claim))
            && requested(claim) <= capacity(volume)
            && !modes_differ(volume, claim)
            && !attributes_differ(volume, claim)
            && !volume.is_deleting()
            && is_accessible(volume, claim)
    };
    if let Some(meant) = volumes.iter().filter(fits).find(|volume| is_meant_for(volume, claim)) {
        return Ok(Some(meant.clone()));
    }
    if waits {
        return Ok(None);
    }
    let suits = |volume: &&Volume| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        phase == Some("Available")
            && selector.as_ref().is_none_or(|selector| selects(selector, &volume.object))
            && class_of_volume(volume) == class_of_claim(claim)
    };
    let found = volumes.iter().filter(fits).filter(suits).min_by_key(|volume| {
        let n_modes = accesses(volume.spec.as_ref().and_then(|it| it.access_modes.as_ref())).len();
        (n_modes, capacity(volume), volume.name().to_owned())
    });
    Ok(found.cloned())
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    fn tenanted<K: serde::de::DeserializeOwned>(value: Value) -> Tenanted<K> {
        let tenant = TenantName::parse("acme").unwrap();
        Tenanted { tenant, object: serde_json::from_value(value).unwrap() }
    }

    fn volume(name: &str, size: &str, modes: &[&str], more: Value) -> Volume {
        let mut it = json!({
            "metadata": {"name": name, "labels": {"disk": name}},
            "spec": {"capacity": {"storage": size}, "accessModes": modes, "storageClassName": "fast"},
            "status": {"phase": "Available"},
        });
        json_patch(&mut it, more);
        Arc::new(tenanted(it))
    }

    fn claim(more: Value) -> Tenanted<PersistentVolumeClaim> {
        let mut it = json!({
            "metadata": {"name": "c", "namespace": "ns", "uid": "u"},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "resources": {"requests": {"storage": "5Gi"}},
            },
        });
        json_patch(&mut it, more);
        tenanted(it)
    }

    /// RFC 7386, as far as the tests need it.
    fn json_patch(into: &mut Value, patch: Value) {
        match (into, patch) {
            (Value::Object(into), Value::Object(patch)) => {
                for (key, value) in patch {
                    json_patch(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }

    #[track_caller]
    fn check(wanted: Value, volumes: &[Volume], waits: bool, expected: Option<&str>) {
        let found = best(&claim(wanted), volumes, waits).unwrap();
        assert_eq!(found.as_ref().map(|it| it.name()), expected);
    }

    #[test]
    fn the_smallest_that_suits_is_chosen() {
        let once = ["ReadWriteOnce"];
        let volumes = [
            volume("small", "4Gi", &once, json!({})),
            volume("large", "50Gi", &once, json!({})),
            volume("fits", "6Gi", &once, json!({})),
            volume("many", "5Gi", &["ReadWriteOnce", "ReadOnlyMany"], json!({})),
            volume("slow", "5Gi", &once, json!({"spec": {"storageClassName": "slow"}})),
            volume("block", "5Gi", &once, json!({"spec": {"volumeMode": "Block"}})),
            volume("gold", "5Gi", &once, json!({"spec": {"volumeAttributesClassName": "gold"}})),
            volume("old", "5Gi", &once, json!({"status": {"phase": "Released"}})),
            volume(
                "others",
                "5Gi",
                &once,
                json!({"spec": {"claimRef": {"name": "x", "namespace": "ns"}}}),
            ),
            volume(
                "going",
                "5Gi",
                &once,
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ),
        ];
        check(json!({}), &volumes, false, Some("fits"));
        check(json!({}), &volumes, true, None);
        check(json!({"spec": {"accessModes": ["ReadOnlyMany"]}}), &volumes, false, Some("many"));
        check(json!({"spec": {"storageClassName": "slow"}}), &volumes, false, Some("slow"));
        check(json!({"spec": {"storageClassName": ""}}), &volumes, false, None);
        check(json!({"spec": {"volumeMode": "Block"}}), &volumes, false, Some("block"));
        check(
            json!({"spec": {"volumeAttributesClassName": "gold"}}),
            &volumes,
            false,
            Some("gold"),
        );
        let large = json!({"spec": {"selector": {"matchLabels": {"disk": "large"}}}});
        check(large, &volumes, false, Some("large"));
        let old = json!({"metadata": {"annotations": {OLD_CLASS: "slow"}}});
        check(old, &volumes, false, Some("slow"));
    }

    #[test]
    fn what_is_meant_for_a_claim_comes_first() {
        let meant = |uid: &str| {
            let named = json!({"name": "c", "namespace": "ns", "uid": uid});
            volume("meant", "100Gi", &["ReadWriteOnce"], json!({"spec": {"claimRef": named}}))
        };
        let free = volume("free", "5Gi", &["ReadWriteOnce"], json!({}));
        check(json!({}), &[free.clone(), meant("")], false, Some("meant"));
        check(json!({}), &[free.clone(), meant("u")], true, Some("meant"));
        check(json!({}), &[free, meant("another")], false, Some("free"));
    }

    #[test]
    fn a_misfit_says_why() {
        let why = |more: Value| {
            misfit(&volume("v", "5Gi", &["ReadWriteOnce"], more), &claim(json!({})).object)
        };
        assert_eq!(why(json!({})), None);
        let cases = [
            (json!({"spec": {"capacity": {"storage": "1Gi"}}}), "requested PV is too small"),
            (json!({"spec": {"storageClassName": "x"}}), "storageClassName does not match"),
            (json!({"spec": {"volumeMode": "Block"}}), "incompatible volumeMode"),
            (json!({"spec": {"accessModes": ["ReadOnlyMany"]}}), "incompatible accessMode"),
        ];
        for (more, expected) in cases {
            assert_eq!(why(more).as_deref(), Some(expected));
        }
    }
}
