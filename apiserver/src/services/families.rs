//! Which cluster addresses a service has and wants, and of which families.
//!
//! A service says it in up to four fields that have to agree: `clusterIP`, `clusterIPs`,
//! `ipFamilies` and `ipFamilyPolicy`; clients may set any of them, and old ones know only the first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use insula_api::object;
use ipnet::IpNet;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::{ServiceRanges, ports};
use crate::{
    error::{ApiError, FieldError, Result},
    validate,
};

/// Of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|it| it.name() == name)
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

const ADDRESSES: &str = "clusterIPs";
const FAMILIES: &str = "ipFamilies";
const POLICY: &str = "ipFamilyPolicy";
const SINGLE: &str = "SingleStack";
const REQUIRED: &str = "RequireDualStack";

fn texts<'a>(service: &'a Value, field: &str) -> Vec<&'a str> {
    let list = service["spec"].get(field).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    object::text(service, &["spec", field])
}

/// Whether services of this type have addresses.
fn needs_address(service: &Value) -> bool {
    text(service, "type") != "ExternalName"
}

fn is_headless(service: &Value) -> bool {
    texts(service, ADDRESSES).first() == Some(&"None")
}

fn is_selective(service: &Value) -> bool {
    service["spec"].get("selector").and_then(Value::as_object).is_some_and(|it| !it.is_empty())
}

/// The addresses that a service has.
pub(super) fn addresses(service: &Value) -> Vec<IpAddr> {
    if !needs_address(service) {
        return Vec::new();
    }
    let texts = texts(service, ADDRESSES);
    texts.into_iter().filter_map(validate::sloppy_address).collect()
}

/// What a service wants for each of its families: the address that it names, or any.
pub(super) fn wanted(service: &Value) -> Vec<(Family, Option<IpAddr>)> {
    if !needs_address(service) || is_headless(service) {
        return Vec::new();
    }
    let named = texts(service, ADDRESSES);
    let families = texts(service, FAMILIES).into_iter().filter_map(Family::parse);
    families
        .enumerate()
        .map(|(index, family)| {
            let named = named.get(index).and_then(|it| validate::sloppy_address(it));
            (family, named)
        })
        .collect()
}

/// Writes the address of the family at `index`.
pub(super) fn set_address(service: &mut Value, index: usize, address: IpAddr) {
    let mut list: Vec<String> = texts(service, ADDRESSES).into_iter().map(str::to_owned).collect();
    // What a client wrote stays as it wrote it.
    match list.get(index) {
        Some(known) if validate::sloppy_address(known) == Some(address) => (),
        Some(_) => list[index] = address.to_string(),
        None => list.push(address.to_string()),
    }
    if index == 0 {
        service["spec"]["clusterIP"] = list[0].as_str().into();
    }
    service["spec"][ADDRESSES] = json!(list);
}

