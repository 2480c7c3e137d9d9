//! The configuration of `insula apiserver`: one YAML file, overridden by flags.
//!
//! Described for people in `docs/reference/apiserver.md`; a test keeps the example there honest.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use insula_apiserver::{
    OutboundNetworks,
    audit::{Audit, Rotation},
};
use insula_partition::{
    etcd::{EtcdConfig, EtcdTls, EtcdUser},
    map::ServerInfo,
    partitions::{EtcdPartition, StoreConfig},
};
use rustls::SupportedProtocolVersion;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// Unique among the servers of the cluster, a DNS label. For the server's whole life.
    pub(crate) name: String,
    /// Where this server keeps its partitions. Never shared with another server.
    pub(crate) data_dir: PathBuf,
    /// Where clients and other servers are served.
    #[serde(default = "default_listen")]
    pub(crate) listen: SocketAddr,
    /// `HOST:PORT` at which others reach this server; the listen address if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advertise: Option<String>,
    pub(crate) pki: Pki,
    /// The oldest TLS that clients may speak.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) tls_min_version: LeastTls,
    /// How the cluster begins, or whom to ask for it.
    #[serde(default)]
    pub(crate) cluster: Cluster,
    /// Which embedded partitions this server wants to be a member of.
    #[serde(default)]
    pub(crate) serve: Serve,
    /// How likely a request over HTTP/2 is to be the last new one of its connection, 0 to 1, so
    /// that clients behind a load balancer spread over servers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) goaway_chance: f64,
    /// Most connections of one client address at once; 0 for any number.
    #[serde(default = "default_connections_per_address")]
    pub(crate) connections_per_address: usize,
    /// Where requests are written down; nowhere if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) audit: Option<AuditLog>,
    /// Tokens for development, one a line: `token,user,uid,"groups",tenant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) static_tokens: Option<PathBuf>,
    /// What is sealed where it is stored, and with which keys: an `EncryptionConfiguration`. All
    /// servers of a cluster have the same. Nothing is sealed if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) encryption: Option<PathBuf>,
    /// Networks that requests which tenants cause (to pods and services, webhooks, their own API
    /// servers, identity providers) may not reach, and exceptions: lists of CIDRs, `deny` and
    /// `allow`; the longest prefix decides. This host, its link, and the servers are closed unasked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) outbound: OutboundNetworks,
    /// How to log in to etcds, by the partition's name; `*` for all others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) etcd: BTreeMap<String, EtcdLogin>,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 6443))
}

const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// The oldest TLS that a listener speaks, in upstream's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum LeastTls {
    #[serde(rename = "VersionTLS12")]
    #[value(name = "VersionTLS12")]
    Tls12,
    #[default]
    #[serde(rename = "VersionTLS13")]
    #[value(name = "VersionTLS13")]
    Tls13,
}

impl LeastTls {
    /// All that are as new.
    pub(crate) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::Tls12 => rustls::ALL_VERSIONS,
            Self::Tls13 => TLS13,
        }
    }
}

/// PEM files. Relative paths begin at the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Pki {
    /// Signs everybody's certificates.
    pub(crate) ca: PathBuf,
    /// This server's, for clients and for other servers.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Signs service account tokens. All servers of a cluster have the same.
    pub(crate) service_account_key: PathBuf,
    /// Shown to node agents.
    pub(crate) node_client_certificate: PathBuf,
    pub(crate) node_client_key: PathBuf,
}

impl Pki {
    /// The files that are certificates, and their keys.
    pub(crate) fn certificates(&self) -> [PathBuf; 5] {
        [
            &self.ca,
            &self.certificate,
            &self.key,
            &self.node_client_certificate,
            &self.node_client_key,
        ]
        .map(Clone::clone)
    }
}

/// An audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AuditLog {
    /// An `audit.k8s.io/v1` Policy.
    pub(crate) policy: PathBuf,
    pub(crate) log: PathBuf,
    /// Megabytes of one file.
    #[serde(default = "default_audit_size")]
    pub(crate) max_size: u64,
    /// How many old files are kept; 0 for all.
    #[serde(default)]
    pub(crate) max_backups: usize,
    /// For how many days; 0 for ever.
    #[serde(default)]
    pub(crate) max_age: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(it: &f64) -> bool {
    *it == 0.0
}

