//! What raft remembers, in memory; the write-ahead log holds the same on disk.
//!
//! Entries are dropped once they are applied and no other member can still need them: their
//! content lives on in the state, and on disk in the log and the checkpoints.

use std::{collections::VecDeque, sync::Arc};

use raft::{
    Error, GetEntriesContext, RaftState, Result, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

use super::image;
use crate::state::State;

/// Applied entries kept for members that are a little behind, in a group of more than one.
const KEPT_FOR_FOLLOWERS: u64 = 4096;

/// A place in the group's history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RaftLog {
    pub(crate) hard: HardState,
    pub(crate) conf: ConfState,
    /// The newest entry that is no longer here.
    truncated: Position,
    /// What follows `truncated`, without gaps.
    entries: VecDeque<Entry>,
    /// What `state` stands for.
    applied: Position,
    state: Arc<State>,
}

impl RaftLog {
    /// Starts behind `applied`, which `state` already holds.
    pub(crate) fn new(
        state: Arc<State>,
        applied: Position,
        conf: ConfState,
        hard: HardState,
        entries: VecDeque<Entry>,
    ) -> Self {
        Self { hard, conf, truncated: applied, entries, applied, state }
    }

    pub(crate) fn applied(&self) -> Position {
        self.applied
    }

    /// Adds entries; those that were there with the same or a higher index give way.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        append(&mut self.entries, entries);
    }

    /// The state now holds everything up to `applied`.
    pub(crate) fn set_applied(&mut self, applied: Position) {
        self.applied = applied;
        let keep = if self.is_alone() { 0 } else { KEPT_FOR_FOLLOWERS };
        let drop_to = applied.index.saturating_sub(keep);
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.index <= drop_to) {
            self.truncated = Position { index: entry.index, term: entry.term };
        }
    }

    /// Whether the group has one member only.
    pub(crate) fn is_alone(&self) -> bool {
        let conf = &self.conf;
        let parts = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
        parts.iter().map(|part| part.len()).sum::<usize>() <= 1
    }

    /// Starts over behind a snapshot, which `state` now holds.
    pub(crate) fn restore(&mut self, at: Position, conf: ConfState) {
        self.entries.clear();
        self.truncated = at;
        self.applied = at;
        self.conf = conf;
        self.hard.commit = self.hard.commit.max(at.index);
    }

    fn last(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }
}

/// Appends `new` behind `entries`, cutting off what `new` replaces.
pub(crate) fn append(entries: &mut VecDeque<Entry>, new: Vec<Entry>) {
    for entry in new {
        while entries.pop_back_if(|last| entry.index <= last.index).is_some() {}
        entries.push_back(entry);
    }
}

impl Storage for RaftLog {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState { hard_state: self.hard.clone(), conf_state: self.conf.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.truncated.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if self.last() + 1 < high {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let offset = |index: u64| (index - self.truncated.index - 1) as usize;
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0_u64;
        let within =
            self.entries.range(offset(low)..offset(high)).enumerate().take_while(|(nth, entry)| {
                size += entry.data.len() as u64 + 32;
                *nth == 0 || size <= limit
            });
        Ok(within.map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        let Some(offset) = index.checked_sub(self.truncated.index + 1) else {
            return Err(Error::Store(StorageError::Compacted));
        };
        let entry = usize::try_from(offset).ok().and_then(|offset| self.entries.get(offset));
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.truncated.index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        if self.applied.index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot { data: image::encode(&self.state.image()), metadata: None };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied.index;
        metadata.term = self.applied.term;
        metadata.conf_state = Some(self.conf.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ring::RingLimits, state::Image};

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Entry::default() }
    }

    fn log() -> RaftLog {
        let state = State::new(Image::default(), RingLimits::default());
        let conf = ConfState { voters: vec![1], ..ConfState::default() };
        let start = Position { index: 4, term: 2 };
        RaftLog::new(state, start, conf, HardState::default(), VecDeque::new())
    }

    fn indices(log: &RaftLog, low: u64, high: u64, size: u64) -> Vec<u64> {
        let entries = log.entries(low, high, size, GetEntriesContext::empty(false)).unwrap();
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn knows_what_it_holds() {
        let mut log = log();
        log.append(vec![entry(5, 2), entry(6, 3), entry(7, 3)]);
        assert_eq!((log.first_index().unwrap(), log.last_index().unwrap()), (5, 7));
        assert_eq!(indices(&log, 5, 8, u64::MAX), [5, 6, 7]);
        assert_eq!(indices(&log, 6, 8, 0), [6]);
        assert_eq!(indices(&log, 5, 8, 64), [5, 6]);
        assert_eq!([4, 5, 6].map(|index| log.term(index).unwrap()), [2, 2, 3]);
        assert!(matches!(log.term(3), Err(Error::Store(StorageError::Compacted))));
        assert!(matches!(log.term(8), Err(Error::Store(StorageError::Unavailable))));
    }

    #[test]
    fn a_new_leader_replaces_the_tail() {
        let mut log = log();
        log.append(vec![entry(5, 2), entry(6, 2), entry(7, 2)]);
        log.append(vec![entry(6, 3)]);
        assert_eq!(log.last_index().unwrap(), 6);
        assert_eq!(log.term(6).unwrap(), 3);
    }

    #[test]
    fn keeps_applied_entries_only_for_others() {
        let mut log = log();
        log.append(vec![entry(5, 2), entry(6, 2)]);
        log.set_applied(Position { index: 5, term: 2 });
        assert_eq!(log.first_index().unwrap(), 6);
        log.conf.learners = vec![2];
        log.set_applied(Position { index: 6, term: 2 });
        assert_eq!(log.first_index().unwrap(), 6);
        assert_eq!(log.term(5).unwrap(), 2);
    }
}
