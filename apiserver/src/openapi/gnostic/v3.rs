//! A document of OpenAPI v3 as protobuf (`openapi.v3.Document`).

use bytes::Bytes;
use serde_json::Value;

use super::{Message, any, named};

/// The message of a document.
pub(crate) fn document(it: &Value) -> Bytes {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let info = Message::default()
        .text(1, &text(&it["info"]["title"]))
        .text(6, &text(&it["info"]["version"]));
    let secured = all(&it["components"]["securitySchemes"], |out, name, it| {
        let key = [(1, "type"), (2, "description"), (3, "name"), (4, "in")];
        let key = key.iter().fold(Message::default(), |out, (number, field)| {
            out.text(*number, it[*field].as_str().unwrap_or_default())
        });
        out.message(1, &named(name, &Message::default().message(1, &key)))
    });
    let components =
        Message::default().message(1, &schemas(&it["components"]["schemas"])).message(7, &secured);
    let document = Message::default()
        .text(1, &text(&it["openapi"]))
        .message(2, &info)
        .message(4, &all(&it["paths"], |out, name, it| out.message(1, &named(name, &path(it)))))
        .message(5, &components);
    document.0.into()
}

/// A message of the entries of a map.
fn all(map: &Value, add: impl Fn(Message, &str, &Value) -> Message) -> Message {
    let entries = map.as_object().into_iter().flatten();
    entries.fold(Message::default(), |out, (name, it)| add(out, name, it))
}

/// Schemas by name: `SchemasOrReferences`, `Properties`.
fn schemas(map: &Value) -> Message {
    all(map, |out, name, it| out.message(1, &named(name, &either(it))))
}

fn path(it: &Value) -> Message {
    all(it, |out, name, it| {
        let number = match name {
            "get" => 4,
            "put" => 5,
            "post" => 6,
            "delete" => 7,
            "options" => 8,
            "head" => 9,
            "patch" => 10,
            "parameters" => return parameters(out, 13, it),
            _ => return out,
        };
        out.message(number, &operation(it))
    })
}

fn parameters(out: Message, number: u64, list: &Value) -> Message {
    let list = list.as_array().into_iter().flatten();
    list.fold(out, |out, it| out.message(number, &Message::default().message(1, &parameter(it))))
}

fn operation(it: &Value) -> Message {
    all(it, |out, name, it| match (name, it) {
        ("tags", Value::Array(list)) => {
            list.iter().filter_map(Value::as_str).fold(out, |out, it| out.text(1, it))
        }
        ("description", Value::String(text)) => out.text(3, text),
        ("operationId", Value::String(text)) => out.text(5, text),
        ("parameters", list) => parameters(out, 6, list),
        ("requestBody", it) => {
            let required = u64::from(it["required"] == true);
            let body = Message::default().message(2, &content(&it["content"])).number(3, required);
            out.message(7, &Message::default().message(1, &body))
        }
        ("responses", codes) => {
            let codes = all(codes, |out, code, it| {
                let text = it["description"].as_str().unwrap_or_default();
                let mut response = Message::default().text(1, text);
                if let Some(types) = it.get("content") {
                    response = response.message(3, &content(types));
                }
                out.message(2, &named(code, &Message::default().message(1, &response)))
            });
            out.message(8, &codes)
        }
        (name, it) if name.starts_with("x-") => out.extension(13, name, it),
        _ => out,
    })
}

/// Schemas by media type.
fn content(it: &Value) -> Message {
    all(it, |out, name, it| {
        out.message(1, &named(name, &Message::default().message(1, &either(&it["schema"]))))
    })
}

fn parameter(it: &Value) -> Message {
    all(it, |out, name, it| match (name, it) {
        ("name", Value::String(text)) => out.text(1, text),
        ("in", Value::String(text)) => out.text(2, text),
        ("description", Value::String(text)) => out.text(3, text),
        ("required", Value::Bool(set)) => out.number(4, (*set).into()),
        ("schema", it) => out.message(10, &either(it)),
        _ => out,
    })
}

/// A schema, or where there is one: `SchemaOrReference`.
fn either(it: &Value) -> Message {
    match it["$ref"].as_str() {
        Some(to) => Message::default().message(2, &Message::default().text(1, to)),
        None => Message::default().message(1, &schema(it)),
    }
}

