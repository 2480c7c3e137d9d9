//! Passing a request on to somebody who is no server of this cluster, and the answer back.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use insula_api::names::TenantName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::OwnedSemaphorePermit,
};

use crate::{
    Server, answer,
    body::{Body, empty, with_end},
    error::{ApiError, chain},
    forward,
    outbound::{OutboundError, Place, Trust},
};

/// How long the other has for the head of its answer.
const HEAD: Duration = Duration::from_secs(60);

/// A connection to somebody.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The way to somebody.
pub(crate) enum Via<'a> {
    /// A connection for this request alone, with the `Host` at its other end.
    Stream { stream: Box<dyn Io>, authority: String },
    /// A connection of a tenant's, which may be kept for the next request.
    Tenant { tenant: &'a TenantName, place: &'a Place, trust: &'a Trust },
}

/// A request as it leaves.
pub(crate) struct Onward<'a> {
    pub via: Via<'a>,
    /// With its query.
    pub path: String,
    /// In the place of those of the same name.
    pub headers: HeaderMap,
    /// Its answer goes on until it ends, and may end at any time.
    pub watches: bool,
    /// Held until all of it is over.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// The answer to a request whose other end cannot be reached.
pub(crate) fn unreachable(why: impl std::fmt::Display) -> ApiError {
    ApiError::unavailable(format!("error trying to reach service: {why}"))
}

impl Server {
    /// Sends `head` and `body` there, and answers what comes back. Neither body is collected: who
    /// reads slowly has the other write slowly.
    pub(crate) async fn relay(
        &self,
        head: &Parts,
        body: Body,
        upgrade: &mut Option<OnUpgrade>,
        onward: Onward<'_>,
    ) -> Result<Response<Body>, OutboundError> {
        let mut headers = stripped(&head.headers, upgrade.is_some());
        for name in onward.headers.keys() {
            headers.remove(name);
        }
        headers.extend(onward.headers);
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = onward.path.parse().map_err(|_| OutboundError::Url)?;
        *request.headers_mut() = headers;
        let sending = tokio::time::timeout(HEAD, self.send(onward.via, request)).await;
        let mut answer = sending.map_err(|_| OutboundError::NoHead)??;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgrade.take() else { return Err(OutboundError::Unasked) };
            let there = hyper::upgrade::on(&mut answer);
            let lasting = self.splice_with(client, there, onward.permit);
            let (mut head, _) = answer.into_parts();
            head.extensions.insert(lasting);
            return Ok(Response::from_parts(head, empty()));
        }
        if answer.status() == StatusCode::MISDIRECTED_REQUEST {
            // Between servers it means that nothing was done, which nobody else is believed.
            let why = "the backend says that it was not meant\n";
            return Ok(answer::bytes(StatusCode::BAD_GATEWAY, why.into(), answer::TEXT));
        }
        forward::strip_private(answer.headers_mut());
        let permit = onward.permit;
        Ok(self.pass_on(answer, onward.watches).map(|it| with_end(it, permit)))
    }

    async fn send(
        &self,
        via: Via<'_>,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, OutboundError> {
        match via {
            Via::Tenant { tenant, place, trust } => {
                self.send_outbound(tenant, place, trust, request).await
            }
            Via::Stream { stream, authority } => {
                let host = HeaderValue::from_str(&authority).map_err(|_| OutboundError::Url)?;
                request.headers_mut().insert(header::HOST, host);
                let failed = |error: hyper::Error| OutboundError::Http(chain(&error));
                let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
                let (mut sender, connection) = handshake.await.map_err(failed)?;
                self.tasks.spawn(async move {
                    if let Err(error) = connection.with_upgrades().await {
                        tracing::debug!(error = chain(&error), "a relayed connection ended");
                    }
                });
                sender.send_request(request).await.map_err(failed)
            }
        }
    }
}

/// The headers of a request without what is this server's alone: credentials and connections.
fn stripped(headers: &HeaderMap, upgrades: bool) -> HeaderMap {
    let mut out = headers.clone();
    let upgrade = headers.get(header::UPGRADE).cloned().filter(|_| upgrades);
    forward::strip_hop_by_hop(&mut out);
    forward::strip_bearer(&mut out);
    out.remove(header::AUTHORIZATION);
    out.remove(header::CONTENT_LENGTH);
    let private = |name: &HeaderName| {
        // Some servers take the one for the other.
        let name = name.as_str().replace('_', "-");
        ["impersonate-", "x-remote-", "x-insula-"].iter().any(|it| name.starts_with(it))
    };
    let names: Vec<HeaderName> = out.keys().filter(|it| private(it)).cloned().collect();
    for name in names {
        out.remove(name);
    }
    if let Some(upgrade) = upgrade {
        out.insert(header::UPGRADE, upgrade);
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("impersonate-user", "jane"),
            ("x-remote-user", "root"),
            ("x-remote-extra-a", "b"),
            ("x_remote_group", "g"),
            ("x-insula-passport", "p"),
            ("connection", "Upgrade, x-hop"),
            ("x-hop", "1"),
            ("upgrade", "websocket"),
            ("accept", "text/html"),
            ("cookie", "a=b"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let names = |upgrades| {
            let out = stripped(&headers, upgrades);
            let mut names: Vec<String> = out.keys().map(|it| it.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(names(false), ["accept", "cookie"]);
        assert_eq!(names(true), ["accept", "connection", "cookie", "upgrade"]);
    }
}
