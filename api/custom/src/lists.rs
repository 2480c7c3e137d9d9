//! Lists that are sets or maps: no item twice.

use std::collections::HashSet;

use insula_api::field::FieldError;
use serde_json::{Map, Value};

use crate::{
    path::Path,
    schema::{ListType, Schema},
};

/// Checks all lists in `it`.
pub fn check(schema: &Schema, it: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    schema.walk(it, path, &mut |schema, it, path| {
        let Value::Array(items) = it else { return };
        match &schema.list {
            ListType::Atomic => (),
            ListType::Set => twice(items.iter().map(Value::clone), path, &mut errors),
            ListType::Map(keys) => {
                let defaults = schema.items.as_deref();
                for (index, item) in items.iter().enumerate() {
                    if !item.is_object() && !item.is_null() {
                        let why = "must be an object for an array of list-type map";
                        errors.push(FieldError::invalid(path.index(index).to_string(), item, why));
                    }
                }
                let items = items.iter().filter(|it| it.is_object());
                let items: Vec<&Value> = items.collect();
                twice(items.iter().map(|it| keys_of(keys, it, defaults)), path, &mut errors);
            }
        }
    });
    errors
}

/// What tells an item apart from others, as an object of its keys.
fn keys_of(keys: &[String], item: &Value, schema: Option<&Schema>) -> Value {
    let mut found = Map::new();
    for key in keys {
        let default = || schema?.properties.get(key)?.default.as_ref();
        if let Some(value) = item.get(key).or_else(default) {
            found.insert(key.clone(), value.clone());
        }
    }
    Value::Object(found)
}

fn twice(items: impl Iterator<Item = Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen: HashSet<String> = HashSet::new();
    let mut told: HashSet<String> = HashSet::new();
    for (index, item) in items.enumerate() {
        let text = item.to_string();
        if !seen.insert(text.clone()) && told.insert(text) {
            errors.push(FieldError::duplicate(path.index(index).to_string(), &item));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sets_and_maps_have_each_item_once() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "properties": {
                    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
        }}))
        .unwrap();
        let it = json!({
            "set": ["a", "b", "a", "a"],
            "map": [{"port": 1}, {"port": 1, "protocol": "UDP"}, {"port": 1, "protocol": "TCP", "x": 1}],
        });
        let errors = check(&schema, &it, &Path::Root);
        let texts: Vec<String> =
            errors.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
        assert_eq!(
            texts,
            [
                r#"map[2]: Duplicate value: {"port":1,"protocol":"TCP"}"#,
                r#"set[2]: Duplicate value: "a""#,
            ]
        );
    }
}
