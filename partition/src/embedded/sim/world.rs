//! Servers with one member each, the messages between them, and what goes wrong.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::disk::{Disk, describe};
use crate::{
    embedded::{
        checkpoint::Description,
        command::Batch,
        member::{Logging, Member, Work},
        membership::{self, Step},
        reads::Reads,
        reply::{Reply, ReplyTo},
    },
    state::{Image, State},
    store::{Committed, Durability, Revision, StoreError, Write},
    watch::Watcher,
};

/// How often things go wrong: the mean of milliseconds between two, 0 for never. `losses` and
/// `slow` are of a hundred messages and flushes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    pub(super) crashes: u64,
    pub(super) cuts: u64,
    pub(super) losses: u64,
    pub(super) slow: u64,
    pub(super) changes: u64,
}

const TICK: u64 = 100;

struct Server {
    id: u64,
    disk: Disk,
    life: u32,
    /// `None` while it is down.
    running: Option<Running>,
}

struct Running {
    member: Member,
    state: Arc<State>,
    reads: Reads,
    /// What is being logged.
    logging: Option<Work>,
    /// What is being logged although the member went on, and the number of its piece.
    overlapping: VecDeque<(Logging, u64)>,
    /// Revisions up to this one are reserved on disk, as [`crate::embedded::reserve`] does it.
    reserved: u64,
    /// The next piece has a reservation in it.
    reserving: bool,
    /// A state is being fetched.
    pulling: bool,
    /// Follows all that is applied here.
    watcher: Watcher,
}

enum Event {
    Tick(u64, u32),
    Deliver(u64, u32, Box<Message>),
    /// What was being logged is on disk.
    Logged(u64, u32),
    /// And so is the oldest of what a leader went on from.
    Overlapped(u64, u32),
    /// The state that a message told of is fetched.
    Pull(u64, u32, u32, Box<Message>),
    Start(u64),
    Heal(u64, u64),
    Crash,
    Cut,
    Change,
    Checkpoint,
}

/// One change as it was applied somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Applied {
    key: Arc<str>,
    value: Bytes,
    deleted: bool,
}

/// See the module.
pub(super) struct World {
    now: u64,
    seed: u64,
    random: StdRng,
    faults: Faults,
    servers: Vec<Server>,
    voters: Vec<u64>,
    /// The voters that the group is to have.
    wanted: BTreeSet<u64>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    /// The events by the order in which they were planned.
    planned: BTreeMap<u64, Event>,
    next_event: u64,
    /// From, to.
    cut: BTreeSet<(u64, u64)>,
    /// What every member must agree with.
    applied: BTreeMap<Revision, Applied>,
    calm: bool,
}

