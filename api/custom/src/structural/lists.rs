//! What a schema may say of lists and maps.

use insula_api::field::FieldError;
use serde_json::{Value, json};

use super::{Errors, Fields, child, flag, kind};
use crate::{
    path::Path,
    schema::{text, texts},
};

/// What `x-kubernetes-list-type` and its kin may say.
pub(super) fn check(it: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let field = |name: &str| path.field(name).to_string();
    let kind = kind(it);
    if it.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let name = field("x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(name, &false.into(), "must be true or undefined"));
    }
    let map_type = text(it, "x-kubernetes-map-type");
    let list_type = text(it, "x-kubernetes-list-type");
    let mut wants = |of: Option<&str>, wanted: &str, name: &str| {
        if of.is_some() && kind != wanted {
            let why = format!("must be {wanted} if {name} is specified");
            errors.push(match kind {
                "" => FieldError::required(field("type"), &why),
                kind => FieldError::invalid(field("type"), &kind.into(), &why),
            });
        }
    };
    wants(map_type, "object", "x-kubernetes-map-type");
    wants(list_type, "array", "x-kubernetes-list-type");
    if let Some(found) = map_type.filter(|it| !matches!(*it, "atomic" | "granular")) {
        let name = field("x-kubernetes-map-type");
        errors.push(FieldError::unsupported(name, &found.into(), &["atomic", "granular"]));
    }
    if let Some(found) = list_type.filter(|it| !matches!(*it, "atomic" | "set" | "map")) {
        let name = field("x-kubernetes-list-type");
        errors.push(FieldError::unsupported(name, &found.into(), &["atomic", "set", "map"]));
    }
    let items = child(it, "items");
    if let (Some("set"), "array", Some(items)) = (list_type, kind, items) {
        set_items(items, path, errors);
    }
    if let (Some(found @ ("set" | "map")), Some(items)) = (list_type, items)
        && flag(items, "nullable")
    {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {found}");
        let name = path.field("items").field("nullable").to_string();
        errors.push(FieldError::forbidden(name, &why));
    }
    let keys = texts(it, "x-kubernetes-list-map-keys");
    if !keys.is_empty() && list_type != Some("map") {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        let name = field("x-kubernetes-list-type");
        errors.push(match list_type {
            None => FieldError::required(name, why),
            Some(found) => FieldError::invalid(name, &found.into(), why),
        });
    }
    if list_type == Some("map") {
        map_keys(&keys, items, path, errors);
    }
}

/// Items of sets are compared as a whole.
fn set_items(items: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let path = path.field("items");
    let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
    match kind(items) {
        "array" => {
            if let Some(found) = text(items, "x-kubernetes-list-type").filter(|it| *it != "atomic")
            {
                let name = path.field("x-kubernetes-list-type").to_string();
                errors.push(FieldError::invalid(name, &found.into(), why));
            }
        }
        "object" if text(items, "x-kubernetes-map-type") != Some("atomic") => {
            // Whatever it is, upstream shows none.
            let name = path.field("x-kubernetes-map-type").to_string();
            errors.push(FieldError::invalid(name, &Value::Null, why));
        }
        _ => (),
    }
}

/// Items of maps are told apart by scalar fields that are always there.
fn map_keys(keys: &[String], items: Option<&Fields>, path: &Path<'_>, errors: &mut Errors) {
    let of_keys = path.field("x-kubernetes-list-map-keys").to_string();
    let of_items = path.field("items");
    if keys.is_empty() {
        let why = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(of_keys.as_str(), why));
    }
    let Some(items) = items else {
        let why = "must have a schema if x-kubernetes-list-type is map";
        errors.push(FieldError::required(of_items.to_string(), why));
        return;
    };
    if kind(items) != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        let found = kind(items).into();
        errors.push(FieldError::invalid(of_items.field("type").to_string(), &found, why));
        return;
    }
    let required = texts(items, "required");
    let properties = of_items.field("properties");
    for (index, key) in keys.iter().enumerate() {
        if keys.iter().take(index).any(|it| it == key) {
            let why = "must not contain duplicate entries";
            errors.push(FieldError::invalid(of_keys.as_str(), &json!(keys), why));
        }
        let Some(property) = child(items, "properties").and_then(|it| it.get(key)?.as_object())
        else {
            let why = "entries must all be names of item properties";
            errors.push(FieldError::invalid(of_keys.as_str(), &json!(keys), why));
            continue;
        };
        let path = properties.key(key);
        if matches!(kind(property), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            let found = kind(property).into();
            errors.push(FieldError::invalid(path.field("type").to_string(), &found, why));
        }
        if !required.contains(key) && property.get("default").is_none_or(Value::is_null) {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.push(FieldError::required(path.field("default").to_string(), why));
        }
        if flag(property, "nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(path.field("nullable").to_string(), why));
        }
    }
}
