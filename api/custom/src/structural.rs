//! Which schemas a definition may have: structural ones.
//!
//! A schema is structural if what its fields *are* is said outside of `allOf`, `anyOf`, `oneOf`
//! and `not`, which only may add what is asked of values. Then an object can be pruned and filled
//! in without trying alternatives. The rules and their words are upstream's.

mod lists;

use insula_api::field::FieldError;
use insula_cel::regex;
use serde_json::{Map, Value, json};

use crate::{
    default,
    path::Path,
    prune::{self, Pruned},
    rules,
    schema::{MAX_DEPTH, Schema, text},
    validate,
};

type Fields = Map<String, Value>;
type Errors = Vec<FieldError>;

/// Where in a document a schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Checks an `openAPIV3Schema`.
pub fn check(document: &Value, path: &Path<'_>) -> Errors {
    let Some(fields) = document.as_object() else {
        return vec![FieldError::required(path.to_string(), "")];
    };
    if MAX_DEPTH < depth(document, 0) {
        let why = format!("must not be nested deeper than {MAX_DEPTH}");
        return vec![FieldError::invalid(path.to_string(), &"".into(), &why)];
    }
    if fields.get("nullable") == Some(&Value::Bool(true)) {
        let field = path.field("nullable").to_string();
        return vec![FieldError::forbidden(field, "nullable cannot be true at the root")];
    }
    let mut errors = Vec::new();
    invariants(fields, Level::Root, path, &mut errors);
    completeness(fields, Some(fields), path, path, &mut errors);
    errors.sort_by(|left, right| (&left.field, &left.message).cmp(&(&right.field, &right.message)));
    let mut of_openapi = Vec::new();
    let place = Place { defaults: None, in_head: false, is_root: true };
    openapi(fields, place, path, &mut of_openapi);
    let shown: Vec<FieldError> = of_openapi.into_iter().filter(|it| !errors.contains(it)).collect();
    errors.extend(shown);
    if errors.is_empty() {
        match Schema::compile(document) {
            Ok(mut schema) => {
                defaults(&schema, path, true, &mut errors);
                if errors.is_empty() {
                    errors.extend(rules::check(&mut schema, path));
                }
                if errors.is_empty() && rules::compile(&mut schema).is_ok() {
                    ruled_defaults(&schema, path, &mut errors);
                }
            }
            Err(error) => {
                let source = insula_api::error::chain(&error).to_string();
                errors.push(FieldError::invalid(path.to_string(), &"".into(), &source));
            }
        }
    }
    errors
}

/// How deep schemas are nested, as far as it matters.
fn depth(document: &Value, above: usize) -> usize {
    if MAX_DEPTH < above {
        return above;
    }
    let Some(fields) = document.as_object() else { return above };
    let below = fields.iter().flat_map(|(name, value)| match (name.as_str(), value) {
        ("properties", Value::Object(map)) => map.values().collect::<Vec<_>>(),
        ("allOf" | "anyOf" | "oneOf", Value::Array(list)) => list.iter().collect(),
        ("additionalProperties" | "items" | "not", value) => vec![value],
        _ => Vec::new(),
    });
    below.map(|it| depth(it, above + 1)).max().unwrap_or(above)
}

fn flag(fields: &Fields, name: &str) -> bool {
    fields.get(name) == Some(&Value::Bool(true))
}

fn kind(fields: &Fields) -> &str {
    text(fields, "type").unwrap_or_default()
}

fn child<'a>(fields: &'a Fields, name: &str) -> Option<&'a Fields> {
    fields.get(name).and_then(Value::as_object)
}

fn children<'a>(
    fields: &'a Fields,
    name: &str,
) -> impl Iterator<Item = (&'a String, &'a Fields)> + use<'a> {
    let map = fields.get(name).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(name, it)| Some((name, it.as_object()?)))
}

fn list<'a>(fields: &'a Fields, name: &str) -> impl Iterator<Item = (usize, &'a Fields)> + use<'a> {
    let list = fields.get(name).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object).enumerate()
}

fn is_int_or_string(alternatives: Option<&Value>) -> bool {
    alternatives == Some(&json!([{"type": "integer"}, {"type": "string"}]))
}

