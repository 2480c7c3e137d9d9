//! Keeps the EndpointSlices of services that have a selector.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use insula_client::{Change, Client, EventRecorder, EventType, ObjectKey, Tenanted, chain};
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use parking_lot::Mutex;

use super::{
    MANAGED_BY, SERVICE_NAME, addresses, hints, hostname, labels_for, pod_changed, pods_of, ports,
    reference_to, slices_of,
    split::{Changes, Common, Group, split},
    topology::{self, Served, Shares},
    trigger,
    writer::SliceWriter,
};
use crate::{
    controller::{Controller, Next, ReconcileError, Rest},
    informers::Informers,
    objects::{controller_reference, is_pod_ready},
    queue::Queue,
};

const OWN: &str = "endpointslice-controller.k8s.io";
/// Most endpoints in one slice.
const LONGEST: usize = 100;
const ZONE: &str = "topology.kubernetes.io/zone";

/// See the module.
#[derive(Debug)]
pub(crate) struct Slices {
    informers: Informers,
    events: EventRecorder,
    writer: SliceWriter,
    /// What zones have of all nodes; `None` until somebody asks.
    shares: Mutex<Option<Arc<Shares>>>,
    /// Services whose endpoints are shared among zones. They are looked at when nodes change.
    shared: Mutex<BTreeSet<ObjectKey>>,
}

impl Slices {
    pub(crate) fn new(client: Client, informers: Informers, events: &EventRecorder) -> Self {
        let events = events.named("endpoint-slice-controller");
        Self {
            informers,
            events,
            writer: SliceWriter::new(client),
            shares: Mutex::default(),
            shared: Mutex::default(),
        }
    }

    /// A node counts for more or for less.
    fn node_changed(&self, change: &Change<'_, Node>, queue: &Queue<ObjectKey>) {
        let (old, new) = (change.old.map(|it| &it.object), change.new.map(|it| &it.object));
        if topology::is_changed(old, new) {
            *self.shares.lock() = None;
            self.shared.lock().iter().for_each(|service| queue.add(service.clone()));
        }
    }

    fn shares(&self) -> Arc<Shares> {
        if let Some(known) = &*self.shares.lock() {
            return known.clone();
        }
        let nodes = self.informers.nodes.list();
        let found = Arc::new(topology::shares(nodes.iter().map(|it| &it.object)));
        // A node that has changed meanwhile asks for it again.
        *self.shares.lock() = Some(found.clone());
        found
    }

    /// Shares endpoints of one family among zones if the service asks for it, and says so.
    fn share(
        &self,
        service: &Tenanted<Service>,
        family: &str,
        groups: &mut [Group],
        served: &Served,
    ) {
        let key = service.key();
        let say = |type_, reason, message: &str| {
            let message = format!("{message}, addressType: {family}");
            self.events.record(service, type_, reason, message);
        };
        if !topology::is_asked(service) {
            if self.shared.lock().remove(&key) {
                let message = "Topology Aware Hints has been disabled";
                say(EventType::Warning, "TopologyAwareHintsDisabled", message);
            }
            return;
        }
        let endpoints = groups.iter_mut().flat_map(|it| &mut it.endpoints).collect();
        match topology::share(endpoints, served, &self.shares()) {
            Ok(()) => {
                if self.shared.lock().insert(key) {
                    let message = "Topology Aware Hints has been enabled";
                    say(EventType::Normal, "TopologyAwareHintsEnabled", message);
                }
            }
            Err(refused) => {
                self.shared.lock().remove(&key);
                groups.iter_mut().flat_map(|it| &mut it.endpoints).for_each(|it| it.hints = None);
                say(EventType::Warning, "TopologyAwareHintsDisabled", &refused.to_string());
            }
        }
    }

    fn zone_of(&self, node: &str) -> Option<String> {
        let key = ObjectKey::new(&insula_api::names::TenantName::system(), "", node);
        self.informers.nodes.get(&key)?.metadata.labels.as_ref()?.get(ZONE).cloned()
    }

    /// A pod as an endpoint at one of its addresses.
    fn endpoint(
        &self,
        service: &Tenanted<Service>,
        pod: &Tenanted<Pod>,
        address: &str,
    ) -> Endpoint {
        let publishes = service
            .spec
            .as_ref()
            .is_some_and(|spec| spec.publish_not_ready_addresses == Some(true));
        let (is_ready, is_leaving) = (is_pod_ready(pod), pod.is_deleting());
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let endpoint = Endpoint {
            addresses: vec![address.to_owned()],
            conditions: Some(EndpointConditions {
                ready: Some(publishes || is_ready && !is_leaving),
                serving: Some(is_ready),
                terminating: Some(is_leaving),
            }),
            hostname: hostname(service, pod).map(str::to_owned),
            zone: node.as_deref().and_then(|node| self.zone_of(node)),
            node_name: node,
            target_ref: Some(reference_to(pod)),
            ..Endpoint::default()
        };
        let spec = service.spec.as_ref().filter(|_| !topology::is_asked(service));
        let hints = spec.and_then(|spec| hints::of(spec, &endpoint));
        Endpoint { hints, ..endpoint }
    }

