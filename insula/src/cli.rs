//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use insula_apiserver::OutboundNetworks;
use insula_controllers::Choice;
use ipnet::IpNet;

use crate::config::{AuditLog, LeastTls, default_connections_per_address};

/// A Kubernetes-compatible cloud control plane, sharded by tenant.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Begin with `insula up --data-dir run`, then\n  \
    export KUBECONFIG=run/admin.kubeconfig\n  kubectl get nodes"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole cloud in one process: storage, API server, controllers, scheduler and a node.
    #[command(after_help = "Prints `ready https://ADDR:PORT` when a pod can be served and writes \
    DIR/admin.kubeconfig (tenant system, cluster admin) and DIR/ca.crt.\n\
    Ctrl-C or SIGTERM ends it; running containers go on, and a second start on the same \
    directory carries on where it was.")]
    Up(Box<Up>),
    /// Run one API server, alone or among others.
    #[command(after_help = "`insula pki server` writes the configuration, which is YAML, and all \
    that it names:\n  \
    insula pki init --dir pki --server https://10.0.0.1:6443\n  \
    insula pki server --dir pki --name s1 --address 10.0.0.1:6443\n  \
    insula apiserver --config pki/servers/s1/apiserver.yaml\n\
    It says who the server is (`name`, `dataDir`, `advertise`, `pki`), whether it begins a \
    cluster or joins one (`cluster`), which partitions it is to have (`serve`), and how to log in \
    to etcds (`etcd`); docs/reference/apiserver.md has all of it. Flags are stronger than the file.\n\n\
    Prints `ready https://ADDR:PORT` when requests are answered. Ctrl-C or SIGTERM ends it \
    cleanly: watches end, requests are finished. Certificates, keys and tokens are read again when their files change, or on \
    SIGHUP.")]
    Apiserver(Apiserver),
    /// Run the controllers as a process of its own.
    #[command(after_help = known_controllers())]
    Controllers(Controllers),
    /// Run the scheduler as a process of its own.
    Scheduler(Scheduler),
    /// Run the node agent: this machine's pods.
    Node(Node),
    /// Write a kubeconfig with a client certificate for a user of a tenant.
    #[command(
        after_help = "Example:\n  insula kubeconfig --data-dir run --tenant acme --user dev \
    --group acme-admins --out run/dev.kubeconfig"
    )]
    Kubeconfig(Kubeconfig),
    /// Make tenants.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Write everything that all partitions hold into one file, while the cloud runs.
    #[command(
        after_help = "Each partition is in it as it was at one revision. The file is checked \
    before the command ends; keys and certificates (DIR/pki) are not in it: keep a copy.\n\n\
    Example:\n  insula backup --data-dir run --out insula.backup"
    )]
    Backup(Backup),
    /// Write a backup to a new data directory, or to etcds that hold nothing.
    #[command(after_help = "The number and kind of partitions may be others than they were. A \
    damaged backup is refused before anything is written. Put the old DIR/pki beside it, or all \
    users need new kubeconfigs.\n\n\
    Example:\n  insula restore --from insula.backup --data-dir new --partitions 4\n  \
    insula up --data-dir new")]
    Restore(Restore),
    /// Run a cloud of many hosts on this machine, each a network namespace, with faults on command.
    #[command(after_help = "Three API servers, each on its own host, and faults:\n  \
    insula lab up\n  insula lab status\n  \
    insula lab exec client -- kubectl --kubeconfig lab/pki/admin.kubeconfig get partitions\n  \
    insula lab kill s1\n  insula lab start s1\n  insula lab cut s2 s3\n  insula lab heal\n  \
    insula lab down\n\nA lab of your own: docs/reference/lab.md")]
    Lab(crate::lab::Options),
    /// Load tests of this cloud, or of any other Kubernetes API.
    #[command(subcommand)]
    Loadtest(crate::loadtest::Command),
    /// Make certificates, kubeconfigs and configurations for a cluster of several servers.
    #[command(
        subcommand,
        after_help = "Three servers:\n  insula pki init --dir pki --server https://10.0.0.1:6443\n  \
    insula pki server --dir pki --name s1 --address 10.0.0.1:6443\n  \
    insula pki server --dir pki --name s2 --address 10.0.0.2:6443 --join s1=10.0.0.1:6443\n  \
    insula pki server --dir pki --name s3 --address 10.0.0.3:6443 --join s1=10.0.0.1:6443\n\
    then copy pki/servers/NAME to each machine and run\n  \
    insula apiserver --config NAME/apiserver.yaml"
    )]
    Pki(PkiCommand),
    /// Change the keys that sign service account tokens, or those of what is stored, while servers
    /// run.
    #[command(
        subcommand,
        after_help = "Servers see within a second that the file has changed. What any key of it \
    signed is good; the first one signs.\n\n\
    One server:\n  insula keys rotate --data-dir run\n\
    and when no token of the old key is in use any more (an hour, for those of pods):\n  \
    insula keys remove --data-dir run OLD\n\n\
    Several servers, which have to know a key before one of them signs with it:\n  \
    insula keys add --file pki/sa.key         # then copy the file to all servers\n  \
    insula keys use --file pki/sa.key NEW     # and again\n  \
    insula keys remove --file pki/sa.key OLD  # and again, later\n\n\
    With --encryption it is about the keys that wrap tenants' data keys: the first one wraps. An \
    old one can go when `insula keys status` says that it wraps nothing.\n  \
    insula keys rotate --encryption --data-dir run\n  \
    insula keys status --data-dir run\n  \
    insula keys remove --encryption --data-dir run OLD"
    )]
    Keys(KeysCommand),
    /// Print a completion script for a shell: `source <(insula completion bash)`.
    Completion { shell: Shell },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List the keys, that which signs first.
    List(KeysPlace),
    /// Make a key that verifies, but does not sign yet.
    Add(KeysPlace),
    /// Have a key sign from now on; the others go on verifying.
    Use(KeyChoice),
    /// Forget a key: tokens that it signed are refused from then on.
    Remove(KeyChoice),
    /// Make a key and have it sign at once: for one server.
    Rotate(KeysPlace),
    /// Show how what is stored is sealed, and with which keys.
    Status(CloudPlace),
    /// Seal what is not sealed yet, and have the first key wrap all data keys: now, not soon.
    Reseal(Reseal),
}

