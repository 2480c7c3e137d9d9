//! Streams of this server as messages of a WebSocket, for clients such as browsers that have no
//! other way to read them.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    Server,
    body::{Body, empty},
    ending::Lasting,
    error::{ApiError, Result},
    forward,
};

/// A client that takes nothing for this long is gone.
const SEND_WITHIN: Duration = Duration::from_secs(60);
/// Clients have nothing to say here, so what they say is short.
const MAX_HEARD: usize = 64 * 1024;
/// Longest event of a stream, in bytes.
const MAX_EVENT: usize = 16 << 20;
/// A protocol that is none: browsers can send a token in no other way.
const TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// How a stream is cut into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Messages {
    /// A text for each line.
    Lines,
    /// A binary message for each frame, without its length.
    Frames,
    /// Binary, as it comes.
    Binary,
    /// A text in base64, as it comes.
    Base64,
}

/// Whether the client wants one.
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    forward::lists(headers, header::UPGRADE, "websocket") && forward::asks_to_upgrade(headers)
}

/// The protocols that the client offers, but for a token.
pub(crate) fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let names = all.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
    names.map(str::trim).filter(|it| !it.is_empty() && !it.starts_with(TOKEN))
}

/// The token among the protocols, encoded.
pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let mut names = all.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
    names.find_map(|it| it.trim().strip_prefix(TOKEN))
}

/// Accepts, and carries `body` over it until either side ends.
pub(crate) fn serve(
    server: &Arc<Server>,
    headers: &HeaderMap,
    upgrade: hyper::upgrade::OnUpgrade,
    body: Body,
    messages: Messages,
) -> Result<Response<Body>> {
    let mut response = accept(headers, offered(headers).next())?;
    let shutdown = server.shutdown.clone();
    let lasting = Lasting::default();
    response.extensions_mut().insert(lasting.clone());
    server.tasks.spawn(async move {
        let _lasting = lasting;
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_HEARD))
            .max_frame_size(Some(MAX_HEARD));
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        tokio::select! {
            () = carry(socket, body, messages) => (),
            () = shutdown.cancelled() => (),
        }
    });
    Ok(response)
}

/// The head of the answer that accepts.
fn accept(headers: &HeaderMap, protocol: Option<&str>) -> Result<Response<Body>> {
    let bad = || ApiError::bad_request("the request is no handshake of a WebSocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(bad)?;
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|it| it != "13") {
        return Err(bad());
    }
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let proof = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    out.insert(header::SEC_WEBSOCKET_ACCEPT, proof.map_err(ApiError::internal)?);
    if let Some(protocol) = protocol {
        let protocol = HeaderValue::from_str(protocol).map_err(|_| bad())?;
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

async fn carry<S>(mut socket: WebSocketStream<S>, mut body: Body, messages: Messages)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut cut = Cut { messages, rest: BytesMut::new() };
    loop {
        let bytes = tokio::select! {
            frame = body.frame() => match frame {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    tracing::debug!(error, "a stream broke off");
                    break;
                }
                None => break,
            },
            heard = socket.next() => match heard {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => continue,
            },
        };
        cut.rest.extend_from_slice(&bytes);
        while let Some(message) = cut.next() {
            let sent = tokio::time::timeout(SEND_WITHIN, socket.send(message)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
        if MAX_EVENT < cut.rest.len() {
            tracing::error!("an event is too long for a message");
            break;
        }
    }
    // It ends either way; this is for clients that want to know how.
    let _ = tokio::time::timeout(SEND_WITHIN, socket.close(None)).await;
}

/// Cuts what has come into messages.
struct Cut {
    messages: Messages,
    rest: BytesMut,
}

impl Cut {
    fn next(&mut self) -> Option<Message> {
        if self.rest.is_empty() {
            return None;
        }
        match self.messages {
            Messages::Lines => {
                let end = self.rest.iter().position(|byte| *byte == b'\n')?;
                let line = self.rest.split_to(end + 1).freeze().slice(..end);
                Some(match String::from_utf8(line.to_vec()) {
                    Ok(text) => Message::text(text),
                    Err(_) => Message::Binary(line),
                })
            }
            Messages::Frames => {
                let length = self.rest.first_chunk::<4>().map(|it| u32::from_be_bytes(*it))?;
                let end = usize::try_from(length).ok()?.checked_add(4)?;
                (end <= self.rest.len())
                    .then(|| Message::Binary(self.rest.split_to(end).freeze().slice(4..)))
            }
            Messages::Binary => Some(Message::Binary(self.rest.split().freeze())),
            Messages::Base64 => {
                let bytes: Bytes = self.rest.split().freeze();
                Some(Message::text(STANDARD.encode(bytes)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(messages: Messages, parts: &[&[u8]], expected: &[Message]) {
        let mut cut = Cut { messages, rest: BytesMut::new() };
        let mut found = Vec::new();
        for part in parts {
            cut.rest.extend_from_slice(part);
            found.extend(std::iter::from_fn(|| cut.next()));
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn an_event_is_a_message_however_it_comes() {
        check(
            Messages::Lines,
            &[b"{\"a\":1}\n{\"b", b"\":2}\n", b"{"],
            &[Message::text("{\"a\":1}"), Message::text("{\"b\":2}")],
        );
        check(
            Messages::Frames,
            &[b"\0\0", b"\0\x02ab\0\0\0\x01", b"c\0\0\0\x09d"],
            &[Message::binary(&b"ab"[..]), Message::binary(&b"c"[..])],
        );
        check(
            Messages::Binary,
            &[b"x\n", b"y"],
            &[Message::binary(&b"x\n"[..]), Message::binary(&b"y"[..])],
        );
        check(Messages::Base64, &[b"hi"], &[Message::text("aGk=")]);
    }

    #[test]
    fn a_token_is_no_protocol() {
        let mut headers = HeaderMap::new();
        let value = "base64url.bearer.authorization.k8s.io.eA, v5.channel.k8s.io";
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(value));
        assert_eq!(offered(&headers).collect::<Vec<_>>(), ["v5.channel.k8s.io"]);
        assert!(!is_asked_for(&headers));
        headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert!(is_asked_for(&headers));
        assert!(accept(&headers, None).is_err());
    }
}
