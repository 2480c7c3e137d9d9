//! What raft remembers, in memory; the write-ahead log holds the same on disk.
//!
//! Entries are dropped once they are applied, but for a tail for members that are a little
//! behind: their content lives on in the state, and on disk in the log and the checkpoints.
//! A snapshot says only which state it stands for; whoever needs it fetches it, see
//! [`super::pull`].

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use raft::{
    Error, GetEntriesContext, RaftState, Result, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

/// Applied entries kept for members that are a little behind, in a group of more than one: this
/// many bytes of them.
const KEPT_BYTES: usize = 32 << 20;

/// The same while a member fetches the state: it will need the entries behind it.
const KEPT_BYTES_FOR_PULL: usize = 512 << 20;

/// What an entry takes beside its data.
const OVERHEAD: usize = 64;

/// How long entries are kept after a state was fetched, for the member to put it in place.
const KEPT_AFTER_PULL: Duration = Duration::from_secs(30);

/// A place in the group's history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// Another member fetches the state. Dropped when it has, or gave up.
#[derive(Debug)]
pub(crate) struct Pull {
    pulls: Arc<Mutex<Vec<Pulling>>>,
    token: Arc<()>,
}

#[derive(Debug)]
struct Pulling {
    member: u64,
    /// What the fetched state stands for.
    index: u64,
    token: Arc<()>,
    ended: Option<Instant>,
}

impl Drop for Pull {
    fn drop(&mut self) {
        for pulling in &mut *self.pulls.lock() {
            if Arc::ptr_eq(&pulling.token, &self.token) {
                pulling.ended = Some(Instant::now());
            }
        }
    }
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
    /// Bytes of `entries`.
    bytes: usize,
    /// What the state stands for.
    applied: Position,
    pulls: Arc<Mutex<Vec<Pulling>>>,
}

impl RaftLog {
    /// Starts behind `applied`, which the state already holds.
    pub(crate) fn new(
        applied: Position,
        conf: ConfState,
        hard: HardState,
        entries: VecDeque<Entry>,
    ) -> Self {
        let bytes = entries.iter().map(size).sum();
        let pulls = Arc::default();
        Self { hard, conf, truncated: applied, entries, bytes, applied, pulls }
    }

    pub(crate) fn applied(&self) -> Position {
        self.applied
    }

    /// Adds entries; those that were there with the same or a higher index give way.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            while let Some(replaced) = self.entries.pop_back_if(|last| entry.index <= last.index) {
                self.bytes -= size(&replaced);
            }
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
    }

    /// The state now holds everything up to `applied`.
    pub(crate) fn set_applied(&mut self, applied: Position) {
        self.applied = applied;
        let (keep, from) = if self.is_alone() { (0, u64::MAX) } else { self.kept() };
        while let Some(entry) = self.entries.pop_front_if(|entry| {
            entry.index <= applied.index
                && (keep < self.bytes || keep == 0)
                && (entry.index <= from || KEPT_BYTES_FOR_PULL < self.bytes)
        }) {
            self.bytes -= size(&entry);
            self.truncated = Position { index: entry.index, term: entry.term };
        }
    }

    /// Bytes to keep, and the index behind which all is kept.
    fn kept(&self) -> (usize, u64) {
        let mut pulls = self.pulls.lock();
        pulls.retain(|pulling| pulling.ended.is_none_or(|ended| ended.elapsed() < KEPT_AFTER_PULL));
        let from = pulls.iter().map(|pulling| pulling.index).min();
        (KEPT_BYTES, from.unwrap_or(u64::MAX))
    }

    /// `member` fetches the state as it is now.
    pub(crate) fn keep_for(&mut self, member: u64) -> Pull {
        let token = Arc::new(());
        let mut pulls = self.pulls.lock();
        pulls.retain(|pulling| pulling.member != member || pulling.ended.is_none());
        let index = self.applied.index;
        pulls.push(Pulling { member, index, token: token.clone(), ended: None });
        Pull { pulls: self.pulls.clone(), token }
    }

    /// Whether `member` is fetching the state.
    pub(crate) fn is_pulling(&self, member: u64) -> bool {
        let pulls = self.pulls.lock();
        pulls.iter().any(|pulling| pulling.member == member && pulling.ended.is_none())
    }

    /// Whether the group has one member only.
    pub(crate) fn is_alone(&self) -> bool {
        let conf = &self.conf;
        let parts = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
        parts.iter().map(|part| part.len()).sum::<usize>() <= 1
    }

    /// Starts over behind a snapshot, which the state now holds.
    pub(crate) fn restore(&mut self, at: Position, conf: ConfState) {
        self.entries.clear();
        self.bytes = 0;
        self.truncated = at;
        self.applied = at;
        self.conf = conf;
        self.hard.commit = self.hard.commit.max(at.index);
    }

    fn last(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + OVERHEAD
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
        let mut snapshot = Snapshot::default();
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
    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Entry::default() }
    }

    fn log() -> RaftLog {
        let conf = ConfState { voters: vec![1], ..ConfState::default() };
        let start = Position { index: 4, term: 2 };
        RaftLog::new(start, conf, HardState::default(), VecDeque::new())
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

    #[test]
    fn the_tail_is_bounded_by_bytes_and_pinned_by_who_fetches_the_state() {
        let mut log = log();
        log.conf.learners = vec![2];
        let big = |index| Entry { data: vec![0; 4 << 20], ..entry(index, 2) };
        let fill = |log: &mut RaftLog, indices: std::ops::Range<u64>| {
            for index in indices {
                log.append(vec![big(index)]);
                log.set_applied(Position { index, term: 2 });
            }
        };
        fill(&mut log, 5..30);
        let first = log.first_index().unwrap();
        assert!((20..30).contains(&first), "{first}");
        let pull = log.keep_for(2);
        assert!(log.is_pulling(2));
        fill(&mut log, 30..60);
        // Up to the fetched state nothing is needed; behind it everything is.
        assert_eq!(log.first_index().unwrap(), 30);
        drop(pull);
        assert!(!log.is_pulling(2));
        fill(&mut log, 60..62);
        assert_eq!(log.first_index().unwrap(), 30);
    }
}
