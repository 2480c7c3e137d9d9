//! What is behind services: their pods, as EndpointSlices and, for older clients, as Endpoints.

mod endpoints;
mod hints;
mod mirrored;
mod ports;
mod slices;
mod split;
mod topology;
mod trigger;
mod writer;

use std::{collections::BTreeMap, sync::Arc};

use insula_api::selector::{Selector, SelectorError};
use insula_client::{Change, ObjectKey, Tenanted};
use k8s_openapi::api::{
    core::v1::{ObjectReference, Pod, Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};

pub(crate) use self::{endpoints::EndpointsOfServices, mirrored::MirroredSlices, slices::Slices};
use crate::{
    claim::Claimant,
    informers::{Informers, Selectors},
    objects::{equal_to, is_pod_finished, is_pod_ready, pod_phase},
    queue::Queue,
};

/// On slices: whose they are, and who keeps them.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// On what belongs to a service that has no address of its own.
const HEADLESS: &str = "service.kubernetes.io/headless";

impl Claimant for Service {
    fn selector(&self) -> Option<Result<Selector, SelectorError>> {
        equal_to(self.spec.as_ref()?.selector.as_ref())
    }
}

/// The pods of a service that have an address. `None` where others say what is behind it.
fn pods_of(informers: &Informers, service: &Tenanted<Service>) -> Option<Vec<Arc<Tenanted<Pod>>>> {
    let selector = service.selector()?;
    if service.spec.as_ref()?.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    // No pod has a label that could not be one.
    let mut pods = selector.map_or_else(
        |_| Vec::new(),
        |it| informers.pods.selected(&service.tenant, service.namespace(), &it),
    );
    pods.retain(|pod| !is_pod_finished(pod) && addresses(pod).next().is_some());
    Some(pods)
}

fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
    ips.into_iter().flatten().map(|it| it.ip.as_str()).filter(|it| !it.is_empty())
}

/// The slices of a service that `keeper` keeps.
fn slices_of(
    informers: &Informers,
    service: &ObjectKey,
    keeper: &str,
) -> Vec<Arc<Tenanted<EndpointSlice>>> {
    let mut slices = informers.slices_of_service(service);
    let is_kept = |slice: &EndpointSlice| {
        let labels = slice.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|it| it == keeper)
    };
    slices.retain(|it| is_kept(it) && !it.is_deleting());
    slices
}

/// A pod as what an address belongs to.
fn reference_to(pod: &Tenanted<Pod>) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace().to_owned()),
        name: Some(pod.name().to_owned()),
        uid: Some(pod.uid().to_owned()),
        ..ObjectReference::default()
    }
}

/// Whether a pod is to be found by its own name within a service's.
fn hostname<'p>(service: &Tenanted<Service>, pod: &'p Pod) -> Option<&'p str> {
    let spec = pod.spec.as_ref()?;
    let is_within = spec.subdomain.as_deref() == Some(service.name());
    spec.hostname.as_deref().filter(|it| is_within && !it.is_empty())
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// The labels of what belongs to a service: its own, and `more`.
fn labels_for(service: &Tenanted<Service>, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    for (key, value) in more {
        labels.insert((*key).to_owned(), (*value).to_owned());
    }
    labels.remove(HEADLESS);
    if service.spec.as_ref().is_some_and(is_headless) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// Asks for reconciles of the services whose pods a change may have changed.
fn pod_changed(services: &Selectors<Service>, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
    // What services tell of a pod; heartbeats of conditions do not matter.
    fn told(pod: &Tenanted<Pod>) -> impl PartialEq {
        let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
        (&pod.metadata.labels, pod.is_deleting(), is_pod_ready(pod), pod_phase(pod), ips, pod.uid())
    }
    if change.old.map(|it| told(it)) == change.new.map(|it| told(it)) {
        return;
    }
    services.selecting_either(change, |service| queue.add(service.key()));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::{Fake, object};

    #[tokio::test]
    async fn behind_a_service_are_pods_with_an_address_that_it_selects() {
        let pod = |name: &str, app: &str, phase: &str, ips: Value| {
            let status = json!({"phase": phase, "podIPs": ips});
            object(name, json!({"metadata": {"labels": {"app": app}}, "status": status}))
        };
        let ip = || json!([{"ip": "10.0.0.1"}]);
        let pods = vec![
            pod("b", "web", "Running", ip()),
            pod("a", "web", "Pending", ip()),
            pod("c", "web", "Failed", ip()),
            pod("d", "web", "Running", json!([{"ip": ""}])),
            pod("e", "db", "Running", ip()),
        ];
        let fake = Fake::serving(&[("pods", pods)]).await;
        let behind = |spec: Value| {
            let service = serde_json::from_value(object("s", json!({"spec": spec}))).unwrap();
            let pods = pods_of(&fake.informers, &service)?;
            Some(pods.iter().map(|pod| pod.name().to_owned()).collect::<Vec<_>>())
        };
        let of = |names: &[&str]| Some(names.iter().map(|it| (*it).to_owned()).collect());
        assert_eq!(behind(json!({"selector": {"app": "web"}})), of(&["a", "b"]));
        assert_eq!(behind(json!({"selector": {"app": "no label"}})), of(&[]));
        assert_eq!(behind(json!({"selector": {}})), None);
        assert_eq!(behind(json!({})), None);
        let named = json!({"selector": {"app": "web"}, "type": "ExternalName"});
        assert_eq!(behind(named), None);
    }
}