fn invariants(it: &Fields, level: Level, path: &Path<'_>, errors: &mut Errors) {
    let kind = kind(it);
    if kind == "array" && it.get("items").is_none_or(Value::is_null) {
        errors.push(FieldError::required(path.field("items").to_string(), "must be specified"));
    }
    if let Some(items) = child(it, "items") {
        invariants(items, Level::Item, &path.field("items"), errors);
    }
    for (name, property) in children(it, "properties") {
        invariants(property, Level::Field, &path.field("properties").key(name), errors);
    }
    let embedded = flag(it, "x-kubernetes-embedded-resource");
    let preserves = flag(it, "x-kubernetes-preserve-unknown-fields");
    let int_or_string = flag(it, "x-kubernetes-int-or-string");
    if it.get("additionalProperties").is_some_and(|it| !it.is_null()) {
        let path = path.field("additionalProperties");
        if level == Level::Root {
            errors.push(FieldError::forbidden(path.to_string(), "must not be used at the root"));
        }
        if embedded {
            let why = "must not be used if x-kubernetes-embedded-resource is set";
            errors.push(FieldError::forbidden(path.to_string(), why));
        }
        if let Some(additional) = child(it, "additionalProperties") {
            invariants(additional, Level::Field, &path, errors);
        }
    }
    for (name, set) in [
        ("x-kubernetes-preserve-unknown-fields", preserves),
        ("x-kubernetes-embedded-resource", embedded),
    ] {
        if int_or_string && set {
            let why = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(path.field(name).to_string(), &true.into(), why));
        }
    }
    values(it, path, errors);
    let of_type = path.field("type").to_string();
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => FieldError::required(of_type.as_str(), why),
            kind => FieldError::invalid(of_type.as_str(), &kind.into(), why),
        });
    } else if kind.is_empty() && !int_or_string && !preserves {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(of_type.as_str(), why));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(of_type, &kind.into(), "must be object at the root"));
    }
    head(it, level, embedded, path, errors);
    if embedded && !preserves && children(it, "properties").next().is_none() {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(path.field("properties").to_string(), why));
    }
}

/// What a schema may say of `apiVersion`, `kind` and `metadata`.
fn head(it: &Fields, level: Level, embedded: bool, path: &Path<'_>, errors: &mut Errors) {
    if level != Level::Root && !embedded {
        return;
    }
    let properties = path.field("properties");
    for (name, property) in children(it, "properties") {
        let path = properties.key(name);
        let wanted = match name.as_str() {
            "kind" | "apiVersion" => "string",
            "metadata" => "object",
            _ => continue,
        };
        if kind(property) != wanted {
            let why = format!("must be {wanted}");
            let found = kind(property).into();
            errors.push(FieldError::invalid(path.field("type").to_string(), &found, &why));
        }
        if wanted == "object" && level == Level::Root {
            let only_names = children(property, "properties")
                .all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
            let known = |name: &String| {
                matches!(name.as_str(), "type" | "properties" | "default" | "description" | "title")
            };
            // Descriptions are refused by upstream too, as all else is.
            let allowed =
                |name: &String| known(name) && !matches!(name.as_str(), "description" | "title");
            if !only_names || !property.keys().all(allowed) {
                let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
                errors.push(FieldError::forbidden(path.to_string(), why));
            }
        }
    }
}

/// Why a pattern is none, in Go's words for the common mistakes.
fn told(error: &impl std::fmt::Display, pattern: &str) -> String {
    let text = error.to_string();
    let of_go = [
        ("unclosed group", "missing closing ): "),
        ("unopened group", "unexpected ): "),
        ("unclosed character class", "missing closing ]: "),
        ("repetition operator missing expression", "missing argument to repetition operator: "),
    ];
    match of_go.iter().find(|(ours, _)| text.contains(ours)) {
        Some((_, theirs)) => format!("error parsing regexp: {theirs}`{pattern}`"),
        None => text,
    }
}

