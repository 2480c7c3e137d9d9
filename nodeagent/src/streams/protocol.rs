//! How streams share one WebSocket: a channel's number before each message.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio_tungstenite::tungstenite::Message;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// Its message names the channel that the sender has closed.
pub(super) const CLOSE: u8 = 255;

/// Which streams a command has. There is always one for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub resize: bool,
}

impl Channels {
    pub fn any(self) -> bool {
        self.stdin || self.stdout || self.stderr
    }
}

/// One of the sub-protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Protocol {
    /// Text messages in base64, with the channel as a digit.
    is_base64: bool,
    /// The end is told as a `Status`; else as a text, and only if it was a bad one.
    has_status: bool,
    /// A client can close its side of a channel.
    has_close: bool,
}

impl Protocol {
    pub fn named(name: &str) -> Option<Self> {
        let of = |is_base64, has_status, has_close| Self { is_base64, has_status, has_close };
        Some(match name {
            "v5.channel.k8s.io" => of(false, true, true),
            "v4.channel.k8s.io" => of(false, true, false),
            "v4.base64.channel.k8s.io" => of(true, true, false),
            "channel.k8s.io" => of(false, false, false),
            "base64.channel.k8s.io" => of(true, false, false),
            _ => return None,
        })
    }

    pub(super) fn message(self, channel: u8, bytes: &[u8]) -> Message {
        if self.is_base64 {
            Message::text(format!("{channel}{}", STANDARD.encode(bytes)))
        } else {
            let mut message = Vec::with_capacity(1 + bytes.len());
            message.push(channel);
            message.extend_from_slice(bytes);
            Message::binary(message)
        }
    }

    /// The channel and content of a message; `None` for one that has neither.
    pub(super) fn read(self, message: &Message) -> Option<(u8, Bytes)> {
        match message {
            Message::Binary(bytes) if !self.is_base64 => {
                let channel = *bytes.first()?;
                if channel == CLOSE && !self.has_close {
                    return None;
                }
                Some((channel, bytes.slice(1..)))
            }
            Message::Text(text) if self.is_base64 => {
                let (digit, rest) = text.as_str().split_at_checked(1)?;
                let channel = digit.parse().ok()?;
                Some((channel, STANDARD.decode(rest).ok()?.into()))
            }
            _ => None,
        }
    }

    /// What tells the user how the command ended, given the runtime's word on it.
    pub(super) fn end(self, status: &[u8]) -> Option<Message> {
        if self.has_status {
            return Some(self.message(ERROR, status));
        }
        let text = match serde_json::from_slice::<Status>(status) {
            Ok(status) if status.status.as_deref() == Some("Success") => return None,
            Ok(status) => status.message.unwrap_or_default().into_bytes(),
            Err(_) => status.to_vec(),
        };
        Some(self.message(ERROR, &text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        for name in ["v5.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io"] {
            let protocol = Protocol::named(name).unwrap();
            let message = protocol.message(STDERR, b"oh\0");
            assert_eq!(protocol.read(&message), Some((STDERR, Bytes::from_static(b"oh\0"))));
        }
        let v5 = Protocol::named("v5.channel.k8s.io").unwrap();
        assert_eq!(
            v5.read(&Message::binary(vec![255, 0])),
            Some((CLOSE, Bytes::from_static(&[0])))
        );
        let v4 = Protocol::named("v4.channel.k8s.io").unwrap();
        assert_eq!(v4.read(&Message::binary(vec![255, 0])), None);
        assert_eq!(v4.read(&Message::binary(Vec::new())), None);
        assert_eq!(v4.read(&Message::text("1eA==")), None);
        assert_eq!(Protocol::named("v9"), None);
    }

    #[test]
    fn ends() {
        let v1 = Protocol::named("channel.k8s.io").unwrap();
        assert_eq!(v1.end(br#"{"status":"Success"}"#), None);
        let failed = br#"{"status":"Failure","message":"exit 7"}"#;
        assert_eq!(v1.end(failed), Some(Message::binary(b"\x03exit 7".to_vec())));
        let v4 = Protocol::named("v4.channel.k8s.io").unwrap();
        assert_eq!(v4.end(b"{}"), Some(Message::binary(b"\x03{}".to_vec())));
    }
}
