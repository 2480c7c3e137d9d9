//! Which partition owns what: shard keys hash to slots, slots belong to partitions.
//!
//! The map is an immutable value with an epoch. It is stored as JSON in partition `meta`, see
//! `document`, and changes by compare-and-set only; `change` has every way in which it may.
//!
//! # Invariants
//!
//! * At one epoch every slot has exactly one partition, and it is one of the map's.
//! * The hash and the number of slots are on-disk contracts: changing them moves every tenant.
//! * Scopes of moves that are under way never overlap; what moves is owned by the
//!   move's source until it flips, and by its target after that.
//! * A server's id is never given to another one.
//!
//! # What is deliberately absent
//!
//! No I/O. [`crate::partitions`] loads the map and follows it.

mod change;
mod document;
mod scope;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

pub(crate) use self::document::is_name;
pub use self::scope::{SYSTEM, Scope, Shard, ShardKey, Slot, SlotRange, Slots};

pub use insula_api::slots::SLOTS;

/// An API server process, as the others know it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerInfo {
    /// Of the server in raft groups. Never reused.
    pub id: u64,
    pub name: String,
    /// `HOST:PORT` at which other servers reach it.
    #[serde(default)]
    pub address: String,
    /// Partitions that it serves from its own memory now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ready: Vec<String>,
}

/// Where a partition's data is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// In servers, as a raft group.
    #[default]
    Embedded,
    /// In an etcd cluster.
    Etcd(EtcdPlace),
}

/// Which etcd. How to log in there is each server's own configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdPlace {
    pub endpoints: Vec<String>,
    pub prefix: String,
    /// Another etcd, for collections of which all is relaxed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relaxed: Vec<String>,
}

/// One partition of the map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionInfo {
    pub name: String,
    #[serde(default)]
    pub backend: Backend,
    /// Names of the servers that should be its members, if it is embedded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Ids of the servers that an embedded partition began with, as long as it has no others:
    /// each of them begins the group, everybody else joins it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<u64>,
    /// Once the members were changed: those that the group is known to have, and to remember even
    /// if all of them end at once. Who is none of them is not needed any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<String>,
    /// Nothing may move here, and what is here moves away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// Slots move here until it has its share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub filling: bool,
}

impl PartitionInfo {
    /// Whether the group has come to have the members that the map names, and no others.
    pub(crate) fn is_settled(&self) -> bool {
        // What it began with it has, as long as nothing was changed.
        !self.first.is_empty() || self.settled == self.servers
    }

    /// An embedded partition on the given servers.
    pub fn embedded(name: &str, servers: &[&str]) -> Self {
        let servers = servers.iter().map(|&server| server.to_owned()).collect();
        Self { name: name.into(), servers, ..Self::default() }
    }
}

/// A move that was admitted, and whose target is not open to all yet. Until then no other move
/// of the same begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moving {
    pub scope: Scope,
    pub from: String,
    pub to: String,
    /// The target owns the scope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flipped: bool,
}

impl Moving {
    /// One that has not flipped.
    pub fn new(scope: Scope, from: impl Into<String>, to: impl Into<String>) -> Self {
        Self { scope, from: from.into(), to: to.into(), flipped: false }
    }

    /// Who owns the scope.
    pub fn owner(&self) -> &str {
        if self.flipped { &self.to } else { &self.from }
    }
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "document::Document", into = "document::Document")]
pub struct PartitionMap {
    cluster: String,
    epoch: u64,
    servers: Vec<ServerInfo>,
    /// The id that the next new server gets.
    next_server: u64,
    meta: PartitionInfo,
    /// Without `meta`.
    partitions: Vec<PartitionInfo>,
    names: Vec<String>,
    /// For each slot the index of its partition. Invariant: `SLOTS` long, all indices valid.
    slots: Arc<Vec<u16>>,
    pins: BTreeMap<String, String>,
    moves: BTreeMap<String, Moving>,
}

/// Why something is no partition map, or may not become the next one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    #[error("a map needs 1 to {SLOTS} partitions, not {0}")]
    Count(usize),
    #[error("partition {0} is named twice")]
    Repeated(String),
    #[error("a partition cannot be named {0:?}")]
    Name(String),
    #[error("partition {0} is not one of the map's")]
    Unknown(String),
    #[error("slots {first} to {last} are no range")]
    Range { first: u16, last: u16 },
    #[error("slot {0} has two partitions")]
    Shared(u16),
    #[error("slot {0} has no partition")]
    Unowned(u16),
    #[error("server {0} is not one of the map's")]
    UnknownServer(String),
    #[error("server {0}, or its id, is there twice")]
    RepeatedServer(String),
    #[error("{0:?} cannot be the name of a server")]
    ServerName(String),
    #[error("partition {0} would have no member")]
    NoMember(String),
    #[error("partition {0} is being drained")]
    Draining(String),
    #[error("partition {0} holds the partition map and no slots: it is neither drained nor filled")]
    NoSlots(String),
    #[error("partition {name} still has {what}; drain it first")]
    InUse { name: String, what: String },
    #[error("{what} is on its way from {from} to {to}; wait until it is there")]
    Busy { what: String, from: String, to: String },
    #[error("{what} is not on partition {from}")]
    Elsewhere { what: String, from: String },
    #[error("{what} is on partition {to} already")]
    Already { what: String, to: String },
    #[error("there is no move {0}")]
    NoMove(String),
    #[error("{0}")]
    Etcd(String),
}

