//! What local copies keep of objects: what some controller looks at, and nothing else.

use k8s_openapi::api::{
    coordination::v1::{Lease, LeaseSpec},
    core::v1::{
        Container, ContainerState, ContainerStateTerminated, ContainerStatus,
        EphemeralVolumeSource, Node, NodeStatus, Pod, PodCondition, PodSpec, PodStatus, Volume,
    },
    resource::v1::{Device, ResourceSlice},
};

/// What of a node's room is looked at, to spread endpoints over zones.
const ROOM: &str = "cpu";

/// Keeps of a node how it is labelled, tainted and how it is, how large, and which volumes it has.
/// No copies are as many that are not packed.
pub(super) fn trim_node(node: &mut Node) {
    let Some(old) = node.status.take() else { return };
    let NodeStatus { mut conditions, mut allocatable, volumes_attached, volumes_in_use, .. } = old;
    allocatable.iter_mut().for_each(|it| it.retain(|name, _| name == ROOM));
    for condition in conditions.iter_mut().flatten() {
        (condition.reason, condition.message) = (None, None);
    }
    conditions.iter_mut().for_each(Vec::shrink_to_fit);
    node.status = Some(NodeStatus {
        conditions,
        allocatable,
        volumes_attached,
        volumes_in_use,
        ..NodeStatus::default()
    });
}

/// Only what is tainted matters, and that it is.
pub(super) fn trim_slice(slice: &mut ResourceSlice) {
    for device in slice.spec.devices.iter_mut().flatten() {
        let (name, taints) = (std::mem::take(&mut device.name), device.taints.take());
        *device = Device { name, taints, ..Device::default() };
    }
    slice.spec.devices.iter_mut().for_each(|it| it.retain(|device| device.taints.is_some()));
    slice.spec.shared_counters = None;
    slice.spec.node_selector = None;
}

pub(super) fn trim_lease(lease: &mut Lease) {
    let renew_time = lease.spec.take().and_then(|spec| spec.renew_time);
    lease.spec = Some(LeaseSpec { renew_time, ..LeaseSpec::default() });
}

/// Keeps of a pod what controllers look at: whose it is, where it is or is meant to be, how it is,
/// and what it serves. There are more pods than anything else.
pub(super) fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        let old = std::mem::take(spec);
        let ports = |them: Vec<Container>| -> Vec<Container> {
            let them = them.into_iter().filter(|it| it.ports.is_some());
            them.map(|it| Container { name: it.name, ports: it.ports, ..Container::default() })
                .collect()
        };
        let storage = old.volumes.into_iter().flatten().filter_map(trim_volume);
        *spec = PodSpec {
            volumes: Some(storage.collect::<Vec<_>>()).filter(|it| !it.is_empty()),
            resource_claims: old.resource_claims,
            hostname: old.hostname,
            subdomain: old.subdomain,
            containers: ports(old.containers),
            init_containers: old.init_containers.map(ports).filter(|it| !it.is_empty()),
            // Of one that has no node yet it says for which it is meant.
            affinity: old.affinity.filter(|_| old.node_name.is_none()),
            node_name: old.node_name,
            ..PodSpec::default()
        };
    }
    if let Some(status) = &mut pod.status {
        let old = std::mem::take(status);
        *status = PodStatus {
            phase: old.phase,
            reason: old.reason,
            pod_ips: old.pod_ips,
            resource_claim_statuses: old.resource_claim_statuses,
            conditions: old.conditions.map(|them| {
                let ended = |it| PodCondition { message: None, last_probe_time: None, ..it };
                them.into_iter().map(ended).collect()
            }),
            init_container_statuses: old.init_container_statuses.map(trim_containers),
            container_statuses: old.container_statuses.map(trim_containers),
            ..PodStatus::default()
        };
    }
}

/// Of a volume: which claim it is of.
fn trim_volume(volume: Volume) -> Option<Volume> {
    let Volume { name, persistent_volume_claim, ephemeral, .. } = volume;
    let is_claimed = persistent_volume_claim.is_some() || ephemeral.is_some();
    let ephemeral = ephemeral.map(|_| EphemeralVolumeSource::default());
    let claimed = Volume { name, persistent_volume_claim, ephemeral, ..Volume::default() };
    is_claimed.then_some(claimed)
}

/// Of containers: how often they were restarted, and how they ended.
fn trim_containers(them: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
    let trimmed = |it: ContainerStatus| {
        let ended = it.state.and_then(|state| state.terminated);
        let ended = ended.map(|it| ContainerStateTerminated {
            exit_code: it.exit_code,
            finished_at: it.finished_at,
            ..ContainerStateTerminated::default()
        });
        ContainerStatus {
            name: it.name,
            restart_count: it.restart_count,
            state: ended.map(|it| ContainerState { terminated: Some(it), ..Default::default() }),
            ..ContainerStatus::default()
        }
    };
    them.into_iter().map(trimmed).collect()
}