/// What a schema asks of values, in its junctors too.
fn values(it: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let any_of = it.get("anyOf");
    if !is_int_or_string(any_of) {
        for (index, nested_schema) in list(it, "anyOf") {
            nested(nested_schema, &path.field("anyOf").index(index), errors);
        }
    }
    for (index, nested_schema) in list(it, "allOf") {
        let path = path.field("allOf");
        let path = path.index(index);
        if index == 0 && is_int_or_string(nested_schema.get("anyOf")) {
            let mut without = nested_schema.clone();
            without.remove("anyOf");
            nested(&without, &path, errors);
        } else {
            nested(nested_schema, &path, errors);
        }
    }
    for (index, nested_schema) in list(it, "oneOf") {
        nested(nested_schema, &path.field("oneOf").index(index), errors);
    }
    if let Some(nested_schema) = child(it, "not") {
        nested(nested_schema, &path.field("not"), errors);
    }
    if let Some(pattern) = text(it, "pattern").filter(|it| !it.is_empty())
        && let Err(error) = regex::compile(pattern)
    {
        let why =
            format!("must be a valid regular expression, but isn't: {}", told(&error, pattern));
        errors.push(FieldError::invalid(path.field("pattern").to_string(), &pattern.into(), &why));
    }
}

/// A schema under a junctor: it may ask, but not say what there is.
fn nested(it: &Fields, path: &Path<'_>, errors: &mut Errors) {
    values(it, path, errors);
    if let Some(items) = child(it, "items") {
        nested(items, &path.field("items"), errors);
    }
    for (name, property) in children(it, "properties") {
        nested(property, &path.field("properties").key(name), errors);
    }
    const MUST_BE: &[(&str, &str)] = &[
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    for (name, why) in MUST_BE {
        let is_set = match it.get(*name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        if is_set {
            errors.push(FieldError::forbidden(path.field(name).to_string(), why));
        }
    }
    if child(it, "properties").is_some_and(|it| it.contains_key("metadata")) {
        let field = path.field("properties").key("metadata").to_string();
        errors.push(FieldError::forbidden(field, "must not be specified in a nested context"));
    }
}

/// All that the root's junctors speak of is also said outside of them. Upstream asks no more.
fn completeness(
    it: &Fields,
    structure: Option<&Fields>,
    of_structure: &Path<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut below = |it: &Fields, path: &Path<'_>| {
        nested_completeness(it, structure, of_structure, path, errors);
    };
    if let Some(not) = child(it, "not") {
        below(not, &path.field("not"));
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, alternative) in list(it, name) {
            below(alternative, &path.field(name).index(index));
        }
    }
}

fn nested_completeness(
    it: &Fields,
    structure: Option<&Fields>,
    of_structure: &Path<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let Some(structure) = structure else {
        let why = format!("because it is defined in {path}");
        errors.push(FieldError::required(of_structure.to_string(), &why));
        return;
    };
    completeness(it, Some(structure), of_structure, path, errors);
    if let Some(items) = child(it, "items") {
        let below = child(structure, "items");
        let of_structure = of_structure.field("items");
        nested_completeness(items, below, &of_structure, &path.field("items"), errors);
    }
    for (name, property) in children(it, "properties") {
        let below = child(structure, "properties").and_then(|it| it.get(name)?.as_object());
        let (of_structure, path) = (of_structure.field("properties"), path.field("properties"));
        nested_completeness(property, below, &of_structure.key(name), &path.key(name), errors);
    }
}

/// What holds for a part of a schema by where it is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Why there may be no defaults, if there may not.
    defaults: Option<&'static str>,
    /// Inside of what every object has.
    in_head: bool,
    is_root: bool,
}

