//! The next batch is decided, applied and answered while the one before is on its way to the disk.
//!
//! A request that is alone is answered soonest if the thread that decides also flushes. When many
//! write, that thread would stand still for as long as the disk takes, with work waiting; then
//! another one flushes, and says so by [`Control::Logged`].
//!
//! # Invariants
//!
//! * Pieces reach the disk in the order in which they were decided, and what they say is applied
//!   and answered in that order, after they are durable.
//! * Only a leader decides ahead of its log. Everybody else, and whoever needs the newest
//!   revision, [catches up](Writer::catch_up) first.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
};

use tokio::sync::mpsc::WeakUnboundedSender;

use super::{Control, Writer};
use crate::{
    embedded::member::{Logging, Work},
    store::Durability,
    wal::{Ticket, Wal, WalError},
};

/// Requests in a batch that are worth another thread: what they cost to apply is more than what
/// it costs to wake it twice.
const CROWD: usize = 24;

/// Batches that may be on their way at once. More would not be flushed sooner, and those that
/// wait outside become one.
const MOST: usize = 2;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Overlap {
    /// Who flushes. Started when it is first needed.
    flusher: Option<mpsc::Sender<Ticket>>,
    /// What is on its way, oldest first.
    logging: VecDeque<(Logging, Ticket)>,
    /// The disk has no space for it.
    stalled: bool,
    /// The newest batch has many requests.
    crowded: bool,
}

impl Overlap {
    pub(super) fn is_empty(&self) -> bool {
        self.logging.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.logging.len() < MOST
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// A batch of so many requests comes.
    pub(super) fn crowded(&mut self, requests: usize) {
        self.crowded = CROWD <= requests;
    }

    /// Nothing can be logged any more.
    pub(super) fn give_up(&mut self) {
        self.logging.clear();
        self.stalled = false;
        self.flusher = None;
    }

    /// Leaves a flush to the other thread. Says if there is none.
    fn flush(&mut self, ticket: Ticket, writer: &Flushing) -> bool {
        if self.flusher.is_none() {
            self.flusher = writer.start();
        }
        self.flusher.as_ref().is_some_and(|flusher| flusher.send(ticket).is_ok())
    }
}

/// What the thread that flushes works with.
struct Flushing {
    name: String,
    wal: Arc<Wal>,
    control: WeakUnboundedSender<Control>,
}

impl Flushing {
    /// It ends when nobody can ask it for a flush any more.
    fn start(&self) -> Option<mpsc::Sender<Ticket>> {
        let (sender, tickets) = mpsc::channel();
        let (wal, control) = (self.wal.clone(), self.control.clone());
        let flush = move || {
            while let Ok(ticket) = tickets.recv() {
                let outcome = wal.settle(ticket, Durability::Durable);
                let told = control
                    .upgrade()
                    .is_some_and(|control| control.send(Control::Logged(ticket, outcome)).is_ok());
                if !told {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("flusher {}", self.name));
        match thread.spawn(flush) {
            Ok(_) => Some(sender),
            Err(error) => {
                tracing::warn!(partition = self.name, %error, "flushes get no thread of their own");
                None
            }
        }
    }
}

impl Writer {
    /// Whether the member may go on while this is on its way to the disk, and should.
    pub(super) fn overlaps(&self, work: &Work) -> bool {
        if !self.overlap.is_empty() {
            return true;
        }
        self.overlap.crowded
            && self.member.may_go_on()
            && work.durability == Durability::Durable
            && !self.progress.reserving
    }

    /// Goes on; the piece of `ticket` is flushed meanwhile.
    pub(super) fn overlap(&mut self, work: Work, ticket: Ticket) {
        match self.member.go_on(work) {
            Ok(logging) => self.overlap.logging.push_back((logging, ticket)),
            Err(error) => return self.fail(&error),
        }
        let flushing = Flushing {
            name: self.name.clone(),
            wal: self.wal.clone(),
            control: self.control.clone(),
        };
        if !self.overlap.flush(ticket, &flushing) {
            self.wait_for_log();
        }
    }

    /// The piece of `ticket` is on disk, or cannot get there.
    pub(super) fn logged(&mut self, ticket: Ticket, outcome: Result<(), WalError>) {
        // It was waited for meanwhile.
        if self.overlap.logging.front().is_none_or(|(_, first)| ticket < *first) {
            return;
        }
        match outcome {
            Ok(()) => {
                *self.health.lock() = None;
                self.overlap.stalled = false;
                let until = |(_, first): &mut (Logging, Ticket)| *first <= ticket;
                while let Some((logging, _)) = self.overlap.logging.pop_front_if(until) {
                    self.member.logged(&logging);
                }
            }
            Err(error @ WalError::Full(_)) => {
                self.say_full(&error);
                self.overlap.stalled = true;
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
        while !self.overlap.is_empty() {
            self.wait_for_log();
            if self.refusal().is_some() {
                break;
            }
            self.drive();
        }
        self.refusal().is_none()
    }
}
