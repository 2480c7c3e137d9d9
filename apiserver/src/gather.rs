//! One write to the socket for all that a connection has to say at a moment.
//!
//! HTTP/2 flushes after every frame: a hundred watches of one connection that are told of one
//! change would cost a hundred TLS records, system calls and packets. Here a flush only marks the
//! end of a frame; what was written goes out when the connection has nothing more to say for now,
//! which its task knows, or when much has come together. Before that, other tasks that are ready
//! have their turn, as they may have something to say on the same connection.
//!
//! # Invariants
//!
//! * Whenever [`Gathering`] waits, all that was written is with the socket, or the task is
//!   woken as soon as the socket takes more.
//! * Once a connection has been handed over to another protocol nothing is kept back any more.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much comes together at most, in bytes.
const LIMIT: usize = 64 * 1024;
/// With so much, nobody is waited for.
const ENOUGH: usize = 32 * 1024;
/// What is as long as this, and comes first, is not copied.
const LONG: usize = 16 * 1024;
/// So much comes in and goes out in one poll, about: then it is the turn of others, however much the
/// socket has or takes. Encrypting it takes some tens of microseconds.
const AT_ONCE: usize = 128 * 1024;
/// So much memory an idle connection may keep.
const KEPT: usize = 2 * 1024;

/// Both ends of a stream whose writes are gathered: one for whoever writes, one to drive it.
pub(crate) fn gather<S>(stream: S) -> (Gathered<S>, Gathering<S>) {
    let state = State { stream, out: BytesMut::new(), left: AT_ONCE, is_driven: true };
    let state = Arc::new(Mutex::new(state));
    (Gathered(state.clone()), Gathering(state))
}

struct State<S> {
    stream: S,
    out: BytesMut,
    /// How much more may come in or go out before it is the turn of others.
    left: usize,
    /// Somebody takes care that what was written goes out.
    is_driven: bool,
}

impl<S> State<S> {
    /// Whether it is the turn of others; if so, the task is woken after them.
    fn is_over(&self, context: &Context<'_>) -> bool {
        let is_over = self.is_driven && self.left == 0;
        if is_over {
            context.waker().wake_by_ref();
        }
        is_over
    }
}

impl<S: AsyncWrite + Unpin> State<S> {
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            self.left = self.left.saturating_sub(written);
        }
        if KEPT < self.out.capacity() {
            self.out = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }
}

/// The stream, for whoever speaks over it.
pub(crate) struct Gathered<S>(Arc<Mutex<State<S>>>);

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let state = &mut *self.0.lock();
        if state.is_over(context) {
            return Poll::Pending;
        }
        let before = into.filled().len();
        let read = Pin::new(&mut state.stream).poll_read(context, into);
        state.left = state.left.saturating_sub(into.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let state = &mut *self.0.lock();
        if state.is_over(context) {
            return Poll::Pending;
        }
        let length: usize = slices.iter().map(|it| it.len()).sum();
        if !state.is_driven || !state.out.is_empty() && LIMIT < state.out.len() + length {
            ready!(state.drain(context))?;
        }
        if !state.is_driven || state.out.is_empty() && LONG <= length {
            let written = ready!(Pin::new(&mut state.stream).poll_write_vectored(context, slices))?;
            state.left = state.left.saturating_sub(written);
            return Poll::Ready(Ok(written));
        }
        // Where more than a little comes together, much does: it is not moved each time it doubles.
        if state.out.capacity() < state.out.len() + length && KEPT < state.out.len() + length {
            state.out.reserve(LIMIT - state.out.len());
        }
        slices.iter().for_each(|it| state.out.extend_from_slice(it));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.lock();
        match state.is_driven {
            true => Poll::Ready(Ok(())),
            false => state.flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.lock();
        ready!(state.drain(context))?;
        Pin::new(&mut state.stream).poll_shutdown(context)
    }
}

