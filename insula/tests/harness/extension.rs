//! An extension server with TLS, as a tenant would run it: it believes its tenant's front proxy
//! alone, and has one resource, `flunders`, that it keeps in memory.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use base64::Engine as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};

use super::{Kubectl, own_address};

pub(crate) const GROUP: &str = "wardle.example.com";
const VERSION: &str = "v1";
/// How much of an endless answer is sent at a time, in bytes.
const PIECE: usize = 64 * 1024;

/// What the server does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Answers,
    /// It takes connections and closes them.
    Down,
    /// It takes requests and says nothing.
    Silent,
}

/// See the module. Runs until the test ends.
pub(crate) struct Extension {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// For `caBundle`.
    pub(crate) bundle: String,
    state: Arc<State>,
}

/// One request, as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

#[derive(Default)]
struct Contents {
    revision: u64,
    /// By namespace and name.
    objects: BTreeMap<(String, String), Value>,
    events: Vec<(u64, &'static str, Value)>,
}

#[derive(Default)]
struct State {
    contents: Mutex<Contents>,
    changed: Condvar,
    seen: Mutex<Vec<Seen>>,
    streams: Mutex<Vec<TcpStream>>,
    mode: AtomicU8,
    /// Bytes of endless answers that were taken.
    sent: AtomicUsize,
    refused: AtomicUsize,
    /// Whether it has the newer forms of discovery.
    is_new: AtomicBool,
}

type Stream = BufReader<StreamOwned<ServerConnection, TcpStream>>;

impl Extension {
    /// One that believes the front proxy of the tenant of `kubectl`.
    pub(crate) fn start(kubectl: &Kubectl) -> Self {
        let path = r"jsonpath={.data.requestheader-client-ca-file}";
        let name = "extension-apiserver-authentication";
        let ca = kubectl.ok(&["get", "configmap", "-n", "kube-system", name, "-o", path]);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let address = own_address();
        let key = KeyPair::generate().unwrap();
        let names = vec!["ext.default.svc".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        state.is_new.store(true, Ordering::SeqCst);
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, state) = (config.clone(), shared.clone());
                if state.mode() == Mode::Down {
                    continue;
                }
                state.streams.lock().unwrap().push(stream.try_clone().unwrap());
                // A client that goes away early is its own affair.
                thread::spawn(move || {
                    if state.serve(stream, config).is_err() {
                        state.refused.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let bundle = base64::engine::general_purpose::STANDARD.encode(certificate.pem());
        Self { address, port, bundle, state }
    }

    /// A service `ext` in `default`, and where it is.
    pub(crate) fn service(&self) -> String {
        service(&self.address.to_string(), self.port)
    }

    /// The object that registers it.
    pub(crate) fn registration(&self) -> Value {
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": format!("{VERSION}.{GROUP}")},
            "spec": {
                "group": GROUP, "version": VERSION, "caBundle": self.bundle,
                "groupPriorityMinimum": 2000, "versionPriority": 10,
                "service": {"namespace": "default", "name": "ext"},
            },
        })
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.state.mode.store(mode as u8, Ordering::SeqCst);
        if mode != Mode::Answers {
            self.cut();
        }
    }

    /// Whether it has aggregated discovery.
    pub(crate) fn set_new(&self, is_new: bool) {
        self.state.is_new.store(is_new, Ordering::SeqCst);
    }

    /// Ends all connections, as a crash does.
    pub(crate) fn cut(&self) {
        for stream in self.state.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// What was asked so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Connections that it did not take, or that broke.
    pub(crate) fn refused(&self) -> usize {
        self.state.refused.load(Ordering::SeqCst)
    }

    /// Bytes of endless answers that somebody took.
    pub(crate) fn sent(&self) -> usize {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// How many objects it has.
    pub(crate) fn objects(&self) -> usize {
        self.state.contents.lock().unwrap().objects.len()
    }
}

/// A service `ext` in `default` that is at `address`.
fn service(address: &str, port: u16) -> String {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "ext", "namespace": "default"},
        "spec": {"ports": [{"port": 443, "targetPort": port}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "ext-1", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "ext"},
        },
        "addressType": "IPv4", "ports": [{"name": "", "port": port}],
        "endpoints": [{"addresses": [address]}],
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [service, slice]}).to_string()
}

impl State {
    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::SeqCst) {
            0 => Mode::Answers,
            1 => Mode::Down,
            _ => Mode::Silent,
        }
    }

    fn serve(&self, stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let certificates = stream.get_ref().conn.peer_certificates().unwrap_or_default();
            let name = b"front-proxy-client";
            let is_known = |it: &CertificateDer<'_>| it.windows(name.len()).any(|it| it == name);
            assert!(certificates.first().is_some_and(is_known), "somebody else's certificate");
            let mut headers = Vec::new();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line)?;
                let Some((name, value)) = line.trim_end().split_once(':') else { break };
                headers.push((name.to_lowercase(), value.trim().to_owned()));
            }
            let seen = Seen { line: line.trim_end().to_owned(), headers };
            self.seen.lock().unwrap().push(seen.clone());
            if self.mode() == Mode::Silent {
                thread::sleep(Duration::from_secs(3600));
            }
            let body = body(&mut stream, &seen)?;
            self.answer(&mut stream, &seen, &body)?;
        }
    }

    fn answer(&self, stream: &mut Stream, seen: &Seen, body: &[u8]) -> io::Result<()> {
        let mut line = seen.line.split(' ');
        let (method, target) = (line.next().unwrap(), line.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
        let accept = seen.all("accept").join(",");
        let root = format!("/apis/{GROUP}/{VERSION}");
        match (method, parts.as_slice()) {
            ("GET", ["apis"])
                if accept.contains("as=APIGroupDiscoveryList")
                    && self.is_new.load(Ordering::SeqCst) =>
            {
                const FORM: &str =
                    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
                if seen.all("if-none-match") == ["\"one\""] {
                    return write!(stream.get_mut(), "HTTP/1.1 304 Not Modified\r\n\r\n");
                }
                let more = format!("Content-Type: {FORM}\r\nETag: \"one\"\r\n");
                send(stream, "200 OK", &more, &aggregated())
            }
            ("GET", ["apis"]) => {
                send(stream, "200 OK", JSON, &json!({"kind": "APIGroupList", "groups": []}))
            }
            ("GET", ["apis", _, _]) => send(stream, "200 OK", JSON, &resources()),
            ("GET", ["openapi", "v3"]) => {
                let url = format!("/openapi/v3{root}?hash=1");
                let index = json!({"paths": {&root[1..]: {"serverRelativeURL": url}}});
                send(stream, "200 OK", JSON, &index)
            }
            ("GET", ["openapi", "v3", ..]) => send(stream, "200 OK", JSON, &openapi_v3()),
            ("GET", ["openapi", "v2"]) => send(stream, "200 OK", JSON, &openapi_v2()),
            (_, ["apis", _, _, rest @ ..]) => {
                let (namespace, rest) = match rest {
                    ["namespaces", namespace, rest @ ..] => (*namespace, rest),
                    rest => ("", rest),
                };
                match (method, rest) {
                    ("GET", ["flunders"]) if query.contains("watch=") => {
                        self.watch(stream, namespace, query)
                    }
                    ("GET", ["flunders"]) => send(stream, "200 OK", JSON, &self.list(namespace)),
                    ("POST", ["flunders"]) => {
                        let it: Value = serde_json::from_slice(body)?;
                        send(stream, "201 Created", JSON, &self.put(namespace, it))
                    }
                    ("DELETE", ["flunders"]) => {
                        self.remove(namespace, None);
                        send(
                            stream,
                            "200 OK",
                            JSON,
                            &json!({"kind": "Status", "status": "Success"}),
                        )
                    }
                    ("DELETE", ["flunders", name]) => {
                        self.remove(namespace, Some(name));
                        send(
                            stream,
                            "200 OK",
                            JSON,
                            &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                        )
                    }
                    ("GET", ["flunders", name]) => {
                        let key = (namespace.to_owned(), (*name).to_owned());
                        match self.contents.lock().unwrap().objects.get(&key) {
                            Some(it) => send(stream, "200 OK", JSON, it),
                            None => send(stream, "404 Not Found", JSON, &missing(name)),
                        }
                    }
                    (_, ["flunders", _, "echo"]) => echo(stream),
                    (_, ["flunders", _, "endless"]) => self.endless(stream),
                    (_, ["flunders", _, "away"]) => write!(
                        stream.get_mut(),
                        "HTTP/1.1 302 Found\r\nLocation: https://example.com/\r\nContent-Length: 0\r\n\r\n"
                    ),
                    (_, ["flunders", _, "misdirected"]) => {
                        send(stream, "421 Misdirected Request", "X-Insula-Epoch: 9\r\n", &json!({}))
                    }
                    (_, ["flunders", _, "size"]) => {
                        send(stream, "200 OK", JSON, &json!({"size": body.len()}))
                    }
                    _ => send(stream, "404 Not Found", JSON, &missing(path)),
                }
            }
            _ => send(stream, "404 Not Found", JSON, &missing(path)),
        }
    }

    fn put(&self, namespace: &str, mut it: Value) -> Value {
        let mut contents = self.contents.lock().unwrap();
        contents.revision += 1;
        let revision = contents.revision;
        it["metadata"]["resourceVersion"] = revision.to_string().into();
        it["metadata"]["namespace"] = namespace.into();
        it["metadata"]["uid"] = format!("flunder-{revision}").into();
        it["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        let name = it["metadata"]["name"].as_str().unwrap().to_owned();
        contents.objects.insert((namespace.to_owned(), name), it.clone());
        contents.events.push((revision, "ADDED", it.clone()));
        self.changed.notify_all();
        it
    }

    fn remove(&self, namespace: &str, name: Option<&str>) {
        let mut contents = self.contents.lock().unwrap();
        let keys: Vec<_> = contents.objects.keys().cloned().collect();
        for key in keys {
            if key.0 == namespace && name.is_none_or(|name| name == key.1) {
                let it = contents.objects.remove(&key).unwrap();
                contents.revision += 1;
                let revision = contents.revision;
                contents.events.push((revision, "DELETED", it));
            }
        }
        self.changed.notify_all();
    }

    fn list(&self, namespace: &str) -> Value {
        let contents = self.contents.lock().unwrap();
        let objects = contents.objects.iter();
        let items: Vec<&Value> = objects
            .filter(|((of, _), _)| namespace.is_empty() || of == namespace)
            .map(|(_, it)| it)
            .collect();
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "FlunderList",
            "metadata": {"resourceVersion": contents.revision.to_string()}, "items": items,
        })
    }

    /// All changes after a revision, as they come.
    fn watch(&self, stream: &mut Stream, namespace: &str, query: &str) -> io::Result<()> {
        let after = query.split('&').find_map(|it| it.strip_prefix("resourceVersion="));
        let mut after: u64 = after.and_then(|it| it.parse().ok()).unwrap_or(0);
        write!(stream.get_mut(), "HTTP/1.1 200 OK\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n")?;
        stream.get_mut().flush()?;
        loop {
            let mut contents = self.contents.lock().unwrap();
            while contents.events.iter().all(|(at, ..)| *at <= after) {
                contents = self.changed.wait(contents).unwrap();
            }
            let new: Vec<_> =
                contents.events.iter().filter(|(at, ..)| after < *at).cloned().collect();
            drop(contents);
            for (at, kind, it) in new {
                after = at;
                if namespace.is_empty() || it["metadata"]["namespace"] == namespace {
                    let text = format!("{}\n", json!({"type": kind, "object": it}));
                    write!(stream.get_mut(), "{:x}\r\n{text}\r\n", text.len())?;
                    stream.get_mut().flush()?;
                }
            }
        }
    }

    /// Sends until nobody takes any more.
    fn endless(&self, stream: &mut Stream) -> io::Result<()> {
        let piece = vec![b'x'; PIECE];
        write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            let out = stream.get_mut();
            write!(out, "{PIECE:x}\r\n")?;
            out.write_all(&piece)?;
            out.write_all(b"\r\n")?;
            out.flush()?;
            self.sent.fetch_add(PIECE, Ordering::SeqCst);
        }
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

