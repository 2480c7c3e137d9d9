//! One operation on one key, as its client saw it.

use std::fmt;

/// Names a value: every write of a history writes another one. Never zero.
pub type Id = u64;

/// A value as a client found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    pub id: Id,
    /// The revision of the write that made it.
    pub revision: u64,
}

/// What a write demands of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Expect {
    Absent,
    Present,
    Anything,
    /// The live value is this one, of this revision.
    Version(Seen),
}

/// What the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Get,
    Put { id: Id, expect: Expect },
    Delete { expect: Expect },
}

/// What the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A get's answer.
    Found(Option<Seen>),
    /// The write happened, at this revision if the answer says it.
    Done(Option<u64>),
    /// The write did not happen: the key was not as it demanded.
    Conflict,
    /// No answer: a write may have happened or may happen yet.
    Unknown,
}

/// See the module. Times are of one clock that never goes back, in any unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub client: u32,
    pub key: u32,
    pub begin: u64,
    /// Ignored where the outcome is unknown.
    pub end: u64,
    pub action: Action,
    pub outcome: Outcome,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, key, begin, end, action, outcome } = self;
        match outcome {
            Outcome::Unknown => {
                write!(f, "[{begin}..] client {client} key {key}: {action:?} -> no answer")
            }
            _ => write!(f, "[{begin}..{end}] client {client} key {key}: {action:?} -> {outcome:?}"),
        }
    }
}
