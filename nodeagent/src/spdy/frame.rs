//! The frames of SPDY/3.1.

use bytes::Bytes;

/// Names, in lower case, and values in the order sent. Values of one name are joined by NUL.
pub type Headers = Vec<(String, String)>;

/// `version` of control frames, with the bit that tells them from data.
pub(super) const VERSION: u16 = 0x8003;
pub(super) const SYN_STREAM: u16 = 1;
pub(super) const SYN_REPLY: u16 = 2;
pub(super) const RST_STREAM: u16 = 3;
pub(super) const SETTINGS: u16 = 4;
pub(super) const PING: u16 = 6;
pub(super) const GOAWAY: u16 = 7;
pub(super) const HEADERS: u16 = 8;
pub(super) const WINDOW_UPDATE: u16 = 9;
pub(super) const FLAG_FIN: u8 = 1;
/// Stream ids have 31 bits.
pub(super) const ID: u32 = 0x7fff_ffff;

/// One frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    /// What it says is of no use here.
    Settings,
    Ping {
        id: u32,
    },
    GoAway {
        last_stream: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// `fin` only with the last piece.
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
}

/// Why bytes are no SPDY. The connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("SPDY frame of version {0}, expected 3")]
    Version(u16),
    #[error("SPDY frame of unknown type {0}")]
    Type(u16),
    #[error("SPDY frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("SPDY header block exceeds {} bytes", super::MAX_HEADERS)]
    HeadersTooLong,
    #[error("SPDY header block is malformed")]
    HeadersMalformed,
    #[error("cannot decompress a SPDY header block")]
    Decompress(#[source] flate2::DecompressError),
    #[error("cannot compress a SPDY header block")]
    Compress(#[source] flate2::CompressError),
}