/// A running cloud.
#[derive(Debug, clap::Args)]
pub(crate) struct CloudPlace {
    /// A platform administrator's kubeconfig.
    #[arg(long, value_name = "F", env = "KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The data directory of `insula up`, in place of its admin.kubeconfig.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Reseal {
    #[command(flatten)]
    pub(crate) cloud: CloudPlace,
    /// Give every tenant a new data key first.
    #[arg(long)]
    pub(crate) renew: bool,
}

/// Where the keys are.
#[derive(Debug, clap::Args)]
pub(crate) struct KeysPlace {
    /// The data directory of `insula up`.
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR", conflicts_with = "file")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The file with the keys; pki/sa.key by default, or pki/encryption.yaml.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The keys of what is stored, in place of those of tokens.
    #[arg(long)]
    pub(crate) encryption: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct KeyChoice {
    #[command(flatten)]
    pub(crate) place: KeysPlace,
    /// Which, as listed.
    #[arg(value_name = "ID", allow_hyphen_values = true)]
    pub(crate) id: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// A platform administrator's kubeconfig.
    #[arg(long, value_name = "F", env = "KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The data directory of `insula up`, in place of its admin.kubeconfig.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where to write it.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Write over a file that is there.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// The backup.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
    /// Look only: whether the backup is whole, and what it holds.
    #[arg(long)]
    pub(crate) check: bool,
    /// A new data directory, for `insula up` or the first `insula apiserver`.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Storage partitions.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) partitions: u16,
    #[command(flatten)]
    pub(crate) storage: Storage,
    /// Name of the server that the data directory is for.
    #[arg(long, value_name = "NAME", default_value = "s1")]
    pub(crate) name: String,
}

/// What is under the partitions.
#[derive(Debug, clap::Args)]
pub(crate) struct Storage {
    /// `embedded`, or real etcds: `etcd=NAME=URL[,URL..];NAME=URL..`.
    #[arg(long, value_name = "STORE", default_value = "embedded")]
    pub(crate) store: String,
    /// CA of the etcds' certificates.
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// Certificate to show to etcds.
    #[arg(long, value_name = "FILE", requires = "etcd_key", requires = "etcd_ca")]
    pub(crate) etcd_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "etcd_certificate")]
    pub(crate) etcd_key: Option<PathBuf>,
    /// User of the etcds.
    #[arg(long, value_name = "U", requires = "etcd_password_file")]
    pub(crate) etcd_user: Option<String>,
    /// File whose first line is the user's password.
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub(crate) etcd_password_file: Option<PathBuf>,
    /// Another etcd for events and heartbeats of partition NAME: `NAME=URL[,URL..]`; may be
    /// repeated.
    #[arg(long, value_name = "RELAXED")]
    pub(crate) etcd_relaxed: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// Where everything is kept. Made if it is not there.
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR")]
    pub(crate) data_dir: PathBuf,
    /// Address and port of the API server; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub(crate) listen: SocketAddr,
    /// Address under which others reach this machine; the one it reaches others with by default.
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise_address: Option<std::net::IpAddr>,
    /// How pods are scheduled: a `KubeSchedulerConfiguration`.
    #[arg(long, value_name = "FILE")]
    pub(crate) scheduler_config: Option<PathBuf>,
    /// Storage partitions of a new data directory, 2 by default. Later a higher number adds some.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) partitions: Option<u16>,
    #[command(flatten)]
    pub(crate) storage: Storage,
    /// Parts to leave out, separated by commas: node, controllers, scheduler, vm-runtime, network.
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = ["node", "controllers", "scheduler", "vm-runtime", "network"])]
    pub(crate) without: Vec<String>,
    /// Name of this machine as a node; its host name by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    #[command(flatten)]
    pub(crate) agent: Agent,
    /// Port of the node agent's own server; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub(crate) node_port: u16,
    /// How likely a request over HTTP/2 is to be the last new one of its connection, 0 to 1.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub(crate) goaway_chance: f64,
    /// Most connections of one client address at once; 0 for any number.
    #[arg(long, value_name = "N", default_value_t = default_connections_per_address())]
    pub(crate) connections_per_address: usize,
    #[command(flatten)]
    pub(crate) audit: Audit,
    #[command(flatten)]
    pub(crate) outbound: Outbound,
    /// Tokens for development, one a line: token,user,uid,"groups",tenant.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_auth_file: Option<PathBuf>,
    /// Start although what is stored is sealed with keys that pki/encryption.yaml lacks, and leave
    /// that closed.
    #[arg(long)]
    pub(crate) accept_lost_keys: bool,
}

