//! Random calls, one at a time for each client, and what became of them.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use insula_history::op::{self, Action, Op, Outcome, Seen};
use rand::Rng as _;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::world::World;
use crate::{
    contract::pods,
    embedded::reply::Refusal,
    state::State,
    store::{Change, Committed, Durability, Expect, Revision, StoreError, Write},
};

/// Milliseconds after which a client gives up.
const PATIENCE: u64 = 3_000;

const KEYS: u32 = 3;

enum Waiting {
    Write(oneshot::Receiver<Result<Committed, Refusal>>),
    Read(oneshot::Receiver<Result<(), StoreError>>, Arc<State>),
}

struct Call {
    op: Op,
    waiting: Waiting,
    since: u64,
}

/// See the module.
pub(super) struct Clients {
    calls: Vec<Option<Call>>,
    known: Vec<BTreeMap<u32, Seen>>,
    history: Vec<Op>,
    /// Counts everything that happens to clients, so that no two moments are the same.
    moment: u64,
    next_id: u64,
    decided: u64,
    relaxed: bool,
    stopped: bool,
}

fn value(id: u64) -> Bytes {
    Bytes::from(format!(r#"{{"metadata":{{"resourceVersion":"","name":"{id}"}}}}"#))
}

/// The id that [`value`] wrote.
fn id_of(value: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(value).expect("a value is as written");
    value["metadata"]["name"].as_str().and_then(|id| id.parse().ok()).expect("a value has an id")
}

fn name(key: u32) -> String {
    format!("t/ns/{key}")
}

impl Clients {
    pub(super) fn new(count: usize, relaxed: bool) -> Self {
        Self {
            calls: (0..count).map(|_| None).collect(),
            known: vec![BTreeMap::new(); count],
            history: Vec::new(),
            moment: 0,
            next_id: 1,
            decided: 0,
            relaxed,
            stopped: false,
        }
    }

    /// Everything that ended.
    pub(super) fn history(&self) -> &[Op] {
        &self.history
    }

    /// Writes that were acknowledged.
    pub(super) fn decided(&self) -> u64 {
        self.decided
    }

    /// No new calls.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn step(&mut self, world: &mut World) {
        for client in 0..self.calls.len() {
            match self.calls[client].take() {
                Some(call) => self.calls[client] = self.look(client, call, world),
                None if self.stopped || !world.random().random_bool(0.2) => {}
                None => self.calls[client] = self.begin(client, world),
            }
        }
    }

    fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    fn begin(&mut self, client: usize, world: &mut World) -> Option<Call> {
        let servers = world.servers();
        let leader = world.leader();
        let random = world.random();
        let key = random.random_range(0..KEYS);
        let kind = random.random_range(0..10);
        let guard = random.random_range(0..10);
        let any = random.random_bool(0.2);
        let expect = match (guard, self.known[client].get(&key)) {
            (0..6, Some(seen)) => op::Expect::Version(*seen),
            (0..6, None) | (6, _) => op::Expect::Absent,
            (7, _) => op::Expect::Present,
            _ => op::Expect::Anything,
        };
        let somewhere = random.random_range(1..=servers);
        let server = leader.filter(|_| !any).unwrap_or(somewhere);
        let begin = self.moment();
        let (action, waiting) = if kind < 4 {
            let server = if kind < 2 { somewhere } else { server };
            let (reply, outcome) = oneshot::channel();
            let state = world.read(server, reply)?;
            (Action::Get, Waiting::Read(outcome, state))
        } else {
            let (action, change) = match kind {
                4..9 => {
                    let id = self.next_id;
                    self.next_id += 1;
                    (Action::Put { id, expect }, Change::Put(value(id)))
                }
                _ => (Action::Delete { expect }, Change::Delete),
            };
            let expect = match expect {
                op::Expect::Absent => Expect::Absent,
                op::Expect::Present => Expect::Present,
                op::Expect::Anything => Expect::Anything,
                op::Expect::Version(seen) => Expect::At(Revision(seen.revision)),
            };
            let relaxed = self.relaxed && guard % 2 == 0;
            let durability = if relaxed { Durability::Relaxed } else { Durability::Durable };
            let write = Write {
                collection: pods(),
                key: name(key).into(),
                expect,
                change,
                durability,
                by_move: None,
                within: None,
                epoch: None,
            };
            let (reply, outcome) = oneshot::channel();
            world.write(server, &write, reply)?;
            (action, Waiting::Write(outcome))
        };
        let op =
            Op { client: client as u32, key, begin, end: 0, action, outcome: Outcome::Unknown };
        Some(Call { op, waiting, since: world.now() })
    }

    /// Looks whether a call has its answer; gives it back if not.
    fn look(&mut self, client: usize, mut call: Call, world: &World) -> Option<Call> {
        let key = call.op.key;
        let outcome = match &mut call.waiting {
            Waiting::Write(answer) => match answer.try_recv() {
                Ok(Ok(committed)) => {
                    self.decided += 1;
                    match call.op.action {
                        Action::Put { id, .. } => {
                            let seen = Seen { id, revision: committed.revision.0 };
                            self.known[client].insert(key, seen);
                        }
                        _ => drop(self.known[client].remove(&key)),
                    }
                    Some(Outcome::Done(Some(committed.revision.0)))
                }
                Ok(Err(Refusal::Failed(StoreError::Conflict { .. }))) => {
                    self.known[client].remove(&key);
                    Some(Outcome::Conflict)
                }
                Ok(Err(Refusal::Failed(_))) | Err(TryRecvError::Closed) => Some(Outcome::Unknown),
                Ok(Err(Refusal::NotLeader)) => None,
                Err(TryRecvError::Empty) if call.since + PATIENCE < world.now() => {
                    Some(Outcome::Unknown)
                }
                Err(TryRecvError::Empty) => return Some(call),
            },
            Waiting::Read(answer, state) => match answer.try_recv() {
                Ok(Ok(())) => {
                    let snapshot = state.snapshot(&pods()).expect("a running state is read");
                    let found = snapshot.get(&name(key)).map(|entry| Seen {
                        id: id_of(&entry.value.bytes()),
                        revision: entry.modified.0,
                    });
                    match found {
                        Some(seen) => drop(self.known[client].insert(key, seen)),
                        None => drop(self.known[client].remove(&key)),
                    }
                    Some(Outcome::Found(found))
                }
                Err(TryRecvError::Empty) if world.now() <= call.since + PATIENCE => {
                    return Some(call);
                }
                _ => None,
            },
        };
        if let Some(outcome) = outcome {
            let end = self.moment();
            self.history.push(Op { end, outcome, ..call.op });
        }
        None
    }
}
