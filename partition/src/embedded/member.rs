//! One member of a partition's raft group: decisions only, no disk, no clock, no thread.
//!
//! The owner proposes, ticks and steps; takes [`Work`], logs its piece as durably as it asks,
//! and gives it back to [`Member::done`], which applies what became committed and answers.
//!
//! # Invariants
//!
//! * A command's guard is judged when it is applied, against what the entries before it made.
//! * Between [`Member::take_work`] and [`Member::done`] nothing else is asked of a member.

use std::{collections::VecDeque, sync::Arc};

use raft::{
    RawNode, Ready, StateRole,
    eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType, HardState, Message},
};
use raft_prost::Message as _;
use tokio::sync::oneshot;

use super::{
    command::{self, Command, UnknownCommand},
    image,
    raft_log::{Position, RaftLog},
};
use crate::{
    codec::Reader,
    state::State,
    store::{Committed, Durability, StoreError},
    wal::{Piece, frame::GroupId},
};

/// Commands applied under one lock, so that readers wait for microseconds only.
const STEP: usize = 64;

/// Ticks after which a follower that hears nothing stands for election.
const ELECTION_TICKS: usize = 10;

/// Who waits for a command.
#[derive(Debug)]
pub(crate) enum Reply {
    Nobody,
    Write(oneshot::Sender<Result<Committed, StoreError>>),
    Done(oneshot::Sender<Result<(), StoreError>>),
}

impl Reply {
    /// A receiver that is gone stopped waiting; there is no one left to tell.
    fn send(self, outcome: Result<Option<Committed>, StoreError>) {
        match (self, outcome) {
            (Self::Write(to), Ok(Some(committed))) => drop(to.send(Ok(committed))),
            (Self::Write(to), Err(error)) => drop(to.send(Err(error))),
            (Self::Done(to), outcome) => drop(to.send(outcome.map(|_| ()))),
            (Self::Write(_), Ok(None)) | (Self::Nobody, _) => {}
        }
    }

    /// Nobody is to hear the outcome any more.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Nobody => false,
            Self::Write(to) => to.is_closed(),
            Self::Done(to) => to.is_closed(),
        }
    }

    pub(crate) fn refuse(self, reason: &str) {
        self.send(Err(StoreError::Unavailable { reason: reason.into(), source: None }));
    }
}

/// Proposed commands that are not applied yet.
#[derive(Debug)]
struct Proposal {
    at: Position,
    replies: Vec<Reply>,
}

/// What must be logged before the group can go on.
#[derive(Debug)]
pub(crate) struct Work {
    ready: Ready,
    /// Nothing to log if `None`.
    pub(crate) piece: Option<Piece>,
    pub(crate) durability: Durability,
    /// The whole state was replaced by a leader's and must reach a checkpoint first.
    pub(crate) snapshot: bool,
}

impl Work {
    /// Index of the first entry in the piece.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.ready.entries().first().map(|entry| entry.index)
    }
}

