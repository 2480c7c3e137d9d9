//! Containers: what is in each of them.

use insula_custom::path::Path;
use serde_json::Value;

use super::{
    at::{At, Check},
    formats::Format,
    pods::{list, text},
    rule::{self, quantity},
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.core.v1.AppArmorProfile", |it| profile(it, "AppArmor")),
    ("api.core.v1.Container", resize_policies),
    ("api.core.v1.ContainerPort", port),
    ("api.core.v1.EnvFromSource", env_from),
    ("api.core.v1.EnvVar", env),
    ("api.core.v1.EnvVarSource", env_source),
    ("api.core.v1.EphemeralContainer", ephemeral_container),
    ("api.core.v1.LifecycleHandler", handler),
    ("api.core.v1.ObjectFieldSelector", field_ref),
    ("api.core.v1.Probe", handler),
    ("api.core.v1.ResourceFieldSelector", field_of_resources),
    ("api.core.v1.ResourceRequirements", resources),
    ("api.node.v1.RuntimeClass", |it| {
        if let Some(amounts) = it.it.pointer("/overhead/podFixed") {
            overhead(it, amounts);
        }
    }),
    ("api.core.v1.SeccompProfile", |it| profile(it, "seccomp")),
    ("api.core.v1.SecurityContext", security),
    ("api.core.v1.VolumeMount", mount),
];

fn ephemeral_container(it: &mut At<'_>) {
    for field in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "ports",
        "resizePolicy",
        "restartPolicy",
    ] {
        let is_set = match it.get(field) {
            Some(Value::Array(list)) => !list.is_empty(),
            other => other.is_some(),
        };
        if is_set {
            it.forbidden(field, "cannot be set for an Ephemeral Container");
        }
    }
    let is_sized = |it: &Value| it.as_object().is_some_and(|it| !it.is_empty());
    if it.get("resources").is_some_and(is_sized) {
        it.forbidden("resources", "cannot be set for an Ephemeral Container");
    }
    for (index, mount) in it.list("volumeMounts").to_vec().iter().enumerate() {
        for field in ["subPath", "subPathExpr"] {
            if !text(mount, field).is_empty() {
                let why = "cannot be set for an Ephemeral Container";
                it.forbidden(&format!("volumeMounts[{index}].{field}"), why);
            }
        }
    }
}

fn port(it: &mut At<'_>) {
    if it.number("containerPort") == Some(0) {
        it.take_back("containerPort", None);
        it.required("containerPort", "");
    }
}

fn resize_policies(it: &mut At<'_>) {
    let found = it.list("resizePolicy").to_vec();
    for (index, policy) in found.iter().enumerate() {
        let resource = text(policy, "resourceName");
        if found[..index].iter().any(|it| text(it, "resourceName") == resource) {
            it.duplicate(&format!("resizePolicy[{index}]"), &resource.into());
        }
        for (value, allowed) in [
            (resource, ["cpu", "memory"]),
            (text(policy, "restartPolicy"), ["NotRequired", "RestartContainer"]),
        ] {
            if value.is_empty() {
                it.required("resizePolicy", "");
            } else if !allowed.contains(&value) {
                it.unsupported("resizePolicy", &value.into(), &allowed);
            }
        }
    }
}

fn env(it: &mut At<'_>) {
    if it.has("valueFrom") && !it.text("value").is_empty() {
        let why = "may not be specified when `value` is not empty";
        it.invalid("valueFrom", &"".into(), why);
    }
}