impl World {
    pub(super) fn new(seed: u64, servers: u64, faults: Faults) -> Self {
        let voters: Vec<u64> = (1..=servers).collect();
        let server = |id: &u64| Server { id: *id, disk: Disk::default(), life: 0, running: None };
        let mut world = Self {
            now: 0,
            seed,
            random: StdRng::seed_from_u64(seed),
            faults,
            servers: voters.iter().map(server).collect(),
            wanted: voters.iter().copied().collect(),
            voters,
            events: BinaryHeap::new(),
            planned: BTreeMap::new(),
            next_event: 0,
            cut: BTreeSet::new(),
            applied: BTreeMap::new(),
            calm: false,
        };
        for id in 1..=servers {
            world.start(id);
        }
        let Faults { crashes, cuts, changes, .. } = faults;
        for (every, event) in
            [(crashes, Event::Crash), (cuts, Event::Cut), (changes, Event::Change)]
        {
            world.plan_after(every, event);
        }
        world.plan_after(1_500, Event::Checkpoint);
        world
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn random(&mut self) -> &mut StdRng {
        &mut self.random
    }

    pub(super) fn servers(&self) -> u64 {
        self.servers.len() as u64
    }

    /// A server that believes that it leads.
    pub(super) fn leader(&self) -> Option<u64> {
        let leads = |it: &&Server| it.running.as_ref().is_some_and(|it| it.member.is_leader());
        self.servers.iter().find(leads).map(|it| it.id)
    }

    /// Nothing goes wrong from now on.
    pub(super) fn calm(&mut self) {
        self.calm = true;
        self.cut.clear();
        let down: Vec<_> =
            self.servers.iter().filter(|it| it.running.is_none()).map(|it| it.id).collect();
        down.into_iter().for_each(|id| self.start(id));
        self.wanted = self.voters.iter().copied().collect();
        self.plan(1, Event::Change);
    }

    fn plan(&mut self, after: u64, event: Event) {
        self.events.push(Reverse((self.now + after, self.next_event)));
        self.planned.insert(self.next_event, event);
        self.next_event += 1;
    }

    /// Plans what happens every so often.
    fn plan_after(&mut self, mean: u64, event: Event) {
        if 0 < mean {
            let after = self.random.random_range(1..=2 * mean);
            self.plan(after, event);
        }
    }

    fn server(&mut self, id: u64) -> &mut Server {
        &mut self.servers[id as usize - 1]
    }

    /// What runs on a server, if it is the life that is meant.
    fn running(&mut self, id: u64, life: u32) -> Option<&mut Running> {
        let server = self.server(id);
        server.running.as_mut().filter(|_| server.life == life)
    }

    /// The next thing happens.
    pub(super) fn step(&mut self) {
        let Some(Reverse((at, number))) = self.events.pop() else { return };
        self.now = at;
        match self.planned.remove(&number) {
            Some(event) => self.happen(event),
            None => return,
        }
        self.compare();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(id, life) => {
                let seed = self.seed;
                if let Some(running) = self.running(id, life) {
                    if running.logging.is_none() {
                        // The same lot for as long as the term lasts.
                        let term = running.member.term();
                        running
                            .member
                            .draw(xxh3_64_with_seed(&term.to_le_bytes(), seed ^ id << 32));
                        running.member.tick();
                    }
                    running.reads.tick();
                    self.drive(id);
                    // No two clocks are alike.
                    let tick = TICK + self.random.random_range(0..10);
                    self.plan(tick, Event::Tick(id, life));
                }
            }
            Event::Deliver(id, sender, message) => self.deliver(id, sender, *message),
            Event::Logged(id, life) => {
                if self.running(id, life).is_some() {
                    self.server(id).disk.flush();
                    self.finish(id);
                    self.drive(id);
                }
            }
            Event::Overlapped(id, life) => {
                if self.running(id, life).is_some() {
                    self.overlapped(id);
                    self.drive(id);
                }
            }
            Event::Pull(id, life, sender, message) => self.pull(id, life, sender, *message),
            Event::Start(id) => self.start(id),
            Event::Heal(one, other) => {
                self.cut.remove(&(one, other));
            }
            _ if self.calm && !matches!(event, Event::Change | Event::Checkpoint) => {}
            Event::Crash => {
                let id = self.random.random_range(1..=self.servers());
                self.crash(id);
                self.plan_after(self.faults.crashes, Event::Crash);
            }
            Event::Cut => {
                let (one, other) = (
                    self.random.random_range(1..=self.servers()),
                    self.random.random_range(1..=self.servers()),
                );
                let both = self.random.random_bool(0.7);
                let whole = self.random.random_bool(0.5);
                let heal = self.random.random_range(50..2_500);
                for to in 1..=self.servers() {
                    if to != one && (whole || to == other) {
                        let ways = if both { vec![(one, to), (to, one)] } else { vec![(one, to)] };
                        for way in ways {
                            self.cut.insert(way);
                            self.plan(heal, Event::Heal(way.0, way.1));
                        }
                    }
                }
                self.plan_after(self.faults.cuts, Event::Cut);
            }
            Event::Change => self.change(),
            Event::Checkpoint => {
                let id = self.random.random_range(1..=self.servers());
                let server = self.server(id);
                if let Some(running) = &server.running {
                    let description = describe(running.member.applied(), &running.member);
                    server.disk.checkpoint(description, running.state.image());
                }
                self.plan_after(1_500, Event::Checkpoint);
            }
        }
    }

