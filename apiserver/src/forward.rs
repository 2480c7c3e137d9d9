//! Sending a request on to a server that has what it is about.
//!
//! The first server proves who the caller is and sends method, path, headers and body on, with a
//! passport in the place of the caller's credentials; the second one decides what the caller may
//! and answers. Answers stream, and so do upgraded connections.
//!
//! # Invariants
//!
//! * A request travels once. A server that has not what it is sent for says so, by
//!   [`StatusCode::MISDIRECTED_REQUEST`]; the first one waits for a newer map and decides again.
//! * A request is sent to another server only if it is certain that the one before did nothing,
//!   or if it only reads.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header,
    request::Parts,
};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use insula_api::path::Place as Target;
use insula_partition::{
    map::ShardKey,
    partitions::{Partitions, Place},
};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    Server,
    body::{Body, BodyError, empty, full},
    ending::Lasting,
    error::{ApiError, Result, chain},
    passport::{self, Caller, Line},
    peers::{SendError, dns_name},
    registry::{self, Whose},
    request::Query,
    subresources, websocket,
};

/// How long another server may take to begin its answer; a little more than it allows itself.
const HEAD: Duration = Duration::from_secs(65);

/// How long a request waits for what it is about to arrive where the map says.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for a newer map before looking again.
const LOOK: Duration = Duration::from_millis(50);

/// Of the map that a server went by that was not the right one.
const EPOCH: HeaderName = HeaderName::from_static("x-insula-epoch");

/// What became of a request that was sent on.
pub(crate) enum Forwarded {
    Answer(Response<Body>),
    /// Nothing was done: the server has not what it was thought to have.
    Again,
}

/// Bounds how often a request is tried again because what it is about moves.
pub(crate) struct Patience {
    until: Instant,
    epochs: tokio::sync::watch::Receiver<u64>,
}

impl Patience {
    pub(crate) fn new(partitions: &Partitions) -> Self {
        Self { until: Instant::now() + PATIENCE, epochs: partitions.subscribe() }
    }

    /// Waits until it may be different. Fails when it has taken too long.
    pub(crate) async fn wait(&mut self) -> Result<()> {
        if self.until < Instant::now() {
            return Err(ApiError::unavailable(
                "what was asked for is moving to another partition; try again",
            ));
        }
        let _ = tokio::time::timeout(LOOK, self.epochs.changed()).await;
        Ok(())
    }
}

impl Server {
    /// What decides which server answers a request; `None`: whichever gets it.
    fn shard_of(&self, target: &Target, whose: &Whose, caller: &Caller) -> Option<ShardKey> {
        match target {
            // Discovery and the like is judged by the rules of the caller's tenant. What the
            // platform asks is about this very server.
            Target::Other(_) => {
                let tenant = caller.tenant();
                (!tenant.is_system()).then(|| ShardKey::Tenant(tenant.as_str().to_owned()))
            }
            Target::Resource(path) => {
                let found = self.registry.get(&path.group, &path.version, &path.resource);
                let Some(served) = found else {
                    // What is not built in is the tenant's own, and lies where all of it does.
                    return whose.tenant().map(registry::shard_of_tenant);
                };
                if served.is_view() {
                    return None;
                }
                let tenant = whose.tenant()?;
                if path.name.is_empty() && served.is_spread(whose, &path.namespace) {
                    return None;
                }
                Some(served.shard_key(tenant, &path.namespace, &path.name))
            }
        }
    }

    /// Where a request has to go, if it is not here.
    pub(crate) fn elsewhere(
        &self,
        target: &Target,
        whose: &Whose,
        caller: &Caller,
    ) -> Option<Place> {
        let peers = self.peers.as_ref()?;
        let place = match target {
            // Nobody else may, wherever it is.
            Target::Resource(path)
                if subresources::is_in_partition(path) && caller.tenant().is_system() =>
            {
                self.partitions.place_of(&path.name)?
            }
            _ => self.partitions.place(&self.shard_of(target, whose, caller)?),
        };
        let others = place.servers.iter().any(|server| server.name != peers.own());
        (!place.local && others).then_some(place)
    }

