//! Schemas of documents: those that are referred to, and what these refer to in turn.

use std::collections::{BTreeMap, HashMap};

use insula_api::schema::{self, Field, Schema, TypeId, description};
use serde_json::{Map, Value, json};

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The schemas of one document, as they are found.
pub(super) struct Schemas {
    found: BTreeMap<String, Value>,
    wanted: Vec<String>,
    /// Whose kinds the document is of; all, if none.
    of: Option<(String, String)>,
    words: HashMap<(&'static str, &'static str), [&'static str; 2]>,
    enums: HashMap<(&'static str, &'static str), &'static str>,
}

/// A schema that is elsewhere in the document.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

impl Schemas {
    /// `found` are there already; `of` is the group version that the document is of, if of one.
    pub(super) fn new(found: BTreeMap<String, Value>, of: Option<(&str, &str)>) -> Self {
        let of = of.map(|(group, version)| (group.to_owned(), version.to_owned()));
        let words = schema::words().collect();
        Self { found, wanted: Vec::new(), of, words, enums: schema::enums().collect() }
    }

    /// Refers to a schema, which is then part of the document.
    pub(super) fn refer(&mut self, name: &str) -> Value {
        if !self.found.contains_key(name) {
            self.wanted.push(name.to_owned());
        }
        reference(name)
    }

    /// Refers to a list of what `item` is, of kinds that are built in.
    pub(super) fn refer_to_list(&mut self, item: &str, kind: [&str; 3]) -> Value {
        let name = format!("{item}List");
        if !self.found.contains_key(&name) {
            let [group, version, kind] = kind;
            let list = json!({
                "type": "object", "required": ["items"],
                "properties": {
                    "apiVersion": {"type": "string"}, "kind": {"type": "string"},
                    "metadata": {"default": {}, "allOf": [self.refer(&format!("{META}ListMeta"))]},
                    "items": {"type": "array", "items": self.refer(item)},
                },
                "x-kubernetes-group-version-kind":
                    [{"group": group, "version": version, "kind": format!("{kind}List")}],
            });
            self.found.insert(name.clone(), list);
        }
        reference(&name)
    }

    /// All schemas.
    pub(super) fn all(mut self) -> BTreeMap<String, Value> {
        while let Some(name) = self.wanted.pop() {
            if !self.found.contains_key(&name) {
                let it = self.named(&name);
                self.found.insert(name, it);
            }
        }
        self.found
    }

    fn named(&mut self, name: &str) -> Value {
        let schema = Schema::built_in();
        let mut out = match (special(name), schema.by_name(name)) {
            (Some(it), _) => it,
            (None, Some(id)) => self.structure(schema, id),
            (None, None) => json!({}),
        };
        let kinds = self.kinds(schema, name);
        if !kinds.is_empty() {
            out["x-kubernetes-group-version-kind"] = kinds.into();
        }
        out
    }

    /// The kinds that a type is of. Some are of every group version, and said of this one.
    fn kinds(&self, schema: &Schema, name: &str) -> Vec<Value> {
        let id = schema.by_name(name);
        let known = schema.kinds().filter(|(_, it)| Some(*it) == id).map(
            |(kind, _)| json!({"group": kind.group, "version": kind.version, "kind": kind.kind}),
        );
        let mut kinds: Vec<Value> = known.collect();
        let everywhere = name.strip_prefix(META);
        if let Some(kind @ ("DeleteOptions" | "WatchEvent")) = everywhere {
            let core = json!({"group": "", "version": "v1", "kind": kind});
            let own = self
                .of
                .as_ref()
                .map(|(group, version)| json!({"group": group, "version": version, "kind": kind}));
            kinds = vec![core];
            kinds.extend(own.filter(|it| *it != kinds[0]));
        }
        kinds
    }

    fn structure(&mut self, schema: &Schema, id: TypeId) -> Value {
        let it = schema.get(id);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &it.fields {
            let mut property = self.field(it.name, field);
            if let Some(text) = description(it.name, Some(field.name)) {
                property["description"] = text.into();
            }
            properties.insert(field.name.into(), property);
            if field.required {
                required.push(field.name);
            }
        }
        let mut out = json!({"type": "object"});
        if !properties.is_empty() {
            out["properties"] = properties.into();
        }
        if !required.is_empty() {
            out["required"] = json!(required);
        }
        if let Some(text) = description(it.name, None) {
            out["description"] = text.into();
        }
        if it.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        out
    }

    fn field(&mut self, of: &str, field: &Field) -> Value {
        let [word, division] = self.words.get(&(of, field.name)).copied().unwrap_or_default();
        let word = word.trim_end_matches('!');
        let mut out = self.shape(word);
        // A `$ref` may have no neighbours, so it is wrapped.
        if out.get("$ref").is_some() {
            out = json!({ "allOf": [out] });
        }
        if let Some(default) = &field.default {
            out["default"] = default.clone();
        }
        if let Some((kind, keys)) = division.split_once(':') {
            out["x-kubernetes-list-type"] = kind.into();
            out["x-kubernetes-list-map-keys"] = keys.split(',').collect();
        } else if !division.is_empty() {
            // Bytes are a list in Go.
            let is_list = word.starts_with('[') || word.ends_with(":byte");
            let name = if is_list { "x-kubernetes-list-type" } else { "x-kubernetes-map-type" };
            out[name] = division.into();
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
        if let Some(values) = self.enums.get(&(of, field.name)) {
            let mut innermost = &mut out;
            for below in ["items", "additionalProperties"] {
                if innermost.get(below).is_some() {
                    innermost = &mut innermost[below];
                }
            }
            innermost["enum"] = values.split('|').collect();
        }
        out
    }

    /// What the table says of a field's shape.
    fn shape(&mut self, word: &str) -> Value {
        let inside = |open, close| word.strip_prefix(open)?.strip_suffix(close);
        if let Some(item) = inside('[', ']') {
            return json!({"type": "array", "items": self.shape(item)});
        }
        if let Some(item) = inside('{', '}') {
            return json!({"type": "object", "additionalProperties": self.shape(item)});
        }
        if let Some(name) = word.strip_prefix("->") {
            return self.refer(name);
        }
        match word.split_once(':') {
            Some((word, format)) => json!({"type": word, "format": format}),
            None => json!({ "type": word }),
        }
    }
}

/// Types that are not structures.
fn special(name: &str) -> Option<Value> {
    let name = name.strip_prefix("io.k8s.").unwrap_or(name);
    Some(match name {
        "apimachinery.pkg.api.resource.Quantity" => {
            json!({"oneOf": [{"type": "string"}, {"type": "number"}]})
        }
        "apimachinery.pkg.util.intstr.IntOrString" => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        "apimachinery.pkg.apis.meta.v1.Time" | "apimachinery.pkg.apis.meta.v1.MicroTime" => {
            json!({"type": "string", "format": "date-time"})
        }
        "apimachinery.pkg.apis.meta.v1.Duration" => json!({"type": "string"}),
        "apimachinery.pkg.apis.meta.v1.WatchEvent" => json!({
            "type": "object", "required": ["type", "object"],
            "properties": {
                "object": {"allOf": [reference("io.k8s.apimachinery.pkg.runtime.RawExtension")]},
                "type": {"type": "string", "default": ""},
            },
        }),
        _ if name.ends_with(".v1.JSON") || name.contains(".v1.JSONSchemaPropsOr") => json!({}),
        _ => return None,
    })
}
