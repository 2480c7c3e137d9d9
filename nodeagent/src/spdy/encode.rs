//! Frames to bytes.

use bytes::{BufMut, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

use super::{
    dictionary::dictionary,
    frame::{
        FLAG_FIN, Frame, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, SYN_REPLY, SYN_STREAM,
        SpdyError, VERSION, WINDOW_UPDATE,
    },
};

/// A frame's length has 24 bits; longer data takes several.
const MAX_DATA: usize = (1 << 24) - 1;

/// Encodes what is sent to one peer.
#[derive(Debug)]
pub struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub fn new() -> Result<Self, SpdyError> {
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(&dictionary()).map_err(SpdyError::Compress)?;
        Ok(Self { deflate })
    }

    /// Appends the bytes of `frame`.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                let block = self.headers(headers)?;
                control(out, SYN_STREAM, *fin, 10 + block.len())?;
                out.put_u32(*stream);
                // No associated stream, the highest priority.
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, fin, headers } => {
                let block = self.headers(headers)?;
                control(out, SYN_REPLY, *fin, 4 + block.len())?;
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Headers { stream, fin, headers } => {
                let block = self.headers(headers)?;
                control(out, HEADERS, *fin, 4 + block.len())?;
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::RstStream { stream, status } => {
                control(out, RST_STREAM, false, 8)?;
                out.put_u32(*stream);
                out.put_u32(*status);
            }
            Frame::Settings => {
                control(out, SETTINGS, false, 4)?;
                out.put_u32(0);
            }
            Frame::Ping { id } => {
                control(out, PING, false, 4)?;
                out.put_u32(*id);
            }
            Frame::GoAway { last_stream, status } => {
                control(out, GOAWAY, false, 8)?;
                out.put_u32(*last_stream);
                out.put_u32(*status);
            }
            Frame::WindowUpdate { stream, delta } => {
                control(out, WINDOW_UPDATE, false, 8)?;
                out.put_u32(*stream);
                out.put_u32(*delta);
            }
            Frame::Data { stream, fin, bytes } => {
                let mut rest = &bytes[..];
                loop {
                    let (now, later) = rest.split_at(rest.len().min(MAX_DATA));
                    let is_last = later.is_empty();
                    out.put_u32(*stream);
                    out.put_u8(if *fin && is_last { FLAG_FIN } else { 0 });
                    out.put_uint(now.len() as u64, 3);
                    out.put_slice(now);
                    if is_last {
                        break;
                    }
                    rest = later;
                }
            }
        }
        Ok(())
    }

    fn headers(&mut self, headers: &[(String, String)]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = BytesMut::new();
        let put = |plain: &mut BytesMut, text: &str| {
            let length = u32::try_from(text.len()).map_err(|_| SpdyError::HeadersTooLong)?;
            plain.put_u32(length);
            plain.put_slice(text.as_bytes());
            Ok(())
        };
        plain.put_u32(u32::try_from(headers.len()).map_err(|_| SpdyError::HeadersTooLong)?);
        for (name, value) in headers {
            put(&mut plain, &name.to_ascii_lowercase())?;
            put(&mut plain, value)?;
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = &plain[..];
        loop {
            let before = self.deflate.total_in();
            self.deflate
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .map_err(SpdyError::Compress)?;
            let n_read = usize::try_from(self.deflate.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(n_read..).unwrap_or_default();
            // Room left means that all, with the end of the block, has been written.
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(256);
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) -> Result<(), SpdyError> {
    if length > MAX_DATA {
        return Err(SpdyError::Length { kind, length });
    }
    out.put_u16(VERSION);
    out.put_u16(kind);
    out.put_u8(if fin { FLAG_FIN } else { 0 });
    out.put_uint(length as u64, 3);
    Ok(())
}
