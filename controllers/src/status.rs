//! Writing a status: only when it changed, and only what changed.

use insula_client::{Api, Error, Object, Patch, Tenanted};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Changes the status of `object` from `old` to `new`. Returns whether there was anything to do.
///
/// The uid keeps the write from reaching another object of the same name. The version does not
/// guard it: a status says what was observed, and a newer object leads to a newer observation.
pub(crate) async fn write_status<K: Object, S: Serialize>(
    api: &Api<K>,
    object: &Tenanted<K>,
    old: Option<&S>,
    new: &S,
) -> Result<bool, Error> {
    write(api, object, json!({"uid": object.uid()}), old, new).await
}

/// The same, provided that the object is still as it was seen: for a status that counts, or that
/// is all that is known of what was done.
pub(crate) async fn write_status_at<K: Object, S: Serialize>(
    api: &Api<K>,
    object: &Tenanted<K>,
    old: Option<&S>,
    new: &S,
) -> Result<bool, Error> {
    let seen = json!({"uid": object.uid(), "resourceVersion": object.resource_version()});
    write(api, object, seen, old, new).await
}

async fn write<K: Object, S: Serialize>(
    api: &Api<K>,
    object: &Tenanted<K>,
    precondition: Value,
    old: Option<&S>,
    new: &S,
) -> Result<bool, Error> {
    let encode = |status: &S| {
        serde_json::to_value(status).map_err(|source| Error::Encode {
            request: format!("the status of {}", object.key()),
            source,
        })
    };
    let old = old.map(encode).transpose()?.unwrap_or_else(|| json!({}));
    let Some(change) = difference(&old, &encode(new)?) else {
        return Ok(false);
    };
    let patch = json!({"metadata": precondition, "status": change});
    api.patch_status(object.name(), &Patch::Merge(patch)).await?;
    Ok(true)
}

/// The merge patch (RFC 7386) that makes `new` of `old`; `None` if they are equal.
pub(crate) fn difference(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut patch = Map::new();
    for key in old.keys() {
        if !new.contains_key(key) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    for (key, value) in new {
        let change = match old.get(key) {
            Some(old) => difference(old, value),
            None => Some(value.clone()),
        };
        if let Some(change) = change {
            patch.insert(key.clone(), change);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Counts are left out of a status when they are zero.
pub(crate) fn non_zero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(old: Value, new: Value, expected: Option<Value>) {
        assert_eq!(difference(&old, &new), expected);
    }

    #[test]
    fn differences() {
        check(json!({"a": 1}), json!({"a": 1}), None);
        check(json!({"a": 1}), json!({"a": 2}), Some(json!({"a": 2})));
        check(json!({"a": 1, "b": 2}), json!({"b": 2}), Some(json!({"a": null})));
        check(json!({}), json!({"a": {"b": 1}}), Some(json!({"a": {"b": 1}})));
        check(
            json!({"a": {"b": 1, "c": 2}}),
            json!({"a": {"b": 1, "c": 3}}),
            Some(json!({"a": {"c": 3}})),
        );
        check(json!({"a": [1, 2]}), json!({"a": [2]}), Some(json!({"a": [2]})));
    }
}
