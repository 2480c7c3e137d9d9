//! Passing a request on to somebody who is no server of this cluster, and the answer back.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts,
};
use http_body_util::{BodyExt as _, Full};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    Server,
    body::{Body, BodyError, empty},
    error::{ApiError, Result, chain},
    forward,
};

/// How long the other has for the head of its answer.
const HEAD: Duration = Duration::from_secs(60);

/// A connection to somebody.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A request as it leaves.
pub(crate) struct Onward {
    pub stream: Box<dyn Io>,
    /// `Host` at the other end.
    pub authority: String,
    /// With its query.
    pub path: String,
    /// In the place of those of the same name.
    pub headers: HeaderMap,
}

/// The answer to a request whose other end cannot be reached.
pub(crate) fn unreachable(why: impl std::fmt::Display) -> ApiError {
    ApiError::unavailable(format!("error trying to reach service: {why}"))
}

impl Server {
    /// Sends `head` and `body` there, and answers what comes back.
    pub(crate) async fn relay(
        &self,
        head: &Parts,
        body: Bytes,
        upgrade: &mut Option<OnUpgrade>,
        onward: Onward,
    ) -> Result<Response<Body>> {
        let Onward { stream, authority, path, headers: own } = onward;
        let failed = |error: hyper::Error| unreachable(chain(&error));
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(failed)?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = chain(&error), "a relayed connection ended");
            }
        });
        let mut headers = stripped(&head.headers, upgrade.is_some());
        for name in own.keys() {
            headers.remove(name);
        }
        headers.extend(own);
        let host = HeaderValue::from_str(&authority).map_err(ApiError::internal)?;
        headers.insert(header::HOST, host);
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() =
            path.parse().map_err(|_| ApiError::bad_request("the path cannot be passed on"))?;
        *request.headers_mut() = headers;
        let sending = tokio::time::timeout(HEAD, sender.send_request(request)).await;
        let mut answer = sending
            .map_err(|_| unreachable("net/http: timeout awaiting response headers"))?
            .map_err(failed)?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = upgrade.take() else {
                return Err(unreachable("it changed the protocol without being asked"));
            };
            let there = hyper::upgrade::on(&mut answer);
            let lasting = self.splice(client, there);
            let (mut head, _) = answer.into_parts();
            head.extensions.insert(lasting);
            return Ok(Response::from_parts(head, empty()));
        }
        let (mut head, body) = answer.into_parts();
        forward::strip_hop_by_hop(&mut head.headers);
        head.version = http::Version::default();
        head.extensions.clear();
        let body = body.map_err(|error| Box::new(error) as BodyError).boxed_unsync();
        Ok(Response::from_parts(head, body))
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
        ["impersonate-", "x-remote-", "x-insula-"].iter().any(|it| name.as_str().starts_with(it))
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
