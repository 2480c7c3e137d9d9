//! Raft groups of three in one thread: the same members that a process runs, with the network
//! and the clock in the test's hands.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState, Message, MessageType};
use tokio::sync::oneshot;

use crate::{
    contract::{pods, write},
    embedded::{
        command::Batch,
        member::Member,
        raft_log::{Position, RaftLog},
        reply::{Refusal, Reply},
        trace,
    },
    ring::RingLimits,
    state::{Image, State},
    store::{Change, Committed, Expect, StoreError},
};

/// Three members and what is on its way between them.
struct Group {
    members: Vec<Member>,
    states: Vec<Arc<State>>,
    network: VecDeque<Message>,
    /// Members that nobody reaches.
    cut_off: Vec<u64>,
}

impl Group {
    /// `voters` know of each other from the start; others learn of them when they join.
    fn new(count: u64, voters: &[u64]) -> Self {
        let mut group =
            Self { members: vec![], states: vec![], network: VecDeque::new(), cut_off: vec![] };
        for id in 1..=count {
            let state = State::new(Image::default(), RingLimits::default());
            let joins = !voters.contains(&id);
            let start = if joins { Position::default() } else { Position { index: 1, term: 1 } };
            let voters = if joins { vec![] } else { voters.to_vec() };
            let conf = ConfState { voters, ..ConfState::default() };
            let hard = HardState { term: start.term, vote: 0, commit: start.index };
            let log = RaftLog::new(start, conf, hard, VecDeque::new());
            let logger = trace::logger(&format!("m{id}"));
            group.members.push(Member::new(0, id, state.clone(), log, &logger).unwrap());
            group.states.push(state);
        }
        group
    }

    /// Lets everyone work and hear from each other until all is quiet.
    fn settle(&mut self) {
        loop {
            for member in &mut self.members {
                while member.has_work() {
                    let work = member.take_work().unwrap();
                    member.done(work).unwrap();
                }
                self.network.extend(member.take_messages());
            }
            let Some(message) = self.network.pop_front() else { return };
            if !self.cut_off.contains(&message.from) && !self.cut_off.contains(&message.to) {
                self.deliver(message);
            }
        }
    }

    /// Hands a message over; with one that tells of a state, also the state.
    fn deliver(&mut self, mut message: Message) {
        let [from, to] = [message.from, message.to].map(|id| id as usize - 1);
        if message.get_msg_type() != MessageType::MsgSnapshot {
            return self.members[to].step(0, message).unwrap();
        }
        let (at, conf) = (self.members[from].applied(), self.members[from].members().clone());
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term, metadata.conf_state) = (at.index, at.term, Some(conf));
        let image = self.states[from].image();
        self.members[to].restore(0, message, image).unwrap();
    }

    fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.members.iter_mut().for_each(Member::tick);
            self.settle();
        }
    }

    fn leaders(&self) -> Vec<u64> {
        let leads = |(id, member): (u64, &Member)| member.is_leader().then_some(id);
        (1..).zip(&self.members).filter_map(leads).collect()
    }

    fn propose(
        &mut self,
        member: u64,
        key: &str,
        expect: Expect,
        text: &'static str,
    ) -> oneshot::Receiver<Result<Committed, Refusal>> {
        let mut batch = Batch::default();
        batch.write(&write(key, expect, Change::Put(Bytes::from_static(text.as_bytes()))));
        let (reply, outcome) = oneshot::channel();
        self.members[member as usize - 1].propose(batch.finish(), vec![Reply::Write(reply)]);
        self.settle();
        outcome
    }

    fn value(&self, member: u64, key: &str) -> Option<Bytes> {
        let snapshot = self.states[member as usize - 1].snapshot(&pods()).unwrap();
        snapshot.get(key).map(|entry| entry.value.bytes().into_owned())
    }
}

#[test]
fn all_members_apply_the_same() {
    let mut group = Group::new(3, &[1, 2, 3]);
    group.members[0].campaign().unwrap();
    group.settle();
    assert_eq!(group.leaders(), [1]);
    let first = group.propose(1, "a", Expect::Absent, "1").try_recv().unwrap().unwrap();
    let again = group.propose(1, "a", Expect::Absent, "2").try_recv().unwrap();
    assert!(
        matches!(again, Err(Refusal::Failed(StoreError::Conflict { found: Some(found), .. })) if found == first.entry)
    );
    group.propose(1, "a", Expect::At(first.revision), "3").try_recv().unwrap().unwrap();
    group.tick(3);
    for member in 1..=3 {
        assert_eq!(group.value(member, "a").unwrap(), "3");
    }
    let revisions: Vec<_> = group.states.iter().map(|state| state.revision()).collect();
    assert!(revisions.iter().all(|revision| *revision == revisions[0]));
}

#[test]
fn only_a_majority_decides() {
    let mut group = Group::new(3, &[1, 2, 3]);
    group.members[0].campaign().unwrap();
    group.settle();
    group.propose(1, "a", Expect::Absent, "1").try_recv().unwrap().unwrap();
    // The leader loses the others, who choose another.
    group.cut_off = vec![1];
    let mut lost = group.propose(1, "a", Expect::Present, "lost");
    assert!(lost.try_recv().is_err(), "decided without a majority");
    group.tick(60);
    let leader = *group.leaders().iter().find(|id| **id != 1).expect("no new leader");
    group.propose(leader, "a", Expect::Present, "2").try_recv().unwrap().unwrap();
    assert_eq!(group.value(1, "a").unwrap(), "1");
    group.cut_off.clear();
    group.tick(30);
    // The old leader takes over what was decided without it, and says that its own was not.
    for member in 1..=3 {
        assert_eq!(group.value(member, "a").unwrap(), "2");
    }
    assert!(matches!(lost.try_recv().unwrap(), Err(Refusal::Failed(_))));
    assert_eq!(group.leaders().len(), 1);
}

#[test]
fn who_joins_gets_the_whole_state() {
    let mut group = Group::new(3, &[1]);
    group.members[0].campaign().unwrap();
    group.settle();
    for text in ["1", "2", "3"] {
        group.propose(1, "a", Expect::Anything, text).try_recv().unwrap().unwrap();
    }
    group.members[0].propose_learners(&BTreeSet::from([2, 3])).unwrap();
    group.tick(5);
    assert_eq!(group.value(3, "a").unwrap(), "3");
    group.members[0].propose_voters(&BTreeSet::from([1, 2, 3])).unwrap();
    group.tick(5);
    assert_eq!(group.members[0].members().voters, [1, 2, 3]);
    group.propose(1, "b", Expect::Absent, "4").try_recv().unwrap().unwrap();
    group.tick(5);
    for member in 2..=3 {
        assert_eq!(group.value(member, "a").unwrap(), "3");
        assert_eq!(group.value(member, "b").unwrap(), "4");
        assert_eq!(group.states[member as usize - 1].revision(), group.states[0].revision());
    }
    // They count: with the first gone, the two decide.
    group.cut_off = vec![1];
    group.tick(60);
    let leader = *group.leaders().iter().find(|id| **id != 1).expect("no new leader");
    group.propose(leader, "c", Expect::Absent, "5").try_recv().unwrap().unwrap();
}
