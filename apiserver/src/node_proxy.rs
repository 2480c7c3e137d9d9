//! The way to a pod's node: logs, exec, attach and port-forward.
//!
//! The server finds the pod's node, opens TLS to its agent and becomes a pipe: for logs of the
//! answer's body, for the others of the upgraded connection, byte for byte.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use insula_api::object;
use insula_partition::store::ReadAt;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    Server,
    body::{Body, BodyError, empty},
    call::Call,
    error::{ApiError, FieldError, Result, chain},
    forward, read,
    websocket::{self, Messages},
};

/// How long a node has to accept a connection and to answer with a head.
const CONNECT: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(30);

/// Opens connections to node agents.
pub(crate) struct Dialer {
    tls: ArcSwap<rustls::ClientConfig>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl Dialer {
    /// `config` trusts the cluster's CA and presents the server's client certificate.
    pub(crate) fn new(config: Arc<rustls::ClientConfig>) -> Self {
        Self { tls: ArcSwap::new(config) }
    }

    /// As [`Dialer::new`], from now on.
    pub(crate) fn set(&self, config: Arc<rustls::ClientConfig>) {
        self.tls.store(config);
    }
}

/// Answers a request for `log`, `exec`, `attach` or `portforward` of a pod.
pub(crate) async fn serve(
    server: &Arc<Server>,
    call: &Call,
    method: Method,
    upgrade: &mut Option<hyper::upgrade::OnUpgrade>,
) -> Result<Response<Body>> {
    let name = &call.path.name;
    let tenant = call.tenant()?.clone();
    let namespace = call.namespace();
    let is_log = call.path.subresource == "log";
    if is_log {
        check_log(call)?;
    }
    let (_, store) = call.served.place(&server.partitions, &tenant, &namespace, name);
    let entry = read::get(&call.served, &*store, &call.key(name)?, name, ReadAt::Latest).await?;
    let pod: Value = serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
    let container = match &*call.path.subresource {
        "portforward" => String::new(),
        _ => container(&pod, call)?,
    };
    let node = object::text(&pod, &["spec", "nodeName"]);
    if node.is_empty() && is_log {
        // Nothing was written yet, and nothing is wrong with that.
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let place = match &*call.path.subresource {
        "portforward" => format!("portForward/{namespace}/{name}"),
        "log" => format!("containerLogs/{namespace}/{name}/{container}"),
        sub => format!("{sub}/{namespace}/{name}/{container}"),
    };
    let query = query(call, &pod);
    let uri = format!("/tenants/{tenant}/{place}?{query}");
    let (address, node_name) = address(server, node).await?;
    let unreachable = |error: BodyError| {
        let why = chain(&*error);
        tracing::warn!(node, error = why, "cannot reach the node's agent");
        ApiError::bad_gateway(format!("error dialing node {node} at {address}: {why}"))
    };
    let stream = tokio::time::timeout(CONNECT, connect(server, &address, &node_name))
        .await
        .map_err(|_| ApiError::bad_gateway(format!("node {node} at {address} does not answer")))?
        .map_err(unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(error.into()))?;
    server.tasks.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the connection to a node ended");
        }
    });
    let mut request = Request::new(Empty::<bytes::Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() =
        uri.parse().map_err(|_| ApiError::bad_request("the query cannot be passed on"))?;
    let messages = messages(call)?;
    *request.headers_mut() = passed_on(&call.headers);
    if messages.is_some() {
        // The node gives a plain answer; it is here that it is cut into messages.
        request.headers_mut().remove(header::UPGRADE);
        request.headers_mut().remove(header::CONNECTION);
    }
    request
        .headers_mut()
        .insert(header::HOST, HeaderValue::from_str(&address).map_err(ApiError::internal)?);
    let answer = tokio::time::timeout(HEAD, sender.send_request(request))
        .await
        .map_err(|_| ApiError::bad_gateway(format!("node {node} at {address} does not answer")))?
        .map_err(|error| unreachable(error.into()))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut head, body) = answer.into_parts();
        head.headers.remove(header::CONNECTION);
        head.headers.remove(header::TRANSFER_ENCODING);
        let body = body.map_err(|error| Box::new(error) as BodyError).boxed_unsync();
        if head.status == StatusCode::OK
            && let (Some(messages), Some(upgrade)) = (messages, upgrade.take())
        {
            return websocket::serve(server, &call.headers, upgrade, body, messages);
        }
        return Ok(Response::from_parts(head, body));
    }
    let Some(upgrade) = upgrade.take() else {
        return Err(ApiError::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr, and ask for an upgrade",
        ));
    };
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let lasting = server.splice(upgrade, hyper::upgrade::on(answer));
    response.extensions_mut().insert(lasting);
    Ok(response)
}

