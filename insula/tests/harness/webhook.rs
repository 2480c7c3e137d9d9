//! A conversion webhook with TLS, as a tenant would run it: it renames a field between versions.

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
    /// For `caBundle`.
    pub(crate) bundle: String,
    asked: Arc<AtomicUsize>,
}

/// An address of this machine that is not the loopback.
pub(crate) fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: this only asks which way it would go.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

impl Webhook {
    pub(crate) fn start() -> Self {
        let address = own_address();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![address.to_string()]).unwrap().self_signed(&key).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let (config, asked) = (Arc::new(config), Arc::new(AtomicUsize::new(0)));
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let counter = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, counter) = (config.clone(), counter.clone());
                // A client that goes away early is its own affair.
                thread::spawn(move || serve(stream, config, &counter));
            }
        });
        let bundle = base64::engine::general_purpose::STANDARD.encode(certificate.pem());
        Self { url: format!("https://{address}:{port}/convert"), bundle, asked }
    }

    /// How many objects it has converted.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, counter: &AtomicUsize) -> Option<()> {
    let connection = ServerConnection::new(config).ok()?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
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
    let review: Value = serde_json::from_slice(&body).ok()?;
    let to = &review["request"]["desiredAPIVersion"];
    let objects = review["request"]["objects"].as_array()?;
    counter.fetch_add(objects.len(), Ordering::SeqCst);
    let converted: Vec<Value> = objects.iter().map(|it| convert(it, to)).collect();
    let answer = json!({
        "apiVersion": review["apiVersion"], "kind": "ConversionReview",
        "response": {
            "uid": review["request"]["uid"], "result": {"status": "Success"},
            "convertedObjects": converted,
        },
    })
    .to_string();
    let stream = reader.get_mut();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()).ok()?;
    stream.flush().ok()
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
