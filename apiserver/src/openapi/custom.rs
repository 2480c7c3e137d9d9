//! Documents of group versions that definitions make.
//!
//! They are made when somebody asks, and shared by all tenants whose definitions are the same.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock, Weak},
};

use insula_api::resources::Resource;
use insula_custom::Version;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    Document, Parts, path_of,
    schemas::{META, reference},
};
use crate::{
    custom::{OfTenant, compiled::Compiled},
    error::chain,
};

/// What a document was made of, and what came of it, if somebody still has it.
struct Made {
    of: Vec<Weak<Compiled>>,
    version: String,
    document: Weak<Document>,
}

fn made() -> &'static Mutex<HashMap<u128, Made>> {
    static MADE: LazyLock<Mutex<HashMap<u128, Made>>> = LazyLock::new(Mutex::default);
    &MADE
}

/// The document of one group version; `None` if there is no such.
pub(super) fn document(customs: &OfTenant, group: &str, version: &str) -> Option<Arc<Document>> {
    let path = path_of(group, version);
    let known = customs.documents.lock().get(&path).cloned();
    if let Some(document) = known {
        return Some(document);
    }
    let parts: Vec<(&Arc<Compiled>, &Arc<Version>)> = customs
        .compiled()
        .filter(|it| it.group() == group)
        .filter_map(|it| Some((it, it.version(version)?)))
        .collect();
    if parts.is_empty() {
        return None;
    }
    let texts = parts.iter().map(|(it, _)| it.hash.to_le_bytes());
    let mut seed: Vec<u8> = texts.flatten().collect();
    seed.extend_from_slice(path.as_bytes());
    let key = xxh3_128(&seed);
    let is_same = |made: &Made| {
        made.version == version
            && made.of.len() == parts.len()
            && made
                .of
                .iter()
                .zip(&parts)
                .all(|(left, (right, _))| left.as_ptr() == Arc::as_ptr(right))
    };
    let shared =
        made().lock().get(&key).filter(|it| is_same(it)).and_then(|it| it.document.upgrade());
    let document = match shared {
        Some(document) => document,
        None => {
            let document = Arc::new(Document::new(&make(&parts)));
            let of = parts.iter().map(|(it, _)| Arc::downgrade(it)).collect();
            let made_of =
                Made { of, version: version.to_owned(), document: Arc::downgrade(&document) };
            let mut all = made().lock();
            all.retain(|_, it| it.document.strong_count() != 0);
            all.insert(key, made_of);
            document
        }
    };
    customs.documents.lock().insert(path, document.clone());
    Some(document)
}

/// The part of a definition that documents are made of.
#[derive(Deserialize)]
struct Spec {
    versions: Vec<SpecVersion>,
}

#[derive(Deserialize)]
struct SpecVersion {
    name: String,
    schema: SpecSchema,
}

#[derive(Deserialize)]
struct SpecSchema {
    #[serde(rename = "openAPIV3Schema")]
    schema: Value,
}

fn make(parts: &[(&Arc<Compiled>, &Arc<Version>)]) -> Value {
    let of = parts.first().map(|(_, it)| (&*it.resource.group, &*it.resource.version));
    let mut document = Parts::new(schemas(parts), of);
    add(parts, &mut document);
    document.whole()
}

/// Adds what may be asked of each.
pub(super) fn add(parts: &[(&Arc<Compiled>, &Arc<Version>)], to: &mut Parts) {
    to.schemas.refer(&format!("{META}ObjectMeta"));
    to.schemas.refer(&format!("{META}ListMeta"));
    for (_, version) in parts {
        let resource = &*version.resource;
        to.add(resource, Some(&name_of(resource, &resource.kind)));
    }
}

