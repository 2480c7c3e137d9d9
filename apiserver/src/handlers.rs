//! From an admitted request to its answer. One set of handlers for every resource.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use insula_api::path;

use crate::{
    Server, admission,
    aggregation::delegate,
    answer,
    audit::{self, Trail},
    body::{self, Body, BodyError, full, penned},
    call::Call,
    compress::{self, Whole},
    custom, delete,
    ending::Open,
    epochs,
    error::{ApiError, Result},
    fair::{InTurn, Pass, Pieces},
    feed,
    finishing::Finishing,
    forms::Shown,
    forward::{self, Forwarded, Patience},
    gate::{Admitted, Peer},
    granted,
    identity::Identity,
    measured, node_proxy,
    nonresource::Asked,
    passport::{self, Line},
    payload::Payload,
    proxy, read,
    record::Record,
    request::{Encoding, ListOptions, Query, check_write, deadline},
    strategy, subresources,
    table::IncludeObject,
    watch::{self, Watch},
    websocket::{self, Messages},
    write,
};

impl Server {
    /// Answers a request of a caller in the same process.
    pub async fn handle_trusted<B>(
        self: &Arc<Self>,
        request: Request<B>,
        caller: Identity,
    ) -> Response<Body>
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let peer = Peer { trusted: Some(caller), ..Peer::default() };
        self.handle(request.map(Payload::of), &peer).await
    }

    /// Answers a request of somebody in the same process who has nothing to show but what is in
    /// the request itself.
    pub async fn handle_unknown<B>(self: &Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        self.handle(request.map(Payload::of), &Peer::default()).await
    }

    /// Answers any request. Boxed here, so that all that follows is compiled here, and once.
    pub(crate) fn handle<'a>(
        self: &'a Arc<Self>,
        request: Request<Payload>,
        peer: &'a Peer,
    ) -> BoxFuture<'a, Response<Body>> {
        Box::pin(self.handled(request, peer))
    }

    async fn handled(
        self: &Arc<Self>,
        mut request: Request<Payload>,
        peer: &Peer,
    ) -> Response<Body> {
        // What upgrades has no body; what has one goes on as it is, as if it had not asked.
        let upgrades = forward::asks_to_upgrade(request.headers()) && request.body().is_none();
        let upgrade = upgrades.then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        let mut open = Open::new(self.clone(), Record::new(&head, peer.address));
        // Another server that this goes on to is to write of the same.
        if let Ok(id) = HeaderValue::from_str(&open.record.id) {
            head.headers.insert(audit::ID, id);
        }
        let answered = self.answer(&head, body, peer, upgrade, &mut open.record).await;
        let mut response = match answered {
            Ok(response) => response,
            Err(error) => {
                if error.reason == epochs::SUPERSEDED {
                    self.metrics.superseded();
                }
                answer::error_for(&error, &head.headers, head.uri.query())
            }
        };
        open.record.told.tell(response.headers_mut());
        if let (Some(pass), Some(whole)) = (&open.record.pass, response.extensions().get::<Whole>())
        {
            pass.learn(whole.0.len());
        }
        let account = open.record.pass.as_ref().and_then(Pass::account).cloned();
        tracing::debug!(method = %head.method, path = head.uri.path(), code = response.status().as_u16(), elapsed = ?open.record.started.elapsed(), "answered");
        let response = open.answered(response);
        let to = (&self.held, &*self.fair, account.as_ref());
        let response = compress::compressed(to, &head.headers, response).await;
        match account {
            Some(account) if !body::is_short(response.body()) => {
                response.map(|body| self.fair.paced(account, body))
            }
            Some(account) => {
                let exact = http_body::Body::size_hint(response.body()).exact();
                account.used.sent(exact.and_then(|it| usize::try_from(it).ok()).unwrap_or(0));
                response
            }
            None => response,
        }
    }

    /// Answers from here or through another server; again, if what it is about moves meanwhile.
    async fn answer(
        self: &Arc<Self>,
        head: &http::request::Parts,
        mut body: Payload,
        peer: &Peer,
        mut upgrade: Option<hyper::upgrade::OnUpgrade>,
        record: &mut Record,
    ) -> Result<Response<Body>> {
        if self.shutdown.is_cancelled() && head.headers.contains_key(passport::HEADER) {
            // Others will do it.
            return Ok(forward::misdirected(self.partitions.map().epoch()));
        }
        let mut patience: Option<Patience> = None;
        loop {
            let tried = self.once(head, &mut body, peer, &mut upgrade, record).await;
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

    async fn once(
        self: &Arc<Self>,
        head: &http::request::Parts,
        body: &mut Payload,
        peer: &Peer,
        upgrade: &mut Option<hyper::upgrade::OnUpgrade>,
        record: &mut Record,
    ) -> Result<Forwarded> {
        // Where it was a moment ago says nothing of where it is now.
        record.is_elsewhere = false;
        record.pass = None;
        let query = Query::parse(head.uri.query());
        let limit = deadline(&query);
        let line = Line { method: &head.method, uri: &head.uri };
        let admitted = match path::parse(head.uri.path()) {
            Ok(target) => self.admit(line, target, query, &head.headers, peer, record).await,
            Err(why) => Err(Box::pin(self.astray(line, why, &head.headers, peer, record)).await),
        };
        if let (Err(error), Some(audit)) = (&admitted, &self.audit)
            && !error.is_moving
        {
            audit.received(record);
        }
        let answer = match admitted? {
            Admitted::Elsewhere { caller, place } => {
                record.is_elsewhere = true;
                let _sent_on = match caller.tenant().is_system() {
                    true => None,
                    false => Some(self.fair.sent_on(caller.tenant())?),
                };
                let bytes = within(limit?, body.bytes()).await?;
                let address = record.address;
                let sent = self.forward(head, &bytes, upgrade, &caller, address, &place);
                return Box::pin(sent).await;
            }
            Admitted::Misdirected => {
                record.is_elsewhere = true;
                Ok(forward::misdirected(self.partitions.map().epoch()))
            }
            Admitted::Other { identity, whose, path } => {
                record.was_let_in = true;
                record.path.clone_from(&path);
                if let Some(audit) = &self.audit {
                    audit.received(record);
                }
                let identity = identity.as_ref();
                if feed::is_asked(&head.method, &path) {
                    record.labels.verb = "WATCH";
                    record.begins_to_last(&self.fair)?;
                    let turns = self.fair.turns(record.pass.as_ref());
                    let opened = Box::pin(feed::serve(self, identity, body.stream()?));
                    let answer = InTurn::new(turns, opened).await;
                    if let Some(pass) = &mut record.pass {
                        pass.give_seat_back();
                    }
                    return answer.map(Forwarded::Answer);
                }
                let asked = Asked { head, identity, whose: &whose, path: &path };
                let turns = self.fair.turns(record.pass.as_ref());
                InTurn::new(turns, Box::pin(self.other(asked))).await
            }
            Admitted::Delegated(it) => {
                record.delegated(&it, upgrade.is_some());
                record.begins_to_last(&self.fair)?;
                if let Some(audit) = &self.audit {
                    audit.received(record);
                }
                let body = body.stream()?;
                Ok(Box::pin(delegate::serve(self, &it, head, body, upgrade)).await)
            }
            Admitted::Resource(call) => {
                record.admitted(&call);
                record.begins_to_last(&self.fair)?;
                if let Some(audit) = &self.audit {
                    audit.received(record);
                }
                let wants_body = record.trail.as_ref().is_some_and(Trail::wants_body);
                let is_custom = call.served.custom().is_some();
                let warning = match call.served.custom() {
                    Some(custom) => custom.version.warning.clone(),
                    None => {
                        strategy::warnings::of_resource(&call.served.resource).map(str::to_owned)
                    }
                };
                let remarks = call.remarks.clone();
                if custom::holds_definitions(&call.served)
                    && let Some(tenant) = call.whose.tenant()
                {
                    // Whoever looks at definitions has those looked after that wait.
                    self.customs.of(self, tenant).await?;
                }
                let streams =
                    matches!(&*call.path.subresource, "log" | "exec" | "attach" | "portforward");
                let is_proxied = call.path.subresource == "proxy";
                let answer = if streams || is_proxied {
                    match Box::pin(admission::connect(self, &call)).await {
                        Err(error) => Err(error),
                        Ok(()) if is_proxied => {
                            // Taken last: until then it may have to be done all over again.
                            let body = || body.stream();
                            Box::pin(proxy::serve(self, &call, head, body, upgrade)).await
                        }
                        Ok(()) => {
                            Box::pin(node_proxy::serve(self, &call, head.method.clone(), upgrade))
                                .await
                        }
                    }
                } else if call.verb == "watch" {
                    let turns = self.fair.turns(record.pass.as_ref());
                    InTurn::new(turns, Box::pin(self.watch(*call, upgrade))).await
                } else {
                    let _under_way = self.metrics.under_way(&record.labels);
                    let turns = self.fair.turns(record.pass.as_ref());
                    let work = async {
                        let body = body.bytes().await?;
                        if let Some(account) = record.pass.as_ref().and_then(Pass::account) {
                            account.used.received(body.len());
                        }
                        if wants_body {
                            record.body = Some(body.clone());
                        }
                        if matches!(call.verb, "get" | "list") && is_plain(&call) {
                            return self.read(&call).await;
                        }
                        // Who goes away ends the waiting, and not what has begun.
                        let (server, method) = (self.clone(), head.method.clone());
                        Finishing::new(&self.tasks, async move {
                            server.resource_answer(&call, &method, &body).await
                        })
                        .await
                    };
                    // What is handed on as a value has its place twice.
                    within(limit?, InTurn::new(turns, pin!(work))).await
                };
                let is_astray = matches!(&answer, Err(error) if error.is_routing && !is_custom);
                let warning = warning.filter(|_| !is_astray);
                let warnings = remarks.warnings();
                let is_told = warning.is_some() || !warnings.is_empty();
                match answer {
                    // What is refused may have been warned about as well.
                    Err(error) if is_told && !error.is_moving => {
                        Ok(answer::error_for(&error, &head.headers, head.uri.query()))
                    }
                    other => other,
                }
                .map(|mut answer| {
                    answer::warn(&mut answer, &warnings);
                    answer::warn_first(&mut answer, warning);
                    answer
                })
            }
        };
        if record.goes_on()
            && let Some(pass) = &mut record.pass
        {
            pass.give_seat_back();
        }
        answer.map(Forwarded::Answer)
    }

    async fn resource_answer(
        &self,
        call: &Call,
        method: &Method,
        body: &[u8],
    ) -> Result<Response<Body>> {
        let resource = &call.served.resource;
        check_write(&call.query, call.verb)?;
        if !call.path.subresource.is_empty() {
            return Box::pin(self.subresource(call, method, body)).await;
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
                answer::made(call, StatusCode::CREATED, &review).await
            }
            "create" => written(call, write::create(self, call, body).await?),
            "get" | "list" => self.read(call).await,
            "update" => written(call, write::update(self, call, body).await?),
            "patch" => written(call, write::patch(self, call, body).await?),
            "delete" => {
                let options = delete::Options::parse(call, body)?;
                if !options.says_propagation()
                    && let Some(told) = strategy::warnings::of_delete(resource)
                {
                    call.remarks.warn(told);
                }
                let answer = match delete::delete(self, call, &options).await? {
                    delete::Deleted::Object(json) => {
                        let shown = self.show_bytes(&call.served, json).await?;
                        answer::object(call, StatusCode::OK, &shown)?
                    }
                    delete::Deleted::Status(status) => {
                        answer::status(StatusCode::OK, &status, call.accept)
                    }
                };
                Ok(answer)
            }
            // Of one namespace at a time.
            "deletecollection" if resource.is_namespaced() && call.path.namespace.is_empty() => {
                Err(ApiError::method_not_allowed())
            }
            "deletecollection" => {
                let options = delete::Options::parse(call, body)?;
                answer::list(call, &delete::delete_collection(self, call, &options).await?).await
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// Answers a read of an object, or of a list.
    async fn read(&self, call: &Call) -> Result<Response<Body>> {
        let resource = &call.served.resource;
        if measured::is_of_these(&call.served) {
            if call.verb == "list" {
                return answer::list(call, &measured::list(self, call).await?).await;
            }
            return answer::object(call, StatusCode::OK, &measured::get(self, call).await?);
        }
        if call.verb == "list" {
            let options = ListOptions::parse(&call.query, resource)?;
            let namespace = call.namespace();
            let places = call.served.places(&self.partitions, &call.whose, &namespace, &options);
            let mut page =
                read::list(self, &call.served, &places, &call.whose, &namespace, &options).await?;
            let mut pieces = Pieces::default();
            for (_, entry) in &mut page.entries {
                *entry = read::opened_for(call.accept.form, entry.clone())?;
                entry.value = for_caller(call, &entry.value.bytes())?.into();
                pieces.copied(0).await;
            }
            let answer = answer::list(call, &page).await;
            page.forget().await;
            return answer;
        }
        let name = &call.path.name;
        let at = read::read_at(call.query.get("resourceVersion").unwrap_or_default())?;
        let (_, store) =
            call.served.place(&self.partitions, call.tenant()?, &call.namespace(), name);
        let entry = read::find(&call.served, &*store, &call.key(name)?, name, at).await?;
        let entry = read::opened_for(call.accept.form, entry)?;
        let entry = self.show_entry(&call.served, entry).await?;
        answer::object(call, StatusCode::OK, &for_caller(call, &entry.value.bytes())?)
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
            (_, "GET" | "HEAD") if is_part => {
                let mut whole = call.clone();
                whole.path.subresource = String::new();
                Box::pin(self.resource_answer(&whole, method, body)).await
            }
            (_, "PUT") if is_part => written(call, write::update(self, call, body).await?),
            (_, "PATCH") if is_part => written(call, write::patch(self, call, body).await?),
            ("scale", "GET" | "HEAD") => {
                let scale = subresources::get_scale(self, call).await?;
                answer::made(call, StatusCode::OK, &scale).await
            }
            ("scale", "PUT" | "PATCH") => {
                let put = *method == Method::PUT;
                let scale = subresources::write_scale(self, call, body, put).await?;
                answer::made(call, StatusCode::OK, &scale).await
            }
            ("binding", "POST") => {
                let status = subresources::bind(self, call, body).await?;
                Ok(answer::status(StatusCode::CREATED, &status, call.accept))
            }
            ("bindings", "POST") => {
                let bindings = subresources::bind_all(self, call, body).await?;
                answer::made(call, StatusCode::CREATED, &bindings).await
            }
            ("eviction", "POST") => {
                let status = subresources::evict(self, call, body).await?;
                Ok(answer::value(StatusCode::CREATED, &status, false))
            }
            ("fence", "POST") => {
                let fence = subresources::fence(self, call, body).await?;
                answer::made(call, StatusCode::CREATED, &fence).await
            }
            ("token", "POST") => {
                let token = subresources::token(self, call, body).await?;
                answer::made(call, StatusCode::CREATED, &token).await
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
        let places = call.served.places(&self.partitions, &call.whose, &namespace, &options);
        let protobuf = call.accept.encoding == Encoding::Protobuf;
        let partial = granted::is_partial(&call.identity, &call.served.resource);
        let started =
            Watch::start(self.clone(), shown, &places, &call.whose, &namespace, options).await;
        let body = match started {
            Ok(watch) => {
                let watch = if partial { watch.of_parts() } else { watch };
                penned(|pen| watch.run(pen))
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
}

/// Whether a call is about stored objects themselves.
fn is_plain(call: &Call) -> bool {
    let resource = &call.served.resource;
    call.path.subresource.is_empty() && resource.has_verb(call.verb)
}

/// What comes of `work`, if it comes in time.
async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(ApiError::late()))
}

fn written(call: &Call, written: write::Written) -> Result<Response<Body>> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    answer::object(call, code, &written.entry.value.bytes())
}

/// What of an object its reader may see.
fn for_caller(call: &Call, json: &Bytes) -> Result<Bytes> {
    match granted::is_partial(&call.identity, &call.served.resource) {
        true => granted::part_of(json),
        false => Ok(json.clone()),
    }
}
