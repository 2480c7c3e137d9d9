use serde_json::json;

use super::*;

#[track_caller]
fn check(schema: &Value, it: &Value, expected: &[&str]) {
    let schema = Schema::compile(schema).unwrap();
    let errors = super::value(&schema, it, None, &Path::Root);
    let texts: Vec<String> =
        errors.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
    assert_eq!(texts, expected);
}

fn of(property: Value) -> Value {
    json!({"type": "object", "properties": {"x": property}})
}

#[test]
fn types() {
    let integer = of(json!({"type": "integer"}));
    check(&integer, &json!({"x": 1}), &[]);
    check(&integer, &json!({"x": 1.0}), &[]);
    check(
        &integer,
        &json!({"x": "1"}),
        &[r#"x: Invalid value: "string": x in body must be of type integer: "string""#],
    );
    check(
        &of(json!({"type": "string"})),
        &json!({"x": null}),
        &[r#"x: Invalid value: "null": x in body must be of type string: "null""#],
    );
    check(&of(json!({"type": "string", "nullable": true})), &json!({"x": null}), &[]);
    let either = of(json!({"x-kubernetes-int-or-string": true}));
    check(&either, &json!({"x": 1}), &[]);
    check(&either, &json!({"x": "1"}), &[]);
    check(
        &either,
        &json!({"x": true}),
        &[r#"x: Invalid value: "boolean": x in body must be of type integer,string: "boolean""#],
    );
}

#[test]
fn values() {
    check(
        &of(json!({"type": "string", "enum": ["a", "b"]})),
        &json!({"x": "c"}),
        &[r#"x: Unsupported value: "c": supported values: "a", "b""#],
    );
    let text = of(json!({"type": "string", "pattern": "^a\\d$", "minLength": 2, "maxLength": 2}));
    for (value, told) in [
        ("b", r#"x: Invalid value: "b": x in body should be at least 2 chars long"#),
        ("bb", r#"x: Invalid value: "bb": x in body should match '^a\d$'"#),
        ("bbb", "x: Too long: may not be more than 2 bytes"),
    ] {
        check(&text, &json!({ "x": value }), &[told]);
    }
    check(
        &of(json!({"type": "integer", "minimum": 1, "maximum": 10})),
        &json!({"x": 0}),
        &["x: Invalid value: 0: x in body should be greater than or equal to 1"],
    );
    check(
        &of(json!({"type": "integer", "maximum": 10, "exclusiveMaximum": true})),
        &json!({"x": 10}),
        &["x: Invalid value: 10: x in body should be less than 10"],
    );
    check(
        &of(json!({"type": "integer", "multipleOf": 5})),
        &json!({"x": 7}),
        &["x: Invalid value: 7: x in body should be a multiple of 5"],
    );
    check(
        &of(json!({"type": "array", "maxItems": 1, "items": {"type": "string"}})),
        &json!({"x": ["a", 2]}),
        &[
            "x: Too many: 2: must have at most 1 items",
            r#"x[1]: Invalid value: "integer": x[1] in body must be of type string: "integer""#,
        ],
    );
    check(
        &of(json!({"type": "string", "format": "date"})),
        &json!({"x": "y"}),
        &[r#"x: Invalid value: "y": x in body must be of type date: "y""#],
    );
    check(
        &of(json!({"type": "object", "required": ["a"], "minProperties": 1})),
        &json!({"x": {}}),
        &[
            "x.a: Required value",
            "x: Invalid value: 0: x in body should have at least 1 properties",
        ],
    );
}

#[test]
fn junctors() {
    let one = of(json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}));
    check(&one, &json!({"x": {"a": 1}}), &[]);
    check(
        &one,
        &json!({"x": {}}),
        &[
            r#"<nil>: Invalid value: "": "x" must validate one and only one schema (oneOf). Found none valid"#,
            "x.a: Required value",
        ],
    );
    check(
        &one,
        &json!({"x": {"a": 1, "b": 1}}),
        &[
            r#"<nil>: Invalid value: "": "x" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
        ],
    );
    check(
        &of(json!({"type": "string", "not": {"enum": ["a"]}})),
        &json!({"x": "a"}),
        &[r#"<nil>: Invalid value: "": "x" must not validate the schema (not)"#],
    );
}

#[test]
fn what_did_not_change_is_tolerated() {
    let schema = Schema::compile(&json!({"type": "object", "properties": {
        "x": {"type": "integer", "minimum": 5}, "y": {"type": "integer", "minimum": 5},
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
              "items": {"type": "object", "properties": {"n": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}},
    }}))
    .unwrap();
    let old = json!({"x": 1, "y": 9, "l": [{"n": "a", "v": 7}]});
    let new = json!({"x": 1, "y": 2, "l": [{"n": "b", "v": 8}, {"n": "a", "v": 7}]});
    let errors = value(&schema, &new, Some(&old), &Path::Root);
    let fields: Vec<&str> = errors.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields, ["l[0].v", "y"]);
}

#[test]
fn numbers_as_go_prints_them() {
    for (it, text) in
        [(10.0, "10"), (1.5, "1.5"), (1e6, "1e+06"), (0.0, "0"), (2147483647.0, "2.147483647e+09")]
    {
        assert_eq!(go_float(it), text);
    }
}
