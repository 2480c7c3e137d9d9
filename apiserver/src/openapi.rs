//! OpenAPI v3, made from the type table: one document per group version, made when first asked.

mod custom;
mod gnostic;
pub(crate) mod v2;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock, OnceLock},
};

use bytes::Bytes;
use insula_api::{
    resources::Resource,
    schema::{Field, ListKind, Schema, Shape, TypeId, description},
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::{aggregation, custom::OfTenant, registry::Registry};

/// Whom documents are for: what they say is what that caller is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub registry: &'a Registry,
    pub customs: &'a OfTenant,
    pub apis: &'a aggregation::OfTenant,
    /// Fleet resources are told to the platform alone.
    pub platform: bool,
}

/// A document and the hash that changes with it.
#[derive(Debug)]
pub(crate) struct Document {
    pub body: Bytes,
    pub hash: String,
    message: OnceLock<Bytes>,
}

impl Document {
    fn new(it: &Value) -> Self {
        let body = it.to_string();
        let hash = format!("{:032X}", xxhash_rust::xxh3::xxh3_128(body.as_bytes()));
        Self { body: body.into(), hash, message: OnceLock::new() }
    }

    /// The document as a message of protobuf, made when first asked for.
    pub(crate) fn message(&self) -> Bytes {
        let made = || {
            // It is this program that wrote it.
            let it: Value = serde_json::from_slice(&self.body).unwrap_or_default();
            gnostic::v3::document(&it)
        };
        self.message.get_or_init(made).clone()
    }
}

/// Documents of built-in group versions; they are the same for every tenant.
fn cache() -> &'static Mutex<HashMap<String, Arc<Document>>> {
    static CACHE: LazyLock<Mutex<HashMap<String, Arc<Document>>>> = LazyLock::new(Mutex::default);
    &CACHE
}