/// What sends what was gathered.
pub(crate) struct Gathering<S>(Arc<Mutex<State<S>>>);

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Runs `connection`, which speaks over the other end, and sends what it says. What it says
    /// last goes out with [`Gathering::finish`].
    pub(crate) async fn drive<F>(&self, connection: F) -> io::Result<()>
    where
        F: Future<Output = io::Result<()>>,
    {
        let mut connection = pin!(connection);
        // How much there was to be sent at the last look.
        let mut before = 0;
        poll_fn(|context| {
            let outcome = connection.as_mut().poll(context);
            let state = &mut *self.0.lock();
            state.left = AT_ONCE;
            if outcome.is_pending() && before < state.out.len() && state.out.len() < ENOUGH {
                before = state.out.len();
                // Woken while it runs, a task comes after all others that are ready.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let flushed = state.flush(context);
            before = state.out.len();
            match flushed {
                Poll::Ready(Err(error)) if outcome.is_pending() => Poll::Ready(Err(error)),
                _ => outcome,
            }
        })
        .await
    }

    /// Sends the rest. From now on nothing is kept back.
    pub(crate) async fn finish(self) -> io::Result<()> {
        poll_fn(|context| {
            let state = &mut *self.0.lock();
            // Whoever took the stream over may flush it at this very moment.
            state.is_driven = false;
            state.flush(context)
        })
        .await
    }
}

impl<S> Drop for Gathering<S> {
    fn drop(&mut self) {
        self.0.lock().is_driven = false;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Counts writes.
    struct Counted<S>(S, usize);

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    #[tokio::test]
    async fn frames_of_one_moment_go_out_together() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (mut writer, gathering) = gather(Counted(near, 0));
        let speak = async {
            for n in 0..100_u8 {
                writer.write_all(&[n; 10]).await.unwrap();
                writer.flush().await.unwrap();
            }
            Ok(())
        };
        gathering.drive(speak).await.unwrap();
        assert_eq!(gathering.0.lock().stream.1, 1);
        gathering.finish().await.unwrap();
        let mut got = vec![0; 1000];
        far.read_exact(&mut got).await.unwrap();
        assert!(
            got.chunks(10).enumerate().all(|(n, it)| it.iter().all(|it| usize::from(*it) == n))
        );
    }

    #[tokio::test]
    async fn others_have_their_turn_while_much_comes_in() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let sent = vec![7; 1 << 20];
        far.write_all(&sent).await.unwrap();
        drop(far);
        let (mut reader, gathering) = gather(near);
        let mut got = Vec::new();
        let read = async {
            let mut piece = [0; 16 * 1024];
            loop {
                match reader.read(&mut piece).await? {
                    0 => return Ok(()),
                    read => got.extend_from_slice(&piece[..read]),
                }
            }
        };
        let mut driving = Box::pin(gathering.drive(read));
        let mut turns = 1;
        while futures::poll!(&mut driving).is_pending() {
            turns += 1;
        }
        assert!((8..=10).contains(&turns), "{turns}");
        drop(driving);
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn others_have_their_turn_first() {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let (mut writer, gathering) = gather(Counted(near, 0));
        let notify = Arc::new(tokio::sync::Notify::new());
        let told = notify.clone();
        // What the connection says next depends on another task, which is ready by then.
        let speak = async move {
            writer.write_all(b"a").await?;
            told.notified().await;
            writer.write_all(b"b").await?;
            std::future::pending().await
        };
        let driving = async { gathering.drive(speak).await };
        let other = async {
            notify.notify_one();
            std::future::pending::<()>().await;
        };
        let mut got = [0; 2];
        tokio::select! {
            biased;
            ended = driving => ended.unwrap(),
            () = other => (),
            read = far.read_exact(&mut got) => assert_eq!(read.unwrap(), 2),
        }
        assert_eq!((&got, gathering.0.lock().stream.1), (b"ab", 1));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_complete() {
        let (near, mut far) = tokio::io::duplex(1000);
        let (mut writer, gathering) = gather(near);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|it| it.to_le_bytes()[0]).collect();
        let all = sent.clone();
        let task = tokio::spawn(async move {
            let state = gathering.0.clone();
            let speak = async {
                for chunk in all.chunks(777) {
                    writer.write_all(chunk).await.unwrap();
                    writer.flush().await.unwrap();
                    assert!(state.lock().out.len() <= LIMIT);
                }
                Ok(())
            };
            gathering.drive(speak).await.unwrap();
            gathering.finish().await.unwrap();
            // Nobody drives any more.
            writer.write_all(b"end").await.unwrap();
            drop(writer);
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        task.await.unwrap();
        assert!(got[..sent.len()] == sent[..] && got[sent.len()..] == *b"end");
    }
}
