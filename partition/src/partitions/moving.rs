//! Moves as callers of [`Partitions`] see them.

use std::time::Duration;

use super::Partitions;
use crate::{
    map::{MapError, Moving, Scope, Shard, is_name},
    moves::{self, Move, MoveError, Phase},
    store::{Revision, StoreError},
};

/// How long a pin waits for what the tenant has to be moved.
const PIN_WAIT: Duration = Duration::from_secs(30);

impl Partitions {
    /// All moves that are under way, and the last ones that are over, with their revisions in
    /// [`super::META`]. Changes are heard by watching collection [`moves::MOVES`] there.
    pub async fn moves(&self) -> Result<Vec<(Move, Revision)>, StoreError> {
        moves::all(&*self.shared.meta()).await
    }

    /// Begins to move `scope` to partition `to`, under the name `id`, or one that is made up.
    pub async fn start_move(
        &self,
        id: Option<&str>,
        scope: Scope,
        to: &str,
    ) -> Result<Move, MoveError> {
        let map = self.shared.change_map(|map| Ok(map.clone())).await?;
        let (scope, from) = match scope {
            Scope::Tenant(name) => {
                let from = map.owner_of(Shard::Tenant(&name)).to_owned();
                (Scope::Tenant(name), from)
            }
            Scope::Slots(slots) => {
                let (first, last) = (slots.first, slots.last);
                if !slots.range().is_valid() {
                    return Err(MapError::Range { first, last }.into());
                }
                let ranges = map.ranges();
                let owner = ranges.iter().find(|(range, _)| range.contains(first));
                let from = owner.map(|(_, name)| (*name).to_owned()).unwrap_or_default();
                (map.slots_scope(first, last), from)
            }
        };
        let moving = Moving::new(scope.clone(), from.clone(), to);
        let id = match id {
            Some(id) if is_name(id) => id.to_owned(),
            Some(id) => return Err(MoveError::Name(id.into())),
            None => {
                let lot = uuid::Uuid::new_v4().simple().to_string();
                format!("move-{}", &lot[..10])
            }
        };
        map.with_move(&id, moving)?;
        let it = moves::new(id, moves::PlannedMove { scope, from, to: to.into() });
        moves::create(&*self.shared.meta(), &it).await?;
        Ok(it)
    }

    /// Asks that a move not happen. What was copied is deleted again.
    pub async fn cancel_move(&self, id: &str) -> Result<(), MoveError> {
        moves::cancel(&*self.shared.meta(), id).await
    }

    /// Waits until a move has happened: the tenant is served from where it went.
    pub async fn wait_for_move(&self, id: &str) -> Result<Move, MoveError> {
        let meta = self.shared.meta();
        loop {
            let known = meta.progress();
            let found = moves::read(&*meta, id).await?;
            let it = found.ok_or_else(|| MoveError::Unknown(id.into()))?;
            match it.phase {
                Phase::Cleaning | Phase::Done => return Ok(it),
                Phase::Failed => {
                    let message = it.message;
                    return Err(MoveError::Failed { id: id.into(), message });
                }
                _ => {}
            }
            let mut watcher = meta.watch(&moves::collection(), known)?;
            // Woken now and then, because the watch may end up behind.
            let _ = tokio::time::timeout(Duration::from_secs(1), watcher.next()).await;
        }
    }

    /// Has a tenant live on `partition`, whatever happens to its slot; `None` leaves it to the
    /// slot. What it has is moved, which is waited for.
    pub async fn pin(&self, tenant: &str, partition: Option<&str>) -> Result<(), MoveError> {
        let map = self.shared.change_map(|map| Ok(map.clone())).await?;
        let shard = Shard::Tenant(tenant);
        let to = match partition {
            Some(name) => {
                map.with_pin(tenant, Some(name))?;
                name
            }
            None => map.owner_of_slot(shard.slot()),
        };
        if map.owner_of(shard) != to {
            let started = self.start_move(None, Scope::Tenant(tenant.into()), to).await?;
            let waiting = self.wait_for_move(&started.id);
            let moved = tokio::time::timeout(PIN_WAIT, waiting).await.map_err(|_| {
                let reason = format!("{} still goes on", started.id);
                StoreError::Unavailable { reason, source: None }
            })?;
            if let Err(error) = moved {
                // Somebody else may have moved it there meanwhile.
                let map = self.shared.change_map(|map| Ok(map.clone())).await?;
                if map.owner_of(shard) != to {
                    return Err(error);
                }
            }
        }
        let pinned = self.change_map(|map| match map.owner_of(shard) == to {
            true => map.with_pin(tenant, partition),
            false => Ok(map.clone()),
        });
        pinned.await?;
        Ok(())
    }
}
