//! What a place is decided for: shard keys, their slots, and the scopes that move as one.

use std::{collections::BTreeSet, fmt};

use insula_api::slots::slot_of;
use serde::{Deserialize, Serialize};

use super::SLOTS;

/// One of the [`SLOTS`] buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The bucket of that number, if there is one.
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// The bucket's number, below [`SLOTS`].
    pub fn number(self) -> u16 {
        self.0
    }
}

/// What decides where an object lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ShardKey {
    /// Everything that a tenant owns.
    Tenant(String),
    /// A node and what there is one of per node: its lease, its CSI node.
    Node(String),
    /// The rest of the fleet.
    System,
}

/// A [`ShardKey`] that borrows its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shard<'a> {
    Tenant(&'a str),
    Node(&'a str),
    System,
}

/// The platform's tenant.
pub const SYSTEM: &str = "system";

impl<'a> Shard<'a> {
    /// Decides from where an object is kept: its key is `tenant/namespace/name`, the namespace
    /// empty where there is none. A contract with whoever makes the keys.
    pub fn of(collection: &str, key: &'a str) -> Self {
        let (tenant, rest) = key.split_once('/').unwrap_or((key, ""));
        if tenant != SYSTEM {
            return Self::Tenant(tenant);
        }
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        match (collection, namespace) {
            ("core/nodes", "") | ("coordination.k8s.io/leases", "kube-node-lease") => {
                Self::Node(name)
            }
            _ => Self::System,
        }
    }

    /// The bucket that the key hashes to.
    pub fn slot(self) -> Slot {
        let text = match self {
            Self::Tenant(name) | Self::Node(name) => name,
            Self::System => SYSTEM,
        };
        Slot(slot_of(text))
    }
}

impl fmt::Display for Shard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(name) => write!(f, "tenant {name}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::System => f.write_str("the fleet"),
        }
    }
}

impl ShardKey {
    /// As [`Shard::of`].
    pub fn of(collection: &str, key: &str) -> Self {
        match Shard::of(collection, key) {
            Shard::Tenant(name) => Self::Tenant(name.into()),
            Shard::Node(name) => Self::Node(name.into()),
            Shard::System => Self::System,
        }
    }

    /// The same, borrowed.
    pub fn as_shard(&self) -> Shard<'_> {
        match self {
            Self::Tenant(name) => Shard::Tenant(name),
            Self::Node(name) => Shard::Node(name),
            Self::System => Shard::System,
        }
    }

    /// The bucket that the key hashes to.
    pub fn slot(&self) -> Slot {
        self.as_shard().slot()
    }
}

/// Neighbouring slots; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotRange {
    pub first: u16,
    pub last: u16,
}

impl SlotRange {
    /// Whether it has at least one slot, and only such as there are.
    pub fn is_valid(self) -> bool {
        self.first <= self.last && self.last < SLOTS
    }

    /// Number of slots.
    pub fn count(self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }

    /// Whether it has the slot of that number.
    pub fn contains(self, slot: u16) -> bool {
        (self.first..=self.last).contains(&slot)
    }
}

/// What moves as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Everything that a tenant owns.
    Tenant(String),
    /// Everything that hashes to a range of slots.
    Slots(Slots),
}

/// A range of slots without the tenants that are pinned, wherever they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    pub first: u16,
    pub last: u16,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub except: BTreeSet<String>,
}

impl Slots {
    /// The range, pinned tenants or not.
    pub fn range(&self) -> SlotRange {
        SlotRange { first: self.first, last: self.last }
    }
}

impl Scope {
    /// A range of slots and everybody in it.
    pub fn slots(first: u16, last: u16) -> Self {
        Self::Slots(Slots { first, last, except: BTreeSet::new() })
    }

    /// Whether a shard is part of it.
    pub fn contains(&self, shard: Shard<'_>) -> bool {
        match (self, shard) {
            (Self::Tenant(name), Shard::Tenant(tenant)) => name == tenant,
            (Self::Tenant(_), _) => false,
            (Self::Slots(slots), shard) => {
                let excepted = matches!(shard, Shard::Tenant(name) if slots.except.contains(name));
                !excepted && slots.range().contains(shard.slot().number())
            }
        }
    }

    /// Whether a key could be part of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tenant(name), scope) | (scope, Self::Tenant(name)) => {
                scope.contains(Shard::Tenant(name))
            }
            (Self::Slots(a), Self::Slots(b)) => a.first <= b.last && b.first <= a.last,
        }
    }

    /// Whether every key of `other` is part of this, too.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (scope, Self::Tenant(name)) => scope.contains(Shard::Tenant(name)),
            (Self::Tenant(_), Self::Slots(_)) => false,
            (Self::Slots(a), Self::Slots(b)) => {
                let inside = a.first <= b.first && b.last <= a.last;
                inside && a.except.is_subset(&b.except)
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(name) => write!(f, "tenant {name}"),
            Self::Slots(slots) if slots.first == slots.last => write!(f, "slot {}", slots.first),
            Self::Slots(slots) => write!(f, "slots {}-{}", slots.first, slots.last),
        }
    }
}
