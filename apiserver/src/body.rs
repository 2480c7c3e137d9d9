//! Response bodies.

mod patient;
mod penned;

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::sync::mpsc;

pub(crate) use self::{
    patient::Held,
    penned::{Pen, penned},
};

/// Why a streamed body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every answer of this server.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body that is known whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Whether so little is in it that nobody looks after it.
pub(crate) fn is_short(body: &Body) -> bool {
    let exact = http_body::Body::size_hint(body).exact();
    exact.is_some_and(|it| it <= patient::SHORT as u64)
}

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// The writing end of a streamed body.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Bytes>);

impl Sender {
    /// False if the reader is gone.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.0.send(bytes).await.is_ok()
    }

    /// Returns when the reader is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A body that is written while it is read; it ends when the sender is dropped.
pub fn channel() -> (Sender, Body) {
    let (sender, mut receiver) = mpsc::channel(4);
    (Sender(sender), polled(move |context| receiver.poll_recv(context)))
}

/// A body of the pieces that `next` gives.
fn polled(mut next: impl FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Send + 'static) -> Body {
    let frames = stream::poll_fn(move |context| {
        next(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// A body that lets go of `end` when it has ended, or nobody reads it any more.
pub(crate) fn with_end<E: Send + Unpin + 'static>(body: Body, end: E) -> Body {
    Ending { body, _end: end }.boxed_unsync()
}

struct Ending<E> {
    body: Body,
    _end: E,
}

impl<E: Send + Unpin> http_body::Body for Ending<E> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
