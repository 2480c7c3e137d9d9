//! Writes of several changes that are made at the same time, as one step of their partition.
//!
//! Each change goes its own way, from what is stored to what is to be: decode, admit, validate.
//! Only the writes meet: once all have come that are still to come, or soon after the first, they
//! are handed to the store together. A change that waits for somebody, such as a tenant's webhook,
//! so holds up no other for long; its write comes with a later step.

use std::{pin::pin, time::Duration};

use futures::future::{Either, join_all, select};
use insula_partition::store::{Committed, Store, StoreError, Write};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

/// How long a write waits for the others.
const PATIENCE: Duration = Duration::from_millis(2);

type Outcome = Result<Committed, StoreError>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Together {
    state: Mutex<State>,
    /// A write came, or a change is over.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<(Write, oneshot::Sender<Outcome>)>,
    /// Changes that are not over.
    n_open: usize,
}

impl Together {
    /// Makes all `changes`, whose writes are to come through [`Together::write`]. Gives what came
    /// of them, in their order.
    pub(crate) async fn run<T>(
        &self,
        store: &dyn Store,
        changes: Vec<impl Future<Output = T>>,
    ) -> Vec<T> {
        self.state.lock().n_open = changes.len();
        let changes = changes.into_iter().map(|change| async {
            let outcome = change.await;
            self.state.lock().n_open -= 1;
            self.changed.notify_one();
            outcome
        });
        // The changes first: whoever can go on does so before anything is written.
        match select(pin!(join_all(changes)), pin!(self.hand_on(store))).await {
            Either::Left((outcomes, _)) => outcomes,
            Either::Right((never, _)) => match never {},
        }
    }

    /// Has `write` done, together with others.
    pub(crate) async fn write(&self, write: Write) -> Outcome {
        let (sender, outcome) = oneshot::channel();
        self.state.lock().waiting.push((write, sender));
        self.changed.notify_one();
        outcome.await.unwrap_or_else(|_| {
            let reason = "the server ended before the write".into();
            Err(StoreError::Unavailable { reason, source: None })
        })
    }

    async fn hand_on(&self, store: &dyn Store) -> std::convert::Infallible {
        loop {
            self.until(|state| !state.waiting.is_empty()).await;
            let all = self.until(|state| state.waiting.len() == state.n_open);
            // Late or not, those that are there are written.
            let _ = timeout(PATIENCE, all).await;
            let waiting = std::mem::take(&mut self.state.lock().waiting);
            let (writes, senders): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            for (outcome, sender) in store.write_all(writes).await.into_iter().zip(senders) {
                // Whoever asked is polled by the same task, and still there.
                let _ = sender.send(outcome);
            }
        }
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        while !holds(&self.state.lock()) {
            self.changed.notified().await;
        }
    }
}
