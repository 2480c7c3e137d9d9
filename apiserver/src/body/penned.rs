//! Bodies that are written by whoever reads them: no task of their own, nothing in between.
//!
//! A server with many thousand watches has as many bodies that mostly wait. Each is a future that
//! the connection's task for its stream drives whenever the stream can take more: an event costs
//! one wake-up, and while the reader takes nothing, nothing is made for it.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    task::{ArcWake, AtomicWaker, waker},
};
use parking_lot::Mutex;

use super::{Body, polled};

/// What is written and not yet read: one piece at most.
#[derive(Debug, Default)]
struct Slot {
    bytes: Option<Bytes>,
    /// The writer waits for room.
    is_full: bool,
}

/// What the writer of a body holds.
#[derive(Debug)]
pub(crate) struct Pen(Arc<Mutex<Slot>>);

impl Pen {
    /// Hands `bytes` to the reader, when it has taken what came before.
    pub(crate) async fn write(&self, bytes: Bytes) {
        let mut bytes = Some(bytes);
        // Nobody has to wake the writer: who reads asks it for more as soon as there is room.
        poll_fn(|_| {
            let mut slot = self.0.lock();
            slot.is_full = slot.bytes.is_some();
            if slot.is_full {
                return Poll::Pending;
            }
            slot.bytes = bytes.take();
            Poll::Ready(())
        })
        .await;
    }
}

/// Wakes the reader, and remembers that there is something for the writer to do: a reader asks once
/// more after each piece, and mostly for nothing.
#[derive(Debug, Default)]
struct Bell {
    has_rung: AtomicBool,
    reader: AtomicWaker,
}

impl ArcWake for Bell {
    fn wake_by_ref(it: &Arc<Self>) {
        it.has_rung.store(true, Release);
        it.reader.wake();
    }
}

/// A body that `write` writes while it is read. It ends when `write` does; dropped before, `write`
/// is dropped where it waits.
pub(crate) fn penned<F>(write: impl FnOnce(Pen) -> F) -> Body
where
    F: Future<Output = ()> + Send + 'static,
{
    let slot = Arc::<Mutex<Slot>>::default();
    // Until it has ended.
    let mut writer = Some(write(Pen(slot.clone())).boxed());
    let bell = Arc::<Bell>::default();
    let rings = waker(bell.clone());
    let mut is_due = true;
    polled(move |context| {
        let take = || {
            let mut slot = slot.lock();
            (slot.bytes.take(), std::mem::take(&mut slot.is_full))
        };
        let (mut taken, was_full) = take();
        is_due |= was_full;
        if taken.is_none()
            && let Some(writing) = &mut writer
        {
            // Before looking, so that whoever rings from now on is heard.
            bell.reader.register(context.waker());
            if bell.has_rung.swap(false, AcqRel) || std::mem::take(&mut is_due) {
                is_due = false;
                if writing.poll_unpin(&mut Context::from_waker(&rings)).is_ready() {
                    writer = None;
                }
                (taken, is_due) = take();
            }
        }
        match taken {
            None if writer.is_some() => Poll::Pending,
            taken => Poll::Ready(taken),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn all_that_is_written_is_read_in_order() {
        let body = penned(|pen| async move {
            for n in 0..1000_u32 {
                if n % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                if n % 250 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                pen.write(n.to_be_bytes().to_vec().into()).await;
            }
        });
        let read = body.collect().await.unwrap().to_bytes();
        let wanted: Vec<u8> = (0..1000_u32).flat_map(u32::to_be_bytes).collect();
        assert!(read == wanted);
    }

    #[tokio::test]
    async fn a_writer_with_nothing_to_do_is_not_asked() {
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(4);
        let mut body = penned(|pen| async move {
            loop {
                let next = poll_fn(|context| {
                    *count.lock() += 1;
                    receiver.poll_recv(context)
                });
                match next.await {
                    Some(bytes) => pen.write(bytes).await,
                    None => return,
                }
            }
        });
        let mut frames = Vec::new();
        for n in 0..3_u8 {
            assert!(body.frame().now_or_never().is_none());
            assert!(body.frame().now_or_never().is_none(), "nothing has come");
            sender.send(vec![n].into()).await.unwrap();
            let frame = body.frame().now_or_never().unwrap().unwrap().unwrap();
            frames.extend(frame.into_data().unwrap());
        }
        assert_eq!(frames, [0, 1, 2]);
        // Once at the beginning; then for each piece, and for the one after it.
        assert_eq!(*asked.lock(), 1 + 3 * 2);
        // More than there is room for at once.
        for n in 3..6_u8 {
            sender.send(vec![n].into()).await.unwrap();
        }
        drop(sender);
        let rest = body.collect().now_or_never().unwrap().unwrap().to_bytes();
        assert_eq!(&rest[..], [3, 4, 5]);
    }

    #[tokio::test]
    async fn nothing_is_made_for_who_takes_nothing() {
        let made = Arc::new(Mutex::new(0));
        let count = made.clone();
        let mut body = penned(|pen| async move {
            loop {
                *count.lock() += 1;
                pen.write(Bytes::from_static(b"more")).await;
            }
        });
        body.frame().await.unwrap().unwrap();
        tokio::task::yield_now().await;
        assert!(*made.lock() <= 2);
        drop(body);
        assert_eq!(Arc::strong_count(&made), 1, "its writer is gone");
    }
}
