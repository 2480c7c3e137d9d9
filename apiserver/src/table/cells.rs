//! Cells that are more than a field.

pub(super) mod more;

use insula_api::object;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{at, items, number, text};

/// Time since an RFC 3339 timestamp, as people read it.
pub(super) fn since(time: Option<&str>) -> Value {
    let Some(time) = time.filter(|it| !it.is_empty()) else { return "<none>".into() };
    match time.parse::<Timestamp>() {
        Ok(time) => human(Timestamp::now().as_second() - time.as_second()).into(),
        Err(_) => "<invalid>".into(),
    }
}

/// Seconds as `45s`, `5m30s`, `3h20m`, `2d4h`, `30d`, `3y40d`: two units while they are small.
pub(super) fn human(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: char, small: i64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

fn joined(map: Option<&Map<String, Value>>) -> Value {
    let pairs: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",").into() }
}

fn containers_at(object: &Value, path: &str, field: &str) -> Value {
    let containers = items(object, path);
    containers.iter().map(|it| text(it, field)).collect::<Vec<_>>().join(",").into()
}

pub(super) fn template_containers(object: &Value) -> Value {
    containers_at(object, "spec.template.spec.containers", "name")
}

pub(super) fn template_images(object: &Value) -> Value {
    containers_at(object, "spec.template.spec.containers", "image")
}

pub(super) fn label_selector(object: &Value) -> Value {
    if object::text(object, &["kind"]) == "ReplicationController" {
        return joined(at(object, "spec.selector").and_then(Value::as_object));
    }
    selector_at(object, "spec.selector")
}

/// A label selector as people write it.
fn selector_at(object: &Value, path: &str) -> Value {
    let selector = at(object, path);
    let labels = selector.and_then(|it| it.get("matchLabels")).and_then(Value::as_object);
    let mut parts: Vec<String> = Vec::new();
    if let Value::String(plain) = joined(labels)
        && plain != "<none>"
    {
        parts.push(plain);
    }
    for it in selector.map(|it| items(it, "matchExpressions")).unwrap_or_default() {
        let (key, values) = (text(it, "key"), items(it, "values"));
        let values: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
        parts.push(match text(it, "operator") {
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            operator => format!("{key} {} ({})", operator.to_lowercase(), values.join(",")),
        });
    }
    if parts.is_empty() { "<none>".into() } else { parts.join(",").into() }
}

pub(super) fn service_selector(object: &Value) -> Value {
    joined(at(object, "spec.selector").and_then(Value::as_object))
}

pub(super) fn node_selector(object: &Value) -> Value {
    joined(at(object, "spec.template.spec.nodeSelector").and_then(Value::as_object))
}

pub(super) fn ready_of_replicas(object: &Value) -> Value {
    format!("{}/{}", number(object, "status.readyReplicas"), number(object, "spec.replicas")).into()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, "status.conditions").iter().find(|it| text(it, "type") == kind)
}

fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|it| text(it, "status") == "True")
}

/// How the pods of a group are scheduled.
pub(super) fn pod_group_policy(object: &Value) -> Value {
    let policy = object.pointer("/spec/schedulingPolicy/gang");
    if policy.is_some_and(|it| !it.is_null()) { "Gang".into() } else { "Basic".into() }
}

/// What has become of a group of pods.
pub(super) fn pod_group_status(object: &Value) -> Value {
    match (condition(object, "DisruptionTarget"), condition(object, "PodGroupScheduled")) {
        (Some(it), _) => text(it, "reason").into(),
        (None, Some(it)) if text(it, "status") == "True" => "Scheduled".into(),
        (None, Some(_)) => "Unschedulable".into(),
        (None, None) => "Pending".into(),
    }
}

pub(super) fn job_status(object: &Value) -> Value {
    let found = [
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ]
    .into_iter()
    .find(|(kind, _)| is_true(object, kind));
    match found {
        Some((_, shown)) => shown.into(),
        None if object::is_deleting(object) => "Terminating".into(),
        None => "Running".into(),
    }
}

pub(super) fn job_completions(object: &Value) -> Value {
    let succeeded = number(object, "status.succeeded");
    match at(object, "spec.completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{succeeded}/{wanted}").into(),
        None => match number(object, "spec.parallelism") {
            parallel @ 2.. => format!("{succeeded}/1 of {parallel}").into(),
            _ => format!("{succeeded}/1").into(),
        },
    }
}

pub(super) fn job_duration(object: &Value) -> Value {
    let time = |path| text(object, path).parse::<Timestamp>().ok();
    let Some(start) = time("status.startTime") else { return "".into() };
    let end = time("status.completionTime").unwrap_or_else(Timestamp::now);
    human(end.as_second() - start.as_second()).into()
}

pub(super) fn suspend(object: &Value) -> Value {
    if at(object, "spec.suspend") == Some(&Value::Bool(true)) {
        "True".into()
    } else {
        "False".into()
    }
}

pub(super) fn active_jobs(object: &Value) -> Value {
    items(object, "status.active").len().into()
}

