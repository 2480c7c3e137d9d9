//! Defaults that depend on other fields of the same structure.

use serde_json::{Map, Value, json};

use crate::{
    pods::{MACHINE, parts_in, together},
    quota::amounts::of_container,
};

/// Fills in what depends on other fields of a structure.
pub(super) type Rule = fn(&mut Map<String, Value>);

/// The rule of structures of type `name`, if they have one.
pub(super) fn rule(name: &str) -> Option<Rule> {
    let rule: Rule = match name.strip_prefix("io.k8s.api.").unwrap_or(name) {
        "core.v1.Container" | "core.v1.EphemeralContainer" => {
            |it| pull_policy(it, "image", "imagePullPolicy")
        }
        "core.v1.ImageVolumeSource" => |it| pull_policy(it, "reference", "pullPolicy"),
        "core.v1.Volume" => |it| {
            if it.len() <= 1 {
                set(it, "emptyDir", json!({}));
            }
        },
        "core.v1.PodSpec" => |it| {
            // The deprecated alias always shows the same name.
            let account = it.get("serviceAccountName").or_else(|| it.get("serviceAccount"));
            if let Some(account) = account.cloned() {
                it.insert("serviceAccount".into(), account.clone());
                set(it, "serviceAccountName", account);
            }
        },
        "core.v1.Pod" => pod,
        "core.v1.ServicePort" => |it| {
            if it.get("targetPort").is_none_or(|target| *target == 0 || *target == "") {
                // A port that was left out is about to become 0.
                let port = it.get("port").cloned();
                it.insert("targetPort".into(), port.unwrap_or_else(|| 0.into()));
            }
        },
        "core.v1.Service" => address_modes,
        "core.v1.ServiceSpec" => service,
        "core.v1.LimitRangeItem" => |it| {
            if is(it, "type", "Container") {
                limits(it);
            }
        },
        "core.v1.NodeStatus" => |it| {
            if let Some(capacity) = it.get("capacity").cloned() {
                set(it, "allocatable", capacity);
            }
        },
        "core.v1.ReplicationController" => |it| {
            labels_of_template(it);
            selector_from_template(it);
        },
        "apps.v1.DeploymentStrategy" => |it| {
            if is(it, "type", "RollingUpdate") {
                let rolling = json!({"maxUnavailable": "25%", "maxSurge": "25%"});
                fill_in(it, "rollingUpdate", rolling);
            }
        },
        "apps.v1.StatefulSetUpdateStrategy" => |it| {
            if it.get("type").is_none_or(|it| *it == "") {
                it.insert("type".into(), "RollingUpdate".into());
                set(it, "rollingUpdate", json!({}));
            }
            if is(it, "type", "RollingUpdate")
                && let Some(Value::Object(rolling)) = it.get_mut("rollingUpdate")
            {
                set(rolling, "partition", 0.into());
            }
        },
        "apps.v1.DaemonSetUpdateStrategy" => |it| {
            if is(it, "type", "RollingUpdate") {
                fill_in(it, "rollingUpdate", json!({"maxUnavailable": 1, "maxSurge": 0}));
            }
        },
        "batch.v1.Job" => |it| {
            labels_of_template(it);
            if let Some(Value::Object(spec)) = it.get_mut("spec") {
                job(spec);
            }
        },
        "autoscaling.v2.HorizontalPodAutoscalerSpec" => autoscaler,
        "resource.v1.ExactDeviceRequest" | "resource.v1.DeviceSubRequest" => |it| {
            if is(it, "allocationMode", "ExactCount") && it.get("count").is_none_or(|it| *it == 0) {
                it.insert("count".into(), 1.into());
            }
        },
        "resource.v1.DeviceTaint" => |it| set(it, "timeAdded", crate::time::now().into()),
        "rbac.v1.Subject" => |it| {
            if is(it, "kind", "User") || is(it, "kind", "Group") {
                set(it, "apiGroup", "rbac.authorization.k8s.io".into());
            }
        },
        "networking.v1.NetworkPolicySpec" => |it| {
            let has = |field: &str| {
                it.get(field).and_then(Value::as_array).is_some_and(|it| !it.is_empty())
            };
            if !has("policyTypes") {
                let types =
                    if has("egress") { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
                it.insert("policyTypes".into(), types);
            }
        },
        _ => return None,
    };
    Some(rule)
}

fn is(map: &Map<String, Value>, field: &str, wanted: &str) -> bool {
    map.get(field).and_then(Value::as_str) == Some(wanted)
}

/// Fills in what the structure in `field`, which is made if need be, leaves out of `defaults`.
fn fill_in(map: &mut Map<String, Value>, field: &str, defaults: Value) {
    let found = map.entry(field).or_insert_with(|| json!({}));
    if let (Value::Object(found), Value::Object(defaults)) = (found, defaults) {
        for (name, value) in defaults {
            found.entry(name).or_insert(value);
        }
    }
}

fn pull_policy(map: &mut Map<String, Value>, image: &str, policy: &str) {
    let image = map.get(image).and_then(Value::as_str).unwrap_or_default();
    let wanted = if image_tag(image) == "latest" { "Always" } else { "IfNotPresent" };
    if map.get(policy).and_then(Value::as_str).unwrap_or_default().is_empty() {
        map.insert(policy.into(), wanted.into());
    }
}

/// An address that somebody balances is one that nodes may keep for themselves.
fn address_modes(service: &mut Map<String, Value>) {
    let is_balanced = service.get("spec").is_some_and(|it| it["type"] == "LoadBalancer");
    let Some(status) = service.get_mut("status").filter(|_| is_balanced) else { return };
    let ingress = status.pointer_mut("/loadBalancer/ingress").and_then(Value::as_array_mut);
    for it in ingress.into_iter().flatten().filter_map(Value::as_object_mut) {
        if it.get("ip").and_then(Value::as_str).is_some_and(|it| !it.is_empty()) {
            set(it, "ipMode", "VIP".into());
        }
    }
}

/// What only pods get, and no template of pods.
fn pod(pod: &mut Map<String, Value>) {
    let Some(Value::Object(spec)) = pod.get_mut("spec") else { return };
    set(spec, "enableServiceLinks", true.into());
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for it in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            requests_from_limits(it);
        }
    }
    if let Some(machine) = spec.get_mut(MACHINE).and_then(Value::as_object_mut) {
        requests_from_limits(machine);
    }
    requests_of_pod(spec);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        host_ports(spec);
    }
}

