//! OpenAPI v2 (Swagger): all group versions in one document, for clients from before v3.
//!
//! It is made of the same schemas as v3, less what v2 cannot say. The built-in parts are made once;
//! what a tenant adds is made when its tag is not the client's, and what its extension servers say
//! is added as they say it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use insula_api::resources::Resource;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::{GENERAL, Parts, Reader, bearer, custom, gnostic};
use crate::{compress::Packed, custom::OfTenant};

/// Entries of the two maps that a document consists of, as JSON without the outer braces.
struct Part {
    paths: String,
    definitions: String,
    names: BTreeSet<String>,
}

/// A part that is kept.
struct Kept {
    /// `paths` and `definitions`.
    texts: [Packed; 2],
    names: BTreeSet<String>,
    /// Changes with it.
    hash: u128,
    /// The same as a message.
    message: OnceLock<[Packed; 2]>,
}

/// What a document of somebody else says of one group version: entries, each with its name.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    paths: Vec<(String, String)>,
    definitions: Vec<(String, String)>,
}

/// What changes with the document.
pub(crate) fn tag(reader: Reader<'_>, others: &[Arc<Foreign>]) -> String {
    let mut seed = Vec::new();
    for part in built_in(reader) {
        seed.extend_from_slice(&part.hash.to_le_bytes());
    }
    for compiled in reader.customs.compiled() {
        seed.extend_from_slice(&compiled.hash.to_le_bytes());
    }
    for (_, text) in others.iter().flat_map(|it| it.paths.iter().chain(&it.definitions)) {
        seed.extend_from_slice(&xxh3_128(text.as_bytes()).to_le_bytes());
    }
    format!("\"{:032X}\"", xxh3_128(&seed))
}

/// What a document of somebody else says of one group version.
pub(crate) fn of_others(mut document: Value, group: &str, version: &str) -> Foreign {
    let root = format!("/apis/{group}/{version}");
    let of_version = |path: &str| {
        path.strip_prefix(&root).is_some_and(|it| it.is_empty() || it.starts_with('/'))
    };
    let mut take = |name: &str| match document.get_mut(name).map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (paths, mut definitions) = (take("paths"), take("definitions"));
    let paths: Vec<(String, Value)> =
        paths.into_iter().filter(|(path, _)| of_version(path)).collect();
    // Only what these paths need.
    let mut wanted: Vec<String> = paths.iter().flat_map(|(_, it)| references(it)).collect();
    let kinds = |it: &Value| {
        let kinds = it.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
        kinds.into_iter().flatten().any(|it| it["group"] == group && it["version"] == version)
    };
    wanted.extend(definitions.iter().filter(|(_, it)| kinds(it)).map(|(name, _)| name.clone()));
    let mut found = Vec::new();
    while let Some(name) = wanted.pop() {
        let Some(it) = definitions.remove(&name) else { continue };
        wanted.extend(references(&it));
        found.push((name, it));
    }
    found.sort_by(|(left, _), (right, _)| left.cmp(right));
    let entries = |entries: Vec<(String, Value)>| {
        let entries = entries.into_iter();
        entries
            .map(|(name, it)| {
                let text = format!("{}:{it}", Value::from(name.as_str()));
                (name, text)
            })
            .collect()
    };
    Foreign { paths: entries(paths), definitions: entries(found) }
}

