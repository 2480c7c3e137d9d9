//! What texts may look like, and upstream's words for those that do not.

use std::net::{IpAddr, Ipv4Addr};

pub(super) use insula_api::formats::qualified;
use insula_api::formats::{
    self, CHARACTERS, bounded, is_dns1123_label_of_any_length, is_subdomain_of_any_length,
};
use ipnet::IpNet;

const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const UNDERSCORED: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const HTTP_PATH: &str =
    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

/// What a text may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Label,
    Label1035,
    Subdomain,
    /// A subdomain that may have underscores.
    Underscored,
    /// A subdomain, or one with a wildcard in the place of its first label.
    Wildcard,
    Qualified,
    LabelValue,
    PathSegment,
    ConfigKey,
    EnvName,
    PortName,
    Ip,
    Cidr,
    Header,
    Percent,
    Absolute,
    /// A path below a domain.
    DomainPath,
    /// A relative path that stays where it is.
    LocalPath,
    /// A subdomain, in letters of any case.
    DriverName,
}

impl Format {
    /// By its name in the table of rules.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "label" => Self::Label,
            "label-1035" => Self::Label1035,
            "subdomain" => Self::Subdomain,
            "wildcard" => Self::Wildcard,
            "qualified" => Self::Qualified,
            "label-value" => Self::LabelValue,
            "path-segment" => Self::PathSegment,
            "config-key" => Self::ConfigKey,
            "env-name" => Self::EnvName,
            "port-name" => Self::PortName,
            "ip" => Self::Ip,
            "cidr" => Self::Cidr,
            "header" => Self::Header,
            "percent" => Self::Percent,
            "underscored" => Self::Underscored,
            "domain-path" => Self::DomainPath,
            "absolute" => Self::Absolute,
            "local-path" => Self::LocalPath,
            "driver-name" => Self::DriverName,
            _ => return None,
        })
    }

    /// What is wrong with a text; nothing, mostly.
    pub(super) fn check(self, text: &str) -> Vec<String> {
        match self {
            Self::Label => formats::label(text),
            Self::Label1035 => formats::label_1035(text),
            Self::Subdomain => formats::subdomain(text),
            Self::Underscored => {
                let plain = text.split('.').map(|it| it.strip_prefix('_').unwrap_or(it));
                let is = plain
                    .map(|it| it.replace('_', "-"))
                    .all(|it| is_dns1123_label_of_any_length(&it));
                bounded(text, 253, CHARACTERS, is, UNDERSCORED)
            }
            Self::DomainPath => domain_path(text),
            Self::Wildcard => {
                let is = text.strip_prefix("*.").is_some_and(is_subdomain_of_any_length);
                bounded(text, 253, CHARACTERS, is, WILDCARD)
            }
            Self::Qualified => qualified(text),
            Self::LabelValue => formats::label_value(text),
            Self::PathSegment => path_segment(text),
            Self::ConfigKey => config_key(text),
            Self::EnvName => {
                let is = text.bytes().all(|it| (0x20..0x7f).contains(&it) && it != b'=');
                if is { Vec::new() } else { vec![ENV_NAME.into()] }
            }
            Self::PortName => port_name(text),
            Self::Ip => ip(text),
            Self::Cidr => cidr(text),
            Self::Header => {
                let is = !text.is_empty()
                    && text.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-');
                if is { Vec::new() } else { vec![HEADER.into()] }
            }
            Self::Percent => {
                let digits = text.strip_suffix('%').unwrap_or_default();
                let is = !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit());
                if is { Vec::new() } else { vec![PERCENT.into()] }
            }
            Self::Absolute => match text.starts_with('/') {
                true => Vec::new(),
                false => vec!["must be an absolute path".into()],
            },
            Self::LocalPath => local_path(text),
            Self::DriverName => Self::Subdomain.check(&text.to_ascii_lowercase()),
        }
    }
}

fn domain_path(text: &str) -> Vec<String> {
    match text.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) {
        None => vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".into()],
        Some((host, path)) => {
            let mut found = Format::Subdomain.check(host);
            let is = |it: u8| it.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&it);
            if !path.bytes().all(is) {
                found.push(HTTP_PATH.to_owned());
            }
            found
        }
    }
}

fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    let bad = ['/', '%'].into_iter().filter(|it| text.contains(*it));
    bad.map(|it| format!("may not contain '{it}'")).collect()
}

