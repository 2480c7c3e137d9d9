//! Strategic merge patch: a merge patch that knows which lists have keys.
//!
//! Directives: `$patch` (`delete`, `replace`, `merge`) in a map or list item, `$retainKeys`,
//! `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>`; null deletes a field.
//! Source: the contributor guide's "strategic merge patch" page of Kubernetes.

use serde_json::{Map, Value};

use crate::schema::{PatchStrategy, Schema, Shape};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: String, key: &'static str },
    #[error("unknown patch directive {0:?}")]
    Directive(String),
    #[error("the patch is not a JSON object")]
    NotAnObject,
}

/// Applies `patch` to `live`, an object of `shape`.
pub fn merge(
    schema: &Schema,
    shape: &Shape,
    live: Value,
    patch: Value,
) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else { return Err(PatchError::NotAnObject) };
    let live = match live {
        Value::Object(live) => live,
        _ => Map::new(),
    };
    merge_map(schema, shape, live, patch).map(Value::Object)
}

fn merge_map(
    schema: &Schema,
    shape: &Shape,
    mut live: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.remove(DIRECTIVE) {
        None => (),
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => return Ok(clean(patch)),
            "delete" => return Ok(Map::new()),
            "merge" => (),
            _ => return Err(PatchError::Directive(directive)),
        },
        Some(other) => return Err(PatchError::Directive(other.to_string())),
    }
    if let Some(Value::Array(keep)) = patch.remove(RETAIN) {
        live.retain(|key, _| keep.iter().any(|kept| kept == key));
    }
    let mut orders = Vec::new();
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix(DELETE_FROM) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (live.get_mut(field), value) {
                list.retain(|item| !gone.contains(item));
            }
        } else if let Some(field) = name.strip_prefix(ORDER) {
            if let Value::Array(order) = value {
                orders.push((field.to_owned(), order));
            }
        } else if value.is_null() {
            live.remove(&name);
        } else {
            let (inner, strategy) = field_of(schema, shape, &name);
            let merged = merge_value(schema, &inner, &strategy, live.remove(&name), value)?;
            live.insert(name, merged);
        }
    }
    for (field, order) in orders {
        let (_, strategy) = field_of(schema, shape, &field);
        if let Some(Value::Array(list)) = live.get_mut(&field) {
            reorder(list, &order, strategy.merge_key);
        }
    }
    Ok(live)
}

/// Shape and strategy of a field; what no type describes is merged as plain JSON.
fn field_of(schema: &Schema, shape: &Shape, name: &str) -> (Shape, PatchStrategy) {
    match shape {
        Shape::Object(id) => match schema.get(*id).field(name) {
            Some(field) => (field.shape.clone(), field.patch.clone()),
            None => (Shape::Any, PatchStrategy::default()),
        },
        Shape::Map(inner) => ((**inner).clone(), PatchStrategy::default()),
        _ => (Shape::Any, PatchStrategy::default()),
    }
}

fn merge_value(
    schema: &Schema,
    shape: &Shape,
    strategy: &PatchStrategy,
    live: Option<Value>,
    patch: Value,
) -> Result<Value, PatchError> {
    match (live, patch) {
        (Some(Value::Object(live)), Value::Object(patch)) => {
            merge_map(schema, shape, live, patch).map(Value::Object)
        }
        (_, Value::Object(patch)) => merge_map(schema, shape, Map::new(), patch).map(Value::Object),
        (live, Value::Array(patch)) if strategy.merge => {
            let live = match live {
                Some(Value::Array(live)) => live,
                _ => Vec::new(),
            };
            let item = match shape {
                Shape::List(item) => item.as_ref(),
                _ => &Shape::Any,
            };
            merge_list(schema, item, strategy.merge_key, live, patch).map(Value::Array)
        }
        (_, Value::Array(patch)) => Ok(Value::Array(patch.into_iter().map(clean_value).collect())),
        (_, scalar) => Ok(scalar),
    }
}

