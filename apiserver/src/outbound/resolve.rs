//! From a destination to addresses: what a URL says, or a service's endpoints.
//!
//! A service is looked up in its endpoint slices, and in its `Endpoints` where it has none: both
//! lie in memory, so this is done for every request and is never older than they are.

use std::sync::Arc;

use http::Uri;
use insula_api::{names::TenantName, object};
use insula_partition::store::ReadAt;
use memchr::memmem::Finder;
use serde_json::Value;

use super::{Destination, OutboundError, Place};
use crate::{Server, error::ApiError, registry};

/// Names the service of an endpoint slice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

impl Server {
    /// Finds `destination` for `tenant`.
    pub(crate) async fn resolve(
        &self,
        tenant: &TenantName,
        destination: Destination<'_>,
    ) -> Result<Place, OutboundError> {
        match destination {
            Destination::Url(url) => of_url(url),
            Destination::Service { namespace, name, port, .. } => {
                let text = port.to_string();
                let addresses = self.service_addresses(tenant, namespace, name, &text).await?;
                Ok(Place { addresses, ..Place::unresolved(destination) })
            }
        }
    }

    /// Where the port of a service is, in the order to try them; `port` is a number or a name, or
    /// empty for the one port that has no name.
    pub(crate) async fn service_addresses(
        &self,
        tenant: &TenantName,
        namespace: &str,
        name: &str,
        port: &str,
    ) -> Result<Vec<String>, OutboundError> {
        let failed = |error: ApiError| OutboundError::Lookup(error.message);
        let service =
            self.at_a_glance(tenant, "services", namespace, name).await.map_err(failed)?;
        let service = service.ok_or_else(|| OutboundError::NoService(name.to_owned()))?;
        match object::text(&service, &["spec", "type"]) {
            "ExternalName" => {
                let external = object::text(&service, &["spec", "externalName"]);
                return Ok(vec![format!("{external}:{port}")]);
            }
            "" | "ClusterIP" | "NodePort" | "LoadBalancer" => (),
            other => return Err(OutboundError::ServiceType(other.to_owned())),
        }
        let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let port_name = match port.parse::<u16>() {
            Err(_) => port,
            Ok(number) => match ports.iter().find(|it| it["port"] == number) {
                Some(of_port) => object::text(of_port, &["name"]),
                None => {
                    let service = name.to_owned();
                    return Err(OutboundError::NoPort { port: number, service });
                }
            },
        };
        let mut addresses =
            self.of_slices(tenant, namespace, name, port_name).await.map_err(failed)?;
        if addresses.is_empty() {
            let found = self.at_a_glance(tenant, "endpoints", namespace, name).await;
            addresses =
                found.map_err(failed)?.map_or_else(Vec::new, |it| of_endpoints(&it, port_name));
        }
        match addresses.is_empty() {
            true => Err(OutboundError::NoEndpoints(name.to_owned())),
            false => {
                // Whoever comes first is tried first; each time another.
                let first = rand::random_range(0..addresses.len());
                addresses.rotate_left(first);
                Ok(addresses)
            }
        }
    }

    /// An object of the core group, from memory.
    async fn at_a_glance(
        &self,
        tenant: &TenantName,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, ApiError> {
        match self.registry.any_version("", resource) {
            Some(served) => self.glance(served, tenant, namespace, name).await,
            None => Ok(None),
        }
    }

    async fn of_slices(
        &self,
        tenant: &TenantName,
        namespace: &str,
        service: &str,
        port: &str,
    ) -> Result<Vec<String>, ApiError> {
        let Some(served) = self.registry.any_version("discovery.k8s.io", "endpointslices") else {
            return Ok(Vec::new());
        };
        let mut addresses = Vec::new();
        let snapshot = self.at_hand(served, tenant, namespace, ReadAt::Any).await?;
        let named = Finder::new(service);
        for (_, entry) in snapshot.range(&registry::key(tenant, namespace, ""), None) {
            // Most are of other services, and need not be read.
            if named.find(&entry.value.bytes()).is_none() {
                continue;
            }
            let slice = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
            let labels = object::metadata(&slice).get("labels");
            if labels.and_then(|it| it.get(SERVICE_LABEL)).and_then(Value::as_str) == Some(service)
            {
                addresses.extend(of_slice(&slice, port));
            }
        }
        Ok(addresses)
    }
}

/// A path from the root.
pub(super) fn absolute(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

pub(super) fn of_url(url: &str) -> Result<Place, OutboundError> {
    let url: Uri = url.parse().map_err(|_| OutboundError::Url)?;
    let host = url.host().ok_or(OutboundError::Url)?.trim_matches(['[', ']']).to_owned();
    let port = url.port_u16().unwrap_or(443);
    let address = joined(&host, port);
    let path = url.path_and_query().map_or("/", |it| it.as_str()).to_owned();
    Ok(Place { host, port, addresses: vec![address], path })
}

fn joined(host: &str, port: impl std::fmt::Display) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn items<'a>(it: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    it.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn of_slice(slice: &Value, port: &str) -> Vec<String> {
    let target = items(slice, "ports")
        .filter(|it| object::text(it, &["name"]) == port)
        .find_map(|it| it["port"].as_u64());
    let Some(target) = target else { return Vec::new() };
    let ready = items(slice, "endpoints").filter(|it| {
        it.get("conditions").and_then(|it| it.get("ready")).and_then(Value::as_bool) != Some(false)
    });
    // All addresses of one endpoint are the same place.
    ready.filter_map(|it| Some(joined(it["addresses"].get(0)?.as_str()?, target))).collect()
}

fn of_endpoints(endpoints: &Value, port: &str) -> Vec<String> {
    let mut addresses = Vec::new();
    for subset in items(endpoints, "subsets") {
        let target = items(subset, "ports")
            .filter(|it| object::text(it, &["name"]) == port)
            .find_map(|it| it["port"].as_u64());
        let Some(target) = target else { continue };
        let hosts = items(subset, "addresses").filter_map(|it| it["ip"].as_str());
        addresses.extend(hosts.map(|it| joined(it, target)));
    }
    addresses
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn urls() {
        let place = of_url("https://hooks.example.com/a?b=c").unwrap();
        assert_eq!(place.addresses, ["hooks.example.com:443"]);
        assert_eq!(place.path, "/a?b=c");
        assert_eq!(place.url(), "https://hooks.example.com:443/a?b=c");
        let place = of_url("https://[2001:db8::1]:8443/x").unwrap();
        assert_eq!((place.host.as_str(), place.port), ("2001:db8::1", 8443));
        assert_eq!(place.addresses, ["[2001:db8::1]:8443"]);
        assert!(of_url("/only/a/path").is_err());
    }

    #[test]
    fn only_ready_endpoints_of_the_port() {
        let slice = json!({
            "ports": [{"name": "web", "port": 80}, {"name": "", "port": 8443}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3", "10.0.0.4"]},
            ],
        });
        assert_eq!(of_slice(&slice, ""), ["10.0.0.1:8443", "10.0.0.3:8443"]);
        assert!(of_slice(&slice, "none").is_empty());
        let endpoints = json!({"subsets": [
            {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1}]},
            {"addresses": [{"ip": "2001:db8::1"}], "ports": [{"name": "web", "port": 2}]},
        ]});
        assert_eq!(of_endpoints(&endpoints, "web"), ["[2001:db8::1]:2"]);
    }
}
