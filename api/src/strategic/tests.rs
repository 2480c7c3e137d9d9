use serde_json::json;

use super::*;
use crate::schema::Gvk;

#[track_caller]
fn check(live: Value, patch: Value, expected: Value) {
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("", "v1", "Pod")).unwrap();
    assert_eq!(merge(schema, &Shape::Object(id), live, patch).unwrap(), expected);
}

#[test]
fn keyed_lists_are_merged() {
    check(
        json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "a", "image": "2"}, {"name": "c"}]}}),
        // What the patch names comes before what it does not know.
        json!({"spec": {"containers": [{"name": "a", "image": "2", "args": ["x"]}, {"name": "c"}, {"name": "b"}]}}),
    );
}

#[test]
fn items_are_deleted_by_directive() {
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
        json!({"spec": {"containers": [{"name": "b"}]}}),
    );
}

#[test]
fn order_is_set() {
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}}),
        json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "x"}]}}),
        json!({"spec": {"containers": [{"name": "s"}, {"name": "b", "image": "x"}, {"name": "a"}]}}),
    );
}

#[test]
fn scalars_lists_and_nulls() {
    check(
        json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}}),
        json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"], "labels": {"x": null}}}),
        json!({"metadata": {"finalizers": ["c", "b"], "labels": {"y": "2"}}}),
    );
}

#[test]
fn retain_keys_and_replace() {
    check(
        json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
        json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}),
        json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
    );
    check(
        json!({"spec": {"nodeSelector": {"a": "b"}}}),
        json!({"spec": {"nodeSelector": {"$patch": "replace", "c": "d"}}}),
        json!({"spec": {"nodeSelector": {"c": "d"}}}),
    );
}

#[test]
fn new_items_go_where_the_order_says() {
    let list = |names: &str| -> Vec<Value> {
        names.chars().map(|it| json!({"name": it.to_string()})).collect()
    };
    for (live, patch, order, expected) in [
        ("ab", "c", "abc", "abc"),
        ("ab", "c", "cab", "cab"),
        ("asb", "n", "bna", "sbna"),
        ("xaybz", "", "ba", "xybaz"),
        ("ab", "", "", "ab"),
    ] {
        check(
            json!({"spec": {"containers": list(live)}}),
            json!({"spec": {"$setElementOrder/containers": list(order), "containers": list(patch)}}),
            json!({"spec": {"containers": list(expected)}}),
        );
    }
}

#[test]
fn a_list_is_replaced_by_directive() {
    check(
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
        json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c", "image": null}, {"name": "a", "$patch": "delete"}]}}),
        json!({"spec": {"containers": [{"name": "c"}]}}),
    );
    check(
        json!({"spec": {"nodeSelector": {"a": "b"}, "hostNetwork": true}}),
        json!({"spec": {"nodeSelector": {"$patch": "delete"}, "volumes": [{"name": "v", "$patch": "delete"}]}}),
        json!({"spec": {"nodeSelector": {}, "hostNetwork": true, "volumes": []}}),
    );
}

#[test]
fn what_is_wrong_is_told() {
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("", "v1", "Pod")).unwrap();
    let live = json!({
        "metadata": {"finalizers": ["x/y"]},
        "spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v"}]},
    });
    let failed = |patch: Value| {
        let error = merge(schema, &Shape::Object(id), live.clone(), patch).unwrap_err();
        (error.to_string(), error.is_format())
    };
    let spec = |it: Value| json!({ "spec": it });
    for (patch, message, is_format) in [
        (json!([]), "invalid JSON document", true),
        (
            spec(json!({"containers": [{"image": "x"}]})),
            r#"map: {"image":"x"} does not contain declared merge key: name"#,
            false,
        ),
        (
            spec(json!({"containers": [{"name": "a", "$patch": "smash"}]})),
            r#"unknown patch type: smash in map: {"$patch":"smash","name":"a"}"#,
            false,
        ),
        (
            spec(json!({"containers": [{"name": "a", "$patch": "merge"}]})),
            "merging lists cannot yet be specified in the patch",
            false,
        ),
        (
            spec(json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "emptyDir": {}}]})),
            "invalid patch format of retainKeys",
            true,
        ),
        (
            spec(json!({"$setElementOrder/containers": {}})),
            "invalid patch format of setElementOrder list",
            true,
        ),
        (
            spec(json!({
                "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
                "containers": [{"name": "b"}, {"name": "a"}],
            })),
            "the order in the patch of containers does not match its $setElementOrder list",
            false,
        ),
        (
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}),
            "invalid patch format of primitive list",
            true,
        ),
        (spec(json!({"containers": [["x"]]})), "lists of lists are not supported", false),
    ] {
        assert_eq!(failed(patch), (message.to_owned(), is_format));
    }
}

