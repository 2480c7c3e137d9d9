//! Who waits for a command, and what they can be told.

use tokio::sync::oneshot;

use crate::store::{Committed, StoreError};

/// Why a request to a group's member was not done.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It was not done and never will be: this member does not lead. Safe to try elsewhere.
    NotLeader,
    Failed(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Where a request's outcome goes.
pub(crate) type ReplyTo<T> = oneshot::Sender<Result<T, Refusal>>;

/// Who waits for a command.
#[derive(Debug)]
pub(crate) enum Reply {
    Nobody,
    Write(ReplyTo<Committed>),
    Done(ReplyTo<()>),
}

impl Reply {
    /// A receiver that is gone stopped waiting; there is no one left to tell.
    pub(crate) fn send(self, outcome: Result<Option<Committed>, StoreError>) {
        let outcome = outcome.map_err(Refusal::Failed);
        match (self, outcome) {
            (Self::Write(to), Ok(Some(committed))) => drop(to.send(Ok(committed))),
            (Self::Write(to), Err(error)) => drop(to.send(Err(error))),
            (Self::Done(to), outcome) => drop(to.send(outcome.map(|_| ()))),
            (Self::Write(_), Ok(None)) | (Self::Nobody, _) => {}
        }
    }

    /// Nobody is to hear the outcome any more.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Nobody => false,
            Self::Write(to) => to.is_closed(),
            Self::Done(to) => to.is_closed(),
        }
    }

    /// What was asked for may or may not happen.
    pub(crate) fn fail(self, reason: &str) {
        self.send(Err(StoreError::Unavailable { reason: reason.into(), source: None }));
    }

    /// What was asked for will not happen, because this member does not lead.
    pub(crate) fn refuse(self) {
        match self {
            Self::Nobody => {}
            Self::Write(to) => drop(to.send(Err(Refusal::NotLeader))),
            Self::Done(to) => drop(to.send(Err(Refusal::NotLeader))),
        }
    }
}