pub(super) fn external_ip(object: &Value) -> Value {
    let mut ips: Vec<&str> =
        items(object, "spec.externalIPs").iter().filter_map(Value::as_str).collect();
    match text(object, "spec.type") {
        "ExternalName" => text(object, "spec.externalName").into(),
        "LoadBalancer" => {
            for it in items(object, "status.loadBalancer.ingress") {
                ips.push(match text(it, "ip") {
                    "" => text(it, "hostname"),
                    ip => ip,
                });
            }
            if ips.is_empty() { "<pending>".into() } else { ips.join(",").into() }
        }
        _ if ips.is_empty() => "<none>".into(),
        _ => ips.join(",").into(),
    }
}

pub(super) fn service_ports(object: &Value) -> Value {
    let ports: Vec<String> = items(object, "spec.ports")
        .iter()
        .map(|it| match number(it, "nodePort") {
            0 => format!("{}/{}", number(it, "port"), text(it, "protocol")),
            node => format!("{}:{node}/{}", number(it, "port"), text(it, "protocol")),
        })
        .collect();
    if ports.is_empty() { "<none>".into() } else { ports.join(",").into() }
}

pub(super) fn node_status(object: &Value) -> Value {
    let mut status = match condition(object, "Ready") {
        Some(it) if text(it, "status") == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if at(object, "spec.unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status.into()
}

pub(super) fn node_roles(object: &Value) -> Value {
    let labels = object::metadata(object).get("labels").and_then(Value::as_object);
    let roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            key.strip_prefix("node-role.kubernetes.io/")
                .or_else(|| value.as_str().filter(|_| key == "kubernetes.io/role"))
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() { "<none>".into() } else { roles.join(",").into() }
}

fn node_address(object: &Value, kind: &str) -> Value {
    let found = items(object, "status.addresses").iter().find(|it| text(it, "type") == kind);
    found.map_or("<none>", |it| text(it, "address")).into()
}

pub(super) fn node_internal_ip(object: &Value) -> Value {
    node_address(object, "InternalIP")
}

pub(super) fn node_external_ip(object: &Value) -> Value {
    node_address(object, "ExternalIP")
}

fn known_since(object: &Value, paths: &[&str]) -> Value {
    match paths.iter().map(|path| text(object, path)).find(|it| !it.is_empty()) {
        Some(time) => since(Some(time)),
        None => "<unknown>".into(),
    }
}

pub(super) fn event_last_seen(object: &Value) -> Value {
    let times = ["series.lastObservedTime", "lastTimestamp", "firstTimestamp", "eventTime"];
    known_since(object, &times)
}

pub(super) fn event_first_seen(object: &Value) -> Value {
    known_since(object, &["firstTimestamp", "eventTime"])
}

pub(super) fn event_object(object: &Value) -> Value {
    let kind = text(object, "involvedObject.kind").to_lowercase();
    let name = text(object, "involvedObject.name");
    if name.is_empty() { kind.into() } else { format!("{kind}/{name}").into() }
}

pub(super) fn event_source(object: &Value) -> Value {
    let both = |one: &str, two: &str| match two {
        "" => one.to_owned(),
        two => format!("{one}, {two}"),
    };
    match (text(object, "source.component"), text(object, "source.host")) {
        ("", "") => {
            both(text(object, "reportingComponent"), text(object, "reportingInstance")).into()
        }
        (component, host) => both(component, host).into(),
    }
}

pub(super) fn data(object: &Value) -> Value {
    let count = |path| at(object, path).and_then(Value::as_object).map_or(0, Map::len);
    (count("data") + count("binaryData")).into()
}

pub(super) fn access_modes(object: &Value) -> Value {
    modes(object, "spec.accessModes")
}

fn modes(object: &Value, path: &str) -> Value {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    items(object, path).iter().map(short).collect::<Vec<_>>().join(",").into()
}

/// A claim has the modes of the volume that it has.
pub(super) fn access_modes_of_claim(object: &Value) -> Value {
    match text(object, "spec.volumeName") {
        "" => "".into(),
        _ => modes(object, "status.accessModes"),
    }
}

pub(super) fn claim(object: &Value) -> Value {
    match (text(object, "spec.claimRef.namespace"), text(object, "spec.claimRef.name")) {
        (_, "") => "".into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}

/// What a move moves.
pub(super) fn moved(it: &Value) -> Value {
    let slots = &it["spec"]["slots"];
    match slots.is_object() {
        true => format!("slots {}-{}", slots["first"], slots["last"]).into(),
        false => format!("tenant {}", text(it, "spec.tenant")).into(),
    }
}

pub(super) fn role_ref(object: &Value) -> Value {
    format!("{}/{}", text(object, "roleRef.kind"), text(object, "roleRef.name")).into()
}

pub(super) fn users(object: &Value) -> Value {
    subjects(object, "User")
}

pub(super) fn groups(object: &Value) -> Value {
    subjects(object, "Group")
}

pub(super) fn service_accounts(object: &Value) -> Value {
    subjects(object, "ServiceAccount")
}

fn subjects(object: &Value, kind: &str) -> Value {
    let names: Vec<String> = items(object, "subjects")
        .iter()
        .filter(|it| text(it, "kind") == kind)
        .map(|it| match text(it, "namespace") {
            "" => text(it, "name").to_owned(),
            namespace => format!("{namespace}/{}", text(it, "name")),
        })
        .collect();
    names.join(", ").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectls() {
        let cases = [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (130, "2m10s"),
            (601, "10m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (30_000, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (700_000, "8d"),
            (63_072_000, "2y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human(seconds), expected, "{seconds}");
        }
    }
}
