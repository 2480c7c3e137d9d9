//! Endpoints over slices of bounded length, with as few changes of those that are there as can be.

use std::{collections::BTreeMap, sync::Arc};

use insula_client::Tenanted;
use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// Endpoints of one type of address that have the same ports.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<Tenanted<EndpointSlice>>>,
}

/// What all slices of a service have.
#[derive(Debug)]
pub(super) struct Common {
    /// With the labels of all; each new slice gets a name of its own.
    pub(super) meta: ObjectMeta,
    pub(super) address_type: String,
    /// Most endpoints in one slice.
    pub(super) longest: usize,
}

/// What tells an endpoint from others: whom it is of, and where.
pub(super) fn identity(it: &Endpoint) -> (String, String) {
    let of = it.target_ref.as_ref().and_then(|of| of.uid.clone()).unwrap_or_default();
    (of, it.addresses.first().cloned().unwrap_or_default())
}

/// Has `known`, the slices of one type of address, hold what `groups` say.
pub(super) fn split(
    common: &Common,
    groups: Vec<Group>,
    known: Vec<Arc<Tenanted<EndpointSlice>>>,
    changes: &mut Changes,
) {
    let mut by_ports: BTreeMap<String, Vec<Arc<Tenanted<EndpointSlice>>>> = BTreeMap::new();
    for slice in known {
        let ports = slice.ports.clone().unwrap_or_default();
        by_ports.entry(key(&ports)).or_default().push(slice);
    }
    // There is one slice at least, so that who waits for a service sees that it is empty.
    let mut groups = groups;
    if groups.is_empty() {
        groups.push(Group::default());
    }
    for group in groups {
        let mut slices = by_ports.remove(&key(&group.ports)).unwrap_or_default();
        slices.sort_by(|a, b| a.name().cmp(b.name()));
        fit(common, group, slices, changes);
    }
    changes.delete.extend(by_ports.into_values().flatten());
}

/// Ports in a form that can be compared, whatever their order.
fn key(ports: &[EndpointPort]) -> String {
    let mut shown: Vec<String> = ports.iter().map(|it| format!("{it:?}")).collect();
    shown.sort_unstable();
    shown.join(",")
}

fn fit(
    common: &Common,
    group: Group,
    slices: Vec<Arc<Tenanted<EndpointSlice>>>,
    changes: &mut Changes,
) {
    let mut wanted: BTreeMap<_, _> =
        group.endpoints.into_iter().map(|it| (identity(&it), it)).collect();
    let mut kept: Vec<(Arc<Tenanted<EndpointSlice>>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let known = slice.endpoints.clone().unwrap_or_default();
        let endpoints = known.iter().filter_map(|it| wanted.remove(&identity(it))).collect();
        kept.push((slice, endpoints));
    }
    let mut rest = wanted.into_values().peekable();
    // Those that change anyhow are filled first, the fullest of them before others.
    let has_changed = |(slice, endpoints): &(Arc<Tenanted<EndpointSlice>>, Vec<Endpoint>)| {
        slice.endpoints.as_deref().unwrap_or_default() != endpoints.as_slice()
    };
    kept.sort_by_key(|it| (!has_changed(it), std::cmp::Reverse(it.1.len())));
    for (_, endpoints) in &mut kept {
        while endpoints.len() < common.longest
            && let Some(it) = rest.next()
        {
            endpoints.push(it);
        }
    }
    let mut is_any = kept.iter().any(|(_, endpoints)| !endpoints.is_empty());
    while rest.peek().is_some() {
        is_any = true;
        let endpoints: Vec<Endpoint> = rest.by_ref().take(common.longest).collect();
        changes.create.push(slice(common, &group.ports, endpoints));
    }
    let mut needs_one = !is_any;
    for (old, endpoints) in kept {
        if endpoints.is_empty() && !std::mem::take(&mut needs_one) {
            changes.delete.push(old);
            continue;
        }
        let annotations = common.meta.annotations.as_ref().filter(|it| !it.is_empty());
        let is_same = old.endpoints.as_deref().unwrap_or_default() == endpoints.as_slice()
            && old.metadata.labels == common.meta.labels
            && annotations.is_none_or(|it| old.metadata.annotations.as_ref() == Some(it));
        if !is_same {
            let mut new = old.object.clone();
            new.metadata.labels.clone_from(&common.meta.labels);
            if annotations.is_some() {
                new.metadata.annotations = annotations.cloned();
            }
            new.endpoints = Some(endpoints);
            changes.update.push(new);
        }
    }
    if needs_one {
        changes.create.push(slice(common, &group.ports, Vec::new()));
    }
}

