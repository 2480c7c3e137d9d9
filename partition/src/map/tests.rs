//! Maps: what they say, which documents are maps, and that every change keeps them maps.

use proptest::prelude::*;

use super::*;

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("p{n}")).collect()
}

fn tenant(name: &str) -> ShardKey {
    ShardKey::Tenant(name.into())
}

fn server(name: &str) -> ServerInfo {
    ServerInfo { id: 1, name: name.into(), address: String::new(), ready: Vec::new() }
}

/// A map of embedded partitions on `s1`.
fn first(count: usize) -> PartitionMap {
    let embedded = |name: &String| PartitionInfo::embedded(name, &["s1"]);
    let meta = PartitionInfo::embedded("meta", &["s1"]);
    let infos = names(count).iter().map(embedded).collect();
    PartitionMap::first("c1", Some(server("s1")), meta, infos).unwrap()
}

/// One of the things that an operator or a move does to a map.
fn change(map: &PartitionMap, what: u8, n: u16, m: u16) -> Result<PartitionMap, MapError> {
    let partition = |n: u16| map.partitions()[usize::from(n) % map.partitions().len()].clone();
    let name = format!("t{}", n % 7);
    match what {
        0 => map.with_pin(&name, Some(&partition(m))),
        1 => map.with_pin(&name, None),
        2 => map.with_server(&format!("s{}", n % 4), "a:1"),
        3 => map.without_server(&format!("s{}", n % 4)),
        4 => map.with_partition(PartitionInfo::embedded(&format!("q{}", n % 5), &["s1"])),
        5 => map.without_partition(&partition(n)),
        6 => map.with_draining(&partition(n), m.is_multiple_of(2)),
        7 => {
            let scope = Scope::Tenant(name.clone());
            let from = map.owner(&tenant(&name)).to_owned();
            map.with_move(&format!("m{}", m % 5), Moving::new(scope, from, partition(m)))
        }
        8 => {
            let ranges = map.ranges();
            let (range, from) = ranges[usize::from(n) % ranges.len()];
            let last = range.first + m % (range.last - range.first + 1);
            let scope = map.slots_scope(range.first, last);
            let moving = Moving::new(scope, from, partition(m));
            map.with_move(&format!("m{}", m % 5), moving)
        }
        9 => map.with_flip(&format!("m{}", m % 5)),
        10 => map.without_move(&format!("m{}", m % 5)),
        11 => map.with_members(&partition(n), vec![format!("s{}", m % 4)]),
        _ => map.with_ready(&format!("s{}", n % 4), vec![partition(m)]),
    }
}

