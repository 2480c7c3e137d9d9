//! What a replica does about the slots: decides, and touches neither clock nor network.
//!
//! Every replica computes the same from what it sees: of the replicas that live, a block belongs
//! to the one whose hash together with the block's is the highest (rendezvous hashing), so one
//! that comes or goes moves only its own share. Nobody leads.
//!
//! ```text
//! nobody's, or of who is lost --claim--> claimed --fence, catch up--> held --drain--> released
//! ```
//!
//! # Who lives
//!
//! Time is counted in rounds: one for each of this replica's own renewals that it sees come back.
//! Who was not heard for [`MISSED`] rounds is lost. So no clock is compared with another, and a
//! replica that was paused, or heard nothing, has counted no rounds meanwhile and accuses nobody.
//! That may be wrong, and does no harm: it costs a hand-over. What makes two holders harmless is
//! the fence, see [`insula_client::fence`].
//!
//! # Invariants
//!
//! * A block is served only after its claim is stored, its epoch was raised in every partition,
//!   and the local copies show all that was written before that.
//! * A block that is held by who lives is claimed by nobody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use insula_api::slots::Block;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::table::{Claim, Table};

/// After so many rounds without a sign of life a replica is lost.
pub(super) const MISSED: u64 = 4;
/// How many rounds reconciles that have begun may take to end before their block is given away.
pub(super) const DRAIN: u64 = 12;
/// After so many rounds nobody has to be told any more that a replica was lost.
pub(super) const FORGET: u64 = 400;

/// A replica, as its object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) name: Arc<str>,
    pub(super) renewals: i64,
    pub(super) is_leaving: bool,
    /// Somebody has marked it so.
    pub(super) is_lost: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Store this table, if it is still as its version says. To be answered by [`Core::wrote`].
    Write(Table),
    /// Raise the epochs of all that this replica has claimed, and catch up after that. To be
    /// answered by [`Core::fenced`].
    Fence(Vec<(Block, u64)>),
    /// Reconcile what falls into these.
    Serve(Vec<(Block, u64)>),
    /// Begin no more reconciles for these. To be answered by [`Core::drained`].
    Drain(Vec<Block>),
    /// Somebody else has these.
    Drop(Vec<Block>),
    MarkLost(Arc<str>),
    Forget(Arc<str>),
}

/// What came of a write of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrote {
    Done(Table),
    /// Somebody else was faster.
    Conflict,
    /// It may have happened.
    Unknown,
}

/// What came of raising epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fenced {
    /// Everywhere, and the local copies have caught up.
    Everywhere,
    /// Some partition knows this newer one.
    Behind(u64),
    Failed,
}

#[derive(Debug)]
struct Member {
    renewals: i64,
    is_leaving: bool,
    is_lost: bool,
    /// The round in which it was heard last.
    heard: u64,
}

/// How far this replica is with a block that the table says it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Claimed,
    /// Being fenced.
    Fencing,
    Held,
    /// Since this round.
    Draining(u64),
    Drained,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Core {
    me: Arc<str>,
    n_blocks: usize,
    round: u64,
    members: BTreeMap<Arc<str>, Member>,
    /// Holders of which there is no object, since these rounds.
    absent: BTreeMap<Arc<str>, u64>,
    table: Option<Table>,
    mine: BTreeMap<Block, (u64, Stage)>,
    /// To be claimed in a newer epoch.
    anew: BTreeSet<Block>,
    /// An epoch that some partition knows.
    newest: u64,
    is_leaving: bool,
    /// The version of the table that a write under way is for.
    writing: Option<u64>,
    /// The version of the table at which a write came too late.
    stale: Option<u64>,
    is_fencing: bool,
    /// Writes were refused, or fencing failed: fence again in this round.
    fence_again: Option<u64>,
}

/// Whose a block is among `candidates`.
pub(super) fn owner<'a>(
    block: Block,
    candidates: impl IntoIterator<Item = &'a Arc<str>>,
) -> Option<&'a Arc<str>> {
    let weight = |name: &str| xxh3_64_with_seed(name.as_bytes(), u64::from(block.number()));
    candidates.into_iter().max_by_key(|name| (weight(name), (*name).clone()))
}

impl Core {
    pub(super) fn new(me: Arc<str>, n_blocks: usize) -> Self {
        Self {
            me,
            n_blocks,
            round: 0,
            members: BTreeMap::new(),
            absent: BTreeMap::new(),
            table: None,
            mine: BTreeMap::new(),
            anew: BTreeSet::new(),
            newest: 0,
            is_leaving: false,
            writing: None,
            stale: None,
            is_fencing: false,
            fence_again: None,
        }
    }