fn slice(common: &Common, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: common.meta.clone(),
        address_type: common.address_type.clone(),
        endpoints: Some(endpoints),
        ports: (!ports.is_empty()).then(|| ports.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;

    use super::*;

    fn endpoint(n: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.{}.{}", n / 200, n % 200)], ..Endpoint::default() }
    }

    fn port(number: i32) -> EndpointPort {
        EndpointPort { port: Some(number), ..EndpointPort::default() }
    }

    fn group(number: i32, range: std::ops::Range<usize>) -> Group {
        Group { ports: vec![port(number)], endpoints: range.map(endpoint).collect() }
    }

    fn known(name: &str, it: Group) -> Arc<Tenanted<EndpointSlice>> {
        let mut object = slice(&common(), &it.ports, it.endpoints);
        object.metadata.name = Some(name.to_owned());
        Arc::new(Tenanted { tenant: TenantName::parse("acme").unwrap(), object })
    }

    fn common() -> Common {
        Common { meta: ObjectMeta::default(), address_type: "IPv4".into(), longest: 100 }
    }

    /// The lengths of new slices, names and lengths of changed ones, names of deleted ones.
    fn run(groups: Vec<Group>, slices: Vec<Arc<Tenanted<EndpointSlice>>>) -> String {
        let mut changes = Changes::default();
        split(&common(), groups, slices, &mut changes);
        let length = |it: &EndpointSlice| it.endpoints.as_ref().map_or(0, Vec::len);
        let name = |it: &EndpointSlice| it.metadata.name.clone().unwrap_or_default();
        let mut shown: Vec<String> =
            changes.create.iter().map(|it| format!("+{}", length(it))).collect();
        shown.extend(changes.update.iter().map(|it| format!("{}={}", name(it), length(it))));
        shown.extend(changes.delete.iter().map(|it| format!("-{}", name(it))));
        shown.join(" ")
    }

    #[test]
    fn slices_are_bounded_and_change_little() {
        assert_eq!(run(vec![group(80, 0..250)], vec![]), "+100 +100 +50");
        let two = || vec![known("a", group(80, 0..100)), known("b", group(80, 100..150))];
        assert_eq!(run(vec![group(80, 0..150)], two()), "");
        assert_eq!(run(vec![group(80, 0..160)], two()), "b=60");
        assert_eq!(run(vec![group(80, 10..150)], two()), "a=90");
        assert_eq!(run(vec![group(80, 10..155)], two()), "a=95", "one changes, not two");
        assert_eq!(run(vec![group(80, 0..100)], two()), "-b");
        assert_eq!(run(vec![group(80, 0..210)], two()), "+10 b=100");
    }

    #[test]
    fn what_is_empty_is_told_by_one_slice() {
        assert_eq!(run(vec![], vec![]), "+0");
        let empty = known("a", Group::default());
        assert_eq!(run(vec![], vec![empty.clone()]), "");
        assert_eq!(run(vec![group(80, 0..1)], vec![empty]), "+1 -a");
    }

    #[test]
    fn ports_that_differ_lie_apart() {
        let groups = || vec![group(80, 0..3), group(81, 3..5)];
        assert_eq!(run(groups(), vec![known("a", group(80, 0..3))]), "+2");
        let moved = vec![known("a", group(80, 0..5))];
        assert_eq!(run(groups(), moved), "+2 a=3");
    }
}