fn config_key(text: &str) -> Vec<String> {
    let is = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_' | b'.');
    let mut found =
        bounded(text, 253, CHARACTERS, !text.is_empty() && text.bytes().all(is), CONFIG_KEY);
    match text {
        "." => found.push("must not be '.'".into()),
        ".." => found.push("must not be '..'".into()),
        text if text.starts_with("..") => found.push("must not start with '..'".into()),
        _ => (),
    }
    found
}

fn port_name(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if 15 < text.len() {
        found.push("must be no more than 15 characters");
    }
    let is = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    if text.is_empty() || !text.bytes().all(is) {
        found.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !text.bytes().any(|it| it.is_ascii_lowercase()) {
        found.push("must contain at least one letter (a-z)");
    }
    if text.contains("--") {
        found.push("must not contain consecutive hyphens");
    }
    if text.starts_with('-') || text.ends_with('-') {
        found.push("must not begin or end with a hyphen");
    }
    found.into_iter().map(str::to_owned).collect()
}

fn local_path(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if text.starts_with('/') {
        found.push("must be a relative path".to_owned());
    }
    if text.split('/').any(|it| it == "..") {
        found.push("must not contain '..'".to_owned());
    }
    if text.starts_with("..") && !text.starts_with("../") && text != ".." {
        found.push("must not start with '..'".to_owned());
    }
    found
}

/// An address as old clients may write it: numbers may begin with zeros.
pub(crate) fn sloppy_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part =
            parts.next().filter(|it| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit()))?;
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|error| if part.bytes().all(|it| it == b'0') { Ok(0) } else { Err(error) })
            .ok()?;
    }
    parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// An address in the one form that is clear to everybody.
pub(super) fn ip(text: &str) -> Vec<String> {
    if sloppy_address(text).is_none() {
        return vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()];
    }
    match text.parse::<IpAddr>() {
        Err(_) => vec!["must not have leading 0s".into()],
        Ok(IpAddr::V6(it)) if it.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".into()]
        }
        Ok(_) => Vec::new(),
    }
}

pub(super) fn cidr(text: &str) -> Vec<String> {
    let invalid = || vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()];
    let Some((address, prefix)) = text.split_once('/') else { return invalid() };
    let (Some(sloppy), Ok(n_bits)) = (sloppy_address(address), prefix.parse::<u8>()) else {
        return invalid();
    };
    if (if sloppy.is_ipv4() { 32 } else { 128 }) < n_bits {
        return invalid();
    }
    match text.parse::<IpNet>() {
        Err(_) => vec!["must not have leading 0s in IP or prefix length".into()],
        Ok(_) if 1 < prefix.len() && prefix.starts_with('0') => {
            vec!["must not have leading 0s in IP or prefix length".into()]
        }
        Ok(IpNet::V6(it)) if it.addr().to_ipv4_mapped().is_some() => {
            vec!["must not have an IPv4-mapped IPv6 address".into()]
        }
        Ok(it) if it.addr() != it.network() => {
            vec!["must not have bits set beyond the prefix length".into()]
        }
        Ok(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let wrong = |format: Format, text: &str| format.check(text).len();
        for (format, good, bad) in [
            (Format::Label, "a-1", "A"),
            (Format::Label1035, "a1", "1a"),
            (Format::Subdomain, "a.b-c", "a..b"),
            (Format::Underscored, "_a.b_c", "a_"),
            (Format::DomainPath, "a.b/C_d", "a.b"),
            (Format::Wildcard, "*.a.b", "*a"),
            (Format::Qualified, "x.y/Z_1", "x_/z"),
            (Format::PathSegment, "a:b", "a/b"),
            (Format::ConfigKey, ".a", "a b"),
            (Format::EnvName, "1 a", "a=b"),
            (Format::PortName, "http-1", "1"),
            (Format::Ip, "::1", "1.2.3"),
            (Format::Cidr, "10.0.0.0/8", "10.0.0.1/8"),
            (Format::Absolute, "/a", "a"),
            (Format::LocalPath, "a/..b", "a/../b"),
            (Format::Percent, "10%", "10"),
        ] {
            assert_eq!((wrong(format, good), wrong(format, bad)), (0, 1), "{format:?}");
        }
        assert_eq!(Format::Label.check(&"a".repeat(64)), ["must be no more than 63 characters"]);
        assert_eq!(Format::Label.check("a.b"), ["must not contain dots"]);
        assert_eq!(Format::Ip.check("010.0.0.1"), ["must not have leading 0s"]);
        assert_eq!(sloppy_address("010.000.0.1").unwrap().to_string(), "10.0.0.1");
        assert_eq!(sloppy_address("10.0.0.256"), None);
        assert!(qualified("a/b/c")[0].starts_with("a valid label key must consist of"));
    }
}
