//! Bringing one partition back from its checkpoint and the log behind it.

use std::{collections::VecDeque, sync::Arc};

use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

use super::{
    apply::apply_commands,
    checkpoint::Description,
    raft_log::{Position, RaftLog},
    record::{decode_entry, decode_position, decode_standing},
};
use crate::{
    error::OpenError,
    ring::RingLimits,
    seal::{Bunch, Vault},
    state::{Image, State},
    wal::frame::{Kind, Record},
};

/// A new group's history begins behind an entry that never was, so that whoever joins later is
/// told the membership with the state.
const START: Position = Position { index: 1, term: 1 };

/// See the module.
#[derive(Debug)]
pub(crate) struct Replay {
    partition: String,
    state: Arc<State>,
    /// Where the checkpoint ends.
    base: Position,
    applied: Position,
    conf: ConfState,
    hard: HardState,
    /// Revisions up to this one may have been handed out and lost.
    reserved: u64,
    /// Entries that may not be applied yet.
    pending: VecDeque<Entry>,
    /// Term of the entry that the log has in the checkpoint's place, once it was seen.
    at_base: Option<u64>,
}

impl Replay {
    /// `voters` are those that the group began with, none if this member joined it.
    pub(crate) fn new(
        partition: &str,
        voters: &[u64],
        checkpoint: Option<(Description, Image)>,
        limits: RingLimits,
        vault: Arc<Vault>,
    ) -> Self {
        let first = ConfState { voters: voters.to_vec(), ..ConfState::default() };
        let start = if voters.is_empty() { Position::default() } else { START };
        let (applied, conf, image) = match checkpoint {
            Some((description, image)) => (description.position(), description.conf(), image),
            None => (start, first, Image::default()),
        };
        Self {
            partition: partition.into(),
            state: State::with_keys(image, limits, Bunch::new(vault)),
            base: applied,
            applied,
            conf,
            hard: HardState { term: applied.term, vote: 0, commit: applied.index },
            reserved: 0,
            pending: VecDeque::new(),
            at_base: None,
        }
    }

    /// The next record of this group.
    pub(crate) fn visit(&mut self, record: Record<'_>) -> Result<(), OpenError> {
        let unreadable = || self.damaged("a record cannot be read");
        match record.kind {
            Kind::Standing => {
                let (hard, reserved) = decode_standing(record.payload).ok_or_else(unreadable)?;
                self.reserved = reserved;
                if self.hard.term <= hard.term {
                    self.hard = HardState { commit: hard.commit.max(self.hard.commit), ..hard };
                }
                self.apply_committed()
            }
            Kind::Entry => {
                let entry = decode_entry(record.payload).ok_or_else(unreadable)?;
                self.entry(entry)
            }
            Kind::Restored => {
                let at = decode_position(record.payload).ok_or_else(unreadable)?;
                if self.base.index < at.index {
                    return Err(self.damaged(
                        "the checkpoint with the state that came from another member is gone",
                    ));
                }
                self.pending.clear();
                self.at_base = (at.index == self.base.index).then_some(at.term);
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<(), OpenError> {
        if entry.index <= self.base.index {
            // It replaces all that the log has behind it.
            self.at_base = (entry.index == self.base.index).then_some(entry.term);
            self.pending.clear();
            return Ok(());
        }
        // The checkpoint came from another member just before the end, and the log has not heard
        // of it: what follows another entry in its place is not what follows the checkpoint.
        if self.at_base.is_some_and(|term| term != self.base.term) {
            return Ok(());
        }
        if entry.index <= self.applied.index {
            return Err(self.damaged("an entry that was agreed on is there twice"));
        }
        while self.pending.pop_back_if(|last| entry.index <= last.index).is_some() {}
        let last = self.pending.back().map_or(self.applied.index, |entry| entry.index);
        if last + 1 < entry.index {
            let missing = format!("entries {} to {} are missing", last + 1, entry.index - 1);
            return Err(self.damaged(&missing));
        }
        self.pending.push_back(entry);
        Ok(())
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

    /// The log has been read to its end. Gives also the revision up to which some may have been
    /// handed out.
    pub(crate) fn finish(mut self) -> Result<(Arc<State>, RaftLog, u64), OpenError> {
        self.apply_committed()?;
        let last = self.pending.back().map_or(self.applied.index, |entry| entry.index);
        if last < self.hard.commit {
            let what =
                format!("the log ends at entry {last}, but {} were agreed on", self.hard.commit);
            return Err(self.damaged(&what));
        }
        let log = RaftLog::new(self.applied, self.conf, self.hard, self.pending);
        Ok((self.state, log, self.reserved))
    }

    fn damaged(&self, what: &str) -> OpenError {
        OpenError::Damaged { what: format!("log of partition {}: {what}", self.partition) }
    }
}
