//! Priority levels of one tenant: how many of its requests are under way at once, and which wait.
//!
//! As upstream's, within the number that the tenant may have under way: each level has a part of
//! that by its shares, lends what it need not keep, and borrows where others do not use theirs.
//! What finds no seat waits in one of its level's queues, or is refused.
//!
//! A seat is taken and given back without a lock while nobody waits for one; lending, borrowing
//! and waiting are done under the tenant's own.
//!
//! # Invariants
//!
//! * Who waits is counted in `waiting` before it looks for a seat a last time, and who gives one
//!   back does so before it looks whether somebody waits: one of them sees the other.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    counters::{Counters, Rejected},
    shuffle::deal,
};

/// Most requests of a tenant that wait at once, in all its queues.
const WAITING: u32 = 5_000;

/// What a level is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    pub name: String,
    /// `None`: nothing of it ever waits.
    pub limited: Option<Limited>,
}

/// A level with limits, in shares and percents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limited {
    pub shares: u32,
    pub lendable: u32,
    pub borrowing: Option<u32>,
    pub queuing: Option<Queuing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queuing {
    pub queues: usize,
    pub hand: usize,
    pub length: usize,
}

/// One level as it is at the moment.
#[derive(Debug)]
struct Level {
    spec: Spec,
    /// Seats that are its own, those of them that it never lends, and most that it may have.
    nominal: u32,
    least: u32,
    most: u32,
    /// Seats that it has with what it borrowed and without what it lent.
    limit: AtomicU32,
    used: AtomicU32,
    waiting: AtomicU32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Levels {
    levels: Box<[Level]>,
    /// The queues of each level.
    queues: Mutex<Vec<Queues>>,
}

#[derive(Debug, Default)]
struct Queues {
    queues: Vec<Queue>,
    /// Virtual time, in seats given.
    now: u64,
    /// Names waiters.
    next: u64,
}

#[derive(Debug, Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    served: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    width: u32,
    grant: oneshot::Sender<Seat>,
}

/// Some seats of a level, until dropped.
#[derive(Debug)]
pub(super) struct Seat {
    levels: Arc<Levels>,
    level: usize,
    width: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.levels.back(self.level, self.width);
    }
}

/// Who asks for seats.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asks<'a> {
    pub level: usize,
    pub width: u32,
    /// Of its flow.
    pub hash: u64,
    pub patience: Duration,
    pub counters: &'a Counters,
}

impl Levels {
    /// Levels that share `seats`.
    pub(super) fn new(specs: Vec<Spec>, seats: u32) -> Self {
        let limited = || specs.iter().filter_map(|it| it.limited.as_ref());
        let shares: u64 = limited().map(|it| u64::from(it.shares)).sum::<u64>().max(1);
        let part = |of: u32, percent: u32| {
            u32::try_from((u64::from(of) * u64::from(percent) + 50) / 100).unwrap_or(u32::MAX)
        };
        let levels = specs.iter().map(|spec| {
            let (nominal, least, most) = match &spec.limited {
                None => (0, 0, 0),
                Some(it) => {
                    let nominal = (u64::from(seats) * u64::from(it.shares)).div_ceil(shares);
                    let nominal = u32::try_from(nominal).unwrap_or(u32::MAX);
                    let most = it
                        .borrowing
                        .map_or(u32::MAX, |it| nominal.saturating_add(part(nominal, it)));
                    (nominal, nominal - part(nominal, it.lendable.min(100)), most)
                }
            };
            Level {
                spec: spec.clone(),
                nominal,
                least,
                most,
                limit: AtomicU32::new(nominal),
                used: AtomicU32::new(0),
                waiting: AtomicU32::new(0),
            }
        });
        let levels = levels.collect();
        let queues = specs.iter().map(|spec| {
            let n = spec.limited.as_ref().and_then(|it| it.queuing).map_or(0, |it| it.queues);
            let queues = (0..n).map(|_| Queue::default()).collect();
            Queues { queues, ..Queues::default() }
        });
        let queues = Mutex::new(queues.collect());
        Self { levels, queues }
    }

