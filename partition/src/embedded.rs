//! The embedded backend: every partition of the process is a raft group, all share one log.
//!
//! ```text
//! write -> queue -> writer thread -> raft entry -> log (one flush for all) -> state -> answer
//! read  -> state                                                              `-> watchers
//! ```
//!
//! A group has one member here. Reads need no agreement then: what is applied is the latest,
//! because the directory's lock keeps every other process from deciding on writes.

mod checkpoint;
mod checkpointer;
mod command;
mod directory;
mod image;
mod member;
mod raft_log;
mod replay;
#[cfg(test)]
pub(crate) mod tests;
mod trace;
mod writer;

use std::{collections::BTreeMap, path::Path, sync::Arc, thread::JoinHandle};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::checkpointer::CheckpointOptions;
use self::{
    checkpointer::{Checkpointer, Plan},
    directory::Directory,
    member::Member,
    replay::{FIRST_MEMBER, Replay},
    writer::{Health, LogProgress, Request, Writer, WriterOptions},
};
use crate::{
    error::{OpenError, chain},
    limits::check_limits,
    ring::RingLimits,
    snapshot::Snapshot,
    state::State,
    store::{Collection, Committed, ReadAt, Revision, Store, StoreError, StoreStats, Write},
    wal::{LogCounts, Wal, WalOptions, frame::GroupId},
    watch::Watcher,
};

/// Requests that may wait for a partition's writer; more callers wait their turn.
const QUEUE: usize = 1024;

/// Everything that tests set otherwise.
#[derive(Debug, Clone, Default)]
pub(crate) struct EmbeddedOptions {
    pub(crate) wal: WalOptions,
    pub(crate) ring: RingLimits,
    pub(crate) checkpoint: CheckpointOptions,
}

/// All partitions of one data directory.
#[derive(Debug)]
pub(crate) struct Embedded {
    wal: Arc<Wal>,
    checkpointer: Arc<Checkpointer>,
    stores: Vec<Arc<EmbeddedStore>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    directory: Arc<Directory>,
}

impl Embedded {
    /// Opens the partitions `names` of the directory at `path`. Blocks while the data is read.
    pub(crate) fn open(
        path: &Path,
        names: &[String],
        options: &EmbeddedOptions,
    ) -> Result<Self, OpenError> {
        let directory = Arc::new(Directory::open(path, names)?);
        let log_dir = directory.log();

        let mut replays = Vec::new();
        let mut plans = Vec::new();
        let mut needs = BTreeMap::new();
        let mut from = Vec::new();
        for (group, name) in (0..).zip(names) {
            let dir = directory.checkpoints(name);
            let found = checkpoint::load(&dir)?;
            let newest = found.newest.as_ref().map(|(description, _)| description.clone());
            from.push(newest.as_ref().map_or(1, |newest| newest.segment));
            needs.insert(group, found.previous.map_or(1, |previous| previous.segment));
            plans.push(Plan::new(group, dir, newest));
            replays.push(Replay::new(name, found.newest, options.ring));
        }
        let start = from.iter().copied().min().unwrap_or(1);
        let (may_be_new, wal_options) = (directory.is_new(), options.wal.clone());
        let (wal, clean) = Wal::open(&log_dir, wal_options, needs, start, may_be_new, |record| {
            match replays.get_mut(record.group as usize) {
                Some(replay) => replay.visit(record),
                None => Err(OpenError::Damaged {
                    what: format!("the log has records of an unknown partition {}", record.group),
                }),
            }
        })?;
        directory.complete(names)?;
        let checkpointer = Checkpointer::start(wal.clone(), directory.clone())
            .map_err(|source| OpenError::io("start on", path, source))?;

        let mut embedded = Self {
            wal,
            checkpointer: Arc::new(checkpointer),
            stores: Vec::new(),
            threads: Mutex::default(),
            directory,
        };
        let parts = replays.into_iter().zip(plans).zip(from);
        for (((replay, plan), segment), (group, name)) in parts.zip((0..).zip(names)) {
            embedded.start(group, name, replay, plan, segment, clean, options)?;
        }
        Ok(embedded)
    }

