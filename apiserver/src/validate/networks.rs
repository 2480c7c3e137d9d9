//! What leads traffic to pods and keeps it away, and where pods are reached.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{
    at::{At, Check},
    formats::Format,
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.discovery.v1.EndpointSlice", slice),
    ("api.networking.v1.HTTPIngressPath", ingress_path),
    ("api.networking.v1.IngressBackend", backend),
    ("api.networking.v1.IngressRule", ingress_rule),
    ("api.networking.v1.IngressSpec", ingress),
    ("api.networking.v1.IPBlock", block),
    ("api.networking.v1.NetworkPolicyPeer", peer),
    ("api.networking.v1.NetworkPolicyPort", policy_port),
    ("api.networking.v1.ServiceCIDRSpec", cidrs),
];

fn text<'a>(it: &'a Value, field: &str) -> &'a str {
    it.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn slice(it: &mut At<'_>) {
    let kind = it.text("addressType").to_owned();
    for (index, endpoint) in it.list("endpoints").to_vec().iter().enumerate() {
        let addresses = endpoint.get("addresses").and_then(Value::as_array);
        for (at, address) in addresses.into_iter().flatten().enumerate() {
            let at = format!("endpoints[{index}].addresses[{at}]");
            let text = address.as_str().unwrap_or_default();
            match &*kind {
                "FQDN" => {
                    let wrong = match text.contains('.') {
                        true => Format::Subdomain.check(text),
                        false => vec![
                            "should be a domain with at least two segments separated by dots"
                                .into(),
                        ],
                    };
                    wrong.iter().for_each(|why| it.invalid(&at, address, why));
                }
                "IPv4" | "IPv6" => {
                    let wrong = Format::Ip.check(text);
                    wrong.iter().for_each(|why| it.invalid(&at, address, why));
                    let parsed: Option<IpAddr> = text.parse().ok();
                    if let Some(parsed) = parsed {
                        if parsed.is_ipv4() != (kind == "IPv4") {
                            let v = if kind == "IPv4" { "IPv4" } else { "IPv6" };
                            it.invalid(&at, address, &format!("must be an {v} address"));
                        } else if let Some(why) = special(parsed) {
                            it.invalid(&at, address, why);
                        }
                    }
                }
                _ => (),
            }
        }
        if endpoint
            .get("deprecatedTopology")
            .is_some_and(|it| it.get("kubernetes.io/hostname").is_some())
        {
            let at = format!("endpoints[{index}].deprecatedTopology[kubernetes.io/hostname]");
            it.forbidden(&at, "hostname and nodeName fields are used instead");
        }
    }
    let mut names = std::collections::HashSet::new();
    for (index, port) in it.list("ports").to_vec().iter().enumerate() {
        let name = text(port, "name");
        if !names.insert(name.to_owned()) {
            it.duplicate(&format!("ports[{index}].name"), &name.into());
        }
    }
}

