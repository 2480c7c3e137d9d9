//! Moves of tenants and slots between partitions: creating one starts it, deleting one cancels
//! it, or forgets it once it is over.

use insula_api::object;
use insula_partition::{
    map::{MapError, Moving, PartitionMap, Scope, ShardKey, Slot},
    moves::{MOVES, Move, MoveError, Phase},
    partitions::{META, Partitions},
    store::{Change, Collection, Expect, Revision, StoreError, Write},
};
use serde_json::{Value, json};

use super::{Made, base, invalid};
use crate::error::{ApiError, Result};

const COUNTERS: &[&str] = &["copied", "total", "progress"];

/// All moves that are under way, and those that were not yet forgotten.
pub(super) async fn make(partitions: &Partitions) -> std::result::Result<Vec<Made>, StoreError> {
    let map = partitions.map();
    let moves = partitions.moves().await?;
    // Whoever cancelled a move has deleted its object, which is gone when the move is undone.
    let shown = moves.iter().filter(|(it, _)| !(it.cancel && it.phase == Phase::Failed));
    let made = shown.map(|(it, _)| Made {
        name: it.id.clone(),
        object: one(&map, it),
        counters: COUNTERS,
    });
    Ok(made.collect())
}

/// The phase as clients read it.
pub(crate) fn phase(it: &Move) -> String {
    let text = format!("{:?}", it.phase);
    match it.cancel && it.phase.can_be_undone() {
        true => "Cancelling".into(),
        false => text,
    }
}

/// The server that acts for it: a process of a server is `NAME/..`.
pub(crate) fn driver(it: &Move) -> &str {
    it.driver.split('/').next().unwrap_or_default()
}

fn one(map: &PartitionMap, it: &Move) -> Value {
    let progress = match (it.phase, it.total) {
        (Phase::Done | Phase::Cleaning, _) => 100,
        (_, 0) => 0,
        // The rest is what the end takes.
        (_, total) => (it.copied.min(total) * 99) / total,
    };
    let mut made = base("PartitionMove", map.cluster(), &it.id);
    let time = |millis: u64| {
        let millis = i64::try_from(millis).unwrap_or_default();
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
        time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    made["metadata"]["creationTimestamp"] = time(it.started).into();
    made["spec"] = match &it.scope {
        Scope::Tenant(name) => json!({"tenant": name, "to": it.to}),
        Scope::Slots(slots) => {
            json!({"slots": {"first": slots.first, "last": slots.last}, "to": it.to})
        }
    };
    made["status"] = json!({
        "phase": phase(it),
        "from": it.from,
        "progress": format!("{progress}%"),
        "copied": it.copied,
        "total": it.total,
        "server": driver(it),
        "message": it.message,
        "startTime": time(it.started),
        "lastTransitionTime": time(it.transition),
    });
    if let Some(pause) = it.pause {
        made["status"]["pauseMilliseconds"] = pause.into();
    }
    made
}

/// What is to be moved.
fn scope(map: &PartitionMap, it: &Value) -> Result<Scope> {
    let spec = &it["spec"];
    let tenant = spec["tenant"].as_str().unwrap_or_default();
    let slots = &spec["slots"];
    let refuse = |field: &str, why: &str| Err(invalid("PartitionMove", it, field, why));
    match (tenant.is_empty(), slots.is_object()) {
        (false, false) if tenant == "system" => {
            refuse("spec.tenant", "the platform's own tenant is moved by slots")
        }
        (false, false) => Ok(Scope::Tenant(tenant.into())),
        (true, true) => {
            let bound = |field: &str| {
                slots[field]
                    .as_i64()
                    .unwrap_or(0)
                    .try_into()
                    .ok()
                    .filter(|it: &u16| *it < insula_partition::map::SLOTS)
            };
            match (bound("first"), bound("last")) {
                (Some(first), Some(last)) if first <= last => Ok(map.slots_scope(first, last)),
                _ => refuse("spec.slots", "must be a range of 0 to 16383"),
            }
        }
        _ => refuse("spec", "needs either a tenant or slots"),
    }
}

pub(super) async fn check(
    partitions: &Partitions,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<()> {
    match (new, old) {
        (Some(new), None) => {
            let moves = partitions.moves().await?;
            if moves.iter().any(|(it, _)| it.id == object::name(new)) {
                // The handler says it better.
                return Ok(());
            }
            let map = partitions.map();
            let scope = scope(&map, new)?;
            let to = object::text(new, &["spec", "to"]);
            match map.info(to) {
                None => {
                    let names = partitions.names();
                    let known: Vec<&str> = names.iter().map(String::as_str).collect();
                    let error =
                        crate::error::FieldError::unsupported("spec.to", &to.into(), &known);
                    let name = object::name(new);
                    Err(ApiError::invalid("insula.io", "PartitionMove", name, &[error]))
                }
                Some(info) if info.draining => {
                    let why = format!("partition {to} is being drained");
                    Err(invalid("PartitionMove", new, "spec.to", &why))
                }
                Some(_) => {
                    let from = match &scope {
                        Scope::Tenant(name) => map.owner(&ShardKey::Tenant(name.clone())),
                        Scope::Slots(slots) => {
                            Slot::new(slots.first).map_or("", |slot| map.owner_of_slot(slot))
                        }
                    };
                    let moving = Moving::new(scope.clone(), from, to);
                    let refused =
                        |error: MapError| invalid("PartitionMove", new, "spec", &error.to_string());
                    map.with_move(object::name(new), moving).map(drop).map_err(refused)
                }
            }
        }
        (Some(new), Some(_)) => {
            let why = "a move is not changed; cancel it by deleting it";
            Err(ApiError::forbidden("insula.io", "partitionmoves", object::name(new), why))
        }
        (None, Some(old)) => {
            let name = object::name(old);
            let moves = partitions.moves().await?;
            match moves.iter().find(|(it, _)| it.id == name) {
                Some((it, _)) if !it.phase.is_over() && !it.phase.can_be_undone() => {
                    let why = format!(
                        "the move is {} and can no longer be cancelled; it will be done soon",
                        phase(it)
                    );
                    Err(ApiError::conflict("insula.io", "partitionmoves", name, &why))
                }
                _ => Ok(()),
            }
        }
        (None, None) => Ok(()),
    }
}

pub(super) async fn write(
    partitions: &Partitions,
    name: &str,
    new: Option<&Value>,
) -> std::result::Result<(), MoveError> {
    match new {
        Some(new) => {
            let map = partitions.map();
            let Ok(scope) = scope(&map, new) else {
                return Err(MoveError::Impossible("the move makes no sense".into()));
            };
            let to = object::text(new, &["spec", "to"]);
            partitions.start_move(Some(name), scope, to).await.map(drop)
        }
        None => {
            let moves = partitions.moves().await?;
            let Some((it, at)) = moves.iter().find(|(it, _)| it.id == name) else { return Ok(()) };
            match it.phase.is_over() {
                false => partitions.cancel_move(name).await,
                true => forget(partitions, name, *at).await,
            }
        }
    }
}

/// Removes the record of a move that is over.
async fn forget(
    partitions: &Partitions,
    name: &str,
    at: Revision,
) -> std::result::Result<(), MoveError> {
    let Some(meta) = partitions.store(META) else { return Ok(()) };
    let Some(collection) = Collection::parse(MOVES) else { return Ok(()) };
    let write = Write::durable(collection, name, Expect::At(at), Change::Delete);
    match meta.write(write).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