fn merge_list(
    schema: &Schema,
    item: &Shape,
    key: &'static str,
    mut live: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, PatchError> {
    if key.is_empty() {
        for value in patch {
            if !live.contains(&value) {
                live.push(value);
            }
        }
        return Ok(live);
    }
    let replace = patch.iter().any(|it| it.get(DIRECTIVE).is_some_and(|it| it == "replace"));
    if replace {
        let kept = patch.into_iter().filter(|it| it.get(DIRECTIVE).is_none());
        return Ok(kept.map(clean_value).collect());
    }
    for value in patch {
        let Value::Object(mut value) = value else {
            return Err(PatchError::NoMergeKey { item: shown(&value), key });
        };
        let Some(id) = value.get(key).cloned() else {
            return Err(PatchError::NoMergeKey { item: shown(&Value::Object(value)), key });
        };
        let at = live.iter().position(|it| it.get(key) == Some(&id));
        if value.get(DIRECTIVE).is_some_and(|directive| directive == "delete") {
            live.retain(|it| it.get(key) != Some(&id));
            continue;
        }
        value.remove(DIRECTIVE);
        match at {
            Some(at) => {
                let old = live[at].take();
                live[at] = merge(schema, item, old, Value::Object(value))?;
            }
            None => live.push(merge(schema, item, Value::Null, Value::Object(value))?),
        }
    }
    Ok(live)
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(120).collect()
}

/// Puts the items that `order` names in that order; others keep their place relative to the
/// neighbours they had.
fn reorder(list: &mut Vec<Value>, order: &[Value], key: &str) {
    let id = |item: &Value| match key {
        "" => Some(item.clone()),
        key => item.get(key).cloned(),
    };
    let wanted: Vec<Option<Value>> = order.iter().map(id).collect();
    let rank = |item: &Value| wanted.iter().position(|it| it.is_some() && *it == id(item));
    let old: Vec<(usize, Value)> = std::mem::take(list).into_iter().enumerate().collect();
    let (mut named, others): (Vec<_>, Vec<_>) =
        old.into_iter().partition(|(_, item)| rank(item).is_some());
    named.sort_by_key(|(_, item)| rank(item));
    let mut named = named.into_iter().peekable();
    for (place, item) in others {
        while let Some((_, next)) = named.next_if(|(before, _)| *before < place) {
            list.push(next);
        }
        list.push(item);
    }
    list.extend(named.map(|(_, item)| item));
}

/// Drops directives and nulls from what is taken over whole.
fn clean(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(name, value)| !value.is_null() && !name.starts_with('$'))
        .map(|(name, value)| (name, clean_value(value)))
        .collect()
}

fn clean_value(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            // `$ref` and `$schema` of JSON schemas are data, not directives.
            Value::Object(
                map.into_iter()
                    .filter(|(name, value)| {
                        !value.is_null()
                            && name != DIRECTIVE
                            && name != RETAIN
                            && !name.starts_with(DELETE_FROM)
                            && !name.starts_with(ORDER)
                    })
                    .map(|(name, value)| (name, clean_value(value)))
                    .collect(),
            )
        }
        Value::Array(list) => Value::Array(list.into_iter().map(clean_value).collect()),
        scalar => scalar,
    }
}

#[cfg(test)]
mod tests {
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
            json!({"spec": {"containers": [{"name": "a", "image": "2", "args": ["x"]}, {"name": "b"}, {"name": "c"}]}}),
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
            json!({"metadata": {"finalizers": ["b", "c"], "labels": {"y": "2"}}}),
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
    fn a_missing_key_is_an_error() {
        let schema = Schema::built_in();
        let id = schema.by_kind(&Gvk::new("", "v1", "Pod")).unwrap();
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        let error = merge(schema, &Shape::Object(id), json!({}), patch).unwrap_err();
        assert!(matches!(error, PatchError::NoMergeKey { key: "name", .. }));
    }
}
