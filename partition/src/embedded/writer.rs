//! The one thread that changes a partition: takes requests, batches them into log entries, has
//! them logged, applies and answers; hears and answers the group's other members.
//!
//! It never waits for more work to arrive: a batch is whatever was queued while the batch before
//! was on its way to the disk. Alone, a request goes to the disk at once; when many write, the
//! next batch is decided while the one before is being flushed, see [`overlap`].
//!
//! # Invariants
//!
//! * While a piece of the log waits for space, new writes are refused and the piece is tried
//!   again; who waited for it was told that its write may still happen.
//! * No revision is handed out before it is on disk, or reserved there, see [`super::reserve`].

mod checkpoints;
mod group;
mod overlap;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

pub(crate) use self::{
    group::{Control, MembersProgress, Standing},
    overlap::Overlap,
};
use super::{
    checkpointer::{CheckpointOptions, Checkpointer, Plan},
    command::Batch,
    member::{Member, Work},
    post::Post,
    pull::Puller,
    reads::Reads,
    reply::{Reply, ReplyTo},
    reserve::Reserve,
};
use crate::{
    error::chain,
    state::State,
    store::{Committed, Durability, Revision, StoreError, Write},
    wal::{Ticket, Wal, WalError, frame::GroupId},
};

/// Requests taken from the queue at once.
const MAX_REQUESTS: usize = 1024;

/// One tick of raft's clock, and the pause before the log is tried again.
const TICK: Duration = Duration::from_millis(100);

/// The same for a group of one, which has nobody to hear from.
const TICK_ALONE: Duration = Duration::from_millis(500);

/// What a partition can be asked.
#[derive(Debug)]
pub(crate) enum Request {
    Write(Write, ReplyTo<Committed>),
    /// Goes into one entry, as far as it fits.
    WriteAll(Vec<(Write, ReplyTo<Committed>)>),
    Compact(Revision, ReplyTo<()>),
    Raise(Revision, ReplyTo<()>),
    Checkpoint(oneshot::Sender<Result<(), StoreError>>),
    Shutdown(oneshot::Sender<Result<(), StoreError>>),
}

/// Why writes fail now, if they do. Read by status pages.
pub(crate) type Health = Arc<Mutex<Option<String>>>;

/// What a partition's thread works with.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) name: String,
    /// The group's number here, which tells this life of it from others.
    pub(crate) life: GroupId,
    pub(crate) member: Member,
    pub(crate) state: Arc<State>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) checkpointer: Arc<Checkpointer>,
    pub(crate) post: Arc<Post>,
    pub(crate) puller: Arc<Puller>,
    /// Where states are fetched: the process's own runtime, which may own the connections.
    pub(crate) runtime: Option<tokio::runtime::Handle>,
    pub(crate) control: mpsc::WeakUnboundedSender<Control>,
    pub(crate) options: WriterOptions,
    pub(crate) health: Health,
    pub(crate) standing: watch::Sender<Arc<Standing>>,
    pub(crate) reads: Reads,
    /// A state is being fetched.
    pub(crate) pulling: bool,
    /// What makes this thread's rounds of reads its own in the whole group.
    pub(crate) lot: u64,
    pub(crate) progress: LogProgress,
    pub(crate) overlap: Overlap,
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
    reserve: Reserve,
    /// The next piece must be durable, whatever its class: it has a reservation in it.
    reserving: bool,
    /// A piece that the disk has no space for.
    stalled: Option<(Work, Ticket)>,
    /// Nothing can be decided any more, and why.
    ended: Option<String>,
}

impl LogProgress {
    /// Begins after a restart: the entries from index `next` on are in `segment` or later.
    pub(crate) fn new(next: u64, segment: u64) -> Self {
        Self { segments: VecDeque::from([(next, segment)]), ..Self::default() }
    }
}