fn known_controllers() -> String {
    let names: Vec<_> = insula_controllers::controllers().collect();
    format!(
        "All but jobs: `--controllers '*,-job-controller,-cronjob-controller'`. There are:\n  {}",
        names.join("\n  ")
    )
}

fn probability(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("not from 0 to 1".into()) }
}

/// Whom requests that tenants cause may reach; the longest prefix decides.
#[derive(Debug, clap::Args)]
pub(crate) struct Outbound {
    /// Networks that they may not reach, beside this host, its link, and the servers.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    outbound_deny: Vec<IpNet>,
    /// Networks that they may reach all the same.
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    outbound_allow: Vec<IpNet>,
}

impl Outbound {
    pub(crate) fn networks(&self) -> OutboundNetworks {
        let (deny, allow) = (self.outbound_deny.clone(), self.outbound_allow.clone());
        OutboundNetworks { deny, allow }
    }
}

/// Where requests are written down.
#[derive(Debug, clap::Args)]
pub(crate) struct Audit {
    /// Which requests are written down: an `audit.k8s.io/v1` Policy.
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// Where to, one JSON document a line.
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_log_path: Option<PathBuf>,
    /// Megabytes after which a new file begins.
    #[arg(long, value_name = "MB", default_value_t = 100)]
    audit_log_maxsize: u64,
    /// Old files to keep; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// Days to keep old files; 0 for ever.
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    audit_log_maxage: u64,
}

