use serde_json::{Value, json};

use super::*;

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(|it| format!("{}: {}", it.field, it.message)).collect()
}

/// What the check of a schema says.
#[track_caller]
fn refused(schema: &Value, expected: &[&str]) {
    let mut schema = Schema::compile(schema).unwrap();
    let errors = check(&mut schema, &Path::Field(&Path::Root, "s"));
    let found = texts(&errors);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}

/// What rules say of an object.
#[track_caller]
fn validated(schema: &Value, it: &Value, old: Option<&Value>, expected: &[&str]) {
    let mut schema = Schema::compile(schema).unwrap();
    assert_eq!(texts(&check(&mut schema, &Path::Root)), [""; 0]);
    compile(&mut schema).unwrap();
    assert_eq!(texts(&validate(&schema, it, old)), expected);
}

fn spec(rules: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {
    "type": "object", "x-kubernetes-validations": rules,
    "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "name": {"type": "string", "maxLength": 63},
        "list": {"type": "array", "maxItems": 10, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string", "maxLength": 10}, "v": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "!has(self.v) || self.v < 5", "message": "v is too large", "fieldPath": ".v"}]}},
    }}}})
}

#[test]
fn rules_hold_or_say_why() {
    let schema = spec(json!([
        {"rule": "self.min <= self.max", "messageExpression": "'%d is more than %d'.format([self.min, self.max])"},
        {"rule": "self.name != 'bad'", "reason": "FieldValueForbidden", "fieldPath": ".name", "message": "not this"},
        {"rule": "self.min != 7"},
    ]));
    validated(&schema, &json!({"spec": {"min": 1, "max": 2, "name": "a"}}), None, &[]);
    validated(
        &schema,
        &json!({"spec": {"min": 7, "max": 2, "name": "bad", "list": [{"k": "a", "v": 9}]}}),
        None,
        &[
            "spec: Invalid value: 7 is more than 2",
            "spec.name: Forbidden: not this",
            "spec: Invalid value: failed rule: self.min != 7",
            "spec.list[0].v: Invalid value: v is too large",
        ],
    );
    validated(
        &schema,
        &json!({"spec": {"min": 1, "name": "a"}}),
        None,
        &[
            "spec: Invalid value: \"object\": no such key: max evaluating rule: self.min <= self.max",
        ],
    );
}

#[test]
fn changes_have_rules_too() {
    let schema = spec(json!([
        {"rule": "self.name == oldSelf.name", "message": "name is immutable"},
        {"rule": "!oldSelf.hasValue() || self.max >= oldSelf.value().max", "optionalOldSelf": true, "message": "max only grows"},
    ]));
    let old = json!({"spec": {"name": "a", "max": 3}});
    validated(&schema, &old, None, &[]);
    validated(
        &schema,
        &json!({"spec": {"name": "b", "max": 2}}),
        Some(&old),
        &["spec: Invalid value: name is immutable", "spec: Invalid value: max only grows"],
    );
    // What was wrong before is tolerated while it stays.
    let old = json!({"spec": {"name": "a", "max": 1, "list": [{"k": "a", "v": 9}]}});
    let new =
        json!({"spec": {"name": "a", "max": 1, "list": [{"k": "b", "v": 8}, {"k": "a", "v": 9}]}});
    validated(&schema, &new, Some(&old), &["spec.list[0].v: Invalid value: v is too large"]);
}

#[test]
fn the_root_has_its_head() {
    let schema = json!({"type": "object", "x-kubernetes-validations": [
        {"rule": "self.metadata.name == self.spec.name"}],
        "properties": {"spec": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}}}}});
    let it = json!({"metadata": {"name": "a"}, "spec": {"name": "b"}});
    validated(
        &schema,
        &it,
        None,
        &["<nil>: Invalid value: failed rule: self.metadata.name == self.spec.name"],
    );
}

#[test]
fn rules_that_cannot_be() {
    refused(
        &spec(json!([{"rule": "self.bogus > 1"}])),
        &[
            "s.properties[spec].x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":\"self.bogus \\u003e 1\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: compilation failed: ERROR: <input>:1:5: undefined field 'bogus'",
        ],
    );
    refused(
        &spec(json!([{"rule": "self.min + 1"}])),
        &[
            "s.properties[spec].x-kubernetes-validations[0].rule: Invalid value: {\"Rule\":\"self.min + 1\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: cel expression must evaluate to a bool",
        ],
    );
    refused(
        &spec(json!([{"rule": " "}])),
        &[
            "s.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified",
        ],
    );
    refused(
        &spec(json!([{"rule": "true", "fieldPath": ".nope"}])),
        &[
            "s.properties[spec].x-kubernetes-validations[0].fieldPath: Invalid value: \".nope\": must be a valid path",
        ],
    );
    refused(
        &spec(json!([{"rule": "true", "optionalOldSelf": true}])),
        &[
            "s.properties[spec].x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
        ],
    );
}

#[test]
fn rules_that_cost_too_much() {
    let unbounded = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "string"},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, a == b))"}]}}});
    refused(
        &unbounded,
        &[
            "s.properties[l].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x",
            "s.properties[l].x-kubernetes-validations[0].rule: Forbidden: contributed to estimated rule cost total exceeding cost limit",
            "s: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget",
        ],
    );
    let bounded = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 20, "items": {"type": "string", "maxLength": 20},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, a == b))"}]}}});
    refused(&bounded, &[]);
}

#[test]
fn changes_need_places_that_are_found_again() {
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "maxItems": 3, "items": {
        "type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf"}]}}}});
    refused(
        &schema,
        &[
            "s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self >= oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]",
        ],
    );
}
