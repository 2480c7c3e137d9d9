//! Reads that must see all that was acknowledged anywhere: the group is asked, for many reads in
//! one round, up to where they have to see, and they wait until that is applied here.
//!
//! A round asks a majority whether the leader still leads. No clock is believed: a leader's lease
//! would need one that never runs slow, and a virtual machine that is paused has none.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::store::StoreError;

/// Ticks after which a round that nobody answered is asked again.
const AGAIN: u64 = 2;

/// Ticks after which a read has waited long enough.
const PATIENCE: u64 = 20;

/// Who waits for a read, and since which tick.
#[derive(Debug)]
struct Waiting {
    reply: oneshot::Sender<Result<(), StoreError>>,
    since: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Came after the round under way began, so it does not count for them.
    queued: Vec<Waiting>,
    /// The round under way: its number, when it was asked, and for whom.
    round: Option<(u64, u64, Vec<Waiting>)>,
    /// Answered, but what they have to see is not applied yet.
    seeing: VecDeque<(u64, Vec<Waiting>)>,
    last_round: u64,
    now: u64,
}

impl Reads {
    pub(crate) fn add(&mut self, reply: oneshot::Sender<Result<(), StoreError>>) {
        self.queued.push(Waiting { reply, since: self.now });
    }

    /// The number of a round to begin now, if one is needed.
    pub(crate) fn begin(&mut self) -> Option<u64> {
        if self.queued.is_empty() || self.round.is_some() {
            return None;
        }
        self.last_round += 1;
        self.round = Some((self.last_round, self.now, std::mem::take(&mut self.queued)));
        Some(self.last_round)
    }

    /// Round `number` was answered: its reads must see the entry at `index`.
    pub(crate) fn answered(&mut self, number: u64, index: u64) {
        if let Some((.., waiting)) = self.round.take_if(|(round, ..)| *round == number) {
            self.seeing.push_back((index, waiting));
        }
    }

    /// Everything up to `index` is applied.
    pub(crate) fn applied(&mut self, index: u64) {
        while let Some((_, waiting)) = self.seeing.pop_front_if(|(needed, _)| *needed <= index) {
            waiting.into_iter().for_each(|waiting| drop(waiting.reply.send(Ok(()))));
        }
    }

    /// Time went by: a round that was lost begins anew, and nobody waits for ever.
    pub(crate) fn tick(&mut self) {
        self.now += 1;
        let now = self.now;
        if let Some((.., mut waiting)) = self.round.take_if(|(_, asked, _)| *asked + AGAIN <= now) {
            waiting.append(&mut self.queued);
            self.queued = waiting;
        }
        let all = std::iter::once(&mut self.queued)
            .chain(self.round.as_mut().map(|(.., waiting)| waiting))
            .chain(self.seeing.iter_mut().map(|(_, waiting)| waiting));
        for waiting in all {
            let overdue = |waiting: &mut Waiting| {
                waiting.since + PATIENCE <= now || waiting.reply.is_closed()
            };
            for waiting in waiting.extract_if(.., overdue) {
                let reason = "too few members of the partition answer to read the latest";
                drop(waiting.reply.send(Err(unavailable(reason))));
            }
        }
    }

    /// Nothing will be answered any more.
    pub(crate) fn fail(&mut self, reason: &str) {
        let round = self.round.take().map(|(.., waiting)| waiting);
        let seeing = self.seeing.drain(..).flat_map(|(_, waiting)| waiting);
        let all = self.queued.drain(..).chain(round.into_iter().flatten()).chain(seeing);
        all.for_each(|waiting| drop(waiting.reply.send(Err(unavailable(reason)))));
    }
}

fn unavailable(reason: &str) -> StoreError {
    StoreError::Unavailable { reason: reason.into(), source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = oneshot::Receiver<Result<(), StoreError>>;

    fn read(reads: &mut Reads) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        reads.add(reply);
        outcome
    }

    #[test]
    fn a_round_answers_only_those_who_came_before_it() {
        let mut reads = Reads::default();
        let mut early = [read(&mut reads), read(&mut reads)];
        let first = reads.begin().unwrap();
        let mut late = read(&mut reads);
        assert_eq!(reads.begin(), None);
        reads.answered(first, 7);
        reads.applied(6);
        assert!(early[0].try_recv().is_err());
        reads.applied(7);
        assert!(early.iter_mut().all(|outcome| outcome.try_recv().unwrap().is_ok()));
        assert!(late.try_recv().is_err());
        let second = reads.begin().unwrap();
        reads.answered(first, 1);
        reads.applied(7);
        assert!(late.try_recv().is_err());
        reads.answered(second, 7);
        reads.applied(7);
        assert!(late.try_recv().unwrap().is_ok());
    }

    #[test]
    fn a_lost_round_is_asked_again_and_waiting_ends() {
        let mut reads = Reads::default();
        let mut outcome = read(&mut reads);
        let first = reads.begin().unwrap();
        (0..AGAIN).for_each(|_| reads.tick());
        assert!(first < reads.begin().unwrap());
        (AGAIN..PATIENCE).for_each(|_| reads.tick());
        assert!(matches!(outcome.try_recv().unwrap(), Err(StoreError::Unavailable { .. })));
    }
}
