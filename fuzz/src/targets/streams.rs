//! What travels in upgraded connections: SPDY frames, and channels in WebSocket messages.

use std::time::Duration;

use bytes::BytesMut;
use insula_nodeagent::{
    spdy::{Decoder, Encoder, Frame, SpdyError},
    streams::{Channels, Protocol, translate_io},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::input;

/// The frames in `bytes`, which come in pieces of this length; without where data was cut.
fn decoded(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<SpdyError>) {
    let mut decoder = Decoder::default();
    let mut frames: Vec<Frame> = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.frame() {
                Ok(None) => break,
                Ok(Some(frame)) => frames.push(frame),
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(decoder.buffer().len() <= 128 << 10, "it keeps what it cannot need");
    }
    (frames, None)
}

/// The frames that are not data, and how much data each stream had.
fn told(frames: &[Frame]) -> (Vec<&Frame>, Vec<(u32, u8)>) {
    let control = frames.iter().filter(|it| !matches!(it, Frame::Data { .. })).collect();
    let data = frames.iter().filter_map(|it| match it {
        Frame::Data { stream, bytes, .. } => Some(bytes.iter().map(|byte| (*stream, *byte))),
        _ => None,
    });
    (control, data.flatten().collect())
}

/// Bytes of a SPDY connection.
pub(super) fn frames(bytes: &[u8]) {
    let (whole, error) = decoded(bytes, usize::MAX);
    let (pieces, also) = decoded(bytes, 3);
    assert_eq!(told(&whole), told(&pieces));
    assert_eq!(error.map(|it| it.to_string()), also.map(|it| it.to_string()));
    let Ok(mut encoder) = Encoder::new() else { panic!("no encoder") };
    let mut out = BytesMut::new();
    for frame in &whole {
        // What another wrote may be longer than what is sent here; it is refused, not cut.
        if encoder.encode(frame, &mut out).is_err() {
            return;
        }
    }
    let (again, error) = decoded(&out, usize::MAX);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(told(&again), told(&whole));
}

/// The name of a protocol, what a user sends, and what a runtime does.
pub(super) fn channels(bytes: &[u8]) {
    let [name, user, runtime] = input::parts(bytes);
    let protocol = input::text(name).and_then(Protocol::named).unwrap_or_default();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(tokio) = tokio else { panic!("no runtime") };
    tokio.block_on(async {
        let (here, mut user_end) = tokio::io::duplex(64 << 10);
        let (there, mut runtime_end) = tokio::io::duplex(64 << 10);
        let channels = Channels { stdin: true, stdout: true, stderr: true, resize: true };
        let joined = translate_io(here, there, protocol, channels);
        // Both say what they have to say, listen to nothing but that it is said, and go.
        let talk = async {
            let user = async {
                let said = user_end.write_all(user).await;
                let mut heard = Vec::new();
                let heard = user_end.read_buf(&mut heard).await;
                drop(user_end);
                (said.is_ok(), heard.is_ok())
            };
            let runtime = async {
                let said = runtime_end.write_all(runtime).await;
                let mut heard = Vec::new();
                let heard = runtime_end.read_buf(&mut heard).await;
                drop(runtime_end);
                (said.is_ok(), heard.is_ok())
            };
            tokio::join!(user, runtime)
        };
        let both = async { tokio::join!(joined, talk) };
        // A user who says nothing whole waits for an answer that does not come, as it should.
        let _ = tokio::time::timeout(Duration::from_millis(20), both).await;
    });
}
