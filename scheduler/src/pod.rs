//! What the scheduler must know of a pod.
//!
//! Pods that came from one template differ in nothing but their names. What they have in common
//! is a [`Shape`], which they share: whatever is found out of one pod of a shape holds for all.

mod devices;
mod machine;
mod shapes;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

use insula_api::{
    names::TenantName,
    selector::{Operator, Requirement, Selector},
};
use insula_client::Tenanted;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerStatus, EphemeralVolumeSource, NodeSelectorTerm, PodAffinityTerm,
        PodSpec, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint, Volume,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

pub use self::machine::Pod;
pub(crate) use self::{devices::DeviceClaims, shapes::Shapes};
use crate::{
    gangs::GroupName,
    hinting,
    images::normalized,
    qos::Qos,
    requests::{RESIZE_PENDING, Requests, is_being_resized},
    reservations,
};

/// The scheduler that pods get that name none.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// A port that a pod takes on its node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct HostPort {
    /// Empty for all addresses.
    pub(crate) address: String,
    pub(crate) protocol: String,
    pub(crate) port: i32,
}

impl HostPort {
    /// Whether both cannot be had on one node.
    pub(crate) fn clashes(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address
                || self.address.is_empty()
                || other.address.is_empty())
    }
}

/// Pods that a term of pod affinity is about, and the domains that it speaks of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PodTerm {
    pub(crate) topology_key: Arc<str>,
    pub(crate) group: Group,
}

/// Some of a tenant's pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    /// `None` matches no pod.
    pub(crate) selector: Option<Selector>,
    pub(crate) namespaces: BTreeSet<String>,
    /// Namespaces beside those, by their labels.
    pub(crate) namespace_selector: Option<Selector>,
}

/// How a pod wants to be spread.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spread {
    pub(crate) topology_key: Arc<str>,
    pub(crate) selector: Option<Selector>,
    pub(crate) max_skew: i64,
    pub(crate) min_domains: usize,
    /// `DoNotSchedule`, and not `ScheduleAnyway`.
    pub(crate) is_required: bool,
    pub(crate) honors_affinity: bool,
    pub(crate) honors_taints: bool,
}

/// A claim that a pod mounts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Claim {
    pub(crate) name: Arc<str>,
    /// Made for this pod and named after it.
    pub(crate) is_ephemeral: bool,
}

/// The part of a pod that decides where it can run, and what its presence means to others.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    /// Never used twice.
    pub(crate) id: u64,
    pub(crate) tenant: TenantName,
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) scheduler: Arc<str>,
    pub(crate) priority: i32,
    /// Whether it may have pods of lower priority ended.
    pub(crate) preempts: bool,
    /// It is being deleted.
    pub(crate) is_ending: bool,
    pub(crate) requests: Requests,
    pub(crate) qos: Qos,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) tolerations: Vec<Toleration>,
    /// Labels that the node must have.
    pub(crate) node_labels: Vec<(String, String)>,
    /// Terms of which the node must match one; `None` if any node will do.
    pub(crate) required: Option<Vec<NodeSelectorTerm>>,
    pub(crate) preferred: Vec<PreferredSchedulingTerm>,
    pub(crate) affinity: Vec<PodTerm>,
    pub(crate) anti_affinity: Vec<PodTerm>,
    /// With their weights; those of anti-affinity are negative.
    pub(crate) preferred_pods: Vec<(PodTerm, i64)>,
    pub(crate) spread: Vec<Spread>,
    pub(crate) claims: Vec<Claim>,
    pub(crate) devices: Option<Box<DeviceClaims>>,
    pub(crate) images: Vec<String>,
    pub(crate) n_containers: usize,
    /// It needs a runtime of virtual machines.
    pub(crate) is_machine: bool,
    /// The group that it asks to be scheduled with.
    pub(crate) group: Option<GroupName>,
    /// Name and uid of its controller, by kind: what default spreading goes by.
    pub(crate) controller: Option<(Arc<str>, Arc<str>)>,
}

