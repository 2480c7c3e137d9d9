//! Connections that take turns, as requests do.
//!
//! What a client is sent is framed and encrypted where its connection is looked after, and what it
//! sends is opened there: of long lists and of many watches that is most of the work. Whoever
//! asked for something on a connection last pays for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwapOption;

use super::{account::Account, line::Line, turn::Turns};

/// Who pays for a connection: nobody, until somebody asked for something on it.
#[derive(Debug, Default)]
pub(crate) struct Payer(ArcSwapOption<Paying>);

#[derive(Debug)]
struct Paying {
    line: Arc<Line>,
    account: Arc<Account>,
}

impl Payer {
    pub(super) fn is(&self, line: &Arc<Line>, account: &Arc<Account>) {
        let is_known = self.0.load().as_ref().is_some_and(|it| Arc::ptr_eq(&it.account, account));
        if !is_known {
            let paying = Paying { line: line.clone(), account: account.clone() };
            self.0.store(Some(Arc::new(paying)));
        }
    }
}

/// A connection that is looked after when it is the turn of who pays for it.
pub(crate) struct Connection<F> {
    payer: Arc<Payer>,
    turns: Option<Turns>,
    work: F,
}

impl<F> Connection<F> {
    pub(crate) fn new(payer: Arc<Payer>, work: F) -> Self {
        Self { payer, turns: None, work }
    }
}

impl<F: Future + Unpin> Future for Connection<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { payer, turns, work } = &mut *self;
        if let Some(paying) = &*payer.0.load()
            && !turns.as_ref().is_some_and(|it| it.is_of(&paying.account))
        {
            *turns = Some(Turns::new(paying.line.clone(), paying.account.clone()));
        }
        let Some(turns) = turns else { return Pin::new(work).poll(context) };
        turns.poll(context, |context| Pin::new(work).poll(context))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    #[test]
    fn who_asked_last_pays() {
        let line = Line::new(1);
        let (one, other) = (Account::of_test(1), Account::of_test(2));
        let payer = Arc::new(Payer::default());
        let busy = poll_fn(|_| -> Poll<()> {
            std::thread::sleep(std::time::Duration::from_millis(20));
            Poll::Pending
        });
        let mut connection = Connection::new(payer.clone(), Box::pin(busy));
        let mut poll = || Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
        let are_light = || [&one, &other].map(|it| it.is_light(line.now()));
        assert!(poll().is_pending());
        assert_eq!(are_light(), [true, true], "nobody has asked for anything");
        payer.is(&line, &one);
        assert!(poll().is_pending());
        assert_eq!(are_light(), [false, true]);
        payer.is(&line, &other);
        assert!(poll().is_pending());
        assert_eq!(are_light(), [false, false]);
        // Somebody else has the only seat: it waits.
        let held = line.stand(&one);
        assert!(held.is_given());
        let begin = line.now();
        assert!(poll().is_pending());
        assert!(line.now() - begin < 20_000_000, "it was not looked after");
    }
}
