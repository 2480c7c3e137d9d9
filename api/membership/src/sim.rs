//! Replicas in virtual time, with everything going wrong that a seed decides.
//!
//! The store is modelled (guarded writes, epochs in two partitions, a history that each replica
//! follows with delays of its own); the replicas are the real core. Each keeps exactly one object
//! per block that it serves: it creates one where its copy shows none. Two objects, or none for
//! long, is what must never be.
//!
//! `storm` says what goes wrong, and what must hold.

mod storm;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use insula_api::slots::Block;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    core::{Action, Core, Fenced, Seen, Wrote},
    table::Table,
};

/// Milliseconds.
type Time = u64;

const BEAT: Time = 750;
const N_BLOCKS: usize = 6;
const N_PARTITIONS: usize = 2;
/// A copy of replicas and table, and one of objects.
const RULES: usize = 0;
const OBJECTS: usize = 1;
/// How long a request waits for its answer.
const REQUEST: Time = 10_000;

/// What is left out, to see that it is missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Writes of every epoch are done.
    Fences,
    /// Blocks are served before the local copy has caught up.
    CatchingUp,
}

#[derive(Debug, Clone)]
enum Request {
    Renew(Seen),
    Table(usize, Table),
    /// Reads what the replica has claimed.
    Fence(usize, Vec<(Block, u64)>),
    /// Raises in one partition after the other, from this one on; the newest epoch that was met.
    Raise(usize, Vec<(Block, u64)>, BTreeMap<Block, u64>, usize, u64),
    Create(usize, Block, u64),
    MarkLost(Arc<str>),
    Remove(Arc<str>),
    /// Somebody deletes what is there.
    Delete(Block),
}

#[derive(Debug, Clone)]
enum Answer {
    Wrote(Wrote),
    Fenced(Vec<(Block, u64)>, Fenced),
    /// At which version, unless it was refused.
    Created(Block, Option<u64>),
}

#[derive(Debug)]
enum Event {
    Beat,
    Look(usize),
    Work,
    Answer(Answer),
}

#[derive(Debug)]
enum What {
    Arrives(Request),
    At(usize, Event),
}

/// The store as it was at one version.
#[derive(Debug, Clone)]
struct View {
    members: BTreeMap<Arc<str>, Seen>,
    table: Table,
    objects: BTreeMap<Block, usize>,
}

struct Replica {
    name: Arc<str>,
    core: Core,
    is_up: bool,
    paused_until: Time,
    /// Its own clock's second, in milliseconds.
    second: Time,
    /// How far its copies are: of replicas and table, and of objects. Copies of different resources
    /// move on each for itself.
    views: [usize; 2],
    will_look: [bool; 2],
    renewals: i64,
    is_leaving: bool,
    served: BTreeMap<Block, u64>,
    under_way: BTreeMap<Block, usize>,
    draining: BTreeSet<Block>,
    /// Created at this version; `None` until it is known.
    expected: BTreeMap<Block, Option<u64>>,
    catching_up: Vec<(Vec<(Block, u64)>, usize)>,
}

struct Sim {
    rng: StdRng,
    without: Without,
    /// How often something takes long, of a thousand.
    slow: u32,
    now: Time,
    number: u64,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    what: BTreeMap<u64, What>,
    history: Vec<View>,
    epochs: BTreeMap<(usize, Block), u64>,
    replicas: Vec<Replica>,
    n_refused: usize,
    n_created: usize,
    duplicate: Option<String>,
}

impl Sim {
    fn new(seed: u64, without: Without) -> Self {
        let first =
            View { members: BTreeMap::new(), table: Table::empty(0), objects: BTreeMap::new() };
        Self {
            rng: StdRng::seed_from_u64(seed),
            without,
            slow: 0,
            now: 0,
            number: 0,
            queue: BinaryHeap::new(),
            what: BTreeMap::new(),
            history: vec![first],
            epochs: BTreeMap::new(),
            replicas: Vec::new(),
            n_refused: 0,
            n_created: 0,
            duplicate: None,
        }
    }

