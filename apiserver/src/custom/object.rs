//! Objects of custom resources: read from a body, shown in a version, kept in another.

use bytes::Bytes;
use http::HeaderMap;
use insula_api::{
    decode::{self, DecodeError, Decoded},
    field::FieldError,
    object::{self, Stored},
    schema::Schema as Types,
    versions::Other,
};
use insula_custom::{
    Version, default, definition::Scale, embedded, lists, path::Path, prune, rules, validate,
};
use insula_partition::{store::Revision, value::with_revision};
use serde_json::Value;

use crate::{
    custom::compiled::Custom,
    error::{ApiError, Result},
    request::{Encoding, body_encoding},
};

/// Decodes a body. What is wrong with its fields is among the findings.
pub(crate) fn read_body(headers: &HeaderMap, body: &[u8]) -> Result<Result<Decoded, DecodeError>> {
    match body_encoding(headers)? {
        Encoding::Json => Ok(decode::json(Types::built_in(), None, body)),
        Encoding::Yaml => Ok(decode::yaml(Types::built_in(), None, body)),
        Encoding::Protobuf => {
            Err(ApiError::unsupported_media_type("application/json, application/yaml"))
        }
    }
}

/// Brings what a client sent into the shape of `version`: unknown fields go, defaults come.
/// Returns what went.
pub(crate) fn shape(version: &Version, it: &mut Value) -> Result<Vec<String>, DecodeError> {
    let findings = prune(version, it)?;
    default::fill(&version.schema, it);
    Ok(findings)
}

/// As [`shape`], without defaults.
pub(crate) fn prune(version: &Version, it: &mut Value) -> Result<Vec<String>, DecodeError> {
    let mut findings = embedded::coerce_metadata(it, "metadata")?;
    let mut pruned = prune::Pruned::telling();
    prune::object(&version.schema, it, &mut pruned);
    findings.extend(embedded::coerce(&version.schema, it)?);
    let unknown = pruned.paths.into_iter().flatten();
    findings.extend(unknown.map(|path| format!("unknown field {path:?}")));
    Ok(findings)
}

/// Drops what `version` does not know. False if there is nothing of the kind.
pub(crate) fn prune_silently(version: &Version, it: &mut Value) -> bool {
    let mut pruned = prune::Pruned::default();
    prune::object(&version.schema, it, &mut pruned);
    pruned.any
}

impl Custom {
    /// A kept object, as this version shows it. The bytes are the same wherever they can be.
    pub(crate) fn show(&self, kept: &Bytes) -> Result<Bytes> {
        let Stored { object: mut it, managed } = Stored::parse(kept).map_err(ApiError::internal)?;
        if !self.show_value(&mut it) {
            return Ok(kept.clone());
        }
        Ok(encode(&it, &managed))
    }

    /// A converted object, as this version shows it.
    pub(crate) fn encode(&self, mut it: Value, managed: &str) -> Bytes {
        self.show_value(&mut it);
        encode(&it, managed)
    }

    /// As [`Custom::show`], of a parsed object. False if nothing changed.
    pub(crate) fn show_value(&self, it: &mut Value) -> bool {
        let wanted = self.version.api_version();
        let converted = it["apiVersion"] != wanted;
        let filled = match converted {
            true => self.fill(it),
            false => default::fill(&self.version.schema, it),
        };
        if converted {
            it["apiVersion"] = wanted.into();
        }
        converted | filled | prune_silently(&self.version, it)
    }

    /// Fills in what an object lacks in the version that it is kept in: others fill in nothing
    /// but what is sent in them.
    fn fill(&self, it: &mut Value) -> bool {
        let mut versions = self.definition.versions.iter();
        let kept_in = versions.find(|version| it["apiVersion"] == version.api_version());
        kept_in.is_some_and(|version| default::fill(&version.schema, it))
    }

    /// What is wrong with an object; `old` is what it was, if it was.
    pub(crate) fn check(
        &self,
        it: &Value,
        old: Option<&Value>,
        subresource: &str,
    ) -> Vec<FieldError> {
        let schema = &self.version.schema;
        let root = Path::Root;
        let mut errors = match (subresource, schema.properties.get("status")) {
            ("status", Some(of_status)) => match it.get("status") {
                Some(status) => {
                    let old = old.and_then(|it| it.get("status"));
                    let found = validate::value(of_status, status, old, &root);
                    // Upstream's words leave out where it lies, and its path does not.
                    found.into_iter().map(|error| error.below("status")).collect()
                }
                None => Vec::new(),
            },
            ("status", None) => Vec::new(),
            _ => validate::value(schema, it, old, &root),
        };
        if let Some(scale) = &self.version.scale {
            check_scale(scale, it, subresource == "status", &mut errors);
        }
        errors.extend(embedded::check(schema, it, &root));
        let tolerated = old.is_some_and(|old| !lists::check(schema, old, &root).is_empty());
        if !tolerated {
            errors.extend(lists::check(schema, it, &root));
        }
        if schema.has_rules {
            errors.extend(match errors.iter().any(is_blocking) {
                true => vec![FieldError::invalid("<nil>", &Value::Null, NOT_CHECKED)],
                false => rules::validate(schema, it, old),
            });
        }
        errors
    }
}

