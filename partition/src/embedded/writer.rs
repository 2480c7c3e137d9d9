//! The one thread that changes a partition: takes requests, batches them into log entries, has
//! them logged, applies and answers.
//!
//! It never waits for more work to arrive: a batch is whatever was queued while the batch before
//! was on its way to the disk. Alone, a request goes to the disk at once.
//!
//! # Invariants
//!
//! * While a piece of the log waits for space, new writes are refused and the piece is tried
//!   again; who waited for it was told that its write may still happen.
//! * At most [`RESERVE`] revisions are handed out without being on disk, so an unclean restart
//!   that leaves out that many never gives a revision twice.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    checkpoint::Description,
    checkpointer::{self, CheckpointOptions, Checkpointer, Plan},
    command::Batch,
    member::{Member, Reply, Work},
};
use crate::{
    error::chain,
    state::State,
    store::{Durability, Revision, StoreError, Write},
    wal::{Ticket, Wal, WalError},
};

/// Revisions that may be handed out before they are on disk.
pub(crate) const RESERVE: u64 = 1 << 16;

/// Requests taken from the queue at once.
const MAX_REQUESTS: usize = 1024;

/// One tick of raft's clock, and the pause before the log is tried again.
const TICK: Duration = Duration::from_millis(100);

/// The same for a group of one, which has nobody to hear from.
const TICK_ALONE: Duration = Duration::from_millis(500);

/// What a partition can be asked.
#[derive(Debug)]
pub(crate) enum Request {
    Write(Write, oneshot::Sender<Result<crate::store::Committed, StoreError>>),
    Compact(Revision, oneshot::Sender<Result<(), StoreError>>),
    Raise(Revision, oneshot::Sender<Result<(), StoreError>>),
    Checkpoint(oneshot::Sender<Result<(), StoreError>>),
    Shutdown(oneshot::Sender<Result<(), StoreError>>),
}

/// Why writes fail now, if they do. Read by status pages.
pub(crate) type Health = Arc<Mutex<Option<String>>>;

/// What a partition's thread works with.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) name: String,
    pub(crate) member: Member,
    pub(crate) state: Arc<State>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) checkpointer: Arc<Checkpointer>,
    pub(crate) options: WriterOptions,
    pub(crate) health: Health,
    pub(crate) progress: LogProgress,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct WriterOptions {
    /// An entry takes no more commands once it has this many bytes.
    pub(crate) batch_bytes: usize,
    pub(crate) checkpoint: CheckpointOptions,
}

/// How far the partition's log went, on disk and since the last checkpoint.
#[derive(Debug, Default)]
pub(crate) struct LogProgress {
    /// Bytes logged since the last checkpoint began.
    bytes: u64,
    /// First index logged in each segment, oldest first.
    segments: VecDeque<(u64, u64)>,
    /// A revision that is known to be on disk.
    durable: Revision,
    /// A relaxed piece on its way, and the revision that will be on disk with it.
    on_its_way: Option<(Ticket, Revision)>,
    /// A piece that the disk has no space for.
    stalled: Option<(Work, Ticket)>,
    /// Nothing can be decided any more, and why.
    ended: Option<String>,
}

impl LogProgress {
    /// Begins after a restart: the entries from index `next` on are in `segment` or later, and
    /// everything up to `durable` is on disk.
    pub(crate) fn new(next: u64, segment: u64, durable: Revision) -> Self {
        Self { segments: VecDeque::from([(next, segment)]), durable, ..Self::default() }
    }
}

