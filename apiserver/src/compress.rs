//! Long answers are compressed for those who can take that.

use std::{
    io::{Read as _, Write as _},
    pin::pin,
    sync::Arc,
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, header};

use crate::{
    answer,
    body::{Body, Held},
    error::ApiError,
    fair::{Account, Fair, InTurn, Pieces},
};

/// Answers up to this length are sent as they are, in bytes.
const SHORT: usize = 128 * 1024;
/// So much is compressed before others may be let in, in bytes.
const PIECE: usize = 16 * 1024;

/// The body of an answer that is known whole, beside the answer itself.
#[derive(Debug, Clone)]
pub(crate) struct Whole(pub Bytes);

/// What is kept compressed, and sent so to those who can take that.
#[derive(Debug, Clone)]
pub(crate) struct Packed(Bytes);

impl Packed {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        // A vector takes everything.
        let packed = encoder.write_all(bytes).and_then(|()| encoder.finish());
        Self(packed.unwrap_or_default().into())
    }

    pub(crate) fn unpacked(&self) -> Bytes {
        let mut bytes = Vec::new();
        // It was packed here.
        let read = GzDecoder::new(&*self.0).read_to_end(&mut bytes);
        if let Err(error) = read {
            tracing::warn!(%error, "what was packed cannot be read");
        }
        bytes.into()
    }
}

/// The answer as it is sent to who sent `headers`; another one if too much is being sent.
pub(crate) async fn compressed(
    to: (&Held, &Fair, Option<&Arc<Account>>),
    headers: &HeaderMap,
    mut response: Response<Body>,
) -> Response<Body> {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|it| it.to_str().ok());
    let takes = accepted.unwrap_or_default().split(',').any(|it| it.trim() == "gzip");
    if let Some(packed) = response.extensions_mut().remove::<Packed>() {
        if takes {
            say_packed(&mut response);
            return sent(to, response, packed.0);
        }
        return sent(to, response, packed.unpacked());
    }
    let Some(Whole(bytes)) = response.extensions_mut().remove::<Whole>() else { return response };
    if !takes || bytes.len() <= SHORT {
        return sent(to, response, bytes);
    }
    let (_, fair, account) = to;
    let turns = account.map(|it| fair.turns_of(it.clone()));
    let made = InTurn::new(turns, pin!(gzip(&bytes))).await;
    match made {
        Ok(made) => {
            say_packed(&mut response);
            sent(to, response, made.into())
        }
        Err(error) => {
            tracing::warn!(%error, "an answer is sent uncompressed");
            sent(to, response, bytes)
        }
    }
}

fn say_packed(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

fn sent(
    (held, _, account): (&Held, &Fair, Option<&Arc<Account>>),
    mut response: Response<Body>,
    bytes: Bytes,
) -> Response<Body> {
    match held.body(account, bytes) {
        Some(body) => {
            *response.body_mut() = body;
            response
        }
        None => answer::error(&ApiError::too_many_requests(
            "too many long answers are being read, please try again later",
            1,
        )),
    }
}

async fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    let mut pieces = Pieces::default();
    for piece in bytes.chunks(PIECE) {
        encoder.write_all(piece)?;
        pieces.read(piece.len()).await;
    }
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::body::full;

    async fn sent(accepted: &str, length: usize) -> (Option<HeaderValue>, Bytes) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, accepted.parse().unwrap());
        let bytes = Bytes::from(vec![b'a'; length]);
        let mut response = Response::new(full(bytes.clone()));
        response.extensions_mut().insert(Whole(bytes));
        let response =
            compressed((&Held::default(), &Fair::default(), None), &headers, response).await;
        let encoding = response.headers().get(header::CONTENT_ENCODING).cloned();
        (encoding, response.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn long_answers_only_and_for_those_who_ask() {
        for (accepted, length) in [("gzip", SHORT), ("deflate, br", 4 * SHORT), ("", 4 * SHORT)] {
            let (encoding, body) = sent(accepted, length).await;
            assert_eq!((encoding, body.len()), (None, length), "{accepted}");
        }
        for (accepted, length) in [("gzip", SHORT + 1), ("deflate, gzip", 8 * SHORT)] {
            let (encoding, body) = sent(accepted, length).await;
            assert_eq!(encoding.unwrap(), "gzip");
            assert!(body.len() < length / 10);
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&*body).read_to_end(&mut plain).unwrap();
            assert_eq!(plain, vec![b'a'; length]);
        }
    }
}
