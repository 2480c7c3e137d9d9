//! What a request says bit by bit.
//!
//! The libraries below have no place for a body that comes bit by bit, so it travels beside a
//! request that has none, and takes its place before the request is sent.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use tower::BoxError;

/// The body of a request on its way.
pub type Sent = UnsyncBoxBody<Bytes, BoxError>;

/// See the module. Sent once.
#[derive(Clone)]
pub(crate) struct Said(Arc<Mutex<Option<Sent>>>);

impl Said {
    pub(crate) fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let body = body.map_err(|never| match never {}).boxed_unsync();
        Self(Arc::new(Mutex::new(Some(body))))
    }
}

/// The request with what it says.
pub(crate) fn as_sent(request: Request<Body>) -> Request<Sent> {
    let (mut head, body) = request.into_parts();
    let said = head.extensions.remove::<Said>().and_then(|it| it.0.lock().take());
    Request::from_parts(head, said.unwrap_or_else(|| body.map_err(Into::into).boxed_unsync()))
}