impl Writer {
    /// Works until asked to shut down or until nobody is left who could ask.
    pub(crate) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut control: mpsc::UnboundedReceiver<Control>,
    ) {
        let mut inbox = Vec::with_capacity(MAX_REQUESTS);
        let mut calls = Vec::new();
        let mut next_tick = Instant::now();
        let mut was_crowded = false;
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next_tick) => {
                    self.tick();
                    next_tick = Instant::now() + self.pause();
                }
                taken = control.recv_many(&mut calls, MAX_REQUESTS) => {
                    if taken == 0 {
                        return self.end("the partition was closed");
                    }
                }
                taken = requests.recv_many(&mut inbox, MAX_REQUESTS), if self.overlap.has_room() => {
                    if taken == 0 {
                        return self.end("the partition was closed");
                    }
                }
            }
            // Where others want the processor, they have it first: what they are about to ask for
            // comes in the same batch, and costs no flush of its own. Measured with two processors
            // and 32 clients, a fifth less for a write. Who writes alone would only wait for others,
            // who want something else: for whole slices of theirs, which are milliseconds.
            let has_requests = !inbox.is_empty();
            if has_requests && was_crowded {
                std::thread::yield_now();
            }
            // The disk is free for the next batch before the one that it has is applied.
            if has_requests || calls.iter().any(|call| matches!(call, Control::Logged(..))) {
                while inbox.len() < MAX_REQUESTS
                    && let Ok(request) = requests.try_recv()
                {
                    inbox.push(request);
                }
            }
            if has_requests {
                was_crowded = 1 < inbox.len();
            }
            self.hear(&mut calls);
            let shutdown = self.take(&mut inbox);
            self.drive();
            self.begin_checkpoint_if_due();
            if let Some(reply) = shutdown {
                self.catch_up();
                requests.close();
                control.close();
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
        let mut batch = Batch::with_room(room_for(inbox).min(self.options.batch_bytes));
        let mut replies = Vec::with_capacity(inbox.len());
        for request in inbox.drain(..) {
            match request {
                Request::Write(write, reply) => {
                    batch.write(&write);
                    replies.push(Reply::Write(reply));
                }
                Request::WriteAll(writes) => {
                    for (write, reply) in writes {
                        if self.options.batch_bytes <= batch.bytes() {
                            self.propose(std::mem::take(&mut batch), std::mem::take(&mut replies));
                        }
                        batch.write(&write);
                        replies.push(Reply::Write(reply));
                    }
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

    /// Applies what was agreed on when the process ended. A group of one then makes this member
    /// its leader, and leaves out the revisions up to `reserved`: they may have been handed out
    /// and lost.
    pub(crate) fn begin(&mut self, reserved: u64) -> Result<(), String> {
        self.member.reserved = reserved;
        self.drive();
        if self.member.is_alone() {
            if let Err(error) = self.member.campaign() {
                return Err(chain(&error));
            }
            self.drive();
            let lost = reserved.saturating_sub(self.state.revision().0);
            self.member.reserved = 0;
            if 0 < lost && self.member.is_leader() {
                let mut batch = Batch::default();
                batch.skip(lost);
                self.propose(batch, vec![Reply::Nobody]);
            }
            if self.refusal().is_none() && !self.member.is_leader() {
                return Err("it did not become its own leader".into());
            }
        }
        self.publish();
        self.refusal().map_or(Ok(()), Err)
    }

    /// Has a batch agreed on, logged, applied and answered.
    fn propose(&mut self, batch: Batch, replies: Vec<Reply>) {
        // Nothing to do, or nobody left to do it for.
        if replies.iter().all(Reply::is_closed) {
            return;
        }
        if let Some(reason) = self.refusal() {
            return replies.into_iter().for_each(|reply| reply.fail(&reason));
        }
        if self.member.is_alone() {
            // Which revisions it will get is known only behind all that was before it.
            if batch.is_relaxed() && !self.catch_up() {
                let reason = self.refusal().unwrap_or_default();
                return replies.into_iter().for_each(|reply| reply.fail(&reason));
            }
            self.reserve(&batch, replies.len() as u64);
        }
        self.overlap.comes(replies.len(), self.wal.flush_time());
        self.member.propose(batch.finish(), replies);
        self.drive();
    }

    /// Sees to it that no revision that `batch` may get early is ever given twice.
    fn reserve(&mut self, batch: &Batch, commands: u64) {
        let progress = &mut self.progress;
        if batch.is_relaxed() {
            let needed = self.state.revision().0 + commands;
            if let Some(reserved) = progress.reserve.relaxed(needed) {
                self.member.reserved = reserved;
                progress.reserving = true;
            }
        } else if progress.reserve.give_back() {
            self.member.reserved = 0;
        }
    }

    /// Why nothing can be decided now.
    fn refusal(&self) -> Option<String> {
        let stalled = self.is_stalled();
        let reason = || self.health.lock().clone().unwrap_or_else(|| "the log is full".into());
        self.progress.ended.clone().or_else(|| stalled.then(reason))
    }

    fn pause(&self) -> Duration {
        if self.member.is_alone() && !self.is_stalled() { TICK_ALONE } else { TICK }
    }

    /// A piece waits for space on the disk.
    fn is_stalled(&self) -> bool {
        self.progress.stalled.is_some() || self.overlap.is_stalled()
    }

    /// Time went by.
    fn tick(&mut self) {
        if let Some((work, ticket)) = self.progress.stalled.take() {
            self.settle(work, ticket);
        } else if self.overlap.is_stalled() {
            self.wait_for_log();
        } else if self.progress.ended.is_none() {
            self.member.tick();
        }
        self.reads.tick();
        self.drive();
        self.publish_others();
    }

    /// Does what the member asks for, until it asks for nothing.
    fn drive(&mut self) {
        loop {
            self.answer_reads();
            if self.refusal().is_some() || !self.member.has_work() {
                break;
            }
            // Only a leader goes on before its log has what it said.
            if !self.overlap.is_empty() && !self.member.may_go_on() {
                self.wait_for_log();
                continue;
            }
            let work = match self.member.take_work() {
                Ok(work) => work,
                Err(error) => return self.fail(&error),
            };
            // A leader's entries are on their way to others while they go to its own disk.
            self.send();
            self.log(work);
            self.send();
        }
        self.publish();
    }

    fn log(&mut self, mut work: Work) {
        let Some(piece) = work.piece.take() else { return self.finish(work) };
        let overlaps = self.overlaps(&work);
        self.progress.bytes += piece.bytes() as u64;
        let segment = self.wal.segment();
        if let Some(first) = work.first_index()
            && self.progress.segments.back().is_none_or(|(_, known)| *known < segment)
        {
            self.progress.segments.push_back((first, segment));
        }
        let ticket = self.wal.submit(piece);
        if overlaps { self.overlap(work, ticket) } else { self.settle(work, ticket) }
    }

    fn settle(&mut self, work: Work, ticket: Ticket) {
        let durability =
            if self.progress.reserving { Durability::Durable } else { work.durability };
        match self.wal.settle(ticket, durability) {
            Ok(()) => {
                *self.health.lock() = None;
                if durability == Durability::Durable {
                    self.progress.reserving = false;
                    self.progress.reserve.is_durable(self.member.reserved);
                }
                self.finish(work);
            }
            Err(error @ WalError::Full(_)) => {
                self.say_full(&error);
                self.progress.stalled = Some((work, ticket));
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The disk has no space. Whoever waits may get what was asked for, but not now.
    fn say_full(&mut self, error: &WalError) {
        let reason = chain(error);
        let said = self.health.lock().replace(reason.clone()).is_some();
        self.member.fail_waiting(&reason);
        if !said {
            tracing::error!(
                partition = self.name,
                error = reason,
                "writes fail until there is space"
            );
        }
    }

    /// Applies what was logged.
    fn finish(&mut self, work: Work) {
        let finished = match self.overlap.is_empty() {
            true => self.member.done(work),
            // Nothing of it had to be logged, but of what was before it.
            false => self.member.go_on(work).map(drop),
        };
        if let Err(error) = finished {
            self.fail(&error);
        }
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
        self.member.fail_waiting(&reason);
        self.reads.fail(&reason);
        self.overlap.give_up();
        self.progress.ended = Some(reason);
        self.publish();
    }

    /// Says so if the thread ends in a way that nobody foresaw.
    pub(crate) fn guard(&self) -> PanicGuard {
        PanicGuard(self.health.clone())
    }

    fn end(&mut self, reason: &'static str) {
        self.member.fail_waiting(reason);
        self.reads.fail(reason);
        self.progress.ended.get_or_insert_with(|| reason.into());
        self.health.lock().get_or_insert_with(|| reason.into());
        self.state.close(reason);
        self.publish();
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

/// About how many bytes a batch of these takes.
fn room_for(inbox: &[Request]) -> usize {
    let sizes = inbox.iter().map(|request| match request {
        Request::Write(write, _) => Batch::size_of(write),
        Request::WriteAll(writes) => writes.iter().map(|(write, _)| Batch::size_of(write)).sum(),
        _ => 0,
    });
    sizes.sum()
}

fn unavailable(error: &WalError) -> StoreError {
    StoreError::Unavailable {
        reason: "what was written could not be flushed".into(),
        source: Some(error.clone().into()),
    }
}
