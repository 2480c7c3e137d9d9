//! A map as it is written down, and what makes a document a map.
//!
//! ```text
//! {"cluster":"6f..","epoch":7,
//!  "servers":[{"id":1,"name":"s1","address":"10.0.0.1:6443","ready":["meta","p1"]}],"nextServer":2,
//!  "meta":{"name":"meta","backend":"embedded","servers":["s1"]},
//!  "partitions":[{"name":"p1","backend":"embedded","servers":["s1"]},
//!                {"name":"east","backend":{"etcd":{"endpoints":["http://e:2379"],"prefix":"/insula"}}}],
//!  "slots":[{"first":0,"last":8191,"partition":"p1"},{"first":8192,"last":16383,"partition":"east"}],
//!  "pins":{"acme":"east"},
//!  "moves":{"m1":{"scope":{"tenant":"globex"},"from":"p1","to":"east"}}}
//! ```

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Backend, MapError, Moving, PartitionInfo, PartitionMap, SLOTS, Scope, ServerInfo, SlotRange,
    names,
};
use crate::partitions::META;

/// See the module.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default)]
    cluster: String,
    epoch: u64,
    #[serde(default)]
    servers: Vec<ServerInfo>,
    #[serde(default = "one")]
    next_server: u64,
    #[serde(default = "embedded_meta")]
    meta: PartitionInfo,
    partitions: Vec<Partition>,
    slots: Vec<Range>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pins: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    moves: BTreeMap<String, Moving>,
}

/// A partition; the first version of the document had its name alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Partition {
    Name(String),
    Info(PartitionInfo),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    first: u16,
    last: u16,
    partition: String,
}

fn one() -> u64 {
    1
}

fn embedded_meta() -> PartitionInfo {
    PartitionInfo::embedded(META, &[])
}

impl TryFrom<Document> for PartitionMap {
    type Error = MapError;

    fn try_from(document: Document) -> Result<Self, MapError> {
        let Document { cluster, epoch, servers, next_server, meta, partitions, slots, pins, moves } =
            document;
        let info = |partition| match partition {
            Partition::Name(name) => PartitionInfo::embedded(&name, &[]),
            Partition::Info(info) => info,
        };
        let partitions: Vec<_> = partitions.into_iter().map(info).collect();
        let names = names(&partitions);
        if names.is_empty() {
            return Err(MapError::Count(0));
        }
        let owners = owners(&names, slots)?;
        let map = Self {
            cluster,
            epoch,
            servers,
            next_server,
            meta,
            names,
            partitions,
            slots: Arc::new(owners),
            pins,
            moves,
        };
        map.check()?;
        Ok(map)
    }
}

fn owners(names: &[String], ranges: Vec<Range>) -> Result<Vec<u16>, MapError> {
    let mut slots = vec![None; usize::from(SLOTS)];
    for Range { first, last, partition } in ranges {
        if !(SlotRange { first, last }).is_valid() {
            return Err(MapError::Range { first, last });
        }
        let owner = names.iter().position(|known| *known == partition);
        let owner = owner.ok_or(MapError::Unknown(partition))? as u16;
        for slot in first..=last {
            if slots[usize::from(slot)].replace(owner).is_some() {
                return Err(MapError::Shared(slot));
            }
        }
    }
    let owned = (0..SLOTS).zip(slots).map(|(slot, owner)| owner.ok_or(MapError::Unowned(slot)));
    owned.collect()
}

impl From<PartitionMap> for Document {
    fn from(map: PartitionMap) -> Self {
        let range = |(SlotRange { first, last }, partition): (SlotRange, &str)| Range {
            first,
            last,
            partition: partition.into(),
        };
        let slots = map.ranges().into_iter().map(range).collect();
        Self {
            cluster: map.cluster,
            epoch: map.epoch,
            servers: map.servers,
            next_server: map.next_server,
            meta: map.meta,
            partitions: map.partitions.into_iter().map(Partition::Info).collect(),
            slots,
            pins: map.pins,
            moves: map.moves,
        }
    }
}

impl PartitionMap {
    /// Everything that must hold of a map but who owns the slots.
    pub(super) fn check(&self) -> Result<(), MapError> {
        self.check_partitions()?;
        self.check_servers()?;
        for partition in self.pins.values() {
            self.known(partition)?;
        }
        for moving in self.moves.values() {
            self.known(&moving.from)?;
            self.known(&moving.to)?;
            self.check_scope(&moving.scope, moving.owner())?;
        }
        let mut scopes = self.moves.values();
        while let Some(moving) = scopes.next() {
            if let Some(other) = scopes.clone().find(|other| other.scope.overlaps(&moving.scope)) {
                return Err(other.busy());
            }
        }
        Ok(())
    }

