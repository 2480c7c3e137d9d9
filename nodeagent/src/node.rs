//! What all pods of this node share.

use std::{net::IpAddr, sync::Arc};

use crate::{
    cluster::Cluster,
    config::NodeConfig,
    cri::RuntimeClient,
    machine::Machine,
    pod::{dns::Resolver, env::Place, image::Images, sandbox::Surroundings},
};

/// The node as its pods' workers see it.
#[derive(Debug)]
pub(crate) struct Node {
    pub config: NodeConfig,
    pub runtime: RuntimeClient,
    /// How container ids begin in statuses, such as `containerd`.
    pub runtime_name: String,
    pub systemd_cgroups: bool,
    pub images: Images,
    pub cluster: Arc<dyn Cluster>,
    pub machine: Machine,
    pub resolver: Resolver,
}

impl Node {
    /// What makes the sandboxes of this node alike.
    pub(crate) fn surroundings(&self) -> Surroundings {
        Surroundings { resolver: self.resolver.clone(), systemd_cgroups: self.systemd_cgroups }
    }

    /// What a pod at `pod_ips` may ask about itself.
    pub(crate) fn place(&self, pod_ips: &[IpAddr]) -> Place {
        Place {
            node_name: self.config.node_name.clone(),
            host_ip: Some(self.config.node_ip),
            pod_ips: pod_ips.to_vec(),
            apiserver: self.config.apiserver_address,
            allocatable_millicpus: self.machine.millicpus,
            allocatable_memory: self.machine.memory,
        }
    }
}
