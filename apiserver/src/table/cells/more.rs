//! Cells of the rarer kinds.

use insula_api::object;
use serde_json::{Map, Value};

use super::{containers_at, human, joined, selector_at};
use crate::table::{at, items, number, text};

/// At most `most` texts, and how many more there are.
fn some(all: &[String], most: usize, none: &str) -> Value {
    match all.len() {
        0 => none.into(),
        n if n <= most => all.join(",").into(),
        n => format!("{} + {} more...", all[..most].join(","), n - most).into(),
    }
}

fn with_port(address: &str, port: i64) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

pub(in crate::table) fn endpoints(it: &Value) -> Value {
    let mut all = Vec::new();
    for subset in items(it, "subsets") {
        let addresses: Vec<&str> =
            items(subset, "addresses").iter().map(|it| text(it, "ip")).collect();
        let ports = items(subset, "ports");
        if ports.is_empty() {
            all.extend(addresses.iter().map(|it| (*it).to_owned()));
        }
        for port in ports {
            all.extend(addresses.iter().map(|it| with_port(it, number(port, "port"))));
        }
    }
    some(&all, 3, "<none>")
}

pub(in crate::table) fn slice_ports(it: &Value) -> Value {
    let ports: Vec<String> = items(it, "ports")
        .iter()
        .map(|it| match (it.get("port").and_then(Value::as_i64), text(it, "name")) {
            (Some(port), _) => port.to_string(),
            (None, "") => "*".to_owned(),
            (None, name) => name.to_owned(),
        })
        .collect();
    some(&ports, 3, "<unset>")
}

pub(in crate::table) fn slice_endpoints(it: &Value) -> Value {
    let all: Vec<String> = items(it, "endpoints")
        .iter()
        .flat_map(|it| items(it, "addresses"))
        .filter_map(|it| it.as_str().map(str::to_owned))
        .collect();
    some(&all, 3, "<unset>")
}

pub(in crate::table) fn phase(it: &Value) -> Value {
    match object::is_deleting(it) {
        true => "Terminating".into(),
        false => text(it, "status.phase").into(),
    }
}

/// The class that is taken where none is asked for says so.
pub(in crate::table) fn name_of_class(it: &Value) -> Value {
    const MARKS: [&str; 3] = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
        "ingressclass.kubernetes.io/is-default-class",
    ];
    let annotations = object::metadata(it).get("annotations");
    let is_default = annotations
        .is_some_and(|it| MARKS.iter().any(|mark| it.get(*mark).is_some_and(|it| it == "true")));
    let name = object::name(it);
    if is_default { format!("{name} (default)").into() } else { name.into() }
}

pub(in crate::table) fn class_parameters(it: &Value) -> Value {
    let Some(found) = at(it, "spec.parameters").filter(|it| it.is_object()) else {
        return "<none>".into();
    };
    let (kind, group) = (text(found, "kind"), text(found, "apiGroup"));
    let kind = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    format!("{kind}/{}", text(found, "name")).into()
}

pub(in crate::table) fn ingress_hosts(it: &Value) -> Value {
    let rules = items(it, "spec.rules");
    let hosts: Vec<String> =
        rules.iter().map(|it| text(it, "host").to_owned()).filter(|it| !it.is_empty()).collect();
    some(&hosts, 3, "*")
}

