//! Which parts of a partition may not be written or read now, because they are moving.
//!
//! A partition's fences are one table, kept as an ordinary value of the partition itself:
//! collection `insula/fences`, key `table`. So it is replicated, followed, checkpointed and
//! backed up like everything else, and whoever has applied a change of it has applied everything
//! before it. The state interprets the table when it is applied and asks it on each write.
//!
//! | state | who writes | who reads | where |
//! |---|---|---|---|
//! | leaving | everybody | everybody | source |
//! | frozen | nobody | everybody | source |
//! | closed | the move, to clean up | nobody | source |
//! | importing | the move, to copy | nobody | target |
//! | open | everybody | everybody, history since the fence only | target |
//!
//! # Invariants
//!
//! * Of the fences whose scope contains a key the newest one counts.
//! * What a move writes is no change: no watcher hears of it. Nobody may see the scope then.
//! * Who acts for a move shows a token; a higher one is newer. A move's fences follow the newest
//!   token only, and a move that ended leaves its token in [`Table::latest`], so that whoever
//!   acted for it and was late can put up no fence again.
//! * A closed fence stays: whoever goes by an old map must hear that the scope is not here, and
//!   never that it is empty.
//!
//! # For stores that copy a partition
//!
//! The entries of a collection must never be newer than the table that is served with them: a
//! copy follows `insula/fences` too, and applies it no later than changes of higher revisions.

mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

pub use self::table::{Fence, FenceError, FenceState, Table};
use crate::{
    map::{Scope, Shard, ShardKey},
    snapshot::Snapshot,
    store::{Collection, Revision, StoreError},
};

/// The collection that holds a partition's table.
pub const FENCES: &str = "insula/fences";

/// The table's key in [`FENCES`].
pub const TABLE: &str = "table";

/// Collections of the partition's own values begin so; they belong to no tenant and never move.
pub const OWN: &str = "insula/";

/// The collection that holds a partition's table.
pub fn collection() -> Collection {
    Collection::of(FENCES)
}

/// A table, ready to be asked. Immutable: a change of the table makes a new one.
#[derive(Debug, Default)]
pub struct Fences {
    table: Table,
    /// The newest fence of each tenant that has one of its own.
    tenants: HashMap<String, usize>,
    /// Fences of slot ranges, newest first.
    ranges: Vec<usize>,
    /// Whether some scope is hidden from those who read everything.
    hides: bool,
    /// Whoever reads everything knows no history below.
    floor: Revision,
    /// Why the table cannot be read. Then nothing is answered.
    damaged: Option<String>,
    /// The revision at which the table was written.
    written: Revision,
}

/// Without any fence.
static NONE: LazyLock<Arc<Fences>> = LazyLock::new(Arc::default);

impl Fences {
    /// No fences.
    pub fn none() -> Arc<Self> {
        NONE.clone()
    }

    /// Reads the table as it was stored at revision `written`.
    pub(crate) fn parse(value: &[u8], written: Revision) -> Self {
        match serde_json::from_slice::<Table>(value) {
            Ok(table) => Self::new(table, written),
            Err(error) => {
                let damaged = Some(format!("the table of fences: {error}"));
                Self { damaged, written, ..Self::default() }
            }
        }
    }

    fn new(mut table: Table, written: Revision) -> Self {
        table.settle(written);
        let mut fences = Self { written, ..Self::default() };
        for (at, fence) in table.fences.iter().enumerate() {
            match &fence.scope {
                Scope::Tenant(name) => drop(fences.tenants.insert(name.clone(), at)),
                Scope::Slots(_) => fences.ranges.insert(0, at),
            }
            fences.hides |= fence.state.hides();
            if fence.moved {
                fences.floor = fences.floor.max(fence.since);
            }
        }
        fences.table = table;
        fences
    }

    /// The table as it stands, every `since` filled in.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The revision at which the table was written; 0 if it never was.
    pub fn written(&self) -> Revision {
        self.written
    }

