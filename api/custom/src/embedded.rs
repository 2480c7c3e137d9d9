//! Whole objects inside of objects: they have a head of their own.

use insula_api::{
    decode,
    field::FieldError,
    schema::{Schema as Types, TypeId},
};
use serde_json::{Value, json};

use crate::{names::label_error, path::Path, schema::Schema};

/// A type whose `metadata` is that of every object: any will do.
fn head_type() -> Option<TypeId> {
    Types::built_in().by_name("io.k8s.api.core.v1.ConfigMap")
}

/// Brings an object's `metadata` into shape. What is unknown is dropped, and its paths are
/// returned, in the object at `path`; what has the wrong type is an error.
pub fn coerce_metadata(it: &mut Value) -> Result<Vec<String>, decode::DecodeError> {
    let Some(metadata) = it.get_mut("metadata") else { return Ok(Vec::new()) };
    let head = json!({ "metadata": metadata.take() });
    let decoded = decode::value(Types::built_in(), head_type(), head)?;
    match decoded.value {
        Value::Object(mut head) => *metadata = head.remove("metadata").unwrap_or_else(|| json!({})),
        _ => *metadata = json!({}),
    }
    Ok(decoded.findings)
}

/// Brings the metadata of all embedded objects into shape. What cannot be is dropped, as what a
/// schema does not know is.
pub fn coerce(schema: &Schema, it: &mut Value) {
    match it {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                let Some(below) = schema.field(name) else { continue };
                if below.embedded
                    && coerce_metadata(value).is_err()
                    && let Some(fields) = value.as_object_mut()
                {
                    fields.remove("metadata");
                }
                coerce(below, value);
            }
        }
        Value::Array(items) => {
            let Some(below) = &schema.items else { return };
            for item in items {
                if below.embedded
                    && coerce_metadata(item).is_err()
                    && let Some(fields) = item.as_object_mut()
                {
                    fields.remove("metadata");
                }
                coerce(below, item);
            }
        }
        _ => (),
    }
}

/// Checks the heads of all embedded objects.
pub fn check(schema: &Schema, it: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    schema.walk(it, path, &mut |schema, it, path| {
        if schema.embedded && it.is_object() {
            head(it, path, &mut errors);
        }
    });
    errors
}

fn head(it: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        let path = path.field(name).to_string();
        match it.get(name) {
            None => errors.push(FieldError::required(path, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(path, &"".into(), "must not be empty"));
            }
            Some(Value::String(text)) if name == "kind" => {
                if let Some(why) = label_error(&text.to_lowercase()) {
                    let why = format!("may have mixed case, but should otherwise match: {why}");
                    errors.push(FieldError::invalid(path, &text.as_str().into(), &why));
                }
            }
            Some(Value::String(text)) => {
                if 1 < text.matches('/').count() {
                    let why = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid(path, &text.as_str().into(), &why));
                }
            }
            Some(other) => errors.push(FieldError::invalid(path, other, "must be a string")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Schema {
        Schema::compile(&json!({"type": "object", "properties": {"of": {
            "type": "object", "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true}}}))
        .unwrap()
    }

    #[test]
    fn a_head_is_asked_for() {
        let errors = check(&schema(), &json!({"of": {"kind": "-"}}), &Path::Root);
        let fields: Vec<&str> = errors.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["of.apiVersion", "of.kind"]);
        let good = json!({"of": {"apiVersion": "apps/v1", "kind": "Deployment"}});
        assert!(check(&schema(), &good, &Path::Root).is_empty());
    }

    #[test]
    fn metadata_takes_its_shape() {
        let mut it = json!({"metadata": {"name": "n", "creationTimestamp": null, "bogus": 1}});
        assert_eq!(coerce_metadata(&mut it).unwrap(), [r#"unknown field "metadata.bogus""#]);
        assert_eq!(it, json!({"metadata": {"name": "n"}}));
        let mut it = json!({"of": {"metadata": {"labels": 7}, "x": 1}});
        coerce(&schema(), &mut it);
        assert_eq!(it, json!({"of": {"x": 1}}));
    }
}
