//! Whom requests that a tenant causes may reach.
//!
//! Asked when a connection is made, of the very address that is connected to: what a name means
//! may change between two looks at it.

use std::net::IpAddr;

use insula_api::names::TenantName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Server;

/// Networks that are closed unless told otherwise: this host, and what only its link can reach,
/// which is where machines are told their secrets; nobody in particular.
const CLOSED: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

/// What an administrator adds to what is closed, and what is opened of it. The longest prefix that
/// has an address decides, and of two equal ones `deny`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboundNetworks {
    #[serde(default)]
    pub deny: Vec<IpNet>,
    #[serde(default)]
    pub allow: Vec<IpNet>,
}

impl OutboundNetworks {
    /// Whether an address may be connected to for a tenant. `servers` are closed like
    /// [`CLOSED`]: their addresses are those of machines that tenants do not own.
    pub(super) fn is_open(&self, servers: &[IpAddr], ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let longest =
            |them: &[IpNet]| them.iter().filter(|it| it.contains(&ip)).map(IpNet::prefix_len).max();
        let closed: Vec<IpNet> = CLOSED
            .iter()
            .filter_map(|it| it.parse().ok())
            .chain(servers.iter().map(|it| IpNet::from(it.to_canonical())))
            .collect();
        let (denied, allowed) = (longest(&self.deny), longest(&self.allow));
        match allowed {
            None => denied.is_none() && longest(&closed).is_none(),
            // What is closed without being asked for is opened by naming as much of it.
            Some(_) => denied < allowed && longest(&closed) <= allowed,
        }
    }
}

/// Whom one tenant may have the server connect to.
pub(crate) struct Bounds<'a> {
    networks: &'a OutboundNetworks,
    servers: Vec<IpAddr>,
    is_platform: bool,
}

impl Bounds<'_> {
    pub(super) fn is_open(&self, ip: IpAddr) -> bool {
        self.is_platform || self.networks.is_open(&self.servers, ip)
    }
}

impl Server {
    /// Whom requests of `tenant` may reach. The platform's own may reach anybody.
    pub(crate) fn outbound_bounds(&self, tenant: &TenantName) -> Bounds<'_> {
        let known = self.partitions.servers();
        let known = known.iter().map(|it| it.address.as_str()).chain([self.advertise.as_str()]);
        let servers = known.filter_map(|it| {
            let host = it.rsplit_once(':').map_or(it, |(host, _)| host);
            host.trim_matches(['[', ']']).parse().ok()
        });
        Bounds {
            networks: &self.outbound.networks,
            servers: servers.collect(),
            is_platform: tenant.is_system(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(networks: &OutboundNetworks, ip: &str, is_open: bool) {
        let servers = ["10.9.9.9".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        assert_eq!(networks.is_open(&servers, ip.parse().unwrap()), is_open, "{ip}");
    }

    fn networks(deny: &[&str], allow: &[&str]) -> OutboundNetworks {
        let parse = |them: &[&str]| them.iter().map(|it| it.parse().unwrap()).collect();
        OutboundNetworks { deny: parse(deny), allow: parse(allow) }
    }

    #[test]
    fn tenants_do_not_reach_this_host_its_link_or_servers() {
        let none = OutboundNetworks::default();
        for closed in [
            "127.0.0.1",
            "127.8.0.1",
            "0.0.0.0",
            "::",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "10.9.9.9",
            "::ffff:10.9.9.9",
            "2001:db8::5",
        ] {
            check(&none, closed, false);
        }
        for open in ["10.0.0.1", "192.0.2.1", "2001:db8::1", "10.9.9.8"] {
            check(&none, open, true);
        }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let some = networks(&["10.0.0.0/8", "2001:db8::/32"], &["10.1.0.0/16", "127.0.0.0/8"]);
        check(&some, "10.0.0.1", false);
        check(&some, "10.1.2.3", true);
        check(&some, "2001:db8::1", false);
        check(&some, "192.0.2.1", true);
        check(&some, "127.0.0.1", true);
        check(&some, "::ffff:10.0.0.1", false);
        // Less than all of what is closed opens nothing of it, and a tie is closed.
        check(&networks(&[], &["0.0.0.0/0"]), "169.254.169.254", false);
        check(&networks(&[], &["10.0.0.0/8"]), "10.9.9.9", false);
        check(&networks(&[], &["10.9.9.9/32"]), "10.9.9.9", true);
        check(&networks(&["10.2.0.0/16"], &["10.2.0.0/16"]), "10.2.0.1", false);
        check(&networks(&["10.2.3.0/24"], &["10.2.0.0/16"]), "10.2.3.1", false);
        // A whole world that is closed, but for a network.
        let only = networks(&["0.0.0.0/0", "::/0"], &["10.1.0.0/16"]);
        check(&only, "192.0.2.1", false);
        check(&only, "2001:db8::1", false);
        check(&only, "10.1.0.1", true);
    }
}
