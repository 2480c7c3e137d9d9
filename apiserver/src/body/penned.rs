//! Bodies that are written by whoever reads them: no task of their own, nothing in between.
//!
//! A server with many thousand watches has as many bodies that mostly wait. Each is a future that
//! the connection's task for its stream drives whenever the stream can take more: an event costs
//! one wake-up, and while the reader takes nothing, nothing is made for it.

use std::{future::poll_fn, sync::Arc, task::Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use parking_lot::Mutex;

use super::{Body, polled};

/// What is written and not yet read: one piece at most.
type Slot = Arc<Mutex<Option<Bytes>>>;

/// What the writer of a body holds.
#[derive(Debug)]
pub(crate) struct Pen(Slot);

impl Pen {
    /// Hands `bytes` to the reader, when it has taken what came before.
    pub(crate) async fn write(&self, bytes: Bytes) {
        let mut bytes = Some(bytes);
        // Nobody has to wake the writer: who reads asks it for more as soon as there is room.
        poll_fn(|_| {
            let mut slot = self.0.lock();
            match *slot {
                Some(_) => Poll::Pending,
                None => {
                    *slot = bytes.take();
                    Poll::Ready(())
                }
            }
        })
        .await;
    }
}

/// A body that `write` writes while it is read. It ends when `write` does; dropped before, `write`
/// is dropped where it waits.
pub(crate) fn penned<F>(write: impl FnOnce(Pen) -> F) -> Body
where
    F: Future<Output = ()> + Send + 'static,
{
    let slot = Slot::default();
    // Until it has ended.
    let mut writer = Some(write(Pen(slot.clone())).boxed());
    polled(move |context| {
        let mut taken = slot.lock().take();
        if taken.is_none()
            && let Some(writing) = &mut writer
        {
            if writing.poll_unpin(context).is_ready() {
                writer = None;
            }
            taken = slot.lock().take();
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
