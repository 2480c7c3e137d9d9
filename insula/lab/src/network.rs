//! Hosts as network namespaces, networks as bridges in a namespace of their own.
//!
//! The switch namespace holds one bridge per network; each host's cable is a veth pair between
//! its namespace and the switch, or two taps with a [`Wire`] between them if the cable takes time.
//! The machine's own namespace is never touched.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    error::{LabError, Result},
    file::{Host, LabFile},
    tool::{nft, run},
    wire::Wire,
};

/// Rules of a lab on a host; faults are in tables of their own, so that healing drops a table.
const CUTS: &str = "lab-cuts";

/// The namespaces of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Begins the names of all its namespaces.
    pub(crate) id: String,
}

impl Network {
    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.id)
    }

    /// The namespace that all cables lead to.
    pub(crate) fn switch(&self) -> String {
        // No host can be named so.
        format!("{}_switch", self.id)
    }

    /// Makes everything; on failure the caller takes down what was made.
    pub(crate) fn up(&self, file: &LabFile) -> Result<()> {
        let switch = self.switch();
        run(&format!("ip netns add {switch}"))?;
        let bridges: BTreeMap<&str, String> = file
            .networks
            .keys()
            .zip(0..)
            .map(|(name, n)| (name.as_str(), format!("net{n}")))
            .collect();
        for bridge in bridges.values() {
            run(&format!("ip -n {switch} link add {bridge} type bridge forward_delay 0"))?;
            run(&format!("ip -n {switch} link set {bridge} up"))?;
        }
        for (number, (name, host)) in file.hosts.iter().enumerate() {
            self.plug_in(file, &bridges, number, name, host)?;
        }
        Ok(())
    }

    fn plug_in(
        &self,
        file: &LabFile,
        bridges: &BTreeMap<&str, String>,
        number: usize,
        name: &str,
        host: &Host,
    ) -> Result<()> {
        let (switch, own) = (self.switch(), self.namespace(name));
        run(&format!("ip netns add {own}"))?;
        run(&format!("ip -n {own} link set lo up"))?;
        let mut rules = String::new();
        for (port, (network, cable)) in host.on.iter().enumerate() {
            let (inside, outside) = ends(number, port);
            let prefix = file.networks.get(network).map_or(24, ipnet::Ipv4Net::prefix_len);
            let bridge = bridges.get(network.as_str()).map_or("", String::as_str);
            match cable.latency {
                Some(_) => {
                    run(&format!("ip -n {switch} tuntap add dev {outside} mode tap"))?;
                    run(&format!("ip -n {own} tuntap add dev {inside} mode tap"))?;
                }
                None => {
                    run(&format!(
                        "ip -n {switch} link add {outside} type veth peer name {inside} netns {own}"
                    ))?;
                }
            }
            run(&format!("ip -n {switch} link set {outside} master {bridge} up"))?;
            run(&format!("ip -n {own} addr add {}/{prefix} dev {inside}", cable.address))?;
            run(&format!("ip -n {own} link set {inside} up"))?;
            if let Some(rate) = &cable.bandwidth {
                run(&format!(
                    "tc -n {own} qdisc add dev {inside} root tbf rate {rate} burst 64kb latency 200ms"
                ))?;
            }
            if 0.0 < cable.loss {
                let of_million = (cable.loss * 1e6) as u64;
                // Writing to a string cannot fail.
                let _ = writeln!(
                    rules,
                    "add rule inet lab in iifname {inside} numgen random mod 1000000 < {of_million} drop"
                );
            }
            if host.router.as_ref().is_some_and(|router| router.nat.contains(network)) {
                let _ = writeln!(rules, "add rule inet lab out oifname {inside} masquerade");
            }
        }
        if !rules.is_empty() {
            let chains = "add table inet lab\n\
                          add chain inet lab in { type filter hook prerouting priority raw; }\n\
                          add chain inet lab out { type nat hook postrouting priority srcnat; }\n";
            nft(&own, &format!("{chains}{rules}"))?;
        }
        if host.router.is_some() {
            run(&format!("ip netns exec {own} sysctl -q -w net.ipv4.ip_forward=1"))?;
        }
        if let Some(gateway) = host.gateway {
            run(&format!("ip -n {own} route add default via {gateway}"))?;
        }
        Ok(())
    }

    /// The cables that take time.
    pub(crate) fn wires(&self, file: &LabFile) -> Vec<Wire> {
        let mut wires = Vec::new();
        for (number, (name, host)) in file.hosts.iter().enumerate() {
            for (port, cable) in host.on.values().enumerate() {
                let Some(latency) = cable.latency.and_then(|it| it.try_into().ok()) else {
                    continue;
                };
                let (inside, outside) = ends(number, port);
                let ends = [(self.namespace(name), inside), (self.switch(), outside)];
                wires.push(Wire { ends, latency });
            }
        }
        wires
    }

    /// Takes away what is there. Goes on after a failure and reports the last one.
    pub(crate) fn down(&self) -> Result<()> {
        let all = run("ip netns list")?;
        let mine = all.lines().filter_map(|line| line.split_ascii_whitespace().next());
        let (switch, hosts) = (self.switch(), format!("{}-", self.id));
        let mut outcome = Ok(());
        for namespace in mine.filter(|name| **name == switch || name.starts_with(&hosts)) {
            outcome = run(&format!("ip netns del {namespace}")).map(drop).and(outcome);
        }
        outcome
    }

    /// Nothing passes between the two hosts, in either direction.
    pub(crate) fn cut(&self, file: &LabFile, one: &str, other: &str) -> Result<()> {
        for (at, from) in [(one, other), (other, one)] {
            self.drop_from(file, at, Some(from))?;
        }
        Ok(())
    }

    /// Nothing of `from` arrives at `at`; without `from`, nothing at all but what is its own.
    pub(crate) fn drop_from(&self, file: &LabFile, at: &str, from: Option<&str>) -> Result<()> {
        let mut rules = format!(
            "add table inet {CUTS}\n\
             add chain inet {CUTS} in {{ type filter hook prerouting priority raw; }}\n\
             add chain inet {CUTS} out {{ type filter hook output priority raw; }}\n"
        );
        match from {
            Some(from) => {
                let host = file.hosts.get(from).ok_or_else(|| unknown(file, from))?;
                for cable in host.on.values() {
                    let _ =
                        writeln!(rules, "add rule inet {CUTS} in ip saddr {} drop", cable.address);
                }
            }
            None => {
                rules.push_str(&format!("add rule inet {CUTS} in iifname != lo drop\n"));
                rules.push_str(&format!("add rule inet {CUTS} out oifname != lo drop\n"));
            }
        }
        nft(&self.namespace(at), &rules)
    }

    /// Everything passes everywhere again.
    pub(crate) fn heal(&self, file: &LabFile) -> Result<()> {
        for host in file.hosts.keys() {
            // Added first, so that deleting what is not there is no failure.
            nft(
                &self.namespace(host),
                &format!("add table inet {CUTS}\ndelete table inet {CUTS}\n"),
            )?;
        }
        Ok(())
    }
}

/// Names of a cable's two ends, at the host and at the switch.
fn ends(host: usize, port: usize) -> (String, String) {
    (format!("eth{port}"), format!("h{host}p{port}"))
}

pub(crate) fn unknown(file: &LabFile, host: &str) -> LabError {
    let known: Vec<_> = file.hosts.keys().map(String::as_str).collect();
    LabError::Unknown { what: "host", name: host.into(), known: known.join(", ") }
}
