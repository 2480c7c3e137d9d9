//! `exec`, `attach` and `portForward`: connections from users to containers.
//!
//! The runtime serves the streams itself, over SPDY, at an address it hands out for one use. A
//! client that speaks SPDY is joined to it byte for byte; for one that speaks WebSocket, as clients
//! do by now, the two are translated.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use insula_client::chain;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    answer::{Body, Refusal, switching},
    route::{flag, parameters},
};
use crate::{
    cri::v1,
    node::Node,
    pod::plan::containers,
    pods::PodView,
    streams::{self, Channels, Protocol, TUNNEL},
};

const STREAM_VERSION: &str = "x-stream-protocol-version";
/// The version of streams that all runtimes have; later ones differ for WebSocket only.
const RUNTIME_VERSION: &str = "v4.channel.k8s.io";

/// What a connection is for.
#[derive(Debug)]
pub(super) enum Wanted {
    Exec { container: String },
    Attach { container: String },
    PortForward,
}

pub(super) async fn serve(
    node: &Node,
    pod: PodView,
    wanted: Wanted,
    mut request: Request<Incoming>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Response<Body>, Refusal> {
    let upgrade = request.headers().get(header::UPGRADE).and_then(|it| it.to_str().ok());
    let is_websocket = upgrade.is_some_and(|it| it.eq_ignore_ascii_case("websocket"));
    if upgrade.is_none() {
        return Err(Refusal::bad_request("Upgrade request required"));
    }
    let query = request.uri().query().map(str::to_owned);
    let (url, channels) = prepare(node, &pod, &wanted, query.as_deref()).await?;
    let client = hyper::upgrade::on(&mut request);
    let offered = offered_protocols(request.headers());
    let is_tunnel = matches!(wanted, Wanted::PortForward);
    // Ports as channels of a WebSocket are spoken by the runtime itself.
    if !is_websocket || is_tunnel && !offered.iter().any(|it| it == TUNNEL) {
        return pipe(&url, request.headers(), client, tasks, shutdown).await;
    }
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Refusal::bad_request("Sec-WebSocket-Key is missing"))?;
    let accept = derive_accept_key(key.as_bytes());
    let chosen = offered.iter().find_map(|it| {
        if is_tunnel {
            (it == TUNNEL).then_some((None, it))
        } else {
            Protocol::named(it).map(|p| (Some(p), it))
        }
    });
    let Some((protocol, name)) =
        chosen.map(|(protocol, name)| (protocol, name.clone())).or_else(|| {
            // Whoever names no protocol gets the first there was.
            (offered.is_empty() && !is_tunnel).then(|| (Some(Protocol::default()), String::new()))
        })
    else {
        return Err(Refusal::bad_request(format!("none of the protocols is known: {offered:?}")));
    };
    let version = if is_tunnel { "portforward.k8s.io" } else { RUNTIME_VERSION };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_VERSION, HeaderValue::from_static(version));
    let (answer, runtime) = dial(&url, &headers).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let message = format!("the runtime answered {}", answer.status());
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, message));
    }
    let work = async move {
        let (client, runtime) = match tokio::try_join!(client, runtime) {
            Ok(ends) => ends,
            Err(error) => {
                tracing::debug!(error = chain(&error), "stream not established");
                return;
            }
        };
        let ended = match protocol {
            Some(protocol) => streams::translate(client, runtime, protocol, channels).await,
            None => streams::tunnel(client, runtime).await,
        };
        if let Err(error) = ended {
            tracing::debug!(error = chain(&error), "stream broke");
        }
    };
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(work));
    let mut response = switching();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| Refusal::internal(&error));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, value(&accept)?);
    if !name.is_empty() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value(&name)?);
    }
    Ok(response)
}