/// The cost is that of patch and object together, not of one times the other.
#[test]
fn long_lists_take_no_longer_than_they_are() {
    let names = |from: usize| -> Vec<Value> {
        (from..from + 20_000).map(|n| json!({"name": format!("c{n}")})).collect()
    };
    let order: Vec<Value> = names(10_000).into_iter().rev().collect();
    let schema = Schema::built_in();
    let id = schema.by_kind(&Gvk::new("", "v1", "Pod")).unwrap();
    let live = json!({"spec": {"containers": names(0)}});
    let patch =
        json!({"spec": {"$setElementOrder/containers": order.clone(), "containers": order}});
    let begun = std::time::Instant::now();
    let merged = merge(schema, &Shape::Object(id), live, patch).unwrap();
    assert_eq!(merged["spec"]["containers"].as_array().unwrap().len(), 30_000);
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

mod laws {
    use proptest::prelude::*;

    use super::*;

    /// Containers with few names and, in a patch, directives.
    fn containers(directives: bool) -> impl Strategy<Value = Value> {
        let directive = prop_oneof![8 => Just(""), 1 => Just("delete"), 1 => Just("replace")];
        let item = ("[a-e]", prop::option::of("[x-z]"), directive).prop_map(
            move |(name, image, directive)| {
                let mut it = json!({"name": name, "image": image});
                if directives && !directive.is_empty() {
                    it["$patch"] = directive.into();
                }
                it
            },
        );
        prop::collection::vec(item, 0..5).prop_map(|mut list| {
            let mut seen = HashSet::new();
            list.retain(|it: &Value| seen.insert(it["name"].to_string()));
            list.into()
        })
    }

    fn live() -> impl Strategy<Value = Value> {
        let finalizers = prop::collection::btree_set("[a-d]", 0..4);
        (containers(false), finalizers).prop_map(|(containers, finalizers)| {
            json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers}})
        })
    }

    fn patch() -> impl Strategy<Value = Value> {
        let names = || prop::collection::btree_set("[a-d]", 0..3);
        let order = prop::option::of(Just("edcba".to_owned()).prop_shuffle_text());
        (containers(true), names(), names(), order).prop_map(|(containers, more, gone, order)| {
            let mut patch = json!({
                "metadata": {"finalizers": more, "$deleteFromPrimitiveList/finalizers": gone},
                "spec": {"containers": containers},
            });
            if let Some(order) = order {
                let names: Vec<Value> =
                    order.chars().map(|it| json!({"name": it.to_string()})).collect();
                patch["spec"]["$setElementOrder/containers"] = names.into();
            }
            patch
        })
    }

    /// A text with its letters in any order.
    trait ShuffleText {
        fn prop_shuffle_text(self) -> impl Strategy<Value = String>;
    }

    impl<S: Strategy<Value = String>> ShuffleText for S {
        fn prop_shuffle_text(self) -> impl Strategy<Value = String> {
            self.prop_map(|it| it.chars().collect::<Vec<_>>())
                .prop_shuffle()
                .prop_map(|it| it.into_iter().collect())
        }
    }

    fn apply(live: &Value, patch: &Value) -> Result<Value, PatchError> {
        let schema = Schema::built_in();
        let id = schema.by_kind(&Gvk::new("", "v1", "Pod")).unwrap();
        merge(schema, &Shape::Object(id), live.clone(), patch.clone())
    }

    proptest! {
        #[test]
        fn an_empty_patch_changes_nothing(live in live()) {
            prop_assert_eq!(apply(&live, &json!({})).unwrap(), live);
        }

        /// Doing it twice is doing it once, no directive survives, and no key is there twice.
        #[test]
        fn patches_are_idempotent(live in live(), patch in patch()) {
            // An order that does not fit its list is refused.
            let Ok(once) = apply(&live, &patch) else { return Ok(()) };
            prop_assert_eq!(&apply(&once, &patch).unwrap(), &once);
            prop_assert!(!once.to_string().contains('$'), "{}", once);
            let list = once["spec"]["containers"].as_array().cloned().unwrap_or_default();
            let names: HashSet<String> = list.iter().map(|it| it["name"].to_string()).collect();
            prop_assert_eq!(names.len(), list.len());
        }
    }
}