    /// The endpoints of one family of addresses, by the ports that they have.
    fn groups(
        &self,
        service: &Tenanted<Service>,
        pods: &[Arc<Tenanted<Pod>>],
        family: &str,
    ) -> Vec<Group> {
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for pod in pods {
            let Some(address) = addresses(pod).find(|it| family_of(it) == family) else { continue };
            let wanted = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
            let ports = wanted.into_iter().flatten().filter_map(|port| {
                Some(EndpointPort {
                    name: Some(port.name.clone().unwrap_or_default()),
                    port: Some(ports::target(port, pod)?),
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            });
            let ports: Vec<_> = ports.collect();
            let group = groups.entry(format!("{ports:?}")).or_default();
            group.ports = ports;
            group.endpoints.push(self.endpoint(service, pod, address));
        }
        groups.into_values().collect()
    }
}

/// Which pods are told of, by uid, and whether as ready.
fn told(slices: &[Arc<Tenanted<EndpointSlice>>]) -> HashMap<String, bool> {
    let endpoints = slices.iter().flat_map(|it| it.endpoints.iter().flatten());
    let told = |it: &Endpoint| {
        let is_ready = it.conditions.as_ref().is_some_and(|it| it.serving == Some(true));
        Some((it.target_ref.as_ref()?.uid.clone()?, is_ready))
    };
    endpoints.filter_map(told).collect()
}

fn family_of(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

impl Controller for Slices {
    const NAME: &'static str = "endpointslice-controller";
    const REST: Rest = Rest::LOOKING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.services.on_change(move |change| {
            if let Some(old) = change.old.filter(|_| change.new.is_none()) {
                it.writer.forget(old.uid());
                it.shared.lock().remove(change.key);
            }
            keys.add(change.key.clone());
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.pods.informer.on_change(move |change| {
            pod_changed(&it.informers.selectors.services, change, &keys);
        });
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.nodes.on_change(move |change| it.node_changed(change, &keys));
        let (it, keys) = (self.clone(), queue.clone());
        self.informers.slices.on_change(move |change| {
            let Some(slice) = change.latest() else { return };
            if it.writer.seen(change).is_none() {
                return;
            }
            let labels = slice.metadata.labels.as_ref();
            if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) {
                keys.add(ObjectKey::new(&slice.tenant, slice.namespace(), service));
            }
        });
    }

    async fn synced(&self) -> bool {
        self.informers.services.synced().await
            && self.informers.pods.informer.synced().await
            && self.informers.slices.synced().await
            && self.informers.nodes.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let Some(service) = self.informers.services.get(key) else {
            // What it had goes with it: it owned them.
            return Ok(Next::WhenChanged);
        };
        if service.is_deleting() || !self.writer.is_settled(service.uid()) {
            return Ok(Next::WhenChanged);
        }
        let Some(pods) = pods_of(&self.informers, &service) else { return Ok(Next::WhenChanged) };
        let mut known = slices_of(&self.informers, key, OWN);
        let labels = labels_for(&service, &[(SERVICE_NAME, service.name()), (MANAGED_BY, OWN)]);
        let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone());
        let families = families.unwrap_or_else(|| vec!["IPv4".to_owned()]);
        let told = (!known.is_empty()).then(|| told(&known));
        let since = trigger::since(&service, &pods, told.as_ref());
        let mut changes = Changes::default();
        for family in &families {
            let (of_family, others) =
                known.into_iter().partition(|slice| slice.address_type == *family);
            known = others;
            let common = Common {
                meta: ObjectMeta {
                    generate_name: Some(format!("{}-", service.name())),
                    namespace: Some(service.namespace().to_owned()),
                    labels: Some(labels.clone()),
                    owner_references: Some(vec![controller_reference(&service)]),
                    ..ObjectMeta::default()
                },
                address_type: family.clone(),
                longest: LONGEST,
            };
            let mut groups = self.groups(&service, &pods, family);
            let before = of_family
                .iter()
                .flat_map(|it: &Arc<Tenanted<EndpointSlice>>| it.endpoints.iter().flatten());
            self.share(&service, family, &mut groups, &topology::served(before));
            split(&common, groups, of_family, &mut changes);
        }
        let written = changes.create.iter_mut().chain(&mut changes.update);
        written.for_each(|slice| trigger::note(&mut slice.metadata, since));
        changes.delete.extend(known);
        if let Err(error) = self.writer.write(key, service.uid(), changes).await {
            if !error.is_conflict() && !error.is_namespace_terminating() {
                let message = format!(
                    "Error updating Endpoint Slices for Service {}/{}: {}",
                    service.namespace(),
                    service.name(),
                    chain(&error)
                );
                let reason = "FailedToUpdateEndpointSlices";
                self.events.record(&service, EventType::Warning, reason, message);
            }
            return Err(error.into());
        }
        Ok(Next::WhenChanged)
    }
}
