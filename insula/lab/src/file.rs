//! What a lab looks like.
//!
//! ```yaml
//! networks:
//!   core: 10.77.0.0/24
//!   site: 10.78.0.0/24
//! hosts:
//!   s1:
//!     on: { core: { address: 10.77.0.11 } }
//!     disk: 64m
//!     run:
//!       etcd1:
//!         command: [etcd, --data-dir, "{dir}/etcd", --listen-client-urls, "http://{address}:2379",
//!                   --advertise-client-urls, "http://{address}:2379"]
//!         ready: { port: 2379 }
//!   router:
//!     on: { core: { address: 10.77.0.1 }, site: { address: 10.78.0.1 } }
//!     router: { nat: [core] }
//!   edge1:
//!     on: { site: { address: 10.78.0.21, latency: 20ms, loss: 0.02, bandwidth: 10mbit } }
//!     gateway: 10.78.0.1
//! ```

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use ipnet::Ipv4Net;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::error::{LabError, Result};

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LabFile {
    /// Switched networks by name.
    pub networks: BTreeMap<String, Ipv4Net>,
    pub hosts: BTreeMap<String, Host>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Host {
    /// Its cables, by network. The first one's address is the host's.
    pub on: BTreeMap<String, Cable>,
    /// Where everything else goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Passes packets on between its networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Router>,
    /// Size of the host's own disk, as `mount` takes it (`64m`); without it the host shares the
    /// lab's directory and cannot be filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Its processes, by a name that no other process of the lab has. Started in the order in
    /// which they depend on each other: `after`, then by name.
    #[serde(default)]
    pub run: BTreeMap<String, Process>,
}

/// How a host is on a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cable {
    pub address: Ipv4Addr,
    /// Of what arrives here, the part that is lost: 0 to 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub loss: f64,
    /// The time that a packet takes on this cable, in each direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<SignedDuration>,
    /// What the host can send, as `tc` takes it: `10mbit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<String>,
}

/// A host between networks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Router {
    /// Networks on which its own address stands for everyone behind it.
    #[serde(default)]
    pub nat: Vec<String>,
}

/// A process on a host. In `command`, `env` and `ready` stand
/// `{dir}` for the host's directory, `{lab}` for the lab's, `{address}` for the host's first
/// address, `{host}` for its name, and `{address:NAME}` for another host's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Process {
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Processes that must be ready first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// Every flush to the disk takes this much longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flush_delay: Option<SignedDuration>,
    /// It believes that it is so much later (or earlier) than it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew: Option<SignedDuration>,
}

/// How it shows that a process is ready. All that are given must be true.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Ready {
    /// Something listens on this port of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// A line of its output begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// How long it may take; 60 s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<SignedDuration>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// Names become names of namespaces, directories and interfaces.
fn check_name(what: &str, name: &str) -> Result<()> {
    let valid = !name.is_empty()
        && name.len() <= 32
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if valid {
        return Ok(());
    }
    Err(LabError::Invalid(format!(
        "{what} cannot be named {name:?}: use up to 32 lower-case letters, digits and dashes"
    )))
}