fn is_default<T: Default + PartialEq>(it: &T) -> bool {
    *it == T::default()
}

/// Enough for a crowd behind one translated address.
pub(crate) fn default_connections_per_address() -> usize {
    10_000
}

fn default_audit_size() -> u64 {
    100
}

impl AuditLog {
    /// Reads the policy and opens the log.
    pub(crate) fn open(&self) -> Result<Audit> {
        let rotation = Rotation {
            max_size: self.max_size.saturating_mul(1 << 20),
            max_backups: self.max_backups,
            max_age: Duration::from_secs(self.max_age.saturating_mul(24 * 3600)),
        };
        Ok(Audit::open(&self.policy, &self.log, rotation)?)
    }
}

/// How a server finds its cluster. Looked at when the data directory is new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Cluster {
    /// This server is the first one.
    Begin(Begin),
    /// Other servers, at least one of which must answer.
    Join(Vec<Seed>),
}

impl Default for Cluster {
    fn default() -> Self {
        Self::Begin(Begin::default())
    }
}

/// What a new cluster begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Begin {
    /// Number of embedded partitions, named `p1` and so on.
    #[serde(default = "default_partitions")]
    pub(crate) partitions: u16,
    /// In their place: partitions in etcd. The first one also holds the partition map.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) etcd: Vec<EtcdCluster>,
}

fn default_partitions() -> u16 {
    2
}

impl Default for Begin {
    fn default() -> Self {
        Self { partitions: default_partitions(), etcd: Vec::new() }
    }
}

/// Another server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Seed {
    pub(crate) name: String,
    /// `HOST:PORT`.
    pub(crate) address: String,
}

/// A partition in an etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EtcdCluster {
    pub(crate) name: String,
    pub(crate) endpoints: Vec<String>,
    #[serde(default = "default_prefix")]
    pub(crate) prefix: String,
    /// Another etcd for events and heartbeats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) relaxed: Vec<String>,
}

fn default_prefix() -> String {
    EtcdConfig::PREFIX.into()
}

/// How to log in to an etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EtcdLogin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// A file whose first line is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password_file: Option<PathBuf>,
}

impl EtcdLogin {
    /// With the password read; of no etcd in particular.
    pub(crate) fn read(&self) -> Result<EtcdConfig> {
        let mut config = EtcdConfig::plain(Vec::new());
        config.tls = self
            .ca
            .clone()
            .map(|ca| EtcdTls { ca, identity: self.certificate.clone().zip(self.key.clone()) });
        if let (Some(user), Some(file)) = (&self.user, &self.password_file) {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read the password {}", file.display()))?;
            let password = text.lines().next().unwrap_or_default().to_owned();
            config.user = Some(EtcdUser { name: user.clone(), password });
        }
        Ok(config)
    }
}

/// Which embedded partitions a server is to have. The map may say otherwise later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Serve {
    /// All there are when it joins, and the partition map.
    #[default]
    All,
    /// None: every request is sent on.
    None,
    /// These; `meta` is the partition map.
    #[serde(untagged)]
    Some(Vec<String>),
}

