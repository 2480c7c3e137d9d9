//! Endpoints shared among zones, where a service asks for it: `service.kubernetes.io/topology-mode`
//! (KEP-2433).
//!
//! A zone is to have a part of a service's endpoints as large as its part of all CPUs, and no zone
//! may be given so few that each has a fifth more to do than it should. Endpoints serve their own
//! zone as far as that goes; the rest is told to serve others. Who has served a zone goes on to.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use insula_api::quantity::Quantity;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::{Endpoint, EndpointHints, ForZone},
};

use super::split::identity;
use crate::objects::annotation;

const MODES: [&str; 2] =
    ["service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"];
const ZONE: &str = "topology.kubernetes.io/zone";
/// On nodes that serve nobody.
const EXCLUDED: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];
/// By how much more than its part an endpoint may have to do.
const OVERLOAD: f64 = 0.2;

/// The part of all CPUs that each zone has. Fewer than two zones have none.
pub(super) type Shares = BTreeMap<String, f64>;

/// Whether a service asks for it.
pub(super) fn is_asked(service: &Service) -> bool {
    let mode = MODES.iter().find_map(|it| annotation(service, it));
    matches!(mode, Some("Auto" | "auto"))
}

/// What of a node counts: its zone and its CPUs in thousandths, if it serves anybody. Without
/// either it leaves nothing that could be shared.
fn counts(node: &Node) -> Option<(Option<&str>, i64)> {
    let labels = node.metadata.labels.as_ref();
    let has = |name: &&str| labels.is_some_and(|it| it.contains_key(*name));
    let status = node.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|it| it.type_ == "Ready" && it.status == "True");
    if !is_ready || EXCLUDED.iter().any(has) {
        return None;
    }
    let cpu = status.allocatable.as_ref().and_then(|it| it.get("cpu"));
    let cpu = cpu.and_then(|it| Quantity::parse(&it.0).ok()).map_or(0, |it| it.milli_value());
    let zone = labels.and_then(|it| it.get(ZONE)).map(String::as_str);
    Some((zone.filter(|it| !it.is_empty()), cpu))
}

/// Whether a change of a node changes what zones have.
pub(super) fn is_changed(old: Option<&Node>, new: Option<&Node>) -> bool {
    old.and_then(counts) != new.and_then(counts)
}

/// What zones have of all nodes.
pub(super) fn shares<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> Shares {
    let mut by_zone: BTreeMap<String, i64> = BTreeMap::new();
    for (zone, cpu) in nodes.into_iter().filter_map(counts) {
        let Some(zone) = zone.filter(|_| 0 < cpu) else { return Shares::new() };
        *by_zone.entry(zone.to_owned()).or_default() += cpu;
    }
    if by_zone.len() < 2 {
        return Shares::new();
    }
    let total: i64 = by_zone.values().sum();
    by_zone.into_iter().map(|(zone, cpu)| (zone, cpu as f64 / total as f64)).collect()
}

/// Why endpoints are not shared among zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    UnknownZones,
    TooFew { n_endpoints: usize, n_zones: usize },
    Overload { n_endpoints: usize, n_zones: usize },
    NoZone,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownZones => f.write_str(
                "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes",
            ),
            Self::TooFew { n_endpoints, n_zones } => write!(
                f,
                "Insufficient number of endpoints ({n_endpoints} endpoints, {n_zones} zones)"
            ),
            Self::Overload { n_endpoints, n_zones } => write!(
                f,
                "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold ({n_endpoints} endpoints, {n_zones} zones)"
            ),
            Self::NoZone => f.write_str("One or more endpoints do not have a zone specified"),
        }
    }
}

/// How many endpoints a zone is to have.
#[derive(Debug, Clone, Copy)]
struct Allocation {
    most: usize,
    desired: f64,
}