/// Why a member cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemberError {
    #[error(transparent)]
    Unknown(#[from] UnknownCommand),
    #[error("raft refused to go on")]
    Raft(#[from] raft::Error),
    #[error("a membership change cannot be read")]
    Malformed(#[from] raft_prost::DecodeError),
    #[error("a leader's snapshot cannot be read")]
    Snapshot,
}

/// See the module.
pub(crate) struct Member {
    group: GroupId,
    node: RawNode<RaftLog>,
    state: Arc<State>,
    waiting: VecDeque<Proposal>,
    messages: Vec<Message>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Member {
    pub(crate) fn new(
        group: GroupId,
        id: u64,
        state: Arc<State>,
        log: RaftLog,
        logger: &slog::Logger,
    ) -> Result<Self, MemberError> {
        let config = raft::Config {
            id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: 1,
            applied: log.applied().index,
            // Entries are up to a few MiB; a message takes at least one.
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        let node = RawNode::new(&config, log, logger)?;
        Ok(Self { group, node, state, waiting: VecDeque::new(), messages: Vec::new() })
    }

    /// Stands for election now, without waiting for a silence. A group of one elects itself.
    pub(crate) fn campaign(&mut self) -> Result<(), MemberError> {
        Ok(self.node.campaign()?)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this is the group's only member.
    pub(crate) fn is_alone(&self) -> bool {
        self.node.store().is_alone()
    }

    /// A tenth of an election timeout went by.
    pub(crate) fn tick(&mut self) {
        self.node.tick();
    }

    /// Another member's message. Members of a process meet only in tests yet.
    #[cfg(test)]
    pub(crate) fn step(&mut self, message: Message) -> Result<(), MemberError> {
        Ok(self.node.step(message)?)
    }

    /// Asks the group to take in or let go of a member. Only tests have more than one yet.
    #[cfg(test)]
    pub(crate) fn propose_membership(&mut self, change: ConfChange) -> Result<(), MemberError> {
        Ok(self.node.propose_conf_change(Vec::new(), change)?)
    }

    /// What the other members must be sent.
    pub(crate) fn take_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    pub(crate) fn applied(&self) -> Position {
        self.node.store().applied()
    }

    /// Index of the newest entry, applied or not.
    pub(crate) fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    pub(crate) fn members(&self) -> &raft::eraftpb::ConfState {
        &self.node.store().conf
    }

    /// Puts the commands in `data` up for agreement; `replies` has one for each.
    pub(crate) fn propose(&mut self, data: Vec<u8>, replies: Vec<Reply>) {
        match self.node.propose(Vec::new(), data) {
            Ok(()) => {
                let raft = &self.node.raft;
                let at = Position { index: raft.raft_log.last_index(), term: raft.term };
                self.waiting.push_back(Proposal { at, replies });
            }
            Err(error) => {
                let reason = format!("this member cannot decide on writes: {error}");
                replies.into_iter().for_each(|reply| reply.refuse(&reason));
            }
        }
    }

    /// Gives up on everyone who waits. Their writes may still happen.
    pub(crate) fn refuse_waiting(&mut self, reason: &str) {
        let replies = self.waiting.drain(..).flat_map(|proposal| proposal.replies);
        replies.for_each(|reply| reply.refuse(reason));
    }

    pub(crate) fn has_work(&self) -> bool {
        self.node.has_ready()
    }

    /// What has to be done next. Only if [`Member::has_work`].
    pub(crate) fn take_work(&mut self) -> Result<Work, MemberError> {
        let mut ready = self.node.ready();
        self.messages.append(&mut ready.take_messages());
        let snapshot = !ready.snapshot().is_empty();
        if snapshot {
            self.install(&ready)?;
        }
        let before = &self.node.store().hard;
        let voted =
            ready.hs().is_some_and(|hard| (hard.term, hard.vote) != (before.term, before.vote));
        if let Some(hard) = ready.hs() {
            self.node.mut_store().hard = hard.clone();
        }
        let entries = ready.entries();
        // To other members a logged entry is a promise, so only alone it can be given early.
        let relaxed = self.is_alone()
            && !voted
            && !snapshot
            && entries.iter().all(|entry| command::is_relaxed(&entry.data));
        let piece = (!entries.is_empty() || voted || snapshot).then(|| {
            let mut piece = Piece::default();
            let standing = encode_hard(&self.node.store().hard);
            piece.standing(self.group, &standing);
            for entry in entries {
                piece.entry(self.group, |out| encode_entry(entry, out));
            }
            piece
        });
        let durability = if relaxed { Durability::Relaxed } else { Durability::Durable };
        Ok(Work { ready, piece, durability, snapshot })
    }

    /// The piece was logged: applies what that committed, and answers.
    pub(crate) fn done(&mut self, work: Work) -> Result<(), MemberError> {
        let mut ready = work.ready;
        let lost = ready.ss().is_some_and(|soft| soft.raft_state != StateRole::Leader);
        if lost {
            self.refuse_waiting("another member leads the partition now");
        }
        let entries = ready.take_entries();
        self.node.mut_store().append(entries);
        self.messages.append(&mut ready.take_persisted_messages());
        let mut applied = None;
        self.apply(ready.take_committed_entries(), &mut applied)?;
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().hard.commit = commit;
        }
        self.messages.append(&mut light.take_messages());
        self.apply(light.take_committed_entries(), &mut applied)?;
        self.node.advance_apply();
        if let Some(applied) = applied {
            self.node.mut_store().set_applied(applied);
        }
        Ok(())
    }

    fn install(&mut self, ready: &Ready) -> Result<(), MemberError> {
        let snapshot = ready.snapshot();
        let metadata = snapshot.get_metadata();
        let image = image::decode(&snapshot.data).ok_or(MemberError::Snapshot)?;
        self.state.apply(|contents| contents.reset(image));
        let at = Position { index: metadata.index, term: metadata.term };
        self.node.mut_store().restore(at, metadata.get_conf_state().clone());
        Ok(())
    }

    fn apply(
        &mut self,
        entries: Vec<Entry>,
        applied: &mut Option<Position>,
    ) -> Result<(), MemberError> {
        for entry in entries {
            let at = Position { index: entry.index, term: entry.term };
            let replies = self.replies(at);
            match entry.get_entry_type() {
                EntryType::EntryNormal => apply_commands(&self.state, &entry.data, replies)?,
                EntryType::EntryConfChange => {
                    let change = ConfChange::decode(&*entry.data)?;
                    let conf = self.node.apply_conf_change(&change)?;
                    self.node.mut_store().conf = conf;
                }
                EntryType::EntryConfChangeV2 => {
                    let change = ConfChangeV2::decode(&*entry.data)?;
                    let conf = self.node.apply_conf_change(&change)?;
                    self.node.mut_store().conf = conf;
                }
            }
            *applied = Some(at);
        }
        Ok(())
    }

    /// Who waits for the entry at `at`, if it is the one that was proposed here.
    fn replies(&mut self, at: Position) -> Vec<Reply> {
        while let Some(mut proposal) =
            self.waiting.pop_front_if(|proposal| proposal.at.index <= at.index)
        {
            if proposal.at == at {
                return std::mem::take(&mut proposal.replies);
            }
            let replies = proposal.replies.into_iter();
            replies.for_each(|reply| reply.refuse("another member's write took this one's place"));
        }
        Vec::new()
    }
}

/// Applies an entry's commands in order and answers each. Also used when the log is replayed.
pub(crate) fn apply_commands(
    state: &State,
    data: &[u8],
    replies: Vec<Reply>,
) -> Result<(), UnknownCommand> {
    let mut commands = command::commands(data);
    let mut replies = replies.into_iter();
    let mut outcomes = Vec::with_capacity(STEP);
    loop {
        let unknown = state.apply(|contents| {
            for command in commands.by_ref().take(STEP) {
                let outcome = match command? {
                    Command::Put { expect, collection, key, value, by_move } => {
                        contents.write(collection, key, expect, Some(value), by_move).map(Some)
                    }
                    Command::Delete { expect, collection, key, by_move } => {
                        contents.write(collection, key, expect, None, by_move).map(Some)
                    }
                    Command::Raise { revision } => {
                        contents.raise(revision);
                        Ok(None)
                    }
                    Command::Skip { count } => {
                        contents.skip(count);
                        Ok(None)
                    }
                    Command::Compact { revision } => contents.compact(revision).map(|()| None),
                };
                outcomes.push(outcome);
            }
            Ok(())
        });
        let last = outcomes.len() < STEP;
        for outcome in outcomes.drain(..) {
            replies.next().unwrap_or(Reply::Nobody).send(outcome);
        }
        unknown?;
        if last {
            return Ok(());
        }
    }
}

/// `term u64 | vote u64 | commit u64`
fn encode_hard(hard: &HardState) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&hard.term.to_le_bytes());
    out[8..16].copy_from_slice(&hard.vote.to_le_bytes());
    out[16..].copy_from_slice(&hard.commit.to_le_bytes());
    out
}

pub(crate) fn decode_hard(payload: &[u8]) -> Option<HardState> {
    let mut reader = Reader::new(payload);
    let hard = HardState { term: reader.u64()?, vote: reader.u64()?, commit: reader.u64()? };
    reader.is_empty().then_some(hard)
}

/// `type u8 | term u64 | index u64 | data`
fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    out.push(entry.entry_type as u8);
    out.extend_from_slice(&entry.term.to_le_bytes());
    out.extend_from_slice(&entry.index.to_le_bytes());
    out.extend_from_slice(&entry.data);
}

pub(crate) fn decode_entry(payload: &[u8]) -> Option<Entry> {
    let mut reader = Reader::new(payload);
    let entry_type = EntryType::from_i32(i32::from(reader.byte()?))? as i32;
    let (term, index) = (reader.u64()?, reader.u64()?);
    Some(Entry { entry_type, term, index, data: reader.rest().to_vec(), ..Entry::default() })
}
