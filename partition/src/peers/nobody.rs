//! For a server that has no others.

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, ready},
};

use super::{PeerError, Peers, Pieces};

/// Reaches nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl Nobody {
    fn error(to: &str) -> PeerError {
        let reason = "this server was started without others".into();
        PeerError::Unreachable { server: to.into(), reason }
    }
}

impl Peers for Nobody {
    fn send(&self, _to: &str, _frame: Bytes) {}

    fn call(&self, to: &str, _request: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        ready(Err(Self::error(to))).boxed()
    }

    fn stream(&self, to: &str, _request: Bytes) -> BoxFuture<'_, Result<Pieces, PeerError>> {
        ready(Err(Self::error(to))).boxed()
    }
}
