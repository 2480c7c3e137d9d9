//! Servers: who answers requests, and which partitions each has.

use insula_api::object;
use insula_partition::{
    map::{MapError, PartitionMap, ServerInfo},
    partitions::{ChangeError, Partitions},
};
use serde_json::{Value, json};

use super::{Made, Source, base};
use crate::error::{ApiError, Result};

/// All servers of the map.
pub(super) fn make(source: &Source) -> Vec<Made> {
    let map = source.partitions.map();
    let made = map.servers().iter().map(|server| Made {
        name: server.name.clone(),
        object: one(source, &map, server),
        counters: &[],
    });
    made.collect()
}

fn one(source: &Source, map: &PartitionMap, server: &ServerInfo) -> Value {
    let partitions = &source.partitions;
    let is_this = server.name == partitions.server_name();
    let is_reached =
        is_this || source.peers.as_ref().is_some_and(|peers| peers.is_connected(&server.name));
    let infos = || map.infos().iter().chain([map.meta()]);
    let leads: Vec<&str> = infos()
        .filter(|info| {
            let leader = partitions.store(&info.name).map(|it| it.stats().leader);
            leader.is_some_and(|leader| leader == server.name)
        })
        .map(|info| info.name.as_str())
        .collect();
    let members: Vec<&str> = infos()
        .filter(|info| info.servers.contains(&server.name))
        .map(|info| info.name.as_str())
        .collect();
    let mut it = base("Server", map.cluster(), &server.name);
    it["spec"] = json!({"address": server.address});
    it["status"] = json!({
        "phase": if is_reached { "Ready" } else { "Unreachable" },
        "id": server.id,
        "partitions": members,
        "ready": server.ready,
        "leads": leads,
    });
    it
}

pub(super) fn check(
    partitions: &Partitions,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<()> {
    let (None, Some(old)) = (new, old) else {
        let why = "a server adds itself when it starts, and says itself where it is";
        let name = new.map(object::name).unwrap_or_default();
        return Err(ApiError::forbidden("insula.io", "servers", name, why));
    };
    let name = object::name(old);
    if name == partitions.server_name() {
        let why = "this very server answers; ask another one, after ending this one for good";
        return Err(ApiError::forbidden("insula.io", "servers", name, why));
    }
    let refused =
        |error: MapError| ApiError::conflict("insula.io", "servers", name, &error.to_string());
    partitions.map().without_server(name).map(drop).map_err(refused)
}

pub(super) async fn write(
    partitions: &Partitions,
    name: &str,
    new: Option<&Value>,
) -> std::result::Result<(), ChangeError> {
    match new {
        Some(_) => Err(MapError::UnknownServer(name.into()).into()),
        None => partitions.change_map(|map| map.without_server(name)).await.map(drop),
    }
}