impl Writer {
    /// Works until asked to shut down or until nobody is left who could ask.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut inbox = Vec::with_capacity(MAX_REQUESTS);
        let mut next_tick = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next_tick) => {
                    self.tick();
                    next_tick = Instant::now() + self.pause();
                }
                taken = requests.recv_many(&mut inbox, MAX_REQUESTS) => {
                    if taken == 0 {
                        return self.end("the partition was closed");
                    }
                }
            }
            let shutdown = self.take(&mut inbox);
            self.begin_checkpoint_if_due();
            if let Some(reply) = shutdown {
                requests.close();
                self.end("the partition was shut down");
                let flushed = self.wal.flush().map_err(|error| unavailable(&error));
                drop(reply.send(flushed));
                return;
            }
        }
    }

    /// Decides on everything in `inbox`; hands back a request to shut down.
    fn take(
        &mut self,
        inbox: &mut Vec<Request>,
    ) -> Option<oneshot::Sender<Result<(), StoreError>>> {
        let mut shutdown = None;
        let mut batch = Batch::default();
        let mut replies = Vec::new();
        for request in inbox.drain(..) {
            match request {
                Request::Write(write, reply) => {
                    batch.write(&write);
                    replies.push(Reply::Write(reply));
                }
                Request::Compact(revision, reply) => {
                    batch.compact(revision);
                    replies.push(Reply::Done(reply));
                }
                Request::Raise(revision, reply) => {
                    batch.raise(revision);
                    replies.push(Reply::Done(reply));
                }
                Request::Checkpoint(reply) => {
                    self.propose(std::mem::take(&mut batch), std::mem::take(&mut replies));
                    self.begin_checkpoint(Some(reply));
                }
                Request::Shutdown(reply) => shutdown = Some(reply),
            }
            if self.options.batch_bytes <= batch.bytes() {
                self.propose(std::mem::take(&mut batch), std::mem::take(&mut replies));
            }
        }
        self.propose(batch, replies);
        shutdown
    }

    /// Makes this member the leader of its group, with everything that was logged applied. Leaves
    /// out revisions that may have been handed out and lost if the end was not `clean`.
    pub(crate) fn lead(&mut self, clean: bool) -> Result<(), String> {
        self.drive();
        if let Err(error) = self.member.campaign() {
            return Err(chain(&error));
        }
        self.drive();
        if !clean {
            let mut batch = Batch::default();
            batch.skip(RESERVE);
            self.propose(batch, vec![Reply::Nobody]);
        }
        match self.refusal() {
            Some(reason) => Err(reason),
            None if !self.member.is_leader() => Err("it did not become its own leader".into()),
            None => {
                self.progress.durable = self.state.revision();
                Ok(())
            }
        }
    }

    /// Has a batch agreed on, logged, applied and answered.
    fn propose(&mut self, batch: Batch, replies: Vec<Reply>) {
        // Nothing to do, or nobody left to do it for.
        if replies.iter().all(Reply::is_closed) {
            return;
        }
        if let Some(reason) = self.refusal() {
            return replies.into_iter().for_each(|reply| reply.refuse(&reason));
        }
        self.member.propose(batch.finish(), replies);
        self.drive();
    }

    /// Why nothing can be decided now.
    fn refusal(&self) -> Option<String> {
        let stalled = self.progress.stalled.is_some();
        let reason = || self.health.lock().clone().unwrap_or_else(|| "the log is full".into());
        self.progress.ended.clone().or_else(|| stalled.then(reason))
    }

    fn pause(&self) -> Duration {
        let alone = self.member.is_alone() && self.progress.stalled.is_none();
        if alone { TICK_ALONE } else { TICK }
    }

    /// Time went by.
    fn tick(&mut self) {
        if let Some((work, ticket)) = self.progress.stalled.take() {
            self.settle(work, ticket);
        } else if self.progress.ended.is_none() {
            self.member.tick();
        }
        self.drive();
    }

    /// Does what the member asks for, until it asks for nothing.
    pub(crate) fn drive(&mut self) {
        while self.refusal().is_none() && self.member.has_work() {
            let work = match self.member.take_work() {
                Ok(work) => work,
                Err(error) => return self.fail(&error),
            };
            if work.snapshot
                && let Err(error) = self.checkpoint_now()
            {
                return self.fail(&*error);
            }
            self.log(work);
        }
        for message in self.member.take_messages() {
            tracing::warn!(
                partition = self.name,
                to = message.to,
                "no way to reach another member"
            );
        }
    }

    fn log(&mut self, mut work: Work) {
        let Some(piece) = work.piece.take() else { return self.finish(work, None) };
        self.progress.bytes += piece.bytes() as u64;
        let segment = self.wal.segment();
        if let Some(first) = work.first_index()
            && self.progress.segments.back().is_none_or(|(_, known)| *known < segment)
        {
            self.progress.segments.push_back((first, segment));
        }
        let ticket = self.wal.submit(piece);
        self.settle(work, ticket);
    }

    fn settle(&mut self, work: Work, ticket: Ticket) {
        let durability = if self.must_catch_up() { Durability::Durable } else { work.durability };
        match self.wal.settle(ticket, durability) {
            Ok(()) => {
                let logged = (durability == Durability::Relaxed).then_some(ticket);
                *self.health.lock() = None;
                self.finish(work, Some(logged));
            }
            Err(error @ WalError::Full(_)) => {
                let reason = chain(&error);
                let said = self.health.lock().replace(reason.clone()).is_some();
                self.member.refuse_waiting(&reason);
                if !said {
                    tracing::error!(
                        partition = self.name,
                        error = reason,
                        "writes fail until there is space"
                    );
                }
                self.progress.stalled = Some((work, ticket));
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Applies what was logged: `Some(None)` durably, `Some(Some(ticket))` on its way to the disk.
    fn finish(&mut self, work: Work, logged: Option<Option<Ticket>>) {
        if let Err(error) = self.member.done(work) {
            return self.fail(&error);
        }
        let revision = self.state.revision();
        match logged {
            Some(None) => {
                self.progress.durable = revision;
                self.progress.on_its_way = None;
            }
            Some(Some(ticket)) => {
                self.progress.on_its_way.get_or_insert((ticket, revision));
            }
            None => {}
        }
    }

    /// Whether so much was handed out on trust that this piece has to wait for the disk.
    fn must_catch_up(&mut self) -> bool {
        let progress = &mut self.progress;
        if let Some((_, revision)) =
            progress.on_its_way.take_if(|(ticket, _)| self.wal.is_durable(*ticket))
        {
            progress.durable = revision;
        }
        RESERVE / 2 < self.state.revision().0.saturating_sub(progress.durable.0)
    }

    /// Nothing more can be decided here.
    fn fail(&mut self, error: &(dyn std::error::Error + 'static)) {
        let reason = chain(error);
        tracing::error!(
            partition = self.name,
            error = reason,
            "the partition stopped taking writes"
        );
        *self.health.lock() = Some(reason.clone());
        self.member.refuse_waiting(&reason);
        self.progress.ended = Some(reason);
    }

    fn begin_checkpoint_if_due(&mut self) {
        let state = self.state.totals().bytes;
        let (segment, segment_bytes) = (self.wal.segment(), self.wal.segment_bytes());
        let options = &self.options.checkpoint;
        if self.plan.is_due(options, self.progress.bytes, state, segment, segment_bytes) {
            self.begin_checkpoint(None);
        }
    }

    fn begin_checkpoint(&mut self, done: Option<oneshot::Sender<Result<(), StoreError>>>) {
        let description = self.describe();
        if self.checkpointer.begin(&self.plan, self.state.image(), description, done) {
            self.progress.bytes = 0;
        }
    }

    fn checkpoint_now(&mut self) -> Result<(), crate::store::Source> {
        let description = self.describe();
        checkpointer::write_now(&self.wal, &self.plan, &self.state.image(), description)
    }

    /// The state as it is now, and where the log goes on from it.
    fn describe(&mut self) -> Description {
        let applied = self.member.applied();
        let segments = &mut self.progress.segments;
        while segments.get(1).is_some_and(|(first, _)| *first <= applied.index + 1) {
            segments.pop_front();
        }
        // Where the next entry is, or will be.
        let segment = match segments.front() {
            Some((_, segment)) if applied.index < self.member.last_index() => *segment,
            _ => self.wal.segment(),
        };
        Description::new(applied, self.member.members(), segment)
    }

    /// Says so if the thread ends in a way that nobody foresaw.
    pub(crate) fn guard(&self) -> PanicGuard {
        PanicGuard(self.health.clone())
    }

    fn end(&mut self, reason: &'static str) {
        self.member.refuse_waiting(reason);
        self.progress.ended.get_or_insert_with(|| reason.into());
        self.health.lock().get_or_insert_with(|| reason.into());
        self.state.close(reason);
    }
}

/// Notes a panic of the thread that holds it.
#[derive(Debug)]
pub(crate) struct PanicGuard(Health);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "the partition's writer ended in a panic; the process must be restarted";
            *self.0.lock() = Some(reason.into());
        }
    }
}

fn unavailable(error: &WalError) -> StoreError {
    StoreError::Unavailable {
        reason: "what was written could not be flushed".into(),
        source: Some(error.clone().into()),
    }
}
