//! Joins a WebSocket, with its channels, to a SPDY connection, with its streams.
//!
//! Two tasks, one for each direction, so that neither waits for the other: a command that reads
//! nothing must not keep its output from its user.

use bytes::{Bytes, BytesMut};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    StreamError,
    protocol::{CLOSE, Channels, ERROR, Protocol, RESIZE, STDERR, STDIN, STDOUT},
};
use crate::spdy::{Decoder, Encoder, Frame};

/// The longest message a user may send.
const MAX_MESSAGE: usize = 4 << 20;
/// The longest word of the runtime on a command's end.
const MAX_STATUS: usize = 64 << 10;
const READ: usize = 32 << 10;
/// Answers to pings that wait to be sent.
const MAX_PONGS: usize = 16;

/// Joins the two until the command has ended or one side is gone.
pub(crate) async fn translate(
    user: Upgraded,
    runtime: Upgraded,
    protocol: Protocol,
    channels: Channels,
) -> Result<(), StreamError> {
    translate_io(TokioIo::new(user), TokioIo::new(runtime), protocol, channels).await
}

/// Like `translate`, over any connections.
pub async fn translate_io<U, R>(
    user: U,
    runtime: R,
    protocol: Protocol,
    channels: Channels,
) -> Result<(), StreamError>
where
    U: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(user, Role::Server, Some(config)).await;
    let (to_user, from_user) = socket.split();
    let (from_runtime, to_runtime) = tokio::io::split(runtime);
    let streams = Streams::new(channels);
    let (pongs, waiting_pongs) = mpsc::channel(MAX_PONGS);
    let mut up = Up {
        to_runtime,
        encoder: Encoder::new()?,
        out: BytesMut::new(),
        protocol,
        streams: streams.clone(),
    };
    let opened = up.open().await;
    let mut down = Down {
        from_runtime,
        to_user,
        decoder: Decoder::default(),
        protocol,
        streams,
        status: Vec::new(),
        n_open: 0,
        pongs,
    };
    if opened.is_err() {
        down.finish().await?;
        return opened;
    }
    tokio::select! {
        ended = down.run() => ended,
        // A user who has gone ends the connection to the runtime, which ends the command's streams.
        ended = up.run(from_user, waiting_pongs) => ended,
    }
}

