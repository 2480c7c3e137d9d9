//! Remote command streams: WebSocket on the user's side, SPDY on the runtime's.

mod protocol;
mod translate;
mod tunnel;

pub use self::{
    protocol::{Channels, Protocol},
    translate::translate_io,
};
pub(crate) use self::{
    translate::translate,
    tunnel::{TUNNEL, tunnel},
};

/// Why a stream ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the user's connection broke")]
    WebSocket(#[from] tokio_tungstenite::tungstenite::Error),
    #[error("the runtime's connection broke")]
    Runtime(#[from] std::io::Error),
    #[error("the runtime's streams are not SPDY")]
    Spdy(#[from] crate::spdy::SpdyError),
}

#[cfg(test)]
mod tests;
