//! From an admitted request to its answer. One set of handlers for every resource.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use insula_api::{object, path};
use insula_partition::partitions::META;
use serde_json::{Value, json};

use crate::{
    Server, answer, backup,
    body::{Body, BodyError, channel, full},
    call::Call,
    compress, custom, delete,
    discovery::{AGGREGATED, Discovery},
    error::{ApiError, Result},
    forms::Shown,
    forward::{self, Forwarded, Patience},
    gate::{Admitted, Peer},
    identity::Identity,
    node_proxy, openapi,
    passport::{self, Line},
    read,
    registry::Whose,
    request::{Encoding, ListOptions, MAX_BODY, Query, deadline},
    subresources,
    table::IncludeObject,
    version,
    watch::{self, Watch},
    websocket::{self, Messages},
    write,
};

/// How much of an unwanted body is read before it is answered, in bytes.
const UNWANTED: usize = 256 * 1024;

impl Server {
    /// Answers a request of a caller in the same process.
    pub async fn handle_trusted<B>(
        self: &Arc<Self>,
        request: Request<B>,
        caller: Identity,
    ) -> Response<Body>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BodyError>,
    {
        self.handle(request, Peer { trusted: Some(caller), ..Peer::default() }).await
    }

    /// Answers any request.
    pub(crate) async fn handle<B>(
        self: &Arc<Self>,
        mut request: Request<B>,
        peer: Peer,
    ) -> Response<Body>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BodyError>,
    {
        let upgrade = request
            .headers()
            .contains_key(header::UPGRADE)
            .then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        let started = tokio::time::Instant::now();
        let mut label = ("", String::new());
        let answered = self.answer(&head, body, &peer, upgrade, &mut label).await;
        let response = match answered {
            Ok(response) => response,
            Err(error) => answer::error_for(&error, &head.headers, head.uri.query()),
        };
        let response = compress::compressed(&head.headers, response).await;
        let code = response.status().as_u16();
        self.metrics.record(label.0, &label.1, code, started.elapsed());
        tracing::debug!(method = %head.method, path = head.uri.path(), code, elapsed = ?started.elapsed(), "answered");
        response
    }

    /// Answers from here or through another server; again, if what it is about moves meanwhile.
    async fn answer<B>(
        self: &Arc<Self>,
        head: &http::request::Parts,
        body: B,
        peer: &Peer,
        mut upgrade: Option<hyper::upgrade::OnUpgrade>,
        label: &mut (&'static str, String),
    ) -> Result<Response<Body>>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BodyError>,
    {
        if self.shutdown.is_cancelled() && head.headers.contains_key(passport::HEADER) {
            // Others will do it.
            return Ok(forward::misdirected(self.partitions.map().epoch()));
        }
        let mut body = Payload::Coming(Some(body));
        let mut patience: Option<Patience> = None;
        loop {
            let tried = self.once(head, &mut body, peer, &mut upgrade, label).await;
            match tried {
                Ok(Forwarded::Answer(response)) => return Ok(response),
                Ok(Forwarded::Again) => (),
                Err(error) if error.is_moving => (),
                Err(error) => {
                    body.drain().await;
                    return Err(error);
                }
            }
            patience.get_or_insert_with(|| Patience::new(&self.partitions)).wait().await?;
        }
    }

    async fn once<B>(
        self: &Arc<Self>,
        head: &http::request::Parts,
        body: &mut Payload<B>,
        peer: &Peer,
        upgrade: &mut Option<hyper::upgrade::OnUpgrade>,
        label: &mut (&'static str, String),
    ) -> Result<Forwarded>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BodyError>,
    {
        let target = path::parse(head.uri.path())?;
        let query = Query::parse(head.uri.query());
        let line = Line { method: &head.method, uri: &head.uri };
        let answer = match self.admit(line, target, query, &head.headers, peer).await? {
            Admitted::Elsewhere { caller, place } => {
                *label = ("forward", place.partition.as_ref().to_owned());
                // What upgrades has no body; waiting for its end would be waiting for its client.
                let bytes = match upgrade.is_some() {
                    true => Bytes::new(),
                    false => body.bytes().await?,
                };
                return self.forward(head, &bytes, upgrade, &caller, &place).await;
            }
            Admitted::Misdirected => Ok(forward::misdirected(self.partitions.map().epoch())),
            Admitted::Other { identity, whose, path } => {
                *label = ("get", "nonresource".into());
                self.other(head, identity.as_ref(), &whose, &path).await
            }
            Admitted::Resource(call) => {
                *label = (call.verb, call.served.resource.name.clone());
                let warning = call.served.custom().and_then(|it| it.version.warning.clone());
                if custom::holds_definitions(&call.served)
                    && let Some(tenant) = call.whose.tenant()
                {
                    // Whoever looks at definitions has those looked after that wait.
                    self.customs.of(self, tenant).await?;
                }
                let streams =
                    matches!(&*call.path.subresource, "log" | "exec" | "attach" | "portforward");
                let answer = if streams {
                    node_proxy::serve(self, &call, head.method.clone(), upgrade).await
                } else if call.verb == "watch" {
                    self.watch(*call, upgrade).await
                } else {
                    let work = async {
                        let body = body.bytes().await?;
                        self.resource_answer(&call, &head.method, &body).await
                    };
                    let limit = deadline(&call.query)?;
                    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                        let why = "Timeout: request did not complete within the allotted timeout";
                        Err(ApiError::timeout(why, 1))
                    })
                };
                answer.map(|mut answer| {
                    answer::warn(&mut answer, warning.as_slice());
                    answer
                })
            }
        };
        answer.map(Forwarded::Answer)
    }

