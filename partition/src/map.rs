//! Which partition owns what: shard keys hash to slots, slots belong to partitions.
//!
//! The map is an immutable value with an epoch. It is stored as JSON in partition `meta`:
//!
//! ```text
//! {"epoch":1,"partitions":["p1","p2"],
//!  "slots":[{"first":0,"last":8191,"partition":"p1"},{"first":8192,"last":16383,"partition":"p2"}],
//!  "pins":{"acme":"p2"}}
//! ```
//!
//! # Invariants
//!
//! * At one epoch every slot has exactly one partition, and it is one of the map's.
//! * The hash and the number of slots are on-disk contracts: changing them moves every tenant.
//!
//! # What is deliberately absent
//!
//! No I/O. [`crate::partitions`] loads the map and keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Number of hash buckets.
pub const SLOTS: u16 = 16_384;

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

/// The platform's tenant.
const SYSTEM: &str = "system";

impl ShardKey {
    /// Decides from where an object is kept: its key is `tenant/namespace/name`, the namespace
    /// empty where there is none. A contract with whoever makes the keys.
    pub fn of(collection: &str, key: &str) -> Self {
        let (tenant, rest) = key.split_once('/').unwrap_or((key, ""));
        if tenant != SYSTEM {
            return Self::Tenant(tenant.to_owned());
        }
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        match (collection, namespace) {
            ("core/nodes", "") | ("coordination.k8s.io/leases", "kube-node-lease") => {
                Self::Node(name.to_owned())
            }
            _ => Self::System,
        }
    }

    /// The bucket that the key hashes to.
    pub fn slot(&self) -> Slot {
        let text = match self {
            Self::Tenant(name) | Self::Node(name) => name,
            Self::System => SYSTEM,
        };
        Slot((xxh3_64(text.as_bytes()) % u64::from(SLOTS)) as u16)
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct PartitionMap {
    epoch: u64,
    partitions: Vec<String>,
    /// For each slot the index of its partition. Invariant: `SLOTS` long, all indices valid.
    slots: Vec<u16>,
    pins: BTreeMap<String, String>,
}

/// A map as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    epoch: u64,
    partitions: Vec<String>,
    slots: Vec<Range>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pins: BTreeMap<String, String>,
}

/// Neighbouring slots of one partition; both ends belong to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    first: u16,
    last: u16,
    partition: String,
}

/// Why something is no partition map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    #[error("a map needs 1 to {SLOTS} partitions, not {0}")]
    Count(usize),
    #[error("partition {0} is named twice")]
    Repeated(String),
    #[error("partition {0} is not one of the map's")]
    Unknown(String),
    #[error("slots {first} to {last} are no range")]
    Range { first: u16, last: u16 },
    #[error("slot {0} has two partitions")]
    Shared(u16),
    #[error("slot {0} has no partition")]
    Unowned(u16),
}

impl PartitionMap {
    /// The first map: all partitions own equally many slots.
    pub fn even(partitions: Vec<String>) -> Result<Self, MapError> {
        check_names(&partitions)?;
        let count = partitions.len();
        let owner = |slot: u16| (usize::from(slot) * count / usize::from(SLOTS)) as u16;
        let slots = (0..SLOTS).map(owner).collect();
        Ok(Self { epoch: 1, partitions, slots, pins: BTreeMap::new() })
    }

    /// The map's number. A later map has a higher one.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Names of all partitions.
    pub fn partitions(&self) -> &[String] {
        &self.partitions
    }

    /// The partition that owns everything under `key`.
    pub fn owner(&self, key: &ShardKey) -> &str {
        if let ShardKey::Tenant(name) = key
            && let Some(partition) = self.pins.get(name)
        {
            return partition;
        }
        self.owner_of_slot(key.slot())
    }

    /// The partition that owns a slot, pins aside.
    pub fn owner_of_slot(&self, slot: Slot) -> &str {
        &self.partitions[usize::from(self.slots[usize::from(slot.0)])]
    }

    /// Tenants that live elsewhere than their slot says.
    pub fn pins(&self) -> &BTreeMap<String, String> {
        &self.pins
    }

