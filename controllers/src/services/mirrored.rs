//! Endpoints that somebody keeps by hand, as EndpointSlices.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use insula_client::{Client, EventRecorder, EventType, ObjectKey, Tenanted, chain};
use k8s_openapi::{
    api::{
        core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    MANAGED_BY, SERVICE_NAME, slices_of,
    split::{Changes, Common, Group, split},
    writer::SliceWriter,
};
use crate::{
    controller::{Controller, Next, ReconcileError},
    informers::Informers,
    objects::{annotation, controller_reference},
    queue::Queue,
};

const OWN: &str = "endpointslicemirroring-controller.k8s.io";
const SKIPPED: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What of the annotations is about the Endpoints themselves.
const NOT_MIRRORED: [&str; 2] =
    [super::trigger::TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"];
/// Most addresses of one subset that are mirrored, and so of a slice.
const MOST: usize = 1000;

/// See the module. Keys are Endpoints, which go by the name of their service.
#[derive(Debug)]
pub(crate) struct MirroredSlices {
    informers: Informers,
    events: EventRecorder,
    writer: SliceWriter,
}

/// What of Endpoints is mirrored.
#[derive(Debug, Default)]
struct Mirrored {
    /// By families of addresses.
    groups: BTreeMap<&'static str, Vec<Group>>,
    n_invalid: usize,
    n_skipped: usize,
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    let is_skipped = labels.and_then(|labels| labels.get(SKIPPED)).is_some_and(|it| it == "true");
    !is_skipped && annotation(endpoints, LEADER).is_none()
}

/// Whether somebody else says what is behind a service.
fn is_by_hand(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(BTreeMap::is_empty)
}

fn endpoint(address: &EndpointAddress, is_ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip: IpAddr = address.ip.parse().ok()?;
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(is_ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|it| !it.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((if ip.is_ipv4() { "IPv4" } else { "IPv6" }, endpoint))
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let ports = subset.ports.iter().flatten().map(|it| EndpointPort {
        name: Some(it.name.clone().unwrap_or_default()),
        port: Some(it.port),
        protocol: Some(it.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: it.app_protocol.clone(),
    });
    ports.collect()
}

fn mirrored(subsets: &[EndpointSubset]) -> Mirrored {
    let mut result = Mirrored::default();
    let mut groups: BTreeMap<(&'static str, String), Group> = BTreeMap::new();
    for subset in subsets {
        let ready = subset.addresses.iter().flatten().map(|it| (it, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|it| (it, false));
        let mut n_added = 0;
        for (address, is_ready) in ready.chain(unready) {
            if MOST <= n_added {
                result.n_skipped += 1;
                continue;
            }
            let Some((family, endpoint)) = endpoint(address, is_ready) else {
                result.n_invalid += 1;
                continue;
            };
            n_added += 1;
            let ports = ports(subset);
            let group = groups.entry((family, format!("{ports:?}"))).or_default();
            group.ports = ports;
            group.endpoints.push(endpoint);
        }
    }
    for ((family, _), group) in groups {
        result.groups.entry(family).or_default().push(group);
    }
    result
}

impl MirroredSlices {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("endpoint-slice-mirroring-controller");
        Self { informers, events, writer: SliceWriter::new(client) }
    }

    fn tell(&self, endpoints: &Tenanted<Endpoints>, mirrored: &Mirrored) {
        let Mirrored { n_invalid, n_skipped, .. } = mirrored;
        if 0 < *n_invalid {
            let message = format!(
                "Skipped {n_invalid} invalid IP addresses when mirroring to EndpointSlices"
            );
            self.events.record(endpoints, EventType::Warning, "InvalidIPAddress", message);
        }
        if 0 < *n_skipped {
            let n_all = n_skipped + n_invalid;
            let message = format!(
                "A max of {MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. \
                 {n_all} addresses were skipped"
            );
            self.events.record(endpoints, EventType::Warning, "TooManyAddressesToMirror", message);
        }
    }

    /// What is to be written so that slices say what `endpoints` do.
    fn changes(&self, endpoints: &Tenanted<Endpoints>, key: &ObjectKey) -> Changes {
        let meta = &endpoints.metadata;
        let mut labels = meta.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_NAME.to_owned(), endpoints.name().to_owned());
        labels.insert(MANAGED_BY.to_owned(), OWN.to_owned());
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        annotations.retain(|name, _| !NOT_MIRRORED.contains(&name.as_str()));
        let mut found = mirrored(endpoints.subsets.as_deref().unwrap_or_default());
        self.tell(endpoints, &found);
        let mut known = slices_of(&self.informers, key, OWN);
        let mut changes = Changes::default();
        for (family, groups) in std::mem::take(&mut found.groups) {
            let (of_family, others) = known.into_iter().partition(|it| it.address_type == family);
            known = others;
            let common = Common {
                meta: ObjectMeta {
                    generate_name: Some(format!("{}-", endpoints.name())),
                    namespace: Some(endpoints.namespace().to_owned()),
                    labels: Some(labels.clone()),
                    annotations: Some(annotations.clone()),
                    owner_references: Some(vec![controller_reference(endpoints)]),
                    ..ObjectMeta::default()
                },
                address_type: family.to_owned(),
                longest: MOST,
            };
            split(&common, groups, of_family, &mut changes);
        }
        changes.delete.extend(known);
        changes
    }
}

impl Controller for MirroredSlices {
    const NAME: &'static str = "endpointslice-mirroring-controller";
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.informers.services.on_change(move |change| keys.add(change.key.clone()));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.endpoints.on_change(move |change| {
            if let Some(old) = change.old.filter(|_| change.new.is_none()) {
                it.writer.forget(old.uid());
            }
            keys.add(change.key.clone());
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.slices.on_change(move |change| {
            let Some(slice) = change.latest() else { return };
            let labels = slice.metadata.labels.as_ref();
            let label = |name: &str| labels.and_then(|labels| labels.get(name));
            if label(MANAGED_BY).is_some_and(|by| by == OWN)
                && let Some(service) = label(SERVICE_NAME)
            {
                it.writer.seen(change);
                keys.add(ObjectKey::new(&slice.tenant, slice.namespace(), service));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.services.synced().await
            && self.informers.endpoints.synced().await
            && self.informers.slices.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let service = self.informers.services.get(key);
        let is_by_hand = service.is_some_and(|it| is_by_hand(&it) && !it.is_deleting());
        let endpoints = self.informers.endpoints.get(key);
        let endpoints = endpoints.filter(|it| is_by_hand && is_mirrored(it) && !it.is_deleting());
        let Some(endpoints) = endpoints else {
            let changes =
                Changes { delete: slices_of(&self.informers, key, OWN), ..Changes::default() };
            self.writer.write(key, "", changes).await?;
            return Ok(Next::WhenChanged);
        };
        if !self.writer.is_settled(endpoints.uid()) {
            return Ok(Next::WhenChanged);
        }
        let changes = self.changes(&endpoints, key);
        if let Err(error) = self.writer.write(key, endpoints.uid(), changes).await {
            if !error.is_conflict() && !error.is_namespace_terminating() {
                let message = format!(
                    "Failed to update EndpointSlices for Endpoints {}/{}: {}",
                    key.namespace,
                    key.name,
                    chain(&error)
                );
                let reason = "FailedToUpdateEndpointSlices";
                self.events.record(&endpoints, EventType::Warning, reason, message);
            }
            return Err(error.into());
        }
        Ok(Next::WhenChanged)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn subsets_become_groups() {
        let subsets: Vec<EndpointSubset> = serde_json::from_value(json!([
            {
                "addresses": [{"ip": "10.0.0.1", "hostname": "a"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "10.0.0.2"}, {"ip": "nowhere"}],
                "ports": [{"port": 80, "name": "web"}],
            },
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 80, "name": "web"}]},
            {"addresses": [{"ip": "10.0.0.4"}], "ports": [{"port": 81}]},
        ]))
        .unwrap();
        let found = mirrored(&subsets);
        let shown = |family: &str| -> Vec<Vec<(&str, bool)>> {
            let groups = found.groups[family].iter();
            let of = |it: &'_ Endpoint| {
                let address = it.addresses[0].clone().leak() as &str;
                (address, it.conditions.as_ref().unwrap().ready.unwrap())
            };
            groups.map(|it| it.endpoints.iter().map(of).collect()).collect()
        };
        assert_eq!(
            shown("IPv4"),
            [
                vec![("10.0.0.4", true)],
                vec![("10.0.0.1", true), ("10.0.0.2", false), ("10.0.0.3", true)],
            ]
        );
        assert_eq!(shown("IPv6"), [vec![("fd00::1", true)]]);
        assert_eq!((found.n_invalid, found.n_skipped), (1, 0));
        let many = vec![json!({"ip": "10.0.0.1"}); MOST + 5];
        let many: EndpointSubset = serde_json::from_value(json!({"addresses": many})).unwrap();
        assert_eq!(mirrored(std::slice::from_ref(&many)).n_skipped, 5);
    }
}