/// Takes from `old` what an update left out, and drops what no longer goes with its type.
pub(super) fn patch(old: &Value, new: &mut Value) {
    let same = |field: &str, new: &Value| texts(old, field) == texts(new, field);
    if needs_address(old) && !needs_address(new) {
        let mut unneeded = Vec::new();
        if same(ADDRESSES, new) {
            unneeded.extend(["clusterIP", ADDRESSES]);
        }
        if same(FAMILIES, new) {
            unneeded.push(FAMILIES);
        }
        if text(old, POLICY) == text(new, POLICY) {
            unneeded.push(POLICY);
        }
        if let Some(spec) = new["spec"].as_object_mut() {
            unneeded.into_iter().for_each(|field| drop(spec.remove(field)));
        }
    }
    ports::drop_unused(old, new);
    if needs_address(old) && needs_address(new) {
        if text(new, "clusterIP").is_empty() && !text(old, "clusterIP").is_empty() {
            new["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
        if texts(new, ADDRESSES).is_empty() && !texts(old, ADDRESSES).is_empty() {
            new["spec"][ADDRESSES] = old["spec"][ADDRESSES].clone();
        }
        // The addresses tell the families.
        if texts(new, FAMILIES).is_empty() && same(ADDRESSES, new) {
            new["spec"][FAMILIES] = old["spec"][FAMILIES].clone();
        }
    }
    ports::patch(old, new);
    // A client that knows only the one field changes it alone.
    if text(old, "clusterIP") != text(new, "clusterIP") && same(ADDRESSES, new) {
        let list = match text(new, "clusterIP") {
            "" => json!([]),
            only => json!([only]),
        };
        new["spec"][ADDRESSES] = list;
    }
}

/// Brings the four fields into agreement, or says why they cannot.
pub(super) fn settle(ranges: &ServiceRanges, old: Option<&Value>, new: &mut Value) -> Result<()> {
    if old.is_none() && !text(new, "clusterIP").is_empty() && texts(new, ADDRESSES).is_empty() {
        new["spec"][ADDRESSES] = json!([text(new, "clusterIP")]);
    }
    if !needs_address(new) || old.is_some_and(|old| prefers_the_same(old, new)) {
        return Ok(());
    }
    let configured: Vec<Family> = ranges.networks.iter().map(|it| Family::of(&it.addr())).collect();
    let default = configured.first().copied().unwrap_or(Family::V4);
    if text(new, POLICY).is_empty() {
        let before = old.map(|it| text(it, POLICY)).filter(|it| !it.is_empty());
        let policy = match before {
            Some(before) => before,
            None if is_headless(new) && !is_selective(new) => REQUIRED,
            None => SINGLE,
        };
        new["spec"][POLICY] = policy.into();
    }
    let invalid = |new: &Value, errors: Vec<FieldError>| match errors.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid("", "Service", object::name(new), &errors)),
    };
    invalid(new, validate::cluster_addresses(new))?;
    let mut errors = Vec::new();
    if let Some(old) = old {
        narrow(old, new, &mut errors);
    }
    let about_policy = |new: &Value, why: &str| {
        FieldError::invalid(format!("spec.{POLICY}"), &new["spec"][POLICY], why)
    };
    if text(new, POLICY) == SINGLE {
        for (field, what) in [(ADDRESSES, "cluster IPs"), (FAMILIES, "IP families")] {
            if texts(new, field).len() == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(about_policy(new, &why));
            }
        }
    }
    let mut families: Vec<Family> =
        texts(new, FAMILIES).into_iter().filter_map(Family::parse).collect();
    let named = texts(new, ADDRESSES);
    for (index, address) in named.iter().enumerate().skip(families.len()) {
        let Some(address) = validate::sloppy_address(address) else { break };
        let family = Family::of(&address);
        if configured.contains(&family) {
            families.push(family);
        } else {
            let at = format!("spec.{ADDRESSES}[{index}]");
            let why = format!("{} is not configured on this cluster", family.name());
            errors.push(FieldError::invalid(at, &new["spec"][ADDRESSES], &why));
        }
    }
    invalid(new, std::mem::take(&mut errors))?;
    let is_open = is_headless(new) && !is_selective(new);
    if !is_open {
        if text(new, POLICY) == REQUIRED && configured.len() < 2 {
            errors
                .push(about_policy(new, "this cluster is not configured for dual-stack services"));
        }
        for (index, family) in families.iter().enumerate() {
            if !configured.contains(family) {
                let at = format!("spec.{FAMILIES}[{index}]");
                let why = "not configured on this cluster";
                errors.push(FieldError::invalid(at, &family.name().into(), why));
            }
        }
        invalid(new, errors)?;
    }
    if families.is_empty() {
        families.push(default);
    }
    if text(new, POLICY) != SINGLE && families.len() == 1 && (is_open || configured.len() == 2) {
        families.push(families[0].other());
    }
    let names: Vec<&str> = families.iter().map(|it| it.name()).collect();
    new["spec"][FAMILIES] = json!(names);
    Ok(())
}

/// A service that prefers two families keeps what it has when the cluster changes.
fn prefers_the_same(old: &Value, new: &Value) -> bool {
    let same = |field: &str| texts(old, field) == texts(new, field);
    let prefers = |it: &Value| matches!(text(it, POLICY), "PreferDualStack");
    prefers(new)
        && (prefers(old) || text(old, POLICY).is_empty())
        && text(old, "type") == text(new, "type")
        && same(ADDRESSES)
        && same(FAMILIES)
}

/// From two families to one.
fn narrow(old: &Value, new: &mut Value, errors: &mut Vec<FieldError>) {
    for (field, what) in [(ADDRESSES, "cluster IP"), (FAMILIES, "IP family")] {
        let (had, has) = (texts(old, field), texts(new, field));
        if text(new, POLICY) == SINGLE {
            if had == has && 1 < has.len() {
                let first = has[0].to_owned();
                new["spec"][field] = json!([first]);
            }
        } else if !has.is_empty() && has.len() < had.len() {
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid(format!("spec.{POLICY}"), &new["spec"][POLICY], &why));
        }
    }
}

