//! Defaults: what the server fills in where a client left a field out.
//!
//! Unconditional ones are rows of `tables/defaults.tsv` (and, for always-present structures, of
//! the type table itself). Those that depend on other fields are the functions in `conditional`.

use std::{collections::HashMap, sync::LazyLock};

use serde_json::{Map, Value, json};

use crate::schema::{Schema, Shape, Type, TypeId};

const TABLE: &str = include_str!("../tables/defaults.tsv");

static DEFAULTS: LazyLock<HashMap<&'static str, Vec<(&'static str, Value)>>> =
    LazyLock::new(|| {
        let mut all: HashMap<_, Vec<_>> = HashMap::new();
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let mut columns = line.split('\t');
            if let (Some(name), Some(field), Some(value)) =
                (columns.next(), columns.next(), columns.next())
                && let Ok(value) = serde_json::from_str(value)
            {
                all.entry(name).or_default().push((field, value));
            }
        }
        all
    });

/// Fills in the defaults of an object of type `id`, all the way down.
pub fn apply(schema: &Schema, id: TypeId, object: &mut Value) {
    if let Value::Object(map) = object {
        fill(schema, schema.get(id), map);
    }
}

fn fill(schema: &Schema, it: &Type, map: &mut Map<String, Value>) {
    for (field, value) in DEFAULTS.get(it.name).into_iter().flatten() {
        map.entry(*field).or_insert_with(|| value.clone());
    }
    conditional(it.name, map);
    for field in &it.fields {
        // Go's encoder always writes these structures, so users see them.
        if matches!(field.shape, Shape::Object(_))
            && field.default.as_ref().is_some_and(|value| value.is_object())
            && field.name != "metadata"
        {
            map.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
        }
        let Some(value) = map.get_mut(field.name) else { continue };
        descend(schema, &field.shape, value);
    }
}

fn descend(schema: &Schema, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => fill(schema, schema.get(*id), map),
        (Shape::List(item), Value::Array(list)) => {
            list.iter_mut().for_each(|value| descend(schema, item, value));
        }
        (Shape::Map(item), Value::Object(map)) => {
            map.values_mut().for_each(|value| descend(schema, item, value));
        }
        _ => (),
    }
}

fn set(map: &mut Map<String, Value>, field: &str, value: Value) {
    map.entry(field).or_insert(value);
}

