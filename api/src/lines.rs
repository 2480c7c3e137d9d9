//! Lines cut out of what arrives piece by piece.

use bytes::{Buf as _, Bytes, BytesMut};

/// What has arrived and was not taken yet, at most so many bytes.
#[derive(Debug)]
pub struct Lines {
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    n_searched: usize,
    limit: usize,
}

/// A line that is longer than it may be, in bytes.
#[derive(Debug, thiserror::Error)]
#[error("a line is longer than {0} bytes")]
pub struct TooLong(pub usize);

impl Lines {
    /// Of lines that have at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), n_searched: 0, limit }
    }

    /// Adds what comes next.
    pub fn push(&mut self, data: &[u8]) -> Result<(), TooLong> {
        if self.limit < self.buffer.len() + data.len() {
            return Err(TooLong(self.limit));
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    /// The next whole line that is not blank, without its end.
    pub fn pop(&mut self) -> Option<Bytes> {
        loop {
            let unsearched = self.buffer.get(self.n_searched..)?;
            let Some(at) = memchr::memchr(b'\n', unsearched) else {
                self.n_searched = self.buffer.len();
                return None;
            };
            let line = self.buffer.split_to(self.n_searched + at).freeze();
            self.buffer.advance(1);
            self.n_searched = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut() {
        let text = b"one\ntwo\n\n \nthree\nfou";
        for size in 1..=text.len() {
            let mut lines = Lines::new(64);
            let mut found = Vec::new();
            for chunk in text.chunks(size) {
                lines.push(chunk).unwrap();
                while let Some(line) = lines.pop() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            assert_eq!(found, ["one", "two", "three"], "cut every {size} bytes");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::new(64);
        lines.push(&[b'x'; 64]).unwrap();
        assert!(lines.pop().is_none());
        assert!(lines.push(b"x").is_err());
    }
}
