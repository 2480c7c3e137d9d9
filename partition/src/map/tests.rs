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
