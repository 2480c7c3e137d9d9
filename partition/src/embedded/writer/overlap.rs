//! The next batch is decided, applied and answered while the one before is on its way to the disk.
//!
//! A request that is alone is answered soonest if the thread that decides also flushes. When many
//! write, that thread would stand still for as long as the disk takes, with work waiting; then
//! others flush, and say so by [`Control::Logged`].
//!
//! # Invariants
//!
//! * Pieces reach the disk in the order in which they were decided, and what they say is applied
//!   and answered in that order, after they are durable.
//! * Only a leader decides ahead of its log. Everybody else, and whoever needs the newest
//!   revision, [catches up](Writer::catch_up) first.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, mpsc},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::mpsc::WeakUnboundedSender;

use super::{Control, Writer};
use crate::{
    embedded::member::{Logging, Work},
    store::Durability,
    wal::{MAX_FLUSHES, Ticket, Wal, WalError},
};

/// Requests in a batch that are worth another thread: what they cost to apply is more than what
/// it costs to wake two threads.
const CROWD: usize = 24;

/// A flush that is worth another thread whenever there are several requests: those that come
/// meanwhile are better off with a flush of their own than with waiting for this one.
const SLOW: Duration = Duration::from_micros(500);

/// Batches that may be on their way at once, as many as the log flushes at once. What comes
/// meanwhile would not be flushed sooner if it were decided now, and becomes one batch if it waits.
const MOST: usize = MAX_FLUSHES;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Overlap {
    /// Those who flush. Started when they are first needed.
    flusher: Option<mpsc::Sender<Ticket>>,
    /// What is on its way, oldest first.
    logging: VecDeque<(Logging, Ticket)>,
    /// The disk has no space for the piece of this ticket, nor for those behind it.
    stalled: Option<Ticket>,
    /// The newest batch should overlap with the next.
    worth_it: bool,
}

impl Overlap {
    pub(super) fn is_empty(&self) -> bool {
        self.logging.is_empty()
    }

    /// Whether the next batch can be decided, or else refused at once.
    pub(super) fn has_room(&self) -> bool {
        self.logging.len() < MOST || self.is_stalled()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// A batch of so many requests comes, and a flush takes so long.
    pub(super) fn comes(&mut self, requests: usize, flush: Duration) {
        self.worth_it = CROWD <= requests || (2 <= requests && SLOW <= flush);
    }

    /// Nothing can be logged any more.
    pub(super) fn give_up(&mut self) {
        self.logging.clear();
        self.stalled = None;
        self.flusher = None;
    }
}

/// Starts the threads that flush. They end when nobody can ask them any more.
fn start(
    name: &str,
    wal: &Arc<Wal>,
    control: &WeakUnboundedSender<Control>,
) -> io::Result<mpsc::Sender<Ticket>> {
    let (sender, tickets) = mpsc::channel();
    let tickets = Arc::new(Mutex::new(tickets));
    for _ in 0..MOST {
        let (tickets, wal, control) = (tickets.clone(), wal.clone(), control.clone());
        let flush = move || {
            let next = || tickets.lock().recv();
            while let Ok(ticket) = next() {
                let logged = Control::Logged(ticket, wal.settle(ticket, Durability::Durable));
                let Some(control) = control.upgrade() else { return };
                if control.send(logged).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name(format!("flusher {name}")).spawn(flush)?;
    }
    Ok(sender)
}

impl Writer {
    /// Whether the member may go on while this is on its way to the disk, and should.
    pub(super) fn overlaps(&self, work: &Work) -> bool {
        if !self.overlap.is_empty() {
            return true;
        }
        self.overlap.worth_it
            && self.member.may_go_on()
            && work.durability == Durability::Durable
            && !self.progress.reserving
    }

    /// Goes on; the piece of `ticket` is flushed meanwhile.
    pub(super) fn overlap(&mut self, work: Work, ticket: Ticket) {
        let begun = self.begin_flush(ticket);
        // Going on is also applying what was logged before.
        match self.member.go_on(work) {
            Ok(logging) => self.overlap.logging.push_back((logging, ticket)),
            Err(error) => return self.fail(&error),
        }
        if !begun {
            self.wait_for_log();
        }
    }

    /// Has the piece of `ticket` flushed by another thread, if there can be one.
    fn begin_flush(&mut self, ticket: Ticket) -> bool {
        if self.overlap.flusher.is_none() {
            match start(&self.name, &self.wal, &self.control) {
                Ok(flusher) => self.overlap.flusher = Some(flusher),
                Err(error) => {
                    tracing::warn!(partition = self.name, %error, "no threads for flushes");
                }
            }
        }
        self.overlap.flusher.as_ref().is_some_and(|flusher| flusher.send(ticket).is_ok())
    }

    /// The piece of `ticket` is on disk, or cannot get there.
    pub(super) fn logged(&mut self, ticket: Ticket, outcome: Result<(), WalError>) {
        // It was waited for meanwhile.
        if self.overlap.logging.front().is_none_or(|(_, first)| ticket < *first) {
            return;
        }
        match outcome {
            Ok(()) => {
                self.overlap.stalled.take_if(|stalled| *stalled <= ticket);
                if !self.overlap.is_stalled() {
                    *self.health.lock() = None;
                }
                let until = |(_, first): &mut (Logging, Ticket)| *first <= ticket;
                while let Some((logging, _)) = self.overlap.logging.pop_front_if(until) {
                    self.member.logged(&logging);
                }
            }
            Err(error @ WalError::Full(_)) => {
                self.say_full(&error);
                self.overlap.stalled = self.overlap.stalled.max(Some(ticket));
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Waits until all that was decided is on disk, or cannot get there.
    pub(super) fn wait_for_log(&mut self) {
        if let Some((_, ticket)) = self.overlap.logging.back() {
            let ticket = *ticket;
            let outcome = self.wal.settle(ticket, Durability::Durable);
            self.logged(ticket, outcome);
        }
    }

    /// Waits for the same, and has it applied. Says whether it is.
    pub(super) fn catch_up(&mut self) -> bool {
        self.drive();
        while !self.overlap.is_empty() && self.refusal().is_none() {
            self.wait_for_log();
            self.drive();
        }
        self.refusal().is_none()
    }
}
