//! A connection, with an end to the patience with whoever is at its other end.
//!
//! Who connects and says nothing, who never finishes its first request, and who takes nothing of
//! what it asked for, is cut off. What the HTTP library watches itself (heads over HTTP/1.1, pings
//! over HTTP/2) begins later, or ends sooner, than that.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long the other end may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For its TLS handshake.
    pub handshake: Duration,
    /// To send the head of a request.
    pub head: Duration,
    /// To take anything of what is sent.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            stall: Duration::from_secs(60),
        }
    }
}

/// What is known of a connection by those who answer on it.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// A request has come.
    asked: AtomicBool,
    /// It carries something else than HTTP by now: both ends may rest as long as they like.
    is_pipe: AtomicBool,
}

impl Known {
    pub(super) fn asked(&self) {
        // Mostly it is known: a write would take the line from other cores.
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_pipe(&self) {
        self.is_pipe.store(true, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link<S> {
    stream: S,
    known: Arc<Known>,
    patience: Patience,
    /// Runs until the first request is there.
    beginning: Option<Pin<Box<Sleep>>>,
    /// Runs while nothing of what is to be sent is taken.
    stalled: Option<Pin<Box<Sleep>>>,
    /// It did so for too long. Who writes may be another than who decides what becomes of it.
    is_over: bool,
}

impl<S> Link<S> {
    pub(super) fn new(stream: S, known: Arc<Known>, patience: Patience) -> Self {
        let beginning = Some(Box::pin(sleep(patience.head)));
        Self { stream, known, patience, beginning, stalled: None, is_over: false }
    }

    /// What a write came to, if it is not that it has waited for too long.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        if self.known.is_pipe.load(Ordering::Relaxed) {
            return outcome;
        }
        let stall = self.patience.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => {
                if !std::mem::replace(&mut self.is_over, true) {
                    // Whoever reads is to hear of it too.
                    context.waker().wake_by_ref();
                }
                Poll::Ready(Err(late("nothing was taken")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

fn late(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{why} for too long"))
}

impl<S: AsyncRead + Unpin> AsyncRead for Link<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let it = &mut *self;
        if it.is_over {
            return Poll::Ready(Err(late("nothing was taken")));
        }
        if it.beginning.is_some() && it.known.asked.load(Ordering::Relaxed) {
            it.beginning = None;
        }
        // However much comes: a request has to come of it.
        if let Some(beginning) = &mut it.beginning
            && beginning.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(late("no request came")));
        }
        Pin::new(&mut it.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Link<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.written(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(context);
        self.written(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.written(context, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(600);

    fn link(head: Duration, stall: Duration) -> (Link<DuplexStream>, DuplexStream, Arc<Known>) {
        let (here, there) = duplex(16);
        let known = Arc::new(Known::default());
        let patience = Patience { head, stall, ..Patience::default() };
        (Link::new(here, known.clone(), patience), there, known)
    }

    #[tokio::test]
    async fn whoever_never_asks_is_cut_off_though_it_talks() {
        let (mut link, mut there, _) = self::link(SHORT, LONG);
        let talking = tokio::spawn(async move {
            while there.write_all(b"x").await.is_ok() {
                sleep(SHORT / 20).await;
            }
        });
        let mut byte = [0];
        let error = loop {
            match link.read_exact(&mut byte).await {
                Ok(_) => (),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(link);
        talking.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_has_asked_may_rest() {
        let (mut link, mut there, known) = self::link(SHORT, LONG);
        known.asked();
        let later = tokio::spawn(async move {
            sleep(3 * SHORT).await;
            there.write_all(b"y").await.unwrap();
        });
        link.read_exact(&mut [0]).await.unwrap();
        later.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_takes_nothing_is_cut_off_unless_it_is_a_pipe() {
        let (mut link, mut there, _) = self::link(LONG, SHORT);
        let error = link.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(link.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        there.read_exact(&mut [0; 16]).await.unwrap();

        let (mut link, mut there, known) = self::link(LONG, SHORT);
        known.is_pipe();
        let resting = tokio::spawn(async move {
            sleep(3 * SHORT).await;
            let mut all = Vec::new();
            there.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        link.write_all(&[0; 100]).await.unwrap();
        drop(link);
        assert_eq!(resting.await.unwrap(), 100);
    }
}
