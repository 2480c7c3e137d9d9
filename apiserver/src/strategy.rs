//! What is special about each resource when its objects are written.
//!
//! Everything a resource has in common with others is in [`crate::write`]; here are the few facts
//! that differ, as data where that is enough and as small functions where it is not.

use insula_api::{defaults, kinds::TENANT_FINALIZER, object, resources::Resource, schema::Schema};
use serde_json::{Map, Value, json};

use crate::{
    custom,
    registry::{Nature, Served},
};

/// Resources whose `metadata.generation` counts changes of the specification.
const GENERATION: &[(&str, &str)] = &[
    ("", "pods"),
    ("", "replicationcontrollers"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("apps", "statefulsets"),
    ("apps", "daemonsets"),
    ("batch", "jobs"),
    ("batch", "cronjobs"),
    ("networking.k8s.io", "ingresses"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies"),
    ("flowcontrol.apiserver.k8s.io", "flowschemas"),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations"),
    ("insula.io", "tenants"),
];

/// Resources that a PUT may create.
const CREATE_ON_UPDATE: &[(&str, &str)] = &[
    ("coordination.k8s.io", "leases"),
    ("", "endpoints"),
    ("", "events"),
    ("", "limitranges"),
    ("", "services"),
    ("node.k8s.io", "runtimeclasses"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
];

/// Resources whose PUT must say which revision it replaces.
const CONDITIONAL_UPDATE: &[(&str, &str)] = &[
    ("apiregistration.k8s.io", "apiservices"),
    ("coordination.k8s.io", "leases"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("node.k8s.io", "runtimeclasses"),
    ("policy", "poddisruptionbudgets"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "csistoragecapacities"),
    ("storage.k8s.io", "volumeattachments"),
];

/// Resources whose DELETE answers with the object even when it is gone.
const RETURNS_DELETED: &[(&str, &str)] = &[
    ("", "pods"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
];

fn is_in(list: &[(&str, &str)], resource: &Resource) -> bool {
    list.contains(&(&*resource.group, &*resource.name))
}

pub(crate) fn tracks_generation(served: &Served) -> bool {
    served.custom().is_some() || is_in(GENERATION, &served.resource)
}

pub(crate) fn creates_on_update(resource: &Resource) -> bool {
    is_in(CREATE_ON_UPDATE, resource)
}

pub(crate) fn needs_revision(served: &Served) -> bool {
    served.custom().is_some()
        || is_in(CONDITIONAL_UPDATE, &served.resource)
        || served.resource.group == "admissionregistration.k8s.io"
}

pub(crate) fn returns_deleted(resource: &Resource) -> bool {
    is_in(RETURNS_DELETED, resource)
}

/// What happens to dependents if a delete does not say.
pub(crate) fn orphans_by_default(resource: &Resource) -> bool {
    matches!(
        (&*resource.group, &*resource.name),
        ("", "replicationcontrollers") | ("batch", "jobs")
    )
}

/// Brings a new object into the shape that its writer answers for: with all defaults, and without
/// what nobody can create.
pub(crate) fn begin_create(served: &Served, it: &mut Value) {
    if served.resource.subresource("status").is_some()
        && let Some(fields) = it.as_object_mut()
    {
        fields.remove("status");
    }
    normalize(served, it);
}

/// Fills in what the server decides about a new object.
pub(crate) fn prepare_create(served: &Served, it: &mut Value) {
    let resource = &served.resource;
    match (&*resource.group, &*resource.name) {
        ("", "pods") => {
            it["status"] = json!({"phase": "Pending", "qosClass": qos_class(it)});
        }
        ("", "namespaces") => {
            it["spec"]["finalizers"] = json!(["kubernetes"]);
            it["status"] = json!({"phase": "Active"});
        }
        ("", "persistentvolumeclaims" | "persistentvolumes") => {
            it["status"] = json!({"phase": "Pending"});
        }
        (custom::GROUP, custom::RESOURCE) => {
            it["status"] = json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}});
            custom::prepare(it);
        }
        ("insula.io", "tenants") => {
            let metadata = object::metadata_mut(it);
            metadata.insert("finalizers".into(), json!([TENANT_FINALIZER]));
            let name = object::name(it).to_owned();
            if it["spec"].get("admins").is_none() {
                it["spec"]["admins"] = json!([{
                    "kind": "Group", "apiGroup": "rbac.authorization.k8s.io",
                    "name": format!("{name}-admins"),
                }]);
            }
        }
        _ => (),
    }
    if tracks_generation(served) {
        object::metadata_mut(it).insert("generation".into(), 1.into());
    }
}

/// Defaults and labels that every write of the resource gets.
pub(crate) fn normalize(served: &Served, it: &mut Value) {
    let resource = &served.resource;
    // An emptied list or map is the same as none, as upstream's encoder has it.
    object::metadata_mut(it).retain(|_, value| match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    });
    match &served.nature {
        Nature::BuiltIn(id) => defaults::apply(Schema::built_in(), *id, it),
        Nature::Custom(custom) => {
            insula_custom::default::fill(&custom.version.schema, it);
        }
    }
    match (&*resource.group, &*resource.name) {
        ("", "namespaces") => {
            let name = object::name(it).to_owned();
            let labels = &mut object::metadata_mut(it).entry("labels").or_insert_with(|| json!({}));
            labels["kubernetes.io/metadata.name"] = name.into();
        }
        ("", "secrets") => string_data(it),
        (custom::GROUP, custom::RESOURCE) => custom::prepare(it),
        _ => (),
    }
}

/// `stringData` is a convenience for writing: its values end up in `data`.
fn string_data(it: &mut Value) {
    use base64::Engine as _;
    let Some(fields) = it.as_object_mut() else { return };
    let Some(Value::Object(plain)) = fields.remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let data = fields.entry("data").or_insert_with(|| Value::Object(Map::new()));
    for (key, value) in plain {
        let text = value.as_str().unwrap_or_default();
        data[key] = base64::engine::general_purpose::STANDARD.encode(text).into();
    }
}

/// Brings an update into the shape the server accepts: what cannot change is taken from `old`.
pub(crate) fn prepare_update(served: &Served, subresource: &str, old: &Value, new: &mut Value) {
    let resource = &served.resource;
    match subresource {
        "" => {
            if resource.subresource("status").is_some() {
                restore(old, new, "status");
            }
            match (&*resource.group, &*resource.name) {
                // Finalizers of the specification change through `finalize` alone.
                ("", "namespaces") => restore(old, new, "spec"),
                ("", "pods") => restore_pod(old, new),
                _ => (),
            }
        }
        "status" => {
            let metadata = new.get("metadata").cloned();
            let status = new.get("status").cloned();
            *new = old.clone();
            if let Some(metadata) = metadata {
                new["metadata"] = metadata;
            }
            match status {
                Some(status) => new["status"] = status,
                None => {
                    if let Some(fields) = new.as_object_mut() {
                        fields.remove("status");
                    }
                }
            }
            if served.custom().is_some() {
                restore(old, new, "metadata");
            }
            if resource.group == "apps" || resource.name == "pods" {
                restore_metadata(
                    old,
                    new,
                    if resource.group == "apps" { "labels" } else { "ownerReferences" },
                );
            }
            if resource.name == "pods" {
                let class = old["status"].get("qosClass").cloned();
                if let (Some(class), Some(status)) = (class, new["status"].as_object_mut()) {
                    status.insert("qosClass".into(), class);
                }
            }
        }
        _ => (),
    }
    for field in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "tenant",
        "uid",
        "name",
        "namespace",
    ] {
        restore_metadata(old, new, field);
    }
    normalize(served, new);
    let is_new = match served.custom() {
        // All but the metadata counts; a status of its own was put back above.
        Some(_) => without_metadata(old).ne(without_metadata(new)),
        None => old.get("spec") != new.get("spec"),
    };
    if subresource.is_empty() && tracks_generation(served) && is_new {
        bump_generation(new);
    }
}

