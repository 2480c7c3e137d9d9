//! Addresses and networks.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    eval::{EvalError, Result},
    value::Value,
};

/// As Kubernetes reads addresses: no zones, no IPv4 in IPv6.
fn address(text: &str) -> Result<IpAddr> {
    let found: IpAddr = text.parse().map_err(|_| {
        EvalError::failed(format!("IP Address {text:?} parse error during conversion from string"))
    })?;
    match found {
        IpAddr::V6(it) if it.to_ipv4_mapped().is_some() => {
            Err(EvalError::failed(format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        found => Ok(found),
    }
}

fn network(text: &str) -> Result<IpNet> {
    let bad = || {
        EvalError::failed(format!(
            "network address parse error during conversion from string: {text:?}"
        ))
    };
    if !text.contains('/') {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

pub(super) fn function<'a>(function: &str, text: &str) -> Result<Value<'a>> {
    match function {
        "ip" => address(text).map(Value::Ip),
        "isIP" => Ok(Value::Bool(address(text).is_ok())),
        "cidr" => network(text).map(Value::Cidr),
        _ => Ok(Value::Bool(network(text).is_ok())),
    }
}

/// `ip.isCanonical(text)`.
pub(super) fn canonical<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    match (function, arguments.first().and_then(Value::as_text)) {
        ("isCanonical", Some(text)) => Ok(Value::Bool(address(text)?.to_string() == text)),
        _ => Err(EvalError::no_overload(function)),
    }
}

pub(super) fn of_ip<'a>(function: &str, it: IpAddr) -> Result<Value<'a>> {
    let (is_link_local, is_link_local_multicast, is_global) = match it {
        IpAddr::V4(it) => {
            (it.is_link_local(), it.octets().starts_with(&[224, 0, 0]), !it.is_broadcast())
        }
        IpAddr::V6(it) => (it.is_unicast_link_local(), it.segments()[0] & 0xff0f == 0xff02, true),
    };
    let is_global = is_global
        && !it.is_unspecified()
        && !it.is_loopback()
        && !it.is_multicast()
        && !is_link_local;
    Ok(match function {
        "family" => Value::Int(if it.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(it.is_unspecified()),
        "isLoopback" => Value::Bool(it.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(is_link_local_multicast),
        "isLinkLocalUnicast" => Value::Bool(is_link_local),
        "isGlobalUnicast" => Value::Bool(is_global),
        _ => return Err(EvalError::no_overload(function)),
    })
}

pub(super) fn of_cidr<'a>(function: &str, it: IpNet, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    Ok(match (function, arguments) {
        ("containsIP", [Value::Ip(other)]) => Value::Bool(it.contains(other)),
        ("containsIP", [Value::Text(text)]) => Value::Bool(it.contains(&address(text)?)),
        ("containsCIDR", [Value::Cidr(other)]) => Value::Bool(it.contains(other)),
        ("containsCIDR", [Value::Text(text)]) => Value::Bool(it.contains(&network(text)?)),
        ("ip", []) => Value::Ip(it.addr()),
        ("masked", []) => Value::Cidr(it.trunc()),
        ("prefixLength", []) => Value::Int(i64::from(it.prefix_len())),
        _ => return Err(EvalError::no_overload(function)),
    })
}
