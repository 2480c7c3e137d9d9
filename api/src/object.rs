//! Objects as JSON values: their metadata, and the canonical bytes that are stored and sent.

use serde_json::{Map, Value, json};

/// An object's `metadata`, empty if it has none.
pub fn metadata(object: &Value) -> &Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    object.get("metadata").and_then(Value::as_object).unwrap_or(&EMPTY)
}

/// An object's `metadata`, made if it has none. `object` must be a JSON object.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = &mut object["metadata"];
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(metadata) => metadata,
        _ => unreachable!("just made an object"),
    }
}

/// A text of `metadata`, empty if absent.
pub fn meta_str<'a>(object: &'a Value, field: &str) -> &'a str {
    metadata(object).get(field).and_then(Value::as_str).unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    meta_str(object, "name")
}

pub fn namespace(object: &Value) -> &str {
    meta_str(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    meta_str(object, "uid")
}

/// The text at a path of fields, empty if absent or not a text.
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The value at a path of fields.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, field| value.get(field))
}

/// Whether deletion has begun.
pub fn is_deleting(object: &Value) -> bool {
    metadata(object).contains_key("deletionTimestamp")
}

/// Finalizers, in order.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = metadata(object).get("finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The bytes that are stored and sent.
///
/// `apiVersion`, `kind` and `metadata` come first and `metadata` begins with an empty
/// `resourceVersion`: the place where the store writes the revision.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    out.push(b'{');
    for name in ["apiVersion", "kind"] {
        if let Some(value) = fields.get(name) {
            field(&mut out, name, value);
        }
    }
    separate(&mut out);
    out.extend_from_slice(br#""metadata":{"resourceVersion":"""#);
    for (name, value) in metadata(object) {
        if name != "resourceVersion" {
            field(&mut out, name, value);
        }
    }
    out.push(b'}');
    for (name, value) in fields {
        if !matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            field(&mut out, name, value);
        }
    }
    out.push(b'}');
    out
}

fn separate(out: &mut Vec<u8>) {
    if out.last().is_some_and(|byte| *byte != b'{') {
        out.push(b',');
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &Value) {
    separate(out);
    // Writing JSON values into memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, name);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// Only what an object's owner needs to know it by, in `meta.k8s.io/v1`.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_canonical() {
        let object = json!({
            "data": {"a": "b"}, "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": {"name": "c", "resourceVersion": "5", "annotations": {}},
        });
        assert_eq!(
            String::from_utf8(encode(&object)).unwrap(),
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"","annotations":{},"name":"c"},"data":{"a":"b"}}"#
        );
    }
}
