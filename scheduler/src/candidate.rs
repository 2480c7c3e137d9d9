//! What the scheduler must know of a pod that looks for a node.

use insula_client::Tenanted;
use k8s_openapi::api::core::v1::{
    Container, NodeSelectorTerm, Pod, PodSpec, PreferredSchedulingTerm, Toleration,
};

use crate::requests::Requests;

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

/// The part of a pod that decides where it can run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) uid: String,
    pub(crate) priority: i32,
    pub(crate) is_gated: bool,
    pub(crate) requests: Requests,
    pub(crate) ports: Vec<HostPort>,
    pub(crate) tolerations: Vec<Toleration>,
    /// Labels that the node must have.
    pub(crate) labels: Vec<(String, String)>,
    /// Terms of which the node must match one; `None` if any node will do.
    pub(crate) required: Option<Vec<NodeSelectorTerm>>,
    pub(crate) preferred: Vec<PreferredSchedulingTerm>,
}

impl Candidate {
    pub(crate) fn of(pod: &Tenanted<Pod>) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
        let required =
            affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
        let preferred =
            affinity.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.clone());
        Self {
            uid: pod.uid().to_owned(),
            priority: spec.priority.unwrap_or(0),
            is_gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
            requests: Requests::of(spec),
            ports: host_ports(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            labels: spec.node_selector.clone().unwrap_or_default().into_iter().collect(),
            required: required.map(|it| it.node_selector_terms.clone()),
            preferred: preferred.unwrap_or_default(),
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

/// Whether a pod is one that `scheduler` is to find a node for.
pub(crate) fn is_ours(pod: &Pod, scheduler: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let named = spec.scheduler_name.as_deref().filter(|name| !name.is_empty());
    node_of(pod).is_none() && named.unwrap_or(DEFAULT_SCHEDULER) == scheduler
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
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    if let Some(status) = &mut pod.status {
        let conditions = status.conditions.take().unwrap_or_default();
        let kept = conditions.into_iter().filter(|it| it.type_ == "PodScheduled").collect();
        let phase = status.phase.take();
        *status = k8s_openapi::api::core::v1::PodStatus {
            phase,
            conditions: Some(kept),
            ..Default::default()
        };
    }
    let Some(spec) = &mut pod.spec else { return };
    spec.volumes = None;
    spec.ephemeral_containers = None;
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        let old = std::mem::take(container);
        *container = Container {
            name: old.name,
            resources: old.resources,
            ports: old.ports,
            restart_policy: old.restart_policy,
            ..Container::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Tenanted<Pod> {
        let object = serde_json::from_value(json!({"spec": spec})).unwrap();
        Tenanted { tenant: TenantName::parse("acme").unwrap(), object }
    }

    #[test]
    fn ports_on_the_host() {
        let pod = pod(json!({
            "hostNetwork": true,
            "initContainers": [
                {"name": "init", "ports": [{"containerPort": 1}]},
                {"name": "side", "restartPolicy": "Always", "ports": [{"containerPort": 2}]},
            ],
            "containers": [{"name": "c", "ports": [
                {"containerPort": 3, "hostPort": 4, "hostIP": "10.0.0.1", "protocol": "UDP"},
            ]}],
        }));
        let ports = Candidate::of(&pod).ports;
        let shown: Vec<_> =
            ports.iter().map(|it| format!("{}:{}/{}", it.address, it.port, it.protocol)).collect();
        assert_eq!(shown, ["10.0.0.1:4/UDP", ":2/TCP"]);
    }

    #[test]
    fn clashes() {
        let port = |address: &str, protocol: &str, port| HostPort {
            address: address.into(),
            protocol: protocol.into(),
            port,
        };
        assert!(port("", "TCP", 80).clashes(&port("10.0.0.1", "TCP", 80)));
        assert!(!port("10.0.0.2", "TCP", 80).clashes(&port("10.0.0.1", "TCP", 80)));
        assert!(!port("", "UDP", 80).clashes(&port("", "TCP", 80)));
        assert!(!port("", "TCP", 81).clashes(&port("", "TCP", 80)));
    }

    #[test]
    fn whose_a_pod_is() {
        let ours = |spec| is_ours(&pod(spec), DEFAULT_SCHEDULER);
        assert!(ours(json!({"containers": []})));
        assert!(ours(json!({"containers": [], "schedulerName": "", "nodeName": ""})));
        assert!(!ours(json!({"containers": [], "schedulerName": "other"})));
        assert!(!ours(json!({"containers": [], "nodeName": "n1"})));
    }

    #[test]
    fn trimming_does_not_change_the_candidate() {
        let whole = pod(json!({
            "priority": 7,
            "schedulingGates": [{"name": "wait"}],
            "nodeSelector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{
                "name": "c", "image": "i", "env": [{"name": "A"}], "command": ["x"],
                "resources": {"requests": {"cpu": "1"}}, "ports": [{"containerPort": 1, "hostPort": 1}],
            }],
        }));
        let mut trimmed = whole.clone();
        trim(&mut trimmed.object);
        assert_eq!(Candidate::of(&trimmed), Candidate::of(&whole));
        assert!(trimmed.spec.as_ref().unwrap().containers[0].env.is_none());
    }
}
