//! What a CustomResourceDefinition may say, in upstream's words.

mod conversion;
mod version;

use std::collections::BTreeSet;

use insula_api::{
    field::FieldError, internal, names::is_dns1123_subdomain, object, schema::Schema as Graph,
};
use serde_json::{Map, Value};

use self::{
    conversion::conversion,
    version::{check_schema, columns, deprecation, selectable_fields, subresources},
};
use crate::{
    names::{SUBDOMAIN, label_error},
    path::Path,
};

type Fields = Map<String, Value>;
type Errors = Vec<FieldError>;

/// Most versions of one definition.
const MAX_VERSIONS: usize = 64;
/// The type of what a definition says.
const SPEC: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec";
const APPROVAL: &str = "api-approved.kubernetes.io";

/// Checks a definition; `old` is what it was, if it was.
pub fn definition(it: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let empty = Map::new();
    let spec = it.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let wanted = format!("{}.{}", text_at(spec, &["names", "plural"]), text(spec, "group"));
    if old.is_none() && object::name(it) != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", &object::name(it).into(), why));
    }
    let root = Path::Root;
    let path = root.field("spec");
    let of_old = old.and_then(|it| it.get("spec")).and_then(Value::as_object);
    check_spec(spec, of_old, &path, &mut errors);
    if let (Some(old), Some(of_old)) = (old, of_old) {
        immutable(spec, of_old, old, &path, &mut errors);
    }
    stored_versions(it, spec, &mut errors);
    approval(it, old, spec, &mut errors);
    errors
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn text_at<'a>(fields: &'a Fields, names: &[&str]) -> &'a str {
    let Some((first, rest)) = names.split_first() else { return "" };
    fields.get(*first).map_or("", |it| object::text(it, rest))
}

fn versions(spec: &Fields) -> impl Iterator<Item = (usize, &Fields)> {
    let list = spec.get("versions").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object).enumerate()
}

fn check_spec(spec: &Fields, old: Option<&Fields>, path: &Path<'_>, errors: &mut Errors) {
    let group = text(spec, "group");
    let of_group = path.field("group").to_string();
    if group.is_empty() {
        errors.push(FieldError::required(of_group, ""));
    } else if !is_dns1123_subdomain(group) {
        errors.push(FieldError::invalid(of_group, &group.into(), SUBDOMAIN));
    } else if !group.contains('.') {
        let why = "should be a domain with at least one dot";
        errors.push(FieldError::invalid(of_group, &group.into(), why));
    }
    let of_scope = path.field("scope").to_string();
    match text(spec, "scope") {
        "Cluster" | "Namespaced" => (),
        "" => errors.push(FieldError::required(of_scope, "")),
        other => {
            let known = ["Cluster", "Namespaced"];
            errors.push(FieldError::unsupported(of_scope, &other.into(), &known));
        }
    }
    if spec.get("preserveUnknownFields") == Some(&Value::Bool(true)) {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        let field = path.field("preserveUnknownFields").to_string();
        errors.push(FieldError::invalid(field, &true.into(), why));
    }
    check_versions(spec, old, path, errors);
    check_names(spec, path, errors);
    conversion(spec, path, errors);
}

fn check_versions(spec: &Fields, old: Option<&Fields>, path: &Path<'_>, errors: &mut Errors) {
    let of_versions = path.field("versions");
    let shown = || shown_versions(spec);
    let (mut names, mut is_unique, mut n_storage) = (BTreeSet::new(), true, 0);
    if MAX_VERSIONS < versions(spec).count() {
        let n_versions = versions(spec).count();
        errors.push(FieldError::too_many(of_versions.to_string(), n_versions, MAX_VERSIONS));
        return;
    }
    for (index, version) in versions(spec) {
        let path = of_versions.index(index);
        let name = text(version, "name");
        is_unique &= names.insert(name);
        n_storage += usize::from(version.get("storage") == Some(&Value::Bool(true)));
        if let Some(why) = label_error(name) {
            errors.push(FieldError::invalid(path.field("name").to_string(), &name.into(), &why));
            if index == 0 && !name.is_empty() {
                // The first of them was once the only one.
                errors.push(FieldError::invalid("spec.version", &name.into(), &why));
            }
        }
        let unchanged = is_known(old, version);
        check_version(spec, version, unchanged, &path, errors);
    }
    common(spec, old, path, errors);
    if !is_unique {
        let why = "must contain unique version names";
        errors.push(FieldError::invalid_form(of_versions.to_string(), &shown(), why));
    }
    if n_storage != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid_form(of_versions.to_string(), &shown(), why));
    }
}