impl Config {
    /// Reads `path`; what is relative there begins at its directory.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let mut config = Self::parse(&text)
            .with_context(|| format!("the configuration {} is not valid", path.display()))?;
        let base = path.parent().unwrap_or_else(|| Path::new("."));
        config.paths_from(base);
        Ok(config)
    }

    /// Reads YAML, and checks what can be checked without the world.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let config: Self = serde_saphyr::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<()> {
        check_name("name", &self.name)?;
        if !(0.0..=1.0).contains(&self.goaway_chance) {
            bail!("goawayChance: a number from 0 to 1, not {}", self.goaway_chance);
        }
        if let Some(address) = &self.advertise {
            check_address("advertise", address)?;
        } else if self.listen.ip().is_unspecified() {
            bail!("advertise: needed, because `listen` is not one address (such as 10.0.0.1:6443)");
        }
        match &self.cluster {
            Cluster::Begin(begin) => {
                if !begin.etcd.is_empty() {
                    for etcd in &begin.etcd {
                        check_name("cluster.begin.etcd.name", &etcd.name)?;
                        if etcd.endpoints.is_empty() {
                            bail!("cluster.begin.etcd: partition {} has no endpoints", etcd.name);
                        }
                    }
                } else if !(1..=64).contains(&begin.partitions) {
                    bail!("cluster.begin.partitions: 1 to 64, not {}", begin.partitions);
                }
            }
            Cluster::Join(seeds) => {
                if seeds.iter().all(|seed| seed.name == self.name) {
                    bail!(
                        "cluster.join: names no other server; the first server begins the cluster"
                    );
                }
                for seed in seeds {
                    check_name("cluster.join.name", &seed.name)?;
                    check_address("cluster.join.address", &seed.address)?;
                }
            }
        }
        for (name, login) in &self.etcd {
            if login.certificate.is_some() != login.key.is_some() {
                bail!("etcd.{name}: certificate and key belong together");
            }
            if login.user.is_some() != login.password_file.is_some() {
                bail!("etcd.{name}: user and passwordFile belong together");
            }
            if login.certificate.is_some() && login.ca.is_none() {
                bail!("etcd.{name}: a certificate needs the ca of the etcd, too");
            }
        }
        Ok(())
    }

    fn paths_from(&mut self, base: &Path) {
        let mut all = vec![
            &mut self.data_dir,
            &mut self.pki.ca,
            &mut self.pki.certificate,
            &mut self.pki.key,
            &mut self.pki.service_account_key,
            &mut self.pki.node_client_certificate,
            &mut self.pki.node_client_key,
        ];
        for login in self.etcd.values_mut() {
            let EtcdLogin { ca, certificate, key, password_file, user: _ } = login;
            all.extend([ca, certificate, key, password_file].into_iter().flatten());
        }
        all.extend(&mut self.static_tokens);
        all.extend(&mut self.encryption);
        if let Some(audit) = &mut self.audit {
            all.extend([&mut audit.policy, &mut audit.log]);
        }
        for path in all {
            *path = base.join(&*path);
        }
    }

    /// Where others reach this server.
    pub(crate) fn address(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// How storage begins.
    pub(crate) fn store(&self) -> Result<StoreConfig> {
        Ok(match &self.cluster {
            Cluster::Join(seeds) => StoreConfig::Join {
                servers: seeds
                    .iter()
                    .filter(|seed| seed.name != self.name)
                    .map(|seed| ServerInfo {
                        name: seed.name.clone(),
                        address: seed.address.clone(),
                        ..ServerInfo::default()
                    })
                    .collect(),
            },
            Cluster::Begin(begin) if begin.etcd.is_empty() => {
                StoreConfig::Embedded { partitions: begin.partitions }
            }
            Cluster::Begin(begin) => {
                let logins = self.logins()?;
                let partition = |etcd: &EtcdCluster| {
                    let login = logins.get(&etcd.name).or_else(|| logins.get("*"));
                    let config = EtcdConfig {
                        endpoints: etcd.endpoints.clone(),
                        prefix: etcd.prefix.clone(),
                        relaxed: etcd.relaxed.clone(),
                        tls: login.and_then(|it| it.tls.clone()),
                        user: login.and_then(|it| it.user.clone()),
                    };
                    EtcdPartition { name: etcd.name.clone(), etcd: config }
                };
                StoreConfig::Etcd { partitions: begin.etcd.iter().map(partition).collect() }
            }
        })
    }

    /// The logins, with their passwords read.
    pub(crate) fn logins(&self) -> Result<BTreeMap<String, EtcdConfig>> {
        self.etcd.iter().map(|(name, login)| Ok((name.clone(), login.read()?))).collect()
    }

    /// The configuration as it is in force.
    pub(crate) fn to_yaml(&self) -> Result<String> {
        Ok(serde_saphyr::to_string(self)?)
    }
}