    /// The next map, in which `tenant` lives on `partition`, or where its slot says if `None`.
    /// Moves no data: only for tenants that have none yet.
    pub fn with_pin(&self, tenant: &str, partition: Option<&str>) -> Result<Self, MapError> {
        let mut next = Self { epoch: self.epoch + 1, ..self.clone() };
        match partition {
            Some(name) if !self.partitions.iter().any(|known| known == name) => {
                return Err(MapError::Unknown(name.into()));
            }
            Some(name) => next.pins.insert(tenant.into(), name.into()),
            None => next.pins.remove(tenant),
        };
        Ok(next)
    }
}

fn check_names(partitions: &[String]) -> Result<(), MapError> {
    if partitions.is_empty() || usize::from(SLOTS) < partitions.len() {
        return Err(MapError::Count(partitions.len()));
    }
    let mut sorted: Vec<_> = partitions.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(MapError::Repeated(pair[0].clone())),
        None => Ok(()),
    }
}

impl TryFrom<Document> for PartitionMap {
    type Error = MapError;

    fn try_from(document: Document) -> Result<Self, MapError> {
        let Document { epoch, partitions, slots: ranges, pins } = document;
        check_names(&partitions)?;
        let index = |name: &String| {
            let found = partitions.iter().position(|known| known == name);
            found.ok_or_else(|| MapError::Unknown(name.clone()))
        };
        let mut slots = vec![None; usize::from(SLOTS)];
        for Range { first, last, partition } in ranges {
            if last < first || SLOTS <= last {
                return Err(MapError::Range { first, last });
            }
            let owner = index(&partition)? as u16;
            for slot in first..=last {
                if slots[usize::from(slot)].replace(owner).is_some() {
                    return Err(MapError::Shared(slot));
                }
            }
        }
        for partition in pins.values() {
            index(partition)?;
        }
        let owned = (0..SLOTS).zip(slots).map(|(slot, owner)| owner.ok_or(MapError::Unowned(slot)));
        let slots = owned.collect::<Result<_, _>>()?;
        Ok(Self { epoch, partitions, slots, pins })
    }
}

