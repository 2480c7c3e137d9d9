//! What a CustomResourceDefinition may say, in upstream's words.

use std::collections::BTreeSet;

use insula_api::{field::FieldError, names::is_dns1123_subdomain, object};
use serde_json::{Map, Value, json};

use crate::{
    jsonpath::JsonPath,
    names::{SUBDOMAIN, label_error},
    path::Path,
    schema::Schema,
    structural,
};

type Fields = Map<String, Value>;
type Errors = Vec<FieldError>;

/// Most versions of one definition.
const MAX_VERSIONS: usize = 64;
/// Most selectable fields of one version.
const MAX_SELECTABLE: usize = 8;
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
    let shown = || spec.get("versions").cloned().unwrap_or_else(|| json!([]));
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
        }
        // What was let in once is not looked at again while it stays as it is.
        let unchanged = old.is_some_and(|old| {
            versions(old).any(|(_, it)| {
                text(it, "name") == name && it.get("schema") == version.get("schema")
            })
        });
        check_version(version, unchanged, &path, errors);
    }
    if !is_unique {
        let why = "must contain unique version names";
        errors.push(FieldError::invalid(of_versions.to_string(), &shown(), why));
    }
    if n_storage != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(of_versions.to_string(), &shown(), why));
    }
}

fn check_version(version: &Fields, unchanged: bool, path: &Path<'_>, errors: &mut Errors) {
    deprecation(version, path, errors);
    let of_schema = path.field("schema");
    let of_schema = of_schema.field("openAPIV3Schema");
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
    subresources(version, path, errors);
    columns(version, path, errors);
    selectable_fields(version, schema, path, errors);
}

fn deprecation(version: &Fields, path: &Path<'_>, errors: &mut Errors) {
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

fn subresources(version: &Fields, path: &Path<'_>, errors: &mut Errors) {
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

fn columns(version: &Fields, path: &Path<'_>, errors: &mut Errors) {
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

fn selectable_fields(
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
        let parsed = JsonPath::parse(found).ok().filter(|_| found.starts_with('.'));
        let Some(names) = parsed.as_ref().and_then(JsonPath::fields) else {
            let why = "is an invalid path: expected dots and names of fields";
            errors.push(FieldError::invalid(field, &shown, why));
            continue;
        };
        if names.first() == Some(&"metadata") {
            errors.push(FieldError::invalid(field, &shown, "must not point to fields in metadata"));
            continue;
        }
        let target = names
            .iter()
            .try_fold(compiled.as_ref(), |schema, name| Some(schema?.properties.get(*name)))
            .flatten();
        let Some(target) = target else {
            let why = "is an invalid path: does not refer to a valid field";
            errors.push(FieldError::invalid(field, &shown, why));
            continue;
        };
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
                errors.push(FieldError::invalid(path.index(index).to_string(), found, &why));
            }
        }
    }
}

fn conversion(spec: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let Some(conversion) = spec.get("conversion").and_then(Value::as_object) else { return };
    let path = path.field("conversion");
    let webhook = conversion.get("webhook").and_then(Value::as_object);
    let of_config = path.field("webhookClientConfig");
    match text(conversion, "strategy") {
        "" => errors.push(FieldError::required(path.field("strategy").to_string(), "")),
        "None" => {
            if webhook.is_some() {
                let why = "should not be set when strategy is not set to Webhook";
                errors.push(FieldError::forbidden(of_config.to_string(), why));
            }
        }
        "Webhook" => {
            let config = webhook.and_then(|it| it.get("clientConfig")).and_then(Value::as_object);
            match config {
                None => {
                    let why = "required when strategy is set to Webhook";
                    errors.push(FieldError::required(of_config.to_string(), why));
                }
                Some(config) => client_config(config, &of_config, errors),
            }
            let empty = Map::new();
            review_versions(webhook.unwrap_or(&empty), &path, errors);
        }
        other => {
            let field = path.field("strategy").to_string();
            errors.push(FieldError::unsupported(field, &other.into(), &["None", "Webhook"]));
        }
    }
}

/// Where a webhook is reached: by one URL, or by one service.
fn client_config(config: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let url = config.get("url").and_then(Value::as_str);
    let service = config.get("service").and_then(Value::as_object);
    match (url, service) {
        (Some(url), None) => {
            let field = path.field("url").to_string();
            let shown = url.into();
            if !url.starts_with("https://") {
                let why =
                    "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                errors.push(FieldError::invalid(field.as_str(), &shown, why));
            }
            let rest = url.trim_start_matches("https://");
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            if host.is_empty() {
                let why = "host must be specified; desired format: https://host[/path]";
                errors.push(FieldError::invalid(field.as_str(), &shown, why));
            }
            for (sign, why) in [
                ('@', "user information is not permitted in the URL"),
                ('#', "fragments are not permitted in the URL"),
                ('?', "query parameters are not permitted in the URL"),
            ] {
                if rest.contains(sign) {
                    errors.push(FieldError::invalid(field.as_str(), &shown, why));
                }
            }
        }
        (None, Some(service)) => {
            let path = path.field("service");
            for name in ["name", "namespace"] {
                if text(service, name).is_empty() {
                    let field = path.field(name).to_string();
                    errors
                        .push(FieldError::required(field, &format!("service {name} is required")));
                }
            }
            let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
            if !(1..=65_535).contains(&port) {
                let why = "port is not valid: must be between 1 and 65535, inclusive";
                let field = path.field("port").to_string();
                errors.push(FieldError::invalid(field, &port.into(), why));
            }
            let target = text(service, "path");
            if !target.is_empty() && !target.starts_with('/') {
                let field = path.field("path").to_string();
                errors.push(FieldError::invalid(field, &target.into(), "must start with a '/'"));
            }
        }
        _ => {
            let why = "exactly one of url or service is required";
            errors.push(FieldError::required(path.to_string(), why));
        }
    }
}

fn review_versions(webhook: &Fields, path: &Path<'_>, errors: &mut Errors) {
    let path = path.field("conversionReviewVersions");
    let list = webhook.get("conversionReviewVersions").and_then(Value::as_array);
    let list: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
    if list.is_empty() {
        errors.push(FieldError::required(path.to_string(), ""));
        return;
    }
    for (index, version) in list.iter().enumerate() {
        let field = path.index(index).to_string();
        if list.iter().take(index).any(|it| it == version) {
            errors.push(FieldError::invalid(field, &(*version).into(), "duplicate version"));
        } else if let Some(why) = label_error(version) {
            errors.push(FieldError::invalid(field, &(*version).into(), &why));
        }
    }
    if !list.iter().any(|it| matches!(*it, "v1" | "v1beta1")) {
        let why = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(path.to_string(), &json!(list), why));
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
        // Versions without a storage version are refused elsewhere.
        return;
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
