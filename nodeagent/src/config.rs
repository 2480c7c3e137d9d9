//! What a node agent is told when it starts.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use rustls::SupportedProtocolVersion;

use crate::registration::Thresholds;

/// What its server speaks if nothing else is said.
const TLS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Configuration of one node agent. Fill in what has no default with [`NodeConfig::new`].
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The name of this machine's Node object, and the value pods' `spec.nodeName` has.
    pub node_name: String,
    /// Volumes and other files of pods live below it.
    pub root_dir: PathBuf,
    /// Container logs: `<tenant>_<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub pod_logs_dir: PathBuf,
    /// `unix:///path` of the CRI runtime.
    pub runtime_endpoint: String,
    /// Where the HTTPS server for logs, exec and the like listens. Port 0 takes any free one.
    pub listen: SocketAddr,
    pub serving_cert: PathBuf,
    pub serving_key: PathBuf,
    /// What that server speaks: TLS 1.3 if nothing else is said.
    pub tls_versions: &'static [&'static SupportedProtocolVersion],
    /// The authority that signs the certificates of those who may ask that server.
    pub client_ca: PathBuf,
    /// The address under which others reach this machine; becomes `status.hostIP` of its pods.
    pub node_ip: IpAddr,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`; if empty, they get the machine's.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// What `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` say in containers.
    pub apiserver_address: Option<SocketAddr>,
    pub max_pods: u32,
    /// When the node is short of memory, disk or processes.
    pub eviction_hard: Thresholds,
    /// The parent of all pods' control groups.
    pub cgroup_root: String,
    /// Labels the Node object gets on top of those that describe the machine.
    pub node_labels: Vec<(String, String)>,
    /// A container's log is rotated when it grows beyond this many bytes.
    pub max_log_bytes: u64,
    /// How many files of log a container keeps, the current one included.
    pub max_log_files: usize,
}

impl NodeConfig {
    /// A configuration with the usual paths and limits.
    pub fn new(
        node_name: impl Into<String>,
        node_ip: IpAddr,
        serving_cert: impl Into<PathBuf>,
        serving_key: impl Into<PathBuf>,
        client_ca: impl Into<PathBuf>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            root_dir: "/var/lib/insula/node".into(),
            pod_logs_dir: "/var/log/pods".into(),
            runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            listen: SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 10250),
            serving_cert: serving_cert.into(),
            serving_key: serving_key.into(),
            tls_versions: TLS,
            client_ca: client_ca.into(),
            node_ip,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            apiserver_address: None,
            max_pods: 110,
            eviction_hard: Thresholds::default(),
            cgroup_root: "/kubepods".to_owned(),
            node_labels: Vec::new(),
            max_log_bytes: 10 << 20,
            max_log_files: 5,
        }
    }

    /// What tells this agent's sandboxes from those of others on the same runtime.
    pub(crate) fn agent_id(&self) -> String {
        self.root_dir.display().to_string()
    }

    /// The directory of all that belongs to one pod.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }
}