fn schema(it: &Value) -> Message {
    all(it, field)
}

fn field(out: Message, name: &str, value: &Value) -> Message {
    let list = || value.as_array().into_iter().flatten();
    match (name, value) {
        (_, Value::Bool(set)) if let Some(number) = flag(name) => out.number(number, (*set).into()),
        (_, Value::String(text)) if let Some(number) = text_field(name) => out.text(number, text),
        (_, Value::Number(count)) if let Some(number) = count_field(name) => {
            out.number(number, count.as_u64().unwrap_or_default())
        }
        ("multipleOf" | "maximum" | "minimum", Value::Number(found)) => {
            let number = match name {
                "multipleOf" => 10,
                "maximum" => 11,
                _ => 13,
            };
            out.double(number, found.as_f64().unwrap_or_default())
        }
        ("required", _) => {
            list().filter_map(Value::as_str).fold(out, |out, text| out.text(23, text))
        }
        ("enum", _) => list().fold(out, |out, it| out.message(24, &any(it))),
        ("allOf", _) => list().fold(out, |out, it| out.message(26, &either(it))),
        ("oneOf", _) => list().fold(out, |out, it| out.message(27, &either(it))),
        ("anyOf", _) => list().fold(out, |out, it| out.message(28, &either(it))),
        ("not", it) => out.message(29, &schema(it)),
        ("items", it) => out.message(30, &Message::default().message(1, &either(it))),
        ("properties", it) => out.message(31, &schemas(it)),
        ("additionalProperties", Value::Bool(set)) => {
            out.message(32, &Message::default().number(2, (*set).into()))
        }
        ("additionalProperties", it) => {
            out.message(32, &Message::default().message(1, &either(it)))
        }
        // Only scalars have a form.
        ("default", Value::Number(it)) => {
            let number = it.as_f64().unwrap_or_default();
            out.message(33, &Message::default().double(1, number))
        }
        ("default", Value::Bool(it)) => {
            out.message(33, &Message::default().number(2, (*it).into()))
        }
        ("default", Value::String(it)) => out.message(33, &Message::default().text(3, it)),
        ("example", it) => out.message(7, &any(it)),
        (name, it) if name.starts_with("x-") => out.extension(36, name, it),
        _ => out,
    }
}

fn flag(name: &str) -> Option<u64> {
    Some(match name {
        "nullable" => 1,
        "exclusiveMaximum" => 12,
        "exclusiveMinimum" => 14,
        "uniqueItems" => 20,
        _ => return None,
    })
}

fn text_field(name: &str) -> Option<u64> {
    Some(match name {
        "title" => 9,
        "pattern" => 17,
        "type" => 25,
        "description" => 34,
        "format" => 35,
        _ => return None,
    })
}

/// The number of a field that counts something.
fn count_field(name: &str) -> Option<u64> {
    Some(match name {
        "maxLength" => 15,
        "minLength" => 16,
        "maxItems" => 18,
        "minItems" => 19,
        "maxProperties" => 21,
        "minProperties" => 22,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_says_what_the_document_says() {
        let made = document(&json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "v1.36.2"},
            "paths": {"/a": {"post": {
                "parameters": [{"in": "query", "name": "dryRun", "schema": {"type": "string"}}],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "post",
            }}},
            "components": {"schemas": {"A": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string", "maxLength": 300, "default": "n"},
                "b": {"allOf": [{"$ref": "#/components/schemas/B"}]},
                "c": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            }}}},
        }));
        let mut found = Vec::new();
        super::super::tests::texts("", &made, &mut found).unwrap();
        for expected in [
            "/1=3.0.0",
            "/2/6=v1.36.2",
            "/4/1/1=/a",
            "/4/1/2/6/6/1/1=dryRun",
            "/4/1/2/6/6/1/10/1/25=string",
            "/4/1/2/6/8/2/1=200",
            "/4/1/2/6/13/1=x-kubernetes-action",
            "/5/1/1/1=A",
            "/5/1/1/2/1/23=name",
            "/5/1/1/2/1/31/1/2/1/15=300",
            "/5/1/1/2/1/31/1/2/1/26/2/1=#/components/schemas/B",
            "/5/1/1/2/1/31/1/2/1/30/1/1/25=string",
        ] {
            assert!(found.iter().any(|it| it == expected), "{expected}: {found:#?}");
        }
    }
}
