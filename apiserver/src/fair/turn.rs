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
    /// A turn may take so long that others would miss its processor.
    is_long: bool,
}

impl Turns {
    pub(super) fn new(line: Arc<Line>, account: Arc<Account>, is_long: bool) -> Self {
        Self { line, account, waiter: None, has_yielded: false, is_long }
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
            if !self.is_long && self.account.is_light(begin) {
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
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let seated = match waiter.ask(context.waker()) {
            Standing::Waiting => return Poll::Pending,
            Standing::Turn { seated } => seated,
        };
        self.waiter = None;
        // Given back however the work ends.
        let mut seat = Seat { turns: self, begin: 0, seated };
        seat.begin = seat.turns.line.now();
        match seat.turns.is_long && runs_on_several() {
            true => tokio::task::block_in_place(|| work(context)),
            false => work(context),
        }
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.line.leave(&self.account, &waiter);
        }
    }
}

/// Whether other threads can go on while this one is busy.
fn runs_on_several() -> bool {
    let handle = Handle::try_current();
    handle.is_ok_and(|it| it.runtime_flavor() == RuntimeFlavor::MultiThread)
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
        turns.poll(context, |context| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