fn without_metadata(it: &Value) -> impl Iterator<Item = (&String, &Value)> {
    it.as_object().into_iter().flatten().filter(|(name, _)| *name != "metadata")
}

pub(crate) fn bump_generation(it: &mut Value) {
    let generation = object::metadata(it).get("generation").and_then(Value::as_i64).unwrap_or(0);
    object::metadata_mut(it).insert("generation".into(), (generation + 1).into());
}

fn restore(old: &Value, new: &mut Value, field: &str) {
    if let Some(fields) = new.as_object_mut() {
        match old.get(field) {
            Some(value) => fields.insert(field.into(), value.clone()),
            None => fields.remove(field),
        };
    }
}

fn restore_metadata(old: &Value, new: &mut Value, field: &str) {
    let kept = object::metadata(old).get(field).cloned();
    let metadata = object::metadata_mut(new);
    match kept {
        Some(value) => metadata.insert(field.into(), value),
        None => metadata.remove(field),
    };
}

/// A pod's owner of its fate: fields that a client may leave out of an update.
fn restore_pod(old: &Value, new: &mut Value) {
    for field in ["nodeName", "serviceAccountName", "serviceAccount", "priority"] {
        if let (Some(value), Some(spec)) = (old["spec"].get(field), new["spec"].as_object_mut()) {
            spec.entry(field).or_insert_with(|| value.clone());
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, by the containers' cpu and memory.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let list =
        |name: &str| pod["spec"].get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let containers: Vec<Value> =
        list("containers").into_iter().chain(list("initContainers")).collect();
    let resource = |it: &Value, kind: &str, name: &str| {
        let found = it.get("resources").and_then(|it| it.get(kind)).and_then(|it| it.get(name));
        found.and_then(Value::as_str).filter(|text| *text != "0").map(str::to_owned)
    };
    let (mut any, mut guaranteed) = (false, true);
    for it in &containers {
        for name in ["cpu", "memory"] {
            let limit = resource(it, "limits", name);
            let request = resource(it, "requests", name);
            any |= limit.is_some() || request.is_some();
            // A request defaults to its limit.
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})
    }

    #[test]
    fn qos_classes() {
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let all = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(qos_class(&pod(all)), "Guaranteed");
    }
}