    /// Seats, when there are some. Cancel safe.
    pub(super) async fn take(self: &Arc<Self>, asks: Asks<'_>) -> Result<Option<Seat>, Rejected> {
        let level = &self.levels[asks.level];
        let Some(limited) = &level.spec.limited else { return Ok(None) };
        if level.waiting.load(SeqCst) == 0 && level.try_take(asks.width) {
            return Ok(Some(self.seat(asks)));
        }
        let (id, given) = {
            let mut queues = self.queues.lock();
            // Counted before the last look.
            level.waiting.fetch_add(1, SeqCst);
            let others_wait = 1 < level.waiting.load(SeqCst);
            if !others_wait && (level.try_take(asks.width) || self.borrow(asks.level, asks.width)) {
                level.waiting.fetch_sub(1, SeqCst);
                drop(queues);
                return Ok(Some(self.seat(asks)));
            }
            let queued = match limited.queuing {
                None => Err(Rejected::ConcurrencyLimit),
                Some(_) if WAITING < self.waiting() => Err(Rejected::QueueFull),
                Some(queuing) => queues[asks.level].push(queuing, asks),
            };
            match queued {
                Ok(queued) => queued,
                Err(why) => {
                    level.waiting.fetch_sub(1, SeqCst);
                    return Err(why);
                }
            }
        };
        let _queued = asks.counters.queued();
        let mut leaving = Leaving { levels: self, level: asks.level, id, is_gone: false };
        match tokio::time::timeout(asks.patience, given).await {
            Ok(Ok(seat)) => {
                leaving.is_gone = true;
                Ok(Some(seat))
            }
            Ok(Err(_)) | Err(_) => Err(Rejected::TimeOut),
        }
    }

    fn waiting(&self) -> u32 {
        self.levels.iter().map(|it| it.waiting.load(SeqCst)).sum()
    }

    fn seat(self: &Arc<Self>, asks: Asks<'_>) -> Seat {
        let Asks { level, width, .. } = asks;
        Seat { levels: self.clone(), level, width }
    }

    fn back(self: &Arc<Self>, at: usize, width: u32) {
        let level = &self.levels[at];
        level.used.fetch_sub(width, SeqCst);
        if 0 < level.waiting.load(SeqCst) {
            let granted = self.serve(at, &mut self.queues.lock());
            drop(granted);
        }
        // Somebody else may wait for what is lent to this level.
        for (other, it) in self.levels.iter().enumerate() {
            if other != at && 0 < it.waiting.load(SeqCst) {
                let granted = self.serve(other, &mut self.queues.lock());
                drop(granted);
            }
        }
    }

    /// Gives seats to who waits for them. What comes back are seats that nobody took; they are to
    /// be dropped when the lock is.
    fn serve(self: &Arc<Self>, at: usize, queues: &mut [Queues]) -> Vec<Seat> {
        let (level, queues) = (&self.levels[at], &mut queues[at]);
        let mut not_taken = Vec::new();
        while let Some((which, width)) = queues.next() {
            if !level.try_take(width) && !self.borrow(at, width) {
                break;
            }
            let Some(waiter) = queues.pop(which) else { break };
            level.waiting.fetch_sub(1, SeqCst);
            let seat = Seat { levels: self.clone(), level: at, width };
            not_taken.extend(waiter.grant.send(seat).err());
        }
        not_taken
    }

