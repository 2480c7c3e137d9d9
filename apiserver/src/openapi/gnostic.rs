//! The OpenAPI v2 document as the protobuf message that kubectl asks for (`openapi.v2.Document`);
//! documents of v3 are in `v3`.
//!
//! Made from the JSON document. Numbers are those of the fields in that message's definition; what
//! we never say is left out.

pub(super) mod v3;

use bytes::Bytes;
use serde_json::{Map, Value};

/// Entries of the two maps that a document consists of.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Fields of `Paths`.
    paths: Message,
    /// Fields of `Definitions`.
    definitions: Message,
}

/// A message under way.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while 0x7f < value {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(mut self, number: u64, bytes: &[u8]) -> Self {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, number: u64, text: &str) -> Self {
        self.bytes(number, text.as_bytes())
    }

    fn message(self, number: u64, message: &Self) -> Self {
        self.bytes(number, &message.0)
    }

    fn number(mut self, number: u64, value: u64) -> Self {
        self.varint(number << 3);
        self.varint(value);
        self
    }

    fn double(mut self, number: u64, value: f64) -> Self {
        self.varint(number << 3 | 1);
        self.0.extend_from_slice(&value.to_bits().to_le_bytes());
        self
    }

    /// One of an open set of fields, with its value as YAML, of which JSON is a part.
    fn extension(self, number: u64, name: &str, value: &Value) -> Self {
        self.message(number, &named(name, &any(value)))
    }
}

fn any(value: &Value) -> Message {
    Message::default().text(2, &value.to_string())
}

/// An entry of a map.
fn named(name: &str, value: &Message) -> Message {
    Message::default().text(1, name).message(2, value)
}

/// Makes the messages of entries given as JSON without the outer braces.
pub(super) fn part(paths: &str, definitions: &str) -> Part {
    let entries = |text: &str| -> Map<String, Value> {
        // It is this program that wrote it.
        serde_json::from_str(&format!("{{{text}}}")).unwrap_or_default()
    };
    let mut part = Part::default();
    for (name, it) in entries(paths) {
        part.paths = part.paths.message(2, &named(&name, &path(&it)));
    }
    for (name, it) in entries(definitions) {
        part.definitions = part.definitions.message(1, &named(&name, &schema(&it)));
    }
    part
}

/// The whole document.
pub(super) fn document(version: &str, parts: &[&Part]) -> Bytes {
    let info = Message::default().text(1, "Kubernetes").text(2, version);
    let join = |of: fn(&Part) -> &Message| {
        Message(parts.iter().flat_map(|it| of(it).0.iter().copied()).collect())
    };
    let document = Message::default()
        .text(1, "2.0")
        .message(2, &info)
        .message(8, &join(|it| &it.paths))
        .message(9, &join(|it| &it.definitions));
    document.0.into()
}

fn path(it: &Value) -> Message {
    let mut out = Message::default();
    for (name, value) in it.as_object().into_iter().flatten() {
        let number = match name.as_str() {
            "get" => 2,
            "put" => 3,
            "post" => 4,
            "delete" => 5,
            "patch" => 8,
            _ => continue,
        };
        out = out.message(number, &operation(value));
    }
    out
}

fn operation(it: &Value) -> Message {
    let mut out = Message::default();
    for parameter in it["parameters"].as_array().into_iter().flatten() {
        // ParametersItem { Parameter { NonBodyParameter { QueryParameterSubSchema } } }
        let mut query = Message::default();
        for (number, field) in [(2, "in"), (4, "name"), (6, "type")] {
            if let Some(text) = parameter[field].as_str() {
                query = query.text(number, text);
            }
        }
        if parameter["uniqueItems"] == true {
            query = query.number(20, 1);
        }
        let item = [3, 2, 1]
            .into_iter()
            .fold(query, |inner, number| Message::default().message(number, &inner));
        out = out.message(8, &item);
    }
    let mut responses = Message::default();
    for (code, response) in it["responses"].as_object().into_iter().flatten() {
        let text = response["description"].as_str().unwrap_or_default();
        let value = Message::default().message(1, &Message::default().text(1, text));
        responses = responses.message(1, &named(code, &value));
    }
    out = out.message(9, &responses);
    for (name, value) in it.as_object().into_iter().flatten() {
        if name.starts_with("x-") {
            out = out.extension(13, name, value);
        }
    }
    out
}

fn schema(it: &Value) -> Message {
    let mut out = Message::default();
    for (name, value) in it.as_object().into_iter().flatten() {
        out = field_of_schema(out, name, value);
    }
    out
}

