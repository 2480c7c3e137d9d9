//! Long bodies that are known whole: how much of them is held at once, and for how long.
//!
//! An answer to a list may have many megabytes, and whoever asked may read none of it, for as long
//! as it answers pings. So a body lets go of its bytes when nobody takes them; the HTTP library
//! does not look at one that cannot be sent, so somebody else has to look whether it moves. And
//! all of a server's together have a limit, or as many lists as there are clients would be held
//! meanwhile.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::{Body, BodyError, full};
use crate::fair::Account;

/// Bodies up to this length are short, in bytes.
pub(super) const SHORT: usize = 64 * 1024;
/// How much is handed on at once: what is handed on is out of reach.
const PIECE: usize = 256 * 1024;
/// Most bytes of all long bodies of a server.
const HELD: usize = 512 << 20;
/// Most bytes of those of one tenant: with others it shares, it does not take all.
const HELD_OF_ONE: usize = HELD / 4;
/// How long a reader may take nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The reader took nothing for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing was read for {PATIENCE:?}")]
struct Unread;

/// What the long bodies of a server hold together, in bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Arc<AtomicUsize>);

impl Held {
    /// A body of these bytes, for a user of a tenant if that is to be counted; none if there is
    /// too much already. Call within a runtime.
    pub(crate) fn body(&self, account: Option<&Arc<Account>>, bytes: Bytes) -> Option<Body> {
        if bytes.len() <= SHORT {
            return Some(full(bytes));
        }
        self.long(PATIENCE, account, bytes)
    }

    fn long(
        &self,
        patience: Duration,
        account: Option<&Arc<Account>>,
        bytes: Bytes,
    ) -> Option<Body> {
        let size = bytes.len();
        let share = Share { held: self.clone(), account: account.cloned(), size };
        let before = self.0.fetch_add(size, Ordering::Relaxed);
        let of_one = account.map_or(0, |it| it.held.fetch_add(size, Ordering::Relaxed));
        // One is always let in, however long it is.
        let is_too_much =
            |before: usize, most: usize| before != 0 && most < before.saturating_add(size);
        if is_too_much(before, HELD) || is_too_much(of_one, HELD_OF_ONE) {
            return None;
        }
        let rest = Arc::new(Mutex::new(Some((bytes, share))));
        let watch = tokio::spawn(watch(patience, Arc::downgrade(&rest))).abort_handle();
        Some(Patient { rest, left: size as u64, watch }.boxed_unsync())
    }
}

/// One body's part, until it is gone.
struct Share {
    held: Held,
    account: Option<Arc<Account>>,
    size: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.size, Ordering::Relaxed);
        if let Some(account) = &self.account {
            account.held.fetch_sub(self.size, Ordering::Relaxed);
        }
    }
}

type Rest = Mutex<Option<(Bytes, Share)>>;

/// Takes what is left when it has not become less.
async fn watch(patience: Duration, rest: Weak<Rest>) {
    let mut before = usize::MAX;
    loop {
        let Some(rest) = rest.upgrade() else { return };
        {
            let mut rest = rest.lock();
            let left = rest.as_ref().map_or(0, |(bytes, _)| bytes.len());
            if left == 0 {
                return;
            }
            if left == before {
                *rest = None;
                return;
            }
            before = left;
        }
        drop(rest);
        tokio::time::sleep(patience).await;
    }
}

struct Patient {
    rest: Arc<Rest>,
    left: u64,
    watch: AbortHandle,
}

impl http_body::Body for Patient {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = match &mut *self.rest.lock() {
            None => return Poll::Ready(Some(Err(Unread.into()))),
            Some((rest, _)) => rest.split_to(rest.len().min(PIECE)),
        };
        self.left -= piece.len() as u64;
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    #[tokio::test]
    async fn who_reads_slowly_gets_all_and_who_stops_nothing_more() {
        let bytes = Bytes::from((0..1 << 20).map(|it| (it % 251) as u8).collect::<Vec<_>>());
        let held = Held::default();
        let body = held.body(None, bytes.clone()).unwrap();
        assert_eq!(body.size_hint().exact(), Some(1 << 20));
        assert_eq!(body.collect().await.unwrap().to_bytes(), bytes);

        let mut body = held.long(Duration::from_millis(20), None, bytes.clone()).unwrap();
        body.frame().await.unwrap().unwrap();
        let until_alone = async {
            while !bytes.is_unique() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), until_alone).await.unwrap();
        assert!(body.frame().await.unwrap().is_err());
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn all_together_have_a_limit() {
        let held = Held::default();
        let bytes = Bytes::from(vec![0; HELD / 4 + 1]);
        let mut bodies: Vec<Body> =
            (0..3).map(|_| held.body(None, bytes.clone()).unwrap()).collect();
        assert!(held.body(None, bytes.clone()).is_none());
        assert!(held.body(None, Bytes::from_static(b"short")).is_some());
        bodies.pop();
        assert!(held.body(None, bytes.clone()).is_some());
        bodies.clear();
        let huge = Bytes::from(vec![0; HELD + 1]);
        assert!(held.body(None, huge).is_some(), "alone");
    }

    #[tokio::test]
    async fn a_tenant_holds_its_part() {
        let held = Held::default();
        let (acme, globex) = (Account::of_test(1), Account::of_test(2));
        let bytes = Bytes::from(vec![0; HELD_OF_ONE / 2]);
        let of = |it: &Arc<Account>| held.body(Some(it), bytes.clone());
        let bodies = [of(&acme).unwrap(), of(&acme).unwrap()];
        assert!(of(&acme).is_none());
        assert!(of(&globex).is_some());
        drop(bodies);
        assert!(of(&acme).is_some());
    }

    #[tokio::test]
    async fn short_ones_are_not_watched() {
        let body = Held::default().body(None, Bytes::from_static(b"short")).unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "short");
    }
}