impl From<PartitionMap> for Document {
    fn from(map: PartitionMap) -> Self {
        let mut slots: Vec<Range> = Vec::new();
        for (slot, &owner) in (0..SLOTS).zip(&map.slots) {
            let partition = &map.partitions[usize::from(owner)];
            match slots.last_mut() {
                Some(range) if range.partition == *partition => range.last = slot,
                _ => slots.push(Range { first: slot, last: slot, partition: partition.clone() }),
            }
        }
        Self { epoch: map.epoch, partitions: map.partitions, slots, pins: map.pins }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("p{n}")).collect()
    }

    fn tenant(name: &str) -> ShardKey {
        ShardKey::Tenant(name.into())
    }

    proptest! {
        #[test]
        fn any_map_reads_back(
            count in 1_usize..40,
            cuts in prop::collection::vec((0..SLOTS, any::<prop::sample::Index>()), 0..30),
            pins in prop::collection::btree_map("[a-z]{1,8}", any::<prop::sample::Index>(), 0..5),
        ) {
            let mut map = PartitionMap::even(names(count)).unwrap();
            for (slot, owner) in cuts {
                map.slots[usize::from(slot)] = owner.index(count) as u16;
            }
            for (tenant, owner) in pins {
                map = map.with_pin(&tenant, Some(&format!("p{}", owner.index(count) + 1))).unwrap();
            }
            let text = serde_json::to_string(&map).unwrap();
            prop_assert_eq!(serde_json::from_str::<PartitionMap>(&text).unwrap(), map);
        }

        #[test]
        fn slots_are_shared_evenly(count in 1_usize..200) {
            let map = PartitionMap::even(names(count)).unwrap();
            let mut owned = vec![0_usize; count];
            map.slots.iter().for_each(|owner| owned[usize::from(*owner)] += 1);
            let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }

        #[test]
        fn every_key_has_an_owner(name in ".{0,80}", count in 1_usize..50) {
            let map = PartitionMap::even(names(count)).unwrap();
            for key in [tenant(&name), ShardKey::Node(name.clone()), ShardKey::System] {
                prop_assert!(key.slot().number() < SLOTS);
                prop_assert!(map.partitions().iter().any(|known| known == map.owner(&key)));
            }
        }
    }

    /// The hash is an on-disk contract. If this fails, every tenant would move.
    #[test]
    fn slots_are_pinned() {
        let keys = ["acme", "globex", "system", "", "node-1.example.com"];
        let slots = keys.map(|name| tenant(name).slot().number());
        assert_eq!(slots, [6369, 10031, 11760, 5314, 12136]);
        assert_eq!(ShardKey::System.slot(), tenant("system").slot());
        assert_eq!(ShardKey::Node("acme".into()).slot(), tenant("acme").slot());
    }

    #[test]
    fn keys_tell_their_shard() {
        assert_eq!(ShardKey::of("core/pods", "acme/default/web"), tenant("acme"));
        assert_eq!(ShardKey::of("core/pods", "system/default/web"), ShardKey::System);
        assert_eq!(ShardKey::of("core/nodes", "system//n1"), ShardKey::Node("n1".into()));
        // Of a tenant nothing is per node, whatever it is called.
        assert_eq!(ShardKey::of("core/nodes", "acme//n1"), tenant("acme"));
        let lease = |key| ShardKey::of("coordination.k8s.io/leases", key);
        assert_eq!(lease("system/kube-node-lease/n1"), ShardKey::Node("n1".into()));
        assert_eq!(lease("system/kube-system/n1"), ShardKey::System);
    }

    #[test]
    fn the_document_is_pinned() {
        let map = PartitionMap::even(names(2)).unwrap().with_pin("acme", Some("p2")).unwrap();
        let expected = concat!(
            r#"{"epoch":2,"partitions":["p1","p2"],"slots":["#,
            r#"{"first":0,"last":8191,"partition":"p1"},"#,
            r#"{"first":8192,"last":16383,"partition":"p2"}],"pins":{"acme":"p2"}}"#,
        );
        assert_eq!(serde_json::to_string(&map).unwrap(), expected);
    }

    #[test]
    fn a_pin_goes_before_the_slot() {
        let map = PartitionMap::even(names(2)).unwrap();
        let (home, other) = match map.owner(&tenant("acme")) {
            "p1" => ("p1", "p2"),
            _ => ("p2", "p1"),
        };
        let pinned = map.with_pin("acme", Some(other)).unwrap();
        assert_eq!(pinned.owner(&tenant("acme")), other);
        // A node of the same name is not the tenant's.
        assert_eq!(pinned.owner(&ShardKey::Node("acme".into())), home);
        assert_eq!(pinned.with_pin("acme", None).unwrap().owner(&tenant("acme")), home);
        assert_eq!(map.with_pin("acme", Some("p9")), Err(MapError::Unknown("p9".into())));
    }

    #[test]
    fn refuses_what_is_no_map() {
        #[track_caller]
        fn check(partitions: &str, slots: &str, pins: &str, expected: &MapError) {
            let text = format!(
                r#"{{"epoch":1,"partitions":[{partitions}],"slots":[{slots}],"pins":{{{pins}}}}}"#
            );
            let error = serde_json::from_str::<PartitionMap>(&text).unwrap_err();
            assert!(error.to_string().starts_with(&expected.to_string()), "{error}");
        }
        let range = |first: u16, last: u16, partition: &str| {
            format!(r#"{{"first":{first},"last":{last},"partition":"{partition}"}}"#)
        };
        let all = range(0, SLOTS - 1, "p1");
        let p1 = r#""p1""#;
        check("", &all, "", &MapError::Count(0));
        check(r#""p1","p1""#, &all, "", &MapError::Repeated("p1".into()));
        check(p1, &range(0, SLOTS - 1, "p2"), "", &MapError::Unknown("p2".into()));
        check(p1, &all, r#""acme":"p2""#, &MapError::Unknown("p2".into()));
        check(p1, &range(0, SLOTS - 2, "p1"), "", &MapError::Unowned(SLOTS - 1));
        check(p1, &format!("{all},{}", range(7, 7, "p1")), "", &MapError::Shared(7));
        check(p1, &range(0, SLOTS, "p1"), "", &MapError::Range { first: 0, last: SLOTS });
        check(p1, &range(9, 3, "p1"), "", &MapError::Range { first: 9, last: 3 });
    }
}
