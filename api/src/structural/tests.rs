//! The engine on built-in kinds, and laws that hold for any object.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    built_in::{self, BuiltIn},
    compare::compare,
    extract::{Duplicates, created, set_of},
    fields,
    merge::merge,
    place::{Deduced, Place},
    prune::without,
    set::Set,
};
use crate::schema::{Gvk, Schema};

fn root(group: &str, kind: &str) -> BuiltIn {
    BuiltIn::root(Schema::built_in().by_kind(&Gvk::new(group, "v1", kind)).unwrap())
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "nodeSelector": {"disk": "fast"},
                    "containers": [{
                        "name": "a", "image": "x:1", "resources": {}, "args": ["1", "2"],
                        "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}],
                        "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    }],
                },
            },
        },
        "status": {},
    })
}

/// As upstream's server answers for the same object.
#[test]
fn who_creates_owns_what_was_not_there_before() {
    let object = deployment();
    let set = created(root("apps", "Deployment"), &object).unwrap();
    let expected = concat!(
        r#"{"f:apiVersion":{},"f:kind":{},"f:metadata":{"f:labels":{".":{},"f:app":{}},"f:name":{}},"#,
        r#""f:spec":{"f:replicas":{},"f:selector":{},"#,
        r#""f:strategy":{"f:rollingUpdate":{".":{},"f:maxSurge":{}},"f:type":{}},"#,
        r#""f:template":{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"#,
        r#""f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:args":{},"#,
        r#""f:env":{".":{},"k:{\"name\":\"E\"}":{".":{},"f:name":{},"f:valueFrom":{".":{},"f:fieldRef":{}}}},"#,
        r#""f:image":{},"f:name":{},"#,
        r#""f:ports":{".":{},"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}},"#,
        r#""k:{\"containerPort\":80,\"protocol\":\"UDP\"}":{".":{},"f:containerPort":{},"f:protocol":{}}},"#,
        r#""f:resources":{}}},"f:nodeSelector":{}}}}}"#
    );
    assert_eq!(fields::encode(&set), expected);
}

#[test]
fn who_applies_owns_leaves_entries_and_items() {
    let object = json!({
        "metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]},
        "spec": {
            "template": {"spec": {"containers": [{"name": "a", "image": "x"}], "volumes": []}},
            "strategy": {},
        },
    });
    let set = set_of(root("apps", "Deployment"), &object, Duplicates::Refused).unwrap();
    let expected = concat!(
        r#"{"f:metadata":{"f:finalizers":{"v:\"x/y\"":{}},"f:labels":{"f:a":{}}},"#,
        r#""f:spec":{"f:strategy":{},"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:name":{}}}}}}}"#
    );
    assert_eq!(fields::encode(&set), expected);
}

#[test]
fn what_does_not_fit_is_told_by_its_path() {
    let check = |object: Value, expected: &str| {
        let error = set_of(root("", "Pod"), &object, Duplicates::Refused).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}),
        r#".spec.containers: duplicate entries for key [name="a"]"#,
    );
    check(
        json!({"spec": {"containers": [{"name": "a", "imag": "x"}]}}),
        r#".spec.containers[name="a"].imag: field not declared in schema"#,
    );
    check(
        json!({"metadata": {"ownerReferences": [{}]}, "spec": {"containers": ["x"]}}),
        ".spec.containers: element 0: associative list with keys may not have non-map elements",
    );
    check(json!({"spec": {"containers": {}}}), ".spec.containers: expected list, got &{map[]}");
}

/// What is applied is looked at before it is decoded, within what is one field, too.
#[test]
fn wrong_types_are_told_as_go_sees_them() {
    let check = |spec: Value, expected: &str| {
        let object = json!({ "spec": spec });
        let error = built_in::check(root("", "Pod"), &object).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        json!({"nodeName": [1, "x"]}),
        r#".spec.nodeName: expected string, got &value.valueUnstructured{Value:[]interface {}{1, "x"}}"#,
    );
    check(json!({"hostPID": "x"}), ".spec.hostPID: expected boolean, got &{x}");
    check(json!({"priority": "x"}), ".spec.priority: expected numeric (int or float), got string");
    check(
        json!({"overhead": {"cpu": {}}}),
        ".spec.overhead.cpu: expected any scalar, got &{map[]}",
    );
    check(json!({"overhead": 3}), ".spec.overhead: expected map, got &{3}");
    check(
        json!({"nodeSelector": {"a": "b"}, "securityContext": {"sysctls": [{"odd": 1}]}}),
        ".spec.securityContext.sysctls[0].odd: field not declared in schema",
    );
    let nothing = json!({"spec": {"nodeName": null, "overhead": {}, "containers": null}});
    assert_eq!(built_in::check(root("", "Pod"), &nothing), Ok(()));
}

#[track_caller]
fn check_merge(live: Value, config: Value, expected: Value) {
    assert_eq!(merge(root("", "Pod"), live, &config).unwrap(), expected);
}

#[test]
fn merging_goes_by_the_schema() {
    check_merge(
        json!({"spec": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "x"}]}}),
        json!({"spec": {"nodeSelector": {"c": "d"}, "tolerations": [{"key": "y"}]}}),
        json!({"spec": {"nodeSelector": {"c": "d"}, "tolerations": [{"key": "y"}]}}),
    );
    check_merge(
        json!({"metadata": {"labels": {"a": "b"}, "finalizers": ["x/1", "x/2"]}}),
        json!({"metadata": {"labels": {"c": "d"}, "finalizers": ["x/3", "x/2"]}}),
        json!({"metadata": {"labels": {"a": "b", "c": "d"}, "finalizers": ["x/1", "x/3", "x/2"]}}),
    );
}

