//! Volumes, claims and what they are made by.

use insula_api::object;
use serde_json::{Value, json};

use super::{
    at::{At, Check},
    formats::Format,
    rule::quantity,
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.core.v1.PersistentVolumeClaimSpec", claim),
    ("api.core.v1.PersistentVolumeSpec", volume),
    ("api.storage.v1.StorageClass", |it| {
        let provisioner = it.text("provisioner").to_lowercase();
        if !provisioner.is_empty() {
            for why in Format::Qualified.check(&provisioner) {
                it.invalid("provisioner", &provisioner.as_str().into(), &why);
            }
        }
        let parameters = it.get("parameters").and_then(Value::as_object);
        if parameters.is_some_and(|it| it.contains_key("")) {
            it.invalid("parameters", &"".into(), "field can not be empty.");
        }
    }),
    ("api.storage.v1.VolumeAttachmentSource", |it| {
        let fields = ["persistentVolumeName", "inlineVolumeSpec"];
        match fields.iter().filter(|field| it.has(field)).count() {
            0 => it.required(
                "",
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
            1 => (),
            _ => it.forbidden(
                "",
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
        }
    }),
];

/// Ways to keep a volume. The order is that of upstream's checks.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

fn modes(it: &mut At<'_>) {
    let modes = it.list("accessModes");
    if 1 < modes.len() && modes.iter().any(|it| it == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        it.forbidden("accessModes", why);
    }
}

fn volume(it: &mut At<'_>) {
    modes(it);
    let capacity = it.get("capacity").cloned().unwrap_or_default();
    match capacity.as_object().filter(|it| !it.is_empty()) {
        None => it.unsupported("capacity", &Value::Null, &["storage"]),
        Some(amounts) => match amounts.get("storage") {
            Some(size) if amounts.len() == 1 => {
                if quantity(size).is_some_and(|it| it.is_zero() || it.is_negative()) {
                    it.invalid("capacity[storage]", size, "must be greater than zero");
                }
            }
            _ => it.unsupported("capacity", &capacity, &["storage"]),
        },
    }
    it.one_of(SOURCES, "must specify a volume type", "may not specify more than 1 volume type");
    let path = it.get("hostPath").and_then(|it| it.get("path")).cloned();
    if path.is_some_and(|it| it == "/") && it.text("persistentVolumeReclaimPolicy") == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        it.forbidden("persistentVolumeReclaimPolicy", why);
    }
    if it.has("local") && !it.has("nodeAffinity") {
        it.required("nodeAffinity", "Local volume requires node affinity");
    }
}

fn claim(it: &mut At<'_>) {
    modes(it);
    let storage = it.get("resources").and_then(|it| it.pointer("/requests/storage")).cloned();
    match storage {
        None => it.required("resources[storage]", ""),
        Some(size) if quantity(&size).is_some_and(|it| it.is_zero() || it.is_negative()) => {
            it.invalid("resources[storage]", &size, "must be greater than zero");
        }
        Some(_) => (),
    }
    for field in ["dataSource", "dataSourceRef"] {
        let Some(source) = it.get(field).cloned() else { continue };
        let text = |field: &str| source.get(field).and_then(Value::as_str).unwrap_or_default();
        for part in ["name", "kind"] {
            if text(part).is_empty() {
                it.required(&format!("{field}.{part}"), "");
            }
        }
        let (group, kind) = (text("apiGroup"), text("kind"));
        if group.is_empty() && kind != "PersistentVolumeClaim" && !kind.is_empty() {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            it.invalid(field, &kind.into(), why);
        }
        for why in Format::Subdomain.check(group).into_iter().filter(|_| !group.is_empty()) {
            it.invalid(&format!("{field}.apiGroup"), &group.into(), &why);
        }
    }
    if let (Some(source), Some(reference)) = (it.get("dataSource"), it.get("dataSourceRef")) {
        let differs =
            |field: &&str| object::text(source, &[field]) != object::text(reference, &[field]);
        // Upstream shows a place here, of which its encoder shows nothing.
        if ["apiGroup", "kind", "name"].iter().any(differs) {
            let error = FieldError::invalid(it.at(""), &json!({}), "must match dataSourceRef");
            it.errors.push(error);
        }
    }
}
