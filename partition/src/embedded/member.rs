//! One member of a partition's raft group: decisions only, no disk, no clock, no thread.
//!
//! The owner proposes, ticks and steps; takes [`Work`], logs its piece as durably as it asks,
//! and gives it back to [`Member::done`], which applies what became committed and answers.
//! A leader may [go on](Member::go_on) before the piece is logged and be told later that it is.
//!
//! # Invariants
//!
//! * A command's guard is judged when it is applied, against what the entries before it made.
//! * Between [`Member::take_work`] and [`Member::done`] or [`Member::go_on`] nothing else is asked
//!   of a member.
//! * What a leader went on from is logged in order, and before anything is [done](Member::done).

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use raft::{
    INVALID_ID, ProgressState, RawNode, ReadState, Ready, SnapshotStatus, StateRole,
    eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
        ConfState, Entry, EntryType, Message, MessageType,
    },
};
use raft_prost::Message as _;

use super::{
    apply::apply_commands,
    command::{self, UnknownCommand},
    membership::{Other, View},
    raft_log::{Position, RaftLog},
    record,
    reply::Reply,
};
use crate::{
    state::{Image, State},
    store::Durability,
    wal::{Piece, frame::GroupId},
};

/// Ticks after which a follower that hears nothing stands for election.
pub(crate) const ELECTION_TICKS: usize = 10;

/// Ticks after which a member that nothing is heard of counts as gone.
const GONE_TICKS: u64 = 2 * ELECTION_TICKS as u64;

/// Bytes around an entry in the log, or a little more.
const ENTRY_AROUND: usize = 64;

/// Ticks after which a follower that does not fetch the state it was offered is offered it anew.
const OFFER_TICKS: u64 = 50;

/// Proposed commands that are not applied yet.
#[derive(Debug)]
struct Proposal {
    at: Position,
    replies: Vec<Reply>,
    /// When it was made, in ticks.
    since: u64,
}

/// What must be logged before the group can go on.
#[derive(Debug)]
pub(crate) struct Work {
    ready: Ready,
    /// Nothing to log if `None`.
    pub(crate) piece: Option<Piece>,
    pub(crate) durability: Durability,
}

impl Work {
    /// Index of the first entry in the piece.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.ready.entries().first().map(|entry| entry.index)
    }
}

/// What a leader went on from before it was logged.
#[derive(Debug)]
pub(crate) struct Logging(u64);