/// Asks the runtime for the streams; returns where they are.
async fn prepare(
    node: &Node,
    pod: &PodView,
    wanted: &Wanted,
    query: Option<&str>,
) -> Result<(Uri, Channels), Refusal> {
    let running = |container: &str| {
        let snapshot = pod.snapshot.borrow();
        let view = snapshot.containers.get(container).filter(|it| it.is_running);
        view.and_then(|it| it.current.clone()).map(|(id, _)| id).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, format!("container not found ({container:?})"))
        })
    };
    let mut channels = Channels {
        stdin: flag(query, "input"),
        stdout: flag(query, "output"),
        stderr: flag(query, "error"),
        resize: false,
    };
    let url = match wanted {
        Wanted::Exec { container } => {
            let tty = flag(query, "tty");
            channels.stderr &= !tty;
            channels.resize = tty;
            let command = parameters(query).filter(|(name, _)| name == "command");
            let request = v1::ExecRequest {
                container_id: running(container)?,
                cmd: command.map(|(_, value)| value).collect(),
                tty,
                stdin: channels.stdin,
                stdout: channels.stdout,
                stderr: channels.stderr,
            };
            if request.cmd.is_empty() {
                return Err(Refusal::bad_request("you must specify at least 1 command"));
            }
            node.runtime.exec(request).await
        }
        Wanted::Attach { container } => {
            // Whether there is a terminal was decided when the container was made.
            let spec = pod.pod.spec.as_ref();
            let tty = spec.is_some_and(|spec| {
                containers(spec).any(|(_, it)| it.name == *container && it.tty == Some(true))
            });
            channels.stderr &= !tty;
            channels.resize = tty;
            let request = v1::AttachRequest {
                container_id: running(container)?,
                tty,
                stdin: channels.stdin,
                stdout: channels.stdout,
                stderr: channels.stderr,
            };
            node.runtime.attach(request).await
        }
        Wanted::PortForward => {
            let sandbox = pod.snapshot.borrow().sandbox_id.clone();
            let Some(pod_sandbox_id) = sandbox else {
                let message = format!("pod {:?} does not run", pod.key.name);
                return Err(Refusal::new(StatusCode::NOT_FOUND, message));
            };
            let ports = parameters(query).filter(|(name, _)| name == "port" || name == "ports");
            let port = ports.filter_map(|(_, value)| value.parse().ok()).collect();
            let request = v1::PortForwardRequest { pod_sandbox_id, port };
            node.runtime.port_forward(request).await
        }
    };
    let url = url.map_err(|error| Refusal::internal(&error))?;
    let url = url.parse().map_err(|error: http::uri::InvalidUri| Refusal::internal(&error))?;
    if matches!(wanted, Wanted::Exec { .. } | Wanted::Attach { .. }) && !channels.any() {
        let message = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Refusal::bad_request(message));
    }
    Ok((url, channels))
}

/// Joins a client that speaks the runtime's protocol to the runtime.
async fn pipe(
    url: &Uri,
    headers: &HeaderMap,
    client: OnUpgrade,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Response<Body>, Refusal> {
    let mut passed_on = HeaderMap::new();
    for name in [
        header::CONNECTION.as_str(),
        header::UPGRADE.as_str(),
        STREAM_VERSION,
        header::SEC_WEBSOCKET_KEY.as_str(),
        header::SEC_WEBSOCKET_VERSION.as_str(),
        header::SEC_WEBSOCKET_PROTOCOL.as_str(),
    ] {
        for value in headers.get_all(name) {
            if let Ok(name) = http::HeaderName::try_from(name) {
                passed_on.append(name, value.clone());
            }
        }
    }
    let (answer, runtime) = dial(url, &passed_on).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let message = format!("the runtime answered {}", answer.status());
        let mut response = Refusal::new(answer.status(), message).into_response();
        // The protocols that it would have taken.
        for value in answer.headers().get_all("x-accepted-stream-protocol-versions") {
            response.headers_mut().append("x-accepted-stream-protocol-versions", value.clone());
        }
        return Ok(response);
    }
    let work = async move {
        let (client, runtime) = match tokio::try_join!(client, runtime) {
            Ok(ends) => ends,
            Err(error) => {
                tracing::debug!(error = chain(&error), "stream not established");
                return;
            }
        };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
            tracing::debug!(error = chain(&error), "stream broke");
        }
    };
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(work));
    let mut response = switching();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

type Dialed = std::pin::Pin<Box<dyn Future<Output = hyper::Result<Upgraded>> + Send>>;

/// Opens the runtime's end. The future resolves to the connection once the protocol has changed.
async fn dial(url: &Uri, headers: &HeaderMap) -> Result<(Response<()>, Dialed), Refusal> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        let message = format!("cannot reach the runtime's streams: {}", chain(error));
        Refusal::new(StatusCode::BAD_GATEWAY, message)
    };
    let authority = url.authority().ok_or_else(|| {
        Refusal::new(
            StatusCode::BAD_GATEWAY,
            format!("the runtime gave {url}, which is no address"),
        )
    })?;
    let stream = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80)))
        .await
        .map_err(|error| failed(&error))?;
    stream.set_nodelay(true).map_err(|error| failed(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    // Ends when the connection does, which the upgraded half below holds.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(error = chain(&error), "connection to the runtime's streams ended");
        }
    });
    let mut request = Request::new(Empty::<Bytes>::new());
    // A WebSocket begins with nothing else.
    *request.method_mut() = match headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        true => Method::GET,
        false => Method::POST,
    };
    let path = url.path_and_query().map_or("/", |it| it.as_str());
    *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| failed(&error))?;
    *request.headers_mut() = headers.clone();
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| failed(&error))?;
    request.headers_mut().insert(header::HOST, host);
    let mut answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let upgraded = hyper::upgrade::on(&mut answer);
    Ok((answer.map(drop), Box::pin(upgraded)))
}

fn offered_protocols(headers: &HeaderMap) -> Vec<String> {
    let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let lists = lists.filter_map(|it| it.to_str().ok());
    lists.flat_map(|it| it.split(',')).map(|it| it.trim().to_owned()).collect()
}
