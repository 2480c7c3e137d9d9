//! Frames in a body: a length of four bytes before each.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use http_body_util::BodyExt as _;

use super::MAX_FRAME;
use crate::body::BodyError;

/// Why frames cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {0} bytes is longer than servers send")]
    TooLong(usize),
    #[error("the stream broke off within a frame")]
    Cut,
    #[error("the connection failed")]
    Body(#[source] BodyError),
}

/// Appends a frame.
pub(super) fn put(out: &mut BytesMut, frame: &[u8]) {
    out.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
    out.put_slice(frame);
}

/// One frame by itself.
pub(super) fn framed(frame: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(frame.len() + 4);
    put(&mut out, frame);
    out.freeze()
}

/// The first frame of `buffer`, if it is whole.
fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if MAX_FRAME < length {
        return Err(FrameError::TooLong(length));
    }
    if buffer.len() < 4 + length {
        // What is missing is known: no growing by doubling.
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// The frames of a body. Ends after the first error.
pub(super) fn frames<B>(body: B) -> impl Stream<Item = Result<Bytes, FrameError>> + Send
where
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BodyError>,
{
    let state = Some((Box::pin(body), BytesMut::new()));
    stream::unfold(state, |state| async {
        let (mut body, mut buffer) = state?;
        let failed = loop {
            match take(&mut buffer) {
                Ok(Some(frame)) => return Some((Ok(frame), Some((body, buffer)))),
                Ok(None) => {}
                Err(error) => break error,
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(mut data) = frame.into_data() {
                        buffer.put(data.copy_to_bytes(data.remaining()));
                    }
                }
                Some(Err(error)) => break FrameError::Body(error.into()),
                None if buffer.is_empty() => return None,
                None => break FrameError::Cut,
            }
        };
        Some((Err(failed), None))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use http_body_util::{Full, StreamBody};
    use proptest::prelude::*;

    use super::*;

    fn read(
        body: impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
    ) -> Result<Vec<Bytes>, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(frames(body).try_collect())
    }

    proptest! {
        #[test]
        fn frames_read_back_however_they_are_cut(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            chunk in 1_usize..30,
        ) {
            let mut out = BytesMut::new();
            parts.iter().for_each(|part| put(&mut out, part));
            let chunks: Vec<Bytes> = out.chunks(chunk).map(Bytes::copy_from_slice).collect();
            let body = StreamBody::new(stream::iter(
                chunks.into_iter().map(|chunk| Ok(http_body::Frame::data(chunk))),
            ));
            let found: Vec<Vec<u8>> = read(body).unwrap().iter().map(|it| it.to_vec()).collect();
            prop_assert_eq!(found, parts);
        }
    }

    #[test]
    fn what_is_cut_or_too_long_is_an_error() {
        let whole = framed(b"abc");
        let cut = read(Full::new(whole.slice(..5)));
        assert!(matches!(cut, Err(FrameError::Cut)), "{cut:?}");
        let long = read(Full::new(Bytes::from_static(&[0xff; 8])));
        assert!(matches!(long, Err(FrameError::TooLong(_))), "{long:?}");
    }
}
