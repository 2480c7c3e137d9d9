//! The status of a node, computed from what was seen of its machine. No I/O, no clock.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, NodeAddress, NodeDaemonEndpoints, NodeStatus,
        NodeSystemInfo,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    Thresholds,
    conditions::{Observation, conditions},
    thresholds::Threshold,
};
use crate::machine::Machine;

/// The Kubernetes version whose behaviour the agent has.
const KUBELET_VERSION: &str = concat!("v1.36.2+insula-", env!("CARGO_PKG_VERSION"));

/// All that a status depends on.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: IpAddr,
    /// Where logs, exec and the like are served.
    pub(crate) port: u16,
    pub(crate) max_pods: u32,
    pub(crate) eviction_hard: Thresholds,
    pub(crate) machine: &'a Machine,
    /// `name://version`; `None` if it could not be asked.
    pub(crate) runtime_version: Option<String>,
    /// `None` if they could not be asked for.
    pub(crate) images: Option<Vec<ContainerImage>>,
    pub(crate) observation: Observation,
}

/// The status that the API should show. What could not be seen is as it was in `old`.
pub(crate) fn status(seen: &Seen<'_>, old: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    let old_conditions = old.and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    let (capacity, allocatable) = resources(seen);
    let text = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let machine = seen.machine;
    NodeStatus {
        addresses: Some(vec![
            text("InternalIP", seen.address.to_string()),
            text("Hostname", seen.name.to_owned()),
        ]),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(
            &seen.observation,
            (&seen.eviction_hard, u64::try_from(machine.memory).unwrap_or(0)),
            old_conditions,
            now,
        )),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: seen.port.into() }),
        }),
        // While the runtime is away its images are still there.
        images: seen.images.clone().or_else(|| old.and_then(|it| it.images.clone())),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: seen.runtime_version.clone().unwrap_or_else(|| {
                let old = old.and_then(|it| it.node_info.as_ref());
                old.map(|it| it.container_runtime_version.clone()).unwrap_or_default()
            }),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            swap: None,
            system_uuid: machine.system_uuid.clone(),
        }),
        ..NodeStatus::default()
    }
}

/// What there is, and what of it pods may have.
fn resources(seen: &Seen<'_>) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
    let list = |memory: u64, disk: u64| {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity((seen.machine.millicpus / 1000).to_string())),
            ("memory".to_owned(), Quantity(format!("{}Ki", memory / 1024))),
            ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", disk / 1024))),
            ("pods".to_owned(), Quantity(seen.max_pods.to_string())),
        ])
    };
    let memory = u64::try_from(seen.machine.memory).unwrap_or(0);
    let disk = seen.observation.room.map_or(0, |it| it.bytes);
    let without =
        |all: u64, limit: Option<Threshold>| all.saturating_sub(limit.map_or(0, |it| it.of(all)));
    let limits = &seen.eviction_hard;
    let kept = without(memory, limits.memory);
    (list(memory, disk), list(kept, without(disk, limits.disk)))
}