    /// Sends a request on.
    pub(crate) async fn forward(
        &self,
        head: &Parts,
        body: &Bytes,
        upgrade: &mut Option<OnUpgrade>,
        caller: &Caller,
        address: Option<IpAddr>,
        place: &Place,
    ) -> Result<Forwarded> {
        let Some(peers) = &self.peers else {
            return Err(ApiError::internal("this server has no others"));
        };
        let line = Line { method: &head.method, uri: &head.uri };
        let reads = matches!(head.method, Method::GET | Method::HEAD) && upgrade.is_none();
        let mut refusals = Vec::new();
        for server in place.servers.iter().filter(|server| server.name != peers.own()) {
            let to = server.name.as_str();
            let ring = self.keys.ring();
            let stamp = ring.signing().stamp();
            let passport = stamp.sign(peers.own(), to, line, place.epoch, caller, address);
            let passport = passport.map_err(ApiError::internal)?;
            let request = request(head, body.clone(), to, &passport, upgrade.is_some())?;
            let sending = async {
                match upgrade.is_some() {
                    true => peers.forward_upgrade(to, request).await,
                    false => peers.forward(to, request).await,
                }
            };
            let error = match tokio::time::timeout(HEAD, sending).await {
                Ok(Ok(answer)) if answer.status() == StatusCode::MISDIRECTED_REQUEST => {
                    let epoch = answer.headers().get(EPOCH).and_then(|it| it.to_str().ok());
                    tracing::debug!(server = to, epoch, ours = place.epoch, "misdirected");
                    refusals.push(format!("server {to} has it not"));
                    continue;
                }
                Ok(Ok(answer)) => {
                    return Ok(Forwarded::Answer(self.pass_back(answer, upgrade.take(), line)));
                }
                Ok(Err(error)) => error,
                Err(_) => SendError::Broken("it took too long".into()),
            };
            tracing::info!(server = to, %error, "a request could not be sent on");
            if matches!(error, SendError::Broken(_)) && !reads {
                return Err(ApiError::outcome_unknown());
            }
            refusals.push(format!("server {to}: {error}"));
        }
        tracing::debug!(partition = &*place.partition, ?refusals, "no server answers");
        Ok(Forwarded::Again)
    }

    /// The answer of another server as this server's own.
    fn pass_back(
        &self,
        mut answer: Response<Incoming>,
        upgrade: Option<OnUpgrade>,
        line: Line<'_>,
    ) -> Response<Body> {
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = upgrade
        {
            let there = hyper::upgrade::on(&mut answer);
            let lasting = self.splice(client, there);
            let (mut head, _) = answer.into_parts();
            head.extensions.insert(lasting);
            return Response::from_parts(head, empty());
        }
        let watches = Query::parse(line.uri.query()).flag("watch");
        self.pass_on(answer, watches)
    }

    /// The answer of somebody else, as it comes.
    pub(crate) fn pass_on(&self, answer: Response<Incoming>, watches: bool) -> Response<Body> {
        let (mut head, body) = answer.into_parts();
        strip_hop_by_hop(&mut head.headers);
        head.version = http::Version::default();
        head.extensions.clear();
        let body = Passing {
            body,
            ends_quietly: watches,
            shutdown: Box::pin(self.shutdown.clone().cancelled_owned()),
        };
        Response::from_parts(head, body.boxed_unsync())
    }

    /// Carries bytes both ways until either side or this server ends. What is returned belongs
    /// into the extensions of the answer.
    pub(crate) fn splice(&self, one: OnUpgrade, other: OnUpgrade) -> Lasting {
        self.splice_with(one, other, ())
    }

    /// As [`Server::splice`]; lets go of `end` then.
    pub(crate) fn splice_with<E: Send + 'static>(
        &self,
        one: OnUpgrade,
        other: OnUpgrade,
        end: E,
    ) -> Lasting {
        let shutdown: CancellationToken = self.shutdown.clone();
        let lasting = Lasting::default();
        let held = lasting.clone();
        self.tasks.spawn(async move {
            let _held = (held, end);
            let Ok((one, other)) = tokio::try_join!(one, other) else { return };
            let (mut one, mut other) = (TokioIo::new(one), TokioIo::new(other));
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut one, &mut other) => (),
                () = shutdown.cancelled() => (),
            }
        });
        lasting
    }
}

