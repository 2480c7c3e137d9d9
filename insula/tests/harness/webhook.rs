//! Webhooks with TLS, as a tenant would run them: one converts, others do what a test says.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};

/// See the module. Runs until the test ends.
pub(crate) struct Webhook {
    /// `https://ADDRESS:PORT/convert`.
    pub(crate) url: String,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// For `caBundle`.
    pub(crate) bundle: String,
    asked: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

/// Answers the request of a path with this body. `None` closes the connection instead.
type Answer = dyn Fn(&str, &Value) -> Option<Value> + Send + Sync;

/// An address of this machine that is not the loopback.
pub(crate) fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: this only asks which way it would go.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

impl Webhook {
    /// One that converts sockets, and counts them.
    pub(crate) fn start() -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let mut webhook = Self::answering(move |_, review| {
            let to = &review["request"]["desiredAPIVersion"];
            let objects = review["request"]["objects"].as_array()?;
            counter.fetch_add(objects.len(), Ordering::SeqCst);
            let converted: Vec<Value> = objects.iter().map(|it| convert(it, to)).collect();
            Some(json!({
                "apiVersion": review["apiVersion"], "kind": "ConversionReview",
                "response": {
                    "uid": review["request"]["uid"], "result": {"status": "Success"},
                    "convertedObjects": converted,
                },
            }))
        });
        webhook.asked = asked;
        webhook
    }

    /// One that admits: `answer` gets the path and the request, and says what it responds beside
    /// the uid.
    pub(crate) fn admitting(
        answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static,
    ) -> Self {
        Self::answering(move |path, review| {
            let mut response = answer(path, &review["request"]);
            response["uid"] = review["request"]["uid"].clone();
            Some(json!({
                "apiVersion": review["apiVersion"], "kind": "AdmissionReview",
                "response": response,
            }))
        })
    }

    pub(crate) fn answering(
        answer: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static,
    ) -> Self {
        let address = own_address();
        let key = KeyPair::generate().unwrap();
        let names = vec![address.to_string(), "hook.default.svc".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let (config, answer) = (Arc::new(config), Arc::new(answer));
        let asked = Arc::new(AtomicUsize::new(0));
        let connections = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asks, connects) = (asked.clone(), connections.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                connects.fetch_add(1, Ordering::SeqCst);
                let (config, asks, answer) = (config.clone(), asks.clone(), answer.clone());
                // A client that goes away early is its own affair.
                thread::spawn(move || serve(stream, config, &asks, &*answer));
            }
        });
        let bundle = base64::engine::general_purpose::STANDARD.encode(certificate.pem());
        let url = format!("https://{address}:{port}/convert");
        Self { url, address, port, bundle, asked, connections }
    }

    /// How many objects it has converted, or requests it has answered.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// How many connections it has taken.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// `clientConfig` by URL.
    pub(crate) fn by_url(&self, path: &str) -> Value {
        let url = format!("https://{}:{}{path}", self.address, self.port);
        json!({"url": url, "caBundle": self.bundle})
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    asked: &AtomicUsize,
    answer: &Answer,
) -> Option<()> {
    let connection = ServerConnection::new(config).ok()?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let path = line.split(' ').nth(1)?.split('?').next()?.to_owned();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        asked.fetch_add(1, Ordering::SeqCst);
        let body = match body.as_slice() {
            [] => Value::Null,
            body => serde_json::from_slice(body).ok()?,
        };
        let answer = answer(&path, &body)?.to_string();
        let stream = reader.get_mut();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len())
            .ok()?;
        stream.flush().ok()?;
    }
}

/// `host` and `port` in v1 are `endpoint` in v2.
fn convert(it: &Value, to: &Value) -> Value {
    let mut it = it.clone();
    it["apiVersion"] = to.clone();
    let Some(spec) = it.get_mut("spec").and_then(Value::as_object_mut) else { return it };
    if to.as_str().is_some_and(|to| to.ends_with("/v2")) {
        if let (Some(host), Some(port)) = (spec.remove("host"), spec.remove("port")) {
            let endpoint = format!("{}:{port}", host.as_str().unwrap_or_default());
            spec.insert("endpoint".into(), endpoint.into());
        }
    } else if let Some(endpoint) = spec.remove("endpoint") {
        let endpoint = endpoint.as_str().unwrap_or_default().to_owned();
        let (host, port) = endpoint.split_once(':').unwrap_or((&endpoint, "0"));
        spec.insert("host".into(), host.into());
        spec.insert("port".into(), port.parse::<i64>().unwrap_or(0).into());
    }
    it
}