    fn check_partitions(&self) -> Result<(), MapError> {
        if self.partitions.is_empty() || usize::from(SLOTS) < self.partitions.len() {
            return Err(MapError::Count(self.partitions.len()));
        }
        if let Some(name) = self.names.iter().find(|name| !is_name(name) || *name == META) {
            return Err(MapError::Name(name.clone()));
        }
        if self.meta.name != META {
            return Err(MapError::Name(self.meta.name.clone()));
        }
        let mut sorted: Vec<_> = self.names.iter().collect();
        sorted.sort();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MapError::Repeated(pair[0].clone()));
        }
        let all = || std::iter::once(&self.meta).chain(&self.partitions);
        for info in all() {
            for server in &info.servers {
                self.known_server(server)?;
            }
            let mut members: Vec<_> = info.servers.iter().collect();
            members.sort();
            if let Some(pair) = members.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(MapError::RepeatedServer(pair[0].clone()));
            }
        }
        self.check_etcds()
    }

    fn check_etcds(&self) -> Result<(), MapError> {
        let mut places = std::collections::BTreeSet::new();
        for info in std::iter::once(&self.meta).chain(&self.partitions) {
            let Backend::Etcd(place) = &info.backend else { continue };
            let prefix = place.prefix.trim_matches('/');
            if place.endpoints.is_empty() || prefix.is_empty() {
                let what = format!("partition {} needs endpoints and a prefix", info.name);
                return Err(MapError::Etcd(what));
            }
            for endpoint in place.endpoints.iter().chain(&place.relaxed) {
                let known = endpoint.starts_with("http://") || endpoint.starts_with("https://");
                if !known {
                    let what = format!("{endpoint:?} of partition {} is no URL", info.name);
                    return Err(MapError::Etcd(what));
                }
                if !places.insert((endpoint.trim_end_matches('/'), prefix)) {
                    let what =
                        format!("partition {} shares {endpoint} {prefix} with another", info.name);
                    return Err(MapError::Etcd(what));
                }
            }
        }
        Ok(())
    }

    fn check_servers(&self) -> Result<(), MapError> {
        let mut names = std::collections::BTreeSet::new();
        let mut ids = std::collections::BTreeSet::new();
        for server in &self.servers {
            if !is_name(&server.name) || server.id == 0 || self.next_server <= server.id {
                return Err(MapError::ServerName(server.name.clone()));
            }
            if !names.insert(&server.name) || !ids.insert(server.id) {
                return Err(MapError::RepeatedServer(server.name.clone()));
            }
        }
        Ok(())
    }

    /// What moves away from a partition must be there.
    pub(super) fn check_scope(&self, scope: &Scope, from: &str) -> Result<(), MapError> {
        let here = match scope {
            Scope::Tenant(name) => self.owner_of(super::Shard::Tenant(name)) == from,
            Scope::Slots(slots) => {
                let SlotRange { first, last } = slots.range();
                if !slots.range().is_valid() {
                    return Err(MapError::Range { first, last });
                }
                let owner = |slot| &self.names[usize::from(self.slots[usize::from(slot)])];
                (first..=last).all(|slot| owner(slot) == from)
            }
        };
        let elsewhere = || MapError::Elsewhere { what: scope.to_string(), from: from.into() };
        here.then_some(()).ok_or_else(elsewhere)
    }

    pub(super) fn known(&self, partition: &str) -> Result<usize, MapError> {
        let at = self.names.iter().position(|name| name == partition);
        at.ok_or_else(|| MapError::Unknown(partition.into()))
    }

    pub(super) fn known_server(&self, name: &str) -> Result<&ServerInfo, MapError> {
        self.server(name).ok_or_else(|| MapError::UnknownServer(name.into()))
    }
}

impl Moving {
    pub(super) fn busy(&self) -> MapError {
        let what = self.scope.to_string();
        MapError::Busy { what, from: self.from.clone(), to: self.to.clone() }
    }
}

/// A DNS label, so that it can be part of paths, keys and object names.
pub(crate) fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(known)
        && !name.starts_with('-')
        && !name.ends_with('-')
}
