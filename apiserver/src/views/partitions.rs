//! Partitions: where objects are kept, by whom, and how they are.

use insula_api::object;
use insula_partition::{
    map::{Backend, EtcdPlace, MapError, PartitionInfo, PartitionMap},
    partitions::{ChangeError, META, Partitions},
};
use serde_json::{Value, json};

use super::{Made, base, invalid, texts};
use crate::error::{ApiError, Result};

/// Of the ranges of slots that a partition owns, so many are shown.
const RANGES: usize = 64;

const COUNTERS: &[&str] = &["objects", "bytes", "revision", "epoch"];

/// All partitions; `meta` too.
pub(super) fn make(partitions: &Partitions) -> Vec<Made> {
    let map = partitions.map();
    let infos = map.infos().iter().chain([map.meta()]);
    let made = infos.map(|info| Made {
        name: info.name.clone(),
        object: one(partitions, &map, info),
        counters: COUNTERS,
    });
    made.collect()
}

fn one(partitions: &Partitions, map: &PartitionMap, info: &PartitionInfo) -> Value {
    let stats = partitions.store(&info.name).map(|store| store.stats()).unwrap_or_default();
    let unhealthy = stats.unhealthy;
    let phase = match (&unhealthy, info.draining, info.filling) {
        (Some(_), ..) => "Unavailable",
        (None, true, _) => "Draining",
        (None, false, true) => "Filling",
        (None, false, false) => "Ready",
    };
    let ranges = map.ranges().into_iter().filter(|(_, owner)| *owner == info.name);
    let ranges: Vec<String> =
        ranges.take(RANGES).map(|(range, _)| format!("{}-{}", range.first, range.last)).collect();
    let ready: Vec<&str> = partitions
        .servers()
        .iter()
        .filter(|server| server.ready.contains(&info.name))
        .filter_map(|server| map.server(&server.name))
        .map(|server| server.name.as_str())
        .collect();
    let mut it = base("Partition", map.cluster(), &info.name);
    it["spec"] = spec(info);
    it["status"] = json!({
        "phase": phase,
        "message": unhealthy.unwrap_or_default(),
        "slots": map.slots_of(&info.name),
        "slotRanges": ranges,
        "pins": map.pins().values().filter(|owner| **owner == info.name).count(),
        "objects": stats.objects,
        "bytes": stats.bytes,
        "revision": stats.revision.to_string(),
        "leader": stats.leader,
        "ready": ready,
        "epoch": map.epoch(),
    });
    it
}

fn spec(info: &PartitionInfo) -> Value {
    let mut spec = json!({});
    match &info.backend {
        Backend::Embedded => {
            spec["backend"] = "embedded".into();
            spec["servers"] = info.servers.clone().into();
        }
        Backend::Etcd(place) => {
            spec["backend"] = "etcd".into();
            spec["etcd"] = json!({"endpoints": place.endpoints, "prefix": place.prefix});
            if !place.relaxed.is_empty() {
                spec["etcd"]["relaxed"] = place.relaxed.clone().into();
            }
        }
    }
    if info.draining {
        spec["draining"] = true.into();
    }
    if info.filling {
        spec["filling"] = true.into();
    }
    spec
}

