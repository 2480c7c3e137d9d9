//! A SPDY connection inside a WebSocket: its bytes are the content of binary messages.

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::StreamError;

/// The sub-protocol's name.
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

const READ: usize = 32 << 10;

/// Joins the two until one side is gone.
pub(crate) async fn tunnel(user: Upgraded, runtime: Upgraded) -> Result<(), StreamError> {
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(user), Role::Server, None).await;
    let (mut to_user, mut from_user) = socket.split();
    let (mut from_runtime, mut to_runtime) = tokio::io::split(TokioIo::new(runtime));
    let up = async {
        while let Some(message) = from_user.next().await {
            match message? {
                Message::Binary(bytes) => to_runtime.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok(())
    };
    let down = async {
        loop {
            let mut bytes = BytesMut::with_capacity(READ);
            if from_runtime.read_buf(&mut bytes).await? == 0 {
                to_user.close().await?;
                return Ok(());
            }
            to_user.send(Message::Binary(bytes.freeze())).await?;
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
