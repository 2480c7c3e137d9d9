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

/// Whether two objects are the same, whatever their revisions.
pub fn is_same(one: &Value, two: &Value) -> bool {
    fn fields<'v>(
        it: &'v Value,
        but: &'static str,
    ) -> impl Iterator<Item = (&'v String, &'v Value)> {
        it.as_object().into_iter().flatten().filter(move |(name, _)| *name != but)
    }
    let metadata = [one, two].map(|it| it.get("metadata").unwrap_or(&Value::Null));
    fields(one, "metadata").eq(fields(two, "metadata"))
        && fields(metadata[0], "resourceVersion").eq(fields(metadata[1], "resourceVersion"))
}

/// The bytes that are stored and sent.
///
/// `apiVersion`, `kind` and `metadata` come first and `metadata` begins with an empty
/// `resourceVersion`, the place where the store writes the revision, and `managedFields`, which
/// [`Stored`] can cut out without reading them.
pub fn encode(object: &Value) -> Vec<u8> {
    let managed = metadata(object).get("managedFields").map(Value::to_string);
    encode_with(object, managed.as_deref())
}

/// As [`encode`], with `managed` as the JSON of `metadata.managedFields`.
pub fn encode_with(object: &Value, managed: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(2048 + managed.map_or(0, str::len));
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    out.push(b'{');
    for name in ["apiVersion", "kind"] {
        if let Some(value) = fields.get(name) {
            field(&mut out, name, value);
        }
    }
    separate(&mut out);
    out.extend_from_slice(REVISION);
    out.push(b'"');
    if let Some(managed) = managed {
        out.extend_from_slice(MANAGED);
        out.extend_from_slice(managed.as_bytes());
    }
    for (name, value) in metadata(object) {
        if name != "resourceVersion" && name != "managedFields" {
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

const REVISION: &[u8] = br#""metadata":{"resourceVersion":""#;
const MANAGED: &[u8] = br#","managedFields":"#;
/// `apiVersion` and `kind` are at most a few hundred bytes; `metadata` begins within this many.
const HEAD: usize = 1024;

/// A stored object, taken apart: most of what looks at objects has no use for their managers,
/// which are as long as the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// All but `metadata.managedFields`.
    pub object: Value,
    /// The JSON of `metadata.managedFields`; empty if it has none.
    pub managed: String,
}

impl Stored {
    /// Reads what [`encode`] wrote.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let Some((from, to)) = managed_at(bytes) else {
            let mut object: Value = serde_json::from_slice(bytes)?;
            // Somebody else wrote it.
            let managed = match object.get_mut("metadata").and_then(Value::as_object_mut) {
                Some(metadata) => metadata.remove("managedFields"),
                None => None,
            };
            let managed = managed.map(|it| it.to_string()).unwrap_or_default();
            return Ok(Self { object, managed });
        };
        let rest = [&bytes[..from], &bytes[to..]].concat();
        let managed = String::from_utf8_lossy(&bytes[from + MANAGED.len()..to]).into_owned();
        Ok(Self { object: serde_json::from_slice(&rest)?, managed })
    }

    /// What [`Stored::parse`] reads again.
    pub fn encoded(&self) -> Vec<u8> {
        encode_with(&self.object, Some(self.managed.as_str()).filter(|it| !it.is_empty()))
    }

    /// The object with its managers.
    pub fn whole(&self) -> Result<Value, serde_json::Error> {
        let mut object = self.object.clone();
        if !self.managed.is_empty() {
            let managed = serde_json::from_str(&self.managed)?;
            metadata_mut(&mut object).insert("managedFields".into(), managed);
        }
        Ok(object)
    }
}

/// An object as stored, without its managers.
pub fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    match managed_at(bytes) {
        Some((from, to)) => serde_json::from_slice(&[&bytes[..from], &bytes[to..]].concat()),
        None => serde_json::from_slice(bytes),
    }
}

/// Where `,"managedFields":[..]` begins and ends, if it stands where [`encode`] puts it.
fn managed_at(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = &bytes[..bytes.len().min(HEAD)];
    let revision = head.windows(REVISION.len()).position(|it| it == REVISION)? + REVISION.len();
    let digits = bytes[revision..].iter().take_while(|it| it.is_ascii_digit()).count();
    let from = revision + digits + 1;
    let list = bytes.get(from..)?.strip_prefix(MANAGED)?;
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = list.get(at) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some((from, bytes.len() - list.len() + at + 1));
                }
            }
            b'"' => {
                at += 1;
                while *list.get(at)? != b'"' {
                    at += if list[at] == b'\\' { 2 } else { 1 };
                }
            }
            _ => (),
        }
        at += 1;
    }
    None
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

    #[test]
    fn managers_are_cut_out_and_put_back() {
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "]}\"["},
            "metadata": {
                "name": "c", "annotations": {"x": "\\\"]"}, "resourceVersion": "17",
                "managedFields": [
                    {"manager": "a\"]\\", "fieldsV1": {"f:x": {"k:{\"name\":\"[\"}": {}}}},
                    {"manager": "b"},
                ],
            },
        });
        let bytes = encode(&object);
        let stored = Stored::parse(&bytes).unwrap();
        assert_eq!(stored.managed, object["metadata"]["managedFields"].to_string());
        assert_eq!(stored.object["metadata"].as_object().unwrap().len(), 3);
        assert_eq!(parse(&bytes).unwrap(), stored.object);
        assert_eq!(encode_with(&stored.object, Some(&stored.managed)), bytes);
        assert_eq!(encode(&stored.whole().unwrap()), bytes);

        // Written by somebody else.
        let foreign = Stored::parse(object.to_string().as_bytes()).unwrap();
        assert_eq!(foreign.managed, stored.managed);
        // Without managers, and not whole.
        let bare = encode(&stored.object);
        assert_eq!(Stored::parse(&bare).unwrap().managed, "");
        for end in 0..bytes.len() {
            assert!(Stored::parse(&bytes[..end]).is_err());
        }
    }
}