impl Shape {
    pub(crate) fn of(pod: &Tenanted<Pod>) -> Self {
        let default = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        let namespace: Arc<str> = pod.namespace().into();
        let affinity = spec.affinity.as_ref();
        let of_nodes = affinity.and_then(|it| it.node_affinity.as_ref());
        let to = affinity.and_then(|it| it.pod_affinity.as_ref());
        let from = affinity.and_then(|it| it.pod_anti_affinity.as_ref());
        let term = |it: &PodAffinityTerm| PodTerm::of(it, &namespace);
        let mut preferred_pods = Vec::new();
        for it in to
            .and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
        {
            preferred_pods.push((term(&it.pod_affinity_term), i64::from(it.weight)));
        }
        for it in from
            .and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
        {
            preferred_pods.push((term(&it.pod_affinity_term), -i64::from(it.weight)));
        }
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(term).collect::<Vec<_>>()
        };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let named = spec.scheduler_name.as_deref().filter(|name| !name.is_empty());
        let controllers = pod.metadata.owner_references.iter().flatten();
        let mut controllers = controllers.filter(|it| it.controller == Some(true));
        let controller = controllers.next();
        Self {
            id: 0,
            tenant: pod.tenant.clone(),
            scheduler: named.unwrap_or(DEFAULT_SCHEDULER).into(),
            priority: spec.priority.unwrap_or(0),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            is_ending: pod.is_deleting(),
            requests: Requests::of(spec, pod.status.as_ref()),
            qos: Qos::of(spec),
            ports: host_ports(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            node_labels: spec.node_selector.clone().unwrap_or_default().into_iter().collect(),
            required: of_nodes
                .and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|it| it.node_selector_terms.clone()),
            preferred: of_nodes
                .and_then(|it| it.preferred_during_scheduling_ignored_during_execution.clone())
                .unwrap_or_default(),
            affinity: terms(
                to.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: terms(
                from.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_pods,
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|it| Spread::of(it, &labels))
                .collect(),
            claims: claims(pod.name(), spec),
            devices: DeviceClaims::of(pod, spec),
            images: containers
                .clone()
                .filter_map(|it| it.image.as_ref())
                .chain(spec.volumes.iter().flatten().filter_map(mounted_image))
                .map(|image| normalized(image))
                .collect(),
            n_containers: containers.count(),
            is_machine: pod.is_machine(),
            group: GroupName::of(pod),
            controller: controller.map(|it| (it.kind.as_str().into(), it.name.as_str().into())),
            labels,
            namespace,
        }
    }

    /// That of a pod that says nothing but which scheduler is to look at it.
    pub(crate) fn blank(scheduler: &Arc<str>) -> Self {
        let pod = Tenanted { tenant: TenantName::system(), object: Pod::default() };
        Self { scheduler: scheduler.clone(), ..Self::of(&pod) }
    }

    /// Whether two pods with these are alike but for [`Shape::id`].
    fn is_like(&mut self, other: &Self) -> bool {
        // Set for the time of comparing, so that no field can be forgotten here.
        let id = std::mem::replace(&mut self.id, other.id);
        let is_like = *self == *other;
        self.id = id;
        is_like
    }

    /// Whether this is what a pod became that was asked to end.
    pub(crate) fn is_end_of(&self, before: &Self) -> bool {
        let mut after = Self { is_ending: true, ..before.clone() };
        !before.is_ending && after.is_like(self)
    }

    fn hash_with(&self, hasher: &RandomState) -> u64 {
        let mut it = hasher.build_hasher();
        (&self.tenant, &self.namespace, &self.labels, self.priority, self.is_ending).hash(&mut it);
        self.requests.amounts.hash(&mut it);
        self.claims.hash(&mut it);
        self.node_labels.hash(&mut it);
        // Pods of daemon sets differ in nothing else.
        for term in self.required.iter().flatten() {
            for one in term.match_fields.iter().chain(&term.match_expressions).flatten() {
                (&one.key, &one.operator, &one.values).hash(&mut it);
            }
        }
        it.finish()
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }
}

impl PodTerm {
    fn of(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        Self {
            topology_key: term.topology_key.as_str().into(),
            group: Group {
                selector: term.label_selector.as_ref().and_then(compile),
                namespaces,
                namespace_selector: term.namespace_selector.as_ref().and_then(compile),
            },
        }
    }
}

impl Group {
    /// The pods of one namespace that `selector` matches.
    pub(crate) fn in_namespace(namespace: &str, selector: Option<Selector>) -> Self {
        Self {
            selector,
            namespaces: BTreeSet::from([namespace.to_owned()]),
            namespace_selector: None,
        }
    }

