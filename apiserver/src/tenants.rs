//! Keeps tenants where they ask to live: starts the moves that `spec.partition` asks for, says in
//! `status.partition` where a tenant is, and tells of moves by events.
//!
//! Every server runs it; what one did the others find done. A move has a name made from what asks
//! for it, so it is started once, and one that failed is not tried again before the tenant's
//! specification changes.

pub(crate) mod beginning;
pub(crate) mod ending;

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_api::{names::TenantName, object, time};
use insula_partition::{
    map::{PartitionMap, Scope, Shard, ShardKey},
    moves::{MOVES, Move, MoveError, Phase},
    partitions::META,
    snapshot::{Entry, Snapshot},
    store::{Change, Collection, Durability, Expect, ReadAt, StoreError, Write},
    watch::{Event, Watcher},
};
use serde_json::{Value, json};

use crate::{Server, error::chain, events::Occurrence, registry, views};

/// How often it looks when nothing seems to have changed.
const LOOK: Duration = Duration::from_secs(10);

/// Runs until the server ends.
pub(crate) async fn follow(server: Arc<Server>) {
    let shutdown = server.shutdown.clone();
    let started = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    let mut follower = Follower {
        server,
        started,
        seen: None,
        phases: HashMap::new(),
        tenants: None,
        moves: None,
        gone: Vec::new(),
    };
    shutdown.run_until_cancelled(follower.run()).await;
}

struct Follower {
    server: Arc<Server>,
    /// The map's epoch and the tenants that were looked at last.
    seen: Option<(u64, Snapshot)>,
    /// When this server began, in milliseconds: what was before then was told before.
    started: u64,
    /// The phases that were told of.
    phases: HashMap<String, Phase>,
    tenants: Option<Watcher>,
    moves: Option<Watcher>,
    /// Tenants that are gone, and may have left something that was written late.
    gone: Vec<TenantName>,
}