fn send(stream: &mut Stream, status: &str, headers: &str, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    let out = stream.get_mut();
    write!(out, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())?;
    out.flush()
}

/// The body, whole; sent in pieces or not.
fn body(stream: &mut Stream, seen: &Seen) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if seen.all("transfer-encoding") == ["chunked"] {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let begin = body.len();
            body.resize(begin + size, 0);
            stream.read_exact(&mut body[begin..])?;
            stream.read_line(&mut line)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = seen.all("content-length").first().and_then(|it| it.parse().ok()).unwrap_or(0);
    body.resize(length, 0);
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// Changes the protocol: each line comes back.
fn echo(stream: &mut Stream) -> io::Result<()> {
    write!(
        stream.get_mut(),
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n"
    )?;
    stream.get_mut().flush()?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        write!(stream.get_mut(), "again {line}")?;
        stream.get_mut().flush()?;
    }
}

fn missing(name: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
        "code": 404, "message": format!("flunders.{GROUP} {name:?} not found"),
    })
}

const VERBS: [&str; 6] = ["create", "delete", "deletecollection", "get", "list", "watch"];

fn resources() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"),
        "resources": [{
            "name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
            "shortNames": ["fl"], "verbs": VERBS,
        }],
    })
}

fn aggregated() -> Value {
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": [{"metadata": {"name": GROUP}, "versions": [{
            "version": VERSION, "freshness": "Current", "resources": [{
                "resource": "flunders", "singularResource": "flunder", "scope": "Namespaced",
                "responseKind": {"group": "", "version": "", "kind": "Flunder"},
                "shortNames": ["fl"], "verbs": VERBS,
            }],
        }]}],
    })
}

