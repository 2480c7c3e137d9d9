//! The OpenAPI v2 document as the protobuf message that kubectl asks for (`openapi.v2.Document`);
//! documents of v3 are in `v3`.
//!
//! Made from the JSON document. Numbers are those of the fields in that message's definition; what
//! we never say is left out.

pub(super) mod v3;

use bytes::Bytes;
use serde_json::{Map, Value};

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

    fn add(&mut self, number: u64, bytes: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn bytes(mut self, number: u64, bytes: &[u8]) -> Self {
        self.add(number, bytes);
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

/// Makes the messages of entries given as JSON without the outer braces: the fields of `Paths` and
/// of `Definitions`.
pub(super) fn part(paths: &str, definitions: &str) -> [Bytes; 2] {
    let entries = |text: &str| -> Map<String, Value> {
        // It is this program that wrote it.
        serde_json::from_str(&format!("{{{text}}}")).unwrap_or_default()
    };
    let mut out = [Message::default(), Message::default()];
    for (name, it) in entries(paths) {
        out[0].add(2, &named(&name, &path(&it)).0);
    }
    for (name, it) in entries(definitions) {
        out[1].add(1, &named(&name, &schema(&it)).0);
    }
    out.map(|it| it.0.into())
}

/// The whole document.
pub(super) fn document(version: &str, parts: &[[Bytes; 2]]) -> Bytes {
    let info = Message::default().text(1, "Kubernetes").text(2, version);
    let key = Message::default()
        .text(1, "apiKey")
        .text(2, "authorization")
        .text(3, "header")
        .text(4, "Bearer Token authentication");
    let key = named("BearerToken", &Message::default().message(2, &key));
    let mut document = Message::default().text(1, "2.0").message(2, &info);
    for (number, which) in [(8, 0), (9, 1)] {
        document.add(number, &parts.iter().map(|it| &*it[which]).collect::<Vec<_>>().concat());
    }
    let none = named("BearerToken", &Message::default());
    let document = document
        .message(12, &Message::default().message(1, &none))
        .message(13, &Message::default().message(1, &key));
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
            "options" => 6,
            "head" => 7,
            "patch" => 8,
            "parameters" => {
                out = parameters(out, 9, value);
                continue;
            }
            _ => continue,
        };
        out = out.message(number, &operation(value));
    }
    out
}

fn parameters(out: Message, number: u64, list: &Value) -> Message {
    let list = list.as_array().into_iter().flatten();
    list.fold(out, |out, it| out.message(number, &parameter(it)))
}

/// `ParametersItem { Parameter { BodyParameter | NonBodyParameter { ... } } }`.
fn parameter(it: &Value) -> Message {
    let text = |name: &str| it[name].as_str().unwrap_or_default();
    let place = text("in");
    let required = u64::from(it["required"] == true);
    let (inner, path): (Message, &[u64]) = match place {
        "body" => {
            let body = Message::default()
                .text(2, text("name"))
                .text(3, place)
                .number(4, required)
                .message(5, &schema(&it["schema"]));
            (body, &[1, 1])
        }
        _ => {
            // What is in a path cannot be empty, which its fields' numbers show.
            let (kind, unique, outer): (u64, u64, &[u64]) = match place {
                "path" => (5, 19, &[4, 2, 1]),
                _ => (6, 20, &[3, 2, 1]),
            };
            let mut out = Message::default()
                .number(1, required)
                .text(2, place)
                .text(4, text("name"))
                .text(kind, text("type"));
            if it["uniqueItems"] == true {
                out = out.number(unique, 1);
            }
            (out, outer)
        }
    };
    path.iter().fold(inner, |inner, number| Message::default().message(*number, &inner))
}

fn operation(it: &Value) -> Message {
    let mut out = Message::default();
    for (name, value) in it.as_object().into_iter().flatten() {
        out = match (name.as_str(), value) {
            ("description", Value::String(text)) => out.text(3, text),
            ("operationId", Value::String(text)) => out.text(5, text),
            ("parameters", list) => parameters(out, 8, list),
            ("responses", codes) => out.message(9, &responses(codes)),
            ("tags" | "produces" | "consumes" | "schemes", Value::Array(list)) => {
                let number = match name.as_str() {
                    "tags" => 1,
                    "produces" => 6,
                    "consumes" => 7,
                    _ => 10,
                };
                list.iter().filter_map(Value::as_str).fold(out, |out, it| out.text(number, it))
            }
            (name, value) if name.starts_with("x-") => out.extension(13, name, value),
            _ => out,
        };
    }
    out
}

fn responses(codes: &Value) -> Message {
    let mut out = Message::default();
    for (code, response) in codes.as_object().into_iter().flatten() {
        let text = response["description"].as_str().unwrap_or_default();
        let mut value = Message::default().text(1, text);
        if let Some(it) = response.get("schema") {
            value = value.message(2, &Message::default().message(1, &schema(it)));
        }
        out = out.message(1, &named(code, &Message::default().message(1, &value)));
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
        let made = document("v1.36.2", &[part(paths, definitions), part("", "")]);
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