fn check_name(field: &str, name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| *byte != b'-');
    let bytes = name.as_bytes();
    if 63 < bytes.len()
        || !bytes.iter().all(|byte| good(*byte))
        || !ends(bytes.first())
        || !ends(bytes.last())
    {
        bail!("{field}: {name:?} is no DNS label (a-z, 0-9 and -, at most 63)");
    }
    Ok(())
}

fn check_address(field: &str, address: &str) -> Result<()> {
    let port = address
        .rsplit_once(':')
        .and_then(|(host, port)| (!host.is_empty()).then_some(port)?.parse::<u16>().ok());
    match port {
        Some(port) if port != 0 => Ok(()),
        _ => bail!("{field}: {address:?} is not HOST:PORT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PKI: &str = "pki: {ca: ca.crt, certificate: s1.crt, key: s1.key, \
        serviceAccountKey: sa.key, nodeClientCertificate: n.crt, nodeClientKey: n.key}";

    fn parse(rest: &str) -> Result<Config> {
        Config::parse(&format!("name: s1\ndataDir: data\n{PKI}\n{rest}"))
    }

    #[track_caller]
    fn refused(rest: &str, expected: &str) {
        let error = format!("{:#}", parse(rest).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_left_out_has_a_value() {
        let config = parse("advertise: 10.0.0.1:6443").unwrap();
        assert_eq!(config.listen.port(), 6443);
        assert_eq!(config.serve, Serve::All);
        assert_eq!(config.tls_min_version, LeastTls::Tls13);
        assert_eq!(config.cluster, Cluster::Begin(Begin { partitions: 2, etcd: vec![] }));
        let again = Config::parse(&config.to_yaml().unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn joins_and_serves_as_told() {
        let config = parse(
            "listen: 127.0.0.1:7001\ncluster:\n  join:\n  - {name: s2, address: 'h:1'}\nserve: [p1]",
        )
        .unwrap();
        assert_eq!(config.serve, Serve::Some(vec!["p1".into()]));
        assert!(
            matches!(config.store().unwrap(), StoreConfig::Join { servers } if servers.len() == 1)
        );
        assert_eq!(parse("listen: 127.0.0.1:1\nserve: none").unwrap().serve, Serve::None);
        let again = Config::parse(&config.to_yaml().unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn the_example_is_valid() {
        let config = Config::parse(include_str!("../../docs/examples/apiserver.yaml")).unwrap();
        assert_eq!(config.serve, Serve::Some(vec!["meta".into(), "p1".into()]));
        assert!(config.etcd.contains_key("*"));
        assert_eq!(config.audit.unwrap().max_backups, 10);
        assert_eq!(config.outbound.deny.len(), 1);
        let reference = include_str!("../../docs/reference/apiserver.md");
        for field in [
            "name",
            "dataDir",
            "listen",
            "advertise",
            "tlsMinVersion",
            "serve",
            "goawayChance",
            "connectionsPerAddress",
            "audit",
            "staticTokens",
            "encryption",
            "outbound.deny`, `outbound.allow",
            "etcd.NAME",
        ] {
            assert!(reference.contains(&format!("| `{field}`")), "{field} is not described");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        refused("", "advertise");
        refused("advertise: nowhere", "HOST:PORT");
        refused("advertise: h:1\nlisten: 1.2.3.4", "listen");
        refused("advertise: h:1\nservers: 3", "servers");
        refused("advertise: h:1\ntlsMinVersion: VersionTLS11", "VersionTLS13");
        refused("advertise: h:1\ncluster: {join: []}", "no other server");
        refused("advertise: h:1\ncluster: {begin: {partitions: 0}}", "1 to 64");
        refused("advertise: h:1\netcd: {p1: {user: root}}", "passwordFile");
        let error = Config::parse(&format!("name: S 1\ndataDir: d\nadvertise: h:1\n{PKI}"));
        assert!(format!("{:#}", error.unwrap_err()).contains("DNS label"));
    }
}
