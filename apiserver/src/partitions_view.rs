//! Partitions as objects: read from the stores themselves, never kept.

use http::{Response, StatusCode};
use insula_partition::{map::SLOTS, snapshot::Entry, store::Revision};
use serde_json::{Value, json};

use crate::{
    Server, answer,
    body::Body,
    call::Call,
    error::{ApiError, Result},
    read::Page,
    revision::Vector,
};

fn object(server: &Server, name: &str) -> Option<Value> {
    let stats = server.partitions.store(name)?.stats();
    let map = server.partitions.map();
    let slots = (0..SLOTS)
        .filter(|slot| {
            insula_partition::map::Slot::new(*slot)
                .is_some_and(|slot| map.owner_of_slot(slot) == name)
        })
        .count();
    let phase = if stats.unhealthy.is_none() { "Ready" } else { "Unavailable" };
    Some(json!({
        "apiVersion": "insula.io/v1", "kind": "Partition",
        "metadata": {"resourceVersion": stats.revision.to_string(), "name": name, "tenant": "system"},
        "spec": {"backend": stats.backend},
        "status": {
            "phase": phase,
            "message": stats.unhealthy.unwrap_or_default(),
            "slots": slots,
            "objects": stats.objects,
            "bytes": stats.bytes,
            "revision": stats.revision.to_string(),
            "leader": stats.leader,
            "epoch": map.epoch(),
        },
    }))
}

/// Answers get and list of `partitions`.
pub(crate) fn answer(server: &Server, call: &Call) -> Result<Response<Body>> {
    let entry = |it: Value| Entry { value: it.to_string().into(), modified: Revision(0) };
    match call.verb {
        "get" => {
            let name = call.path.name.as_str();
            let known = server.partitions.names().iter().any(|it| **it == *name);
            let found =
                object(server, name).filter(|_| known).ok_or_else(|| call.not_found(name))?;
            answer::object(call, StatusCode::OK, &entry(found).value)
        }
        "list" => {
            let names = server.partitions.names();
            let entries = names
                .iter()
                .filter_map(|name| Some((name.as_str().into(), entry(object(server, name)?))))
                .collect();
            let revision = names.iter().filter_map(|name| {
                Some((name.to_string(), server.partitions.store(name)?.progress()))
            });
            let page = Page {
                entries,
                revision: Vector(revision.collect()),
                token: None,
                remaining: None,
            };
            answer::list(call, &page)
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}
