//! Names: a pod's host name, its resolver configuration and its /etc/hosts.

use std::{fmt::Write, net::IpAddr};

use k8s_openapi::api::core::v1::PodSpec;

use crate::cri::v1;

/// The kernel's limit on host names.
const MAX_HOSTNAME: usize = 63;
/// What resolvers accept in `resolv.conf`.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;

/// What the machine's own resolver configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads the text of a `resolv.conf`. As resolvers do, skips what it does not know.
    pub(crate) fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                Some("search" | "domain") => resolver.searches = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }
}

/// The resolver configuration of a pod, by its `dnsPolicy` and `dnsConfig`.
pub(crate) fn dns_config(
    spec: &PodSpec,
    namespace: &str,
    cluster_dns: &[IpAddr],
    cluster_domain: &str,
    machine: &Resolver,
) -> v1::DnsConfig {
    let host_network = spec.host_network == Some(true);
    let Resolver { mut servers, mut searches, mut options } = match spec.dns_policy.as_deref() {
        Some("None") => Resolver::default(),
        Some("Default") => machine.clone(),
        Some("ClusterFirst") | None if host_network => machine.clone(),
        _ if cluster_dns.is_empty() => machine.clone(),
        _ => {
            let own = [
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            Resolver {
                servers: cluster_dns.iter().map(ToString::to_string).collect(),
                searches: own.into_iter().chain(machine.searches.iter().cloned()).collect(),
                options: vec!["ndots:5".to_owned()],
            }
        }
    };
    if let Some(own) = &spec.dns_config {
        servers.extend(own.nameservers.iter().flatten().cloned());
        searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|it| it.split(':').next() != Some(name));
            options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.clone(),
            });
        }
    }
    keep_first_of_each(&mut servers);
    keep_first_of_each(&mut searches);
    servers.truncate(MAX_SERVERS);
    searches.truncate(MAX_SEARCHES);
    v1::DnsConfig { servers, searches, options }
}

fn keep_first_of_each(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|it| seen.insert(it.clone()));
}

/// A pod's short name and, if it has a subdomain, its full name.
pub(crate) fn hostname(
    spec: &PodSpec,
    pod_name: &str,
    namespace: &str,
    cluster_domain: &str,
) -> (String, Option<String>) {
    if let Some(name) = spec.hostname_override.as_ref().filter(|it| !it.is_empty()) {
        return (name.clone(), None);
    }
    let short = match &spec.hostname {
        Some(name) if !name.is_empty() => name,
        _ => pod_name,
    };
    let short: String = short.chars().take(MAX_HOSTNAME).collect();
    let short = short.trim_end_matches(['-', '.']).to_owned();
    let full = spec
        .subdomain
        .as_ref()
        .filter(|it| !it.is_empty())
        .map(|it| format!("{short}.{it}.{namespace}.svc.{cluster_domain}"));
    match full {
        Some(full) if spec.set_hostname_as_fqdn == Some(true) => (full.clone(), Some(full)),
        full => (short, full),
    }
}

/// The /etc/hosts of a pod with a network of its own.
pub(crate) fn hosts_file(
    spec: &PodSpec,
    ips: &[IpAddr],
    short: &str,
    full: Option<&str>,
) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    for ip in ips {
        // Writing to a string cannot fail.
        let _ = match full {
            Some(full) if full != short => writeln!(text, "{ip}\t{full}\t{short}"),
            _ => writeln!(text, "{ip}\t{short}"),
        };
    }
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _ = writeln!(text, "{}\t{names}", alias.ip);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        let mut value = value;
        value["containers"] = json!([]);
        serde_json::from_value(value).unwrap()
    }

    #[track_caller]
    fn check(value: Value, servers: &str, searches: &str, options: &str) {
        let machine = Resolver::parse("nameserver 1.1.1.1\nsearch corp\noptions rotate\n# x\n");
        let cluster: Vec<IpAddr> = vec!["10.0.0.10".parse().unwrap()];
        let found = dns_config(&spec(value.clone()), "ns", &cluster, "cluster.local", &machine);
        assert_eq!(found.servers.join(" "), servers, "{value}");
        assert_eq!(found.searches.join(" "), searches, "{value}");
        assert_eq!(found.options.join(" "), options, "{value}");
    }

    #[test]
    fn policies() {
        let cluster = "ns.svc.cluster.local svc.cluster.local cluster.local corp";
        check(json!({}), "10.0.0.10", cluster, "ndots:5");
        check(
            json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}),
            "1.1.1.1",
            "corp",
            "rotate",
        );
        check(
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            "10.0.0.10",
            cluster,
            "ndots:5",
        );
        check(json!({"dnsPolicy": "Default"}), "1.1.1.1", "corp", "rotate");
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"],
                "searches": ["a", "a"], "options": [{"name": "ndots", "value": "2"}, {"name": "x"}]}}),
            "9.9.9.9",
            "a",
            "ndots:2 x",
        );
        check(
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            "10.0.0.10",
            cluster,
            "ndots:1",
        );
    }

    #[test]
    fn names() {
        let of = |value| hostname(&spec(value), "web-1", "ns", "c.l");
        assert_eq!(of(json!({})), ("web-1".to_owned(), None));
        let full = "h.sub.ns.svc.c.l".to_owned();
        assert_eq!(
            of(json!({"hostname": "h", "subdomain": "sub"})),
            ("h".to_owned(), Some(full.clone()))
        );
        assert_eq!(
            of(json!({"hostname": "h", "subdomain": "sub", "setHostnameAsFQDN": true})),
            (full.clone(), Some(full))
        );
    }

    #[test]
    fn hosts() {
        let spec = spec(json!({"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&spec, &["10.0.0.7".parse().unwrap()], "h", Some("h.sub"));
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("\n10.0.0.7\th.sub\th\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }
}