fn allocations(n_endpoints: usize, shares: &Shares) -> Result<BTreeMap<&str, Allocation>, Refused> {
    let n_zones = shares.len();
    if n_zones < 2 {
        return Err(Refused::UnknownZones);
    }
    if n_endpoints < n_zones {
        return Err(Refused::TooFew { n_endpoints, n_zones });
    }
    let least = |share: f64| (share * n_endpoints as f64 / (1.0 + OVERLOAD)).ceil();
    let all_least: f64 = shares.values().map(|share| least(*share)).sum();
    let Some(spare) = n_endpoints.checked_sub(all_least as usize) else {
        return Err(Refused::Overload { n_endpoints, n_zones });
    };
    let allocation = |share: f64| Allocation {
        most: least(share) as usize + spare,
        desired: (share * n_endpoints as f64).max(least(share)),
    };
    Ok(shares.iter().map(|(zone, share)| (zone.as_str(), allocation(*share))).collect())
}

/// Which zones were served by endpoints until now, by identity.
pub(super) type Served = HashMap<(String, String), String>;

/// The zones that endpoints are told to serve.
pub(super) fn served<'e>(endpoints: impl IntoIterator<Item = &'e Endpoint>) -> Served {
    let zone = |it: &Endpoint| Some(it.hints.as_ref()?.for_zones.as_ref()?.first()?.name.clone());
    endpoints.into_iter().filter_map(|it| Some((identity(it), zone(it)?))).collect()
}

/// Tells endpoints that are ready which zone to serve; all or none.
pub(super) fn share(
    endpoints: Vec<&mut Endpoint>,
    served: &Served,
    shares: &Shares,
) -> Result<(), Refused> {
    let is_ready = |it: &Endpoint| it.conditions.as_ref().is_some_and(|it| it.ready == Some(true));
    let ready: Vec<_> = endpoints.into_iter().filter(|it| is_ready(it)).collect();
    let allocations = allocations(ready.len(), shares)?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut new = Vec::new();
    for endpoint in ready {
        let Some(own) = endpoint.zone.clone().filter(|it| !it.is_empty()) else {
            return Err(Refused::NoZone);
        };
        let before = served.get(&identity(endpoint)).filter(|zone| {
            let most = allocations.get(zone.as_str()).map_or(0, |it| it.most);
            counts.get(*zone).copied().unwrap_or(0) < most
        });
        match before {
            Some(zone) => {
                *counts.entry(zone.clone()).or_default() += 1;
                endpoint.hints = for_zone(zone);
            }
            None => new.push((own, endpoint)),
        }
    }
    for (own, _) in &new {
        *counts.entry(own.clone()).or_default() += 1;
    }
    let (mut giving, mut receiving) = transfers(&allocations, &counts);
    for (own, endpoint) in new {
        let to = giving.get_mut(&own).filter(|left| 0 < **left).and_then(|left| {
            let (zone, wanted) = receiving.iter_mut().find(|(_, wanted)| 0 < **wanted)?;
            (*left, *wanted) = (*left - 1, *wanted - 1);
            Some(zone.clone())
        });
        endpoint.hints = for_zone(&to.unwrap_or(own));
    }
    Ok(())
}

fn for_zone(zone: &str) -> Option<EndpointHints> {
    let for_zones = Some(vec![ForZone { name: zone.to_owned() }]);
    Some(EndpointHints { for_zones, for_nodes: None })
}

