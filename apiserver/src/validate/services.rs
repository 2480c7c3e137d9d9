//! Services, and the lists of where they lead.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    Errors,
    at::{At, Check},
    formats::{Format, cidr, sloppy_address},
    networks::special,
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] =
    &[("api.core.v1.ServiceSpec", spec), ("api.core.v1.EndpointSubset", subset)];

fn is_headless(it: &At<'_>) -> bool {
    it.list("clusterIPs").first().is_some_and(|it| it == "None")
}

fn spec(it: &mut At<'_>) {
    let kind = it.text("type").to_owned();
    let ports = it.list("ports").to_vec();
    if ports.is_empty() && !is_headless(it) && kind != "ExternalName" {
        it.required("ports", "");
    }
    match &*kind {
        "LoadBalancer" | "NodePort" if is_headless(it) => {
            let why = format!("may not be set to 'None' for {kind} services");
            it.invalid("clusterIPs[0]", &"None".into(), &why);
        }
        "ExternalName" => external_name(it),
        _ => (),
    }
    if 1 < ports.len() {
        for (index, port) in ports.iter().enumerate() {
            if port.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() {
                it.required(&format!("ports[{index}].name"), "");
            }
        }
    }
    affinity(it);
    if kind != "ExternalName" {
        let errors = addresses(it.it, &format!("{}.", it.path));
        it.errors.extend(errors);
    }
    if kind == "ClusterIP" {
        for (index, port) in ports.iter().enumerate() {
            if port.get("nodePort").and_then(Value::as_i64).is_some_and(|it| it != 0) {
                let why = "may not be used when `type` is 'ClusterIP'";
                it.forbidden(&format!("ports[{index}].nodePort"), why);
            }
        }
    }
    let (mut of_nodes, mut of_service) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let protocol = port["protocol"].to_string();
        if let Some(number) = port.get("nodePort").filter(|it| **it != 0)
            && !of_nodes.insert((protocol.clone(), number.to_string()))
        {
            it.duplicate(&format!("ports[{index}].nodePort"), number);
        }
        if !of_service.insert((protocol, port["port"].to_string())) {
            let shown = serde_json::json!({"protocol": port["protocol"], "port": port["port"]});
            it.duplicate(&format!("ports[{index}]"), &shown);
        }
    }
    balanced(it, &kind);
    traffic(it, &kind);
}

fn external_name(it: &mut At<'_>) {
    for (field, is_set) in [
        ("clusterIPs", !it.list("clusterIPs").is_empty()),
        ("ipFamilies", !it.list("ipFamilies").is_empty()),
        ("ipFamilyPolicy", it.has("ipFamilyPolicy")),
    ] {
        if is_set {
            it.forbidden(field, "may not be set for ExternalName services");
        }
    }
    let name = it.text("externalName").to_owned();
    let name = name.strip_suffix('.').unwrap_or(&name);
    if name.is_empty() {
        it.required("externalName", "");
    } else {
        for why in Format::Subdomain.check(name) {
            it.invalid("externalName", &name.into(), &why);
        }
    }
}

fn affinity(it: &mut At<'_>) {
    let config = it.get("sessionAffinityConfig").cloned();
    match (it.text("sessionAffinity"), config) {
        ("ClientIP", config) => {
            let seconds = config.as_ref().and_then(|it| it.pointer("/clientIP/timeoutSeconds"));
            match seconds.and_then(Value::as_i64) {
                None => {
                    let why = "when session affinity type is ClientIP";
                    it.required("sessionAffinityConfig", why);
                }
                Some(1..=86400) => (),
                Some(other) => {
                    let why = "must be greater than 0 and less than 86400";
                    it.invalid("sessionAffinityConfig.clientIP.timeoutSeconds", &other.into(), why);
                }
            }
        }
        ("None", Some(_)) => {
            it.forbidden("sessionAffinityConfig", "must not be set when session affinity is None")
        }
        _ => (),
    }
}