    fn start(&mut self, id: u64) {
        let voters = self.voters.clone();
        let server = self.server(id);
        if server.running.is_some() {
            return;
        }
        server.life += 1;
        let (life, started) = (server.life, server.disk.start(id, &voters, server.life));
        let watcher = started.state.watch(&crate::contract::pods(), started.state.revision());
        let watcher = watcher.expect("what was just read can be watched");
        let mut running = Running {
            member: started.member,
            state: started.state,
            reads: Reads::default(),
            logging: None,
            overlapping: VecDeque::new(),
            reserved: 0,
            reserving: false,
            pulling: false,
            watcher,
        };
        running.member.reserved = started.reserved;
        let alone = running.member.is_alone();
        let lost = started.reserved.saturating_sub(running.state.revision().0);
        server.running = Some(running);
        self.drive(id);
        self.settle(id);
        if alone {
            // As the thread of a group of one does when it begins.
            if let Some(running) = self.running(id, life) {
                running.member.campaign().expect("a member stands for election");
            }
            self.drive(id);
            self.settle(id);
            if let Some(running) = self.running(id, life) {
                running.member.reserved = 0;
                if 0 < lost {
                    let mut batch = Batch::default();
                    batch.skip(lost);
                    running.member.propose(batch.finish(), vec![Reply::Nobody]);
                }
            }
            self.drive(id);
            self.settle(id);
        }
        let first = self.random.random_range(0..TICK);
        self.plan(first, Event::Tick(id, life));
    }

    /// Has everything logged at once.
    fn settle(&mut self, id: u64) {
        loop {
            let Some(running) = &self.server(id).running else { return };
            if running.logging.is_some() {
                self.server(id).disk.flush();
                self.finish(id);
            } else if !running.overlapping.is_empty() {
                self.overlapped(id);
            } else {
                return;
            }
            self.drive(id);
        }
    }

    /// The oldest of what a leader went on from is on disk.
    fn overlapped(&mut self, id: u64) {
        let server = self.server(id);
        if let Some(running) = &mut server.running
            && let Some((logging, piece)) = running.overlapping.pop_front()
        {
            server.disk.flush_to(piece);
            running.member.logged(&logging);
        }
    }

    fn crash(&mut self, id: u64) {
        let mut random = StdRng::seed_from_u64(self.random.random());
        let server = self.server(id);
        if server.running.take().is_some() {
            server.disk.crash(&mut random);
            let after = random.random_range(10..2_000);
            self.plan(after, Event::Start(id));
        }
    }

    /// Does what a member asks for until it waits for its disk.
    fn drive(&mut self, id: u64) {
        loop {
            let slow = self.faults.slow;
            let delay = match self.random.random_range(0..100) < slow && !self.calm {
                true => self.random.random_range(20..600),
                false => self.random.random_range(0..4),
            };
            let goes_on = self.random.random_bool(0.5);
            let server = self.server(id);
            let life = server.life;
            let Some(running) = &mut server.running else { return };
            if running.logging.is_some() {
                return;
            }
            self.talk(id);
            let server = self.server(id);
            let Some(running) = &mut server.running else { return };
            if !running.member.has_work() {
                return;
            }
            if !running.overlapping.is_empty() && !running.member.may_go_on() {
                self.overlapped(id);
                continue;
            }
            let may_go_on = running.member.may_go_on();
            let work = running.member.take_work().expect("a member goes on");
            let reserving = std::mem::take(&mut running.reserving);
            let durable = work.durability == Durability::Durable || reserving;
            if reserving {
                running.reserved = running.member.reserved;
            }
            let piece = work.piece.as_ref().map(|piece| server.disk.write(piece));
            let logs = piece.is_some();
            let behind = !running.overlapping.is_empty();
            if behind || (goes_on && may_go_on && durable && logs && !reserving) {
                let logging = running.member.go_on(work).expect("a member goes on");
                if let Some(piece) = piece {
                    running.overlapping.push_back((logging, piece));
                    self.plan(delay, Event::Overlapped(id, life));
                }
                self.talk(id);
                continue;
            }
            running.logging = Some(work);
            if logs && durable {
                self.talk(id);
                return self.plan(delay, Event::Logged(id, life));
            }
            self.finish(id);
        }
    }

    fn finish(&mut self, id: u64) {
        if let Some(running) = &mut self.server(id).running
            && let Some(work) = running.logging.take()
        {
            running.member.done(work).expect("a member goes on");
        }
        self.talk(id);
    }

