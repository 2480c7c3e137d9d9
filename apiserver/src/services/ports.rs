//! Which ports of nodes a service has, and which it wants.

use std::{collections::HashMap, ops::RangeInclusive};

use insula_api::object;
use rand::Rng as _;
use serde_json::Value;

/// What one port of a service wants of nodes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Want {
    Nothing,
    /// A number that somebody asks for, be it a port or not.
    This(i64),
    Any,
}

fn list(service: &Value) -> &[Value] {
    service["spec"].get("ports").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn len(service: &Value) -> usize {
    list(service).len()
}

fn number(it: &Value, field: &str) -> Option<u16> {
    let number = it.get(field).and_then(Value::as_u64)?;
    u16::try_from(number).ok().filter(|it| *it != 0)
}

/// Whether a service of this type is reached through nodes.
pub(super) fn are_used(service: &Value) -> bool {
    matches!(object::text(service, &["spec", "type"]), "NodePort" | "LoadBalancer")
}

/// What the port at `index` wants.
pub(super) fn want(service: &Value, index: usize) -> Want {
    if !are_used(service) {
        return Want::Nothing;
    }
    let asked = list(service).get(index).and_then(|it| it.get("nodePort")?.as_i64());
    let asked = asked.filter(|it| *it != 0);
    let is_balanced = object::text(service, &["spec", "type"]) == "LoadBalancer";
    let declined = service["spec"].get("allocateLoadBalancerNodePorts") == Some(&false.into());
    match asked {
        Some(port) => Want::This(port),
        None if is_balanced && declined => Want::Nothing,
        None => Want::Any,
    }
}

/// The port of nodes that another entry with the same port, of another protocol, has or wants.
pub(super) fn same_port(service: &Value, index: usize) -> Option<u16> {
    let wanted = list(service).get(index)?;
    let same = |it: &&Value| it["port"] == wanted["port"] && it["protocol"] != wanted["protocol"];
    list(service).iter().filter(same).find_map(|it| number(it, "nodePort"))
}

/// The ports of nodes that lead to a service.
pub(super) fn of_nodes(service: &Value) -> Vec<u16> {
    // One of another type may name some, and has none of them.
    let ports = if are_used(service) { list(service) } else { &[] };
    ports.iter().filter_map(|it| number(it, "nodePort")).collect()
}

/// The port where nodes tell whether they have an endpoint.
pub(super) fn of_health_check(service: &Value) -> Option<u16> {
    needs_health_check(service).then(|| number(&service["spec"], "healthCheckNodePort")).flatten()
}

/// All ports of nodes that a service has.
pub(super) fn all(service: &Value) -> Vec<u16> {
    let mut found = of_nodes(service);
    found.extend(of_health_check(service));
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether somebody asks nodes if they have an endpoint.
pub(super) fn needs_health_check(service: &Value) -> bool {
    object::text(service, &["spec", "type"]) == "LoadBalancer"
        && object::text(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

/// All ports of a range, from some point on: those that nobody asks for by number come first.
pub(super) fn candidates(range: &RangeInclusive<u16>) -> impl Iterator<Item = u16> {
    let (first, n_ports) = (*range.start(), range.end().saturating_sub(*range.start()) + 1);
    let asked_for = (n_ports / 32).clamp(16, 128).min(n_ports);
    let rest = n_ports - asked_for;
    let from = if rest == 0 { 0 } else { rand::rng().random_range(0..rest) };
    let in_rest = (0..rest).map(move |it| first + asked_for + (from + it) % rest);
    in_rest.chain((0..asked_for).map(move |it| first + it))
}

/// Takes from `old` the ports of nodes that an update left out.
pub(super) fn patch(old: &Value, new: &mut Value) {
    if are_used(old) && are_used(new) {
        let used: Vec<u16> = list(new).iter().filter_map(|it| number(it, "nodePort")).collect();
        let name = |it: &Value| object::text(it, &["name"]).to_owned();
        let known: HashMap<String, u16> = list(old)
            .iter()
            .filter_map(|it| Some((name(it), number(it, "nodePort")?)))
            .filter(|(_, port)| !used.contains(port))
            .collect();
        let ports = new["spec"].get_mut("ports").and_then(Value::as_array_mut);
        for it in ports.into_iter().flatten() {
            if number(it, "nodePort").is_none()
                && let Some(port) = known.get(&name(it))
            {
                it["nodePort"] = (*port).into();
            }
        }
    }
    if needs_health_check(old)
        && needs_health_check(new)
        && number(&new["spec"], "healthCheckNodePort").is_none()
        && let Some(port) = of_health_check(old)
    {
        new["spec"]["healthCheckNodePort"] = port.into();
    }
}

/// Drops what a service that changed its type was given for the old one.
pub(super) fn drop_unused(old: &Value, new: &mut Value) {
    let same = |field: &str, new: &Value| old["spec"].get(field) == new["spec"].get(field);
    if are_used(old) && !are_used(new) {
        let of = |it: &Value| list(it).iter().map(|it| number(it, "nodePort")).collect::<Vec<_>>();
        if of(old) == of(new) {
            let ports = new["spec"].get_mut("ports").and_then(Value::as_array_mut);
            for it in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
                it.remove("nodePort");
            }
        }
    }
    let mut unneeded = Vec::new();
    if needs_health_check(old) && !needs_health_check(new) {
        unneeded.push("healthCheckNodePort");
    }
    let balanced = |it: &Value| object::text(it, &["spec", "type"]) == "LoadBalancer";
    if balanced(old) && !balanced(new) {
        unneeded.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    let reached = |it: &Value| {
        let external = it["spec"].get("externalIPs").and_then(Value::as_array);
        are_used(it)
            || (object::text(it, &["spec", "type"]) == "ClusterIP"
                && external.is_some_and(|it| !it.is_empty()))
    };
    if reached(old) && !reached(new) {
        unneeded.push("externalTrafficPolicy");
    }
    for field in unneeded {
        if same(field, new)
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.remove(field);
        }
    }
    if !balanced(new)
        && let Some(status) = new.get_mut("status").and_then(Value::as_object_mut)
        && status.contains_key("loadBalancer")
    {
        status.insert("loadBalancer".into(), serde_json::json!({}));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_port_of_a_range_is_a_candidate_once() {
        for range in [30000..=32767, 30000..=30010, 30000..=30000] {
            let mut all: Vec<u16> = candidates(&range).collect();
            all.sort_unstable();
            assert_eq!(all, range.collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_update_keeps_what_it_leaves_out() {
        let old = json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 1, "nodePort": 30001}, {"name": "b", "port": 2, "nodePort": 30002}]}});
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"name": "b", "port": 3}, {"name": "a", "port": 1, "nodePort": 30002}]}});
        patch(&old, &mut new);
        // Somebody else has the number that was b's.
        assert_eq!(want(&new, 0), Want::Any);
        assert_eq!(want(&new, 1), Want::This(30002));
        let mut new = json!({"spec": {"type": "NodePort", "ports": [{"name": "b", "port": 3}]}});
        patch(&old, &mut new);
        assert_eq!(all(&new), [30002]);
    }

    #[test]
    fn a_change_of_type_drops_ports() {
        let old = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "ports": [{"port": 1, "nodePort": 30001}]}});
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        drop_unused(&old, &mut new);
        assert_eq!(new["spec"], json!({"type": "ClusterIP", "ports": [{"port": 1}]}));
    }
}