    /// Whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.table.fences.is_empty() && self.damaged.is_none()
    }

    /// Whether some scope is hidden from those who read everything.
    pub fn hides_some(&self) -> bool {
        self.hides
    }

    /// The fence that counts for a shard.
    fn find(&self, shard: Shard<'_>) -> Option<&Fence> {
        let tenant = match shard {
            Shard::Tenant(name) => self.tenants.get(name).copied(),
            _ => None,
        };
        let contains = |at: &&usize| self.table.fences[**at].scope.contains(shard);
        let range = match self.ranges.is_empty() {
            true => None,
            false => self.ranges.iter().find(contains).copied(),
        };
        tenant.max(range).map(|at| &self.table.fences[at])
    }

    /// Whether a write may happen. `by_move` is the token of the move that writes, if one does.
    pub fn check_write(
        &self,
        collection: &str,
        key: &str,
        by_move: Option<u64>,
    ) -> Result<(), StoreError> {
        self.check_readable()?;
        if collection.starts_with(OWN) {
            return Ok(());
        }
        let shard = Shard::of(collection, key);
        let fence = self.find(shard);
        let allowed = match (fence, by_move) {
            (None, by_move) => by_move.is_none(),
            (Some(fence), None) => fence.state.takes_writes(),
            (Some(fence), Some(token)) => fence.state.hides() && fence.token == token,
        };
        if allowed { Ok(()) } else { Err(moving(shard)) }
    }

    /// Whether changes of the key are a move's, which no watcher hears of.
    pub(crate) fn is_quiet(&self, collection: &str, key: &str) -> bool {
        self.hides && self.hides(collection, key)
    }

    /// Whether those who read everything must not see the key.
    pub fn hides(&self, collection: &str, key: &str) -> bool {
        self.hides
            && !collection.starts_with(OWN)
            && self.find(Shard::of(collection, key)).is_some_and(|fence| fence.state.hides())
    }

    /// Whether what belongs to `key` can be read as it was at `revision`.
    pub fn check_read(&self, key: &ShardKey, revision: Revision) -> Result<(), StoreError> {
        self.check_readable()?;
        if self.table.fences.is_empty() {
            return Ok(());
        }
        let shard = key.as_shard();
        match self.find(shard) {
            Some(fence) if fence.state.hides() => Err(moving(shard)),
            Some(fence) if fence.state == FenceState::Open && revision < fence.since => {
                Err(StoreError::Compacted { requested: revision, oldest: fence.since })
            }
            _ => Ok(()),
        }
    }

    /// Whether everything that is not hidden can be read as it was at `revision`.
    pub fn check_history(&self, revision: Revision) -> Result<(), StoreError> {
        self.check_readable()?;
        if revision < self.floor {
            return Err(StoreError::Compacted { requested: revision, oldest: self.floor });
        }
        Ok(())
    }

    /// Whether a watcher that was told everything up to `after` may go on.
    pub fn check_watch(&self, key: Option<&ShardKey>, after: Revision) -> Result<(), StoreError> {
        let Some(key) = key else { return self.check_history(after) };
        match self.check_read(key, after) {
            // It was let in when the scope was here. Now its client must look for it again.
            Err(StoreError::Moving { .. }) => {
                Err(StoreError::Compacted { requested: after, oldest: self.written })
            }
            outcome => outcome,
        }
    }

    fn check_readable(&self) -> Result<(), StoreError> {
        match &self.damaged {
            Some(what) => Err(StoreError::Damaged { what: what.clone() }),
            None => Ok(()),
        }
    }
}

fn moving(shard: Shard<'_>) -> StoreError {
    StoreError::Moving { what: shard.to_string() }
}

/// Whether snapshots of several partitions, by name, can be read as one: what moved between two
/// of them is in exactly one. On [`StoreError::Moving`] take all of them again.
pub fn check_together<'a>(
    snapshots: impl IntoIterator<Item = (&'a str, &'a Snapshot)>,
) -> Result<(), StoreError> {
    let snapshots: BTreeMap<_, _> = snapshots.into_iter().collect();
    for snapshot in snapshots.values().filter(|snapshot| !snapshot.fences().is_empty()) {
        for fence in &snapshot.fences().table().fences {
            if !fence.moved || !matches!(fence.state, FenceState::Closed | FenceState::Open) {
                continue;
            }
            let Some(other) = snapshots.get(fence.other.as_str()) else { continue };
            // Closed and not yet known to be open over there: it is on its way.
            let seen = match fence.other_at {
                Some(at) => at <= other.revision(),
                // It never left.
                None => fence.state == FenceState::Open,
            };
            if !seen {
                return Err(StoreError::Moving { what: fence.scope.to_string() });
            }
        }
    }
    Ok(())
}