/// What somebody may ask of a log.
fn check_log(call: &Call) -> Result<()> {
    let mut errors = Vec::new();
    if let Some(lines) = call.query.number("tailLines")?.filter(|it| *it < 0) {
        let why = "must be greater than or equal to 0";
        errors.push(FieldError::invalid("tailLines", &lines.into(), why));
    }
    if call.query.get("stream").is_some() {
        errors.push(FieldError::forbidden("stream", "may not be specified"));
    }
    let above_zero = "must be greater than 0";
    if let Some(limit) = call.query.number("limitBytes")?.filter(|it| *it < 1) {
        errors.push(FieldError::invalid("limitBytes", &limit.into(), above_zero));
    }
    let (seconds, since) = (call.query.number("sinceSeconds")?, call.query.get("sinceTime"));
    if let Some(text) = since.filter(|it| insula_api::time::normalize(it).is_none()) {
        const FORM: &str = "2006-01-02T15:04:05Z07:00";
        let text: String = text.chars().take(64).collect();
        return Err(ApiError::bad_request(format!(
            "parsing time {text:?} as {FORM:?}: cannot parse {text:?} as \"2006\""
        )));
    }
    match (seconds, since) {
        (Some(_), Some(_)) => {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden("[]", why));
        }
        (Some(seconds), None) if seconds < 1 => {
            errors.push(FieldError::invalid("sinceSeconds", &seconds.into(), above_zero));
        }
        _ => (),
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid("", "PodLogOptions", &call.path.name, &errors)),
    }
}

/// How a log is cut into messages, if it is to be read from a WebSocket.
fn messages(call: &Call) -> Result<Option<Messages>> {
    if call.path.subresource != "log" || !websocket::is_asked_for(&call.headers) {
        return Ok(None);
    }
    match websocket::offered(&call.headers).next() {
        None | Some("binary.k8s.io") => Ok(Some(Messages::Binary)),
        Some("base64.binary.k8s.io") => Ok(Some(Messages::Base64)),
        Some(_) => Err(ApiError::bad_request(
            "the protocols of logs are binary.k8s.io and base64.binary.k8s.io",
        )),
    }
}

/// The container that the query names, or the only one there is.
fn container(pod: &Value, call: &Call) -> Result<String> {
    let name = object::name(pod);
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let all: Vec<&str> = lists
        .iter()
        .flat_map(|list| pod["spec"].get(list).and_then(Value::as_array).into_iter().flatten())
        .map(|it| object::text(it, &["name"]))
        .collect();
    if let Some(wanted) = call.query.get("container") {
        return match all.contains(&wanted) {
            true => Ok(wanted.to_owned()),
            false => {
                let shown: String = wanted.chars().take(64).collect();
                Err(ApiError::bad_request(format!("container {shown} is not valid for pod {name}")))
            }
        };
    }
    let containers = pod["spec"].get("containers").and_then(Value::as_array);
    match containers.map(Vec::as_slice) {
        Some([one]) => Ok(object::text(one, &["name"]).to_owned()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            all.join(" ")
        ))),
    }
}

/// The query as the node's agent reads it.
fn query(call: &Call, pod: &Value) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    out.append_pair("uid", object::uid(pod));
    for key in [
        "follow",
        "previous",
        "timestamps",
        "tailLines",
        "sinceSeconds",
        "sinceTime",
        "limitBytes",
        "stream",
        "tty",
    ] {
        if let Some(value) = call.query.get(key) {
            out.append_pair(key, value);
        }
    }
    for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error")] {
        if call.query.flag(from) {
            out.append_pair(to, "1");
        }
    }
    for key in ["command", "ports"] {
        for value in call.query.all(key) {
            out.append_pair(key, value);
        }
    }
    out.finish()
}

/// Where a node's agent listens, and the name its certificate must have.
pub(crate) async fn address(server: &Server, node: &str) -> Result<(String, String)> {
    let system = insula_api::names::TenantName::system();
    let found = server.find(&system, "", "nodes", "", node).await?;
    let found = found.ok_or_else(|| ApiError::bad_gateway(format!("node {node} is not known")))?;
    let addresses = found["status"].get("addresses").and_then(Value::as_array);
    let ip = addresses
        .into_iter()
        .flatten()
        .find(|it| it["type"] == "InternalIP")
        .map(|it| object::text(it, &["address"]).to_owned());
    let port = object::at(&found, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"])
        .and_then(Value::as_i64);
    match (ip, port) {
        (Some(ip), Some(port)) => {
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
            Ok((format!("{host}:{port}"), ip))
        }
        _ => Err(ApiError::bad_gateway(format!("node {node} has no address yet"))),
    }
}

pub(crate) async fn connect(
    server: &Server,
    address: &str,
    name: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, BodyError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned())?;
    let tls = TlsConnector::from(server.dialer.tls.load_full());
    Ok(tls.connect(name, stream).await?)
}

/// Headers that matter to the node. Credentials stay here.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        let wanted = matches!(text, "connection" | "upgrade" | "user-agent")
            || text.starts_with("sec-websocket-")
            || text == "x-stream-protocol-version";
        if wanted {
            out.append(name.clone(), value.clone());
        }
    }
    forward::strip_bearer(&mut out);
    out
}
