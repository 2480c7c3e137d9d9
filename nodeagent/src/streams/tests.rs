//! The translation against a peer that speaks SPDY as a runtime does.

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{Channels, Protocol, translate::translate_io};
use crate::spdy::{Decoder, Encoder, Frame};

/// The runtime's end.
struct Runtime {
    io: DuplexStream,
    decoder: Decoder,
    encoder: Encoder,
}

impl Runtime {
    async fn receive(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.frame().unwrap() {
                return frame;
            }
            assert_ne!(self.io.read_buf(self.decoder.buffer()).await.unwrap(), 0, "closed");
        }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn data(&mut self, stream: u32, text: &'static str, fin: bool) {
        self.send(Frame::Data { stream, fin, bytes: Bytes::from_static(text.as_bytes()) }).await;
    }
}

async fn start(protocol: &str, channels: Channels) -> (WebSocketStream<DuplexStream>, Runtime) {
    let (user, our_user) = duplex(64 << 10);
    let (runtime, our_runtime) = duplex(64 << 10);
    let protocol = Protocol::named(protocol).unwrap();
    tokio::spawn(translate_io(our_user, our_runtime, protocol, channels));
    let user = WebSocketStream::from_raw_socket(user, Role::Client, None).await;
    let (decoder, encoder) = (Decoder::default(), Encoder::new().unwrap());
    (user, Runtime { io: runtime, decoder, encoder })
}

const ALL: Channels = Channels { stdin: true, stdout: true, stderr: true, resize: true };

#[tokio::test]
async fn a_command_from_start_to_end() {
    let (mut user, mut runtime) = start("v5.channel.k8s.io", ALL).await;
    let mut names = Vec::new();
    for _ in 0..5 {
        let Frame::SynStream { stream, headers, .. } = runtime.receive().await else { panic!() };
        names.push(format!("{stream}={}", headers[0].1));
    }
    assert_eq!(names.join(" "), "1=error 3=stdin 5=stdout 7=stderr 9=resize");
    assert_eq!(user.next().await.unwrap().unwrap(), Message::binary(vec![1]));

    for message in [&b"\0typed"[..], b"\x04{\"Width\":80}", b"\xff\0", b"\0too late"] {
        user.send(Message::binary(message.to_vec())).await.unwrap();
    }
    let data = |stream, fin, text: &'static str| Frame::Data {
        stream,
        fin,
        bytes: Bytes::from_static(text.as_bytes()),
    };
    assert_eq!(runtime.receive().await, data(3, false, "typed"));
    assert_eq!(runtime.receive().await, data(9, false, "{\"Width\":80}"));
    assert_eq!(runtime.receive().await, data(3, true, ""));
    runtime.send(Frame::Ping { id: 2 }).await;
    assert_eq!(runtime.receive().await, Frame::Ping { id: 2 });

    runtime.data(5, "out", false).await;
    runtime.data(7, "err", true).await;
    runtime.data(1, "{\"status\":", false).await;
    runtime.data(1, "\"Success\"}", true).await;
    runtime.data(5, "", true).await;
    let mut messages = Vec::new();
    while let Some(Ok(message)) = user.next().await {
        messages.push(message);
    }
    assert_eq!(
        messages[..3],
        [
            Message::binary(b"\x01out".to_vec()),
            Message::binary(b"\x02err".to_vec()),
            Message::binary(b"\x03{\"status\":\"Success\"}".to_vec()),
        ]
    );
    assert!(matches!(&messages[3], Message::Close(Some(it)) if u16::from(it.code) == 1000));
}

#[tokio::test]
async fn a_runtime_that_goes_away_is_told() {
    let channels = Channels { stdin: false, stdout: true, stderr: false, resize: false };
    let (mut user, runtime) = start("v4.channel.k8s.io", channels).await;
    drop(runtime);
    let mut last = None;
    while let Some(Ok(Message::Binary(bytes))) = user.next().await {
        last = Some(bytes);
    }
    let last = last.unwrap();
    assert!(last.starts_with(b"\x03{"), "{last:?}");
    assert!(String::from_utf8_lossy(&last).contains("InternalError"));
}

#[tokio::test]
async fn a_user_who_goes_away_ends_the_streams() {
    let (user, mut runtime) = start("channel.k8s.io", ALL).await;
    for _ in 0..5 {
        runtime.receive().await;
    }
    drop(user);
    let mut rest = Vec::new();
    runtime.io.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}
