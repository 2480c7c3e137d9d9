//! `proxy` of pods, services and nodes: HTTP to what they serve.

use std::net::{IpAddr, SocketAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
};
use hyper::upgrade::OnUpgrade;
use insula_api::{names::TenantName, object};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio_rustls::TlsConnector;

use crate::{
    Server,
    body::{Body, empty},
    call::Call,
    error::{ApiError, Result, chain},
    node_proxy,
    outbound::{self, Bounds, OutboundError, Trust},
    relay::{Io, Onward, Via, unreachable},
};

/// How long it may take to connect.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(10);

/// `[scheme:]name[:port]`, as the last part of a path names what is to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let is_whole = !name.is_empty() && matches!(scheme, "" | "http" | "https");
        is_whole.then_some(Self { scheme, name, port })
    }

    fn is_https(&self) -> bool {
        self.scheme == "https"
    }
}

/// Answers a request for `proxy` of something.
pub(crate) async fn serve(
    server: &Server,
    call: &Call,
    head: &Parts,
    body: impl FnOnce() -> Result<Body>,
    upgrade: &mut Option<OnUpgrade>,
) -> Result<Response<Body>> {
    let Some(named) = Named::parse(&call.path.name) else {
        let kind = call.served.resource.singular.as_str();
        let shown: String = call.path.name.chars().take(128).collect();
        return Err(ApiError::bad_request(format!("invalid {kind} request {shown:?}")));
    };
    let rest = raw_rest(head.uri.path(), &call.path.rest);
    let reads = head.method == Method::GET || head.method == Method::HEAD;
    if rest.is_empty() && reads && upgrade.is_none() {
        return redirect(head);
    }
    let (stream, authority) = match &*call.served.resource.name {
        "nodes" => node(server, &named).await?,
        name => {
            let tenant = call.tenant()?.clone();
            let (namespace, is_pod) = (call.namespace(), name == "pods");
            let address = match is_pod {
                true => pod(server, call, &tenant, &namespace, &named).await?,
                false => service(server, &tenant, &namespace, &named).await?,
            };
            let bounds = server.outbound_bounds(&tenant);
            (connect(&bounds, &address, named.is_https()).await?, address)
        }
    };
    let path = if rest.is_empty() { "/" } else { rest };
    let path = match head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let headers = forwarded(head);
    let onward = Onward {
        via: Via::Stream { stream, authority },
        path,
        headers,
        watches: false,
        permit: None,
    };
    server.relay(head, body()?, upgrade, onward).await.map_err(unreachable)
}

/// What of a path is behind its subresource, as it was written. `rest` is the same, parsed.
fn raw_rest<'a>(path: &'a str, rest: &str) -> &'a str {
    let parts = |text: &str| text.split('/').filter(|it| !it.is_empty()).count();
    let mut before = parts(path) - parts(rest).min(parts(path));
    let mut at = 0;
    for part in path.split('/') {
        if !part.is_empty() {
            before -= 1;
            if before == 0 {
                return &path[at + part.len()..];
            }
        }
        at += part.len() + 1;
    }
    ""
}

/// A page's own links are relative to a path that ends in a slash.
fn redirect(head: &Parts) -> Result<Response<Body>> {
    let mut to = format!("{}/", head.uri.path());
    if let Some(query) = head.uri.query() {
        to = format!("{to}?{query}");
    }
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let to = HeaderValue::from_str(&to).map_err(ApiError::internal)?;
    response.headers_mut().insert(header::LOCATION, to);
    Ok(response)
}

/// What tells the other end where it was asked for.
fn forwarded(head: &Parts) -> HeaderMap {
    let mut out = HeaderMap::new();
    let host = head.headers.get(header::HOST).cloned();
    let host = host.or_else(|| HeaderValue::from_str(head.uri.authority()?.as_str()).ok());
    if let Some(host) = host {
        out.insert(HeaderName::from_static("x-forwarded-host"), host);
    }
    if let Ok(path) = HeaderValue::from_str(head.uri.path()) {
        out.insert(HeaderName::from_static("x-forwarded-uri"), path);
    }
    out.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("https"));
    out
}

async fn pod(
    server: &Server,
    call: &Call,
    tenant: &TenantName,
    namespace: &str,
    named: &Named<'_>,
) -> Result<String> {
    let found = server.find(tenant, "", "pods", namespace, named.name).await?;
    let found = found.ok_or_else(|| call.not_found(named.name))?;
    let ip = object::text(&found, &["status", "podIP"]);
    let ip: IpAddr =
        ip.parse().map_err(|_| ApiError::internal("address not allowed: the pod has none yet"))?;
    let port = match named.port {
        "" => first_port(&found),
        text => text.parse().ok(),
    };
    if !named.port.is_empty() && port.is_none() {
        return Err(ApiError::bad_request(format!("invalid pod request {:?}", call.path.name)));
    }
    let port = port.unwrap_or_else(|| if named.is_https() { 443 } else { 80 });
    Ok(SocketAddr::new(ip, port).to_string())
}