fn env_source(it: &mut At<'_>) {
    const SOURCES: [&str; 5] =
        ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let path = it.path.to_string();
    match SOURCES.iter().filter(|field| it.has(field)).count() {
        0 => {
            let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
        1 => (),
        _ => {
            let why = "may not have more than one field specified at a time";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
    }
}

fn env_from(it: &mut At<'_>) {
    // Upstream tells it of the whole list.
    let path = it.of_list("");
    let path = path.trim_end_matches('.');
    match ["configMapRef", "secretRef"].iter().filter(|field| it.has(field)).count() {
        0 => {
            let why = "must specify one of: `configMapRef` or `secretRef`";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
        1 => (),
        _ => {
            let why = "may not have more than one field specified at a time";
            it.errors.push(FieldError::invalid(path, &"".into(), why));
        }
    }
}

/// What a container may ask of the pod it is in.
fn field_of_pod(it: &mut At<'_>, known: &[&str]) {
    const FIELDS: [&str; 15] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.host",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.phase",
        "status.podIP",
        "status.podIPs",
    ];
    let (version, path) = (it.text("apiVersion").to_owned(), it.text("fieldPath").to_owned());
    let shown = Value::from(path.as_str());
    if path.is_empty() {
        return it.required("fieldPath", "");
    }
    let refuse = |it: &mut At<'_>, why: String| {
        it.invalid("fieldPath", &shown, &format!("error converting fieldPath: {why}"));
    };
    if version != "v1" && !version.is_empty() {
        return refuse(it, format!("unsupported pod version: {version}"));
    }
    let subscript =
        path.split_once("['").and_then(|(name, key)| Some((name, key.strip_suffix("']")?)));
    match subscript {
        Some(("metadata.annotations" | "metadata.labels", key)) => {
            let key =
                if path.starts_with("metadata.a") { key.to_lowercase() } else { key.to_owned() };
            for why in Format::Qualified.check(&key) {
                it.invalid("", &key.as_str().into(), &why);
            }
        }
        Some(_) => refuse(it, format!("field label does not support subscript: {path}")),
        None if !FIELDS.contains(&&*path) => {
            refuse(it, format!("field label not supported: {path}"));
        }
        None if path != "spec.host" && !known.contains(&&*path) => {
            it.unsupported("fieldPath", &shown, known);
        }
        None => (),
    }
}

/// What a container may ask of what it, or another, may use.
fn field_of_resources(it: &mut At<'_>) {
    const KNOWN: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = it.text("resource").to_owned();
    let is_huge = ["limits.hugepages-", "requests.hugepages-"]
        .iter()
        .any(|prefix| resource.starts_with(prefix));
    if resource.is_empty() {
        it.required("resource", "");
    } else if !KNOWN.contains(&&*resource) && !is_huge {
        it.unsupported("resource", &resource.into(), &KNOWN);
    }
}

/// Fields of the pod that variables of the environment may have.
const IN_ENVIRONMENT: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of the pod that files may have.
const IN_FILES: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

fn field_ref(it: &mut At<'_>) {
    let is_file = !matches!(it.path, Path::Field(Path::Field(_, "valueFrom"), _));
    field_of_pod(it, if is_file { IN_FILES } else { IN_ENVIRONMENT });
}

fn handler(it: &mut At<'_>) {
    it.one_of(
        &["exec", "httpGet", "tcpSocket", "grpc", "sleep"],
        "must specify a handler type",
        "may not specify more than 1 handler type",
    );
}

fn mount(it: &mut At<'_>) {
    for field in ["subPath", "subPathExpr"] {
        let path = it.text(field).to_owned();
        for why in Format::LocalPath.check(&path) {
            let at = it.of_list(field);
            it.errors.push(FieldError::invalid(at, &path.as_str().into(), &why));
        }
    }
    if !it.text("subPath").is_empty() && !it.text("subPathExpr").is_empty() {
        let shown = it.text("subPathExpr").into();
        it.invalid("subPathExpr", &shown, "subPathExpr and subPath are mutually exclusive");
    }
}

/// Whether a pod may ask for less of it than it may have.
fn is_overcommitted(name: &str) -> bool {
    let native = !name.contains('/')
        || name.split('/').next().is_some_and(|it| it.contains("kubernetes.io"));
    native && !name.starts_with("hugepages-")
}

/// What a sandbox needs beside its containers is checked as their limits are.
pub(super) fn overhead(it: &mut At<'_>, amounts: &Value) {
    let limits = serde_json::json!({ "limits": amounts });
    let path = it.path.field("overhead");
    let before = it.errors.len();
    resources(&mut At { id: it.id, it: &limits, path: &path, errors: &mut *it.errors, before });
}

fn resources(it: &mut At<'_>) {
    const STANDARD: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "storage"];
    let map = |field: &str| it.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let (limits, requests) = (map("limits"), map("requests"));
    for (field, amounts) in [("limits", &limits), ("requests", &requests)] {
        for (name, value) in amounts {
            let at = format!("{field}[{name}]");
            let mut wrong = Format::Qualified.check(name);
            let is_known = STANDARD.contains(&&**name) || name.starts_with("hugepages-");
            if wrong.is_empty() && !name.contains('/') && !is_known {
                wrong.push("must be a standard resource type or fully qualified".into());
                wrong.push("must be a standard resource for containers".into());
            }
            for why in wrong {
                it.invalid(&at, &name.as_str().into(), &why);
            }
            let Some(amount) = quantity(value) else { continue };
            if amount.is_negative() {
                it.invalid(&at, value, rule::NEGATIVE);
            }
            if !is_overcommitted(name) && amount.milli_value() % 1000 != 0 {
                it.invalid(&at, value, "must be an integer");
            }
        }
    }
    for (name, value) in &requests {
        let Some(request) = quantity(value) else { continue };
        let shown = Value::from(request.to_string());
        match limits.get(name).and_then(quantity) {
            Some(limit) if request != limit && !is_overcommitted(name) => {
                let why = format!("must be equal to {name} limit of {limit}");
                it.invalid("requests", &shown, &why);
            }
            Some(limit) if limit < request => {
                let why = format!("must be less than or equal to {name} limit of {limit}");
                it.invalid("requests", &shown, &why);
            }
            None if !is_overcommitted(name) => {
                it.required("limits", "Limit must be set for non overcommitable resources");
            }
            _ => (),
        }
    }
    let has = |name: &dyn Fn(&str) -> bool| limits.keys().chain(requests.keys()).any(|it| name(it));
    if has(&|it| it.starts_with("hugepages-")) && !has(&|it| matches!(it, "cpu" | "memory")) {
        let path = it.path.to_string();
        it.errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

fn security(it: &mut At<'_>) {
    if it.get("allowPrivilegeEscalation") != Some(&Value::Bool(false)) {
        return;
    }
    let whole = it.it;
    if it.get("privileged") == Some(&Value::Bool(true)) {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        it.invalid("", whole, why);
    }
    let added = it.get("capabilities").map(|it| list(it, "add")).unwrap_or_default();
    if added.iter().any(|it| it == "CAP_SYS_ADMIN") {
        let why =
            "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
        it.invalid("", whole, why);
    }
}

/// A profile from the node is named; others are not.
fn profile(it: &mut At<'_>, of: &str) {
    let kind = it.get("type").cloned().unwrap_or_default();
    match kind.as_str().unwrap_or_default() {
        "Localhost" if it.text("localhostProfile").is_empty() => {
            let why = match of {
                "seccomp" => "must be set when seccomp type is Localhost",
                _ => "must be set when AppArmor type is Localhost",
            };
            it.required("localhostProfile", why);
        }
        "RuntimeDefault" | "Unconfined" if it.has("localhostProfile") => {
            let shown = it.text("localhostProfile").into();
            let why = match of {
                "seccomp" => "can only be set when seccomp type is Localhost",
                _ => "can only be set when AppArmor type is Localhost",
            };
            it.invalid("localhostProfile", &shown, why);
        }
        "Localhost" | "RuntimeDefault" | "Unconfined" => (),
        "" => it.required("type", "type is required when seccompProfile is set"),
        _ => it.unsupported("type", &kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}