    fn after(&mut self, delay: Time, what: What) {
        self.number += 1;
        self.queue.push(Reverse((self.now + delay, self.number)));
        self.what.insert(self.number, what);
    }

    /// How long something is on its way.
    fn way(&mut self) -> Time {
        match self.rng.random_range(0..1000) < self.slow {
            true => self.rng.random_range(100..9_000),
            false => self.rng.random_range(1..15),
        }
    }

    fn send(&mut self, request: Request) {
        let way = self.way();
        self.after(way, What::Arrives(request));
    }

    fn answer(&mut self, to: usize, answer: Answer) {
        let way = self.way();
        self.after(way, What::At(to, Event::Answer(answer)));
    }

    fn latest(&self) -> &View {
        self.history.last().unwrap()
    }

    fn version(&self) -> usize {
        self.history.len() - 1
    }

    /// Changes the store; everybody hears of it, some time.
    fn change(&mut self, change: impl FnOnce(&mut View, u64)) {
        let mut next = self.latest().clone();
        change(&mut next, self.history.len() as u64);
        self.history.push(next);
        for at in 0..self.replicas.len() {
            for copy in [RULES, OBJECTS] {
                if !std::mem::replace(&mut self.replicas[at].will_look[copy], true) {
                    let way = self.way();
                    self.after(way, What::At(at, Event::Look(copy)));
                }
            }
        }
    }

    fn renew(&mut self, at: usize) {
        let it = &mut self.replicas[at];
        it.renewals += 1;
        let (name, renewals) = (it.name.clone(), it.renewals);
        let is_leaving = it.is_leaving;
        self.send(Request::Renew(Seen { name, renewals, is_leaving, is_lost: false }));
    }

    /// What happens next; `false` after `until`.
    fn step(&mut self, until: Time) -> bool {
        match self.queue.peek() {
            Some(Reverse((time, _))) if *time <= until => self.now = *time,
            _ => {
                self.now = until;
                return false;
            }
        }
        let Reverse((_, number)) = self.queue.pop().unwrap();
        match self.what.remove(&number).unwrap() {
            What::Arrives(request) => self.arrives(request),
            What::At(at, _) if !self.replicas[at].is_up => (),
            What::At(at, event) if self.now < self.replicas[at].paused_until => {
                let later = self.replicas[at].paused_until - self.now;
                self.after(later, What::At(at, event));
            }
            What::At(at, event) => self.happens(at, event),
        }
        true
    }