/// Which keywords there may be, and with which others.
fn openapi(it: &Fields, place: Place, path: &Path<'_>, errors: &mut Errors) {
    let field = |name: &str| path.field(name).to_string();
    let kind = kind(it);
    if !kind.is_empty()
        && !matches!(kind, "array" | "boolean" | "integer" | "number" | "object" | "string")
    {
        let types = ["array", "boolean", "integer", "number", "object", "string"];
        errors.push(FieldError::unsupported(field("type"), &kind.into(), &types));
        if kind == "null" {
            let why = "type cannot be set to null, use nullable as an alternative";
            errors.push(FieldError::forbidden(field("type"), why));
        }
    }
    if let (Some(reason), Some(_)) = (place.defaults, it.get("default").filter(|it| !it.is_null()))
    {
        let why = format!("must not be set {reason}");
        errors.push(FieldError::forbidden(field("default"), &why));
    }
    for name in
        ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"]
    {
        let is_set = match it.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::Object(map)) => !map.is_empty() || name == "dependencies",
            Some(_) => true,
        };
        if is_set {
            errors.push(FieldError::forbidden(field(name), &format!("{name} is not supported")));
        }
    }
    if it.get("items").is_some_and(Value::is_array) {
        let why = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(field("items"), why));
    }
    if place.in_head && flag(it, "x-kubernetes-embedded-resource") {
        let why = "must not be used inside of resource meta";
        errors.push(FieldError::forbidden(field("x-kubernetes-embedded-resource"), why));
    }
    if flag(it, "uniqueItems") {
        let why =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(field("uniqueItems"), why));
    }
    let additional = it.get("additionalProperties").filter(|it| !it.is_null());
    let has_properties = children(it, "properties").next().is_some();
    if has_properties && additional.is_some_and(|it| *it != Value::Bool(true)) {
        let why = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(field("additionalProperties"), why));
    }
    let is_root = place.is_root;
    let nested_place = Place { is_root: false, ..place };
    if let Some(additional) = child(it, "additionalProperties") {
        let reason = "inside additionalProperties applying to object metadata";
        let defaults = if place.in_head { Some(reason) } else { place.defaults };
        let place = Place { defaults, ..nested_place };
        openapi(additional, place, &path.field("additionalProperties"), errors);
    }
    let embedded = flag(it, "x-kubernetes-embedded-resource");
    for (name, property) in children(it, "properties") {
        let mut place = nested_place;
        let reason = match name.as_str() {
            "metadata" => Some("in top-level metadata"),
            "kind" => Some("in top-level kind"),
            "apiVersion" => Some("in top-level apiVersion"),
            _ => None,
        };
        if reason.is_some() && (is_root || embedded) {
            place.in_head = true;
            place.defaults = if is_root { reason } else { place.defaults };
        }
        openapi(property, place, &path.field("properties").key(name), errors);
    }
    if let Some(items) = child(it, "items") {
        openapi(items, nested_place, &path.field("items"), errors);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, alternative) in list(it, name) {
            openapi(alternative, nested_place, &path.field(name).index(index), errors);
        }
    }
    if let Some(not) = child(it, "not") {
        openapi(not, nested_place, &path.field("not"), errors);
    }
    lists::check(it, path, errors);
}

/// Defaults are what the schema itself would let through.
fn defaults(it: &Schema, path: &Path<'_>, is_root: bool, errors: &mut Errors) {
    if let Some(found) = &it.default {
        let path = path.field("default");
        let mut pruned = found.clone();
        let mut dropped = Pruned::default();
        prune::part(it, &mut pruned, &mut dropped);
        if dropped.any {
            let why = "must not have unknown fields";
            errors.push(FieldError::invalid(path.to_string(), found, why));
        } else {
            let mut filled = found.clone();
            default::fill(it, &mut filled);
            // As if it were an object of its own, whose places are then below that of the default.
            let found = validate::value(it, &filled, None, &Path::Root);
            errors.extend(found.into_iter().map(|mut error| {
                error.field = match &*error.field {
                    "" | validate::NOWHERE => path.to_string(),
                    below => format!("{path}.{below}"),
                };
                error
            }));
            let head = if is_root { &with_head(it) } else { it };
            errors.extend(crate::embedded::check(head, &filled, &path));
        }
    }
    each_below(it, path, is_root, &mut |it, path| defaults(it, path, false, errors));
}

/// A schema of whole objects, at its root as in its fields.
fn with_head(it: &Schema) -> Schema {
    Schema { embedded: true, ..it.clone() }
}

/// Defaults are what the rules of the schema let through.
fn ruled_defaults(it: &Schema, path: &Path<'_>, errors: &mut Errors) {
    if let Some(found) = &it.default {
        errors.extend(rules::validate_at(it, found, None, &path.field("default")));
    }
    each_below(it, path, false, &mut |it, path| ruled_defaults(it, path, errors));
}

/// Visits what a schema says of parts. What every object has at its `is_root` is not its own.
fn each_below(
    it: &Schema,
    path: &Path<'_>,
    is_root: bool,
    visit: &mut impl FnMut(&Schema, &Path<'_>),
) {
    let properties = path.field("properties");
    for (name, property) in &it.properties {
        if is_root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        visit(property, &properties.key(name));
    }
    if let Some(crate::schema::Additional::Of(additional)) = &it.additional {
        visit(additional, &path.field("additionalProperties"));
    }
    if let Some(items) = &it.items {
        visit(items, &path.field("items"));
    }
}

#[cfg(test)]
mod tests;
