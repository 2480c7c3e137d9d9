//! Dropping what a schema does not know.

use serde_json::{Map, Value};

use crate::{
    path::Path,
    schema::{Additional, Schema},
};

/// Fields that every object has, whatever its schema says.
const HEAD: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// What was dropped.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Whether anything was.
    pub any: bool,
    /// Where, if it is wanted and while there are few.
    pub paths: Option<Vec<String>>,
}

/// Most paths that are told.
const MAX_PATHS: usize = 64;

impl Pruned {
    /// Gathers paths as well.
    pub fn telling() -> Self {
        Self { any: false, paths: Some(Vec::new()) }
    }

    fn found(&mut self, path: &Path<'_>) {
        self.any = true;
        if let Some(paths) = self.paths.as_mut().filter(|it| it.len() < MAX_PATHS) {
            paths.push(path.to_string());
        }
    }
}

/// Drops from `object`, which is whole, what `schema` does not know. Its head stays.
pub fn object(schema: &Schema, object: &mut Value, pruned: &mut Pruned) {
    if let Value::Object(fields) = object {
        map(Some(schema), fields, true, &Path::Root, pruned);
    }
}

/// Drops from a value that is no whole object, such as a default.
pub fn part(schema: &Schema, it: &mut Value, pruned: &mut Pruned) {
    value(Some(schema), it, &Path::Root, pruned);
}

fn value(schema: Option<&Schema>, it: &mut Value, path: &Path<'_>, pruned: &mut Pruned) {
    match it {
        Value::Object(fields) => map(schema, fields, false, path, pruned),
        Value::Array(items) => {
            // Where everything is kept, only schemas of items still prune.
            if schema.is_some_and(|it| it.preserve_unknown && it.items.is_none()) {
                return;
            }
            let schema = schema.and_then(|it| it.items.as_deref());
            for (index, item) in items.iter_mut().enumerate() {
                value(schema, item, &path.index(index), pruned);
            }
        }
        _ => (),
    }
}

fn map(
    schema: Option<&Schema>,
    fields: &mut Map<String, Value>,
    is_root: bool,
    path: &Path<'_>,
    pruned: &mut Pruned,
) {
    let has_head = is_root || schema.is_some_and(|it| it.embedded);
    let keeps = schema.is_some_and(|it| it.preserve_unknown);
    fields.retain(|name, it| {
        if has_head && HEAD.contains(&name.as_str()) {
            return true;
        }
        let path = path.field(name);
        if let Some(property) = schema.and_then(|it| it.properties.get(name)) {
            value(Some(property), it, &path, pruned);
            return true;
        }
        match schema.and_then(|it| it.additional.as_ref()) {
            Some(Additional::Of(schema)) => value(Some(schema), it, &path, pruned),
            // Without a schema nothing below is known, unless all is kept.
            Some(Additional::Anything) if !keeps => value(None, it, &path, pruned),
            Some(Additional::Anything) => (),
            None if keeps => (),
            None => {
                pruned.found(&path);
                return false;
            }
        }
        true
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(schema: &Value, mut it: Value, expected: &Value, paths: &[&str]) {
        let schema = Schema::compile(schema).unwrap();
        let mut pruned = Pruned::telling();
        object(&schema, &mut it, &mut pruned);
        assert_eq!(it, *expected);
        assert_eq!(pruned.paths.unwrap(), paths);
        assert_eq!(pruned.any, !paths.is_empty());
    }

    #[test]
    fn unknown_fields_go() {
        let schema = json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object"}},
            }},
        }});
        check(
            &schema,
            json!({"apiVersion": "v", "kind": "k", "metadata": {"name": "n"}, "more": 1,
                "spec": {"a": "b", "c": 1, "list": [{"x": "", "y": 1}], "map": {"k": {"z": 1}}}}),
            &json!({"apiVersion": "v", "kind": "k", "metadata": {"name": "n"},
                "spec": {"a": "b", "list": [{"x": ""}], "map": {"k": {}}}}),
            &["more", "spec.c", "spec.list[0].y", "spec.map.k.z"],
        );
    }

    #[test]
    fn preserved_parts_stay_and_known_ones_in_them_are_pruned() {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"strict": {"type": "object", "properties": {"a": {"type": "string"}}}}});
        check(
            &schema,
            json!({"free": {"x": [1, {"y": 2}]}, "strict": {"a": "", "b": 1}}),
            &json!({"free": {"x": [1, {"y": 2}]}, "strict": {"a": ""}}),
            &["strict.b"],
        );
    }

    #[test]
    fn embedded_objects_keep_their_head() {
        let schema = json!({"type": "object", "properties": {"template": {
            "type": "object", "x-kubernetes-embedded-resource": true,
            "properties": {"spec": {"type": "object"}}}}});
        check(
            &schema,
            json!({"template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"a": 1}, "status": {}}}),
            &json!({"template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}}),
            &["template.spec.a", "template.status"],
        );
    }
}