pub(in crate::table) fn ingress_address(it: &Value) -> Value {
    let mut all: Vec<&str> = items(it, "status.loadBalancer.ingress")
        .iter()
        .map(|it| match text(it, "ip") {
            "" => text(it, "hostname"),
            ip => ip,
        })
        .filter(|it| !it.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(",").into()
}

pub(in crate::table) fn ingress_ports(it: &Value) -> Value {
    if items(it, "spec.tls").is_empty() { "80".into() } else { "80, 443".into() }
}

pub(in crate::table) fn parent_ref(it: &Value) -> Value {
    let Some(parent) = at(it, "spec.parentRef") else { return "<none>".into() };
    let mut out = text(parent, "resource").to_lowercase();
    if !text(parent, "group").is_empty() {
        out.push_str(&format!(".{}", text(parent, "group").to_lowercase()));
    }
    for field in ["namespace", "name"] {
        if !text(parent, field).is_empty() {
            out.push_str(&format!("/{}", text(parent, field)));
        }
    }
    out.into()
}

pub(in crate::table) fn pod_selector(it: &Value) -> Value {
    selector_at(it, "spec.podSelector")
}

pub(in crate::table) fn labels_of_template(it: &Value) -> Value {
    joined(at(it, "template.metadata.labels").and_then(Value::as_object))
}

pub(in crate::table) fn containers_of_template(it: &Value) -> Value {
    containers_at(it, "template.spec.containers", "name")
}

pub(in crate::table) fn images_of_template(it: &Value) -> Value {
    containers_at(it, "template.spec.containers", "image")
}

pub(in crate::table) fn job_template_containers(it: &Value) -> Value {
    containers_at(it, "spec.jobTemplate.spec.template.spec.containers", "name")
}

pub(in crate::table) fn job_template_images(it: &Value) -> Value {
    containers_at(it, "spec.jobTemplate.spec.template.spec.containers", "image")
}

pub(in crate::table) fn job_template_selector(it: &Value) -> Value {
    selector_at(it, "spec.jobTemplate.spec.selector")
}

fn healthy(it: &Value) -> Option<&Value> {
    items(it, "conditions").iter().find(|it| text(it, "type") == "Healthy")
}

pub(in crate::table) fn component_status(it: &Value) -> Value {
    match healthy(it).map(|it| text(it, "status")) {
        None => "Unknown".into(),
        Some("True") => "Healthy".into(),
        Some(_) => "Unhealthy".into(),
    }
}

pub(in crate::table) fn component_message(it: &Value) -> Value {
    healthy(it).map(|it| text(it, "message")).unwrap_or_default().into()
}

pub(in crate::table) fn component_error(it: &Value) -> Value {
    healthy(it).map(|it| text(it, "error")).unwrap_or_default().into()
}

fn quota(it: &Value, of_limits: bool) -> Value {
    let hard = at(it, "status.hard").and_then(Value::as_object).into_iter().flatten();
    let used = at(it, "status.used").and_then(Value::as_object).cloned().unwrap_or_default();
    let shown: Vec<String> = hard
        .filter(|(name, _)| name.starts_with("limits.") == of_limits)
        .map(|(name, hard)| {
            let used = used.get(name).and_then(Value::as_str).unwrap_or("0");
            format!("{name}: {used}/{}", hard.as_str().unwrap_or_default())
        })
        .collect();
    shown.join(", ").into()
}

pub(in crate::table) fn quota_requests(it: &Value) -> Value {
    quota(it, false)
}

pub(in crate::table) fn quota_limits(it: &Value) -> Value {
    quota(it, true)
}

pub(in crate::table) fn param_kind(it: &Value) -> Value {
    match at(it, "spec.paramKind").filter(|it| it.is_object()) {
        None => "<unset>".into(),
        Some(found) => format!("{}/{}", text(found, "apiVersion"), text(found, "kind")).into(),
    }
}

pub(in crate::table) fn param_ref(it: &Value) -> Value {
    let Some(found) = at(it, "spec.paramRef").filter(|it| it.is_object()) else {
        return "<unset>".into();
    };
    match (text(found, "namespace"), text(found, "name")) {
        (_, "") => selector_at(found, "selector"),
        ("", name) => format!("*/{name}").into(),
        (namespace, name) => format!("{namespace}/{name}").into(),
    }
}

pub(in crate::table) fn api_service(it: &Value) -> Value {
    match at(it, "spec.service").filter(|it| it.is_object()) {
        None => "Local".into(),
        Some(found) => format!("{}/{}", text(found, "namespace"), text(found, "name")).into(),
    }
}

pub(in crate::table) fn api_available(it: &Value) -> Value {
    let found = items(it, "status.conditions").iter().find(|it| text(it, "type") == "Available");
    match found {
        None => "Unknown".into(),
        Some(it) if text(it, "status") == "True" || text(it, "reason").is_empty() => {
            text(it, "status").into()
        }
        Some(it) => format!("{} ({})", text(it, "status"), text(it, "reason")).into(),
    }
}

pub(in crate::table) fn controller(it: &Value) -> Value {
    let owners = object::metadata(it).get("ownerReferences").and_then(Value::as_array);
    let owner = owners.into_iter().flatten().find(|it| it["controller"] == true);
    let Some(owner) = owner else { return "<none>".into() };
    let group = text(owner, "apiVersion").split_once('/').map_or("", |(group, _)| group);
    let kind = text(owner, "kind").to_lowercase();
    let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
    format!("{kind}/{}", text(owner, "name")).into()
}

pub(in crate::table) fn scale_target(it: &Value) -> Value {
    let (kind, name) = (text(it, "spec.scaleTargetRef.kind"), text(it, "spec.scaleTargetRef.name"));
    format!("{kind}/{name}").into()
}

/// What an autoscaler aims at, and where it is.
pub(in crate::table) fn metrics(it: &Value) -> Value {
    let current = items(it, "status.currentMetrics");
    let specs = items(it, "spec.metrics");
    if specs.is_empty() {
        return "<none>".into();
    }
    let mut list: Vec<String> =
        specs.iter().enumerate().map(|(index, spec)| metric(spec, current.get(index))).collect();
    let n = list.len();
    list.truncate(2);
    let shown = list.join(", ");
    if 2 < n { format!("{shown} + {} more...", n - 2).into() } else { shown.into() }
}

fn metric(spec: &Value, current: Option<&Value>) -> String {
    let mut letters = text(spec, "type").chars();
    let field: String =
        letters.next().map(|it| it.to_ascii_lowercase()).into_iter().chain(letters).collect();
    let Some(source) = spec.get(&field) else { return "<unknown type>".into() };
    let now = |name: &str| -> String {
        let found = current.and_then(|it| it.get(&field)).and_then(|it| it.get("current"));
        match found.and_then(|it| it.get(name)) {
            Some(Value::Number(percent)) => format!("{percent}%"),
            Some(Value::String(amount)) => amount.clone(),
            _ => "<unknown>".into(),
        }
    };
    let (average, value) = (text(source, "target.averageValue"), text(source, "target.value"));
    let of_resource = field == "resource" || field == "containerResource";
    let shown = match (of_resource, average) {
        (true, "") => {
            let target = at(source, "target.averageUtilization").and_then(Value::as_i64);
            let target = target.map_or_else(|| "<auto>".to_owned(), |it| format!("{it}%"));
            format!("{}/{target}", now("averageUtilization"))
        }
        (false, "") => format!("{}/{value}", now("value")),
        (false, average) if field != "pods" => format!("{}/{average} (avg)", now("averageValue")),
        (_, average) => format!("{}/{average}", now("averageValue")),
    };
    if of_resource { format!("{}: {shown}", text(source, "name")) } else { shown }
}

pub(in crate::table) fn requested_duration(it: &Value) -> Value {
    match at(it, "spec.expirationSeconds").and_then(Value::as_i64) {
        None => "<none>".into(),
        Some(seconds) => human(seconds).into(),
    }
}

pub(in crate::table) fn certificate_condition(it: &Value) -> Value {
    let has = |kind: &str| items(it, "status.conditions").iter().any(|it| text(it, "type") == kind);
    let mut out = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        out.push_str(",Failed");
    }
    if !text(it, "status.certificate").is_empty() {
        out.push_str(",Issued");
    }
    out.into()
}