const NOT_CHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

/// Rules are written for objects without such errors.
fn is_blocking(error: &FieldError) -> bool {
    matches!(
        error.reason,
        "FieldValueNotSupported"
            | "FieldValueRequired"
            | "FieldValueTooLong"
            | "FieldValueTooMany"
            | "FieldValueTypeInvalid"
    )
}

/// A kept object of a built-in kind, in its other version.
pub(crate) fn shown(other: &Other, kept: &Bytes) -> Result<Bytes> {
    let Stored { object: mut it, managed } = Stored::parse(kept).map_err(ApiError::internal)?;
    other.show(&mut it);
    Ok(encode(&it, &managed))
}

/// The bytes of an object, with the revision and the managers that it has.
fn encode(it: &Value, managed: &str) -> Bytes {
    let revision = object::meta_str(it, "resourceVersion").parse().unwrap_or(0);
    let managed = Some(managed).filter(|it| !it.is_empty());
    with_revision(&object::encode_with(it, managed).into(), Revision(revision))
}

/// Replica counts are counts.
fn check_scale(scale: &Scale, it: &Value, of_status: bool, errors: &mut Vec<FieldError>) {
    let paths = match of_status {
        true => vec![&scale.status_replicas],
        false => vec![&scale.spec_replicas, &scale.status_replicas],
    };
    for path in paths {
        let found = match number_at(it, path) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        let mut wrong = |why: &str| {
            let field = format!(".{}", path.join("."));
            errors.push(FieldError::invalid(field, &found.into(), why));
        };
        if found < 0 {
            wrong("should be a non-negative integer");
        } else if i64::from(i32::MAX) < found {
            wrong(&format!("should be less than or equal to {}", i32::MAX));
        }
    }
}

/// The number at a path, which may be absent but nothing else.
fn number_at(it: &Value, path: &[String]) -> Result<Option<i64>, FieldError> {
    let misfit = |depth: usize, found: &Value, wanted: &str| {
        let at = format!(".{}", path[..depth].join("."));
        let (shown, kind) = as_go(found);
        let why = format!("{at} accessor error: {shown} is of the type {kind}, expected {wanted}");
        FieldError::invalid(format!(".{}", path.join(".")), &0.into(), &why)
    };
    let mut place = it;
    for (depth, name) in path.iter().enumerate() {
        let Value::Object(fields) = place else {
            return Err(misfit(depth + 1, place, "map[string]interface{}"));
        };
        match fields.get(name).filter(|it| !it.is_null()) {
            Some(found) => place = found,
            None => return Ok(None),
        }
    }
    match place.as_i64() {
        Some(number) => Ok(Some(number)),
        None => Err(misfit(path.len(), place, "int64")),
    }
}

/// How Go shows a value, and what it calls its type.
fn as_go(it: &Value) -> (String, &'static str) {
    match it {
        Value::Null => ("<nil>".into(), "<nil>"),
        Value::Bool(is) => (is.to_string(), "bool"),
        Value::Number(number) if number.is_i64() => (number.to_string(), "int64"),
        Value::Number(number) => {
            (insula_custom::validate::go_float(number.as_f64().unwrap_or_default()), "float64")
        }
        Value::String(text) => (text.clone(), "string"),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|it| as_go(it).0).collect();
            (format!("[{}]", items.join(" ")), "[]interface {}")
        }
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, it)| format!("{name}:{}", as_go(it).0)).collect();
            (format!("map[{}]", fields.join(" ")), "map[string]interface {}")
        }
    }
}

/// What `autoscaling/v1` Scale shows of an object.
#[derive(Debug)]
pub(crate) struct Scaled {
    /// `None` if nobody ever asked for any.
    pub replicas: Option<i64>,
    pub observed: i64,
    pub selector: String,
}

/// Reads the numbers of a scale.
pub(crate) fn read_scale(scale: &Scale, it: &Value) -> Scaled {
    let at = |path: &[String]| {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        object::at(it, &names)
    };
    let selector = scale.selector.as_deref().and_then(at).and_then(Value::as_str);
    Scaled {
        replicas: at(&scale.spec_replicas).and_then(Value::as_i64),
        observed: at(&scale.status_replicas).and_then(Value::as_i64).unwrap_or(0),
        selector: selector.unwrap_or_default().to_owned(),
    }
}

/// Sets the replicas that are asked for.
pub(crate) fn set_replicas(scale: &Scale, it: &mut Value, replicas: i64) {
    let mut place = it;
    for name in &scale.spec_replicas {
        if !place.is_object() {
            *place = Value::Object(serde_json::Map::new());
        }
        place = &mut place[name.as_str()];
    }
    *place = replicas.into();
}