/// Addresses that nobody else reaches.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("may not be unspecified (0.0.0.0 or ::)");
    }
    if address.is_loopback() {
        return Some("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link, multicast) = match address {
        IpAddr::V4(it) => (it.is_link_local(), it.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(it) => (it.is_unicast_link_local(), it.segments()[0] == 0xff02),
    };
    if link {
        return Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    multicast.then_some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
}

fn ingress(it: &mut At<'_>) {
    if it.list("rules").is_empty() && !it.has("defaultBackend") {
        // What is there of it is not shown.
        it.invalid("", &Value::Null, "either `defaultBackend` or `rules` must be specified");
    }
    for (index, tls) in it.list("tls").to_vec().iter().enumerate() {
        let hosts = tls.get("hosts").and_then(Value::as_array);
        for (at, host) in hosts.into_iter().flatten().enumerate() {
            let at = format!("tls[{index}].hosts[{at}]");
            host_name(it, &at, host);
        }
    }
}

fn host_name(it: &mut At<'_>, at: &str, host: &Value) {
    let name = host.as_str().unwrap_or_default();
    let format = if name.contains('*') { Format::Wildcard } else { Format::Subdomain };
    for why in format.check(name) {
        it.invalid(at, host, &why);
    }
}

fn ingress_rule(it: &mut At<'_>) {
    let host = it.text("host").to_owned();
    if host.is_empty() {
        return;
    }
    if host.parse::<IpAddr>().is_ok() {
        it.invalid("host", &host.as_str().into(), "must be a DNS name, not an IP address");
    }
    if host.contains('*') {
        it.take_back("host", None);
        host_name(it, "host", &host.into());
    }
}

fn ingress_path(it: &mut At<'_>) {
    let path = it.text("path").to_owned();
    let kind = it.text("pathType").to_owned();
    if !it.has("pathType") {
        it.take_back("pathType", None);
        it.required("pathType", "pathType must be specified");
    }
    match &*kind {
        "Exact" | "Prefix" => {
            if !path.starts_with('/') {
                it.invalid("path", &path.as_str().into(), "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.contains(bad) {
                    it.invalid("path", &path.as_str().into(), &format!("must not contain '{bad}'"));
                }
            }
            for bad in ["/..", "/."] {
                if path.ends_with(bad) {
                    it.invalid("path", &path.as_str().into(), &format!("cannot end with '{bad}'"));
                }
            }
        }
        "ImplementationSpecific" if !path.is_empty() && !path.starts_with('/') => {
            it.invalid("path", &path.as_str().into(), "must be an absolute path");
        }
        _ => (),
    }
}

fn backend(it: &mut At<'_>) {
    let nothing = Value::from("");
    match (it.get("service").cloned(), it.has("resource")) {
        (Some(_), true) => {
            it.invalid("", &nothing, "cannot set both resource and service backends");
        }
        (None, false) => it.invalid("", &nothing, "resource or service backend is required"),
        (Some(service), false) => {
            let port = service.get("port").cloned().unwrap_or_default();
            let number = port.get("number").is_some_and(|it| *it != 0);
            match (number, !text(&port, "name").is_empty()) {
                (true, true) => {
                    it.invalid("", &nothing, "cannot set both port name & port number");
                }
                (false, false) => it.required("", "port name or number is required"),
                _ => (),
            }
        }
        _ => (),
    }
}

fn block(it: &mut At<'_>) {
    let Ok(outer) = it.text("cidr").parse::<IpNet>() else { return };
    for (index, except) in it.list("except").to_vec().iter().enumerate() {
        let Ok(inner) = except.as_str().unwrap_or_default().parse::<IpNet>() else { continue };
        let inside = outer.contains(&inner.network()) && outer.prefix_len() < inner.prefix_len();
        if !inside {
            let why = "must be a strict subset of `cidr`";
            it.invalid(&format!("except[{index}]"), except, why);
        }
    }
}

fn peer(it: &mut At<'_>) {
    let fields = ["podSelector", "namespaceSelector", "ipBlock"];
    let n_set = fields.iter().filter(|field| it.has(field)).count();
    let path = it.path.to_string();
    if n_set == 0 {
        it.errors.push(FieldError::required(path, "must specify a peer"));
    } else if 1 < n_set && it.has("ipBlock") {
        let why = "may not specify both ipBlock and another peer";
        it.errors.push(FieldError::forbidden(path, why));
    }
}

fn policy_port(it: &mut At<'_>) {
    let Some(end) = it.number("endPort") else { return };
    match it.get("port").cloned() {
        None => it.required("endPort", "may not be specified when `port` is not specified"),
        Some(port) => match port.as_i64() {
            None => it.required("endPort", "may not be specified when `port` is non-numeric"),
            Some(port) if end < port => {
                it.invalid("endPort", &port.into(), "must be greater than or equal to `port`");
            }
            Some(_) => (),
        },
    }
}

fn cidrs(it: &mut At<'_>) {
    let list: Vec<IpNet> =
        it.list("cidrs").iter().filter_map(|it| it.as_str()?.parse().ok()).collect();
    if let [one, two] = list.as_slice()
        && one.addr().is_ipv4() == two.addr().is_ipv4()
    {
        let shown = it.it["cidrs"].clone();
        let why = "must be either single or dual-stack (no more than one CIDR per IP family)";
        it.invalid("cidrs", &shown, why);
    }
}