    /// Sends what a member has to say, and deals with its reads.
    fn talk(&mut self, id: u64) {
        let server = self.server(id);
        let life = server.life;
        let Some(running) = &mut server.running else { return };
        for read in running.member.take_reads() {
            let context: Vec<u64> = read
                .request_ctx
                .chunks_exact(8)
                .map(|part| u64::from_le_bytes(part.try_into().expect("eight bytes")))
                .collect();
            if context[..2] == [id, u64::from(life)] {
                running.reads.answered(context[2], read.index);
            }
        }
        running.reads.applied(running.member.applied().index);
        if running.logging.is_none()
            && let Some(number) = running.reads.begin()
        {
            let context = [id, u64::from(life), number];
            running.member.ask_to_read(context.iter().flat_map(|it| it.to_le_bytes()).collect());
        }
        for message in running.member.take_messages() {
            let lost = self.random.random_range(0..100) < self.faults.losses && !self.calm;
            // What it passes on for another is not taken from it, see `post`.
            if lost || message.from != id || self.cut.contains(&(id, message.to)) {
                continue;
            }
            let delay = if self.random.random_range(0..200) == 0 { 300 } else { 12 };
            let delay = self.random.random_range(1..delay);
            let to = message.to;
            if self.random.random_range(0..100) < self.faults.losses {
                self.plan(delay * 2, Event::Deliver(to, life, Box::new(message.clone())));
            }
            self.plan(delay, Event::Deliver(to, life, Box::new(message)));
        }
    }

    fn deliver(&mut self, id: u64, sender: u32, message: Message) {
        let server = self.server(id);
        let life = server.life;
        let Some(running) = &mut server.running else { return };
        if running.logging.is_some() {
            // It is heard when the disk is done.
            return self.plan(1, Event::Deliver(id, sender, Box::new(message)));
        }
        let index = message.get_snapshot().get_metadata().index;
        let is_state = message.get_msg_type() == MessageType::MsgSnapshot;
        if is_state && running.member.commit() < index && running.member.term() <= message.term {
            running.member.hear_of(message.from);
            if !std::mem::replace(&mut running.pulling, true) {
                let delay = self.random.random_range(1..200);
                self.plan(delay, Event::Pull(id, life, sender, Box::new(message)));
            }
            return;
        }
        let server = self.server(id);
        let Some(running) = &mut server.running else { return };
        running.member.step(sender, message).expect("a member hears");
        self.drive(id);
    }

    fn pull(&mut self, id: u64, life: u32, sender: u32, mut message: Message) {
        let from = message.from;
        let cut = self.cut.contains(&(id, from)) || self.cut.contains(&(from, id));
        let offer = self.running(from, sender).filter(|_| !cut).map(|leader| {
            let pull = leader.member.keep_for(id);
            (leader.member.applied(), leader.member.members().clone(), leader.state.image(), pull)
        });
        let Some(running) = self.running(id, life) else { return };
        if running.logging.is_some() {
            return self.plan(1, Event::Pull(id, life, sender, Box::new(message)));
        }
        running.pulling = false;
        let Some((at, conf, image, _pull)) = offer else { return };
        self.server(id).disk.checkpoint(Description::new(at, &conf, 1), image.clone());
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (at.index, at.term);
        metadata.conf_state = Some(conf);
        self.restore(id, sender, message, image);
    }

    fn restore(&mut self, id: u64, sender: u32, message: Message, image: Image) {
        if let Some(running) = &mut self.server(id).running {
            running.member.restore(sender, message, image).expect("a member takes a state over");
        }
        self.drive(id);
    }

    /// Goes a step towards the voters that are wanted; now and then others are.
    fn change(&mut self) {
        if !self.calm && self.random.random_bool(0.3) {
            let gone = self.random.random_range(1..=self.servers());
            self.wanted = self.voters.iter().copied().filter(|id| *id != gone).collect();
        }
        let wanted = self.wanted.clone();
        if let Some(leader) = self.leader()
            && let Some(running) = &mut self.server(leader).running
            && running.logging.is_none()
        {
            let member = &mut running.member;
            // A refusal is tried again with the next step.
            match membership::next(&member.view(), &wanted) {
                Step::Learn(new) => drop(member.propose_learners(&new)),
                Step::Vote(voters) => drop(member.propose_voters(&voters)),
                Step::Transfer(heir) => member.transfer(heir),
                Step::Done | Step::Refuse(_) | Step::Wait(_) => {}
            }
            self.drive(leader);
        }
        let every = if self.calm { 100 } else { self.faults.changes / 4 };
        self.plan_after(every, Event::Change);
    }

