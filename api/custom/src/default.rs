//! Filling in what a schema says of absent fields.

use serde_json::Value;

use crate::schema::{Additional, Schema};

/// Fills in defaults, all the way down. A null where none may be counts as absent: it gives way
/// to the default, or is dropped. Returns whether anything changed.
pub fn fill(schema: &Schema, it: &mut Value) -> bool {
    match it {
        Value::Object(fields) => {
            let n_fields = fields.len();
            fields.retain(|name, value| {
                !value.is_null()
                    || match schema.field(name) {
                        Some(property) => property.nullable || property.default.is_some(),
                        None => true,
                    }
            });
            let mut changed = fields.len() != n_fields;
            if schema.has_defaults {
                for (name, property) in &schema.properties {
                    let Some(default) = &property.default else { continue };
                    let missing = match fields.get(name) {
                        None => true,
                        Some(value) => value.is_null() && !property.nullable,
                    };
                    if missing {
                        fields.insert(name.clone(), default.clone());
                        changed = true;
                    }
                }
            }
            for (name, value) in fields.iter_mut() {
                let below = match schema.properties.get(name) {
                    Some(property) => Some(property),
                    None => match &schema.additional {
                        Some(Additional::Of(property)) => {
                            changed |= replace_null(property, value);
                            Some(&**property)
                        }
                        _ => None,
                    },
                };
                if let Some(property) = below {
                    changed |= fill(property, value);
                }
            }
            changed
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return false };
            let mut changed = false;
            for item in items {
                changed |= replace_null(schema, item);
                changed |= fill(schema, item);
            }
            changed
        }
        _ => false,
    }
}

fn replace_null(schema: &Schema, value: &mut Value) -> bool {
    match &schema.default {
        Some(default) if value.is_null() && !schema.nullable => {
            *value = default.clone();
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(schema: &Value, mut it: Value, expected: &Value) {
        let schema = Schema::compile(schema).unwrap();
        let before = it.clone();
        let changed = fill(&schema, &mut it);
        assert_eq!(it, *expected);
        assert_eq!(changed, before != it);
        assert!(!fill(&schema, &mut it), "filling twice changes nothing");
    }

    #[test]
    fn defaults_are_filled_in_all_the_way_down() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "integer", "default": 1},
            "b": {"type": "object", "default": {}, "properties": {"c": {"type": "string", "default": "x"}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"q": {"type": "integer", "default": 2}}}},
        }});
        check(
            &schema,
            json!({"l": [{}, {"p": "UDP"}], "m": {"k": {}}}),
            &json!({"a": 1, "b": {"c": "x"}, "l": [{"p": "TCP"}, {"p": "UDP"}], "m": {"k": {"q": 2}}}),
        );
        check(&schema, json!({"a": 5, "b": {"c": ""}}), &json!({"a": 5, "b": {"c": ""}}));
    }

    #[test]
    fn nulls() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "d"},
            "b": {"type": "string"},
            "c": {"type": "string", "nullable": true, "default": "d"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }});
        check(
            &schema,
            json!({"a": null, "b": null, "c": null, "free": {"x": null}}),
            &json!({"a": "d", "c": null, "free": {"x": null}}),
        );
    }
}