/// The request as the other server gets it.
fn request(
    head: &Parts,
    body: Bytes,
    to: &str,
    passport: &str,
    upgrades: bool,
) -> Result<Request<Body>> {
    let target = head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let uri = match upgrades {
        true => target.to_owned(),
        false => format!("https://{}{target}", dns_name(to)),
    };
    let mut headers = head.headers.clone();
    let upgrade = headers.get(header::UPGRADE).cloned();
    strip_hop_by_hop(&mut headers);
    // Whatever proved who the caller is stays here.
    for name in [header::AUTHORIZATION, header::COOKIE, header::HOST, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
    strip_bearer(&mut headers);
    let passport = HeaderValue::from_str(passport).map_err(ApiError::internal)?;
    headers.insert(passport::HEADER, passport);
    if upgrades && let Some(upgrade) = upgrade {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(
            header::HOST,
            HeaderValue::from_str(&dns_name(to)).map_err(ApiError::internal)?,
        );
    }
    let mut request = Request::new(if body.is_empty() { empty() } else { full(body) });
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri.parse().map_err(ApiError::internal)?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Removes what is between two ends of one connection only.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let always = [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in named.iter().chain(&always) {
        headers.remove(name);
    }
}

/// Removes what only servers say to each other.
pub(crate) fn strip_private(headers: &mut HeaderMap) {
    let private = |name: &&HeaderName| name.as_str().starts_with("x-insula-");
    let names: Vec<HeaderName> = headers.keys().filter(private).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes a token that browsers pass as a name of a WebSocket's protocol.
pub(crate) fn strip_bearer(headers: &mut HeaderMap) {
    if websocket::token(headers).is_none() {
        return;
    }
    let kept = websocket::offered(headers).collect::<Vec<_>>().join(", ");
    match HeaderValue::from_str(&kept) {
        Ok(kept) if !kept.is_empty() => headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept),
        _ => headers.remove(header::SEC_WEBSOCKET_PROTOCOL),
    };
}

/// Whether the client asks for another protocol on this connection.
pub(crate) fn asks_to_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE) && lists(headers, header::CONNECTION, "upgrade")
}

/// Whether a header that is a list has `wanted` in it, however it is written.
pub(crate) fn lists(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    let all = headers.get_all(name).into_iter().filter_map(|it| it.to_str().ok());
    all.flat_map(|it| it.split(',')).any(|it| it.trim().eq_ignore_ascii_case(wanted))
}

/// The answer to a request that another server should not have sent here.
pub(crate) fn misdirected(epoch: u64) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    response.headers_mut().insert(EPOCH, HeaderValue::from(epoch));
    response
}

/// A body on its way from another server.
struct Passing {
    body: Incoming,
    /// A watch that breaks off ends, as one does whose time is up: its client asks again.
    ends_quietly: bool,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.ends_quietly && this.shutdown.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut this.body).poll_frame(context).map(|frame| match frame {
            Some(Err(error)) if this.ends_quietly => {
                tracing::debug!(error = chain(&error), "a watch at another server broke off");
                None
            }
            Some(Err(error)) => Some(Err(Box::new(error) as BodyError)),
            Some(Ok(frame)) => Some(Ok(frame)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Where a server's others are, kept up to date from the map.
pub(crate) async fn follow_addresses(server: Arc<Server>) {
    let Some(peers) = server.peers.clone() else { return };
    let mut epochs = server.partitions.subscribe();
    loop {
        let servers = server.partitions.servers();
        let known = servers.iter().map(|it| (it.name.as_str(), it.address.as_str()));
        peers.set_addresses(known);
        tokio::select! {
            changed = epochs.changed() => if changed.is_err() { return },
            () = server.shutdown.cancelled() => return,
        }
    }
}