fn kind() -> Value {
    json!({"group": GROUP, "version": VERSION, "kind": "Flunder"})
}

fn schema() -> Value {
    json!({
        "type": "object", "description": "Flunder is what this server has.",
        "x-kubernetes-group-version-kind": [kind()],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": {
                "reference": {"type": "string", "description": "What it refers to."},
            }},
        },
    })
}

fn openapi_v3() -> Value {
    let path = format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/flunders");
    let parameter = json!({"name": "fieldValidation", "in": "query", "schema": {"type": "string"}});
    json!({
        "openapi": "3.0.0", "info": {"title": "extension", "version": "1"},
        "paths": {path: {"post": {
            "x-kubernetes-group-version-kind": kind(), "x-kubernetes-action": "post",
            "parameters": [parameter], "responses": {"200": {"description": "OK"}},
        }}},
        "components": {"schemas": {"com.example.wardle.v1.Flunder": schema()}},
    })
}

fn openapi_v2() -> Value {
    let path = format!("/apis/{GROUP}/{VERSION}/namespaces/{{namespace}}/flunders");
    json!({
        "swagger": "2.0", "info": {"title": "extension", "version": "1"},
        "paths": {path: {"post": {"x-kubernetes-group-version-kind": kind()}}},
        "definitions": {"com.example.wardle.v1.Flunder": schema()},
    })
}
