//! What probes and hooks do to a container: run a command, ask a port.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, LifecycleHandler},
    apimachinery::pkg::util::intstr::IntOrString,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::cri::{RuntimeClient, RuntimeError};

/// How much of an answer or output is kept to be shown.
const MAX_SHOWN: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

/// Why an action did not succeed. The text is shown to users.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActionError {
    /// The container answered, and the answer is no.
    #[error("{0}")]
    Refused(String),
    /// The container could not be asked, which says nothing about it.
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
}

/// Runs a command in a container to its end. Its output, if it exits with 0.
pub(crate) async fn exec(
    runtime: &RuntimeClient,
    container_id: &str,
    command: &[String],
    limit: Duration,
) -> Result<String, ActionError> {
    match runtime.exec_sync(container_id, command, limit).await {
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            truncate(&mut text);
            if output.exit_code == 0 { Ok(text) } else { Err(ActionError::Refused(text)) }
        }
        Err(error) if error.is_timeout() => Err(ActionError::Refused(format!(
            "command {:?} timed out after {}s",
            command.join(" "),
            limit.as_secs()
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Opens a connection to a port.
pub(crate) async fn tcp(host: &str, port: u16, limit: Duration) -> Result<(), ActionError> {
    within(limit, async { TcpStream::connect((host, port)).await.map(drop).map_err(text) }).await
}

/// Runs a lifecycle hook.
pub(crate) async fn hook(
    runtime: &RuntimeClient,
    hook: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    pod_ip: Option<IpAddr>,
    limit: Duration,
) -> Result<(), ActionError> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        self::exec(runtime, container_id, command, limit).await.map(drop)
    } else if let Some(get) = &hook.http_get {
        match pod_ip {
            Some(pod_ip) => http_get(get, container, pod_ip, limit).await,
            None => Err(ActionError::Refused("the pod has no address".to_owned())),
        }
    } else if let Some(sleep) = &hook.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(limit)).await;
        Ok(())
    } else {
        Ok(())
    }
}

/// Asks for a page; 2xx and 3xx are good answers.
pub(crate) async fn http_get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: IpAddr,
    limit: Duration,
) -> Result<(), ActionError> {
    let refused = |text: String| ActionError::Refused(text);
    let port = port(&action.port, container).map_err(refused)?;
    let host = match action.host.as_deref() {
        Some(host) if !host.is_empty() => host.to_owned(),
        _ => pod_ip.to_string(),
    };
    let is_tls = action.scheme.as_deref() == Some("HTTPS");
    let mut path = action.path.clone().unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    let shown = format!("{}://{host}:{port}{path}", if is_tls { "https" } else { "http" });
    within(limit, async {
        for _ in 0..=MAX_REDIRECTS {
            let request = request(action, &host, port, &path)?;
            let stream = TcpStream::connect((host.as_str(), port)).await.map_err(text)?;
            let (status, location) = if is_tls {
                send(request, tls(stream, &host).await?).await?
            } else {
                send(request, stream).await?
            };
            if status.is_success() {
                return Ok(());
            }
            if !status.is_redirection() {
                return Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()));
            }
            // A redirect to elsewhere is a good answer of this container, and no reason to ask
            // another one.
            match location.and_then(|it| it.parse::<Uri>().ok()) {
                Some(to) if to.host().is_none_or(|it| it == host) => {
                    path = to.path_and_query().map_or("/", |it| it.as_str()).to_owned();
                }
                _ => return Ok(()),
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects"))
    })
    .await
    .map_err(|error| match error {
        ActionError::Refused(text) if !text.starts_with("HTTP probe") => {
            refused(format!("Get {shown:?}: {text}"))
        }
        other => other,
    })
}

/// A port given by number or by the name the container gives it.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let mut named = ports.filter(|it| it.name.as_deref() == Some(name));
            named.next().map(|it| it.container_port).or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|it| u16::try_from(it).ok())
        .filter(|&it| it > 0)
        .ok_or_else(|| format!("couldn't find port: {port:?}"))
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, ActionError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(ActionError::Refused),
        Err(_) => Err(ActionError::Refused(format!("timed out after {}s", limit.as_secs()))),
    }
}

fn request(
    action: &HTTPGetAction,
    host: &str,
    port: u16,
    path: &str,
) -> Result<Request<Empty<Bytes>>, String> {
    let authority = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let mut request = Request::get(path)
        .header(header::USER_AGENT, "kube-probe/1.36")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(text)?;
    let headers = request.headers_mut();
    let own_host = HeaderValue::try_from(format!("{authority}:{port}")).map_err(text)?;
    headers.insert(header::HOST, own_host);
    for wanted in action.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&wanted.name).map_err(text)?;
        headers.insert(name, HeaderValue::try_from(&wanted.value).map_err(text)?);
    }
    Ok(request)
}

async fn send(
    request: Request<Empty<Bytes>>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(StatusCode, Option<String>), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|it| it.to_str().ok()).map(str::to_owned);
        // Read a little, so that the server sees its answer taken; how it goes on is not asked.
        let _ = Limited::new(response.into_body(), MAX_SHOWN).collect().await;
        Ok((status, location))
    };
    tokio::select! {
        answer = exchange => answer,
        Err(error) = connection => Err(text(error)),
    }
}

async fn tls(
    stream: TcpStream,
    host: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(text)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(text)?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(text)
}

/// A probe asks whether the container answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn text(error: impl std::error::Error + 'static) -> String {
    insula_client::chain(&error)
}

fn truncate(text: &mut String) {
    if text.len() > MAX_SHOWN {
        let end = (0..=MAX_SHOWN).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers each connection with the next of `answers`; returns the port.
    async fn serve(answers: &'static [&'static str]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let n = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..n]).into_owned();
                let answer = if request.contains("x-wanted: no") { "404 No\r\n" } else { answer };
                let text = format!("HTTP/1.1 {answer}content-length: 0\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        port
    }

    async fn get(port: u16, extra: serde_json::Value) -> Result<(), String> {
        let mut action = json!({"port": "web", "path": "x"});
        action.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let action = serde_json::from_value(action).unwrap();
        let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]});
        let container = serde_json::from_value(container).unwrap();
        let ip = "127.0.0.1".parse().unwrap();
        http_get(&action, &container, ip, Duration::from_secs(2)).await.map_err(|it| it.to_string())
    }

    #[tokio::test]
    async fn pages() {
        let port = serve(&["200 OK\r\n", "500 Oh\r\n", "200 OK\r\n"]).await;
        assert_eq!(get(port, json!({})).await, Ok(()));
        let failed = Err("HTTP probe failed with statuscode: 500".to_owned());
        assert_eq!(get(port, json!({})).await, failed);
        let headers = json!({"httpHeaders": [{"name": "X-Wanted", "value": "no"}]});
        let failed = Err("HTTP probe failed with statuscode: 404".to_owned());
        assert_eq!(get(port, headers).await, failed);
        let refused = get(port, json!({})).await.unwrap_err();
        assert!(refused.starts_with(&format!("Get \"http://127.0.0.1:{port}/x\": ")), "{refused}");
    }

    #[tokio::test]
    async fn redirects() {
        let elsewhere = &["302 F\r\nlocation: http://198.51.100.1/\r\n"];
        assert_eq!(get(serve(elsewhere).await, json!({})).await, Ok(()));
        let here = &["302 F\r\nlocation: /y\r\n", "503 No\r\n"];
        let failed = Err("HTTP probe failed with statuscode: 503".to_owned());
        assert_eq!(get(serve(here).await, json!({})).await, failed);
    }
}