/// What was let in once is not looked at again while it stays as it is.
fn is_known(old: Option<&Fields>, version: &Fields) -> bool {
    let name = text(version, "name");
    old.is_some_and(|old| {
        versions(old)
            .any(|(_, it)| text(it, "name") == name && it.get("schema") == version.get("schema"))
    })
}

/// Parts of versions that upstream keeps, and tells of, as those of the definition itself, if
/// they are the same in all versions.
const COMMON: [&str; 4] =
    ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];

fn is_common(spec: &Fields, part: &str) -> bool {
    let mut parts = versions(spec).map(|(_, it)| it.get(part));
    let first = parts.next();
    first.is_some_and(|first| parts.all(|it| it == first))
}

/// The versions as messages show them.
fn shown_versions(spec: &Fields) -> String {
    if spec.get("versions").is_none_or(Value::is_null) {
        return "null".into();
    }
    let own: Vec<Value> = versions(spec)
        .map(|(_, version)| {
            let mut version = version.clone();
            version.retain(|name, _| !(COMMON.contains(&&**name) && is_common(spec, name)));
            version.into()
        })
        .collect();
    let schema = Graph::built_in();
    match schema.by_name(SPEC) {
        Some(id) => internal::line(id, "versions", &own.into()),
        None => "[]".into(),
    }
}

/// What versions have in common is checked once.
fn common(spec: &Fields, old: Option<&Fields>, path: &Path<'_>, errors: &mut Errors) {
    let Some((_, first)) = versions(spec).next() else { return };
    let schema = first.get("schema").and_then(|it| it.get("openAPIV3Schema"));
    if is_common(spec, "schema") {
        let of_schema = path.field("validation");
        // Where there is none, it is missed in the version.
        if schema.is_some_and(Value::is_object) {
            let unchanged = versions(spec).all(|(_, it)| is_known(old, it));
            check_schema(first, unchanged, &of_schema, errors);
        }
    }
    if is_common(spec, "subresources") {
        subresources(first, path, errors);
    }
    if is_common(spec, "additionalPrinterColumns") {
        columns(first, path, errors);
    }
    if is_common(spec, "selectableFields") && is_common(spec, "schema") {
        selectable_fields(first, schema, path, errors);
    }
}

/// What a version has for itself.
fn check_version(
    spec: &Fields,
    version: &Fields,
    unchanged: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    deprecation(version, path, errors);
    let schema = version.get("schema").and_then(|it| it.get("openAPIV3Schema"));
    if !is_common(spec, "schema") || !schema.is_some_and(Value::is_object) {
        check_schema(version, unchanged, &path.field("schema"), errors);
    }
    if !is_common(spec, "subresources") {
        subresources(version, path, errors);
    }
    if !is_common(spec, "additionalPrinterColumns") {
        columns(version, path, errors);
    }
    if !(is_common(spec, "selectableFields") && is_common(spec, "schema")) {
        selectable_fields(version, schema, path, errors);
    }
}

