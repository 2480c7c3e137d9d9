//! Bytes to frames.

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::{
    MAX_CONTROL, MAX_HEADERS,
    dictionary::dictionary,
    frame::{
        FLAG_FIN, Frame, GOAWAY, HEADERS, Headers, ID, PING, RST_STREAM, SETTINGS, SYN_REPLY,
        SYN_STREAM, SpdyError, VERSION, WINDOW_UPDATE,
    },
};

const HEAD: usize = 8;

/// Decodes what one peer sends.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// The data frame that has not arrived in full.
    open: Option<OpenData>,
    inflate: Decompress,
}

#[derive(Debug)]
struct OpenData {
    stream: u32,
    fin: bool,
    n_left: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), open: None, inflate: Decompress::new(true) }
    }
}

impl Decoder {
    /// Room for what was read from the connection.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether the rest of a data frame is still to come.
    #[cfg(test)]
    pub(super) fn is_inside_data(&self) -> bool {
        self.open.is_some()
    }

    /// The next frame, or `None` until more has arrived.
    pub fn frame(&mut self) -> Result<Option<Frame>, SpdyError> {
        if let Some(open) = &mut self.open {
            if self.buffer.is_empty() {
                return Ok(None);
            }
            let bytes = self.buffer.split_to(self.buffer.len().min(open.n_left)).freeze();
            open.n_left -= bytes.len();
            let (stream, fin) = (open.stream, open.fin && open.n_left == 0);
            if open.n_left == 0 {
                self.open = None;
            }
            return Ok(Some(Frame::Data { stream, fin, bytes }));
        }
        let Some((head, rest)) = self.buffer.split_at_checked(HEAD) else { return Ok(None) };
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let fin = flags & FLAG_FIN != 0;
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if word & !ID == 0 {
            self.buffer.advance(HEAD);
            if length == 0 {
                return Ok(Some(Frame::Data { stream: word, fin, bytes: Bytes::new() }));
            }
            self.open = Some(OpenData { stream: word, fin, n_left: length });
            return self.frame();
        }
        let version = u16::from_be_bytes([head[0], head[1]]);
        let kind = u16::from_be_bytes([head[2], head[3]]);
        if version != VERSION {
            return Err(SpdyError::Version(version & 0x7fff));
        }
        if length > MAX_CONTROL {
            return Err(SpdyError::Length { kind, length });
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.buffer.advance(HEAD);
        let body = self.buffer.split_to(length).freeze();
        self.control(kind, fin, body).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, SpdyError> {
        let length = body.len();
        let bad_length = || SpdyError::Length { kind, length };
        let mut word = || body.try_get_u32().map_err(|_| bad_length());
        Ok(match kind {
            SYN_STREAM => {
                let stream = word()? & ID;
                let _associated = word()?;
                body.try_get_u16().map_err(|_| bad_length())?;
                Frame::SynStream { stream, fin, headers: self.headers(&body)? }
            }
            SYN_REPLY => {
                let stream = word()? & ID;
                Frame::SynReply { stream, fin, headers: self.headers(&body)? }
            }
            HEADERS => {
                let stream = word()? & ID;
                Frame::Headers { stream, fin, headers: self.headers(&body)? }
            }
            RST_STREAM => Frame::RstStream { stream: word()? & ID, status: word()? },
            SETTINGS => Frame::Settings,
            PING => Frame::Ping { id: word()? },
            GOAWAY => Frame::GoAway { last_stream: word()? & ID, status: word()? },
            WINDOW_UPDATE => Frame::WindowUpdate { stream: word()? & ID, delta: word()? & ID },
            other => return Err(SpdyError::Type(other)),
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let plain = self.decompress(block)?;
        let mut rest = &plain[..];
        let number = |rest: &mut &[u8]| {
            let number = rest.try_get_u32().map_err(|_| SpdyError::HeadersMalformed)?;
            usize::try_from(number).map_err(|_| SpdyError::HeadersMalformed)
        };
        let text = |rest: &mut &[u8], length: usize| {
            let (text, after) = rest.split_at_checked(length).ok_or(SpdyError::HeadersMalformed)?;
            *rest = after;
            String::from_utf8(text.to_vec()).map_err(|_| SpdyError::HeadersMalformed)
        };
        let mut headers = Headers::new();
        for _ in 0..number(&mut rest)? {
            let length = number(&mut rest)?;
            // Names are in lower case; who writes them otherwise means the same.
            let name = text(&mut rest, length)?.to_ascii_lowercase();
            let length = number(&mut rest)?;
            headers.push((name, text(&mut rest, length)?));
        }
        Ok(headers)
    }

    fn decompress(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::with_capacity(1024);
        let mut n_taken = 0;
        while n_taken < block.len() || plain.len() == plain.capacity() {
            if plain.len() == plain.capacity() {
                if plain.len() >= MAX_HEADERS {
                    return Err(SpdyError::HeadersTooLong);
                }
                plain.reserve(plain.len().min(MAX_HEADERS - plain.len()));
            }
            let before = (self.inflate.total_in(), plain.len());
            let result =
                self.inflate.decompress_vec(&block[n_taken..], &mut plain, FlushDecompress::Sync);
            let n_read = self.inflate.total_in() - before.0;
            n_taken += usize::try_from(n_read).unwrap_or(usize::MAX);
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(SpdyError::Decompress)?;
                }
                Err(error) => return Err(SpdyError::Decompress(error)),
                // Nothing went in or out: the block is at its end.
                Ok(Status::BufError | Status::StreamEnd) => break,
                Ok(Status::Ok) if n_read == 0 && plain.len() == before.1 => break,
                Ok(Status::Ok) => {}
            }
        }
        Ok(plain)
    }
}
