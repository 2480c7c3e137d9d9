//! Sets of paths as `FieldsV1`, the JSON of `managedFields`.
//!
//! A node is an object: `f:name` is a field, `k:{..}`, `v:..` and `i:..` are items of lists, and
//! `.` says that the path ends here although more lies below. `{}` alone is a path that ends.

use std::{borrow::Cow, fmt};

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::set::{Set, Step};

/// Reads a `FieldsV1` document.
pub fn decode(text: &str) -> Result<Set<'_>, serde_json::Error> {
    read(text, false)
}

/// Reads what [`encode`] wrote, in which all is canonical.
pub(super) fn decode_own(text: &str) -> Result<Set<'_>, serde_json::Error> {
    read(text, true)
}

fn read(text: &str, trusted: bool) -> Result<Set<'_>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let tree = TreeSeed { trusted }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(tree.set)
}

/// Writes `set` as a `FieldsV1` document.
pub fn encode(set: &Set<'_>) -> String {
    let mut out = String::with_capacity(512);
    write(set, false, &mut out);
    out
}

/// As [`encode`], behind what is in `out`.
pub(super) fn write(set: &Set<'_>, dot: bool, out: &mut String) {
    out.push('{');
    if dot {
        out.push_str("\".\":{}");
    }
    for (index, node) in set.nodes.iter().enumerate() {
        if dot || index != 0 {
            out.push(',');
        }
        match &node.step {
            Step::Field(name) => push_text(out, "f:", name),
            Step::Item(text) => push_text(out, "", text),
        }
        out.push(':');
        write(&node.below, node.owned && !node.below.is_empty(), out);
    }
    out.push('}');
}

/// Adds `prefix` and `text` as one JSON string. `prefix` needs no escapes.
pub(super) fn push_text(out: &mut String, prefix: &str, text: &str) {
    out.push('"');
    out.push_str(prefix);
    if text.bytes().all(|byte| 0x20 <= byte && byte != b'"' && byte != b'\\') {
        out.push_str(text);
    } else {
        let escaped = Value::from(text).to_string();
        out.push_str(&escaped[1..escaped.len() - 1]);
    }
    out.push('"');
}

/// A step as a key of `FieldsV1` has it.
fn parse_step(key: Cow<'_, str>) -> Result<Step<'_>, String> {
    let (kind, rest) = key.split_once(':').ok_or("missing colon")?;
    match kind {
        "f" => Ok(Step::Field(match key {
            Cow::Borrowed(key) => Cow::Borrowed(&key[2..]),
            Cow::Owned(key) => Cow::Owned(key[2..].to_owned()),
        })),
        "i" => {
            let index: i64 = rest.parse().map_err(|error| format!("index {rest:?}: {error}"))?;
            Ok(Step::Item(Cow::Owned(format!("i:{index}"))))
        }
        "k" | "v" => {
            // What was written here is canonical; what clients send becomes so.
            let value: Value =
                serde_json::from_str(rest).map_err(|error| format!("key {rest:?}: {error}"))?;
            let fits = match &value {
                Value::Object(fields) => {
                    kind == "k"
                        && !fields.is_empty()
                        && fields.values().all(|it| !it.is_object() && !it.is_array())
                }
                Value::Array(_) => false,
                _ => kind == "v",
            };
            if !fits {
                return Err(format!("{rest:?} identifies no item of a list"));
            }
            let canonical = value.to_string();
            if canonical == rest {
                return Ok(Step::Item(key));
            }
            Ok(Step::Item(Cow::Owned(format!("{kind}:{canonical}"))))
        }
        _ => Err(format!("unrecognized key type {kind:?}")),
    }
}

/// One node of the document, while it is read.
struct Tree<'a> {
    set: Set<'a>,
    /// It has `.`, or nothing at all.
    owned: bool,
}

/// Reads one node; `trusted` as in [`decode_own`].
#[derive(Clone, Copy)]
struct TreeSeed {
    trusted: bool,
}

impl<'de> DeserializeSeed<'de> for TreeSeed {
    type Value = Tree<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TreeSeed {
    type Value = Tree<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of fields")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree<'de>, A::Error> {
        let (mut set, mut owned) = (Set::default(), false);
        while let Some(Key(key)) = entries.next_key()? {
            let inner = entries.next_value_seed(self)?;
            if key == "." {
                owned = true;
                continue;
            }
            let step = match self.trusted && !key.starts_with("f:") {
                true => Step::Item(key),
                false => parse_step(key).map_err(de::Error::custom)?,
            };
            set.push(step, inner.owned, inner.set);
        }
        owned |= set.is_empty();
        set.settle();
        Ok(Tree { set, owned })
    }
}

/// A key that is borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path element")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_come_back_as_they_went() {
        for text in [
            "{}",
            r#"{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:replicas":{}}}"#,
            r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{}}}}}"#,
            r#"{"f:metadata":{"f:finalizers":{".":{},"v:\"x/y\"":{}}}}"#,
            r#"{"f:x":{"i:0":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{}}}"#,
        ] {
            assert_eq!(encode(&decode(text).unwrap()), text);
        }
    }

    #[test]
    fn what_clients_send_becomes_canonical() {
        let sent = r#"{"f:b":{},"f:a":{"k:{ \"z\":1, \"a\": \"x\" }":{".":{}}}, "f:b":{}}"#;
        let kept = r#"{"f:a":{"k:{\"a\":\"x\",\"z\":1}":{}},"f:b":{}}"#;
        assert_eq!(encode(&decode(sent).unwrap()), kept);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "[]",
            "null",
            r#"{"x":{}}"#,
            r#"{"q:x":{}}"#,
            r#"{"k:[]":{}}"#,
            r#"{"k:{}":{}}"#,
            r#"{"v:{}":{}}"#,
            r#"{"i:x":{}}"#,
            r#"{"f:x":1}"#,
            r#"{"f:x":null}"#,
        ] {
            assert!(decode(text).is_err(), "{text}");
        }
        let deep = format!("{}{{}}{}", r#"{"f:a":"#.repeat(4000), "}".repeat(4000));
        assert!(decode(&deep).is_err(), "nesting is bounded");
    }

    #[test]
    fn paths_read_as_upstreams() {
        let text = r#"{"f:a":{"k:{\"name\":\"x\",\"port\":80}":{"f:b":{}},"v:\"q\"":{},"i:3":{}}}"#;
        let expected = [".a[3]", r#".a[name="x",port=80].b"#, r#".a[="q"]"#];
        assert_eq!(decode(text).unwrap().texts(), expected);
    }
}