/// Defaults that depend on other fields of the same structure.
fn conditional(name: &str, map: &mut Map<String, Value>) {
    let is = |map: &Map<String, Value>, field: &str, wanted: &str| {
        map.get(field).and_then(Value::as_str) == Some(wanted)
    };
    match name.strip_prefix("io.k8s.api.").unwrap_or(name) {
        "core.v1.Container" | "core.v1.EphemeralContainer" => {
            let image = map.get("image").and_then(Value::as_str).unwrap_or_default();
            let policy = if image_tag(image) == "latest" { "Always" } else { "IfNotPresent" };
            if map.get("imagePullPolicy").and_then(Value::as_str).unwrap_or_default().is_empty() {
                map.insert("imagePullPolicy".into(), policy.into());
            }
            requests_from_limits(map);
        }
        "core.v1.Volume" if map.len() <= 1 => set(map, "emptyDir", json!({})),
        "core.v1.PodSpec" => {
            // The deprecated alias always shows the same name.
            if let Some(account) =
                map.get("serviceAccountName").or_else(|| map.get("serviceAccount")).cloned()
            {
                map.insert("serviceAccount".into(), account.clone());
                set(map, "serviceAccountName", account);
            }
            if map.get("hostNetwork") == Some(&Value::Bool(true)) {
                host_ports(map);
            }
        }
        "core.v1.ServicePort" => {
            if let Some(port) = map.get("port").cloned()
                && map.get("targetPort").is_none_or(|target| *target == 0 || *target == "")
            {
                map.insert("targetPort".into(), port);
            }
        }
        "core.v1.ServiceSpec" => {
            if is(map, "sessionAffinity", "ClientIP") {
                set(map, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
            }
            if !is(map, "type", "ExternalName") {
                set(map, "internalTrafficPolicy", "Cluster".into());
            }
            if is(map, "type", "NodePort") || is(map, "type", "LoadBalancer") {
                set(map, "externalTrafficPolicy", "Cluster".into());
            }
            if is(map, "type", "LoadBalancer") {
                set(map, "allocateLoadBalancerNodePorts", true.into());
            }
        }
        "apps.v1.DeploymentStrategy" if is(map, "type", "RollingUpdate") => {
            let rolling = map.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Value::Object(rolling) = rolling {
                set(rolling, "maxUnavailable", "25%".into());
                set(rolling, "maxSurge", "25%".into());
            }
        }
        "apps.v1.StatefulSetUpdateStrategy" if is(map, "type", "RollingUpdate") => {
            let rolling = map.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Value::Object(rolling) = rolling {
                set(rolling, "partition", 0.into());
            }
        }
        "apps.v1.DaemonSetUpdateStrategy" if is(map, "type", "RollingUpdate") => {
            let rolling = map.entry("rollingUpdate").or_insert_with(|| json!({}));
            if let Value::Object(rolling) = rolling {
                set(rolling, "maxUnavailable", 1.into());
                set(rolling, "maxSurge", 0.into());
            }
        }
        "batch.v1.JobSpec" => {
            if !map.contains_key("completions") && !map.contains_key("parallelism") {
                set(map, "completions", 1.into());
            }
            set(map, "parallelism", 1.into());
            let policy =
                if map.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
            set(map, "podReplacementPolicy", policy.into());
        }
        "rbac.v1.Subject" if is(map, "kind", "User") || is(map, "kind", "Group") => {
            set(map, "apiGroup", "rbac.authorization.k8s.io".into());
        }
        "networking.v1.NetworkPolicySpec" if !map.contains_key("policyTypes") => {
            let mut types = vec![Value::from("Ingress")];
            if map.contains_key("egress") {
                types.push("Egress".into());
            }
            map.insert("policyTypes".into(), types.into());
        }
        "core.v1.PodTemplateSpec" | "core.v1.Pod" => {
            // Enabled unless said otherwise; the field is only ever defaulted on pods and templates.
            if let Some(Value::Object(spec)) = map.get_mut("spec") {
                set(spec, "enableServiceLinks", true.into());
            }
        }
        "core.v1.ReplicationController" | "apps.v1.ReplicaSet" => selector_from_template(name, map),
        _ => (),
    }
}

/// A replication controller without selector selects by its template's labels.
fn selector_from_template(name: &str, map: &mut Map<String, Value>) {
    let labels =
        map.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
    if let (Some(labels), Some(Value::Object(spec)), true) =
        (labels, map.get_mut("spec"), name.ends_with("ReplicationController"))
    {
        set(spec, "selector", labels);
    }
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(Value::Object(resources)) = container.get_mut("resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Value::Object(requests) = requests {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn host_ports(spec: &mut Map<String, Value>) {
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let ports = container.get_mut("ports").and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
                if let Some(number) = port.get("containerPort").cloned() {
                    set(port, "hostPort", number);
                }
            }
        }
    }
}

/// The tag of an image reference; `latest` if it has neither tag nor digest.
fn image_tag(image: &str) -> &str {
    if image.contains('@') {
        return "";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').map_or("latest", |(_, tag)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Gvk;

    fn defaulted(gvk: Gvk, mut object: Value) -> Value {
        let schema = Schema::built_in();
        apply(schema, schema.by_kind(&gvk).unwrap(), &mut object);
        object
    }

    #[test]
    fn every_row_names_a_known_field() {
        let schema = Schema::built_in();
        for (name, fields) in DEFAULTS.iter() {
            let it = schema.get(schema.by_name(name).unwrap_or_else(|| panic!("{name}")));
            for (field, _) in fields {
                assert!(it.field(field).is_some(), "{name} {field}");
            }
        }
    }

    #[test]
    fn a_deployment() {
        let it = defaulted(
            Gvk::new("apps", "v1", "Deployment"),
            json!({"spec": {"template": {"spec": {"containers": [
                {"name": "a", "image": "x:1", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "host:5000/y"},
            ], "volumes": [{"name": "v"}]}}}}),
        );
        assert_eq!(it["spec"]["replicas"], 1);
        assert_eq!(
            it["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        let spec = &it["spec"]["template"]["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(spec["containers"][1]["imagePullPolicy"], "Always");
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(it["status"], json!({}));
    }

    #[test]
    fn defaulting_twice_changes_nothing() {
        let gvk = Gvk::new("", "v1", "Service");
        let once = defaulted(gvk.clone(), json!({"spec": {"ports": [{"port": 80}]}}));
        assert_eq!(once["spec"]["ports"][0]["targetPort"], 80);
        assert_eq!(defaulted(gvk, once.clone()), once);
    }
}
