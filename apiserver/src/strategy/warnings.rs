//! What is allowed, and better done otherwise.

use std::collections::HashSet;

use insula_api::{names::is_dns1123_label, object, resources::Resource};
use serde_json::Value;

use crate::{registry::Served, validate::KNOWN_FINALIZERS};

/// A resource that clients should not use any longer, whatever they do with it.
pub(crate) fn of_resource(resource: &Resource) -> Option<&'static str> {
    match (&*resource.group, &*resource.name) {
        ("", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

/// What is told of a delete that does not say what happens to dependents.
pub(crate) fn of_delete(resource: &Resource) -> Option<&'static str> {
    ((&*resource.group, &*resource.name) == ("batch", "jobs")).then_some(
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
    )
}

/// What is told of an object that is written; `old` is what it was, if it was.
pub(crate) fn of_object(served: &Served, it: &Value, old: Option<&Value>) -> Vec<String> {
    let (resource, is_new) = (&served.resource, old.is_none());
    let mut found = Vec::new();
    if served.custom().is_some() {
        finalizers(it, old, &mut found);
    }
    match (&*resource.group, &*resource.name) {
        // Machines change pods, and nobody would read it.
        ("", "pods") if is_new => {
            if !is_dns1123_label(object::name(it)) {
                found.push(
                    "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended"
                        .to_owned(),
                );
            }
            pod(&it["spec"], "spec", &mut found);
        }
        ("apps", "deployments" | "daemonsets" | "statefulsets" | "replicasets")
        | ("batch", "jobs")
        | ("", "replicationcontrollers") => {
            pod(&it["spec"]["template"]["spec"], "spec.template.spec", &mut found);
        }
        ("batch", "cronjobs") => {
            let spec = &it["spec"]["jobTemplate"]["spec"]["template"]["spec"];
            pod(spec, "spec.jobTemplate.spec.template.spec", &mut found);
        }
        ("", "persistentvolumes")
            if object::text(it, &["spec", "persistentVolumeReclaimPolicy"]) == "Recycle" =>
        {
            found.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        _ => (),
    }
    found
}

/// Of built-in kinds such names are refused.
fn finalizers(it: &Value, old: Option<&Value>, found: &mut Vec<String>) {
    let before = old.map(object::finalizers).unwrap_or_default();
    let mut names = object::finalizers(it);
    names.retain(|name| !before.contains(name) && !name.contains('/'));
    names.retain(|name| !KNOWN_FINALIZERS.contains(name));
    names.sort_unstable();
    names.dedup();
    for name in names {
        found.push(format!(
            "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"
        ));
    }
}

fn list<'a>(it: &'a Value, field: &str) -> &'a [Value] {
    it.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn pod(spec: &Value, path: &str, found: &mut Vec<String>) {
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if object::text(secret, &["name"]).is_empty() {
            found.push(format!("{path}.imagePullSecrets[{index}].name: invalid empty name \"\""));
        }
    }
    for volume in list(spec, "volumes") {
        if let Some(projected) = volume.get("projected")
            && list(projected, "sources")
                .iter()
                .all(|it| it.as_object().is_some_and(serde_json::Map::is_empty))
        {
            let name = object::text(volume, &["name"]);
            found.push(format!("volume {name:?} (Projected) has no sources provided"));
        }
    }
    for field in ["initContainers", "containers"] {
        for (index, container) in list(spec, field).iter().enumerate() {
            let mut seen = HashSet::new();
            for (at, env) in list(container, "env").iter().enumerate() {
                let name = object::text(env, &["name"]);
                if !seen.insert(name) {
                    found.push(format!(
                        "{path}.{field}[{index}].env[{at}]: hides previous definition of {name:?}, which may be dropped when using apply"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    #[test]
    fn pods_are_warned_about_when_they_are_new() {
        let registry = Registry::built_in();
        let pods = registry.get("", "v1", "pods").unwrap();
        let it = json!({"metadata": {"name": "a.b"}, "spec": {"containers": [
            {"name": "c", "env": [{"name": "x"}, {"name": "x"}]},
        ]}});
        assert_eq!(of_object(pods, &it, None).len(), 2);
        assert_eq!(of_object(pods, &it, Some(&it)).len(), 0);
    }
}