/// `api/v1` or `apis/<group>/<version>`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`.
pub(crate) fn index(reader: Reader<'_>) -> Value {
    let Reader { registry, customs, apis, platform } = reader;
    let versions: BTreeSet<(&str, &str)> = registry
        .all()
        .iter()
        .chain(registry.stand_ins_beside(customs, apis))
        .chain(customs.all())
        .filter(|it| platform || !it.resource.is_platforms())
        .map(|it| (&*it.resource.group, &*it.resource.version))
        .collect();
    let mut paths = Map::new();
    for (group, version) in versions {
        let path = path_of(group, version);
        if let Some(document) = document(reader, &path) {
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// `/openapi/v3/<path>`; `None` if there is no such group version.
pub(crate) fn document(reader: Reader<'_>, path: &str) -> Option<Arc<Document>> {
    let Reader { registry, customs, apis, .. } = reader;
    let mut parts = path.split('/');
    let (group, version) = match (parts.next()?, parts.next()?, parts.next(), parts.next()) {
        ("api", version, None, None) => ("", version),
        ("apis", group, Some(version), None) => (group, version),
        _ => return None,
    };
    let resources: Vec<&Resource> = registry
        .all()
        .iter()
        .chain(registry.stand_ins_beside(customs, apis))
        .map(|it| &*it.resource)
        .filter(|it| (&*it.group, &*it.version) == (group, version))
        .collect();
    if resources.is_empty() {
        return custom::document(customs, group, version);
    }
    if let Some(known) = cache().lock().get(path) {
        return Some(known.clone());
    }
    let document = Arc::new(Document::new(&make(&resources)));
    cache().lock().insert(path.to_owned(), document.clone());
    Some(document)
}

fn make(resources: &[&Resource]) -> Value {
    assemble(resources, BTreeMap::new())
}

/// A document of `resources`, of which those that are not built in have their schemas in `own`.
fn assemble(resources: &[&Resource], own: BTreeMap<String, Value>) -> Value {
    let schema = Schema::built_in();
    let mut paths = Map::new();
    let mut wanted: Vec<TypeId> = Vec::new();
    if !own.is_empty() {
        const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
        let names = ["ObjectMeta", "ListMeta", "DeleteOptions", "Status"];
        wanted.extend(names.iter().filter_map(|it| schema.by_name(&format!("{META}{it}"))));
    }
    for resource in resources {
        wanted.extend(schema.by_kind(&resource.gvk()));
        for sub in &resource.subresources {
            wanted.extend(schema.by_kind(&sub.kind));
        }
        add_paths(resource, &mut paths);
    }
    let mut schemas: BTreeMap<String, Value> = own;
    while let Some(id) = wanted.pop() {
        let it = schema.get(id);
        if !schemas.contains_key(it.name) {
            schemas.insert(it.name.to_owned(), type_schema(schema, id, &mut wanted));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": crate::version::GIT_VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn add_paths(resource: &Resource, paths: &mut Map<String, Value>) {
    let root = format!("/{}", path_of(&resource.group, &resource.version));
    let collection = match resource.is_namespaced() {
        true => format!("{root}/namespaces/{{namespace}}/{}", resource.name),
        false => format!("{root}/{}", resource.name),
    };
    let gvk = json!({
        "group": resource.group, "version": resource.version, "kind": resource.kind,
    });
    let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let write = ["dryRun", "fieldManager", "fieldValidation", "pretty"].map(parameter);
    let read = ["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch"]
        .map(parameter);
    let operation = |action: &str, parameters: &[Value]| {
        json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
            "parameters": parameters, "responses": {"200": {"description": "OK"}},
        })
    };
    let mut of_collection = json!({});
    let mut of_item = json!({});
    for verb in &resource.verbs {
        match verb.as_str() {
            "list" => of_collection["get"] = operation("list", &read),
            "create" => of_collection["post"] = operation("post", &write),
            "deletecollection" => of_collection["delete"] = operation("deletecollection", &read),
            "get" => of_item["get"] = operation("get", &[]),
            "update" => of_item["put"] = operation("put", &write),
            "patch" => of_item["patch"] = operation("patch", &write),
            "delete" => of_item["delete"] = operation("delete", &write),
            _ => (),
        }
    }
    paths.insert(format!("{collection}/{{name}}"), of_item);
    paths.insert(collection, of_collection);
}

fn type_schema(schema: &Schema, id: TypeId, wanted: &mut Vec<TypeId>) -> Value {
    let it = schema.get(id);
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in &it.fields {
        let mut property = field_schema(schema, field, wanted);
        if let Some(text) = description(it.name, Some(field.name)) {
            property["description"] = text.into();
        }
        properties.insert(field.name.into(), property);
        if field.required {
            required.push(field.name);
        }
    }
    let mut out = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if let Some(text) = description(it.name, None) {
        out["description"] = text.into();
    }
    if it.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    let kinds: Vec<Value> = schema
        .kinds()
        .filter(|(_, known)| *known == id)
        .map(|(gvk, _)| json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind}))
        .collect();
    if !kinds.is_empty() {
        out["x-kubernetes-group-version-kind"] = kinds.into();
    }
    out
}

fn field_schema(schema: &Schema, field: &Field, wanted: &mut Vec<TypeId>) -> Value {
    let mut out = shape_schema(schema, &field.shape, wanted);
    // A `$ref` may have no neighbours, so it is wrapped.
    if out.get("$ref").is_some() {
        out = json!({ "allOf": [out] });
    }
    if let Some(default) = &field.default {
        out["default"] = default.clone();
    }
    if matches!(field.shape, Shape::List(_)) {
        match &field.list {
            ListKind::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
            ListKind::Set => out["x-kubernetes-list-type"] = "set".into(),
            ListKind::Map(keys) => {
                out["x-kubernetes-list-type"] = "map".into();
                out["x-kubernetes-list-map-keys"] = json!(keys);
            }
        }
    }
    let mut strategies = Vec::new();
    if field.patch.merge {
        strategies.push("merge");
    }
    if field.patch.retain_keys {
        strategies.push("retainKeys");
    }
    if !strategies.is_empty() {
        out["x-kubernetes-patch-strategy"] = strategies.join(",").into();
    }
    if !field.patch.merge_key.is_empty() {
        out["x-kubernetes-patch-merge-key"] = field.patch.merge_key.into();
    }
    out
}

fn shape_schema(schema: &Schema, shape: &Shape, wanted: &mut Vec<TypeId>) -> Value {
    match shape {
        Shape::String => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Double => json!({"type": "number", "format": "double"}),
        Shape::Quantity => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        Shape::IntOrString => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Shape::Duration => json!({"type": "string"}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        Shape::Raw => json!({"type": "object"}),
        Shape::Any | Shape::Either(..) => json!({}),
        Shape::Object(id) => {
            wanted.push(*id);
            json!({ "$ref": format!("#/components/schemas/{}", schema.get(*id).name) })
        }
        Shape::List(item) => json!({"type": "array", "items": shape_schema(schema, item, wanted)}),
        Shape::Map(item) => {
            json!({"type": "object", "additionalProperties": shape_schema(schema, item, wanted)})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The platform, which has nothing of its own.
    pub(super) fn everything() -> Reader<'static> {
        static IT: LazyLock<(Registry, OfTenant, aggregation::OfTenant)> =
            LazyLock::new(|| (Registry::built_in(), OfTenant::default(), Default::default()));
        let (registry, customs, apis) = &*IT;
        Reader { registry, customs, apis, platform: true }
    }

    #[test]
    fn documents_are_closed() {
        for (path, _) in index(everything())["paths"].as_object().unwrap() {
            let document = document(everything(), path).unwrap();
            let value: Value = serde_json::from_slice(&document.body).unwrap();
            let schemas = value["components"]["schemas"].as_object().unwrap();
            let text = String::from_utf8(document.body.to_vec()).unwrap();
            for part in text.split("#/components/schemas/").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{path}: {name}");
            }
        }
    }

    #[test]
    fn kubectl_finds_what_it_reads() {
        let body = document(everything(), &path_of("apps", "v1")).unwrap().body.clone();
        let value: Value = serde_json::from_slice(&body).unwrap();
        let post = &value["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"]["post"];
        assert_eq!(post["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let names: Vec<&str> = post["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|it| it["name"].as_str())
            .collect();
        assert!(names.contains(&"fieldValidation"));
    }
}
