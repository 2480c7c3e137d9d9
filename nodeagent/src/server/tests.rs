//! The server over TLS, in front of pods on a real containerd. Needs root.

use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Server, tls_config};
use crate::testing::{Lab, is_ready, shell_container};

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// A server in front of a lab's pods, and an authority that its clients' certificates are from.
struct Front {
    address: std::net::SocketAddr,
    authority: CertifiedIssuer<'static, KeyPair>,
    shutdown: CancellationToken,
}

fn leaf(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    tenant: &str,
) -> (String, KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, format!("tenant:{tenant}"));
    params.subject_alt_names.push(SanType::IpAddress("127.0.0.1".parse().unwrap()));
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.pem(), key, certificate.der().to_vec())
}

impl Front {
    async fn start(lab: &Lab) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let (certificate, key, _) = leaf(&authority, "node", "system");
        std::fs::write(&lab.config.client_ca, authority.pem()).unwrap();
        std::fs::write(&lab.config.serving_cert, certificate).unwrap();
        std::fs::write(&lab.config.serving_key, key.serialize_pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = Server::new(lab.node(), lab.pods().clone());
        let tls = tls_config(&lab.config).unwrap();
        tokio::spawn(server.run(listener, tls, TaskTracker::new(), shutdown.clone()));
        Self { address, authority, shutdown }
    }

    async fn connect(&self, name: &str, tenant: &str) -> Tls {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let (_, key, certificate) = leaf(&self.authority, name, tenant);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.into()], key)
            .unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    async fn get_as(&self, name: &str, tenant: &str, path: &str) -> (StatusCode, String) {
        let stream = self.connect(name, tenant).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "node").body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        self.get_as("system:apiserver", "system", path).await
    }

    /// Runs a command over WebSocket; returns what came on each channel.
    async fn exec(&self, path: &str, input: Option<&str>) -> [String; 4] {
        let stream = self.connect("system:apiserver", "system").await;
        let mut request = format!("wss://127.0.0.1{path}").into_client_request().unwrap();
        let protocol = "v9.none, v5.channel.k8s.io".parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        if let Some(input) = input {
            let message = [b"\0", input.as_bytes()].concat();
            socket.send(Message::binary(message)).await.unwrap();
            socket.send(Message::binary(b"\xff\0".to_vec())).await.unwrap();
        }
        let mut channels = [const { Vec::new() }; 4];
        while let Some(Ok(Message::Binary(message))) = socket.next().await {
            channels[usize::from(message[0])].extend_from_slice(&message[1..]);
        }
        channels.map(|it| String::from_utf8(it).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_commands_of_a_pod() {
    let lab = Lab::start().await;
    let front = Front::start(&lab).await;
    let counter = "echo one; echo two; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let once = "if [ -e /keep/x ]; then echo second; sleep 1000; fi; touch /keep/x; echo first";
    let mut again = shell_container("again", once);
    again["volumeMounts"] = json!([{"name": "keep", "mountPath": "/keep"}]);
    let pod = lab.create("web", json!({"terminationGracePeriodSeconds": 1,
        "containers": [shell_container("c", counter), again], "volumes": [{"name": "keep", "emptyDir": {}}]}));
    lab.wait(&pod, "restarted", |pod| {
        let restarts = crate::testing::container_status(pod, "again").map(|it| it.restart_count);
        is_ready(pod) && restarts == Some(1)
    })
    .await;

    let logs = "/tenants/acme/containerLogs/default/web/c";
    assert_eq!(front.get(logs).await, (StatusCode::OK, "one\ntwo\n".to_owned()));
    let uid = format!("{logs}?uid={}&tailLines=1", pod.uid());
    assert_eq!(front.get(&uid).await.1, "two\n");
    let again = "/tenants/acme/containerLogs/default/web/again";
    assert_eq!(front.get(again).await.1, "second\n");
    assert_eq!(front.get(&format!("{again}?previous=true")).await.1, "first\n");
    // Another tenant's pod, another incarnation, another container, nobody's pod.
    for other in [
        "/tenants/globex/containerLogs/default/web/c".to_owned(),
        format!("{logs}?uid=0"),
        "/tenants/acme/containerLogs/default/none/c".to_owned(),
    ] {
        assert_eq!(front.get(&other).await.0, StatusCode::NOT_FOUND, "{other}");
    }
    let unknown = front.get("/tenants/acme/containerLogs/default/web/x").await;
    assert_eq!(unknown.0, StatusCode::BAD_REQUEST);
    assert_eq!(front.get("/healthz").await.1, "ok");
    assert!(front.get("/metrics").await.1.contains("\ninsula_node_pods 1\n"));

    let exec = "/tenants/acme/exec/default/web/c?output=1&error=1";
    let run =
        format!("{exec}&command=sh&command=-c&command=echo+out%3B+echo+err+%3E%262%3B+exit+7");
    let [_, out, err, end] = front.exec(&run, None).await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    let end: serde_json::Value = serde_json::from_str(&end).unwrap();
    assert_eq!(end["reason"], "NonZeroExitCode");
    assert_eq!(end["details"]["causes"][0]["message"], "7");
    // What is typed arrives, and its end does too.
    let [_, out, _, end] = front.exec(&format!("{exec}&input=1&command=cat"), Some("typed")).await;
    assert_eq!(out, "typed");
    assert!(end.contains("\"Success\""), "{end}");

    // Whoever is not the platform is refused, whatever the path.
    let stranger = front.get_as("system:apiserver", "acme", logs).await;
    assert_eq!(stranger.0, StatusCode::FORBIDDEN);

    // A log that is followed ends with its container.
    let follow = format!("{logs}?follow=true");
    let following = front.get(&follow);
    let end = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        lab.cluster.delete_gracefully(pod.uid(), 1);
    };
    let ((status, text), ()) = tokio::join!(following, end);
    assert_eq!((status, text.as_str()), (StatusCode::OK, "one\ntwo\n"));
    front.shutdown.cancel();
}