/// How many endpoints zones give away, and are given.
fn transfers(
    allocations: &BTreeMap<&str, Allocation>,
    counts: &BTreeMap<String, usize>,
) -> (BTreeMap<String, usize>, BTreeMap<String, usize>) {
    let surplus = |(zone, it): (&&str, &Allocation)| {
        let has = counts.get(*zone).copied().unwrap_or(0) as f64;
        ((*zone).to_owned(), has - it.desired)
    };
    let mut surplus: BTreeMap<String, f64> = allocations.iter().map(surplus).collect();
    let (mut giving, mut receiving) = (BTreeMap::new(), BTreeMap::new());
    loop {
        let by_surplus = |a: &(&String, &f64), b: &(&String, &f64)| a.1.total_cmp(b.1);
        let Some((from, more)) = surplus.iter().max_by(by_surplus) else { break };
        let Some((to, less)) = surplus.iter().min_by(by_surplus) else { break };
        let less = -less;
        // Half an endpoint cannot be moved; neither is it worth it if both miss less than one.
        if *more < 0.5 || less < 0.5 || (*more < 1.0 && less < 1.0) {
            break;
        }
        let (from, to) = (from.clone(), to.clone());
        *giving.entry(from.clone()).or_default() += 1;
        *receiving.entry(to.clone()).or_default() += 1;
        surplus.entry(from).and_modify(|it| *it -= 1.0);
        surplus.entry(to).and_modify(|it| *it += 1.0);
    }
    (giving, receiving)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(zone: Option<&str>, cpu: &str, ready: &str) -> Node {
        let mut labels = json!({});
        if let Some(zone) = zone {
            labels[ZONE] = json!(zone);
        }
        serde_json::from_value(json!({
            "metadata": {"labels": labels},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [
                {"type": "Ready", "status": ready},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn zones_have_what_their_ready_nodes_have() {
        let two = [node(Some("a"), "3", "True"), node(Some("b"), "1000m", "True")];
        assert_eq!(shares(&two), Shares::from([("a".into(), 0.75), ("b".into(), 0.25)]));
        let more = two.iter().chain([]).cloned().chain([node(None, "4", "False")]);
        assert_eq!(shares(&more.collect::<Vec<_>>()).len(), 2, "it is not ready");
        let unknown = [two[0].clone(), two[1].clone(), node(None, "4", "True")];
        assert!(shares(&unknown).is_empty());
        assert!(shares(&two[..1]).is_empty(), "one zone");
    }

    fn endpoints(zones: &str) -> Vec<Endpoint> {
        let endpoint = |(n, zone): (usize, char)| {
            let zone = Some(zone.to_string()).filter(|it| it != "-");
            let conditions = json!({"ready": true});
            let it = json!({"addresses": [n.to_string()], "zone": zone, "conditions": conditions});
            serde_json::from_value(it).unwrap()
        };
        zones.chars().enumerate().map(endpoint).collect()
    }

    /// Endpoints by their zones, and the zones that they serve.
    #[track_caller]
    fn check(zones: &str, before: &str, parts: &[(&str, f64)], expected: Result<&str, Refused>) {
        let shares = parts.iter().map(|(zone, share)| ((*zone).to_owned(), *share)).collect();
        let mut all = endpoints(zones);
        let served = all.iter().zip(before.chars()).filter(|(_, zone)| *zone != '-');
        let served = served.map(|(it, zone)| (identity(it), zone.to_string())).collect();
        let outcome = share(all.iter_mut().collect(), &served, &shares);
        let shown = all.iter().map(|it| {
            let zones = it.hints.as_ref().and_then(|it| it.for_zones.as_ref());
            zones.map_or_else(|| "-".to_owned(), |it| it[0].name.clone())
        });
        assert_eq!(outcome.map(|()| shown.collect::<String>()), expected.map(str::to_owned));
    }

    #[test]
    fn endpoints_serve_zones_by_their_parts() {
        let half = [("a", 0.5), ("b", 0.5)];
        check("aabb", "", &half, Ok("aabb"));
        check("aaab", "", &half, Ok("baab"));
        check("aaaa", "", &half, Ok("bbaa"));
        // Who has served a zone goes on to, as far as no zone has too many then.
        check("aaab", "abab", &half, Ok("abab"));
        check("aaabb", "aaabb", &half, Err(Refused::Overload { n_endpoints: 5, n_zones: 2 }));
        check("aaaaaa", "aabbb", &half, Ok("aabbba"));
        let thirds = [("a", 0.34), ("b", 0.33), ("c", 0.33)];
        check("aab", "", &half, Err(Refused::Overload { n_endpoints: 3, n_zones: 2 }));
        check("ab", "", &thirds, Err(Refused::TooFew { n_endpoints: 2, n_zones: 3 }));
        check("aab-", "", &half, Err(Refused::NoZone));
        check("aabb", "", &[], Err(Refused::UnknownZones));
        // Where a zone has no part, its endpoints still serve it.
        check("aacc", "aacc", &half, Ok("aacc"));
    }
}
