use serde_json::json;

use super::*;
use crate::structural::{
    apply::{Applier, ApplyError, Scope, apply},
    compare::compare,
    place::Deduced,
    versions::Only,
};

fn who(
    manager: &'static str,
    operation: Operation,
    api_version: &'static str,
) -> Identity<'static> {
    Identity {
        manager: manager.into(),
        operation,
        api_version: api_version.into(),
        subresource: "".into(),
    }
}

fn update<'a>(
    managers: &mut Managers<'a>,
    by: &Identity<'a>,
    old: &'a Value,
    new: &'a Value,
    now: &'a str,
) {
    managers.update(by, compare(Deduced, old, new).unwrap(), &[], now);
}

#[test]
fn an_update_takes_what_it_changes() {
    let (a, b) = (who("a", Operation::Update, "v1"), who("b", Operation::Update, "v1"));
    let (empty, one) = (json!({}), json!({"x": 1, "y": {"z": 1, "w": 1}}));
    let two = json!({"x": 2, "y": {"z": 1}});
    let mut managers = Managers::default();
    update(&mut managers, &a, &empty, &one, "2026-01-01T00:00:00Z");
    update(&mut managers, &b, &one, &two, "2026-01-02T00:00:00Z");
    assert_eq!(
        managers.encode().unwrap(),
        concat!(
            r#"[{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:y":{".":{},"f:z":{}}},"#,
            r#""manager":"a","operation":"Update","time":"2026-01-01T00:00:00Z"},"#,
            r#"{"apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:x":{}},"#,
            r#""manager":"b","operation":"Update","time":"2026-01-02T00:00:00Z"}]"#
        )
    );
}

#[test]
fn what_was_read_is_written_the_same() {
    let json = concat!(
        r#"[{"apiVersion":"apps/v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:replicas":{}}},"#,
        r#""manager":"m \"q\"","operation":"Apply"},"#,
        r#"{"apiVersion":"apps/v1","fieldsType":"FieldsV1","fieldsV1":{"f:status":{}},"#,
        r#""manager":"k","operation":"Update","subresource":"status","time":"2026-01-01T00:00:00Z"}]"#,
    );
    // As the text of any other value.
    assert_eq!(serde_json::from_str::<Value>(json).unwrap().to_string(), json);
    for trusted in [true, false] {
        assert_eq!(Managers::decode(json, trusted).unwrap().encode().unwrap(), json);
    }
}

#[test]
fn bad_lists_are_refused() {
    for json in [
        "{}",
        "[{}]",
        r#"[{"operation":"Apply"}]"#,
        r#"[{"operation":"Apply","apiVersion":"v1"}]"#,
        r#"[{"operation":"Apply","apiVersion":"v1","fieldsType":"FieldsV2"}]"#,
        r#"[{"operation":"Apply","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"x":{}}}]"#,
    ] {
        assert!(Managers::decode(json, false).is_err(), "{json}");
    }
}

#[test]
fn old_updates_become_one_manager() {
    let names: Vec<String> = (0..15).map(|n| format!("m{n:02}")).collect();
    let times: Vec<String> = (0..15).map(|n| format!("2026-01-01T00:00:{n:02}Z")).collect();
    let objects: Vec<Value> = (0..=15)
        .map(|n| Value::Object((0..n).map(|i| (format!("x{i:02}"), json!(i))).collect()))
        .collect();
    let mut managers = Managers::default();
    for n in 0..15 {
        let by = Identity { manager: names[n].as_str().into(), ..who("", Operation::Update, "v1") };
        update(&mut managers, &by, &objects[n], &objects[n + 1], &times[n]);
    }
    assert_eq!(managers.entries().len(), MAX_UPDATERS);
    let text = managers.encode().unwrap();
    assert!(
        text.starts_with(concat!(
            r#"[{"apiVersion":"v1","fieldsType":"FieldsV1","#,
            r#""fieldsV1":{"f:x00":{},"f:x01":{},"f:x02":{},"f:x03":{},"f:x04":{},"f:x05":{}},"#,
            r#""manager":"ancient-changes","operation":"Update","time":"2026-01-01T00:00:05Z"},"#,
        )),
        "{text}"
    );
}

/// Several appliers of one object without a schema.
struct Several {
    object: Value,
    managers: Managers<'static>,
}

impl Several {
    fn apply(
        &mut self,
        name: &'static str,
        force: bool,
        config: Value,
    ) -> Result<bool, ApplyError> {
        // The test's objects live as long as it does.
        let config: &'static Value = Box::leak(Box::new(config));
        let (by, scope) = (who(name, Operation::Apply, "v1"), Scope::default());
        let applier = Applier {
            identity: &by,
            scope: &scope,
            force,
            now: "2026-01-01T00:00:00Z",
            told_version: None,
        };
        let mut managers = self.managers.clone();
        let new = apply(&Only(Deduced), &self.object, config, &mut managers, applier)?;
        self.managers = managers;
        let changed = new.is_some();
        if let Some(new) = new {
            self.object = new;
        }
        Ok(changed)
    }
}

#[test]
fn appliers_share_an_object() {
    let mut it = Several { object: json!({}), managers: Managers::default() };
    assert!(it.apply("a", false, json!({"x": 1, "y": {"z": 1}})).unwrap());
    // The same again is nothing new.
    assert!(!it.apply("a", false, json!({"x": 1, "y": {"z": 1}})).unwrap());
    // Agreeing is no conflict, and shares.
    assert!(it.apply("b", false, json!({"x": 1, "y": {"w": 2}})).unwrap());
    // What two have, one alone cannot change.
    let error = it.apply("a", false, json!({"x": 2, "y": {"z": 1}})).unwrap_err();
    assert_eq!(error.to_string(), r#"Apply failed with 1 conflict: conflict with "b": .x"#);
    let error = it.apply("c", false, json!({"x": 2, "y": {"w": 3}})).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .x\nconflicts with \"b\":\n- .x\n- .y.w"
    );
    // Giving up a shared field leaves it; giving up an own one removes it.
    assert!(it.apply("a", false, json!({"y": {}})).unwrap());
    assert_eq!(it.object, json!({"x": 1, "y": {"w": 2}}));
    // Force takes.
    assert!(it.apply("a", true, json!({"x": 5})).unwrap());
    assert_eq!(it.object, json!({"x": 5, "y": {"w": 2}}));
    assert!(it.apply("b", false, json!({})).unwrap());
    assert_eq!(it.object, json!({"x": 5}));
    assert_eq!(it.managers.entries().len(), 1);
}