fn field_of_schema(out: Message, name: &str, value: &Value) -> Message {
    let texts = || value.as_array().into_iter().flatten().filter_map(Value::as_str);
    match (name, value) {
        ("$ref", Value::String(text)) => out.text(1, text),
        ("format", Value::String(text)) => out.text(2, text),
        ("title", Value::String(text)) => out.text(3, text),
        ("description", Value::String(text)) => out.text(4, text),
        ("pattern", Value::String(text)) => out.text(13, text),
        ("multipleOf" | "maximum" | "minimum", Value::Number(number)) => {
            let number = number.as_f64().unwrap_or_default();
            let field = match name {
                "multipleOf" => 6,
                "maximum" => 7,
                _ => 9,
            };
            out.double(field, number)
        }
        ("exclusiveMaximum", Value::Bool(set)) => out.number(8, (*set).into()),
        ("exclusiveMinimum", Value::Bool(set)) => out.number(10, (*set).into()),
        ("uniqueItems", Value::Bool(set)) => out.number(16, (*set).into()),
        (_, Value::Number(count)) if let Some(field) = count_field(name) => {
            out.number(field, count.as_u64().unwrap_or_default())
        }
        ("required", _) => texts().fold(out, |out, text| out.text(19, text)),
        ("enum", Value::Array(list)) => {
            list.iter().fold(out, |out, value| out.message(20, &any(value)))
        }
        // A schema, or whether there may be others.
        ("additionalProperties", Value::Bool(set)) => {
            out.message(21, &Message::default().number(2, (*set).into()))
        }
        ("additionalProperties", below) => {
            out.message(21, &Message::default().message(1, &schema(below)))
        }
        ("type", Value::String(text)) => out.message(22, &Message::default().text(1, text)),
        ("items", below) => out.message(23, &Message::default().message(1, &schema(below))),
        ("properties", Value::Object(map)) => {
            let all = map.iter().fold(Message::default(), |all, (name, below)| {
                all.message(1, &named(name, &schema(below)))
            });
            out.message(25, &all)
        }
        ("example", value) => out.message(30, &any(value)),
        (name, value) if name.starts_with("x-") => out.extension(31, name, value),
        _ => out,
    }
}

/// The number of a field that counts something.
fn count_field(name: &str) -> Option<u64> {
    Some(match name {
        "maxLength" => 11,
        "minLength" => 12,
        "maxItems" => 14,
        "minItems" => 15,
        "maxProperties" => 17,
        "minProperties" => 18,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All texts in a message, with the numbers that lead to them.
    pub(super) fn texts(path: &str, mut rest: &[u8], out: &mut Vec<String>) -> Option<()> {
        fn varint(rest: &mut &[u8]) -> Option<u64> {
            let end = rest.iter().position(|byte| byte & 0x80 == 0)? + 1;
            let bytes = rest.split_off(..end)?;
            Some(bytes.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)))
        }
        let mut found = Vec::new();
        while !rest.is_empty() {
            let tag = varint(&mut rest)?;
            let path = format!("{path}/{}", tag >> 3);
            match tag & 7 {
                0 => {
                    let value = varint(&mut rest)?;
                    found.push(format!("{path}={value}"));
                }
                1 => {
                    rest.split_off(..8)?;
                }
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    let inner = rest.split_off(..length)?;
                    let mut below = Vec::new();
                    match texts(&path, inner, &mut below) {
                        Some(()) => found.extend(below),
                        None => found.push(format!("{path}={}", String::from_utf8_lossy(inner))),
                    }
                }
                _ => return None,
            }
        }
        out.extend(found);
        Some(())
    }

    #[test]
    fn a_message_says_what_the_document_says() {
        let paths = r#""/a":{"post":{"parameters":[{"in":"query","name":"fieldValidation","type":"string","uniqueItems":true}],"responses":{"200":{"description":"OK"}},"x-kubernetes-action":"post"}}"#;
        let definitions = r##""A":{"type":"object","required":["name"],"properties":{"name":{"type":"string","maxLength":300,"pattern":"^a+$"},"b":{"$ref":"#/definitions/Bee"}},"x-kubernetes-list-type":"atomic"}"##;
        let made = document("v1.36.2", &[&part(paths, definitions), &part("", "")]);
        let mut found = Vec::new();
        texts("", &made, &mut found).unwrap();
        for expected in [
            "/1=2.0",
            "/2/2=v1.36.2",
            "/8/2/1=/a",
            "/8/2/2/4/8/1/2/3/4=fieldValidation",
            "/8/2/2/4/13/1=x-kubernetes-action",
            "/9/1/1=A",
            "/9/1/2/19=name",
            "/9/1/2/25/1/2/1=#/definitions/Bee",
            "/9/1/2/25/1/2/11=300",
            "/9/1/2/31/1=x-kubernetes-list-type",
        ] {
            assert!(found.iter().any(|it| it == expected), "{expected}: {found:#?}");
        }
    }
}
