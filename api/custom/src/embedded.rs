//! Whole objects inside of objects: they have a head of their own.

use insula_api::{
    decode,
    field::FieldError,
    formats,
    schema::{Schema as Types, TypeId},
};
use serde_json::{Value, json};

use crate::{names::label_error, path::Path, schema::Schema};

/// The type of every object's `metadata`.
fn head_type() -> Option<TypeId> {
    Types::built_in().by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// Brings an object's `metadata` into shape, which lies at `at`. What is unknown is dropped and
/// returned; what has the wrong type is an error.
pub fn coerce_metadata(it: &mut Value, at: &str) -> Result<Vec<String>, decode::DecodeError> {
    let Some(metadata) = it.get_mut("metadata") else { return Ok(Vec::new()) };
    let decoded = decode::part(Types::built_in(), head_type(), at, metadata.take())?;
    *metadata = match decoded.value {
        Value::Null => json!({}),
        head => head,
    };
    Ok(decoded.findings)
}

/// Brings the metadata of all embedded objects into shape, as [`coerce_metadata`] does.
pub fn coerce(schema: &Schema, it: &mut Value) -> Result<Vec<String>, decode::DecodeError> {
    let mut findings = Vec::new();
    below(schema, it, &Path::Root, &mut findings)?;
    Ok(findings)
}

fn below(
    schema: &Schema,
    it: &mut Value,
    path: &Path<'_>,
    findings: &mut Vec<String>,
) -> Result<(), decode::DecodeError> {
    let mut part = |schema: &Schema, it: &mut Value, path: &Path<'_>| {
        if schema.embedded && it.is_object() {
            for name in ["apiVersion", "kind"] {
                if let Some(found) = it.get(name).filter(|it| !it.is_string()) {
                    let at = path.field(name).to_string();
                    let error = FieldError::invalid(at, found, "must be a string");
                    let why = format!("{}: {}", error.field, error.message);
                    return Err(decode::DecodeError::Mismatch(why));
                }
            }
            findings.extend(embedded_metadata(it, path)?);
        }
        below(schema, it, path, findings)
    };
    match it {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if let Some(schema) = schema.field(name) {
                    part(schema, value, &path.field(name))?;
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return Ok(()) };
            for (index, item) in items.iter_mut().enumerate() {
                part(schema, item, &path.index(index))?;
            }
        }
        _ => (),
    }
    Ok(())
}

/// As [`coerce_metadata`], of the object at `path`.
fn embedded_metadata(it: &mut Value, path: &Path<'_>) -> Result<Vec<String>, decode::DecodeError> {
    let sent = it.get("metadata").cloned().unwrap_or_default();
    let at = path.field("metadata").to_string();
    coerce_metadata(it, &at).map_err(|error| {
        let error = FieldError::invalid(at, &sent, &error.to_string());
        decode::DecodeError::Mismatch(format!("{}: {}", error.field, error.message))
    })
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
    let of_metadata = path.field("metadata");
    let metadata = |name: &str| it.get("metadata")?.get(name);
    let mut wrong = |name: &str, found: &str, why: Vec<String>| {
        let field = of_metadata.field(name).to_string();
        for why in why {
            errors.push(FieldError::invalid(field.as_str(), &found.into(), &why));
        }
    };
    if let Some(namespace) =
        metadata("namespace").and_then(Value::as_str).filter(|it| !it.is_empty())
    {
        wrong("namespace", namespace, formats::label(namespace));
    }
    for (key, value) in metadata("labels").and_then(Value::as_object).into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        wrong("labels", key, formats::qualified(key));
        wrong("labels", value, formats::label_value(value));
    }
    for (key, _) in metadata("annotations").and_then(Value::as_object).into_iter().flatten() {
        wrong("annotations", key, formats::qualified(&key.to_lowercase()));
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
        assert_eq!(
            coerce_metadata(&mut it, "metadata").unwrap(),
            [r#"unknown field "metadata.bogus""#]
        );
        assert_eq!(it, json!({"metadata": {"name": "n"}}));
        let mut it = json!({"metadata": []});
        assert_eq!(
            coerce_metadata(&mut it, "metadata").unwrap_err().to_string(),
            "json: cannot unmarshal array into Go value of type v1.ObjectMeta"
        );
        let mut it = json!({"of": {"metadata": {"name": "n", "bogus": 1}, "x": 1}});
        let found = coerce(&schema(), &mut it).unwrap();
        assert_eq!(found, [r#"unknown field "of.metadata.bogus""#]);
        assert_eq!(it, json!({"of": {"metadata": {"name": "n"}, "x": 1}}));
        let mut it = json!({"of": {"metadata": {"labels": {"a": 1}, "name": "x"}}});
        assert_eq!(
            coerce(&schema(), &mut it).unwrap_err().to_string(),
            r#"of.metadata: Invalid value: {"labels":{"a":1},"name":"x"}: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"#
        );
    }
}
