use super::*;

#[track_caller]
fn refused(schema: &Value, expected: &[&str]) {
    let errors = check(schema, &Path::Field(&Path::Root, "s"));
    let texts: Vec<String> =
        errors.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
    assert_eq!(texts, expected);
}

fn of(property: Value) -> Value {
    json!({"type": "object", "properties": {"x": property}})
}

#[test]
fn structural_schemas_pass() {
    refused(&of(json!({"type": "string"})), &[]);
    refused(&of(json!({"x-kubernetes-preserve-unknown-fields": true})), &[]);
    refused(
        &of(
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
        &[],
    );
    refused(
        &of(json!({"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": [
            {"required": ["a"]}, {"properties": {"a": {"minLength": 1}}}]})),
        &[],
    );
    refused(
        &json!({"type": "object", "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}}}),
        &[],
    );
}

#[test]
fn types_are_said() {
    refused(&json!({}), &["s.type: Required value: must not be empty at the root"]);
    refused(
        &json!({"type": "array", "items": {"type": "string"}}),
        &[r#"s.type: Invalid value: "array": must be object at the root"#],
    );
    refused(
        &of(json!({})),
        &["s.properties[x].type: Required value: must not be empty for specified object fields"],
    );
    refused(
        &of(json!({"type": "array"})),
        &["s.properties[x].items: Required value: must be specified"],
    );
    refused(
        &of(json!({"type": "bool"})),
        &[
            r#"s.properties[x].type: Unsupported value: "bool": supported values: "array", "boolean", "integer", "number", "object", "string""#,
        ],
    );
}

#[test]
fn junctors_only_ask() {
    refused(
        &json!({"type": "object", "anyOf": [{"type": "object", "properties": {"a": {"minLength": 1}}}]}),
        &[
            "s.anyOf[0].type: Forbidden: must be empty to be structural",
            "s.properties[a]: Required value: because it is defined in s.anyOf[0].properties[a]",
        ],
    );
}

#[test]
fn keywords_that_may_not_be() {
    refused(
        &of(json!({"type": "object", "$ref": "#/x"})),
        &["s.properties[x].$ref: Forbidden: $ref is not supported"],
    );
    refused(
        &of(
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
        ),
        &[
            "s.properties[x].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ],
    );
    refused(
        &of(json!({"type": "array", "uniqueItems": true, "items": {"type": "string"}})),
        &[
            "s.properties[x].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ],
    );
    refused(
        &of(json!({"type": "string", "pattern": "("})),
        &[
            r#"s.properties[x].pattern: Invalid value: "(": must be a valid regular expression, but isn't: error parsing regexp: missing closing ): `(`"#,
        ],
    );
}

#[test]
fn lists_that_are_maps() {
    refused(
        &of(
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}}}}),
        ),
        &[
            "s.properties[x].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
        ],
    );
    refused(
        &of(
            json!({"type": "array", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "string"}}),
        ),
        &[
            "s.properties[x].x-kubernetes-list-type: Required value: must be map if x-kubernetes-list-map-keys is non-empty",
        ],
    );
}

#[test]
fn defaults_fit() {
    refused(
        &of(json!({"type": "integer", "default": "a"})),
        &[
            r#"s.properties[x].default: Invalid value: "string":  in body must be of type integer: "string""#,
        ],
    );
    refused(
        &of(
            json!({"type": "object", "default": {"b": 1}, "properties": {"a": {"type": "string"}}}),
        ),
        &[r#"s.properties[x].default: Invalid value: {"b":1}: must not have unknown fields"#],
    );
    refused(
        &json!({"type": "object", "properties": {"metadata": {"type": "object", "default": {}}}}),
        &["s.properties[metadata].default: Forbidden: must not be set in top-level metadata"],
    );
}

#[test]
fn depth_is_bounded() {
    let mut deep = json!({"type": "string"});
    for _ in 0..80 {
        deep = json!({"type": "object", "properties": {"x": deep}});
    }
    let errors = check(&deep, &Path::Root);
    assert!(errors[0].message.contains("must not be nested deeper than"), "{errors:?}");
}
