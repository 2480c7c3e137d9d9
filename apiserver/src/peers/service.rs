//! The answering end: requests of other servers.

use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited, StreamBody};

use super::{HttpPeers, MAX_FRAME, MEASURED, PREFIX, frame};
use crate::{
    body::{Body, BodyError, empty, full},
    error::chain,
    measured::ask::answer,
};

/// Answers a request for a path under [`PREFIX`] of the server `from`, whose name is proven.
pub(crate) async fn serve<B>(peers: &HttpPeers, from: &str, request: Request<B>) -> Response<Body>
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BodyError>,
{
    let path = request.uri().path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
    if request.method() != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only POST");
    }
    let Some(service) = peers.service() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "this server is starting or ending");
    };
    peers.heard_from(from, request.headers());
    let body = request.into_body();
    match path.as_str() {
        "raft" => {
            let mut frames = std::pin::pin!(frame::frames(body));
            // The service may end while the stream goes on.
            drop(service);
            while let Some(frame) = frames.next().await {
                let frame = match frame {
                    Ok(frame) => frame,
                    Err(error) => {
                        tracing::debug!(
                            from,
                            error = chain(&error),
                            "a stream of frames broke off"
                        );
                        return refuse(StatusCode::BAD_REQUEST, &error.to_string());
                    }
                };
                let Some(service) = peers.service() else {
                    return refuse(StatusCode::SERVICE_UNAVAILABLE, "this server is ending");
                };
                service.receive(from, frame);
            }
            Response::new(empty())
        }
        "call" => match Limited::new(body, MAX_FRAME).collect().await {
            Ok(body) => match service.answer(from, body.to_bytes()).await {
                Ok(answer) => Response::new(full(answer)),
                Err(reason) => refuse(StatusCode::CONFLICT, &reason),
            },
            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        },
        "stream" => {
            let request = match Limited::new(body, MAX_FRAME).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
            };
            match service.pieces(from, request).await {
                Ok(pieces) => {
                    let frames =
                        pieces.map(|it| Ok::<_, BodyError>(Frame::data(frame::framed(&it))));
                    Response::new(StreamBody::new(frames).boxed_unsync())
                }
                Err(reason) => refuse(StatusCode::CONFLICT, &reason),
            }
        }
        MEASURED => match Limited::new(body, MAX_FRAME).collect().await {
            Ok(question) => {
                let known = peers.measured().and_then(|it| answer(it, &question.to_bytes()));
                match known {
                    Some(known) => Response::new(full(known)),
                    None => refuse(StatusCode::BAD_REQUEST, "this cannot be asked"),
                }
            }
            Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        },
        _ => refuse(StatusCode::NOT_FOUND, "servers do not ask for this"),
    }
}

fn refuse(code: StatusCode, reason: &str) -> Response<Body> {
    let mut response = Response::new(full(reason.to_owned()));
    *response.status_mut() = code;
    response
}
