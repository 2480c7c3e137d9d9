//! A minimal client of WebSockets.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use rustls::{ClientConnection, StreamOwned};

/// See the module.
pub(crate) struct Socket(Stream);

/// TLS to a server.
pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

impl Socket {
    /// Opens `path` as one of `protocols`, if it names any.
    pub(crate) fn open(mut stream: Stream, path: &str, protocol: &str) -> Self {
        let protocol = match protocol {
            "" => String::new(),
            name => format!("Sec-WebSocket-Protocol: {name}\r\n"),
        };
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        Self(stream)
    }

    /// Sends a short message; clients mask.
    pub(crate) fn send(&mut self, kind: u8, content: &[u8]) {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 126);
        let mask = [7, 11, 13, 17];
        let masked = content.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let frame: Vec<u8> =
            [0x80 | kind, 0x80 | length].into_iter().chain(mask).chain(masked).collect();
        self.0.write_all(&frame).unwrap();
        self.0.flush().unwrap();
    }

    /// The kind and content of the next message; servers do not mask.
    pub(crate) fn next(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut long = [0; 2];
                self.0.read_exact(&mut long).unwrap();
                usize::from(u16::from_be_bytes(long))
            }
            short => usize::from(short),
        };
        let mut content = vec![0; length];
        self.0.read_exact(&mut content).unwrap();
        (head[0] & 0x0f, content)
    }
}
