//! What a version of a definition may say, or the definition for all of its versions.

use std::collections::BTreeSet;

use insula_api::field::FieldError;
use serde_json::Value;

use super::{Errors, Fields, text};
use crate::{jsonpath::JsonPath, path::Path, schema::Schema, structural};

/// Most selectable fields of one version.
const MAX_SELECTABLE: usize = 8;

pub(super) fn check_schema(
    version: &Fields,
    unchanged: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let of_schema = path.field("openAPIV3Schema");
    let schema = version.get("schema").and_then(|it| it.get("openAPIV3Schema"));
    match schema.filter(|it| it.is_object()) {
        None => errors.push(FieldError::required(of_schema.to_string(), "")),
        Some(schema) => {
            if version.get("subresources").is_some_and(|it| it.get("status").is_some()) {
                with_status(schema, &of_schema, errors);
            }
            if !unchanged {
                errors.extend(structural::check(schema, &of_schema));
            }
        }
    }
}

pub(super) fn deprecation(version: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let field = path.field("deprecationWarning").to_string();
    let mut refuse = |why: &str| {
        errors.push(FieldError::invalid(field.as_str(), &warning.into(), why));
    };
    if version.get("deprecated") != Some(&Value::Bool(true)) {
        refuse("can only be set for deprecated versions");
        return;
    }
    if 256 < warning.len() {
        refuse("must be <= 256 characters long");
    }
    if warning.is_empty() {
        refuse("must not be an empty string");
    }
    if let Some((at, _)) = warning.char_indices().find(|(_, it)| it.is_control()) {
        refuse(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
}

/// With a status of its own, the root of a schema may not have rules that mix both.
fn with_status(schema: &Value, path: &Path<'_>, errors: &mut Errors) {
    const ALLOWED: &[&str] = &[
        "description",
        "type",
        "format",
        "title",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "multipleOf",
        "required",
        "items",
        "properties",
        "externalDocs",
        "example",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    let Some(fields) = schema.as_object() else { return };
    if text(fields, "type") != "object" {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        let field = path.field("type").to_string();
        errors.push(FieldError::invalid(field, &text(fields, "type").into(), why));
    } else if fields.iter().any(|(name, it)| {
        !ALLOWED.contains(&name.as_str()) && !it.is_null() && *it != Value::Bool(false)
    }) {
        let why = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid(path.to_string(), schema, why));
    }
}

fn simple_path(path: &str) -> Option<&'static str> {
    match path.chars().next() {
        None => Some("must not be empty"),
        Some('.') if JsonPath::parse(path).is_ok() => None,
        Some('.') => Some("must be a json path in the dot notation"),
        Some(_) => Some("must be a simple json path starting with ."),
    }
}

pub(super) fn subresources(version: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let Some(scale) = version.get("subresources").and_then(|it| it.get("scale")) else { return };
    let Some(scale) = scale.as_object() else { return };
    let of_subresources = path.field("subresources");
    for (name, required, roots, why) in [
        ("specReplicasPath", true, &[".spec."][..], "should be a json path under .spec"),
        ("statusReplicasPath", true, &[".status."][..], "should be a json path under .status"),
        (
            "labelSelectorPath",
            false,
            &[".spec.", ".status."][..],
            "should be a json path under either .spec or .status",
        ),
    ] {
        let field = format!("{of_subresources}.scale.{name}");
        let found = text(scale, name);
        if found.is_empty() {
            if required {
                errors.push(FieldError::required(field, ""));
            }
        } else if let Some(why) = simple_path(found) {
            errors.push(FieldError::invalid(field, &found.into(), why));
        } else if !roots.iter().any(|it| found.starts_with(it)) {
            errors.push(FieldError::invalid(field, &found.into(), why));
        }
    }
}

pub(super) fn columns(version: &Fields, path: &Path<'_>, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] =
        ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    let list = version.get("additionalPrinterColumns").and_then(Value::as_array);
    let of_columns = path.field("additionalPrinterColumns");
    for (index, column) in list.into_iter().flatten().enumerate() {
        let Some(column) = column.as_object() else { continue };
        let path = of_columns.index(index);
        let field = |name: &str| path.field(name).to_string();
        if text(column, "name").is_empty() {
            errors.push(FieldError::required(field("name"), ""));
        }
        let why = format!("must be one of {}", TYPES.join(","));
        match text(column, "type") {
            "" => errors.push(FieldError::required(field("type"), &why)),
            kind if TYPES.contains(&kind) => (),
            kind => errors.push(FieldError::invalid(field("type"), &kind.into(), &why)),
        }
        let format = text(column, "format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            let why = format!("must be one of {}", FORMATS.join(","));
            errors.push(FieldError::invalid(field("format"), &format.into(), &why));
        }
        let found = text(column, "jsonPath");
        if found.is_empty() {
            errors.push(FieldError::required(field("JSONPath"), ""));
        } else if let Some(why) = simple_path(found) {
            errors.push(FieldError::invalid(field("JSONPath"), &found.into(), why));
        }
    }
}

/// What a schema says of a field that selectors may ask for.
fn selected<'a>(path: &str, schema: Option<&'a Schema>) -> Result<&'a Schema, String> {
    match path.chars().next() {
        Some('.' | '[') | None => (),
        Some(other) => return Err(format!("expected [ or . but got: {other}")),
    }
    if path.contains('[') {
        return Err("array notation is not allowed".into());
    }
    let names = path.strip_prefix('.').filter(|it| !it.is_empty());
    let names = names.ok_or("unexpected end of JSON path")?;
    let target = names.split('.').try_fold(schema, |schema, name| Some(schema?.field(name)));
    target.flatten().ok_or_else(|| "does not refer to a valid field".into())
}

pub(super) fn selectable_fields(
    version: &Fields,
    schema: Option<&Value>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let list = version.get("selectableFields").and_then(Value::as_array);
    let of_fields = path.field("selectableFields");
    let compiled = schema.and_then(|it| Schema::compile(it).ok());
    let mut seen = BTreeSet::new();
    for (index, it) in list.into_iter().flatten().enumerate() {
        let field = of_fields.index(index).field("jsonPath").to_string();
        let found = it.get("jsonPath").and_then(Value::as_str).unwrap_or_default();
        let shown = Value::from(found);
        if found.is_empty() {
            errors.push(FieldError::required(field, ""));
            continue;
        }
        let target = match selected(found, compiled.as_ref()) {
            Ok(target) => target,
            Err(why) => {
                let why = format!("is an invalid path: {why}");
                errors.push(FieldError::invalid(field, &shown, &why));
                continue;
            }
        };
        if found.starts_with(".metadata.") {
            errors.push(FieldError::invalid(field, &shown, "must not point to fields in metadata"));
            continue;
        }
        use crate::schema::Type::{Boolean, Integer, String as Text};
        if !matches!(target.kind, Some(Boolean | Integer | Text)) {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(field.as_str(), &shown, why));
        }
        if !seen.insert(found) {
            errors.push(FieldError::duplicate(field, &shown));
        }
    }
    if MAX_SELECTABLE < seen.len() {
        errors.push(FieldError::too_many(of_fields.to_string(), seen.len(), MAX_SELECTABLE));
    }
}
