//! Places in objects of any kind, as the structural engine of server-side apply sees them.

use insula_api::{
    schema::Schema as Types,
    structural::{
        built_in::BuiltIn,
        place::{Division, Member, Place},
    },
};
use serde_json::Value;

use crate::schema::{Additional, ListType, Schema, Type};

/// A place in an object.
#[derive(Debug, Clone, Copy)]
pub enum Spot<'a> {
    /// The whole of a custom resource, or of an object embedded in one.
    Object(&'a Schema),
    /// Within it, by its schema.
    Node(&'a Schema),
    /// By a built-in type: `metadata`, and all of built-in kinds.
    BuiltIn(BuiltIn),
    /// A scalar that every object has.
    Scalar,
    /// Without a schema.
    Free,
}

impl<'a> Spot<'a> {
    fn of(schema: &'a Schema) -> Self {
        if schema.embedded { Self::Object(schema) } else { Self::Node(schema) }
    }
}

/// `metadata`, which is the same in every object: that of any kind will do.
fn metadata() -> Option<Member<BuiltIn>> {
    let id = Types::built_in().by_name("io.k8s.api.core.v1.ConfigMap")?;
    BuiltIn::root(id).member("metadata")
}

fn named(place: Spot<'_>) -> Member<Spot<'_>> {
    Member { place, named: true, always: false }
}

impl Place for Spot<'_> {
    fn division(self) -> Division {
        let schema = match self {
            Self::Object(_) => return Division::Fields,
            Self::BuiltIn(place) => return place.division(),
            Self::Scalar => return Division::Whole,
            Self::Free => return Division::Deduced,
            Self::Node(schema) => schema,
        };
        match (schema.kind, &schema.list) {
            (Some(Type::Object), _) if schema.map_atomic => Division::Whole,
            (Some(Type::Object), _) => Division::Fields,
            (Some(Type::Array), ListType::Set) => Division::Set,
            (Some(Type::Array), ListType::Map(_)) => Division::Keyed,
            (None, _) if schema.preserve_unknown => Division::Deduced,
            _ => Division::Whole,
        }
    }

    fn member(self, name: &str) -> Option<Member<Self>> {
        let schema = match self {
            Self::BuiltIn(place) => {
                let it = place.member(name)?;
                return Some(Member {
                    place: Self::BuiltIn(it.place),
                    named: it.named,
                    always: it.always,
                });
            }
            Self::Scalar => return None,
            Self::Free => return Some(Member { place: self, named: false, always: false }),
            Self::Object(schema) => match name {
                "apiVersion" | "kind" => return Some(named(Self::Scalar)),
                "metadata" => return metadata().map(|it| named(Self::BuiltIn(it.place))),
                _ => schema,
            },
            Self::Node(schema) => schema,
        };
        if let Some(property) = schema.properties.get(name) {
            return Some(named(Spot::of(property)));
        }
        let entry = |place| Some(Member { place, named: false, always: false });
        match &schema.additional {
            Some(Additional::Of(schema)) => entry(Spot::of(schema)),
            Some(Additional::Anything) => entry(Self::Free),
            None if schema.preserve_unknown => entry(Self::Free),
            None => None,
        }
    }

    fn item(self) -> Self {
        match self {
            Self::BuiltIn(place) => Self::BuiltIn(place.item()),
            Self::Object(schema) | Self::Node(schema) => {
                schema.items.as_deref().map_or(Self::Free, Spot::of)
            }
            other => other,
        }
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        let (built_in, own): (_, &[String]) = match self {
            Self::BuiltIn(place) => (Some(place), &[]),
            Self::Node(Schema { list: ListType::Map(keys), .. }) => (None, keys),
            _ => (None, &[]),
        };
        built_in.into_iter().flat_map(Place::keys).chain(own.iter().map(String::as_str))
    }

    fn key_default(&self, key: &str) -> Option<&Value> {
        match self {
            Self::BuiltIn(place) => place.key_default(key),
            Self::Node(schema) => schema.items.as_deref()?.properties.get(key)?.default.as_ref(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use insula_api::structural::{extract, fields};
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_divided_as_the_schema_says() {
        let schema = Schema::compile(&json!({"type": "object", "properties": {"spec": {
            "type": "object", "properties": {
                "scalar": {"type": "string"},
                "atomic": {"type": "array", "items": {"type": "string"}},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "map": {"type": "array", "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["port", "protocol"],
                    "items": {"type": "object", "properties": {
                        "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
                "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            }}}}))
        .unwrap();
        let it = json!({"metadata": {"labels": {"a": "b"}}, "spec": {
            "scalar": "x", "atomic": ["a"], "set": ["a"], "map": [{"port": 1}],
            "whole": {"a": "b"}, "free": {"x": {"y": [1]}}}});
        let set = extract::created(Spot::Object(&schema), &it).unwrap();
        let found: Value = serde_json::from_str(&fields::encode(&set)).unwrap();
        assert_eq!(
            found["f:spec"],
            json!({
                ".": {}, "f:scalar": {}, "f:atomic": {}, "f:set": {".": {}, "v:\"a\"": {}},
                "f:map": {".": {}, "k:{\"port\":1,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}},
                "f:whole": {}, "f:free": {".": {}, "f:x": {".": {}, "f:y": {}}},
            })
        );
        assert_eq!(found["f:metadata"]["f:labels"]["f:a"], json!({}));
    }
}
