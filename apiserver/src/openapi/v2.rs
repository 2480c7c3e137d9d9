//! OpenAPI v2 (Swagger): all group versions in one document, for clients from before v3.
//!
//! It is made of the same schemas as v3, less what v2 cannot say. The built-in part is made once;
//! what a tenant adds is made when its tag is not the client's.

use std::sync::OnceLock;

use bytes::Bytes;
use insula_api::resources::Resource;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::{assemble, custom, gnostic};
use crate::{custom::OfTenant, registry::Registry};

/// Entries of the two maps that a document consists of, as JSON without the outer braces.
struct Part {
    paths: String,
    definitions: String,
}

/// What changes with the document.
pub(crate) fn tag(registry: &Registry, customs: &OfTenant, platform: bool) -> String {
    let mut seed =
        xxh3_128(built_in(registry, platform).definitions.as_bytes()).to_le_bytes().to_vec();
    for compiled in customs.compiled() {
        seed.extend_from_slice(&compiled.hash.to_le_bytes());
    }
    format!("\"{:032X}\"", xxh3_128(&seed))
}

/// What a tenant adds.
fn own(customs: &OfTenant, built_in: &Part) -> Part {
    let parts: Vec<_> =
        customs.compiled().flat_map(|it| it.versions().map(move |version| (it, version))).collect();
    let resources: Vec<&Resource> = parts.iter().map(|(_, version)| &*version.resource).collect();
    part(&resources, custom::schemas(&parts), |name| built_in.has(name))
}

/// The document as a message.
pub(crate) fn message(registry: &Registry, customs: &OfTenant, platform: bool) -> Bytes {
    static MADE: [OnceLock<gnostic::Part>; 2] = [OnceLock::new(), OnceLock::new()];
    let json = built_in(registry, platform);
    let made = |part: &Part| gnostic::part(&part.paths, &part.definitions);
    let built_in = MADE[usize::from(platform)].get_or_init(|| made(json));
    gnostic::document(crate::version::GIT_VERSION, &[built_in, &made(&own(customs, json))])
}

/// The document.
pub(crate) fn document(registry: &Registry, customs: &OfTenant, platform: bool) -> Bytes {
    let built_in = built_in(registry, platform);
    let own = own(customs, built_in);
    let join = |left: &str, right: &str| match right {
        "" => left.to_owned(),
        right => format!("{left},{right}"),
    };
    let (paths, definitions) =
        (join(&built_in.paths, &own.paths), join(&built_in.definitions, &own.definitions));
    let version = crate::version::GIT_VERSION;
    format!(
        "{{\"swagger\":\"2.0\",\"info\":{{\"title\":\"Kubernetes\",\"version\":\"{version}\"}},\
         \"paths\":{{{paths}}},\"definitions\":{{{definitions}}}}}\n"
    )
    .into()
}

impl Part {
    fn has(&self, name: &str) -> bool {
        self.definitions.contains(&format!("\"{name}\":{{"))
    }
}

fn built_in(registry: &Registry, platform: bool) -> &'static Part {
    static PARTS: [OnceLock<Part>; 2] = [OnceLock::new(), OnceLock::new()];
    PARTS[usize::from(platform)].get_or_init(|| {
        let all = registry.all().iter().map(|it| &*it.resource);
        let resources: Vec<&Resource> =
            all.filter(|it| platform || it.group != "insula.io").collect();
        part(&resources, std::collections::BTreeMap::new(), |_| false)
    })
}

fn part(
    resources: &[&Resource],
    own: std::collections::BTreeMap<String, Value>,
    is_known: impl Fn(&str) -> bool,
) -> Part {
    if resources.is_empty() {
        return Part { paths: String::new(), definitions: String::new() };
    }
    let mut document = assemble(resources, own);
    let entries = |map: Option<Map<String, Value>>, change: fn(Value) -> Value| {
        let map = map.unwrap_or_default();
        let known = map.into_iter().filter(|(name, _)| !is_known(name));
        let texts: Vec<String> =
            known.map(|(name, it)| format!("{}:{}", Value::from(name), change(it))).collect();
        texts.join(",")
    };
    let mut take = |pointer: &str| match document.pointer_mut(pointer).map(Value::take) {
        Some(Value::Object(map)) => Some(map),
        _ => None,
    };
    let (paths, schemas) = (take("/paths"), take("/components/schemas"));
    Part { paths: entries(paths, path), definitions: entries(schemas, schema) }
}

