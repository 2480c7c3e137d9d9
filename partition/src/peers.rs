//! How the parts of one partition on different servers talk to each other.
//!
//! What is said is this crate's own business: opaque bytes, encoded and decoded here. How it
//! travels is not: API servers carry it over HTTP/2 with mutual TLS, tests in memory.
//!
//! # What an implementation owes
//!
//! * The name of the sender that a receiver is given is proven (by its certificate), not claimed.
//! * Frames of one pair of servers arrive in order or not at all; raft copes with the rest.
//! * Nothing here is retried: whoever asks knows whether asking twice is safe.
//! * [`Peers::send`] is called from threads of this crate's own, which have no part in the
//!   process's runtime; the futures are polled on the runtime within which partitions were opened.

mod nobody;

use std::sync::Weak;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

pub use self::nobody::Nobody;

/// Why another server did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// Nothing was done there: it was not reached at all.
    #[error("server {server} cannot be reached: {reason}")]
    Unreachable { server: String, reason: String },
    /// It may have been done: the connection broke after the request was sent.
    #[error("server {server} did not answer: {reason}")]
    Broken { server: String, reason: String },
    /// It answered that it will not.
    #[error("server {server} refused: {reason}")]
    Refused { server: String, reason: String },
}

/// Bytes that arrive piece by piece, each piece as it was sent.
pub type Pieces = BoxStream<'static, Result<Bytes, PeerError>>;

/// This server's way to the others, by name.
pub trait Peers: Send + Sync + 'static {
    /// Delivers to `service` from now on what others send to this server. Called by whoever was
    /// given this way to the others, before it needs their answers. What arrives earlier, or
    /// after the service has gone, is refused.
    fn deliver_to(&self, service: Weak<dyn PeerService>) {
        drop(service);
    }

    /// Sends a frame to the server `to`. Never blocks; drops the frame if it cannot be sent now.
    fn send(&self, to: &str, frame: Bytes);

    /// Asks for one answer.
    fn call(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Asks for a stream of pieces. Dropping the stream ends it on both sides.
    fn stream(&self, to: &str, request: Bytes) -> BoxFuture<'_, Result<Pieces, PeerError>>;
}

/// The receiving end on each server, to which an implementation of [`Peers`] delivers.
pub trait PeerService: Send + Sync + 'static {
    /// A frame from the server `from`. Never blocks.
    fn receive(&self, from: &str, frame: Bytes);

    /// Answers a [`Peers::call`]. A refusal is its text.
    fn answer(&self, from: &str, request: Bytes) -> BoxFuture<'_, Result<Bytes, String>>;

    /// Answers a [`Peers::stream`]: pieces until either side ends it.
    fn pieces(
        &self,
        from: &str,
        request: Bytes,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, String>>;
}
