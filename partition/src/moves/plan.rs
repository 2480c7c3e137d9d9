//! Which moves make every partition have its share of slots, and drained ones none.
//!
//! A pure function of the map: whoever asks twice gets the same answer.

use crate::map::{PartitionMap, Scope, SlotRange};

/// Slots per move at most, so that none takes long.
const AT_MOST: u16 = 1024;

/// A move that should be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMove {
    pub scope: Scope,
    pub from: String,
    pub to: String,
}

/// The moves that even out `map`, or with `drain_only` those that empty what is being drained.
///
/// Moves from whoever has most over its share to whoever lacks most, whole ranges from their
/// ends. Gives nothing while moves are under way, nor if there is nowhere to go.
pub fn plan(map: &PartitionMap, drain_only: bool) -> Vec<PlannedMove> {
    if !map.moves().is_empty() {
        return Vec::new();
    }
    let open: Vec<&str> =
        map.infos().iter().filter(|info| !info.draining).map(|info| &*info.name).collect();
    if open.is_empty() {
        return Vec::new();
    }
    let total = usize::from(crate::map::SLOTS);
    // The share of each, the first ones one more if it does not come out even.
    let share = |name: &str| match open.iter().position(|it| *it == name) {
        Some(at) => total / open.len() + usize::from(at < total % open.len()),
        None => 0,
    };
    let mut has: Vec<(String, usize)> =
        map.infos().iter().map(|info| (info.name.clone(), map.slots_of(&info.name))).collect();
    let mut ranges: Vec<(SlotRange, String)> =
        map.ranges().into_iter().map(|(range, name)| (range, name.to_owned())).collect();
    let mut moves = Vec::new();
    loop {
        let drained = |name: &str| !open.contains(&name);
        let over = |(name, slots): &(String, usize)| slots.saturating_sub(share(name));
        let from = has
            .iter()
            .filter(|it| 0 < over(it) && (!drain_only || drained(&it.0)))
            .max_by_key(|it| (drained(&it.0), over(it)))
            .map(|(name, _)| name.clone());
        let lacks = |(name, slots): &(String, usize)| share(name).saturating_sub(*slots);
        let to = has.iter().filter(|it| !drained(&it.0)).max_by_key(|it| lacks(it));
        let (Some(from), Some(to)) = (from, to.cloned()) else { break };
        let spare = has.iter().find(|(name, _)| *name == from).map_or(0, over);
        // Draining goes on when everybody has its share.
        let wanted = match lacks(&to) {
            0 if drained(&from) => spare,
            lacks => lacks.min(spare),
        };
        let wanted = u16::try_from(wanted).unwrap_or(u16::MAX).min(AT_MOST);
        let last = ranges.iter().rposition(|(_, owner)| *owner == from);
        let (Some(at), true) = (last, 0 < wanted) else { break };
        let whole = ranges[at].0;
        let first = whole.last - (wanted - 1).min(whole.last - whole.first);
        let taken = SlotRange { first, last: whole.last };
        if first == whole.first {
            ranges.remove(at);
        } else {
            ranges[at].0.last = first - 1;
        }
        for (name, slots) in &mut has {
            if *name == from {
                *slots -= taken.count();
            } else if *name == to.0 {
                *slots += taken.count();
            }
        }
        let scope = map.slots_scope(taken.first, taken.last);
        moves.push(PlannedMove { scope, from, to: to.0 });
    }
    moves.extend(pinned(map, &open));
    moves
}

/// The moves that give partitions that are being filled their share.
pub fn plan_filling(map: &PartitionMap) -> Vec<PlannedMove> {
    let filling = |name: &str| map.info(name).is_some_and(|info| info.filling);
    plan(map, false).into_iter().filter(|planned| filling(&planned.to)).collect()
}

