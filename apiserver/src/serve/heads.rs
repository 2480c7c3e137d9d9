//! Large heads of requests: long credentials, and all that somebody is impersonated with.
//!
//! A head may have a megabyte, as upstream's. Most have a few hundred bytes; of those that have
//! more a server holds so many at a time, however many connections and streams they come on.

use std::sync::Arc;

use http::{HeaderMap, Uri};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// Longest head over HTTP/2, with what the protocol counts for each line. A longer one is
/// answered with 431.
pub(super) const MAX: u32 = 1 << 20;
/// Heads up to this many bytes are not counted.
const SMALL: usize = 16 << 10;
/// Bytes of all larger ones together.
const ROOM: usize = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Heads {
    room: Arc<Semaphore>,
}

impl Default for Heads {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM)) }
    }
}

/// A large head is held until this is dropped.
#[derive(Debug)]
pub(super) struct Large(#[expect(dead_code, reason = "dropped, never read")] OwnedSemaphorePermit);

impl Heads {
    /// Whether there is room for one more head; nothing to be held if it is small.
    pub(super) fn enter(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Option<Large>, TryAcquireError> {
        let path = uri.path_and_query().map_or(0, |it| it.as_str().len());
        let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let size = lines.fold(path, usize::saturating_add);
        if size <= SMALL {
            return Ok(None);
        }
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        self.room.clone().try_acquire_many_owned(size).map(|it| Some(Large(it)))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn large_heads_are_few_and_small_ones_free() {
        let heads = Heads::default();
        let uri = Uri::from_static("/api/v1/pods?limit=1");
        let head = |size: usize| {
            let value = HeaderValue::from_str(&"x".repeat(size)).unwrap();
            HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
        };
        for _ in 0..1000 {
            assert!(heads.enter(&uri, &head(1000)).unwrap().is_none());
        }
        let large = head(1_000_000);
        let mut held: Vec<Large> = Vec::new();
        while let Ok(Some(one)) = heads.enter(&uri, &large) {
            held.push(one);
        }
        assert_eq!(held.len(), ROOM / 1_000_100);
        assert!(heads.enter(&uri, &head(1000)).is_ok(), "small ones go on");
        held.pop();
        assert!(heads.enter(&uri, &large).is_ok());
    }
}