    /// Learns of all replicas that there are.
    pub(super) fn members(&mut self, seen: &[Seen]) {
        let before = self.members.get(&self.me).map(|it| it.renewals);
        let own = seen.iter().find(|it| it.name == self.me).map(|it| it.renewals);
        if own.is_some() && own != before {
            self.round += 1;
        }
        let round = self.round;
        self.members.retain(|name, _| seen.iter().any(|it| it.name == *name));
        for it in seen {
            let Seen { renewals, is_leaving, is_lost, .. } = *it;
            let known = self.members.entry(it.name.clone()).or_insert(Member {
                renewals,
                is_leaving,
                is_lost,
                heard: round,
            });
            if known.renewals != renewals {
                known.heard = round;
            }
            (known.renewals, known.is_leaving, known.is_lost) = (renewals, is_leaving, is_lost);
        }
    }

    /// Learns of the table, unless a newer one is known.
    pub(super) fn table(&mut self, table: Table) {
        if self.table.as_ref().is_none_or(|known| known.version < table.version) {
            self.table = Some(table);
        }
    }

    /// Takes nothing more, and gives away what it has.
    pub(super) fn leave(&mut self) {
        self.is_leaving = true;
    }

    pub(super) fn wrote(&mut self, outcome: Wrote) {
        let written = self.writing.take();
        match outcome {
            Wrote::Done(table) => self.table(table),
            Wrote::Conflict => self.stale = written,
            Wrote::Unknown => (),
        }
    }

    /// What was asked for as `blocks` has been tried.
    pub(super) fn fenced(&mut self, blocks: &[(Block, u64)], outcome: Fenced) -> Vec<Action> {
        self.is_fencing = false;
        let mut served = Vec::new();
        for (block, epoch) in blocks {
            let Some((held, stage)) = self.mine.get_mut(block) else { continue };
            if *held != *epoch || *stage != Stage::Fencing {
                continue;
            }
            *stage = match outcome {
                Fenced::Everywhere => Stage::Held,
                Fenced::Behind(_) | Fenced::Failed => Stage::Claimed,
            };
            match outcome {
                Fenced::Everywhere => served.push((*block, *epoch)),
                Fenced::Behind(newest) if *epoch < newest => drop(self.anew.insert(*block)),
                Fenced::Behind(_) | Fenced::Failed => (),
            }
        }
        match outcome {
            Fenced::Everywhere => (),
            Fenced::Behind(newest) => self.newest = self.newest.max(newest),
            Fenced::Failed => self.fence_again = Some(self.round + 1),
        }
        match served.is_empty() {
            true => Vec::new(),
            false => vec![Action::Serve(served)],
        }
    }

    /// A write for some block was refused. Another holder's claim will be in the table; if there is
    /// none, some partition has not been told of this one's.
    pub(super) fn refused(&mut self) {
        self.fence_again.get_or_insert(self.round);
    }

    /// No reconcile for this block is under way any more.
    pub(super) fn drained(&mut self, block: Block) {
        if let Some((_, stage @ Stage::Draining(_))) = self.mine.get_mut(&block) {
            *stage = Stage::Drained;
        }
    }

    /// Whether the table says that this replica holds nothing.
    pub(super) fn has_left(&self) -> bool {
        self.is_leaving
            && self.table.as_ref().is_none_or(|table| {
                self.blocks().all(|it| table.claim(it).is_none_or(|it| it.holder != self.me))
            })
    }

    /// How many blocks it holds.
    pub(super) fn n_held(&self) -> usize {
        self.mine.values().filter(|(_, stage)| *stage == Stage::Held).count()
    }

    /// The blocks that the table says it holds, whether they are served already or still.
    pub(super) fn claimed(&self) -> impl Iterator<Item = Block> {
        self.mine.keys().copied()
    }

    fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        Block::all().take(self.n_blocks)
    }

    /// Who was marked as lost has not been heard since, or the mark would be gone.
    fn is_alive(&self, member: &Member) -> bool {
        !member.is_lost && self.round.saturating_sub(member.heard) < MISSED
    }

    /// What there is to do now.
    pub(super) fn plan(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(table) = self.table.clone() else { return actions };
        self.follow(&table, &mut actions);
        if !self.members.contains_key(&self.me) {
            // Nobody would know whose claims these are.
            return actions;
        }
        self.bury(&mut actions);
        let wanted = self.wanted();
        self.drain(&wanted, &mut actions);
        if self.writing.is_none() && self.stale != Some(table.version) {
            let next = self.next(&table, &wanted);
            if next != table {
                self.writing = Some(table.version);
                actions.push(Action::Write(next));
            }
        }
        self.fence(&mut actions);
        actions
    }

    /// Sees to the objects of those who are lost.
    fn bury(&self, actions: &mut Vec<Action>) {
        for (name, member) in &self.members {
            if !self.is_alive(member) && *name != self.me {
                if !member.is_lost {
                    actions.push(Action::MarkLost(name.clone()));
                } else if member.heard + FORGET < self.round {
                    actions.push(Action::Forget(name.clone()));
                }
            }
        }
    }

    /// Goes by what the table says of this replica.
    fn follow(&mut self, table: &Table, actions: &mut Vec<Action>) {
        let mut lost = Vec::new();
        for block in self.blocks() {
            let epoch = table.claim(block).filter(|it| it.holder == self.me).map(|it| it.epoch);
            let known = self.mine.get(&block).map(|(epoch, _)| *epoch);
            if known == epoch {
                continue;
            }
            if known.is_some() {
                lost.push(block);
                self.mine.remove(&block);
                self.anew.remove(&block);
            }
            if let Some(epoch) = epoch {
                self.mine.insert(block, (epoch, Stage::Claimed));
            }
        }
        if !lost.is_empty() {
            actions.push(Action::Drop(lost));
        }
        let holders: BTreeSet<_> =
            self.blocks().filter_map(|it| table.claim(it)).map(|it| it.holder.clone()).collect();
        self.absent.retain(|name, _| holders.contains(name) && !self.members.contains_key(name));
        for name in holders.into_iter().filter(|name| !self.members.contains_key(name)) {
            self.absent.entry(name).or_insert(self.round);
        }
    }

    /// Whose each block is to be.
    fn wanted(&self) -> BTreeMap<Block, Arc<str>> {
        let candidates: Vec<_> = self
            .members
            .iter()
            .filter(|(name, it)| match **name == self.me {
                true => !self.is_leaving,
                false => self.is_alive(it) && !it.is_leaving,
            })
            .map(|(name, _)| name)
            .collect();
        let owned = |block| Some((block, owner(block, candidates.iter().copied())?.clone()));
        self.blocks().filter_map(owned).collect()
    }

    /// Begins to give away what is to be somebody else's.
    fn drain(&mut self, wanted: &BTreeMap<Block, Arc<str>>, actions: &mut Vec<Action>) {
        let mut draining = Vec::new();
        for (block, (_, stage)) in &mut self.mine {
            let stays = !self.is_leaving && wanted.get(block) == Some(&self.me);
            match *stage {
                // Nothing has begun.
                Stage::Claimed | Stage::Fencing if !stays => *stage = Stage::Drained,
                Stage::Held if !stays => {
                    *stage = Stage::Draining(self.round);
                    draining.push(*block);
                }
                Stage::Draining(since) if since + DRAIN < self.round => *stage = Stage::Drained,
                _ => (),
            }
        }
        if !draining.is_empty() {
            actions.push(Action::Drain(draining));
        }
    }

    /// The table as it should be.
    fn next(&self, table: &Table, wanted: &BTreeMap<Block, Arc<str>>) -> Table {
        let mut next = table.clone();
        let epoch = table.epoch.max(self.newest) + 1;
        for block in self.blocks() {
            let is_mine = self.mine.get(&block).map(|(_, stage)| *stage);
            let is_free = match table.claim(block) {
                None => true,
                Some(claim) if claim.holder == self.me => self.anew.contains(&block),
                Some(claim) => self.is_gone(&claim.holder),
            };
            if is_mine == Some(Stage::Drained) {
                next.set(block, None);
            } else if is_free && !self.is_leaving && wanted.get(&block) == Some(&self.me) {
                next.set(block, Some(Claim { holder: self.me.clone(), epoch }));
                next.epoch = epoch;
            }
        }
        next
    }

    fn is_gone(&self, holder: &Arc<str>) -> bool {
        match self.members.get(holder) {
            Some(member) => !self.is_alive(member),
            None => self.absent.get(holder).is_some_and(|since| since + MISSED <= self.round),
        }
    }

    fn fence(&mut self, actions: &mut Vec<Action>) {
        let is_due = self.fence_again.is_some_and(|at| at <= self.round);
        if self.is_fencing {
            return;
        }
        let mut claimed = Vec::new();
        let is_waiting = self.fence_again.is_some() && !is_due;
        for (block, (epoch, stage)) in &mut self.mine {
            if *stage == Stage::Claimed && !self.anew.contains(block) && !is_waiting {
                *stage = Stage::Fencing;
                claimed.push((*block, *epoch));
            }
        }
        if is_due {
            self.fence_again = None;
        }
        if !claimed.is_empty() || (is_due && !self.mine.is_empty()) {
            self.is_fencing = true;
            actions.push(Action::Fence(claimed));
        }
    }
}