/// What only services that somebody balances may say.
fn balanced(it: &mut At<'_>, kind: &str) {
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges = it.list("loadBalancerSourceRanges").to_vec();
    if !ranges.is_empty() {
        if kind != "LoadBalancer" {
            it.forbidden("LoadBalancerSourceRanges", only);
        }
        for (index, range) in ranges.iter().enumerate() {
            let text = range.as_str().unwrap_or_default().trim();
            for why in cidr(text) {
                it.invalid(&format!("LoadBalancerSourceRanges[{index}]"), &text.into(), &why);
            }
        }
    }
    if it.has("allocateLoadBalancerNodePorts") && kind != "LoadBalancer" {
        it.forbidden("allocateLoadBalancerNodePorts", only);
    }
    if let Some(class) = it.get("loadBalancerClass").cloned() {
        if kind != "LoadBalancer" {
            it.forbidden("loadBalancerClass", "may only be used when `type` is 'LoadBalancer'");
        }
        for why in Format::Qualified.check(class.as_str().unwrap_or_default()) {
            it.invalid("loadBalancerClass", &class, &why);
        }
    }
}

fn traffic(it: &mut At<'_>, kind: &str) {
    let is_reached = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !it.list("externalIPs").is_empty());
    let policy = it.get("externalTrafficPolicy").cloned();
    match policy {
        Some(policy) if !is_reached => {
            let why = "may only be set for externally-accessible services";
            it.invalid("externalTrafficPolicy", &policy, why);
        }
        None if is_reached => {
            it.required(
                "externalTrafficPolicy",
                "may only be set for externally-accessible services",
            );
        }
        _ => (),
    }
    let checked = kind == "LoadBalancer" && it.text("externalTrafficPolicy") == "Local";
    let port = it.get("healthCheckNodePort").filter(|it| **it != 0).cloned();
    if let Some(port) = port.filter(|_| !checked) {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        it.invalid("healthCheckNodePort", &port, why);
    }
    if !it.has("internalTrafficPolicy") && matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer")
    {
        it.required("internalTrafficPolicy", "");
    }
}

/// What is wrong with the fields of a service that are about its addresses.
pub(crate) fn cluster_addresses(service: &Value) -> Errors {
    addresses(&service["spec"], "spec.")
}

fn addresses(spec: &Value, prefix: &str) -> Errors {
    let mut errors = Vec::new();
    let at = |field: &str| format!("{prefix}{field}");
    let list = |field: &str| -> Vec<&str> {
        let list = spec.get(field).and_then(Value::as_array);
        list.into_iter().flatten().map(|it| it.as_str().unwrap_or_default()).collect()
    };
    let (all, families) = (list("clusterIPs"), list("ipFamilies"));
    let shown = spec.get("clusterIPs").cloned().unwrap_or_default();
    match spec.get("clusterIP").and_then(Value::as_str).unwrap_or_default() {
        "" if !all.is_empty() => {
            let why = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(at("clusterIPs"), &shown, why));
        }
        "" => (),
        _ if all.is_empty() => errors.push(FieldError::required(at("clusterIPs"), "")),
        one if one != all[0] => {
            let why = "first value must match `clusterIP`";
            errors.push(FieldError::invalid(at("clusterIPs"), &shown, why));
        }
        _ => (),
    }
    for (index, family) in families.iter().enumerate() {
        let at = at(&format!("ipFamilies[{index}]"));
        if !["IPv4", "IPv6"].contains(family) {
            errors.push(FieldError::unsupported(&*at, &(*family).into(), &["IPv4", "IPv6"]));
        }
        // There are two; what is behind a third is wrong anyway.
        if families[..index.min(2)].contains(family) {
            errors.push(FieldError::duplicate(at, &(*family).into()));
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if let Some(policy) = spec.get("ipFamilyPolicy").filter(|it| !it.is_null())
        && !policies.contains(&policy.as_str().unwrap_or_default())
    {
        errors.push(FieldError::unsupported(at("ipFamilyPolicy"), policy, &policies));
    }
    let mut is_wrong = false;
    for (index, address) in all.iter().enumerate() {
        if index == 0 && *address == "None" {
            if 1 < all.len() {
                is_wrong = true;
                let why = "'None' must be the first and only value";
                errors.push(FieldError::invalid(at("clusterIPs"), &shown, why));
            }
            continue;
        }
        for why in Format::Ip.check(address) {
            is_wrong = true;
            let at = at(&format!("clusterIPs[{index}]"));
            errors.push(FieldError::invalid(at, &(*address).into(), &why));
        }
    }
    if 2 < all.len() {
        let why = "may only hold up to 2 values";
        errors.push(FieldError::invalid(at("clusterIPs"), &shown, why));
    }
    if is_wrong {
        return errors;
    }
    let parsed: Vec<_> = all.iter().filter_map(|it| sloppy_address(it)).collect();
    if 1 < parsed.len() && parsed.iter().skip(1).any(|it| it.is_ipv4() == parsed[0].is_ipv4()) {
        let why = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(at("clusterIPs"), &shown, why));
    }
    for (index, (address, family)) in parsed.iter().zip(&families).enumerate() {
        let is = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if is != *family {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            let at = at(&format!("clusterIPs[{index}]"));
            errors.push(FieldError::invalid(at, &address.to_string().into(), &why));
        }
    }
    errors
}

