//! Asking an etcd how far it is, once for everybody who wants to know at the same time.
//!
//! A question answers all callers who came before it was sent, and nobody who came after: an
//! older answer could miss what was acknowledged to them.

use std::sync::Arc;

use etcd_client::Client;
use tokio::{sync::watch, task::AbortHandle};

use super::{
    follow::{self, FollowError},
    keys::Keys,
};
use crate::{error::chain, store::StoreError};

/// An answer, and the last caller that it is for.
#[derive(Debug, Clone)]
struct Answer {
    caller: u64,
    revision: Result<i64, Arc<str>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Probe {
    /// Number of callers so far.
    callers: watch::Sender<u64>,
    answers: watch::Receiver<Answer>,
}

/// A member that is down fails a question; another one may know.
const TRIES: usize = 3;

impl Probe {
    /// Starts the task that asks. It ends when the handle says so.
    pub(super) fn start(client: Client, keys: Keys) -> (Self, AbortHandle) {
        let (callers, mut called) = watch::channel(0);
        let (answer, answers) = watch::channel(Answer { caller: 0, revision: Ok(0) });
        let task = tokio::spawn(async move {
            while called.changed().await.is_ok() {
                let caller = *called.borrow_and_update();
                let revision = ask(&client, &keys).await.map_err(|error| chain(&error).into());
                answer.send_replace(Answer { caller, revision });
            }
        });
        (Self { callers, answers }, task.abort_handle())
    }

    /// The etcd's revision, not older than the call.
    pub(super) async fn revision(&self) -> Result<i64, StoreError> {
        let mut caller = 0;
        self.callers.send_modify(|callers| {
            *callers += 1;
            caller = *callers;
        });
        let mut answers = self.answers.clone();
        let answer = answers.wait_for(|answer| caller <= answer.caller).await;
        let revision = match answer {
            Ok(answer) => answer.revision.clone(),
            Err(_) => Err("the partition was shut down".into()),
        };
        revision
            .map_err(|reason| StoreError::Unavailable { reason: reason.to_string(), source: None })
    }
}

async fn ask(client: &Client, keys: &Keys) -> Result<i64, FollowError> {
    let mut tries = 1;
    loop {
        match follow::revision(client, keys).await {
            Err(FollowError::Etcd(error)) if tries < TRIES => {
                tracing::debug!(%error, "etcd did not say how far it is; asking again");
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}