/// Why a member cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemberError {
    #[error(transparent)]
    Unknown(#[from] UnknownCommand),
    #[error("raft refused to go on")]
    Raft(#[from] raft::Error),
    #[error("a membership change cannot be read")]
    Malformed(#[from] raft_prost::DecodeError),
    #[error("a state of another member came that nobody asked for")]
    Snapshot,
}

/// See the module.
pub(crate) struct Member {
    group: GroupId,
    node: RawNode<RaftLog>,
    state: Arc<State>,
    waiting: VecDeque<Proposal>,
    messages: Vec<Message>,
    /// Answers to [`Member::ask_to_read`].
    reads: Vec<ReadState>,
    /// Another member's state, on its way into this one, and the index that it stands for.
    arrived: Option<(u64, Image)>,
    /// What raft's clock shows.
    now: u64,
    /// When each other member was last heard of.
    heard: HashMap<u64, u64>,
    /// The newest life of each other member, see [`super::post`].
    lives: HashMap<u64, GroupId>,
    /// Since when each follower has an offer of the state that it does not take.
    offered: HashMap<u64, u64>,
    /// Revisions up to this one may be handed out and lost, see [`super::reserve`].
    pub(crate) reserved: u64,
    /// The entry by which the members will remember who they are, see [`Member::remember`].
    remembered: Option<Position>,
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
        Ok(Self {
            group,
            node,
            state,
            waiting: VecDeque::new(),
            messages: Vec::new(),
            reads: Vec::new(),
            arrived: None,
            now: 0,
            heard: HashMap::new(),
            lives: HashMap::new(),
            offered: HashMap::new(),
            reserved: 0,
            remembered: None,
        })
    }

    /// Stands for election now, without waiting for a silence. A group of one elects itself.
    pub(crate) fn campaign(&mut self) -> Result<(), MemberError> {
        Ok(self.node.campaign()?)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this is the group's only member: nobody else is needed to decide.
    pub(crate) fn is_alone(&self) -> bool {
        self.node.store().is_alone() && self.members().voters == [self.node.raft.id]
    }

    /// Whether what is applied here is the latest without asking anybody: nobody else can decide,
    /// and what was decided before this member led is applied.
    pub(crate) fn knows_latest(&self) -> bool {
        self.is_leader() && self.is_alone() && self.applied().term == self.node.raft.term
    }

    /// The number of who leads, as far as this member knows.
    pub(crate) fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|id| *id != INVALID_ID)
    }

    pub(crate) fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// The index up to which entries are agreed on.
    pub(crate) fn commit(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Decides how long this member waits before it stands for election, which is random otherwise:
    /// 10 to 19 ticks, by `lot`.
    #[cfg(test)]
    pub(crate) fn draw(&mut self, lot: u64) {
        let ticks = ELECTION_TICKS + (lot % ELECTION_TICKS as u64) as usize;
        self.node.raft.set_randomized_election_timeout(ticks);
    }

    /// What the leader believes of the others.
    #[cfg(test)]
    pub(crate) fn beliefs(&self) -> String {
        let all = self.node.raft.prs().iter();
        let one = |(id, it): (&u64, &raft::Progress)| {
            let (state, paused) = (it.state, it.is_paused());
            let (matched, next) = (it.matched, it.next_idx);
            format!(
                "{id}: {state:?} matched {matched} next {next} pending {} paused {paused}",
                it.pending_snapshot
            )
        };
        let mut all: Vec<_> = all.map(one).collect();
        all.sort();
        all.join("; ")
    }

    /// Something came of another member.
    pub(crate) fn hear_of(&mut self, member: u64) {
        self.heard.insert(member, self.now);
    }

    /// A tenth of an election timeout went by.
    pub(crate) fn tick(&mut self) {
        self.now += 1;
        if self.is_alone() {
            self.node.tick();
            return;
        }
        if self.is_leader() {
            self.look_after_followers();
        }
        self.node.tick();
        // A quorum that is lost does not come back for those who have waited long enough.
        let now = self.now;
        let overdue = |proposal: &mut Proposal| proposal.since + GONE_TICKS < now;
        while let Some(proposal) = self.waiting.pop_front_if(overdue) {
            let reason = "too few members of the partition answer; the write may still happen";
            proposal.replies.into_iter().for_each(|reply| reply.fail(reason));
        }
    }

    /// Does not send to the dead as if they lived, and offers the state again to who lost it.
    fn look_after_followers(&mut self) {
        let (now, me) = (self.now, self.node.raft.id);
        let (mut gone, mut stuck) = (Vec::new(), Vec::new());
        for (&id, progress) in self.node.raft.prs().iter().filter(|(id, _)| **id != me) {
            let heard = *self.heard.entry(id).or_insert(now);
            match progress.state {
                ProgressState::Snapshot if self.node.store().is_pulling(id) => {
                    self.offered.insert(id, now);
                }
                ProgressState::Snapshot => {
                    if *self.offered.entry(id).or_insert(now) + OFFER_TICKS < now {
                        stuck.push(id);
                    }
                }
                ProgressState::Replicate | ProgressState::Probe => {
                    self.offered.remove(&id);
                    if heard + (ELECTION_TICKS as u64) / 2 < now {
                        gone.push(id);
                    }
                }
            }
        }
        gone.into_iter().for_each(|id| self.node.report_unreachable(id));
        for id in stuck {
            self.offered.remove(&id);
            self.node.report_snapshot(id, SnapshotStatus::Failure);
        }
    }

    /// Another member's message, sent in its life `life`.
    pub(crate) fn step(&mut self, life: GroupId, message: Message) -> Result<(), MemberError> {
        let newest = self.lives.entry(message.from).or_insert(life);
        if life < *newest {
            return Ok(());
        }
        *newest = life;
        self.hear_of(message.from);
        // Nobody passes proposals on, see `propose`.
        if message.get_msg_type() == MessageType::MsgPropose {
            return Ok(());
        }
        // raft would give up for good. It can only come of a promise that this member has lost.
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= self.term()
            && self.last_index() < message.commit
        {
            let commit = message.commit;
            tracing::error!(
                commit,
                last = self.last_index(),
                "the leader believes in entries that are not here"
            );
            return Ok(());
        }
        match self.node.step(message) {
            // From a member that was let go, or for one that this no longer is.
            Err(raft::Error::StepPeerNotFound | raft::Error::StepLocalMsg) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    /// A leader's message that tells of its state, with the state that was fetched for it.
    pub(crate) fn restore(
        &mut self,
        life: GroupId,
        message: Message,
        image: Image,
    ) -> Result<(), MemberError> {
        let index = message.get_snapshot().get_metadata().index;
        self.arrived = Some((index, image));
        self.step(life, message)
    }

    /// Asks the group up to where a read has to see. The answer comes with
    /// [`Member::take_reads`], or never.
    pub(crate) fn ask_to_read(&mut self, context: Vec<u8>) {
        self.node.read_index(context);
    }

    pub(crate) fn take_reads(&mut self) -> Vec<ReadState> {
        std::mem::take(&mut self.reads)
    }

    /// Makes `voters` the group's voters and lets go of everybody else.
    pub(crate) fn propose_voters(&mut self, voters: &BTreeSet<u64>) -> Result<(), MemberError> {
        let conf = &self.node.store().conf;
        let known = conf.voters.iter().chain(&conf.learners);
        let gone = known.filter(|id| !voters.contains(id)).copied();
        let gone = gone.map(|id| single(id, ConfChangeType::RemoveNode));
        let new = voters.iter().filter(|id| !conf.voters.contains(id)).copied();
        let new = new.map(|id| single(id, ConfChangeType::AddNode));
        let changes = gone.chain(new).collect();
        self.propose_conf(changes)
    }

    /// Takes in `learners`.
    pub(crate) fn propose_learners(&mut self, learners: &BTreeSet<u64>) -> Result<(), MemberError> {
        let changes = learners.iter().map(|id| single(*id, ConfChangeType::AddLearnerNode));
        let changes = changes.collect();
        self.propose_conf(changes)
    }

    fn propose_conf(&mut self, changes: Vec<ConfChangeSingle>) -> Result<(), MemberError> {
        let mut change = ConfChangeV2 { changes, ..ConfChangeV2::default() };
        change.set_transition(ConfChangeTransition::Auto);
        Ok(self.node.propose_conf_change(Vec::new(), change)?)
    }

    /// Whether a majority of the members will remember who they are, if all of them end now.
    ///
    /// A member that starts again believes the membership that it knows to be agreed on, and that
    /// something is agreed on stands in its log only with entries behind it. So there is one more
    /// entry after a change, or a group that became smaller could wait for votes of those who left.
    pub(crate) fn remember(&mut self) -> Result<bool, MemberError> {
        let term = self.node.raft.term;
        if let Some(at) = self.remembered.filter(|at| at.term == term) {
            return Ok(at.index <= self.applied().index);
        }
        self.node.propose(Vec::new(), Vec::new())?;
        self.remembered = Some(Position { index: self.last_index(), term });
        Ok(false)
    }

    /// Has another voter lead. Until it does, nothing can be proposed.
    pub(crate) fn transfer(&mut self, to: u64) {
        self.node.transfer_leader(to);
    }

    /// The voter that can best lead in place of this one.
    pub(crate) fn heir(&self) -> Option<u64> {
        let view = self.view();
        let fit =
            |id: &u64| view.others.get(id).filter(|other| other.alive).map(|other| other.behind);
        let heirs = view.voters.iter().filter_map(|id| Some((fit(id)?, *id)));
        heirs.min().map(|(_, id)| id)
    }

    /// The group as this member sees it; of the others it knows only while it leads.
    pub(crate) fn view(&self) -> View {
        let raft = &self.node.raft;
        let conf = &self.node.store().conf;
        let last = self.last_index();
        let others = raft.prs().iter().filter(|(id, _)| **id != raft.id).map(|(id, progress)| {
            let heard = self.heard.get(id).copied().unwrap_or_default();
            let alive = heard != 0 && self.now <= heard + GONE_TICKS;
            (*id, Other { alive, behind: last.saturating_sub(progress.matched) })
        });
        View {
            me: raft.id,
            voters: conf.voters.iter().copied().collect(),
            learners: conf.learners.iter().copied().collect(),
            changing: raft.has_pending_conf() || !conf.voters_outgoing.is_empty(),
            others: others.collect(),
        }
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

    pub(crate) fn members(&self) -> &ConfState {
        &self.node.store().conf
    }

    /// Puts the commands in `data` up for agreement; `replies` has one for each.
    ///
    /// Only a leader takes them: raft would pass them on to the leader, where nobody knows who
    /// waits for which.
    pub(crate) fn propose(&mut self, data: Vec<u8>, replies: Vec<Reply>) {
        if !self.is_leader() {
            return replies.into_iter().for_each(Reply::refuse);
        }
        match self.node.propose(Vec::new(), data) {
            Ok(()) => {
                let raft = &self.node.raft;
                let at = Position { index: raft.raft_log.last_index(), term: raft.term };
                self.waiting.push_back(Proposal { at, replies, since: self.now });
            }
            // Nothing was done, so it can be tried where the group is led from.
            Err(_) => replies.into_iter().for_each(Reply::refuse),
        }
    }

    /// Gives up on everyone who waits. Their writes may still happen.
    pub(crate) fn fail_waiting(&mut self, reason: &str) {
        let replies = self.waiting.drain(..).flat_map(|proposal| proposal.replies);
        replies.for_each(|reply| reply.fail(reason));
    }

    pub(crate) fn has_work(&self) -> bool {
        self.node.has_ready()
    }

    /// What has to be done next. Only if [`Member::has_work`].
    pub(crate) fn take_work(&mut self) -> Result<Work, MemberError> {
        let mut ready = self.node.ready();
        self.messages.append(&mut ready.take_messages());
        self.reads.append(&mut ready.take_read_states());
        let restored = !ready.snapshot().is_empty();
        if restored {
            self.install(&ready)?;
        }
        let before = &self.node.store().hard;
        let voted =
            ready.hs().is_some_and(|hard| (hard.term, hard.vote) != (before.term, before.vote));
        if let Some(hard) = ready.hs() {
            self.node.mut_store().hard = hard.clone();
        }
        let alone = self.is_alone();
        let entries = ready.entries();
        // To other members a logged entry is a promise, so only alone it can be given early.
        let relaxed = alone
            && !voted
            && !restored
            && entries.iter().all(|entry| command::is_relaxed(&entry.data));
        if !alone {
            self.reserved = 0;
        }
        let piece = (!entries.is_empty() || voted || restored).then(|| {
            let room = entries.iter().map(|entry| ENTRY_AROUND + entry.data.len()).sum::<usize>();
            let mut piece = Piece::with_room(room + ENTRY_AROUND);
            if restored {
                piece.restored(self.group, &record::encode_position(self.applied()));
            }
            for entry in entries {
                piece.entry(self.group, |out| record::encode_entry(entry, out));
            }
            // Behind the entries: what it says is agreed on may have taken others' place.
            let standing = record::encode_standing(&self.node.store().hard, self.reserved);
            piece.standing(self.group, &standing);
            piece
        });
        let durability = if relaxed { Durability::Relaxed } else { Durability::Durable };
        Ok(Work { ready, piece, durability })
    }

    /// The piece was logged: applies what that committed, and answers.
    pub(crate) fn done(&mut self, work: Work) -> Result<(), MemberError> {
        let mut ready = work.ready;
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

    /// Whether the member may [go on](Self::go_on) from the work that it has: it leads, and
    /// promised nothing since its last work.
    pub(crate) fn may_go_on(&self) -> bool {
        self.is_leader() && self.term() == self.node.store().hard.term
    }

    /// Goes on from work whose piece is not logged yet: what is in it counts only once it
    /// [is](Self::logged). Only if [`Self::may_go_on`] said so before the work was taken.
    pub(crate) fn go_on(&mut self, work: Work) -> Result<Logging, MemberError> {
        let mut ready = work.ready;
        let logging = Logging(ready.number());
        let entries = ready.take_entries();
        self.node.mut_store().append(entries);
        let mut applied = None;
        self.apply(ready.take_committed_entries(), &mut applied)?;
        self.node.advance_append_async(ready);
        if let Some(applied) = applied {
            self.node.advance_apply_to(applied.index);
            self.node.mut_store().set_applied(applied);
        }
        Ok(logging)
    }

    /// This, and all that the member went on from before it, is logged.
    pub(crate) fn logged(&mut self, logging: &Logging) {
        self.node.on_persist_ready(logging.0);
    }

    fn install(&mut self, ready: &Ready) -> Result<(), MemberError> {
        let metadata = ready.snapshot().get_metadata();
        let (index, image) = self.arrived.take().ok_or(MemberError::Snapshot)?;
        if index != metadata.index {
            return Err(MemberError::Snapshot);
        }
        self.state.apply(|contents| contents.reset(image));
        let at = Position { index: metadata.index, term: metadata.term };
        self.node.mut_store().restore(at, metadata.get_conf_state().clone());
        let skipped = |proposal: &mut Proposal| proposal.at.index <= index;
        while let Some(proposal) = self.waiting.pop_front_if(skipped) {
            let reason = "this member was far behind; the write may have happened";
            proposal.replies.into_iter().for_each(|reply| reply.fail(reason));
        }
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
                    self.take_conf(conf);
                }
                EntryType::EntryConfChangeV2 => {
                    let change = ConfChangeV2::decode(&*entry.data)?;
                    let conf = self.node.apply_conf_change(&change)?;
                    self.take_conf(conf);
                }
            }
            *applied = Some(at);
        }
        Ok(())
    }

    /// The group has these members now. Who leads but is none of them must not go on leading: raft
    /// leaves that to its owner, and would stumble over the next answer of a follower.
    fn take_conf(&mut self, conf: ConfState) {
        let raft = &mut self.node.raft;
        let votes = conf.voters.contains(&raft.id) || conf.voters_outgoing.contains(&raft.id);
        if raft.state == StateRole::Leader && !votes {
            raft.become_follower(raft.term, INVALID_ID);
        }
        self.node.mut_store().conf = conf;
        self.remembered = None;
    }

    /// Who waits for the entry at `at`, if it is the one that was proposed here.
    fn replies(&mut self, at: Position) -> Vec<Reply> {
        while let Some(mut proposal) =
            self.waiting.pop_front_if(|proposal| proposal.at.index <= at.index)
        {
            if proposal.at == at {
                return std::mem::take(&mut proposal.replies);
            }
            // Another leader's entry is in its place: this one will never happen.
            proposal.replies.into_iter().for_each(Reply::refuse);
        }
        Vec::new()
    }

    /// The image of the state may be sent to `member` from now on: keeps the entries behind it.
    pub(crate) fn keep_for(&mut self, member: u64) -> super::raft_log::Pull {
        self.node.mut_store().keep_for(member)
    }
}

fn single(node_id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    let mut change = ConfChangeSingle { node_id, ..ConfChangeSingle::default() };
    change.set_change_type(kind);
    change
}
