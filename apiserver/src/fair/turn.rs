//! Requests and bodies that take turns.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::{
    account::Account,
    line::{Line, Standing, Waiter},
};
use crate::body::{Body, BodyError};

/// Somebody who takes turns.
#[derive(Debug)]
pub(crate) struct Turns {
    line: Arc<Line>,
    account: Arc<Account>,
    waiter: Option<Arc<Waiter>>,
    /// Everybody who is ready was heard since it was given its seat.
    has_yielded: bool,
}

impl Turns {
    pub(super) fn new(line: Arc<Line>, account: Arc<Account>) -> Self {
        Self { line, account, waiter: None, has_yielded: false }
    }

    /// Whether they are the turns of that tenant.
    pub(super) fn is_of(&self, account: &Arc<Account>) -> bool {
        Arc::ptr_eq(&self.account, account)
    }

    /// Does `work`, which is one poll, when it is its turn.
    pub(super) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        work: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let begin = self.line.now();
        if self.waiter.is_none() {
            if self.account.is_light(begin) {
                let done = work(context);
                let now = self.line.now();
                self.line.charge(&self.account, now - begin);
                return done;
            }
            self.waiter = Some(self.line.stand(&self.account));
            self.has_yielded = false;
        }
        let Some(waiter) = &self.waiter else { return Poll::Pending };
        if !self.has_yielded && waiter.is_given() {
            self.has_yielded = true;
            after_others(context);
            return Poll::Pending;
        }
        let seated = match waiter.ask(context.waker()) {
            Standing::Waiting => return Poll::Pending,
            Standing::Turn { seated } => seated,
        };
        self.waiter = None;
        // Given back however the work ends.
        let mut seat = Seat { turns: self, begin: 0, seated };
        // Other threads that are ready, as those that write to disk, have the processor first.
        // The kernel would let them wait for milliseconds while one works without a break.
        std::thread::yield_now();
        seat.begin = seat.turns.line.now();
        work(context)
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.line.leave(&self.account, &waiter);
        }
    }
}

/// Wakes whoever asks once everybody who is ready was heard, and all sockets were looked at.
/// A task that only woke itself would be before what came on a socket meanwhile.
fn after_others(context: &mut Context<'_>) {
    let later = std::pin::pin!(tokio::task::yield_now());
    let _ = later.poll(context);
}

/// Does what cannot be done in pieces. If it `is_long`, another thread takes over what else this
/// one has to do.
pub(crate) fn without_a_break<T>(is_long: bool, work: impl FnOnce() -> T) -> T {
    let handle = Handle::try_current();
    let is_one_of_several =
        || handle.is_ok_and(|it| it.runtime_flavor() == RuntimeFlavor::MultiThread);
    match is_long && is_one_of_several() {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

struct Seat<'t> {
    turns: &'t Turns,
    begin: u64,
    seated: bool,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let Turns { line, account, .. } = self.turns;
        let cost = line.now().saturating_sub(self.begin);
        line.charge(account, cost);
        if self.seated {
            line.over(account, cost);
        }
    }
}

/// A future that is polled when it is its tenant's turn.
pub(crate) struct InTurn<F> {
    /// None: whenever there is something to do.
    turns: Option<Turns>,
    work: F,
}

impl<F> InTurn<F> {
    pub(crate) fn new(turns: Option<Turns>, work: F) -> Self {
        Self { turns, work }
    }
}

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { turns, work } = &mut *self;
        let Some(turns) = turns else { return Pin::new(work).poll(context) };
        turns.poll(context, |context| Pin::new(work).poll(context))
    }
}

/// A body whose pieces are made when it is its tenant's turn.
pub(super) struct Paced {
    turns: Turns,
    body: Body,
}

impl Paced {
    pub(super) fn body(turns: Turns, body: Body) -> Body {
        Self { turns, body }.boxed_unsync()
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { turns, body } = &mut *self;
        let polled = turns.poll(context, |context| Pin::new(body).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            turns.account.used.sent(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::Write as _,
        os::unix::net::UnixStream,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn what_came_on_a_socket_is_before_the_next_turn_of_who_uses_much() {
        let (mut far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut near = tokio::net::UnixStream::from_std(near).unwrap();
        let (line, account) = (Line::new(1), Account::of_test(1));
        line.charge(&account, 1_000_000_000_000);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let busy = tokio::spawn(async move {
            let mut turns = Turns::new(line, account);
            for n in 1..=1000 {
                poll_fn(|context| turns.poll(context, |_| Poll::Ready(()))).await;
                counted.store(n, Relaxed);
                if n == 100 {
                    far.write_all(b"a").unwrap();
                }
            }
        });
        let read = tokio::time::timeout(Duration::from_secs(20), near.read_u8());
        assert_eq!(read.await.unwrap().unwrap(), b'a');
        let turns = count.load(Relaxed);
        assert!((100..=102).contains(&turns), "it was heard after {turns} turns");
        busy.await.unwrap();
    }
}
