//! The table of fences as it is stored, and every way in which it changes.
//!
//! All of it is pure: whoever changes a stored table reads it, changes it here, and writes it
//! back guarded by its revision.

use serde::{Deserialize, Serialize};

use crate::{map::Scope, store::Revision};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The highest token of a move that ended here.
    #[serde(default)]
    pub latest: u64,
    /// Oldest first; where scopes overlap the newest counts.
    #[serde(default)]
    pub fences: Vec<Fence>,
}

/// What holds for one scope because of one move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fence {
    /// The move's name.
    #[serde(rename = "move")]
    pub move_id: String,
    pub scope: Scope,
    pub state: FenceState,
    /// Of who acts for the move.
    pub token: u64,
    /// The revision at which the state began; 0 in a stored table stands for the revision at
    /// which the table was written.
    #[serde(default)]
    pub since: Revision,
    /// The partition at the move's other end.
    pub other: String,
    /// Where closed: the other end's revision at which it opened there, once it did. Where open:
    /// the other end's revision at which it closed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_at: Option<Revision>,
    /// Whether something was hidden, or shown again, by this: whoever reads everything must begin
    /// anew then.
    #[serde(default)]
    pub moved: bool,
}

/// What a fence lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceState {
    /// Everything: a move is being prepared.
    Leaving,
    /// Reads only.
    Frozen,
    /// Nothing: it is elsewhere.
    Closed,
    /// Nothing yet: it is being copied here.
    Importing,
    /// Everything, but no history from before it was here.
    Open,
}

impl FenceState {
    /// Whether nobody but the move may see what is in the scope.
    pub(crate) fn hides(self) -> bool {
        matches!(self, Self::Closed | Self::Importing)
    }

    pub(super) fn takes_writes(self) -> bool {
        matches!(self, Self::Leaving | Self::Open)
    }
}

/// Why a table was not changed: somebody else acts for the move now, or it is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another server took over move {move_id}")]
pub struct FenceError {
    pub move_id: String,
}

impl Table {
    /// Fills in the revisions that were left to that of the write.
    pub(super) fn settle(&mut self, written: Revision) {
        for fence in &mut self.fences {
            if fence.since == Revision(0) {
                fence.since = written;
            }
        }
    }

    /// The fence of a move.
    pub fn of(&self, move_id: &str) -> Option<&Fence> {
        self.fences.iter().find(|fence| fence.move_id == move_id)
    }

    /// Takes over a move with a newer token, or begins one with the given fence.
    pub fn claim(&mut self, first: Fence) -> Result<(), FenceError> {
        let (latest, token) = (self.latest, first.token);
        let error = || FenceError { move_id: first.move_id.clone() };
        match self.fences.iter_mut().find(|fence| fence.move_id == first.move_id) {
            Some(fence) if token < fence.token => Err(error()),
            Some(fence) => {
                fence.token = token;
                Ok(())
            }
            None if token <= latest => Err(error()),
            None => {
                self.fences.push(first);
                Ok(())
            }
        }
    }

    /// Changes the fence of a move. `token` must be the one that it was claimed with.
    pub fn change(
        &mut self,
        move_id: &str,
        token: u64,
        change: impl FnOnce(&mut Fence),
    ) -> Result<(), FenceError> {
        let found =
            self.fences.iter_mut().find(|fence| fence.move_id == move_id && fence.token == token);
        let fence = found.ok_or_else(|| FenceError { move_id: move_id.into() })?;
        let before = fence.state;
        change(fence);
        if fence.state != before {
            fence.since = Revision(0);
        }
        Ok(())
    }

    /// Ends a move that did not happen: nothing of it stays but its token. What was closed opens
    /// again, and is seen as if it had just come.
    pub fn abandon(&mut self, move_id: &str, token: u64) -> Result<(), FenceError> {
        if self.of(move_id).is_some_and(|fence| token < fence.token) {
            return Err(FenceError { move_id: move_id.into() });
        }
        for fence in &mut self.fences {
            if fence.move_id == move_id && fence.state == FenceState::Closed {
                fence.state = FenceState::Open;
                fence.since = Revision(0);
                fence.other_at = None;
            }
            // What stays of it is nobody's with an older token.
            if fence.move_id == move_id {
                fence.token = token;
            }
        }
        let keep = |fence: &Fence| fence.state == FenceState::Open;
        self.fences.retain(|fence| fence.move_id != move_id || keep(fence));
        self.latest = self.latest.max(token);
        Ok(())
    }

    /// Ends a move that happened.
    pub fn finish(&mut self, move_id: &str, token: u64) -> Result<(), FenceError> {
        self.change(move_id, token, |_| {})?;
        self.latest = self.latest.max(token);
        Ok(())
    }

    /// Drops what no longer says anything: fences that newer ones cover, and the oldest ones if
    /// they are open and all history is `compacted` since.
    pub fn tidy(&mut self, compacted: Revision) {
        let mut kept: Vec<Fence> = Vec::new();
        while let Some(fence) = self.fences.pop() {
            let over = fence.token <= self.latest;
            if !(over && kept.iter().any(|newer| newer.scope.covers(&fence.scope))) {
                kept.push(fence);
            }
        }
        kept.reverse();
        let mut at = 0;
        while at < kept.len() {
            let fence = &kept[at];
            let silent = fence.state == FenceState::Open
                && fence.token <= self.latest
                && fence.since <= compacted
                && !kept[..at].iter().any(|older| older.scope.overlaps(&fence.scope));
            if silent {
                kept.remove(at);
            } else {
                at += 1;
            }
        }
        self.fences = kept;
    }
}