proptest! {
    /// Whatever is done to a map in whatever order: it stays one, reads back, and grows.
    #[test]
    fn changes_keep_a_map_a_map(
        count in 1_usize..6,
        steps in prop::collection::vec((0_u8..13, any::<u16>(), any::<u16>()), 0..60),
    ) {
        let mut map = first(count);
        for (what, n, m) in steps {
            let Ok(next) = change(&map, what, n, m) else { continue };
            prop_assert_eq!(next.epoch() != map.epoch(), next != map);
            prop_assert!(map.epoch() <= next.epoch());
            prop_assert_eq!(next.cluster(), map.cluster());
            // A new owner only by a flip or a pin.
            if !matches!(what, 0 | 1 | 9) {
                for n in 0..7 {
                    let key = tenant(&format!("t{n}"));
                    prop_assert_eq!(next.owner(&key), map.owner(&key));
                }
            }
            let text = serde_json::to_string(&next).unwrap();
            prop_assert_eq!(&serde_json::from_str::<PartitionMap>(&text).unwrap(), &next);
            map = next;
        }
    }

    /// A flip moves its scope and nothing else.
    #[test]
    fn a_flip_moves_its_scope_only(
        first_slot in 0..SLOTS, len in 0_u16..3000, pinned in 0_usize..4, target in 0_usize..3,
        tenants in prop::collection::vec("[a-z]{1,6}", 1..20),
    ) {
        let mut map = first(3);
        for name in tenants.iter().take(pinned) {
            map = map.with_pin(name, Some("p1")).unwrap();
        }
        let slot = Slot::new(first_slot).unwrap();
        let from = map.owner_of_slot(slot).to_owned();
        let (range, _) = map.ranges().into_iter().find(|(range, _)| range.first <= first_slot && first_slot <= range.last).unwrap();
        let scope = map.slots_scope(first_slot, range.last.min(first_slot.saturating_add(len)));
        let to = names(3)[target].clone();
        prop_assume!(from != to);
        let moving = Moving::new(scope.clone(), from, to.clone());
        let next = map.with_move("m", moving).unwrap().with_flip("m").unwrap();
        prop_assert!(next.moves()["m"].flipped);
        for name in &tenants {
            let key = tenant(name);
            let expected = if scope.contains(key.as_shard()) { &*to } else { map.owner(&key) };
            prop_assert_eq!(next.owner(&key), expected);
        }
        prop_assert!(next.without_move("m").unwrap().moves().is_empty());
    }

    #[test]
    fn scopes_agree_with_what_they_contain(
        a in (0..200_u16, 0..200_u16), b in (0..200_u16, 0..200_u16), name in "[a-z]{1,4}",
    ) {
        let range = |(x, y): (u16, u16)| Scope::slots(x.min(y), x.max(y));
        let (a, b) = (range(a), range(b));
        let nodes: Vec<String> = (0..2000).map(|n| format!("n{n}")).collect();
        let within = |scope: &Scope, name: &str| scope.contains(Shard::Node(name));
        if a.covers(&b) {
            prop_assert!(nodes.iter().all(|it| !within(&b, it) || within(&a, it)));
        }
        if !a.overlaps(&b) {
            prop_assert!(!nodes.iter().any(|it| within(&a, it) && within(&b, it)));
        }
        prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
        let tenant = Scope::Tenant(name.clone());
        prop_assert_eq!(a.overlaps(&tenant), a.contains(Shard::Tenant(&name)));
        prop_assert!(tenant.covers(&tenant) && !tenant.covers(&a));
    }

    #[test]
    fn slots_are_shared_evenly(count in 1_usize..200) {
        let map = PartitionMap::even(names(count)).unwrap();
        let owned: Vec<_> = names(count).iter().map(|name| map.slots_of(name)).collect();
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
    let map = first(2).with_pin("acme", Some("p2")).unwrap();
    let scope = map.slots_scope(0, 7000);
    let map = map.with_move("m1", Moving::new(scope, "p1", "p2")).unwrap();
    let expected = concat!(
        r#"{"cluster":"c1","epoch":3,"servers":[{"id":1,"name":"s1","address":""}],"nextServer":2,"#,
        r#""meta":{"name":"meta","backend":"embedded","servers":["s1"]},"#,
        r#""partitions":[{"name":"p1","backend":"embedded","servers":["s1"]},"#,
        r#"{"name":"p2","backend":"embedded","servers":["s1"]}],"#,
        r#""slots":[{"first":0,"last":8191,"partition":"p1"},"#,
        r#"{"first":8192,"last":16383,"partition":"p2"}],"pins":{"acme":"p2"},"#,
        r#""moves":{"m1":{"scope":{"slots":{"first":0,"last":7000,"except":["acme"]}},"#,
        r#""from":"p1","to":"p2"}}}"#,
    );
    assert_eq!(serde_json::to_string(&map).unwrap(), expected);
}

#[test]
fn the_first_version_of_the_document_is_read() {
    let text = concat!(
        r#"{"epoch":2,"partitions":["p1"],"slots":["#,
        r#"{"first":0,"last":16383,"partition":"p1"}],"pins":{"acme":"p1"}}"#,
    );
    let map: PartitionMap = serde_json::from_str(text).unwrap();
    assert_eq!((map.epoch(), map.partitions(), map.cluster()), (2, &names(1)[..], ""));
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
fn nothing_goes_to_a_partition_that_is_drained() {
    let map = first(2).with_draining("p2", true).unwrap();
    let name = ["a", "b", "c", "d"].into_iter().find(|name| map.owner(&tenant(name)) == "p1");
    let name = name.unwrap();
    assert_eq!(map.with_pin(name, Some("p2")), Err(MapError::Draining("p2".into())));
    let moving = Moving::new(Scope::Tenant(name.into()), "p1", "p2");
    assert_eq!(map.with_move("m", moving), Err(MapError::Draining("p2".into())));
    assert!(matches!(map.without_partition("p2"), Err(MapError::InUse { .. })));
}

#[test]
fn a_server_that_is_gone_leaves_no_partition_alone() {
    let map = first(1).with_server("s2", "b:1").unwrap();
    assert_eq!(map.without_server("s1"), Err(MapError::NoMember("meta".into())));
    let both = || vec!["s1".to_owned(), "s2".to_owned()];
    let map = map.with_members("meta", both()).unwrap().with_members("p1", both()).unwrap();
    let map = map.without_server("s1").unwrap();
    assert_eq!(map.info("p1").unwrap().servers, ["s2"]);
    // Its number is never given again.
    assert_eq!(map.with_server("s1", "a:1").unwrap().server("s1").unwrap().id, 3);
    assert!(matches!(map.without_server("s9"), Err(MapError::UnknownServer(_))));
    assert!(matches!(map.with_members("p1", vec!["s9".into()]), Err(MapError::UnknownServer(_))));
}

#[test]
fn moves_never_overlap() {
    let map = first(2);
    let (from, to) = match map.owner(&tenant("acme")) {
        "p1" => ("p1", "p2"),
        _ => ("p2", "p1"),
    };
    let slot = tenant("acme").slot().number();
    let moving = |scope| Moving::new(scope, from, to);
    let one = map.with_move("m1", moving(Scope::Tenant("acme".into()))).unwrap();
    let range = moving(one.slots_scope(slot, slot));
    assert!(matches!(one.with_move("m2", range.clone()), Err(MapError::Busy { .. })));
    assert!(matches!(one.with_pin("acme", None), Err(MapError::Busy { .. })));
    let back = one.without_move("m1").unwrap().with_move("m2", range).unwrap();
    assert!(matches!(back.with_pin("acme", Some(to)), Err(MapError::Busy { .. })));
    let elsewhere = Moving::new(Scope::Tenant("acme".into()), to, from);
    assert!(matches!(map.with_move("m", elsewhere), Err(MapError::Elsewhere { .. })));
}

#[test]
fn refuses_what_is_no_map() {
    #[track_caller]
    fn check(partitions: &str, slots: &str, more: &str, expected: &MapError) {
        let text = format!(r#"{{"epoch":1,"partitions":[{partitions}],"slots":[{slots}]{more}}}"#);
        let error = serde_json::from_str::<PartitionMap>(&text).unwrap_err();
        assert!(error.to_string().starts_with(&expected.to_string()), "{error}");
    }
    let range = |first: u16, last: u16, partition: &str| {
        format!(r#"{{"first":{first},"last":{last},"partition":"{partition}"}}"#)
    };
    let all = range(0, SLOTS - 1, "p1");
    let p1 = r#""p1""#;
    check("", "", "", &MapError::Count(0));
    check(r#""p1","p1""#, &all, "", &MapError::Repeated("p1".into()));
    check(r#""p1","P""#, &all, "", &MapError::Name("P".into()));
    check(r#""p1","meta""#, &all, "", &MapError::Name("meta".into()));
    check(p1, &range(0, SLOTS - 1, "p2"), "", &MapError::Unknown("p2".into()));
    check(p1, &all, r#","pins":{"acme":"p2"}"#, &MapError::Unknown("p2".into()));
    check(p1, &range(0, SLOTS - 2, "p1"), "", &MapError::Unowned(SLOTS - 1));
    check(p1, &format!("{all},{}", range(7, 7, "p1")), "", &MapError::Shared(7));
    check(p1, &range(0, SLOTS, "p1"), "", &MapError::Range { first: 0, last: SLOTS });
    check(p1, &range(9, 3, "p1"), "", &MapError::Range { first: 9, last: 3 });
    let s = |id: u64, name: &str| format!(r#"{{"id":{id},"name":"{name}"}}"#);
    let servers = |a: String, b: String| format!(r#","servers":[{a},{b}],"nextServer":9"#);
    let twice = MapError::RepeatedServer("b".into());
    check(p1, &all, &servers(s(1, "a"), s(1, "b")), &twice);
    check(p1, &all, &servers(s(1, "b"), s(2, "b")), &twice);
    check(p1, &all, &servers(s(1, "a"), s(9, "b")), &MapError::ServerName("b".into()));
    let lost = r#"{"name":"p1","servers":["s9"]}"#;
    check(lost, &all, "", &MapError::UnknownServer("s9".into()));
}

#[test]
fn two_partitions_never_share_an_etcd() {
    let etcd = |name: &str, prefix: &str| PartitionInfo {
        name: name.into(),
        backend: Backend::Etcd(EtcdPlace {
            endpoints: vec!["http://e:1".into()],
            prefix: prefix.into(),
            relaxed: Vec::new(),
        }),
        ..PartitionInfo::default()
    };
    let meta = || PartitionInfo::embedded("meta", &[]);
    let map = |infos| PartitionMap::first("c", None, meta(), infos);
    assert!(map(vec![etcd("a", "/x"), etcd("b", "/y")]).is_ok());
    let shared = map(vec![etcd("a", "/x"), etcd("b", "x/")]);
    assert!(matches!(shared, Err(MapError::Etcd(_))), "{shared:?}");
    assert!(matches!(map(vec![etcd("a", "/")]), Err(MapError::Etcd(_))));
}

#[test]
fn a_partition_that_leaves_shifts_no_owner() {
    let mut map = first(3);
    let scope = |map: &PartitionMap, (range, _): (SlotRange, &str)| {
        map.slots_scope(range.first, range.last)
    };
    let range = map.ranges()[1];
    let moving = Moving::new(scope(&map, range), "p2", "p1");
    map = map.with_move("m", moving).unwrap().with_flip("m").unwrap();
    let owners = |map: &PartitionMap| -> Vec<String> {
        (0..SLOTS).map(|slot| map.owner_of_slot(Slot::new(slot).unwrap()).to_owned()).collect()
    };
    // Its target is not open yet.
    assert!(matches!(map.without_partition("p2"), Err(MapError::Busy { .. })));
    let next = map.without_move("m").unwrap().without_partition("p2").unwrap();
    assert_eq!(owners(&next), owners(&map));
    assert_eq!(next.partitions(), ["p1", "p3"]);
}