fn check_names(spec: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let path = path.field("names");
    let empty = Map::new();
    let names = spec.get("names").and_then(Value::as_object).unwrap_or(&empty);
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(names, name).is_empty() {
            errors.push(FieldError::required(path.field(name).to_string(), ""));
        }
    }
    for name in ["plural", "singular"] {
        let found = text(names, name);
        if let Some(why) = label_error(found).filter(|_| !found.is_empty()) {
            errors.push(FieldError::invalid(path.field(name).to_string(), &found.into(), &why));
        }
    }
    for name in ["kind", "listKind"] {
        let found = text(names, name);
        if let Some(why) = label_error(&found.to_lowercase()).filter(|_| !found.is_empty()) {
            let why = format!("may have mixed case, but should otherwise match: {why}");
            errors.push(FieldError::invalid(path.field(name).to_string(), &found.into(), &why));
        }
    }
    let (kind, list_kind) = (text(names, "kind"), text(names, "listKind"));
    if !kind.is_empty() && kind == list_kind {
        let field = path.field("listKind").to_string();
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(field, &list_kind.into(), why));
    }
    for name in ["shortNames", "categories"] {
        let list = names.get(name).and_then(Value::as_array);
        let path = path.field(name);
        for (index, found) in list.into_iter().flatten().enumerate() {
            if let Some(why) = label_error(found.as_str().unwrap_or_default()) {
                let shown = found.as_str().unwrap_or_default().into();
                errors.push(FieldError::invalid(path.index(index).to_string(), &shown, &why));
            }
        }
    }
}

/// Names under which objects are kept stay as they are.
fn immutable(new: &Fields, old: &Fields, it: &Value, path: &Path<'_>, errors: &mut Errors) {
    let why = "field is immutable";
    let mut keep = |names: &[&str]| {
        let (now, before) = (text_at(new, names), text_at(old, names));
        if now != before {
            let field = format!("{path}.{}", names.join("."));
            errors.push(FieldError::invalid(field, &now.into(), why));
        }
    };
    if is_established(it) {
        keep(&["scope"]);
        keep(&["names", "kind"]);
    }
    keep(&["group"]);
    keep(&["names", "plural"]);
}

/// Whether the condition `Established` holds.
pub fn is_established(it: &Value) -> bool {
    condition(it, "Established") == Some("True")
}

/// The status of a condition, if there is one.
pub fn condition<'a>(it: &'a Value, kind: &str) -> Option<&'a str> {
    let list = object::at(it, &["status", "conditions"])?.as_array()?;
    list.iter().find(|it| it["type"] == kind)?.get("status")?.as_str()
}

/// No version may go that objects may still be kept in.
fn stored_versions(it: &Value, spec: &Fields, errors: &mut Errors) {
    let stored = object::at(it, &["status", "storedVersions"]).and_then(Value::as_array);
    let stored: Vec<&str> = stored.into_iter().flatten().filter_map(Value::as_str).collect();
    if stored.is_empty() {
        let why = "must have at least one stored version";
        errors.push(FieldError::invalid("status.storedVersions", &Value::Null, why));
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions(spec).any(|(_, it)| text(it, "name") == *name) {
            let why = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            let field = format!("status.storedVersions[{index}]");
            errors.push(FieldError::invalid(field, &(*name).into(), &why));
        }
    }
}

/// Groups of the Kubernetes community are for what it has approved.
fn approval(it: &Value, old: Option<&Value>, spec: &Fields, errors: &mut Errors) {
    let group = text(spec, "group");
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|it| group == *it || group.ends_with(&format!(".{it}")));
    if !is_protected {
        return;
    }
    let annotation = |it: &Value| {
        let found = object::at(it, &["metadata", "annotations"])?.get(APPROVAL)?.as_str()?;
        Some(found.to_owned())
    };
    let found = annotation(it);
    if old.is_some_and(|old| annotation(old) == found) {
        return;
    }
    let field = format!("metadata.annotations[{APPROVAL}]");
    match found.as_deref() {
        None | Some("") => {
            let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
            errors.push(FieldError::required(field, why));
        }
        Some(text) if text.starts_with("unapproved") => (),
        Some(text) if text.contains("://") => (),
        Some(text) => {
            let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111";
            errors.push(FieldError::invalid(field, &text.into(), why));
        }
    }
}

#[cfg(test)]
mod tests;
