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

use insula_client::{Change, Informer, ObjectKey, Tenanted};
use k8s_openapi::api::{
    core::v1::{ObjectReference, Pod, Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};

pub(crate) use self::{endpoints::EndpointsOfServices, mirrored::MirroredSlices, slices::Slices};
use crate::{
    informers::Informers,
    objects::{is_pod_ready, pod_phase},
    queue::Queue,
};

/// On slices: whose they are, and who keeps them.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// On what belongs to a service that has no address of its own.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The pods of a service that have an address. `None` where others say what is behind it.
fn pods_of(informers: &Informers, service: &Tenanted<Service>) -> Option<Vec<Arc<Tenanted<Pod>>>> {
    let selector = service.spec.as_ref()?.selector.as_ref().filter(|it| !it.is_empty())?;
    if service.spec.as_ref()?.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let mut pods = informers.pods.informer.in_namespace(&service.tenant, service.namespace());
    pods.retain(|pod| {
        is_labelled(pod, selector)
            && !matches!(pod_phase(pod), "Succeeded" | "Failed")
            && addresses(pod).next().is_some()
    });
    Some(pods)
}

fn is_labelled(pod: &Pod, selector: &BTreeMap<String, String>) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
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
fn pod_changed(services: &Informer<Service>, change: &Change<'_, Pod>, queue: &Queue<ObjectKey>) {
    // What services tell of a pod; heartbeats of conditions do not matter.
    fn told(pod: &Tenanted<Pod>) -> impl PartialEq {
        let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
        (&pod.metadata.labels, pod.is_deleting(), is_pod_ready(pod), pod_phase(pod), ips, pod.uid())
    }
    if change.old.map(|it| told(it)) == change.new.map(|it| told(it)) {
        return;
    }
    let Some(latest) = change.latest() else { return };
    for service in services.in_namespace(&latest.tenant, latest.namespace()) {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let Some(selector) = selector.filter(|it| !it.is_empty()) else { continue };
        if [change.old, change.new].into_iter().flatten().any(|pod| is_labelled(pod, selector)) {
            queue.add(service.key());
        }
    }
}
