//! What is asked for: how many nodes of what kind, and of whom.

use std::{net::Ipv4Addr, path::PathBuf, str::FromStr};

use insula_client::Client;
use insula_nodeagent::hollow::Capacity;

use crate::{HollowError, Shared, behaviour::Behaviour};

/// Nodes of one process, at most: each has its own address.
pub(crate) const MOST: u32 = 1 << 22;
/// The longest name has 253 characters, and the number needs some.
const LONGEST_PREFIX: usize = 200;
/// Nodes that share a connection: each has a watch and at times a write, and servers bound the
/// requests of one connection (ours 250, others 100).
const NODES_OF_CONNECTION: u32 = 80;

/// Nodes that share a stream.
const NODES_OF_FEED: u32 = 500;

/// How nodes speak to the API server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// As a standard kubelet: for each node a watch of its pods, and a lease that it renews.
    #[default]
    Kubelet,
    /// As our agent: one stream for many nodes, with all that concerns them, on which their
    /// heartbeats ride. Our server alone has it.
    Feed,
}

impl FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kubelet" => Ok(Self::Kubelet),
            "feed" => Ok(Self::Feed),
            _ => Err(format!("there is no mode {text:?}; there are feed and kubelet")),
        }
    }
}

/// See the module. Fill in what has no default with [`Options::new`].
#[derive(Debug, Clone)]
pub struct Options {
    pub count: u32,
    /// The number of the first one: several processes can share a cluster.
    pub first: u32,
    /// Nodes are named by this and their number.
    pub prefix: String,
    pub mode: Mode,
    pub capacity: Capacity,
    /// Labels of all nodes.
    pub labels: Vec<(String, String)>,
    /// Nodes are in these zones in turn (`topology.kubernetes.io/zone`).
    pub zones: Vec<String>,
    /// How pods behave that do not say.
    pub behaviour: Behaviour,
    /// Writes under way at once, of all nodes together.
    pub concurrency: usize,
}

impl Options {
    /// So many nodes of 4 processors, 32 GiB and 110 pods, named `hollow-N`.
    pub fn new(count: u32) -> Self {
        Self {
            count,
            first: 0,
            prefix: "hollow-".to_owned(),
            mode: Mode::default(),
            capacity: Capacity { cpus: 4, memory: 32 << 30, disk: 256 << 30, pods: 110 },
            labels: Vec::new(),
            zones: Vec::new(),
            behaviour: Behaviour::default(),
            concurrency: 256,
        }
    }

    pub(crate) fn check(&self) -> Result<(), HollowError> {
        match self.first.checked_add(self.count) {
            Some(end) if end <= MOST => (),
            _ => return Err(HollowError::TooMany(self.count)),
        }
        let is_fine =
            |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-' || it == b'.';
        let starts = self.prefix.bytes().next().is_some_and(|it| it.is_ascii_alphanumeric());
        match starts && self.prefix.len() <= LONGEST_PREFIX && self.prefix.bytes().all(is_fine) {
            true => Ok(()),
            false => Err(HollowError::Prefix(self.prefix.clone())),
        }
    }

    /// How many nodes one crew has.
    pub(crate) fn crew(&self) -> u32 {
        match self.mode {
            Mode::Kubelet => NODES_OF_CONNECTION,
            Mode::Feed => NODES_OF_FEED,
        }
    }
}

/// Who is asked.
#[derive(Debug, Clone)]
pub enum Target {
    /// Any Kubernetes, by kubeconfig.
    Kubeconfig(PathBuf),
    /// A server with tenants, by one client for all nodes, such as one in this process.
    Client(Client),
}

impl Target {
    /// A client for each crew; crews share them in turn.
    pub(crate) async fn clients(&self, options: &Options) -> Result<Vec<Client>, HollowError> {
        let path = match self {
            Self::Client(client) => return Ok(vec![client.clone()]),
            Self::Kubeconfig(path) => path,
        };
        let mut clients = Vec::new();
        for _ in 0..options.count.div_ceil(options.crew()).max(1) {
            clients.push(Client::multiplexed(path, "insula-hollow").await?);
        }
        let Some(first) = clients.first() else { return Ok(clients) };
        // Only ours says so of itself.
        let version = first.document("/version").await.map_err(HollowError::Version)?;
        let version = version.get("gitVersion").and_then(|it| it.as_str()).unwrap_or_default();
        if version.contains("insula") {
            return Ok(clients);
        }
        match options.mode {
            Mode::Feed => Err(HollowError::NoFeed),
            Mode::Kubelet => Ok(clients.iter().map(Client::without_tenants).collect()),
        }
    }
}

impl Shared {
    pub(crate) fn name(&self, number: u32) -> String {
        format!("{}{number}", self.options.prefix)
    }

    /// The number of the node of that name.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        name.strip_prefix(&*self.options.prefix)?.parse().ok()
    }

    pub(crate) fn labels(&self, number: u32) -> Vec<(String, String)> {
        let mut labels = self.options.labels.clone();
        let zones = &self.options.zones;
        if let Some(at) = (number as usize).checked_rem(zones.len()) {
            labels.push(("topology.kubernetes.io/zone".to_owned(), zones[at].clone()));
        }
        labels
    }
}

/// The address of a node, of what carriers use among themselves: nobody is there.
pub(crate) fn node_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() | (number & (MOST - 1)))
}

/// The address of a node's pod. Those of the first 131,072 nodes are all different.
pub(crate) fn pod_address(number: u32, slot: u32) -> Ipv4Addr {
    let within = (number << 7 | slot & 0x7f) & 0x00ff_ffff;
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() | within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_checked() {
        let with = |count, first, prefix: &str| {
            Options { first, prefix: prefix.to_owned(), ..Options::new(count) }.check()
        };
        assert!(with(10, 0, "hollow-").is_ok());
        assert!(matches!(with(10, MOST, "hollow-"), Err(HollowError::TooMany(10))));
        assert!(matches!(with(u32::MAX, 1, "hollow-"), Err(HollowError::TooMany(_))));
        for prefix in ["", "-a", "A", "a_b", &"a".repeat(201)] {
            assert!(matches!(with(1, 0, prefix), Err(HollowError::Prefix(_))), "{prefix}");
        }
    }

    #[test]
    fn addresses_differ() {
        assert_eq!(node_address(257).to_string(), "100.64.1.1");
        assert_eq!(pod_address(0, 1).to_string(), "10.0.0.1");
        assert_eq!(pod_address(3, 2).to_string(), "10.0.1.130");
    }

    #[test]
    fn modes_are_read() {
        assert_eq!("kubelet".parse(), Ok(Mode::Kubelet));
        assert!("kublet".parse::<Mode>().unwrap_err().contains("there are feed and kubelet"));
        assert_eq!("feed".parse(), Ok(Mode::Feed));
    }
}
