//! The bodies of requests.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt as _;

use crate::{
    body::{Body, BodyError, full},
    error::{ApiError, Result},
    request::MAX_BODY,
};

/// How much of an unwanted body is read before it is answered, in bytes.
const UNWANTED: usize = 256 * 1024;

/// How long a body may take to come.
const WITHIN: Duration = Duration::from_secs(60);

/// A request's body: taken once, and then at hand for every further try.
pub(crate) enum Payload {
    Coming(Option<Body>),
    Here(Bytes),
}

impl Payload {
    /// What comes with a request, of whichever kind.
    pub(crate) fn of<B>(body: B) -> Self
    where
        B: http_body::Body + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        match body.is_end_stream() {
            true => Self::Here(Bytes::new()),
            false => Self::Coming(Some(Passing(body).boxed_unsync())),
        }
    }

    /// Whether there is nothing in it, and nothing will come.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::Here(bytes) if bytes.is_empty())
    }

    pub(crate) async fn bytes(&mut self) -> Result<Bytes> {
        let bytes = match self {
            Self::Here(bytes) => return Ok(bytes.clone()),
            Self::Coming(body) => match body.take() {
                Some(body) => {
                    tokio::time::timeout(WITHIN, collect(body)).await.map_err(|_| {
                        ApiError::timeout(
                            "Timeout: request did not complete within the allotted timeout",
                            1,
                        )
                    })??
                }
                None => return Err(ApiError::bad_request("the request body was not sent whole")),
            },
        };
        *self = Self::Here(bytes.clone());
        Ok(bytes)
    }

    /// The body as it comes, for whoever reads it as fast as it can be passed on.
    pub(crate) fn stream(&mut self) -> Result<Body> {
        match self {
            Self::Here(bytes) => Ok(full(bytes.clone())),
            Self::Coming(body) => match body.take() {
                Some(body) => Ok(body),
                None => Err(ApiError::bad_request("the request body was not sent whole")),
            },
        }
    }

    /// Takes what is left of a body that nobody wants: some clients see a broken stream where
    /// they are answered before they have sent all.
    pub(crate) async fn drain(&mut self) {
        if let Self::Coming(body) = self
            && let Some(body) = body.take()
        {
            drain(body).await;
        }
    }
}

/// A body as it comes, of which it is known how long it is, if its client says so.
struct Passing<B>(B);

impl<B> http_body::Body for Passing<B>
where
    B: http_body::Body + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(context).map(|next| {
            let frame = next?.map_err(Into::into);
            Some(frame.map(|it| it.map_data(|mut data| data.copy_to_bytes(data.remaining()))))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
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
async fn collect(mut body: Body) -> Result<Bytes> {
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request(format!("unable to read the request body: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let so_far = first.len().max(more.len());
        if MAX_BODY < so_far + data.len() {
            return Err(ApiError::too_large(MAX_BODY));
        }
        if first.is_empty() {
            // Most bodies are one frame, and are not copied.
            first = data;
            continue;
        }
        if more.is_empty() {
            more.extend_from_slice(&first);
        }
        more.extend_from_slice(&data);
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}
