//! Kubernetes' protobuf encoding, read and written by the type graph.
//!
//! A body is the four bytes `k8s\0` and a `runtime.Unknown` message that carries apiVersion, kind
//! and the object's own message. Clients since kubectl 1.32 send it for every
//! `create <generator>` and have no way back to JSON.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::decode;
pub use encode::{EncodeError, List, enveloped, event, message};

const MAGIC: &[u8] = b"k8s\0";

/// Why bytes are not a Kubernetes protobuf object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Magic,
    #[error("empty body")]
    Empty,
    #[error("unexpected EOF")]
    Truncated,
    #[error("illegal protobuf data: {0}")]
    Malformed(&'static str),
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
    #[error("content encoding {0:?} is not supported")]
    Encoding(String),
    #[error("unable to parse quantity {0:?}")]
    Quantity(String),
}
