//! Which server to ask for a partition that is not here, and whom next.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::wire::{Answer, Outcome};
use crate::{
    peers::{PeerError, Peers, Pieces},
    store::StoreError,
};

/// How long a server has to answer anything.
const ANSWER: Duration = Duration::from_secs(10);

/// Whether a request may be made twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Reads: the next server may be asked whatever became of the first.
    Safe,
    /// Writes: only if it is certain that nothing was done.
    IfNotSent,
}

/// See the module.
pub(super) struct Targets {
    partition: String,
    peers: Arc<dyn Peers>,
    /// Servers that have the partition, the best one first.
    servers: watch::Receiver<Vec<String>>,
    /// Who answered last. Connections stay with one server while it answers.
    last: Mutex<Option<String>>,
}

impl std::fmt::Debug for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Targets").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl Targets {
    pub(super) fn new(
        partition: &str,
        peers: Arc<dyn Peers>,
        servers: watch::Receiver<Vec<String>>,
    ) -> Self {
        Self { partition: partition.into(), peers, servers, last: Mutex::new(None) }
    }

    pub(super) fn partition(&self) -> &str {
        &self.partition
    }

    /// All servers of the partition, whoever answered last first.
    fn order(&self) -> Vec<String> {
        let mut order = self.servers.borrow().clone();
        if let Some(last) = &*self.last.lock()
            && let Some(at) = order.iter().position(|server| server == last)
        {
            order[..=at].rotate_right(1);
        }
        order
    }

    fn answered(&self, server: &str) {
        let mut last = self.last.lock();
        if last.as_deref() != Some(server) {
            *last = Some(server.to_owned());
        }
    }

    /// Asks the partition's servers in turn until one has an answer.
    pub(super) async fn call<T: Answer>(
        &self,
        request: Bytes,
        repeat: Repeat,
    ) -> Result<T, StoreError> {
        let mut refusals = Vec::new();
        for server in self.order() {
            let answer = tokio::time::timeout(ANSWER, self.peers.call(&server, request.clone()));
            let error = match answer.await {
                Ok(Ok(bytes)) => match Outcome::decode(&bytes) {
                    Ok(Outcome::Done(Err(error @ StoreError::Unavailable { .. })))
                        if repeat == Repeat::Safe =>
                    {
                        // Its member is cut off, or ending. Another one may know.
                        refusals.push(error.to_string());
                        continue;
                    }
                    Ok(Outcome::Done(outcome)) => {
                        self.answered(&server);
                        return outcome;
                    }
                    Ok(Outcome::NotHere) => {
                        refusals.push(format!("server {server} does not have it"));
                        continue;
                    }
                    Err(error) => PeerError::Broken { server, reason: error.to_string() },
                },
                Ok(Err(error)) => error,
                Err(_) => PeerError::Broken { server, reason: "it took too long".into() },
            };
            let sent = matches!(error, PeerError::Broken { .. });
            if sent && repeat == Repeat::IfNotSent {
                return Err(StoreError::Unavailable {
                    reason: "the outcome of a write is not known".into(),
                    source: Some(error.into()),
                });
            }
            refusals.push(error.to_string());
        }
        Err(self.nobody(&refusals))
    }

    /// Opens a stream with the first server that gives one.
    pub(super) async fn stream(&self, request: &Bytes) -> Result<(String, Pieces), StoreError> {
        let mut refusals = Vec::new();
        for server in self.order() {
            let stream = tokio::time::timeout(ANSWER, self.peers.stream(&server, request.clone()));
            match stream.await {
                Ok(Ok(pieces)) => {
                    self.answered(&server);
                    return Ok((server, pieces));
                }
                Ok(Err(error)) => refusals.push(error.to_string()),
                Err(_) => refusals.push(format!("server {server} took too long")),
            }
        }
        Err(self.nobody(&refusals))
    }

    fn nobody(&self, refusals: &[String]) -> StoreError {
        let reason = match refusals {
            [] => "no server is known to have it".to_owned(),
            all => format!("none of its servers answered: {}", all.join("; ")),
        };
        StoreError::Unavailable { reason, source: None }
    }
}