/// What is wrong with a change of a service.
pub(super) fn update(old: &Value, new: &Value, errors: &mut Errors) {
    let text = |it: &Value, field: &str| {
        it["spec"].get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let list = |it: &Value, field: &str| -> Vec<Value> {
        it["spec"].get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let is_external = |it: &Value| text(it, "type") == "ExternalName";
    if is_external(old) || is_external(new) {
        return;
    }
    let headless = |it: &Value| list(it, "clusterIPs").first() == Some(&"None".into());
    for (field, unset) in [
        ("clusterIPs", "primary clusterIP can not be unset"),
        ("ipFamilies", "primary ipFamily can not be unset"),
    ] {
        let (had, has) = (list(old, field), list(new, field));
        let is_open = |it: &Value| {
            let selector = it["spec"].get("selector").and_then(Value::as_object);
            headless(it)
                && (field == "clusterIPs" || selector.is_none_or(serde_json::Map::is_empty))
        };
        if is_open(old) && is_open(new) {
            continue;
        }
        let shown = new["spec"].get(field).cloned().unwrap_or_else(|| Value::Array(Vec::new()));
        if !had.is_empty() && has.is_empty() {
            errors.push(FieldError::invalid(format!("spec.{field}[0]"), &shown, unset));
            continue;
        }
        let n_same = if had.len() == has.len() { had.len() } else { 1 };
        for index in 0..n_same.min(had.len()) {
            if had[index] != has[index] {
                let at = format!("spec.{field}[{index}]");
                errors.push(FieldError::invalid(at, &shown, "may not change once set"));
            }
        }
        if has.len() < had.len() && text(new, "ipFamilyPolicy") != "SingleStack" {
            let why = format!(
                "must be set to 'SingleStack' when releasing the secondary {}",
                if field == "clusterIPs" { "clusterIP" } else { "ipFamily" }
            );
            let policy = new["spec"].get("ipFamilyPolicy").cloned().unwrap_or_default();
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", &policy, &why));
        }
    }
    if text(old, "type") == "LoadBalancer"
        && text(new, "type") == "LoadBalancer"
        && text(old, "loadBalancerClass") != text(new, "loadBalancerClass")
    {
        let shown = new["spec"].get("loadBalancerClass").cloned().unwrap_or_default();
        errors.push(FieldError::invalid(
            "spec.loadBalancerClass",
            &shown,
            "may not change once set",
        ));
    }
}

fn subset(it: &mut At<'_>) {
    for field in ["addresses", "notReadyAddresses"] {
        for (index, address) in it.list(field).to_vec().iter().enumerate() {
            let ip = address.get("ip").and_then(Value::as_str).unwrap_or_default();
            let at = format!("{field}[{index}].ip");
            match sloppy_address(ip) {
                None => it.invalid(&at, &ip.into(), "must be a valid IP address"),
                Some(address) => {
                    if let Some(why) = special(address) {
                        it.invalid(&at, &ip.into(), why);
                    }
                }
            }
        }
    }
    if it.list("addresses").is_empty() && it.list("notReadyAddresses").is_empty() {
        let path = it.path.to_string();
        let why = "must specify `addresses` or `notReadyAddresses`";
        it.errors.push(FieldError::required(path, why));
    }
    let ports = it.list("ports").to_vec();
    if 1 < ports.len() {
        for (index, port) in ports.iter().enumerate() {
            if port.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() {
                it.required(&format!("ports[{index}].name"), "");
            }
        }
    }
}