/// Names of the definitions that `it` refers to.
fn references(it: &Value) -> Vec<String> {
    match it {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, below)| match (name.as_str(), below) {
                ("$ref", Value::String(to)) => {
                    to.strip_prefix("#/definitions/").map(str::to_owned).into_iter().collect()
                }
                (_, below) => references(below),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// What a tenant adds: its definitions, and its extension servers, which do not say anew what was
/// said.
fn added(customs: &OfTenant, others: &[Arc<Foreign>], built_in: &[&Kept]) -> Part {
    let mut part = own(customs, built_in);
    let add = |to: &mut String, text: &str| {
        if !to.is_empty() {
            to.push(',');
        }
        to.push_str(text);
    };
    for foreign in others {
        for (_, text) in &foreign.paths {
            add(&mut part.paths, text);
        }
        for (name, text) in &foreign.definitions {
            if !have(built_in, name) && part.names.insert(name.clone()) {
                add(&mut part.definitions, text);
            }
        }
    }
    part
}

/// What a tenant's definitions add.
fn own(customs: &OfTenant, built_in: &[&Kept]) -> Part {
    let parts: Vec<_> =
        customs.compiled().flat_map(|it| it.versions().map(move |version| (it, version))).collect();
    let mut document = Parts::new(custom::schemas(&parts), None);
    if !parts.is_empty() {
        custom::add(&parts, &mut document);
    }
    part(document, |name| have(built_in, name))
}

/// The document as a message.
pub(crate) fn message(reader: Reader<'_>, others: &[Arc<Foreign>]) -> Bytes {
    let built_in = built_in(reader);
    let added = added(reader.customs, others, &built_in);
    let mut parts: Vec<[Bytes; 2]> = built_in.iter().map(|it| it.message()).collect();
    parts.push(gnostic::part(&added.paths, &added.definitions));
    gnostic::document(crate::version::GIT_VERSION, &parts)
}

/// The document.
pub(crate) fn document(reader: Reader<'_>, others: &[Arc<Foreign>]) -> Bytes {
    let built_in = built_in(reader);
    let added = added(reader.customs, others, &built_in);
    let mut document = json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": crate::version::GIT_VERSION},
        "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": bearer()},
    })
    .to_string()
    .into_bytes();
    // Into the place of the last brace.
    document.pop();
    for (which, name, own) in [(0, "paths", added.paths), (1, "definitions", added.definitions)] {
        document.extend_from_slice(format!(",\"{name}\":{{").as_bytes());
        let texts = built_in.iter().map(|it| it.texts[which].unpacked()).chain([own.into()]);
        for (index, text) in texts.filter(|it| !it.is_empty()).enumerate() {
            if 0 < index {
                document.push(b',');
            }
            document.extend_from_slice(&text);
        }
        document.push(b'}');
    }
    document.extend_from_slice(b"}\n");
    document.into()
}

impl Kept {
    fn new(part: &Part) -> Self {
        let text = [&part.paths, &part.definitions];
        let hashes = text.map(|it| xxh3_128(it.as_bytes()).to_le_bytes());
        Self {
            texts: text.map(|it| Packed::new(it.as_bytes())),
            names: part.names.clone(),
            hash: xxh3_128(&hashes.concat()),
            message: OnceLock::new(),
        }
    }

    fn message(&self) -> [Bytes; 2] {
        let made = || {
            let [paths, definitions] =
                [0, 1].map(|it| String::from_utf8(self.texts[it].unpacked().into()));
            let part = gnostic::part(&paths.unwrap_or_default(), &definitions.unwrap_or_default());
            part.map(|it| Packed::new(&it))
        };
        self.message.get_or_init(made).each_ref().map(Packed::unpacked)
    }
}

fn have(parts: &[&Kept], name: &str) -> bool {
    parts.iter().any(|it| it.names.contains(name))
}