    #[allow(clippy::too_many_arguments, reason = "one call; the parts come from different steps")]
    fn start(
        &mut self,
        group: GroupId,
        name: &str,
        replay: Replay,
        plan: Arc<Plan>,
        segment: u64,
        clean: bool,
        options: &EmbeddedOptions,
    ) -> Result<(), OpenError> {
        let failed = |reason: String| OpenError::Partition {
            partition: name.into(),
            source: StoreError::Unavailable { reason, source: None },
        };
        let durable = replay.revision();
        let (state, log) = replay.finish()?;
        let next = log.applied().index + 1;
        let member = Member::new(group, FIRST_MEMBER, state.clone(), log, &trace::logger(name))
            .map_err(|error| failed(chain(&error)))?;
        let health = Health::default();
        let mut writer = Writer {
            name: name.into(),
            member,
            state: state.clone(),
            wal: self.wal.clone(),
            plan,
            checkpointer: self.checkpointer.clone(),
            options: WriterOptions {
                batch_bytes: options.wal.batch_bytes,
                checkpoint: options.checkpoint,
            },
            health: health.clone(),
            progress: LogProgress::new(next, segment, durable),
        };
        writer.lead(clean).map_err(failed)?;

        let (requests, inbox) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let thread = std::thread::Builder::new()
            .name(format!("writer {name}"))
            .spawn(move || {
                let _guard = writer.guard();
                runtime.block_on(writer.run(inbox));
            })
            .map_err(|error| failed(error.to_string()))?;
        self.threads.lock().push(thread);
        let store = EmbeddedStore { name: name.into(), state, requests, health };
        self.stores.push(Arc::new(store));
        Ok(())
    }

    /// The partitions, in the order of their names at [`Embedded::open`].
    pub(crate) fn stores(&self) -> &[Arc<EmbeddedStore>] {
        &self.stores
    }

    /// What the log did since it was opened.
    pub(crate) fn log_counts(&self) -> LogCounts {
        self.wal.counts()
    }

    /// Ends all partitions in good order.
    pub(crate) async fn shutdown(self: Arc<Self>) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for store in &self.stores {
            outcome = outcome.and(store.shutdown().await);
        }
        let ended = tokio::task::spawn_blocking(move || self.close()).await;
        let closed = match ended {
            Ok(closed) => closed,
            Err(error) => {
                let reason = "shutting down was cut short".into();
                Err(StoreError::Unavailable { reason, source: Some(error.into()) })
            }
        };
        outcome.and(closed)
    }

    fn close(&self) -> Result<(), StoreError> {
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a partition's writer ended in a panic");
            }
        }
        self.checkpointer.stop();
        let closed = self.wal.close().map_err(|error| StoreError::Unavailable {
            reason: "the log could not be closed".into(),
            source: Some(error.into()),
        });
        if let Err(error) = self.directory.release() {
            tracing::warn!(%error, "could not unlock the data directory; it is when this process ends");
        }
        closed
    }
}

/// One partition of [`Embedded`].
#[derive(Debug)]
pub(crate) struct EmbeddedStore {
    name: String,
    state: Arc<State>,
    requests: mpsc::Sender<Request>,
    health: Health,
}

/// What every call gets after the end.
fn shut_down() -> StoreError {
    StoreError::Unavailable { reason: "the partition was shut down".into(), source: None }
}

impl EmbeddedStore {
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, outcome) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| self.ended())?;
        outcome.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// Why the writer no longer answers.
    fn ended(&self) -> StoreError {
        match self.health.lock().clone() {
            Some(reason) => StoreError::Unavailable { reason, source: None },
            None => shut_down(),
        }
    }

    /// Writes the state down now, so that a restart has less to replay.
    pub(crate) async fn checkpoint(&self) -> Result<(), StoreError> {
        self.ask(Request::Checkpoint).await
    }
}

impl Store for EmbeddedStore {
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        self.state.read(collection, at).boxed()
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        async move {
            check_limits(&write)?;
            self.ask(|reply| Request::Write(write, reply)).await
        }
        .boxed()
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.state.watch(collection, after)
    }

    fn progress(&self) -> Revision {
        self.state.revision()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(move |reply| Request::Compact(revision, reply)).boxed()
    }

    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(move |reply| Request::Raise(revision, reply)).boxed()
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        std::future::ready(self.state.collections()).boxed()
    }

    fn stats(&self) -> StoreStats {
        let totals = self.state.totals();
        StoreStats {
            objects: totals.objects,
            bytes: totals.bytes,
            revision: totals.revision,
            compacted: totals.floor,
            unhealthy: self.health.lock().clone(),
            leader: format!("{}-{FIRST_MEMBER}", self.name),
            backend: "embedded",
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let (reply, outcome) = oneshot::channel();
            // Whoever comes second finds it done.
            if self.requests.send(Request::Shutdown(reply)).await.is_err() {
                return Ok(());
            }
            outcome.await.unwrap_or(Ok(()))
        }
        .boxed()
    }
}