/// The number of addresses of a network, and the first of them as a number.
fn bounds(network: &IpNet) -> (u128, u128) {
    let first = number(network.network());
    let bits = u32::from(network.max_prefix_len() - network.prefix_len());
    // More than this nobody looks through.
    (first, 1_u128 << bits.min(64))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(it) => u128::from(u32::from(it)),
        IpAddr::V6(it) => u128::from(it),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// Neither the network's own address nor that of all its members.
pub(super) fn is_usable(network: &IpNet, address: IpAddr) -> bool {
    network.contains(&address)
        && address != network.network()
        && (address.is_ipv6() || address != network.broadcast())
}

/// Addresses to try, each once: first those that nobody is likely to ask for by name.
pub(super) fn candidates(network: &IpNet) -> impl Iterator<Item = IpAddr> {
    let family = Family::of(&network.addr());
    let (first, size) = bounds(network);
    // Usable ones: from the second on, in version 4 up to the last but one.
    let n_usable = size.saturating_sub(if family == Family::V4 { 2 } else { 1 });
    let low = if size <= 16 { 0 } else { (size / 16).clamp(16, 256) - 1 }.min(n_usable);
    let high = n_usable - low;
    let from = if high == 0 { 0 } else { rand::rng().random_range(0..high) };
    let in_high = (0..high).map(move |it| low + (from + it) % high);
    // The very first is the API's own.
    let all = in_high.chain(0..low).filter(|it| *it != 0);
    all.map(move |it| address(family, first + 1 + it))
}

/// The address of the API itself.
pub(super) fn kubernetes_address(ranges: &ServiceRanges) -> Option<IpAddr> {
    let network = ranges.networks.first()?;
    let (first, _) = bounds(network);
    Some(address(Family::of(&network.addr()), first + 1)).filter(|it| is_usable(network, *it))
}

/// The service by which pods reach the API.
pub(super) fn kubernetes_service(address: IpAddr, port: u16) -> Value {
    let mut spec = Map::new();
    let fields = json!({
        "clusterIP": address, "clusterIPs": [address], "internalTrafficPolicy": "Cluster",
        "ipFamilies": [Family::of(&address).name()], "ipFamilyPolicy": SINGLE,
        "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        "sessionAffinity": "None", "type": "ClusterIP",
    });
    spec.extend(fields.as_object().cloned().unwrap_or_default());
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": spec, "status": {"loadBalancer": {}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(networks: &[&str]) -> ServiceRanges {
        let networks = networks.iter().map(|it| it.parse().unwrap()).collect();
        ServiceRanges { networks, ..ServiceRanges::default() }
    }

    #[track_caller]
    fn settled(networks: &[&str], old: Option<&Value>, mut new: Value) -> Result<Value, String> {
        if let Some(old) = old {
            patch(old, &mut new);
        }
        settle(&ranges(networks), old, &mut new).map_err(|error| error.message)?;
        Ok(new["spec"].take())
    }

    #[test]
    fn candidates_are_all_usable_addresses_once() {
        for (network, n) in
            [("10.0.0.0/28", 13), ("10.0.0.0/24", 253), ("fd00::/120", 254), ("10.0.0.0/31", 0)]
        {
            let network: IpNet = network.parse().unwrap();
            let all: std::collections::BTreeSet<IpAddr> = candidates(&network).collect();
            assert_eq!(all.len(), n, "{network}");
            assert!(all.iter().all(|it| is_usable(&network, *it)), "{network}");
            assert_eq!(candidates(&network).count(), n);
        }
        // The lower ones come last.
        let network: IpNet = "10.0.0.0/24".parse().unwrap();
        assert!(
            candidates(&network)
                .take(238)
                .all(|it| 15 < it.to_string().rsplit('.').next().unwrap().parse::<u8>().unwrap())
        );
        assert_eq!(
            kubernetes_address(&ranges(&["10.96.0.0/16"])).unwrap().to_string(),
            "10.96.0.1"
        );
    }

    #[test]
    fn families_follow_from_what_is_there() {
        let one = ["10.0.0.0/24"];
        let two = ["10.0.0.0/24", "fd00::/112"];
        let spec = |spec: Value| json!({ "metadata": {"name": "s"}, "spec": spec });
        let it = settled(&one, None, spec(json!({"type": "ClusterIP"}))).unwrap();
        assert_eq!(
            (&it["ipFamilies"], &it["ipFamilyPolicy"]),
            (&json!(["IPv4"]), &json!("SingleStack"))
        );
        let it = settled(
            &two,
            None,
            spec(json!({"type": "ClusterIP", "ipFamilyPolicy": "PreferDualStack"})),
        )
        .unwrap();
        assert_eq!(it["ipFamilies"], json!(["IPv4", "IPv6"]));
        let it =
            settled(&one, None, spec(json!({"type": "ClusterIP", "clusterIP": "None"}))).unwrap();
        assert_eq!(
            (&it["ipFamilies"], &it["ipFamilyPolicy"]),
            (&json!(["IPv4", "IPv6"]), &json!("RequireDualStack"))
        );
        let it = settled(
            &one,
            None,
            spec(json!({"type": "ClusterIP", "clusterIP": "None", "selector": {"a": "b"}})),
        )
        .unwrap();
        assert_eq!((&it["ipFamilies"], &it["clusterIPs"]), (&json!(["IPv4"]), &json!(["None"])));
        let said = settled(
            &one,
            None,
            spec(json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"})),
        )
        .unwrap_err();
        assert!(said.contains("not configured for dual-stack"), "{said}");
        let said = settled(&one, None, spec(json!({"type": "ClusterIP", "ipFamilies": ["IPv6"]})))
            .unwrap_err();
        assert!(said.contains("spec.ipFamilies[0]"), "{said}");

        let both = spec(
            json!({"type": "ClusterIP", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9", "fd00::9"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}),
        );
        let mut less = both.clone();
        less["spec"]["ipFamilyPolicy"] = SINGLE.into();
        let it = settled(&two, Some(&both), less).unwrap();
        assert_eq!(
            (&it["ipFamilies"], &it["clusterIPs"]),
            (&json!(["IPv4"]), &json!(["10.0.0.9"]))
        );
        let gone = spec(
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9", "fd00::9"], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}),
        );
        let it = settled(&two, Some(&both), gone).unwrap();
        assert_eq!(it, json!({"type": "ExternalName", "externalName": "a.b"}));
    }
}