    /// Takes seats with what others do not use. Called under the lock.
    fn borrow(&self, at: usize, width: u32) -> bool {
        let level = &self.levels[at];
        let limit = level.limit.load(SeqCst);
        let wanted = level.used.load(SeqCst).saturating_add(width);
        if level.most < wanted || wanted <= limit {
            return level.try_take(width);
        }
        let mut missing = wanted - limit;
        let mut taken = Vec::new();
        // What is its own comes back at once, whether it is in use or not.
        let own = missing.min(level.nominal.saturating_sub(limit));
        missing -= self.collect(at, own, &mut taken, |other| {
            other.limit.load(SeqCst).saturating_sub(other.nominal)
        });
        missing -= self.collect(at, missing, &mut taken, |other| {
            let used = other.used.load(SeqCst).saturating_add(other.waiting.load(SeqCst));
            other.limit.load(SeqCst).saturating_sub(used.max(other.least))
        });
        if 0 < missing {
            for (other, seats) in taken {
                self.levels[other].limit.fetch_add(seats, SeqCst);
            }
            return false;
        }
        level.limit.fetch_add(wanted - limit, SeqCst);
        level.try_take(width)
    }

    /// Takes up to `wanted` of what others can spare, and says how much that was.
    fn collect(
        &self,
        at: usize,
        wanted: u32,
        taken: &mut Vec<(usize, u32)>,
        spare: impl Fn(&Level) -> u32,
    ) -> u32 {
        let mut left = wanted;
        for (other, it) in self.levels.iter().enumerate() {
            if other == at || it.spec.limited.is_none() || left == 0 {
                continue;
            }
            let some = spare(it).min(left);
            if 0 < some {
                it.limit.fetch_sub(some, SeqCst);
                taken.push((other, some));
                left -= some;
            }
        }
        wanted - left
    }
}

impl Level {
    fn try_take(&self, width: u32) -> bool {
        let fits = |used: u32| {
            let limit = self.limit.load(SeqCst);
            // What is wider than all of it goes alone.
            let is_alone = used == 0 && 0 < limit;
            (is_alone || used.saturating_add(width) <= limit).then(|| used + width)
        };
        self.used.fetch_update(SeqCst, SeqCst, fits).is_ok()
    }
}

impl Queues {
    /// Puts a waiter into the shortest queue of its hand.
    fn push(
        &mut self,
        queuing: Queuing,
        asks: Asks<'_>,
    ) -> Result<(u64, oneshot::Receiver<Seat>), Rejected> {
        let mut best: Option<usize> = None;
        deal(asks.hash, self.queues.len(), queuing.hand, |it| {
            let length = |at: usize| self.queues[at].waiters.len();
            if best.is_none_or(|best| length(it) < length(best)) {
                best = Some(it);
            }
        });
        let Some(queue) = best.and_then(|at| self.queues.get_mut(at)) else {
            return Err(Rejected::QueueFull);
        };
        if queuing.length <= queue.waiters.len() {
            return Err(Rejected::QueueFull);
        }
        if queue.waiters.is_empty() {
            queue.served = queue.served.max(self.now);
        }
        self.next += 1;
        let (grant, given) = oneshot::channel();
        queue.waiters.push_back(Waiter { id: self.next, width: asks.width, grant });
        Ok((self.next, given))
    }

    /// The queue whose turn it is, and how many seats its first needs.
    fn next(&self) -> Option<(usize, u32)> {
        let waiting = self.queues.iter().enumerate();
        let firsts = waiting.filter_map(|(at, it)| Some((it.served, at, it.waiters.front()?)));
        firsts.min_by_key(|(served, at, _)| (*served, *at)).map(|(_, at, it)| (at, it.width))
    }

    fn pop(&mut self, which: usize) -> Option<Waiter> {
        let queue = self.queues.get_mut(which)?;
        let waiter = queue.waiters.pop_front()?;
        self.now = self.now.max(queue.served);
        queue.served += u64::from(waiter.width);
        Some(waiter)
    }

    fn remove(&mut self, id: u64) -> bool {
        self.queues.iter_mut().any(|queue| {
            let at = queue.waiters.iter().position(|it| it.id == id);
            at.and_then(|at| queue.waiters.remove(at)).is_some()
        })
    }
}

/// Somebody who waits, and may go away.
struct Leaving<'l> {
    levels: &'l Levels,
    level: usize,
    id: u64,
    is_gone: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if !self.is_gone && self.levels.queues.lock()[self.level].remove(self.id) {
            self.levels.levels[self.level].waiting.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