impl Follower {
    async fn run(&mut self) {
        let mut epochs = self.server.partitions.subscribe();
        loop {
            if let Err(error) = self.pass().await {
                tracing::debug!(error = chain(&error), "tenants are looked at again later");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            self.watch();
            tokio::select! {
                events = next(&mut self.tenants) => match events {
                    Ok(events) => self.gone.extend(events.iter().filter_map(|it| gone(it))),
                    Err(_) => self.tenants = None,
                },
                events = next(&mut self.moves) => if events.is_err() { self.moves = None },
                _ = epochs.changed() => (),
                () = tokio::time::sleep(LOOK) => (),
            }
        }
    }

    /// Begins to watch what is not watched yet.
    fn watch(&mut self) {
        let partitions = &self.server.partitions;
        if self.tenants.is_none() {
            let store = partitions.place(&ShardKey::System).store;
            let collection = Collection::new("insula.io", "tenants");
            self.tenants = store.watch(&collection, store.progress()).ok();
        }
        if self.moves.is_none()
            && let (Some(store), Some(moves)) = (partitions.store(META), Collection::parse(MOVES))
        {
            self.moves = store.watch(&moves, store.progress()).ok();
        }
    }

    async fn pass(&mut self) -> Result<(), StoreError> {
        self.tell_of_moves().await?;
        let place = self.server.partitions.place(&ShardKey::System);
        if !place.local {
            // A server that has the tenants does it.
            return Ok(());
        }
        let collection = Collection::new("insula.io", "tenants");
        while let Some(tenant) = self.gone.last() {
            let now = place.store.read(&collection, ReadAt::Latest).await?;
            let key = registry::key(&TenantName::system(), "", tenant.as_str());
            // One of that name that has come since has begun anew.
            if now.get(&key).is_none()
                && let Err(error) = ending::sweep(&self.server, tenant).await
            {
                tracing::debug!(%tenant, error = chain(&error), "not swept yet");
                break;
            }
            self.gone.pop();
        }
        let map = self.server.partitions.map();
        let tenants = place.store.read(&collection, ReadAt::Any).await?;
        // While many are made, each is looked at once, and not all for each.
        let since = self.seen.as_ref().filter(|it| it.0 == map.epoch()).map(|(_, seen)| seen);
        for (key, entry) in tenants.changed_since(since) {
            let Ok(it) = serde_json::from_slice::<Value>(&entry.value.bytes()) else { continue };
            self.start_move(&map, &it).await?;
            self.write_status(&map, key, entry, it).await?;
        }
        self.seen = Some((map.epoch(), tenants));
        Ok(())
    }

    /// Starts the move that a tenant asks for, if there is none.
    async fn start_move(&self, map: &PartitionMap, it: &Value) -> Result<(), StoreError> {
        let (name, wanted) = (object::name(it), object::text(it, &["spec", "partition"]));
        let shard = Shard::Tenant(name);
        if object::is_deleting(it) {
            return Ok(());
        }
        if map.owner_of(shard) == wanted && !map.pins().contains_key(name) && name != "system" {
            // It is there by its slot, which may move without it.
            let pinned = self.server.partitions.change_map(|map| match map.owner_of(shard) {
                owner if owner == wanted => map.with_pin(name, Some(wanted)),
                _ => Ok(map.clone()),
            });
            if let Err(error) = pinned.await {
                tracing::debug!(tenant = name, error = chain(&error), "not pinned");
            }
            return Ok(());
        }
        let moves = !wanted.is_empty()
            && name != "system"
            && map.owner_of(shard) != wanted
            && map.move_of(shard).is_none()
            && map.info(wanted).is_some_and(|info| !info.draining);
        if !moves {
            return Ok(());
        }
        let generation = object::metadata(it).get("generation").and_then(Value::as_i64);
        let asks = format!("{}/{wanted}/{}", object::uid(it), generation.unwrap_or_default());
        let hash = xxhash_rust::xxh3::xxh3_64(asks.as_bytes());
        let short: String = name.chars().take(40).collect();
        let id = format!("{short}-{hash:016x}");
        let started =
            self.server.partitions.start_move(Some(&id), Scope::Tenant(name.into()), wanted).await;
        match started {
            Ok(_) => tracing::info!(tenant = name, to = wanted, id, "a tenant moves"),
            Err(MoveError::Exists(_)) => (),
            Err(MoveError::Store(error)) => return Err(error),
            Err(error) => {
                tracing::warn!(tenant = name, to = wanted, error = chain(&error), "cannot move");
            }
        }
        Ok(())
    }

    /// Writes where the tenant lives into its status.
    async fn write_status(
        &self,
        map: &PartitionMap,
        key: &Arc<str>,
        entry: &Entry,
        mut it: Value,
    ) -> Result<(), StoreError> {
        let name = object::name(&it).to_owned();
        let key_of = match name.as_str() {
            "system" => ShardKey::System,
            name => ShardKey::Tenant(name.to_owned()),
        };
        let owner = map.owner(&key_of);
        if object::text(&it, &["status", "partition"]) == owner {
            return Ok(());
        }
        it["status"]["partition"] = owner.into();
        let write = Write::durable(
            Collection::new("insula.io", "tenants"),
            key.clone(),
            Expect::At(entry.modified),
            Change::Put(object::encode(&it).into()),
        );
        match self.server.partitions.place(&ShardKey::System).store.write(write).await {
            // Whoever changed it wakes this again.
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// An event for each phase that a move driven here has come to.
    async fn tell_of_moves(&mut self) -> Result<(), StoreError> {
        let moves = self.server.partitions.moves().await?;
        let own = self.server.partitions.server_name().to_owned();
        for (it, _) in &moves {
            let known = self.phases.insert(it.id.clone(), it.phase);
            let is_news = known != Some(it.phase) && self.started <= it.transition;
            if is_news && views::driver(it) == own {
                self.tell(it).await;
            }
        }
        self.phases.retain(|id, _| moves.iter().any(|(it, _)| it.id == *id));
        Ok(())
    }

    async fn tell(&self, it: &Move) {
        let Some(served) = self.server.registry.get("", "v1", "events") else { return };
        let system = TenantName::system();
        let name = format!("{}.{:016x}", it.id, it.transition ^ ((it.phase as u64) << 56));
        let message = match (it.phase, it.message.is_empty()) {
            (Phase::Done, _) => format!(
                "moved {} from {} to {}; writes waited {} ms",
                it.scope,
                it.from,
                it.to,
                it.pause.unwrap_or_default()
            ),
            (_, true) => format!("moving {} from {} to {}", it.scope, it.from, it.to),
            (_, false) => format!("{}: {}", it.scope, it.message),
        };
        let occurrence = Occurrence {
            about: json!({
                "apiVersion": "insula.io/v1", "kind": "PartitionMove", "name": it.id,
                "uid": views::uid("PartitionMove", self.server.partitions.map().cluster(), &it.id),
            }),
            is_good: it.phase != Phase::Failed,
            reason: &views::phase(it),
            message: &message,
            component: "insula-apiserver",
            instance: views::driver(it),
        };
        let mut event = occurrence.event_named(&name);
        let metadata = object::metadata_mut(&mut event);
        metadata.insert("tenant".into(), "system".into());
        metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
        metadata.insert("creationTimestamp".into(), time::now().into());
        let (_, store) = served.place(&self.server.partitions, &system, "default", &name);
        let write = Write {
            collection: served.collection.clone(),
            key: registry::key(&system, "default", &name).into(),
            expect: Expect::Absent,
            change: Change::Put(object::encode(&event).into()),
            durability: Durability::Relaxed,
            by_move: None,
            within: None,
            epoch: None,
        };
        if let Err(error) = store.write(write).await {
            tracing::debug!(error = chain(&error), "an event was not written");
        }
    }
}

/// The tenant that ended, if that is what happened.
fn gone(event: &Event) -> Option<TenantName> {
    let name = event.key.rsplit('/').next().filter(|_| event.deleted)?;
    TenantName::parse(name).ok()
}

/// Waits for changes.
async fn next(watcher: &mut Option<Watcher>) -> Result<Vec<Arc<Event>>, StoreError> {
    match watcher {
        Some(watcher) => watcher.next().await,
        None => std::future::pending().await,
    }
}