/// Tenants that are pinned to what is being drained, spread over the others.
fn pinned(map: &PartitionMap, open: &[&str]) -> Vec<PlannedMove> {
    let drained = map.pins().iter().filter(|(_, partition)| !open.contains(&partition.as_str()));
    let planned = drained.zip(open.iter().cycle()).map(|((tenant, from), to)| PlannedMove {
        scope: Scope::Tenant(tenant.clone()),
        from: from.clone(),
        to: (*to).to_owned(),
    });
    planned.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::map::{Moving, PartitionInfo};

    fn map(
        count: usize,
        added: usize,
        drained: &[usize],
        pins: &[(String, usize)],
    ) -> PartitionMap {
        let name = |n: usize| format!("p{n}");
        let mut map = PartitionMap::even((0..count).map(name).collect()).unwrap();
        map = map.with_server("s1", "").unwrap();
        for n in count..count + added {
            map = map.with_partition(PartitionInfo::embedded(&name(n), &["s1"])).unwrap();
        }
        for (tenant, n) in pins {
            map = map.with_pin(tenant, Some(&name(n % (count + added)))).unwrap();
        }
        for n in drained {
            map = map.with_draining(&name(n % (count + added)), true).unwrap();
        }
        map
    }

    fn done(map: &PartitionMap, moves: Vec<PlannedMove>) -> PartitionMap {
        moves.into_iter().fold(map.clone(), |map, PlannedMove { scope, from, to }| {
            map.with_move("m", Moving::new(scope, from, to))
                .unwrap()
                .with_flip("m")
                .unwrap()
                .without_move("m")
                .unwrap()
        })
    }

    proptest! {
        /// Carried out, a plan leaves every open partition with its share and drained ones with
        /// nothing, and then there is nothing left to do.
        #[test]
        fn a_plan_does_what_it_is_for(
            count in 1_usize..6, added in 0_usize..3,
            drained in prop::collection::vec(0_usize..9, 0..4),
            pins in prop::collection::vec(("[a-z]{1,5}", 0_usize..9), 0..6),
        ) {
            let map = map(count, added, &drained, &pins);
            let open: Vec<_> = map.infos().iter().filter(|info| !info.draining).collect();
            prop_assume!(!open.is_empty());
            let after = done(&map, plan(&map, false));
            for info in after.infos() {
                let slots = after.slots_of(&info.name);
                let share = 16_384 / open.len();
                if info.draining {
                    prop_assert_eq!(slots, 0);
                    prop_assert!(after.without_partition(&info.name).is_ok());
                } else {
                    prop_assert!((share..=share + 1).contains(&slots), "{} of {}", slots, share);
                }
            }
            prop_assert_eq!(plan(&after, false), []);

            let drained = done(&map, plan(&map, true));
            prop_assert_eq!(plan(&drained, true), []);
            prop_assert!(drained.infos().iter().all(|it| !it.draining || drained.slots_of(&it.name) == 0));
        }
    }

    #[test]
    fn a_new_partition_gets_its_share_and_others_keep_theirs() {
        let map = map(2, 1, &[], &[]);
        let moves = plan(&map, false);
        assert!(moves.iter().all(|it| it.to == "p2"));
        assert!(moves.len() <= 8, "{}", moves.len());
        assert_eq!(plan(&map, true), []);
    }

    #[test]
    fn nothing_is_planned_while_something_moves() {
        let before = map(2, 1, &[], &[]);
        let PlannedMove { scope, from, to } = plan(&before, false).remove(0);
        let moving = before.with_move("m", Moving::new(scope, from, to)).unwrap();
        assert_eq!(plan(&moving, false), []);
        assert_eq!(plan(&map(1, 0, &[0], &[]), false), []);
    }

    #[test]
    fn who_is_filled_gets_its_share_and_others_nothing() {
        let added = map(2, 2, &[], &[]);
        assert_eq!(plan_filling(&added), []);
        let filling = added.with_filling("p3", true).unwrap();
        let planned = plan_filling(&filling);
        assert!(planned.iter().all(|it| it.to == "p3"), "{planned:?}");
        let after = done(&filling, planned);
        assert_eq!((after.slots_of("p3"), after.slots_of("p2")), (4096, 0));
        assert_eq!(plan_filling(&after), []);
        // Both ways at once are none.
        assert!(
            filling.with_draining("p3", true).unwrap().info("p3").is_some_and(|it| !it.filling)
        );
        assert!(added.with_draining("p3", true).unwrap().with_filling("p3", true).is_err());
    }
}