impl Audit {
    /// The log, if one is asked for.
    pub(crate) fn log(&self) -> Option<AuditLog> {
        let (policy, log) = self.audit_policy_file.clone().zip(self.audit_log_path.clone())?;
        Some(AuditLog {
            policy,
            log,
            max_size: self.audit_log_maxsize,
            max_backups: self.audit_log_maxbackup,
            max_age: self.audit_log_maxage,
        })
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Apiserver {
    /// The configuration.
    #[arg(long, value_name = "FILE", env = "INSULA_APISERVER_CONFIG")]
    pub(crate) config: PathBuf,
    /// In the place of `listen`.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// In the place of `advertise`.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// In the place of `tlsMinVersion`.
    #[arg(long, value_name = "VERSION")]
    pub(crate) tls_min_version: Option<LeastTls>,
    /// In the place of `dataDir`.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Start although what is stored is sealed with keys that `encryption` lacks, and leave that
    /// closed.
    #[arg(long)]
    pub(crate) accept_lost_keys: bool,
    /// Print the configuration that is in force, and end.
    #[arg(long)]
    pub(crate) print_config: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the authority, and kubeconfigs of the administrator, controllers and scheduler.
    Init(PkiInit),
    /// Make what one API server needs: certificates and a configuration.
    Server(PkiServer),
    /// Make a kubeconfig for a user of a tenant.
    Kubeconfig(PkiKubeconfig),
    /// Make what one node needs: certificates and a kubeconfig.
    Node(PkiNode),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PkiInit {
    /// Where everything is kept. The key of the authority should not leave it.
    #[arg(long, value_name = "DIR", default_value = "pki")]
    pub(crate) dir: PathBuf,
    /// URL of a server, or of a load balancer before all of them, for the kubeconfigs.
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PkiServer {
    /// The directory of `insula pki init`.
    #[arg(long, value_name = "DIR", default_value = "pki")]
    pub(crate) dir: PathBuf,
    /// The server's name, unique and for its whole life.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// Where others reach it.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) address: String,
    /// Where it listens.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub(crate) listen: SocketAddr,
    /// A server of the cluster that it joins; may be repeated. Without one it begins the cluster.
    #[arg(long, value_name = "NAME=HOST:PORT")]
    pub(crate) join: Vec<String>,
    /// Number of partitions of the cluster that it begins.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) partitions: u16,
    /// Partitions that it serves: all, none, or names, separated by commas.
    #[arg(long, value_name = "WHICH", value_delimiter = ',')]
    pub(crate) serve: Vec<String>,
    /// Another name or address under which clients reach it; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) san: Vec<String>,
    /// Write the configuration anew if it is there.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Whom a kubeconfig is for, and where it goes.
#[derive(Debug, clap::Args)]
pub(crate) struct UserKubeconfig {
    /// The user's tenant.
    #[arg(long, value_name = "T")]
    pub(crate) tenant: String,
    /// The user's name.
    #[arg(long, value_name = "U")]
    pub(crate) user: String,
    /// A group of the user; may be repeated.
    #[arg(long, value_name = "G")]
    pub(crate) group: Vec<String>,
    /// Where to write it; standard output by default.
    #[arg(long, value_name = "F")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PkiKubeconfig {
    /// The directory of `insula pki init`.
    #[arg(long, value_name = "DIR", default_value = "pki")]
    pub(crate) dir: PathBuf,
    /// URL of a server.
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,
    #[command(flatten)]
    pub(crate) of: UserKubeconfig,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PkiNode {
    /// The directory of `insula pki init`.
    #[arg(long, value_name = "DIR", default_value = "pki")]
    pub(crate) dir: PathBuf,
    /// The node's name.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// An address of the node; may be repeated.
    #[arg(long, value_name = "ADDR", required = true)]
    pub(crate) address: Vec<std::net::IpAddr>,
    /// URL of a server.
    #[arg(long, value_name = "URL")]
    pub(crate) server: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Controllers {
    /// How to reach the API server, as a user of tenant `system` who may do what controllers do.
    #[arg(long, value_name = "F", env = "KUBECONFIG")]
    pub(crate) kubeconfig: PathBuf,
    /// The API server's CA, which is published in every namespace.
    #[arg(long, value_name = "FILE")]
    pub(crate) root_ca: PathBuf,
    /// The authority that signs approved certificate requests. Without it nobody here does.
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub(crate) cluster_signing_cert_file: Option<PathBuf>,
    /// Its key. Only this process needs it, and reads it when something is to be signed.
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub(crate) cluster_signing_key_file: Option<PathBuf>,
    /// Controllers to run, separated by commas: `*` all, NAME that one, -NAME not that one. Without
    /// `*` no others than are named; the first that is about one counts.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        allow_hyphen_values = true,
        default_value = "*"
    )]
    pub(crate) controllers: Vec<Choice>,
    /// Where /metrics and /healthz are served, to everyone who can reach it. Nowhere by default.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Addresses of pods: a range, or one of each family. Each node is given a part of each;
    /// without ranges nodes are given nothing. All replicas have to be told the same.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) cluster_cidr: Vec<ipnet::IpNet>,
    /// Prefix length of a node's part of the range of IPv4.
    #[arg(long, value_name = "BITS", default_value_t = 24)]
    pub(crate) node_cidr_mask_size_ipv4: u8,
    /// Prefix length of a node's part of the range of IPv6.
    #[arg(long, value_name = "BITS", default_value_t = 64)]
    pub(crate) node_cidr_mask_size_ipv6: u8,
    /// Addresses of services, which no node is given.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_cluster_ip_range: Vec<ipnet::IpNet>,
}

impl Controllers {
    /// The ranges of pods, with the prefix length of a node's part.
    pub(crate) fn pod_ranges(&self) -> anyhow::Result<Vec<(ipnet::IpNet, u8)>> {
        let all = &self.cluster_cidr;
        let is_four = |it: &&ipnet::IpNet| matches!(it, ipnet::IpNet::V4(_));
        let n_four = all.iter().filter(is_four).count();
        anyhow::ensure!(
            n_four <= 1 && all.len() - n_four <= 1,
            "--cluster-cidr takes one range of each family"
        );
        let prefix = |it: &ipnet::IpNet| match it {
            ipnet::IpNet::V4(_) => self.node_cidr_mask_size_ipv4,
            ipnet::IpNet::V6(_) => self.node_cidr_mask_size_ipv6,
        };
        Ok(all.iter().map(|it| (*it, prefix(it))).collect())
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Scheduler {
    /// How to reach the API server, as a user of tenant `system` who may do what schedulers do.
    #[arg(long, value_name = "F", env = "KUBECONFIG")]
    pub(crate) kubeconfig: PathBuf,
    /// A `KubeSchedulerConfiguration`: profiles, plugins, weights.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// What a node agent is told, in a process of its own or not.
#[derive(Debug, clap::Args)]
pub(crate) struct Agent {
    /// Socket of the container runtime.
    #[arg(long, value_name = "URL", default_value = "unix:///run/containerd/containerd.sock")]
    pub(crate) container_runtime_endpoint: String,
    /// When the node is short of something, and gets no more pods: SIGNAL<AMOUNT, separated by
    /// commas. Signals are memory.available, nodefs.available, nodefs.inodesFree and
    /// pid.available; what is not named is never short.
    #[arg(
        long,
        value_name = "LIST",
        default_value = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,pid.available<5%"
    )]
    pub(crate) eviction_hard: insula_nodeagent::Thresholds,
    /// The oldest TLS that clients may speak.
    #[arg(long, value_name = "VERSION", default_value = "VersionTLS13")]
    pub(crate) tls_min_version: LeastTls,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Node {
    /// How to reach the API server, as user `system:node:NAME` in group `system:nodes` of tenant
    /// `system`.
    #[arg(long, value_name = "F", env = "KUBECONFIG")]
    pub(crate) kubeconfig: PathBuf,
    /// Where the state of pods and their logs are kept.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/insula")]
    pub(crate) data_dir: PathBuf,
    /// Name of this machine as a node; its host name by default.
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// Address under which others reach this machine.
    #[arg(long, value_name = "ADDR")]
    pub(crate) node_ip: Option<std::net::IpAddr>,
    /// Where logs, exec and the like are served.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10250")]
    pub(crate) listen: SocketAddr,
    /// Certificate of that server.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert_file: PathBuf,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_private_key_file: PathBuf,
    /// CA of those who may ask it.
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca_file: PathBuf,
    #[command(flatten)]
    pub(crate) agent: Agent,
    /// Where containers find the API server.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) apiserver_address: Option<SocketAddr>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Kubeconfig {
    /// The data directory of `insula up`.
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) of: UserKubeconfig,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a tenant with its first administrator, and write the administrator's kubeconfig.
    #[command(after_help = "Ends when the tenant can be used. What is there already is kept: the \
    same command again writes another kubeconfig for an administrator that the tenant has.\n\n\
    Example:\n  insula tenant create acme --admin alice --data-dir run --out alice.kubeconfig\n  \
    kubectl --kubeconfig alice.kubeconfig get namespaces")]
    Create(TenantCreate),
}

#[derive(Debug, clap::Args)]
pub(crate) struct TenantCreate {
    /// The tenant's name: a DNS label. `system` is the platform's own, `all` stands for all of them.
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The user who may do everything in it.
    #[arg(long, value_name = "USER")]
    pub(crate) admin: String,
    /// The partition that it is to live on; the server chooses one by default.
    #[arg(long, value_name = "P")]
    pub(crate) partition: Option<String>,
    /// What its pods may ask for of the nodes they share with others: `privileged` lets them have
    /// the whole machine. It is a label of the Tenant, and can be changed.
    #[arg(long, value_name = "LEVEL", default_value = "baseline",
          value_parser = ["privileged", "baseline", "restricted"])]
    pub(crate) pod_security: String,
    /// The data directory of `insula up`.
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR", required_unless_present = "pki")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The directory of `insula pki init`, for a cluster of several servers.
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    pub(crate) pki: Option<PathBuf>,
    /// Where to write the kubeconfig; standard output by default.
    #[arg(long, value_name = "F")]
    pub(crate) out: Option<PathBuf>,
}

#[allow(clippy::print_stderr, reason = "this is where errors reach the user")]
pub(crate) fn fail(error: &anyhow::Error) {
    // The chain, each cause once: some errors already say what caused them.
    let mut shown = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !shown.contains(&text) {
            if !shown.is_empty() {
                shown.push_str(": ");
            }
            shown.push_str(&text);
        }
    }
    eprintln!("error: {shown}");
}

pub(crate) fn completion(shell: Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "insula", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn controllers_are_chosen_by_name() {
        let read = |more: &[&str]| {
            let begin = ["insula", "controllers", "--kubeconfig", "k", "--root-ca", "c"];
            let Command::Controllers(it) =
                Cli::try_parse_from(begin.iter().chain(more)).map_err(|it| it.to_string())?.command
            else {
                panic!("another command");
            };
            Ok::<_, String>(it.controllers)
        };
        let (all, jobs) = (Choice::All, Choice::Without("job-controller"));
        assert_eq!(read(&[]), Ok(vec![all]));
        assert_eq!(read(&["--controllers", "*,-job-controller"]), Ok(vec![all, jobs]));
        assert_eq!(read(&["--controllers=-job-controller,*"]), Ok(vec![jobs, all]));
        let deployments = Choice::With("deployment-controller");
        let twice = ["--controllers", "-job-controller", "--controllers", "deployment-controller"];
        assert_eq!(read(&twice), Ok(vec![jobs, deployments]));
        let error = read(&["--controllers", "*,-jobs"]).unwrap_err();
        assert!(error.contains("\"jobs\" is no controller; there are: "), "{error}");
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("controllers").unwrap().render_help().to_string();
        assert!(help.contains("--controllers") && help.contains("\n  job-controller\n"), "{help}");
    }
}
