//! Bringing one partition back from its checkpoint and the log behind it.

use std::{collections::VecDeque, sync::Arc};

use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

use super::{
    checkpoint::Description,
    member::{apply_commands, decode_entry, decode_hard},
    raft_log::{self, Position, RaftLog},
};
use crate::{
    error::OpenError,
    ring::RingLimits,
    state::{Image, State},
    store::Revision,
    wal::frame::{Kind, Record},
};

/// The only member of a group that nobody joined yet.
pub(crate) const FIRST_MEMBER: u64 = 1;

/// A group's history begins behind an entry that never was, so that whoever joins later is told
/// the membership with a snapshot.
const START: Position = Position { index: 1, term: 1 };

/// See the module.
#[derive(Debug)]
pub(crate) struct Replay {
    partition: String,
    state: Arc<State>,
    applied: Position,
    conf: ConfState,
    hard: HardState,
    /// Entries that may not be applied yet.
    pending: VecDeque<Entry>,
}

impl Replay {
    pub(crate) fn new(
        partition: &str,
        checkpoint: Option<(Description, Image)>,
        limits: RingLimits,
    ) -> Self {
        let first = ConfState { voters: vec![FIRST_MEMBER], ..ConfState::default() };
        let (applied, conf, image) = match checkpoint {
            Some((description, image)) => (description.position(), description.conf(), image),
            None => (START, first, Image::default()),
        };
        Self {
            partition: partition.into(),
            state: State::new(image, limits),
            applied,
            conf,
            hard: HardState { term: applied.term, vote: 0, commit: applied.index },
            pending: VecDeque::new(),
        }
    }

    /// The next record of this group.
    pub(crate) fn visit(&mut self, record: Record<'_>) -> Result<(), OpenError> {
        let unreadable = || self.damaged("a record cannot be read");
        match record.kind {
            Kind::Standing => {
                let hard = decode_hard(record.payload).ok_or_else(unreadable)?;
                if self.hard.term <= hard.term {
                    self.hard = HardState { commit: hard.commit.max(self.hard.commit), ..hard };
                }
                self.apply_committed()
            }
            Kind::Entry => {
                let entry = decode_entry(record.payload).ok_or_else(unreadable)?;
                let last = self.pending.back().map_or(self.applied.index, |entry| entry.index);
                if last + 1 < entry.index {
                    return Err(self.damaged(&format!(
                        "entries {} to {} are missing",
                        last + 1,
                        entry.index - 1
                    )));
                }
                if self.applied.index < entry.index {
                    raft_log::append(&mut self.pending, vec![entry]);
                }
                Ok(())
            }
        }
    }

    /// Applies what is known to be agreed on, so that memory need not hold the whole log.
    fn apply_committed(&mut self) -> Result<(), OpenError> {
        // Membership is raft's to change: it gets such an entry and all behind it.
        while let Some(entry) = self.pending.pop_front_if(|entry| {
            entry.index <= self.hard.commit && entry.get_entry_type() == EntryType::EntryNormal
        }) {
            apply_commands(&self.state, &entry.data, Vec::new())
                .map_err(|error| self.damaged(&error.to_string()))?;
            self.applied = Position { index: entry.index, term: entry.term };
        }
        Ok(())
    }

    /// The log has been read to its end.
    pub(crate) fn finish(mut self) -> Result<(Arc<State>, RaftLog), OpenError> {
        self.apply_committed()?;
        let last = self.pending.back().map_or(self.applied.index, |entry| entry.index);
        if last < self.hard.commit {
            let what =
                format!("the log ends at entry {last}, but {} were agreed on", self.hard.commit);
            return Err(self.damaged(&what));
        }
        let log =
            RaftLog::new(self.state.clone(), self.applied, self.conf, self.hard, self.pending);
        Ok((self.state, log))
    }

    pub(crate) fn revision(&self) -> Revision {
        self.state.revision()
    }

    fn damaged(&self, what: &str) -> OpenError {
        OpenError::Damaged { what: format!("log of partition {}: {what}", self.partition) }
    }
}