/// What an object's `spec` asks for.
fn asked(partitions: &Partitions, name: &str, it: &Value) -> Result<PartitionInfo> {
    let spec = &it["spec"];
    let etcd = &spec["etcd"];
    let backend = match (spec["backend"].as_str().unwrap_or_default(), etcd.is_object()) {
        ("" | "embedded", false) => Backend::Embedded,
        ("" | "etcd", true) => {
            let place = EtcdPlace {
                endpoints: texts(&etcd["endpoints"]),
                prefix: match etcd["prefix"].as_str().unwrap_or_default() {
                    "" => insula_partition::etcd::EtcdConfig::PREFIX.to_owned(),
                    prefix => prefix.to_owned(),
                },
                relaxed: texts(&etcd["relaxed"]),
            };
            if place.endpoints.is_empty() {
                let why = "an etcd has at least one endpoint";
                return Err(invalid("Partition", it, "spec.etcd.endpoints", why));
            }
            Backend::Etcd(place)
        }
        ("embedded", true) => {
            let why = "an embedded partition is in no etcd";
            return Err(invalid("Partition", it, "spec.etcd", why));
        }
        ("etcd", false) => {
            let why = "needed for backend \"etcd\"";
            return Err(invalid("Partition", it, "spec.etcd", why));
        }
        (other, _) => {
            let error = crate::error::FieldError::unsupported(
                "spec.backend",
                &other.into(),
                &["embedded", "etcd"],
            );
            return Err(ApiError::invalid("insula.io", "Partition", name, &[error]));
        }
    };
    let mut servers = texts(&spec["servers"]);
    if backend == Backend::Embedded && servers.is_empty() {
        servers.push(partitions.server_name().to_owned());
    }
    let flag = |field: &str| spec[field].as_bool().unwrap_or(false);
    let (draining, filling) = (flag("draining"), flag("filling"));
    if draining && filling {
        let why = "a partition that is being drained is not filled";
        return Err(invalid("Partition", it, "spec.filling", why));
    }
    let name = name.to_owned();
    Ok(PartitionInfo { name, backend, servers, draining, filling, ..PartitionInfo::default() })
}

/// The map as `wanted` would have it.
fn changed(
    map: &PartitionMap,
    wanted: &PartitionInfo,
    is_new: bool,
) -> std::result::Result<PartitionMap, MapError> {
    if is_new {
        return map.with_partition(wanted.clone());
    }
    let is = match wanted.name.as_str() {
        META => map.meta(),
        name => map.info(name).ok_or_else(|| MapError::Unknown(name.into()))?,
    };
    let mut next = map.clone();
    if is.backend != wanted.backend {
        next = next.with_backend(&wanted.name, wanted.backend.clone())?;
    }
    if wanted.backend == Backend::Embedded && is.servers != wanted.servers {
        next = next.with_members(&wanted.name, wanted.servers.clone())?;
    }
    if is.draining != wanted.draining {
        next = next.with_draining(&wanted.name, wanted.draining)?;
    }
    if is.filling != wanted.filling {
        next = next.with_filling(&wanted.name, wanted.filling)?;
    }
    Ok(next)
}

/// The field that a refusal is about.
fn field(error: &MapError) -> &'static str {
    match error {
        MapError::UnknownServer(_) | MapError::NoMember(_) => "spec.servers",
        MapError::Draining(_) | MapError::NoSlots(_) => "spec.draining",
        MapError::Etcd(_) => "spec.etcd",
        MapError::Name(_) | MapError::Repeated(_) => "metadata.name",
        _ => "spec",
    }
}

fn is_known(map: &PartitionMap, name: &str) -> bool {
    name == META || map.info(name).is_some()
}

pub(super) fn check(
    partitions: &Partitions,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<()> {
    let map = partitions.map();
    match (new, old) {
        // The handler says it better.
        (Some(new), None) if is_known(&map, object::name(new)) => Ok(()),
        (Some(new), old) => {
            let wanted = asked(partitions, object::name(new), new)?;
            match changed(&map, &wanted, old.is_none()) {
                Ok(_) => Ok(()),
                Err(error) => Err(invalid("Partition", new, field(&error), &error.to_string())),
            }
        }
        (None, Some(old)) => {
            let name = object::name(old);
            if name == META {
                let why = "it holds the partition map";
                return Err(ApiError::forbidden("insula.io", "partitions", name, why));
            }
            let refused = |error: MapError| {
                ApiError::conflict("insula.io", "partitions", name, &error.to_string())
            };
            map.without_partition(name).map(drop).map_err(refused)
        }
        (None, None) => Ok(()),
    }
}

pub(super) async fn write(
    partitions: &Partitions,
    name: &str,
    new: Option<&Value>,
    is_new: bool,
) -> std::result::Result<(), ChangeError> {
    let Some(new) = new else {
        return partitions.change_map(|map| map.without_partition(name)).await.map(drop);
    };
    let wanted = match asked(partitions, name, new) {
        Ok(wanted) => wanted,
        Err(error) => return Err(ChangeError::Map(MapError::Etcd(error.message))),
    };
    partitions.change_map(|map| changed(map, &wanted, is_new)).await.map(drop)
}