    fn arrives(&mut self, request: Request) {
        match request {
            Request::Renew(seen) => self.change(|view, _| {
                let known = view.members.get(&seen.name);
                if known.is_none_or(|known| known.renewals < seen.renewals) {
                    view.members.insert(seen.name.clone(), seen);
                }
            }),
            Request::Table(from, wanted) => {
                let mut outcome = Wrote::Conflict;
                if self.latest().table.version == wanted.version {
                    let mut stored = wanted;
                    self.change(|view, version| {
                        stored.version = version;
                        view.table = stored;
                    });
                    outcome = Wrote::Done(self.latest().table.clone());
                }
                if self.rng.random_range(0..1000) < self.slow {
                    self.after(
                        REQUEST,
                        What::At(from, Event::Answer(Answer::Wrote(Wrote::Unknown))),
                    );
                } else {
                    self.answer(from, Answer::Wrote(outcome));
                }
            }
            Request::Fence(from, blocks) => {
                let table = &self.latest().table;
                let holder = &self.replicas[from].name;
                let claim = |block| table.claim(block).filter(|claim| claim.holder == *holder);
                let all = Block::all().take(N_BLOCKS);
                let claimed = all.filter_map(|block| Some((block, claim(block)?.epoch))).collect();
                self.send(Request::Raise(from, blocks, claimed, 0, 0));
            }
            Request::Raise(from, blocks, claimed, partition, mut newest) => {
                for (block, epoch) in &claimed {
                    let kept = self.epochs.entry((partition, *block)).or_default();
                    if *epoch < *kept {
                        newest = newest.max(*kept);
                    }
                    *kept = (*kept).max(*epoch);
                }
                if partition + 1 < N_PARTITIONS {
                    self.send(Request::Raise(from, blocks, claimed, partition + 1, newest));
                } else if newest != 0 {
                    self.answer(from, Answer::Fenced(blocks, Fenced::Behind(newest)));
                } else {
                    self.answer(from, Answer::Fenced(blocks, Fenced::Everywhere));
                }
            }
            Request::Create(from, block, epoch) => {
                let partition = usize::from(block.number()) % N_PARTITIONS;
                let kept = self.epochs.get(&(partition, block)).copied().unwrap_or(0);
                let may = kept == epoch || self.without == Without::Fences;
                if !may {
                    self.n_refused += 1;
                    self.answer(from, Answer::Created(block, None));
                    return;
                }
                self.n_created += 1;
                let there = self.latest().objects.get(&block).copied().unwrap_or(0);
                if there != 0 {
                    let name = &self.replicas[from].name;
                    let now = self.now;
                    self.duplicate.get_or_insert_with(|| {
                        format!("{name} made another in block {block}, epoch {epoch}, at {now} ms")
                    });
                }
                self.change(|view, _| *view.objects.entry(block).or_default() += 1);
                let version = self.version() as u64;
                self.answer(from, Answer::Created(block, Some(version)));
            }
            Request::MarkLost(name) => self.change(|view, _| {
                if let Some(it) = view.members.get_mut(&name) {
                    it.is_lost = true;
                }
            }),
            Request::Remove(name) => self.change(|view, _| {
                view.members.remove(&name);
            }),
            Request::Delete(block) => self.change(|view, _| {
                view.objects.remove(&block);
            }),
        }
    }

    fn happens(&mut self, at: usize, event: Event) {
        match event {
            Event::Beat => {
                if !self.replicas[at].core.has_left() {
                    self.renew(at);
                }
                let next = BEAT * self.replicas[at].second / 1000;
                self.after(next, What::At(at, Event::Beat));
            }
            Event::Look(copy) => self.look(at, copy),
            Event::Work => {
                self.work(at);
                self.after(100, What::At(at, Event::Work));
            }
            Event::Answer(answer) => self.learn(at, answer),
        }
        self.plan(at);
    }

    /// A local copy moves on, not always all the way.
    fn look(&mut self, at: usize, copy: usize) {
        let newest = self.version();
        let view = match self.rng.random_range(0..4) {
            0 => self.rng.random_range(self.replicas[at].views[copy]..=newest),
            _ => newest,
        };
        let it = &mut self.replicas[at];
        it.views[copy] = view;
        it.will_look[copy] = view < newest;
        if view < newest {
            let way = self.way();
            self.after(way, What::At(at, Event::Look(copy)));
        }
        let it = &mut self.replicas[at];
        if copy == RULES {
            let members: Vec<_> = self.history[view].members.values().cloned().collect();
            it.core.members(&members);
            it.core.table(self.history[view].table.clone());
            return;
        }
        it.expected.retain(|_, version| version.is_none_or(|version| (view as u64) < version));
        let (done, waiting) =
            std::mem::take(&mut it.catching_up).into_iter().partition(|(_, to)| *to <= view);
        it.catching_up = waiting;
        for (blocks, _) in done {
            self.fenced(at, &blocks, Fenced::Everywhere);
        }
    }