    /// Whether a pod is one of these. `namespace_labels` are those of its namespace.
    pub(crate) fn has(
        &self,
        pod: &Shape,
        namespace_labels: Option<&BTreeMap<String, String>>,
    ) -> bool {
        let is_selected =
            |it: &Selector| it.matches_by(|key| Some(namespace_labels?.get(key)?.as_str()));
        (self.namespaces.contains(&*pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(is_selected))
            && self.selector.as_ref().is_some_and(|it| it.matches(&pod.labels))
    }
}

impl Spread {
    fn of(it: &TopologySpreadConstraint, labels: &BTreeMap<String, String>) -> Self {
        let mut selector = it.label_selector.as_ref().and_then(compile);
        // The API server has added these to the selector; for pods from before it did.
        let alike = it
            .match_label_keys
            .iter()
            .flatten()
            .filter_map(|key| Requirement::new(key, Operator::In, [labels.get(key)?]).ok());
        let alike: Vec<Requirement> = alike.collect();
        if let Some(known) = &selector
            && !alike.is_empty()
        {
            let more = alike.into_iter().filter(|it| !known.requirements().contains(it));
            selector = Some(Selector::new(known.requirements().iter().cloned().chain(more)));
        }
        Self {
            topology_key: it.topology_key.as_str().into(),
            selector,
            max_skew: i64::from(it.max_skew),
            min_domains: usize::try_from(it.min_domains.unwrap_or(1)).unwrap_or(1),
            is_required: it.when_unsatisfiable == "DoNotSchedule",
            honors_affinity: it.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: it.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// A label selector of a spec, ready to match. The API server lets none pass that is none.
pub(crate) fn compile(selector: &LabelSelector) -> Option<Selector> {
    insula_client::compile(selector).ok()
}

/// The image that a volume is made of.
fn mounted_image(volume: &Volume) -> Option<&String> {
    volume.image.as_ref()?.reference.as_ref()
}

/// The claims that a pod mounts.
fn claims(pod: &str, spec: &PodSpec) -> Vec<Claim> {
    let volumes = spec.volumes.iter().flatten();
    let claims = volumes.filter_map(|volume| {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(Claim { name: claim.claim_name.as_str().into(), is_ephemeral: false });
        }
        volume.ephemeral.as_ref()?;
        let name = format!("{pod}-{}", volume.name);
        Some(Claim { name: name.into(), is_ephemeral: true })
    });
    claims.collect()
}

/// A pod that looks for a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) uid: String,
    pub(crate) shape: Arc<Shape>,
    pub(crate) is_gated: bool,
}

impl Candidate {
    pub(crate) fn of(pod: &Tenanted<Pod>, shapes: &mut Shapes) -> Self {
        let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
        Self {
            uid: pod.uid().to_owned(),
            shape: shapes.of(pod),
            is_gated: gates.is_some_and(|gates| !gates.is_empty()),
        }
    }
}

/// The ports that a pod takes on its node.
pub(crate) fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let on_host = spec.host_network == Some(true);
    let of_container = |container: &Container| container.ports.clone().unwrap_or_default();
    let ports = spec.containers.iter().chain(sidecars).flat_map(of_container);
    ports
        .filter_map(|port| {
            // On the host's network every port is one of the host.
            let on_host = on_host.then_some(port.container_port);
            let number = port.host_port.filter(|it| *it != 0).or(on_host)?;
            let address = port.host_ip.filter(|ip| !matches!(ip.as_str(), "0.0.0.0" | "::"));
            Some(HostPort {
                address: address.unwrap_or_default(),
                protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            })
        })
        .collect()
}

/// The scheduler that is to find a node for a pod.
pub(crate) fn scheduler_of(pod: &Pod) -> &str {
    let named = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    named.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_SCHEDULER)
}

/// The node that a pod was given.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether a pod has ended and holds nothing any more.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Drops what the scheduler never looks at, which is most of a pod.
pub(crate) fn trim(pod: &mut Pod) {
    let pod = &mut **pod;
    pod.metadata.annotations = None;
    if let Some(owners) = &mut pod.metadata.owner_references {
        owners.retain(|it| it.controller == Some(true));
    }
    let spec = pod.spec.as_ref();
    if let Some(status) = &mut pod.status {
        // Few pods are being resized; of the others all is in the spec.
        let is_resized = spec.is_some_and(|spec| is_being_resized(spec, status));
        let given = |all: Option<Vec<ContainerStatus>>| {
            let all = all.filter(|_| is_resized)?.into_iter().map(|it| ContainerStatus {
                name: it.name,
                resources: it.resources,
                allocated_resources: it.allocated_resources,
                ..ContainerStatus::default()
            });
            Some(all.collect())
        };
        let conditions = status.conditions.take().unwrap_or_default();
        let of_note = ["PodScheduled", RESIZE_PENDING, reservations::CONDITION, hinting::CONDITION];
        let kept = conditions.into_iter().filter(|it| of_note.contains(&&*it.type_)).collect();
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase: status.phase.take(),
            conditions: Some(kept),
            nominated_node_name: status.nominated_node_name.take(),
            start_time: status.start_time.take(),
            container_statuses: given(status.container_statuses.take()),
            init_container_statuses: given(status.init_container_statuses.take()),
            resources: status.resources.take(),
            allocated_resources: status.allocated_resources.take(),
            resource_claim_statuses: status.resource_claim_statuses.take(),
            ..Default::default()
        };
    }
    let Some(spec) = &mut pod.spec else { return };
    for volume in spec.volumes.iter_mut().flatten() {
        let old = std::mem::take(volume);
        *volume = Volume {
            name: old.name,
            persistent_volume_claim: old.persistent_volume_claim,
            // Only that there is one matters.
            ephemeral: old.ephemeral.map(|_| EphemeralVolumeSource::default()),
            ..Volume::default()
        };
    }
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|it| it.persistent_volume_claim.is_some() || it.ephemeral.is_some());
    }
    spec.ephemeral_containers = None;
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        let old = std::mem::take(container);
        *container = Container {
            name: old.name,
            image: old.image,
            resources: old.resources,
            ports: old.ports,
            restart_policy: old.restart_policy,
            ..Container::default()
        };
    }
}

#[cfg(test)]
mod tests;