/// Where a pod says what all its parts may have together, it asks for what they ask for,
/// else for all that it may have.
fn requests_of_pod(spec: &mut Map<String, Value>) {
    let limits = spec.get("resources").and_then(|it| it.get("limits")).and_then(Value::as_object);
    let Some(limits) = limits.filter(|it| !it.is_empty()).cloned() else { return };
    let mut wanted: Map<String, Value> = Map::new();
    let asked = together(parts_in(spec).map(|(when, it)| (when, of_container(it, "requests"))));
    for name in ["cpu", "memory"] {
        if let Some(sum) = asked.get(name) {
            wanted.insert(name.into(), sum.to_string().into());
        }
    }
    for (name, limit) in limits {
        wanted.entry(name).or_insert(limit);
    }
    let Some(Value::Object(resources)) = spec.get_mut("resources") else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    for (name, value) in wanted {
        if let Value::Object(requests) = requests {
            requests.entry(name).or_insert(value);
        }
    }
}

/// What only jobs get, and no template of jobs.
fn job(spec: &mut Map<String, Value>) {
    if !spec.contains_key("completions") && !spec.contains_key("parallelism") {
        set(spec, "completions", 1.into());
    }
    set(spec, "parallelism", 1.into());
    let limit = if spec.contains_key("backoffLimitPerIndex") { i32::MAX } else { 6 };
    set(spec, "backoffLimit", limit.into());
    let policy =
        if spec.contains_key("podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set(spec, "podReplacementPolicy", policy.into());
    set(spec, "completionMode", "NonIndexed".into());
    set(spec, "suspend", false.into());
    set(spec, "manualSelector", false.into());
}

fn service(spec: &mut Map<String, Value>) {
    let text = |spec: &Map<String, Value>, field: &str| {
        spec.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let kind = text(spec, "type");
    match &*text(spec, "sessionAffinity") {
        "ClientIP" => {
            let known = spec
                .get("sessionAffinityConfig")
                .and_then(|it| it.pointer("/clientIP/timeoutSeconds"));
            if known.is_none() {
                let config = json!({"clientIP": {"timeoutSeconds": 10800}});
                spec.insert("sessionAffinityConfig".into(), config);
            }
        }
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        _ => (),
    }
    if matches!(&*kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        set(spec, "internalTrafficPolicy", "Cluster".into());
    }
    let external = spec.get("externalIPs").and_then(Value::as_array);
    let reachable = matches!(&*kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && external.is_some_and(|it| !it.is_empty()));
    if reachable && text(spec, "externalTrafficPolicy").is_empty() {
        spec.insert("externalTrafficPolicy".into(), "Cluster".into());
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true.into());
    }
}

/// What containers are given is what they are given at most, and at least.
fn limits(item: &mut Map<String, Value>) {
    let amounts = |item: &Map<String, Value>, field: &str| {
        item.get(field).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let mut default = amounts(item, "default");
    let mut request = amounts(item, "defaultRequest");
    for (name, value) in amounts(item, "max") {
        default.entry(name).or_insert(value);
    }
    for (name, value) in default.clone().into_iter().chain(amounts(item, "min")) {
        request.entry(name).or_insert(value);
    }
    for (field, amounts) in [("default", default), ("defaultRequest", request)] {
        if !amounts.is_empty() {
            item.insert(field.into(), amounts.into());
        }
    }
}

/// How fast an autoscaler may scale, as soon as anything is said about it.
fn autoscaler(spec: &mut Map<String, Value>) {
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        spec.insert("metrics".into(), json!([metric]));
    }
    let Some(Value::Object(behavior)) = spec.get_mut("behavior") else { return };
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    for (direction, policies) in
        [("scaleUp", json!([pods, percent])), ("scaleDown", json!([percent]))]
    {
        let Value::Object(rules) = behavior.entry(direction).or_insert_with(|| json!({})) else {
            continue;
        };
        set(rules, "selectPolicy", "Max".into());
        set(rules, "policies", policies);
        if direction == "scaleUp" {
            set(rules, "stabilizationWindowSeconds", 0.into());
        }
    }
}

/// Some kinds without labels are labelled like their pods.
fn labels_of_template(map: &mut Map<String, Value>) {
    let labels = map.get("spec").and_then(|it| it.pointer("/template/metadata/labels")).cloned();
    let Some(labels) = labels.filter(Value::is_object) else { return };
    if let Some(Value::Object(metadata)) = map.get_mut("metadata")
        && metadata.get("labels").and_then(Value::as_object).is_none_or(Map::is_empty)
    {
        metadata.insert("labels".into(), labels);
    }
}

/// A replication controller without selector selects by its template's labels.
fn selector_from_template(map: &mut Map<String, Value>) {
    let labels = map.get("spec").and_then(|it| it.pointer("/template/metadata/labels")).cloned();
    if let (Some(labels), Some(Value::Object(spec))) = (labels, map.get_mut("spec"))
        && spec.get("selector").and_then(Value::as_object).is_none_or(Map::is_empty)
    {
        spec.insert("selector".into(), labels);
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

/// The tag of an image reference; `latest` if it has neither tag nor digest, and none if it is no
/// reference.
fn image_tag(image: &str) -> &str {
    let (named, has_digest) = match image.split_once('@') {
        Some((named, _)) => (named, true),
        None => (image, false),
    };
    let (path, last) = match named.rsplit_once('/') {
        Some((path, last)) => (Some(path), last),
        None => (None, named),
    };
    let (name, tag) = match last.split_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (last, None),
    };
    let is_part = |text: &str| {
        let fits = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"._-".contains(&it);
        !text.is_empty() && text.bytes().all(fits)
    };
    // The first part may be a host.
    let mut parts = path.into_iter().flat_map(|path| path.split('/').enumerate());
    if !is_part(name) || !parts.all(|(index, part)| is_part(part) || index == 0) {
        return "";
    }
    tag.unwrap_or(if has_digest { "" } else { "latest" })
}

fn set(map: &mut Map<String, Value>, field: &str, value: Value) {
    map.entry(field).or_insert(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_tags() {
        for (image, tag) in [
            ("a", "latest"),
            ("a:1", "1"),
            ("Host:5000/a/b", "latest"),
            ("host.io/a_b:v1.2", "v1.2"),
            ("a@sha256:00", ""),
            ("a:latest@sha256:00", "latest"),
            ("", ""),
            (" a", ""),
            ("A", ""),
            ("host.io/A/b", ""),
        ] {
            assert_eq!(image_tag(image), tag, "{image:?}");
        }
    }
}
