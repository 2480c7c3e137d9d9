//! The configuration of a pod's sandbox.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{
    dns::{self, Resolver},
    identity::{GRACE_PERIOD, PodKey},
    resources, security,
};
use crate::{config::NodeConfig, cri::v1};

/// What makes sandboxes of this node alike.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub resolver: Resolver,
    /// The runtime leaves control groups to systemd.
    pub systemd_cgroups: bool,
}

/// What the runtime is to make for the pod. The same input gives the same configuration: it is
/// asked for once with the sandbox and again with each of its containers.
pub(crate) fn config(
    node: &NodeConfig,
    surroundings: &Surroundings,
    key: &PodKey,
    spec: &PodSpec,
    attempt: u32,
) -> v1::PodSandboxConfig {
    let host_network = spec.host_network == Some(true);
    let (hostname, _) = dns::hostname(spec, &key.name, &key.namespace, &node.cluster_domain);
    let class = resources::qos_class(spec);
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            // Runtimes derive a name from these four; the uid keeps tenants' pods apart in it.
            name: key.name.as_ref().to_owned(),
            uid: key.uid.as_ref().to_owned(),
            namespace: key.namespace.as_ref().to_owned(),
            attempt,
        }),
        // A pod in the host's network cannot have another host name.
        hostname: if host_network { String::new() } else { hostname },
        log_directory: node.pod_logs_dir.join(key.log_directory()).display().to_string(),
        dns_config: Some(dns::dns_config(
            spec,
            &key.namespace,
            &node.cluster_dns,
            &node.cluster_domain,
            &surroundings.resolver,
        )),
        port_mappings: if host_network { Vec::new() } else { port_mappings(spec) },
        labels: key.labels(&node.agent_id()),
        annotations: [(GRACE_PERIOD.to_owned(), grace.to_string())].into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(
                &node.cgroup_root,
                class,
                &key.uid,
                surroundings.systemd_cgroups,
            ),
            security_context: Some(security::of_sandbox(spec)),
            sysctls: spec
                .security_context
                .iter()
                .flat_map(|it| it.sysctls.iter().flatten())
                .map(|it| (it.name.clone(), it.value.clone()))
                .collect(),
            resources: None,
        }),
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<v1::PortMapping> {
    let is_sidecar = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let ports = spec.containers.iter().chain(sidecars).flat_map(|it| it.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = port.host_port.filter(|&it| it > 0)?;
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => v1::Protocol::Udp,
                Some("SCTP") => v1::Protocol::Sctp,
                _ => v1::Protocol::Tcp,
            };
            Some(v1::PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port,
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}