    /// Hands a write to a server. `None` if it is down.
    pub(super) fn write(
        &mut self,
        id: u64,
        write: &Write,
        reply: ReplyTo<Committed>,
    ) -> Option<()> {
        let relaxed = write.durability == Durability::Relaxed;
        while relaxed && self.overlaps(id) {
            self.overlapped(id);
            self.drive(id);
        }
        let running = self.server(id).running.as_mut()?;
        // A process queues it while the disk is busy.
        if running.logging.is_some() {
            return None;
        }
        let mut batch = Batch::default();
        batch.write(write);
        if running.member.is_alone() && relaxed {
            let needed = running.state.revision().0 + 1;
            if running.reserved < needed {
                running.member.reserved = needed + 8;
                running.reserving = true;
            }
        }
        running.member.propose(batch.finish(), vec![Reply::Write(reply)]);
        self.drive(id);
        Some(())
    }

    fn overlaps(&mut self, id: u64) -> bool {
        self.server(id).running.as_ref().is_some_and(|it| !it.overlapping.is_empty())
    }

    /// Asks a server for the latest. `None` if it is down.
    pub(super) fn read(
        &mut self,
        id: u64,
        reply: oneshot::Sender<Result<(), StoreError>>,
    ) -> Option<Arc<State>> {
        let running = self.server(id).running.as_mut()?;
        if running.member.knows_latest() {
            // Nobody waits if the client has gone.
            let _ = reply.send(Ok(()));
        } else {
            running.reads.add(reply);
        }
        let state = running.state.clone();
        self.drive(id);
        Some(state)
    }

    /// Whatever a member applied, all others that got there applied the same.
    fn compare(&mut self) {
        for server in &mut self.servers {
            let Some(running) = &mut server.running else { continue };
            loop {
                let events = match running.watcher.ready() {
                    Ok(events) if events.is_empty() => break,
                    Ok(events) => events,
                    // It took over a state as a whole.
                    Err(_) => {
                        let from = running.state.revision();
                        let watcher = running.state.watch(&crate::contract::pods(), from);
                        running.watcher = watcher.expect("the present can be watched");
                        break;
                    }
                };
                for event in events {
                    let applied = Applied {
                        key: event.key.clone(),
                        value: event.entry.value.bytes().into_owned(),
                        deleted: event.deleted,
                    };
                    let known =
                        self.applied.entry(event.revision).or_insert_with(|| applied.clone());
                    assert_eq!(*known, applied, "revision {} is two things", event.revision);
                }
            }
        }
    }

    /// How all members stand, for those who look for a fault.
    pub(super) fn describe(&self) -> String {
        let one = |server: &Server| match &server.running {
            None => format!("{}: down\n", server.id),
            Some(it) => format!(
                "{}: leader {:?} term {} commit {} applied {} last {} logging {} pulling {} {:?}\n    {}\n",
                server.id,
                it.member.leader(),
                it.member.term(),
                it.member.commit(),
                it.member.applied().index,
                it.member.last_index(),
                it.logging.is_some(),
                it.pulling,
                it.member.members(),
                it.member.beliefs(),
            ),
        };
        let all: String = self.servers.iter().map(one).collect();
        format!("wanted {:?} cut {:?} at {}\n{all}", self.wanted, self.cut, self.now)
    }

    /// All servers have the same.
    pub(super) fn check_equal(&self) {
        let images: Vec<_> = self
            .servers
            .iter()
            .filter(|it| self.wanted.contains(&it.id))
            .map(|it| {
                let running = it.running.as_ref().expect("all servers are up in the end");
                let image = running.state.image();
                (image.revision, image.collections)
            })
            .collect();
        for pair in images.windows(2) {
            let all = || self.describe();
            assert_eq!(pair[0].0, pair[1].0, "members are at different revisions:\n{}", all());
            assert!(pair[0].1 == pair[1].1, "members differ:\n{}", all());
        }
    }
}