/// The schemas of kinds and of their lists, by name.
pub(super) fn schemas(parts: &[(&Arc<Compiled>, &Arc<Version>)]) -> BTreeMap<String, Value> {
    let mut own = BTreeMap::new();
    for (compiled, version) in parts {
        let schema = schema_of(compiled, &version.resource.version);
        let name = name_of(&version.resource, &version.resource.kind);
        own.insert(name_of(&version.resource, &version.list_kind), list(version, &name));
        own.insert(name, object(version, schema));
    }
    own
}

fn schema_of(compiled: &Compiled, version: &str) -> Value {
    let spec: Spec = match serde_json::from_slice(&compiled.spec) {
        Ok(spec) => spec,
        Err(error) => {
            // It was read before, to be compiled.
            tracing::warn!(error = chain(&error), "a definition cannot be published");
            return json!({"type": "object"});
        }
    };
    let found = spec.versions.into_iter().find(|it| it.name == version);
    found.map_or_else(|| json!({"type": "object"}), |it| it.schema.schema)
}

/// `com.example.stable.v1.CronTab`.
fn name_of(resource: &Resource, kind: &str) -> String {
    let group: Vec<&str> = resource.group.rsplit('.').collect();
    format!("{}.{}.{kind}", group.join("."), resource.version)
}

/// `apiVersion`, `kind` and `metadata`, as every object has them.
fn head(of_list: bool) -> Map<String, Value> {
    let metadata = if of_list { "ListMeta" } else { "ObjectMeta" };
    let mut fields = Map::new();
    fields.insert(
        "apiVersion".into(),
        json!({"type": "string", "description": "APIVersion defines the version of the schema that this object follows."}),
    );
    fields.insert(
        "kind".into(),
        json!({"type": "string", "description": "Kind is what this object is, in CamelCase."}),
    );
    fields.insert(
        "metadata".into(),
        json!({"description": "Standard object's metadata.", "allOf": [reference(&format!("{META}{metadata}"))]}),
    );
    fields
}

fn group_version_kind(version: &Version, kind: &str) -> Value {
    let resource = &version.resource;
    json!([{"group": resource.group, "version": resource.version, "kind": kind}])
}

fn object(version: &Version, schema: Value) -> Value {
    let mut schema = match schema {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    embed(&mut schema);
    let mut properties = match schema.remove("properties") {
        Some(Value::Object(properties)) => properties,
        _ => Map::new(),
    };
    properties.extend(head(false));
    schema.insert("properties".into(), properties.into());
    schema.insert("type".into(), "object".into());
    let kinds = group_version_kind(version, &version.resource.kind);
    schema.insert("x-kubernetes-group-version-kind".into(), kinds);
    schema.into()
}

/// Gives embedded objects the head that they have, and what is a number or a text both forms.
fn embed(schema: &mut Map<String, Value>) {
    for (name, below) in schema.iter_mut() {
        match (name.as_str(), below) {
            ("properties", Value::Object(properties)) => {
                properties.values_mut().filter_map(Value::as_object_mut).for_each(embed);
            }
            ("items" | "additionalProperties", Value::Object(below)) => embed(below),
            _ => (),
        }
    }
    if schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.extend(head(false));
        }
        let required = schema.entry("required").or_insert_with(|| json!([]));
        if let Some(required) = required.as_array_mut() {
            for name in ["apiVersion", "kind"].map(Value::from) {
                if !required.contains(&name) {
                    required.push(name);
                }
            }
        }
    }
    if schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        let both = json!([{"type": "integer"}, {"type": "string"}]);
        schema.entry("anyOf").or_insert(both);
    }
}

fn list(version: &Version, item: &str) -> Value {
    let mut properties = head(true);
    let items = reference(item);
    properties.insert(
        "items".into(),
        json!({"type": "array", "items": items, "description": "The objects of the list."}),
    );
    json!({
        "type": "object", "required": ["items"], "properties": properties,
        "description": format!("{} is a list of {}", version.list_kind, version.resource.kind),
        "x-kubernetes-group-version-kind": group_version_kind(version, &version.list_kind),
    })
}
