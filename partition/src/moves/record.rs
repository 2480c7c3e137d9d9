//! Moves as values of `meta`: who acts for one, and how it says how far it is.
//!
//! One server acts at a time, and counts up the record's beat. A server that sees no beat for a
//! while, by its own clock, takes over: it writes its name, and the revision of that write is its
//! token. Tokens are what the fences go by, so whoever was late does no harm.

use std::sync::Arc;

use bytes::Bytes;

use super::{MOVES, Move, MoveError, Phase, wall_clock};
use crate::store::{
    Change, Collection, Durability, Expect, ReadAt, Revision, Store, StoreError, Write,
};

/// A record and the revision that it has in `meta`.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) it: Move,
    pub(super) at: Revision,
    /// When this process froze the source.
    pub(super) frozen: Option<tokio::time::Instant>,
}

pub(crate) fn collection() -> Collection {
    Collection::of(MOVES)
}

/// All moves, by name.
pub(super) async fn all(meta: &dyn Store, at: ReadAt) -> Result<Vec<Stored>, StoreError> {
    let snapshot = meta.read(&collection(), at).await?;
    let stored = |(key, entry): (&std::sync::Arc<str>, &crate::snapshot::Entry)| {
        parse(&entry.value.bytes(), key).map(|it| Stored { it, at: entry.modified, frozen: None })
    };
    snapshot.range("", None).map(stored).collect()
}

pub(super) async fn read(meta: &dyn Store, id: &str) -> Result<Option<Stored>, StoreError> {
    let snapshot = meta.read(&collection(), ReadAt::Latest).await?;
    let Some(entry) = snapshot.get(id) else { return Ok(None) };
    parse(&entry.value.bytes(), id).map(|it| Some(Stored { it, at: entry.modified, frozen: None }))
}

fn parse(value: &[u8], id: &str) -> Result<Move, StoreError> {
    serde_json::from_slice(value)
        .map_err(|error| StoreError::Damaged { what: format!("move {id}: {error}") })
}

async fn write(meta: &dyn Store, it: &Move, expect: Expect) -> Result<Revision, StoreError> {
    let value = serde_json::to_vec(it).map_err(|error| StoreError::Unavailable {
        reason: "a move cannot be written down".into(),
        source: Some(error.into()),
    })?;
    let write = Write {
        collection: collection(),
        key: it.id.as_str().into(),
        expect,
        change: Change::Put(Bytes::from(value)),
        durability: Durability::Durable,
        by_move: None,
        within: None,
        epoch: None,
    };
    meta.write(write).await.map(|committed| committed.revision)
}

/// Writes a new one.
pub(crate) async fn create(meta: &dyn Store, it: &Move) -> Result<(), MoveError> {
    match write(meta, it, Expect::Absent).await {
        Ok(_) => Ok(()),
        Err(StoreError::Conflict { .. }) => Err(MoveError::Exists(it.id.clone())),
        Err(error) => Err(error.into()),
    }
}

/// Forgets one that is over.
pub(super) async fn forget(meta: &dyn Store, stored: &Stored) -> Result<(), StoreError> {
    let write = Write {
        collection: collection(),
        key: stored.it.id.as_str().into(),
        expect: Expect::At(stored.at),
        change: Change::Delete,
        durability: Durability::Durable,
        by_move: None,
        within: None,
        epoch: None,
    };
    match meta.write(write).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Asks that a move not happen.
pub(crate) async fn cancel(meta: &dyn Store, id: &str) -> Result<(), MoveError> {
    loop {
        let Some(Stored { mut it, at, .. }) = read(meta, id).await? else {
            return Err(MoveError::Unknown(id.into()));
        };
        if it.cancel || it.phase == Phase::Undoing || it.phase == Phase::Failed {
            return Ok(());
        }
        if !it.phase.can_be_undone() {
            return Err(MoveError::TooLate { id: id.into(), phase: it.phase });
        }
        it.cancel = true;
        match write(meta, &it, Expect::At(at)).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes over a move, as it was read, in the name of a process, which nobody else has. `None` if
/// somebody else was faster.
pub(super) async fn claim(
    meta: &dyn Store,
    stored: &Stored,
    driver: &str,
) -> Result<Option<Stored>, StoreError> {
    let mut it = stored.it.clone();
    it.driver = driver.into();
    it.token = 0;
    it.beat += 1;
    match write(meta, &it, Expect::At(stored.at)).await {
        Ok(at) => {
            it.token = at.0;
            Ok(Some(Stored { it, at, frozen: None }))
        }
        Err(StoreError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Stored {
    /// Writes down a change of a move that this server acts for. What others may change is kept.
    pub(super) async fn update(
        &mut self,
        meta: Arc<dyn Store>,
        change: impl Fn(&mut Move),
    ) -> Result<(), MoveError> {
        loop {
            let mut next = self.it.clone();
            change(&mut next);
            next.beat += 1;
            if next.phase != self.it.phase {
                next.transition = wall_clock();
            }
            match write(&*meta, &next, Expect::At(self.at)).await {
                Ok(at) => {
                    (self.it, self.at) = (next, at);
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let lost = || crate::fences::FenceError { move_id: self.it.id.clone() };
            let found = read(&*meta, &self.it.id).await?.ok_or_else(lost)?;
            // Only whether it is to be cancelled is anybody else's to change.
            if found.it.driver != self.it.driver {
                return Err(lost().into());
            }
            self.it.cancel = found.it.cancel;
            self.at = found.at;
        }
    }
}