    fn work(&mut self, at: usize) {
        let view = self.replicas[at].views[OBJECTS];
        let served: Vec<_> =
            self.replicas[at].served.iter().map(|(block, epoch)| (*block, *epoch)).collect();
        for (block, epoch) in served {
            let it = &mut self.replicas[at];
            let is_there = self.history[view].objects.contains_key(&block);
            let is_busy = it.under_way.get(&block).is_some_and(|n| *n != 0);
            if is_there || is_busy || it.expected.contains_key(&block) {
                continue;
            }
            *it.under_way.entry(block).or_default() += 1;
            it.expected.insert(block, None);
            self.send(Request::Create(at, block, epoch));
        }
    }

    fn learn(&mut self, at: usize, answer: Answer) {
        match answer {
            Answer::Wrote(outcome) => self.replicas[at].core.wrote(outcome),
            Answer::Fenced(blocks, Fenced::Everywhere)
                if self.without != Without::CatchingUp && !blocks.is_empty() =>
            {
                let newest = self.version();
                let it = &mut self.replicas[at];
                if it.views[OBJECTS] < newest {
                    it.catching_up.push((blocks, newest));
                } else {
                    self.fenced(at, &blocks, Fenced::Everywhere);
                }
            }
            Answer::Fenced(blocks, outcome) => self.fenced(at, &blocks, outcome),
            Answer::Created(block, version) => {
                let it = &mut self.replicas[at];
                match version {
                    Some(version) if (it.views[OBJECTS] as u64) < version => {
                        if let Some(expected) = it.expected.get_mut(&block) {
                            *expected = Some(version);
                        }
                    }
                    Some(_) => drop(it.expected.remove(&block)),
                    None => {
                        it.expected.remove(&block);
                        it.core.refused();
                    }
                }
                *it.under_way.entry(block).or_default() -= 1;
                self.tell_drained(at, block);
            }
        }
    }

    fn tell_drained(&mut self, at: usize, block: Block) {
        let it = &mut self.replicas[at];
        let is_idle = it.under_way.get(&block).is_none_or(|n| *n == 0);
        if is_idle && it.draining.remove(&block) {
            it.core.drained(block);
        }
    }

    fn fenced(&mut self, at: usize, blocks: &[(Block, u64)], outcome: Fenced) {
        for action in self.replicas[at].core.fenced(blocks, outcome) {
            self.act(at, action);
        }
    }

    fn plan(&mut self, at: usize) {
        // What was done may lead to more.
        for _ in 0..3 {
            for action in self.replicas[at].core.plan() {
                self.act(at, action);
            }
        }
        let it = &self.replicas[at];
        // Copies are of what is claimed.
        let claimed: BTreeSet<_> = it.core.claimed().collect();
        let mut served = it.served.keys();
        assert!(
            served.all(|block| claimed.contains(block)),
            "{}: it works without copies",
            it.name
        );
        if it.is_leaving && it.core.has_left() {
            let name = it.name.clone();
            self.replicas[at].is_up = false;
            self.send(Request::Remove(name));
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        match action {
            Action::Write(table) => self.send(Request::Table(at, table)),
            Action::Fence(blocks) => self.send(Request::Fence(at, blocks)),
            Action::Serve(blocks) => {
                let it = &mut self.replicas[at];
                for (block, epoch) in blocks {
                    it.served.insert(block, epoch);
                    it.draining.remove(&block);
                    // What was expected in another epoch is void, unless it is still on its way.
                    if it.under_way.get(&block).is_none_or(|n| *n == 0) {
                        it.expected.remove(&block);
                    }
                }
            }
            Action::Drain(blocks) => {
                for block in blocks {
                    self.replicas[at].served.remove(&block);
                    self.replicas[at].draining.insert(block);
                    self.tell_drained(at, block);
                }
            }
            Action::Drop(blocks) => {
                for block in blocks {
                    self.replicas[at].served.remove(&block);
                }
            }
            Action::MarkLost(name) => self.send(Request::MarkLost(name)),
            Action::Forget(name) => self.send(Request::Remove(name)),
        }
    }
}