impl LabFile {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|source| LabError::io("read", path, source))?;
        Self::parse(&text)
            .map_err(|error| LabError::File { path: path.into(), why: error.to_string() })
    }

    /// Reads and checks a file's text.
    pub fn parse(text: &str) -> Result<Self> {
        let file: Self =
            serde_saphyr::from_str(text).map_err(|error| LabError::Invalid(error.to_string()))?;
        file.check()?;
        Ok(file)
    }

    /// Whether all names are known and all addresses in their networks.
    pub fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(LabError::Invalid(what));
        for network in self.networks.keys() {
            check_name("a network", network)?;
        }
        let mut processes: BTreeMap<&String, &Vec<String>> = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for (name, host) in &self.hosts {
            check_name("a host", name)?;
            if host.on.is_empty() {
                return invalid(format!("host {name} is on no network"));
            }
            for (network, cable) in &host.on {
                let Some(subnet) = self.networks.get(network) else {
                    return invalid(format!(
                        "host {name} is on network {network}, which is not defined"
                    ));
                };
                if !subnet.contains(&cable.address) {
                    return invalid(format!(
                        "{} of host {name} is not in network {network} ({subnet})",
                        cable.address
                    ));
                }
                if let Some(other) = addresses.insert(cable.address, name) {
                    return invalid(format!(
                        "hosts {other} and {name} have the same address {}",
                        cable.address
                    ));
                }
                if !(0.0..=1.0).contains(&cable.loss) {
                    return invalid(format!(
                        "host {name} cannot lose {} of its packets: say 0 to 1",
                        cable.loss
                    ));
                }
            }
            let nat = host.router.iter().flat_map(|router| &router.nat);
            if let Some(network) = nat.into_iter().find(|network| !host.on.contains_key(*network)) {
                return invalid(format!("router {name} is not on network {network}"));
            }
            for (process, it) in &host.run {
                check_name("a process", process)?;
                if it.command.is_empty() {
                    return invalid(format!("process {process} has no command"));
                }
                if processes.insert(process, &it.after).is_some() {
                    return invalid(format!("two processes are named {process}"));
                }
            }
        }
        for (process, after) in &processes {
            if let Some(unknown) = after.iter().find(|it| !processes.contains_key(it)) {
                return invalid(format!(
                    "process {process} is to start after {unknown}, which is not there"
                ));
            }
        }
        self.start_order().map(drop)
    }

    /// All processes with their hosts, each after those that it waits for.
    pub(crate) fn start_order(&self) -> Result<Vec<(&str, &str)>> {
        let mut waiting: BTreeMap<&str, (&str, &Process)> = BTreeMap::new();
        for (host, it) in &self.hosts {
            waiting.extend(
                it.run.iter().map(|(name, process)| (name.as_str(), (host.as_str(), process))),
            );
        }
        let mut order = Vec::new();
        while !waiting.is_empty() {
            let free = |(_, process): &(&str, &Process)| {
                process.after.iter().all(|name| !waiting.contains_key(name.as_str()))
            };
            let next: Vec<_> =
                waiting.iter().filter(|(_, it)| free(it)).map(|(name, it)| (it.0, *name)).collect();
            if next.is_empty() {
                let names: Vec<_> = waiting.keys().copied().collect();
                return Err(LabError::Invalid(format!(
                    "processes wait for each other: {}",
                    names.join(", ")
                )));
            }
            for (_, name) in &next {
                waiting.remove(name);
            }
            order.extend(next);
        }
        Ok(order)
    }
}

impl Host {
    /// The address by which the host is known.
    pub fn address(&self) -> Ipv4Addr {
        self.on.values().next().map_or(Ipv4Addr::UNSPECIFIED, |cable| cable.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
networks: {core: 10.77.0.0/24}
hosts:
  a:
    on: {core: {address: 10.77.0.1}}
    run:
      second: {command: [sleep, '9'], after: [first]}
  b:
    on: {core: {address: 10.77.0.2, loss: 0.5}}
    run:
      first: {command: [sleep, '9'], flushDelay: 2ms}
";

    #[test]
    fn a_file_is_read() {
        let file = LabFile::parse(GOOD).unwrap();
        assert_eq!(file.start_order().unwrap(), [("b", "first"), ("a", "second")]);
        assert_eq!(file.hosts["b"].run["first"].flush_delay, Some(SignedDuration::from_millis(2)));
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<LabFile>(&text).unwrap(), file);
    }

    #[test]
    fn mistakes_are_named() {
        #[track_caller]
        fn check(from: &str, to: &str, expected: &str) {
            let error = LabFile::parse(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check("on: {core: {address: 10.77.0.2, loss: 0.5}}", "on: {}", "on no network");
        check("10.77.0.2", "10.78.0.2", "is not in network core");
        check("10.77.0.2", "10.77.0.1", "the same address");
        check("after: [first]", "after: [nobody]", "nobody, which is not there");
        check(
            "command: [sleep, '9'], flush",
            "after: [second], command: [a], flush",
            "wait for each other",
        );
        check("0.5", "1.5", "say 0 to 1");
        check("first: {command", "Fir st: {command", "cannot be named");
        check("flushDelay", "flushdelay", "unknown field");
    }
}