    async fn resource_answer(
        &self,
        call: &Call,
        method: &Method,
        body: &[u8],
    ) -> Result<Response<Body>> {
        let resource = &call.served.resource;
        if !call.path.subresource.is_empty() {
            return self.subresource(call, method, body).await;
        }
        if !resource.has_verb(call.verb) {
            return Err(ApiError::method_not_allowed());
        }
        match call.verb {
            "create" if resource.name == "bindings" && resource.group.is_empty() => {
                let status = subresources::bind_named(self, call, body).await?;
                Ok(answer::value(StatusCode::CREATED, &status, false))
            }
            "create" if !resource.is_stored() => {
                let review = subresources::review(self, call, body).await?;
                answer::made(call, StatusCode::CREATED, &review)
            }
            "create" => written(call, write::create(self, call, body).await?),
            "get" => {
                let name = &call.path.name;
                let at = read::read_at(call.query.get("resourceVersion").unwrap_or_default())?;
                let (_, store) =
                    call.served.place(&self.partitions, call.tenant()?, &call.namespace(), name);
                let entry = read::get(&call.served, &*store, &call.key(name)?, name, at).await?;
                let entry = self.show_entry(&call.served, entry).await?;
                answer::object(call, StatusCode::OK, &for_caller(call, &entry.value))
            }
            "list" => {
                let options = ListOptions::parse(&call.query, resource)?;
                let namespace = call.namespace();
                let places = call.served.places(&self.partitions, &call.whose, &namespace);
                let mut page =
                    read::list(self, &call.served, &places, &call.whose, &namespace, &options)
                        .await?;
                for (_, entry) in &mut page.entries {
                    entry.value = for_caller(call, &entry.value);
                }
                answer::list(call, &page)
            }
            "update" => written(call, write::update(self, call, body).await?),
            "patch" => written(call, write::patch(self, call, body).await?),
            "delete" => {
                let options = delete::Options::parse(call, body)?;
                match delete::delete(self, call, &options).await? {
                    delete::Deleted::Object(json) => {
                        let shown = self.show_bytes(&call.served, json).await?;
                        answer::object(call, StatusCode::OK, &shown)
                    }
                    delete::Deleted::Status(status) => {
                        Ok(answer::status(StatusCode::OK, &status, call.accept))
                    }
                }
            }
            "deletecollection" => {
                let options = delete::Options::parse(call, body)?;
                let list = delete::delete_collection(self, call, &options).await?;
                answer::made(call, StatusCode::OK, &list)
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn subresource(
        &self,
        call: &Call,
        method: &Method,
        body: &[u8],
    ) -> Result<Response<Body>> {
        let resource = &call.served.resource;
        let served = resource.subresource(&call.path.subresource);
        let served = served.filter(|it| it.verbs.iter().any(|verb| verb == call.verb));
        let is_part = served.is_some_and(|it| it.kind == resource.gvk());
        match (&*call.path.subresource, method.as_str()) {
            _ if served.is_none() => Err(ApiError::method_not_allowed()),
            (_, "GET") if is_part => {
                let mut whole = call.clone();
                whole.path.subresource = String::new();
                Box::pin(self.resource_answer(&whole, method, body)).await
            }
            (_, "PUT") if is_part => written(call, write::update(self, call, body).await?),
            (_, "PATCH") if is_part => written(call, write::patch(self, call, body).await?),
            ("scale", "GET") => {
                let scale = subresources::get_scale(self, call).await?;
                answer::made(call, StatusCode::OK, &scale)
            }
            ("scale", "PUT" | "PATCH") => {
                let put = *method == Method::PUT;
                let scale = subresources::write_scale(self, call, body, put).await?;
                answer::made(call, StatusCode::OK, &scale)
            }
            ("binding", "POST") => {
                let status = subresources::bind(self, call, body).await?;
                Ok(answer::status(StatusCode::CREATED, &status, call.accept))
            }
            ("eviction", "POST") => {
                let status = subresources::evict(self, call, body).await?;
                Ok(answer::value(StatusCode::CREATED, &status, false))
            }
            ("token", "POST") => {
                let token = subresources::token(self, call, body).await?;
                answer::made(call, StatusCode::CREATED, &token)
            }
            (sub, _) if !is_part => {
                let mut error = ApiError::method_not_allowed();
                error.message = format!("subresource {sub} is not served yet by this server");
                Err(error)
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn watch(
        self: &Arc<Self>,
        mut call: Call,
        upgrade: &mut Option<hyper::upgrade::OnUpgrade>,
    ) -> Result<Response<Body>> {
        if !call.path.name.is_empty() {
            let name = format!("metadata.name={}", call.path.name);
            call.query.set("fieldSelector", &name);
            call.query.set("watch", "true");
            call.path.name = String::new();
        }
        let options = ListOptions::parse(&call.query, &call.served.resource)?;
        let include = IncludeObject::parse(call.query.get("includeObject"))?;
        let shown = Shown { served: call.served.clone(), accept: call.accept, include };
        let namespace = call.namespace();
        let places = call.served.places(&self.partitions, &call.whose, &namespace);
        let protobuf = call.accept.encoding == Encoding::Protobuf;
        let started =
            Watch::start(self.clone(), shown, &places, &call.whose, &namespace, options).await;
        let body = match started {
            Ok(watch) => {
                let (sender, body) = channel();
                self.tasks.spawn(watch.run(sender));
                body
            }
            // History that is gone is told inside the stream.
            Err(error) if error.reason == "Expired" => {
                full(watch::error_event(&error, call.accept.encoding))
            }
            Err(error) => return Err(error),
        };
        if websocket::is_asked_for(&call.headers)
            && let Some(upgrade) = upgrade.take()
        {
            let messages = if protobuf { Messages::Frames } else { Messages::Lines };
            return websocket::serve(self, &call.headers, upgrade, body, messages);
        }
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        let media_type = match protobuf {
            true => HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch"),
            false => HeaderValue::from_static(answer::JSON),
        };
        headers.insert(header::CONTENT_TYPE, media_type);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }

    /// Everything that is not a resource.
    async fn other(
        &self,
        head: &http::request::Parts,
        identity: Option<&Identity>,
        whose: &Whose,
        path: &str,
    ) -> Result<Response<Body>> {
        let text = |text: String| {
            Ok(answer::bytes(StatusCode::OK, text.into(), "text/plain; charset=utf-8"))
        };
        let json = |value: &Value| Ok(answer::value(StatusCode::OK, value, false));
        if head.method != Method::GET && head.method != Method::HEAD {
            return Err(ApiError::method_not_allowed());
        }
        let platform = identity.is_some_and(|it| it.tenant.is_system())
            && !matches!(whose, Whose::One(tenant) if !tenant.is_system());
        let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
        let customs = match (parts.first(), whose.tenant()) {
            (Some(&("apis" | "openapi")), Some(tenant)) => self.customs.of(self, tenant).await?,
            _ => Arc::default(),
        };
        // Made only by the paths that show it.
        let discovery = || Discovery::new(&self.registry, &customs, platform);
        let aggregated = head
            .headers
            .get(header::ACCEPT)
            .and_then(|it| it.to_str().ok())
            .is_some_and(|it| it.contains("as=APIGroupDiscoveryList") && it.contains("v=v2;"));
        match parts.as_slice() {
            ["healthz" | "livez" | "readyz", ..] => self.health(head, parts[0]),
            parts if parts == backup::PATH && platform => Ok(self.backup()),
            ["version"] => json(&version::document()),
            ["metrics"] => text(self.metrics.text(&self.partitions)),
            ["api"] if aggregated => self.aggregated(head, &discovery(), true),
            ["apis"] if aggregated => self.aggregated(head, &discovery(), false),
            ["api"] => json(&discovery().core_versions(&self.advertise)),
            ["apis"] => json(&discovery().group_list()),
            ["apis", group] => match discovery().one_group(group).filter(|_| !group.is_empty()) {
                Some(document) => json(&document),
                None => Err(ApiError::unknown_resource()),
            },
            ["api", version] => match discovery().resource_list("", version) {
                Some(document) => json(&document),
                None => Err(ApiError::unknown_resource()),
            },
            ["apis", group, version] => match discovery().resource_list(group, version) {
                Some(document) => json(&document),
                None => Err(ApiError::unknown_resource()),
            },
            ["openapi", "v2"] => self.openapi_v2(head, &customs, platform),
            ["openapi", "v3"] => json(&openapi::index(&self.registry, &customs, platform)),
            ["openapi", "v3", rest @ ..] => {
                match openapi::document(&self.registry, &customs, &rest.join("/")) {
                    Some(document) => {
                        let mut response = answer::bytes(
                            StatusCode::OK,
                            document.body.clone(),
                            "application/json",
                        );
                        if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", document.hash)) {
                            response.headers_mut().insert(header::ETAG, tag);
                        }
                        Ok(response)
                    }
                    None => Err(ApiError::unknown_resource()),
                }
            }
            [".well-known", "openid-configuration"] => json(&self.keys.discovery()),
            ["openid", "v1", "jwks"] => json(&self.keys.jwks()),
            [] => {
                let paths = [
                    "/api",
                    "/api/v1",
                    "/apis",
                    "/healthz",
                    "/livez",
                    "/metrics",
                    "/openapi/v2",
                    "/openapi/v3",
                    "/readyz",
                    "/version",
                ];
                json(&json!({ "paths": paths }))
            }
            _ => {
                let mut response = answer::bytes(
                    StatusCode::NOT_FOUND,
                    "404 page not found\n".into(),
                    "text/plain; charset=utf-8",
                );
                *response.status_mut() = StatusCode::NOT_FOUND;
                Ok(response)
            }
        }
    }

    fn openapi_v2(
        &self,
        head: &http::request::Parts,
        customs: &custom::OfTenant,
        platform: bool,
    ) -> Result<Response<Body>> {
        let accept = head.headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
        let is_json = |it: &str| it.is_empty() || it.contains("json") || it.contains("*/*");
        if !is_json(accept.unwrap_or_default()) {
            return Err(ApiError::not_acceptable(false));
        }
        let tag = openapi::v2::tag(&self.registry, customs, platform);
        let known = head.headers.get(header::IF_NONE_MATCH).and_then(|it| it.to_str().ok());
        let mut response = match known == Some(&tag) {
            true => answer::bytes(StatusCode::NOT_MODIFIED, Bytes::new(), "application/json"),
            false => {
                let body = openapi::v2::document(&self.registry, customs, platform);
                answer::bytes(StatusCode::OK, body, "application/json")
            }
        };
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        Ok(response)
    }

    fn aggregated(
        &self,
        head: &http::request::Parts,
        discovery: &Discovery<'_>,
        core: bool,
    ) -> Result<Response<Body>> {
        let text = discovery.aggregated(core).to_string();
        let tag = format!("\"{:X}\"", xxhash_rust::xxh3::xxh3_128(text.as_bytes()));
        let known = head.headers.get(header::IF_NONE_MATCH).and_then(|it| it.to_str().ok());
        let mut response = match known == Some(&tag) {
            true => answer::bytes(StatusCode::NOT_MODIFIED, Bytes::new(), AGGREGATED),
            false => answer::bytes(StatusCode::OK, text.into(), AGGREGATED),
        };
        let headers = response.headers_mut();
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        Ok(response)
    }

    /// Health: each partition that is here must take writes, and the map must be known.
    fn health(&self, head: &http::request::Parts, which: &str) -> Result<Response<Body>> {
        let mut lines = vec!["[+]ping ok".to_owned()];
        let mut failed = false;
        if which != "livez" {
            // What others have is theirs to tell.
            let names = self.partitions.names();
            let here = names.iter().map(String::as_str).filter(|it| self.partitions.is_local(it));
            for name in here.chain([META]) {
                let broken = self.partitions.store(name).and_then(|it| it.stats().unhealthy);
                failed |= broken.is_some();
                lines.push(match broken {
                    None => format!("[+]partition-{name} ok"),
                    Some(_) => format!("[-]partition-{name} failed: reason withheld"),
                });
            }
            if self.shutdown.is_cancelled() {
                failed = true;
                lines.push("[-]shutdown failed: process is shutting down".into());
            }
        }
        let verbose = head.uri.query().is_some_and(|it| it.contains("verbose"));
        let (code, last) = match failed {
            false => (StatusCode::OK, format!("{which} check passed\n")),
            true => (StatusCode::INTERNAL_SERVER_ERROR, format!("{which} check failed\n")),
        };
        let text = match (verbose, failed) {
            (false, false) => "ok".to_owned(),
            _ => format!("{}\n{last}", lines.join("\n")),
        };
        Ok(answer::bytes(code, text.into(), "text/plain; charset=utf-8"))
    }
}

fn written(call: &Call, written: write::Written) -> Result<Response<Body>> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = answer::object(call, code, &written.entry.value)?;
    answer::warn(&mut response, &written.warnings);
    Ok(response)
}

/// What of an object its reader may see: tenants see of nodes only what placing pods needs.
fn for_caller(call: &Call, json: &Bytes) -> Bytes {
    let resource = &call.served.resource;
    if call.identity.tenant.is_system() || resource.name != "nodes" || !resource.group.is_empty() {
        return json.clone();
    }
    let Ok(mut node) = serde_json::from_slice::<Value>(json) else { return Bytes::new() };
    if let Some(status) = node.get_mut("status").and_then(Value::as_object_mut) {
        status
            .retain(|field, _| matches!(field.as_str(), "conditions" | "nodeInfo" | "allocatable"));
    }
    if let Some(spec) = node.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|field, _| matches!(field.as_str(), "taints" | "unschedulable"));
    }
    let metadata = object::metadata_mut(&mut node);
    metadata.remove("annotations");
    metadata.remove("managedFields");
    node.to_string().into()
}

/// A request's body: taken once, and then at hand for every further try.
enum Payload<B> {
    Coming(Option<B>),
    Here(Bytes),
}

impl<B> Payload<B>
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BodyError>,
{
    async fn bytes(&mut self) -> Result<Bytes> {
        let bytes = match self {
            Self::Here(bytes) => return Ok(bytes.clone()),
            Self::Coming(body) => match body.take() {
                Some(body) => collect(body).await?,
                None => return Err(ApiError::bad_request("the request body was not sent whole")),
            },
        };
        *self = Self::Here(bytes.clone());
        Ok(bytes)
    }

    /// Takes what is left of a body that nobody wants: some clients see a broken stream where
    /// they are answered before they have sent all.
    async fn drain(&mut self) {
        if let Self::Coming(body) = self
            && let Some(body) = body.take()
        {
            drain(body).await;
        }
    }
}

/// Takes a body that nobody wants, if it is short and quick.
pub(crate) async fn drain<B>(body: B)
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BodyError>,
{
    let mut body = std::pin::pin!(body);
    let mut left = UNWANTED;
    let taking = async {
        while 0 < left
            && let Some(Ok(frame)) = body.frame().await
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.remaining()));
        }
    };
    // Whoever sends more, or nothing, gets the answer all the same.
    let _ = tokio::time::timeout(Duration::from_millis(200), taking).await;
}

/// The whole body, up to the limit.
async fn collect<B>(body: B) -> Result<Bytes>
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BodyError>,
{
    let mut body = std::pin::pin!(body);
    let mut out = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("unable to read the request body: {}", error.into()))
        })?;
        if let Ok(mut data) = frame.into_data() {
            if MAX_BODY < out.len() + data.remaining() {
                return Err(ApiError::too_large(MAX_BODY));
            }
            out.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
    }
    Ok(out.freeze())
}