/// What everybody is told, and what stands in for what a tenant may have of its own.
fn built_in(reader: Reader<'_>) -> Vec<&'static Kept> {
    static PARTS: [OnceLock<Kept>; 2] = [OnceLock::new(), OnceLock::new()];
    static STAND_INS: OnceLock<Kept> = OnceLock::new();
    let Reader { registry, customs, apis, platform } = reader;
    let base = PARTS[usize::from(platform)].get_or_init(|| {
        let all = registry.all().iter().map(|it| &*it.resource);
        let resources: Vec<&Resource> = all.filter(|it| platform || !it.is_platforms()).collect();
        let mut document = of_resources(&resources);
        let groups: BTreeSet<&str> = resources.iter().map(|it| &*it.group).collect();
        for group in groups.into_iter().filter(|it| !it.is_empty()) {
            document.general(&format!("apis/{group}"));
        }
        for path in GENERAL {
            document.general(path);
        }
        Kept::new(&part(document, |_| false))
    });
    // There is one group version of them.
    let shown: Vec<&Resource> =
        registry.stand_ins_beside(customs, apis).map(|it| &*it.resource).collect();
    if shown.is_empty() {
        return vec![base];
    }
    let stand_ins = STAND_INS
        .get_or_init(|| Kept::new(&part(of_resources(&shown), |name| base.names.contains(name))));
    vec![base, stand_ins]
}

fn of_resources(resources: &[&Resource]) -> Parts {
    let mut document = Parts::new(BTreeMap::new(), None);
    document.versions(resources);
    for resource in resources {
        document.add(resource, None);
    }
    document
}

fn part(document: Parts, is_known: impl Fn(&str) -> bool) -> Part {
    let Parts { schemas, paths } = document;
    let mut names = BTreeSet::new();
    let definitions: Vec<String> = schemas
        .all()
        .into_iter()
        .filter(|(name, _)| !is_known(name))
        .map(|(name, it)| {
            let text = format!("{}:{}", Value::from(&*name), schema(it));
            names.insert(name);
            text
        })
        .collect();
    let paths: Vec<String> =
        paths.into_iter().map(|(name, it)| format!("{}:{}", Value::from(name), path(it))).collect();
    Part { paths: paths.join(","), definitions: definitions.join(","), names }
}

/// A path's operations in the words of v2: a parameter's type is said in the parameter itself, a
/// body is a parameter, and what may be sent is said once.
fn path(mut it: Value) -> Value {
    for (name, below) in it.as_object_mut().into_iter().flatten() {
        if name == "parameters" {
            below.as_array_mut().into_iter().flatten().for_each(parameter);
        } else if let Some(fields) = below.as_object_mut() {
            operation(fields);
        }
    }
    it
}

fn parameter(it: &mut Value) {
    if let Some(fields) = it.as_object_mut()
        && let Some(Value::Object(schema)) = fields.remove("schema")
    {
        fields.extend(schema);
    }
}

fn operation(fields: &mut Map<String, Value>) {
    let mut consumes = json!(["*/*"]);
    let mut parameters = Vec::new();
    if let Some(body) = fields.remove("requestBody") {
        let (types, schema) = content(&body);
        let mut it = json!({"in": "body", "name": "body", "schema": schema});
        if body["required"] == true {
            it["required"] = true.into();
        }
        parameters.push(it);
        consumes = types;
    }
    if let Some(Value::Array(mut others)) = fields.remove("parameters") {
        others.iter_mut().for_each(parameter);
        parameters.append(&mut others);
    }
    if !parameters.is_empty() {
        fields.insert("parameters".into(), parameters.into());
    }
    let mut produces = json!([]);
    let responses = fields.get_mut("responses").and_then(Value::as_object_mut);
    for (_, response) in responses.into_iter().flatten() {
        if response.get("content").is_some() {
            let (types, schema) = content(response);
            produces = types;
            *response = json!({"description": response["description"], "schema": schema});
        }
    }
    // What describes the API is said to take what it gives.
    if !fields.contains_key("x-kubernetes-action") {
        consumes = produces.clone();
    }
    fields.insert("consumes".into(), consumes);
    fields.insert("produces".into(), produces);
    fields.insert("schemes".into(), json!(["https"]));
}

/// The media types of a body, and its schema, which is the same in each.
fn content(it: &Value) -> (Value, Value) {
    let content = it.get("content").and_then(Value::as_object);
    let types: Vec<&String> = content.into_iter().flatten().map(|(name, _)| name).collect();
    let of = content.and_then(|it| it.values().next()).and_then(|it| it.get("schema"));
    (json!(types), schema(of.cloned().unwrap_or_default()))
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
    use crate::openapi::tests::everything;

    #[test]
    fn the_document_is_whole() {
        let reader = Reader { platform: false, ..everything() };
        let body = document(reader, &[]);
        let it: Value = serde_json::from_slice(&body).unwrap();
        let definitions = it["definitions"].as_object().unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        for part in text.split("#/definitions/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(definitions.contains_key(name), "{name}");
        }
        assert!(!text.contains("#/components/") && !text.contains("\"allOf\":["));
        assert!(it["paths"]["/api/v1/namespaces/{namespace}/pods"]["post"].is_object());
        assert!(!it["paths"].to_string().contains("insula.io/v1/partitions"));
        assert!(it["paths"]["/apis/insula.io/v1/authenticationconfigurations"].is_object());
        assert_ne!(tag(everything(), &[]), tag(reader, &[]));
        assert!(
            it["paths"]["/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods"].is_object()
        );
    }

    #[test]
    fn what_others_say_is_added() {
        let document = json!({
            "paths": {
                "/apis/x.y/v1/foos": {"get": {"schema": {"$ref": "#/definitions/y.x.v1.FooList"}}},
                "/apis/x.y/v10/foos": {}, "/apis/apps/v1/deployments": {},
            },
            "definitions": {
                "y.x.v1.FooList": {"items": {"$ref": "#/definitions/y.x.v1.Foo"}},
                "y.x.v1.Foo": {"m": {"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}},
                "y.x.v1.Unused": {},
                "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta": {"description": "theirs"},
            },
        });
        let foreign = [Arc::new(of_others(document, "x.y", "v1"))];
        let body = super::document(everything(), &foreign);
        let it: Value = serde_json::from_slice(&body).unwrap();
        assert!(it["paths"]["/apis/x.y/v1/foos"].is_object());
        assert!(it["paths"].get("/apis/x.y/v10/foos").is_none());
        let definitions = &it["definitions"];
        assert!(definitions["y.x.v1.FooList"].is_object() && definitions["y.x.v1.Foo"].is_object());
        assert!(definitions.get("y.x.v1.Unused").is_none());
        let ours = &definitions["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]["description"];
        assert_ne!(ours, "theirs");
        let tag = |others: &[Arc<Foreign>]| super::tag(everything(), others);
        assert_ne!(tag(&foreign), tag(&[]));
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