#[test]
fn the_appliers_order_wins_and_others_keep_their_place() {
    let list = |names: &str| {
        let items: Vec<Value> = names.chars().map(|it| json!({"name": it.to_string()})).collect();
        json!({"spec": {"containers": items}})
    };
    for (live, config, expected) in [
        ("", "ab", "ab"),
        ("ab", "", "ab"),
        ("ab", "ba", "ba"),
        ("abc", "ca", "bca"),
        ("bac", "ab", "acb"),
        ("xaybz", "bqa", "xybzqa"),
        ("ab", "cd", "abcd"),
        ("aXb", "cab", "caXb"),
    ] {
        let merged = merge(root("", "Pod"), list(live), &list(config)).unwrap();
        assert_eq!(merged, list(expected), "{live} + {config}");
    }
}

/// Any object, with the same few names again and again.
fn object() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0..3).prop_map(Value::from),
        "[a-c]".prop_map(Value::from),
        prop::collection::vec(0..3, 0..3).prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(4, 32, 4, |inner| {
        prop::collection::btree_map("[a-d]", inner, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    prop::collection::btree_map("[a-d]", value, 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// Any container list and labels of a pod.
fn pod() -> impl Strategy<Value = Value> {
    let port =
        (80..83, prop::option::of(prop_oneof!["TCP", "UDP"])).prop_map(|(port, protocol)| {
            let mut it = json!({"containerPort": port});
            if let Some(protocol) = protocol {
                it["protocol"] = protocol.into();
            }
            it
        });
    let container = ("[a-e]", "[x-z]", prop::collection::vec(port, 0..3))
        .prop_map(|(name, image, ports)| json!({"name": name, "image": image, "ports": ports}));
    let labels = prop::collection::btree_map("[a-c]", "[a-c]", 0..3);
    let finalizers = prop::collection::btree_set("[a-e]", 0..4);
    (prop::collection::vec(container, 0..4), labels, finalizers).prop_map(
        |(mut containers, labels, finalizers)| {
            let key = |it: &Value, fields: &[&str]| -> Vec<String> {
                fields.iter().map(|field| it[*field].to_string()).collect()
            };
            for it in &mut containers {
                let Some(ports) = it["ports"].as_array_mut() else { continue };
                ports.iter_mut().filter(|it| it["protocol"].is_null()).for_each(|it| {
                    it.as_object_mut().map(|it| it.remove("protocol"));
                });
                ports.sort_by_key(|it| (it["containerPort"].as_i64(), it["protocol"] == "UDP"));
                ports.dedup_by_key(|it| (it["containerPort"].as_i64(), it["protocol"] == "UDP"));
            }
            containers.sort_by_key(|it| key(it, &["name"]));
            containers.dedup_by_key(|it| key(it, &["name"]));
            json!({
                "metadata": {"labels": labels, "finalizers": finalizers},
                "spec": {"containers": containers},
            })
        },
    )
}

/// What holds for two objects under any schema.
fn laws<P: Place>(root: P, one: &Value, two: &Value) {
    // Nothing changes between an object and itself.
    assert!(compare(root, one, one).unwrap().is_empty());
    // What is added one way is removed the other way.
    let (there, back) = (compare(root, one, two).unwrap(), compare(root, two, one).unwrap());
    assert_eq!(there.added, back.removed);
    assert_eq!(there.removed, back.added);
    assert_eq!(there.modified, back.modified);
    assert!(!there.added.meets(&there.modified) && !there.added.meets(&there.removed));

    // Merging is idempotent, and has all that was merged into it.
    let merged = merge(root, one.clone(), two).unwrap();
    assert_eq!(merge(root, merged.clone(), two).unwrap(), merged);
    let set = set_of(root, two, Duplicates::Refused).unwrap();
    let difference = compare(root, two, &merged).unwrap();
    assert!(!difference.modified.meets(&set) && !difference.removed.meets(&set), "{merged}");

    // Without its paths nothing is left of an object, and without nothing it is as it was.
    let set = set_of(root, one, Duplicates::Refused).unwrap().with_named(Some(root));
    assert_eq!(without(root, one.clone(), &Set::EMPTY, &Set::EMPTY), *one);
    let bare = without(root, one.clone(), &set, &Set::EMPTY);
    assert!(set_of(root, &bare, Duplicates::Refused).unwrap().is_empty(), "{bare}");
}

proptest! {
    #[test]
    fn laws_without_a_schema(one in object(), two in object()) {
        laws(Deduced, &one, &two);
    }

    #[test]
    fn laws_of_pods(one in pod(), two in pod()) {
        laws(root("", "Pod"), &one, &two);
    }

    /// Whatever is thrown at a kind's places, they answer.
    #[test]
    fn no_object_is_too_odd(one in object(), two in object()) {
        let nest = |it: &Value| json!({"spec": {"containers": it["a"], "volumes": [it["b"], it["b"]]}, "metadata": it["c"]});
        let (one, two) = (nest(&one), nest(&two));
        let root = root("", "Pod");
        // What can be taken apart can be compared and created; what cannot is told.
        let set = set_of(root, &one, Duplicates::One);
        prop_assert_eq!(set.is_ok(), created(root, &one).is_ok());
        let nothing = json!({});
        prop_assert!(set.is_err() || compare(root, &nothing, &one).is_ok());
        if let (Ok(set), Ok(merged)) = (set, merge(root, two.clone(), &one)) {
            let rest = without(root, merged, &set.with_named(Some(root)), &Set::EMPTY);
            prop_assert!(rest.is_object());
        }
    }
}
