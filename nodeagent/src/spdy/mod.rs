//! SPDY/3.1 framing, without I/O: bytes in, frames out, and the other way round.
//!
//! Streams to and from containers travel in it: the runtime's streaming server speaks nothing else,
//! and so do older clients.
//!
//! # Invariants
//!
//! * A peer can make this code hold at most one control frame of `MAX_CONTROL` bytes and one
//!   header block of `MAX_HEADERS` bytes; data is handed on in the pieces in which it arrives.
//! * Header blocks of one direction share one compression context, so each must be decoded in
//!   order, also those that nobody wants.
//!
//! # What is deliberately absent
//!
//! Flow control. The peers we meet neither send window updates nor heed them; what limits a sender
//! is the connection itself.

mod decode;
mod dictionary;
mod encode;
mod frame;

pub use self::{
    decode::Decoder,
    encode::Encoder,
    frame::{Frame, Headers, SpdyError},
};

/// The longest control frame that is taken.
const MAX_CONTROL: usize = 64 << 10;
/// The longest header block, decompressed.
const MAX_HEADERS: usize = 64 << 10;

#[cfg(test)]
mod tests;