impl PartitionMap {
    /// The first map of a cluster: all partitions own equally many slots.
    pub fn first(
        cluster: &str,
        server: Option<ServerInfo>,
        meta: PartitionInfo,
        partitions: Vec<PartitionInfo>,
    ) -> Result<Self, MapError> {
        let count = partitions.len().max(1);
        let owner = |slot: u16| (usize::from(slot) * count / usize::from(SLOTS)) as u16;
        let map = Self {
            cluster: cluster.into(),
            epoch: 1,
            next_server: server.as_ref().map_or(0, |server| server.id) + 1,
            servers: server.into_iter().collect(),
            meta,
            names: names(&partitions),
            partitions,
            slots: Arc::new((0..SLOTS).map(owner).collect()),
            pins: BTreeMap::new(),
            moves: BTreeMap::new(),
        };
        map.check()?;
        Ok(map)
    }

    /// A map of embedded partitions without servers, all with equally many slots.
    pub fn even(partitions: Vec<String>) -> Result<Self, MapError> {
        let partition = |name: &String| PartitionInfo::embedded(name, &[]);
        let meta = PartitionInfo::embedded(crate::partitions::META, &[]);
        Self::first("", None, meta, partitions.iter().map(partition).collect())
    }

    /// The cluster's id, given once.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The map's number. A later map has a higher one.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Names of all partitions.
    pub fn partitions(&self) -> &[String] {
        &self.names
    }

    /// The partitions, in the order of their names at [`PartitionMap::partitions`].
    pub fn infos(&self) -> &[PartitionInfo] {
        &self.partitions
    }

    /// The partition of that name; `meta` too.
    pub fn info(&self, name: &str) -> Option<&PartitionInfo> {
        std::iter::once(&self.meta).chain(&self.partitions).find(|info| info.name == name)
    }

    /// Where the map itself is kept.
    pub fn meta(&self) -> &PartitionInfo {
        &self.meta
    }

    /// All servers that registered.
    pub fn servers(&self) -> &[ServerInfo] {
        &self.servers
    }

    /// The server of that name.
    pub fn server(&self, name: &str) -> Option<&ServerInfo> {
        self.servers.iter().find(|server| server.name == name)
    }

    /// The partition that owns everything under `key`.
    pub fn owner(&self, key: &ShardKey) -> &str {
        self.owner_of(key.as_shard())
    }

    /// As [`PartitionMap::owner`].
    pub fn owner_of(&self, shard: Shard<'_>) -> &str {
        if let Shard::Tenant(name) = shard
            && let Some(partition) = self.pins.get(name)
        {
            return partition;
        }
        self.owner_of_slot(shard.slot())
    }

    /// The partition that owns a slot, pins aside.
    pub fn owner_of_slot(&self, slot: Slot) -> &str {
        &self.names[usize::from(self.slots[usize::from(slot.number())])]
    }

    /// How many slots a partition owns.
    pub fn slots_of(&self, partition: &str) -> usize {
        let at = self.names.iter().position(|name| name == partition);
        at.map_or(0, |at| self.slots.iter().filter(|owner| usize::from(**owner) == at).count())
    }

    /// Neighbouring slots of one partition, in order of the slots.
    pub fn ranges(&self) -> Vec<(SlotRange, &str)> {
        let mut ranges: Vec<(SlotRange, u16)> = Vec::new();
        for (slot, &owner) in (0..SLOTS).zip(self.slots.iter()) {
            match ranges.last_mut() {
                Some((range, known)) if *known == owner => range.last = slot,
                _ => ranges.push((SlotRange { first: slot, last: slot }, owner)),
            }
        }
        let named = |(range, owner)| (range, &*self.names[usize::from(owner)]);
        ranges.into_iter().map(named).collect()
    }

    /// Tenants that live elsewhere than their slot says.
    pub fn pins(&self) -> &BTreeMap<String, String> {
        &self.pins
    }

    /// Moves that were admitted and have not flipped yet, by name.
    pub fn moves(&self) -> &BTreeMap<String, Moving> {
        &self.moves
    }

    /// The move that a shard is part of.
    pub fn move_of(&self, shard: Shard<'_>) -> Option<(&str, &Moving)> {
        let mut moves = self.moves.iter();
        moves
            .find(|(_, moving)| moving.scope.contains(shard))
            .map(|(id, moving)| (id.as_str(), moving))
    }
}

fn names(partitions: &[PartitionInfo]) -> Vec<String> {
    partitions.iter().map(|partition| partition.name.clone()).collect()
}
