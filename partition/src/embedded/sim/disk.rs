//! What a server's disk holds of one group, and what is left of it after a crash.

use std::collections::VecDeque;

use rand::{Rng as _, rngs::StdRng};

use crate::{
    embedded::{
        checkpoint::Description, member::Member, raft_log::Position, replay::Replay, trace,
    },
    ring::RingLimits,
    state::{Image, State},
    wal::{Piece, frame},
};

/// See the module.
#[derive(Default)]
pub(super) struct Disk {
    checkpoint: Option<(Description, Image)>,
    durable: Vec<Vec<u8>>,
    /// Written but not flushed, oldest first.
    pending: VecDeque<Vec<u8>>,
    /// Pieces that were ever written.
    written: u64,
}

/// A member as it is after a start, with the revision up to which some may have been lost.
pub(super) struct Started {
    pub(super) member: Member,
    pub(super) state: std::sync::Arc<State>,
    pub(super) reserved: u64,
}

impl Disk {
    /// Writes a piece and gives it a number.
    pub(super) fn write(&mut self, piece: &Piece) -> u64 {
        self.pending.push_back(piece.body().to_vec());
        self.written += 1;
        self.written
    }

    /// The piece of that number, and those before it, are durable now.
    pub(super) fn flush_to(&mut self, number: u64) {
        let later = (self.written - number) as usize;
        let count = self.pending.len().saturating_sub(later);
        self.durable.extend(self.pending.drain(..count));
    }

    /// Everything that was written is durable now.
    pub(super) fn flush(&mut self) {
        self.durable.extend(self.pending.drain(..));
    }

    /// Power goes. Of what was not flushed any part from the beginning on may be there.
    pub(super) fn crash(&mut self, random: &mut StdRng) {
        let kept = random.random_range(0..=self.pending.len());
        self.durable.extend(self.pending.drain(..kept));
        self.pending.clear();
    }

    /// Writes the state down. What the log has before it may be read again all the same.
    pub(super) fn checkpoint(&mut self, description: Description, image: Image) {
        self.checkpoint = Some((description, image));
    }

    /// Reads everything back, as a process does when it starts.
    pub(super) fn start(&self, id: u64, voters: &[u64], life: u32) -> Started {
        let mut replay = Replay::new(
            "sim",
            voters,
            self.checkpoint.clone(),
            RingLimits::default(),
            std::sync::Arc::default(),
        );
        for body in &self.durable {
            for record in frame::records(body) {
                let record = record.expect("a record that was written is read");
                if let Err(error) = replay.visit(record) {
                    panic!("member {id} cannot read its log: {error}");
                }
            }
        }
        let (state, log, reserved) = match replay.finish() {
            Ok(parts) => parts,
            Err(error) => panic!("member {id} cannot read its log: {error}"),
        };
        let logger = trace::logger("sim");
        let member = Member::new(life, id, state.clone(), log, &logger).expect("a member starts");
        Started { member, state, reserved }
    }
}

/// The description of a state at `at`.
pub(super) fn describe(at: Position, member: &Member) -> Description {
    Description::new(at, member.members(), 1)
}