/// The SPDY streams of a command. A client's streams have odd numbers.
#[derive(Debug, Clone)]
struct Streams(Vec<(u8, u32, &'static str)>);

impl Streams {
    fn new(channels: Channels) -> Self {
        let wanted = [
            (true, ERROR, "error"),
            (channels.stdin, STDIN, "stdin"),
            (channels.stdout, STDOUT, "stdout"),
            (channels.stderr, STDERR, "stderr"),
            (channels.resize, RESIZE, "resize"),
        ];
        let wanted = wanted.into_iter().filter(|(is_wanted, ..)| *is_wanted);
        let numbered = (0..).zip(wanted);
        Self(numbered.map(|(n, (_, channel, name))| (channel, 2 * n + 1, name)).collect())
    }

    fn id(&self, channel: u8) -> Option<u32> {
        self.0.iter().find(|(it, ..)| *it == channel).map(|(_, id, _)| *id)
    }

    fn channel(&self, id: u32) -> Option<u8> {
        self.0.iter().find(|(_, it, _)| *it == id).map(|(channel, ..)| *channel)
    }
}

/// From the user to the runtime.
struct Up<R> {
    to_runtime: WriteHalf<R>,
    encoder: Encoder,
    out: BytesMut,
    protocol: Protocol,
    streams: Streams,
}

impl<R: AsyncRead + AsyncWrite> Up<R> {
    async fn send(&mut self, frame: &Frame) -> Result<(), StreamError> {
        self.encoder.encode(frame, &mut self.out)?;
        self.to_runtime.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    async fn open(&mut self) -> Result<(), StreamError> {
        for (_, stream, name) in self.streams.0.clone() {
            let headers = vec![("streamtype".to_owned(), name.to_owned())];
            self.send(&Frame::SynStream { stream, fin: false, headers }).await?;
        }
        Ok(())
    }

    async fn run<U: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        mut from_user: SplitStream<WebSocketStream<U>>,
        mut pongs: mpsc::Receiver<u32>,
    ) -> Result<(), StreamError> {
        let mut is_stdin_open = self.streams.id(STDIN).is_some();
        loop {
            let message = tokio::select! {
                Some(id) = pongs.recv() => {
                    self.send(&Frame::Ping { id }).await?;
                    continue;
                }
                message = from_user.next() => message,
            };
            let message = match message {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(message) => message?,
            };
            let Some((channel, bytes)) = self.protocol.read(&message) else { continue };
            let frame = match channel {
                STDIN if is_stdin_open && !bytes.is_empty() => (STDIN, false, bytes),
                RESIZE => (RESIZE, false, bytes),
                CLOSE if is_stdin_open && bytes.first() == Some(&STDIN) => {
                    is_stdin_open = false;
                    (STDIN, true, Bytes::new())
                }
                _ => continue,
            };
            let (channel, fin, bytes) = frame;
            if let Some(stream) = self.streams.id(channel) {
                self.send(&Frame::Data { stream, fin, bytes }).await?;
            }
        }
    }
}

/// From the runtime to the user.
struct Down<U, R> {
    from_runtime: ReadHalf<R>,
    to_user: SplitSink<WebSocketStream<U>, Message>,
    decoder: Decoder,
    protocol: Protocol,
    streams: Streams,
    /// The runtime's word on the command's end, as far as it has arrived.
    status: Vec<u8>,
    n_open: usize,
    pongs: mpsc::Sender<u32>,
}

impl<U, R> Down<U, R>
where
    U: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite,
{
    async fn run(&mut self) -> Result<(), StreamError> {
        // Tells the user that the connection stands, also if the command stays silent.
        let first = if self.streams.id(STDOUT).is_some() { STDOUT } else { ERROR };
        self.to_user.send(self.protocol.message(first, b"")).await?;
        let outputs = [ERROR, STDOUT, STDERR];
        self.n_open = outputs.iter().filter(|it| self.streams.id(**it).is_some()).count();
        let ended = self.follow().await;
        self.finish().await?;
        ended
    }

    /// Until all streams of the command are closed, or the runtime is gone.
    async fn follow(&mut self) -> Result<(), StreamError> {
        loop {
            while let Some(frame) = self.decoder.frame()? {
                self.take(frame).await?;
            }
            if self.n_open == 0 {
                return Ok(());
            }
            self.decoder.buffer().reserve(READ);
            if self.from_runtime.read_buf(self.decoder.buffer()).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), StreamError> {
        match frame {
            Frame::Data { stream, fin, bytes } => {
                match self.streams.channel(stream) {
                    Some(ERROR) => {
                        let room = MAX_STATUS - self.status.len().min(MAX_STATUS);
                        self.status.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    }
                    Some(channel @ (STDOUT | STDERR)) if !bytes.is_empty() => {
                        self.to_user.send(self.protocol.message(channel, &bytes)).await?;
                    }
                    _ => {}
                }
                if fin {
                    self.closed(stream);
                }
            }
            Frame::SynReply { stream, fin: true, .. }
            | Frame::Headers { stream, fin: true, .. }
            | Frame::RstStream { stream, .. } => self.closed(stream),
            // Even numbers are the runtime's own; others answer what we never ask. An answer that
            // finds no room is one of too many.
            Frame::Ping { id } if id % 2 == 0 => drop(self.pongs.try_send(id)),
            _ => {}
        }
        Ok(())
    }

    fn closed(&mut self, stream: u32) {
        if matches!(self.streams.channel(stream), Some(ERROR | STDOUT | STDERR)) {
            self.n_open = self.n_open.saturating_sub(1);
        }
    }

    async fn finish(&mut self) -> Result<(), StreamError> {
        if self.status.is_empty() {
            // The runtime went away without a word.
            let lost = json!({"metadata": {}, "status": "Failure", "reason": "InternalError",
                "code": 500, "message": "the container runtime closed the connection"});
            self.status = lost.to_string().into_bytes();
        }
        if let Some(end) = self.protocol.end(&self.status) {
            self.to_user.send(end).await?;
        }
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.to_user.send(Message::Close(Some(close))).await?;
        self.to_user.close().await?;
        Ok(())
    }
}
