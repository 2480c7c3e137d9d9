//! Moving a tenant or a range of slots to another partition, while clients read and write.
//!
//! ```text
//! pending      the record is written                                             can be
//! copying      in the map's moves; source: leaving, target: importing            undone
//! draining     source: frozen, then closed
//! flipping     the map says target; then target: open, source: closed for good   cannot be
//! cleaning     the copy in the source is deleted                                 undone
//! done
//! ```
//!
//! A move is a value of collection `insula/moves` in `meta`. Every step is derived from it and
//! may be done again, so that any server can take over from one that died; `record` says who
//! acts and how those who were late are kept out.
//!
//! # Invariants
//!
//! * Until the map is flipped the source has everything, and after it the target has.
//! * Between freezing the source and opening the target nobody writes the scope.
//! * Revisions in the target are higher than whatever the source had told anybody.

mod copy;
mod driver;
mod plan;
mod record;
#[cfg(test)]
mod sim;
mod tables;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::{
    fences::FenceError,
    map::{MapError, Scope},
    store::{ReadAt, Revision, Store, StoreError},
};

pub use self::plan::{PlannedMove, plan, plan_filling};
pub(crate) use self::{
    driver::{new, run},
    record::{cancel, collection, create},
};

/// The collection of all moves.
pub const MOVES: &str = "insula/moves";

/// How far a move is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits for its turn.
    #[default]
    Pending,
    /// Copies while clients write.
    Copying,
    /// Writes wait; the last changes are copied.
    Draining,
    /// The map is being changed, and the target opened. From here on there is no way back.
    Flipping,
    /// The source's copy is being deleted.
    Cleaning,
    Done,
    /// What was copied is being deleted again.
    Undoing,
    /// It did not happen: it was cancelled, or could not be done.
    Failed,
}

impl Phase {
    /// Whether nothing more happens.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }

    /// Whether it can still be undone.
    pub fn can_be_undone(self) -> bool {
        self < Self::Flipping
    }
}

/// A move, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Move {
    /// Its name, a DNS label.
    pub id: String,
    pub scope: Scope,
    pub from: String,
    pub to: String,
    #[serde(default)]
    pub phase: Phase,
    /// Somebody asked that it not happen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    /// The server that acts for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// What whoever acts shows to the fences; 0 stands for the revision of the record.
    #[serde(default)]
    pub token: u64,
    /// Counts up while somebody acts.
    #[serde(default)]
    pub beat: u64,
    /// Objects copied so far, and how many there were when they were counted.
    #[serde(default)]
    pub copied: u64,
    #[serde(default)]
    pub total: u64,
    /// When it was asked for, and when its phase last changed: milliseconds since 1970, to be
    /// shown to people.
    #[serde(default)]
    pub started: u64,
    #[serde(default)]
    pub transition: u64,
    /// How long writes had to wait, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<u64>,
    /// Why it failed, or what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The source's revision at which it closed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Revision>,
}

/// Why a move was not started, cancelled or finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("storage failed")]
    Store(#[from] StoreError),
    /// Somebody else acts for it now.
    #[error(transparent)]
    Fence(#[from] FenceError),
    #[error("there is no move {0}")]
    Unknown(String),
    #[error("move {0} is there already")]
    Exists(String),
    #[error("{0:?} cannot be the name of a move")]
    Name(String),
    #[error("move {id} is {phase:?} and can no longer be cancelled")]
    TooLate { id: String, phase: Phase },
    #[error("move {id} failed: {message}")]
    Failed { id: String, message: String },
    /// Only of the objects that `message` names; the move was undone.
    #[error("{0}")]
    Impossible(String),
}

impl From<crate::partitions::ChangeError> for MoveError {
    fn from(error: crate::partitions::ChangeError) -> Self {
        match error {
            crate::partitions::ChangeError::Map(error) => Self::Map(error),
            crate::partitions::ChangeError::Store(error) => Self::Store(error),
        }
    }
}

/// All moves with their revisions in `meta`.
pub(crate) async fn all(meta: &dyn Store) -> Result<Vec<(Move, Revision)>, StoreError> {
    let all = record::all(meta, ReadAt::Latest).await?;
    Ok(all.into_iter().map(|stored| (stored.it, stored.at)).collect())
}

/// One move.
pub(crate) async fn read(meta: &dyn Store, id: &str) -> Result<Option<Move>, StoreError> {
    Ok(record::read(meta, id).await?.map(|stored| stored.it))
}

/// Milliseconds since 1970. Only ever shown, never compared.
pub(crate) fn wall_clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_millis() as u64)
}