/// The port that a pod names first.
fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?;
    let mut ports = containers.iter().filter_map(|it| it["ports"].as_array()).flatten();
    u16::try_from(ports.next()?["containerPort"].as_u64()?).ok()
}

async fn service(
    server: &Server,
    tenant: &TenantName,
    namespace: &str,
    named: &Named<'_>,
) -> Result<String> {
    let addresses = server.service_addresses(tenant, namespace, named.name, named.port).await;
    let refused = |error| match error {
        OutboundError::NoService(name) => ApiError::not_found("", "services", &name),
        OutboundError::NoPort { .. } | OutboundError::NoEndpoints(_) => {
            ApiError::unavailable(error.to_string())
        }
        other => unreachable(other),
    };
    let addresses = addresses.map_err(refused)?;
    addresses.into_iter().next().ok_or_else(|| unreachable("no endpoints"))
}

/// A connection to what belongs to a tenant.
async fn connect(bounds: &Bounds<'_>, address: &str, https: bool) -> Result<Box<dyn Io>> {
    let (at, stream) = outbound::dial(bounds, address).await.map_err(|error| match error {
        OutboundError::Forbidden { .. } => ApiError::bad_request("address not allowed"),
        other => unreachable(other),
    })?;
    if !https {
        return Ok(Box::new(stream));
    }
    // Whoever serves has a certificate of its own making.
    let connector = TlsConnector::from(Trust::anybody().config());
    let tls = connector.connect(ServerName::IpAddress(at.ip().into()), stream);
    let tls = tokio::time::timeout(CONNECT, tls).await;
    let tls = tls.map_err(|_| unreachable("net/http: TLS handshake timeout"))?;
    Ok(Box::new(tls.map_err(|error| unreachable(chain(&error)))?))
}

/// A connection to a node: to its agent, or to another port of it.
async fn node(server: &Server, named: &Named<'_>) -> Result<(Box<dyn Io>, String)> {
    let system = TenantName::system();
    if server.find(&system, "", "nodes", "", named.name).await?.is_none() {
        return Err(ApiError::not_found("", "nodes", named.name));
    }
    let (agent, ip) = node_proxy::address(server, named.name).await?;
    let port = agent.rsplit(':').next().unwrap_or_default();
    if named.port.is_empty() || named.port == port {
        let stream = tokio::time::timeout(CONNECT, node_proxy::connect(server, &agent, &ip)).await;
        let stream = stream
            .map_err(|_| unreachable(format!("dial tcp {agent}: i/o timeout")))?
            .map_err(|error| unreachable(chain(&*error)))?;
        return Ok((Box::new(stream), agent));
    }
    let bad = |_| ApiError::bad_request(format!("invalid node request {:?}", named.port));
    let ip: IpAddr = ip.parse().map_err(ApiError::internal)?;
    let at = SocketAddr::new(ip, named.port.parse().map_err(bad)?).to_string();
    let bounds = server.outbound_bounds(&system);
    Ok((connect(&bounds, &at, named.is_https()).await?, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let named = |scheme, name, port| Some(Named { scheme, name, port });
        assert_eq!(Named::parse("web"), named("", "web", ""));
        assert_eq!(Named::parse("web:80"), named("", "web", "80"));
        assert_eq!(Named::parse("https:web:443"), named("https", "web", "443"));
        assert_eq!(Named::parse("http:web:"), named("http", "web", ""));
        for bad in ["", ":80", "ftp:web:21", "a:b:c:d"] {
            assert_eq!(Named::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_rest_of_a_path_is_passed_on_as_it_was() {
        for (path, rest, expected) in [
            ("/api/v1/namespaces/n/pods/p/proxy", "", ""),
            ("/api/v1/namespaces/n/pods/p/proxy/", "", "/"),
            ("/api/v1/namespaces/n/pods/proxy/proxy/proxy", "/proxy", "/proxy"),
            ("/tenants/t/api/v1/namespaces/n/services/s/proxy/a//b%20c/", "/a/b c", "/a//b%20c/"),
            ("//api/v1/nodes/n/proxy/x", "/x", "/x"),
        ] {
            assert_eq!(raw_rest(path, rest), expected, "{path}");
        }
    }
}