pub(in crate::table) fn missing_level(it: &Value) -> Value {
    let found = items(it, "status.conditions").iter().find(|it| text(it, "type") == "Dangling");
    found.map_or("?", |it| text(it, "status")).into()
}

pub(in crate::table) fn claim_state(it: &Value) -> Value {
    let mut states = Vec::new();
    let is_leaving = object::is_deleting(it);
    if is_leaving {
        states.push("deleted");
    }
    match at(it, "status.allocation").filter(|it| it.is_object()) {
        None if !is_leaving => states.push("pending"),
        None => (),
        Some(_) => {
            states.push("allocated");
            if !items(it, "status.reservedFor").is_empty() {
                states.push("reserved");
            }
        }
    }
    states.join(",").into()
}

pub(in crate::table) fn token_requests(it: &Value) -> Value {
    match at(it, "spec.tokenRequests").and_then(Value::as_array) {
        None => "<unset>".into(),
        Some(list) => {
            list.iter().map(|it| text(it, "audience")).collect::<Vec<_>>().join(",").into()
        }
    }
}

/// The texts of a list, with commas.
pub(in crate::table) fn join(list: Option<&Value>) -> Value {
    let texts = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    texts.collect::<Vec<_>>().join(",").into()
}

/// How many items a list, or a map, has.
pub(in crate::table) fn count(of: Option<&Value>) -> Value {
    match of {
        Some(Value::Array(list)) => list.len().into(),
        Some(Value::Object(map)) => Map::len(map).into(),
        _ => 0.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_cut() {
        let it = json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "::1"}], "ports": [{"port": 80}, {"port": 81}]}]});
        assert_eq!(endpoints(&it), "1.1.1.1:80,[::1]:80,1.1.1.1:81 + 1 more...");
        assert_eq!(slice_ports(&json!({})), "<unset>");
    }

    #[test]
    fn autoscalers_show_where_they_are() {
        let it = json!({
            "spec": {"metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
                {"type": "Pods", "pods": {"target": {"averageValue": "5"}}},
                {"type": "Object", "object": {"target": {"value": "7"}}},
            ]},
            "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 3}}}]},
        });
        assert_eq!(metrics(&it), "cpu: 3%/80%, <unknown>/5 + 1 more...");
    }
}
