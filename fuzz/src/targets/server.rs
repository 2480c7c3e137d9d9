//! Whole requests, to a server in this process: every path, option, header and body.
//!
//! Whatever is sent is answered in time, with a status that says whose fault it is, and a body
//! that says the same. All writes are dry, so that no request depends on those before it.

use std::{cell::RefCell, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use insula_api::names::TenantName;
use insula_apiserver::{
    Server,
    identity::{Identity, MASTERS},
    tokens::{API_AUDIENCE, Bound, Claims, Keys, Kubernetes},
};
use serde_json::Value;

use crate::input;

/// What is there before the first request: a path to create it at, and it.
const OBJECTS: &str = include_str!("server/objects.txt");
/// Where in a request a good continue token is put.
const TOKEN: &str = "@TOKEN@";
/// Where in a header a signed token is put.
const SIGNED: &str = "@SIGNED@";
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);

/// A server of its own for each thread.
struct World {
    tokio: tokio::runtime::Runtime,
    server: Arc<Server>,
    /// Continues a list.
    token: String,
    /// Signed by a key of ours, for an account that is not there.
    signed: String,
    _dir: tempfile::TempDir,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// What was answered.
struct Answer {
    code: u16,
    media_type: String,
    /// None of what goes on.
    body: Option<Bytes>,
}

impl World {
    fn start() -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let tokio = tokio.expect("a runtime");
        // What only memory holds is quickly kept.
        let shared = std::path::Path::new("/dev/shm");
        let parent = if shared.is_dir() { shared.into() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("insula-fuzz").tempdir_in(parent);
        let dir = dir.expect("a directory");
        let server = tokio.block_on(Server::alone(dir.path())).expect("a server");
        let signed = signed(&dir.path().join("sa.key"));
        let mut world = Self { tokio, server, token: String::new(), signed, _dir: dir };
        for object in OBJECTS.split("\n---\n") {
            let (path, body) = object.split_once('\n').expect("a path and an object");
            let request = Request::post(path).body(Full::new(Bytes::from(body.to_owned())));
            let answer = world.ask(request.expect("a request"));
            let said = answer.body.unwrap_or_default();
            assert_eq!(answer.code, 201, "{path}: {}", String::from_utf8_lossy(&said));
        }
        let list = Request::get("/api/v1/namespaces?limit=1").body(Full::default());
        let list = world.ask(list.expect("a request")).body.unwrap_or_default();
        let list: Value = serde_json::from_slice(&list).expect("a list");
        list["metadata"]["continue"].as_str().expect("a token").clone_into(&mut world.token);
        world
    }

    fn ask(&self, request: Request<Full<Bytes>>) -> Answer {
        self.tokio.block_on(async {
            let caller = Identity::new(TenantName::system(), "tester", &[MASTERS]);
            let answered = self.server.handle_trusted(request, caller);
            let answered = tokio::time::timeout(ANSWER, answered).await;
            let (head, body) = answered.expect("an answer in time").into_parts();
            let media_type = head.headers.get(header::CONTENT_TYPE);
            let media_type = media_type.and_then(|it| it.to_str().ok()).unwrap_or_default();
            let body = match body.size_hint().exact() {
                Some(_) => Some(body.collect().await.expect("a whole body").to_bytes()),
                None => None,
            };
            Answer { code: head.status.as_u16(), media_type: media_type.to_owned(), body }
        })
    }
}

/// A token that a server with these keys would sign.
fn signed(keys: &std::path::Path) -> String {
    let kubernetes = Kubernetes {
        tenant: TenantName::parse("acme").expect("a tenant"),
        namespace: "default".into(),
        serviceaccount: Bound { name: "default".into(), uid: "gone".into() },
        pod: None,
        secret: None,
        node: None,
    };
    let begin = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let begin = i64::try_from(begin).expect("a time");
    let claims = Claims::new(kubernetes, vec![API_AUDIENCE.into()], begin, 86_400);
    let keys = Keys::open_or_create(keys).expect("keys");
    keys.sign(&claims).expect("a token")
}

/// A header by which somebody would prove who they are, and the tenant that is asked.
pub(super) fn tokens(bytes: &[u8]) {
    let [header, tenant] = input::parts(bytes);
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(World::start);
        let path = match input::text(tenant).map(TenantName::parse) {
            Some(Ok(tenant)) => format!("/tenants/{tenant}/api/v1/namespaces"),
            _ => "/api/v1/namespaces".to_owned(),
        };
        let header = match input::text(header) {
            Some(text) => text.replace(SIGNED, &world.signed).into_bytes(),
            None => header.to_vec(),
        };
        let Ok(value) = header::HeaderValue::from_bytes(&header) else { return };
        let request = Request::get(path).header(header::AUTHORIZATION, value);
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let answered = world.tokio.block_on(async {
            tokio::time::timeout(ANSWER, world.server.handle_unknown(request)).await
        });
        let code = answered.expect("an answer in time").status().as_u16();
        // Nobody is let in: there is nobody whom a token could be of. Elsewhere than in its tenant
        // that is not looked at.
        let is_signed = header.windows(world.signed.len()).any(|it| it == world.signed.as_bytes());
        assert!(code == 401 || code == 403 && is_signed, "{code}");
    });
}

/// The request that a text is: a line with method and path, headers, an empty line, a body.
fn request(bytes: &[u8], token: &str) -> Option<Request<Full<Bytes>>> {
    let end = bytes.windows(2).position(|it| it == b"\n\n").unwrap_or(bytes.len());
    let head = input::text(&bytes[..end])?.replace(TOKEN, token);
    let body = Bytes::copy_from_slice(bytes.get(end + 2..).unwrap_or_default());
    let mut lines = head.lines();
    let (method, uri) = lines.next()?.split_once(' ')?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let uri = match method == Method::GET || method == Method::HEAD {
        true => uri.to_owned(),
        false => match uri.split_once('?') {
            Some((path, query)) => format!("{path}?dryRun=All&{query}"),
            None => format!("{uri}?dryRun=All"),
        },
    };
    let uri: Uri = uri.parse().ok()?;
    let mut request = Request::builder().method(method).uri(uri);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        request = request.header(name.trim(), value.trim());
    }
    request.body(Full::new(body)).ok()
}

/// A request.
pub(super) fn requests(bytes: &[u8]) {
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(World::start);
        let Some(request) = request(bytes, &world.token) else { return };
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        let Answer { code, media_type, body } = world.ask(request);
        assert!(code < 500 || body.is_some(), "{code} for {method} {path}");
        let is_json = media_type.split(';').next() == Some("application/json");
        let Some(body) = body.filter(|it| is_json && !it.is_empty()) else { return };
        let parsed: Result<Value, _> = serde_json::from_slice(&body);
        let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {body:?}"));
        // Who is asked in turn may not be there; and some of what a client does wrong has a code
        // of the server's, but no reason, as upstream has it.
        let is_theirs = [502, 503, 504].contains(&code) || parsed["reason"].is_null();
        assert!(code < 500 || is_theirs, "{code} for {method} {path}: {parsed}");
        if 400 <= code && parsed["kind"] == "Status" {
            assert_eq!(parsed["code"], code, "{parsed}");
            assert_eq!(parsed["status"], "Failure", "{parsed}");
        }
    });
}