/// A path's operations: a parameter's type is said in the parameter itself.
fn path(mut it: Value) -> Value {
    for operation in it.as_object_mut().into_iter().flatten().map(|(_, it)| it) {
        let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten().filter_map(Value::as_object_mut) {
            if let Some(Value::Object(schema)) = parameter.remove("schema") {
                parameter.extend(schema);
            }
        }
    }
    it
}

/// What v2 has no words for.
const UNKNOWN: &[&str] =
    &["default", "nullable", "allOf", "anyOf", "oneOf", "not", "x-kubernetes-validations"];

/// A schema in the words of v2.
fn schema(it: Value) -> Value {
    let Value::Object(mut fields) = it else { return it };
    if let Some(Value::Array(list)) = fields.get("allOf")
        && let Some(reference) = list.first().and_then(|it| it.get("$ref"))
    {
        let reference = reference.clone();
        fields.insert("$ref".into(), reference);
    }
    if let Some(Value::String(reference)) = fields.get_mut("$ref") {
        *reference = reference.replace("#/components/schemas/", "#/definitions/");
    }
    let is = |name: &str| fields.get(name) == Some(&Value::Bool(true));
    let is_nullable = is("nullable");
    let is_open = is("x-kubernetes-preserve-unknown-fields");
    let is_text = fields.contains_key("oneOf") && !fields.contains_key("type");
    if is_nullable {
        for name in ["type", "properties", "items", "additionalProperties", "required"] {
            fields.remove(name);
        }
    }
    if is_open {
        // kubectl would refuse what is not named.
        if let Some(kinds) = fields.remove("x-kubernetes-group-version-kind") {
            return json!({"type": "object", "x-kubernetes-group-version-kind": kinds});
        }
        for name in ["properties", "items", "required"] {
            fields.remove(name);
        }
        if fields.get("type").is_some_and(|it| it == "object" || it == "array") {
            fields.remove("type");
        }
    }
    fields.retain(|name, _| !UNKNOWN.contains(&name.as_str()));
    if is_text {
        fields.insert("type".into(), "string".into());
    }
    for (name, below) in &mut fields {
        match (name.as_str(), below) {
            ("properties", Value::Object(map)) => {
                map.values_mut().for_each(|it| *it = schema(it.take()));
            }
            ("items" | "additionalProperties", below) => *below = schema(below.take()),
            _ => (),
        }
    }
    fields.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_whole() {
        let registry = Registry::built_in();
        let customs = OfTenant::default();
        let body = document(&registry, &customs, false);
        let it: Value = serde_json::from_slice(&body).unwrap();
        let definitions = it["definitions"].as_object().unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        for part in text.split("#/definitions/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(definitions.contains_key(name), "{name}");
        }
        assert!(!text.contains("#/components/") && !text.contains("\"allOf\":["));
        assert!(it["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"].is_object());
        assert!(!it["paths"].to_string().contains("insula.io"));
        assert_ne!(tag(&registry, &customs, true), tag(&registry, &customs, false));
    }

    #[test]
    fn schemas_lose_what_v2_cannot_say() {
        assert_eq!(
            schema(json!({"type": "object", "properties": {
                "a": {"type": "string", "nullable": true, "description": "d"},
                "b": {"type": "integer", "default": 1, "minimum": 0},
                "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
                "d": {"description": "r", "allOf": [{"$ref": "#/components/schemas/X"}]},
                "e": {"oneOf": [{"type": "string"}, {"type": "number"}]},
            }})),
            json!({"type": "object", "properties": {
                "a": {"description": "d"},
                "b": {"type": "integer", "minimum": 0},
                "c": {"x-kubernetes-preserve-unknown-fields": true},
                "d": {"description": "r", "$ref": "#/definitions/X"},
                "e": {"type": "string"},
            }})
        );
        let kinds = json!([{"kind": "Foo"}]);
        assert_eq!(
            schema(json!({
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "x-kubernetes-group-version-kind": kinds, "properties": {"metadata": {}},
            })),
            json!({"type": "object", "x-kubernetes-group-version-kind": kinds})
        );
    }
}
