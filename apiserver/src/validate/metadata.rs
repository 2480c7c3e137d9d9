//! What every object says of itself: its name, labels, annotations, owners, finalizers.

use std::cell::LazyCell;

use insula_api::{internal, object, schema::Schema};
use serde_json::{Map, Value};

use super::{Errors, formats::Format, rule};
use crate::{
    error::FieldError,
    registry::Served,
    strategy::{self, Name},
};

/// All annotations of an object together, in bytes.
const ANNOTATIONS: usize = 256 * 1024;

/// Checks the metadata of a new object.
pub(super) fn check(served: &Served, it: &Value, errors: &mut Errors) {
    const FIELD: &str = "metadata.name";
    let rule = strategy::facts(&served.resource).name;
    let generate = object::meta_str(it, "generateName");
    if !generate.is_empty() {
        // What follows makes a whole name of a prefix.
        let prefix = match generate.strip_suffix('-') {
            Some(rest) if !rest.is_empty() => format!("{rest}a"),
            _ => generate.to_owned(),
        };
        for why in wrong(rule, &prefix) {
            errors.push(FieldError::invalid("metadata.generateName", &generate.into(), &why));
        }
    }
    let name = object::name(it);
    if name.is_empty() {
        errors.push(FieldError::required(FIELD, "name or generateName is required"));
    }
    for why in wrong(rule, name).into_iter().filter(|_| !name.is_empty()) {
        errors.push(FieldError::invalid(FIELD, &name.into(), &why));
    }
    common(it, errors);
    let finalizers = object::finalizers(it);
    for name in &finalizers {
        for why in Format::Qualified.check(name) {
            errors.push(FieldError::invalid("metadata.finalizers", &(*name).into(), &why));
        }
    }
    kept_finalizers(served, it, errors);
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        let shown = object::metadata(it).get("finalizers").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("metadata.finalizers", &shown, why));
    }
}

/// Finalizers that are upstream's own.
pub(crate) const KNOWN_FINALIZERS: [&str; 3] = ["foregroundDeletion", "kubernetes", "orphan"];

/// A finalizer is one of upstream's, or somebody's.
fn known_finalizer(name: &str, at: &str, errors: &mut Errors) {
    if !name.contains('/') && !KNOWN_FINALIZERS.contains(&name) {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        errors.push(FieldError::invalid(at, &name.into(), why));
    }
}

/// What waits for a namespace's end, and has names as finalizers of objects do.
pub(super) fn finalizers_of_namespace(it: &Value, errors: &mut Errors) {
    let list = it["spec"]["finalizers"].as_array();
    for (index, name) in list.into_iter().flatten().filter_map(Value::as_str).enumerate() {
        let at = format!("spec.finalizers[{index}]");
        for why in Format::Qualified.check(name) {
            errors.push(FieldError::invalid(at.as_str(), &name.into(), &why));
        }
        known_finalizer(name, &at, errors);
    }
}

/// Finalizers of built-in kinds are known, or somebody's.
fn kept_finalizers(served: &Served, it: &Value, errors: &mut Errors) {
    // These groups are checked as custom resources are.
    const OTHERS: [&str; 3] =
        ["admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io"];
    if served.custom().is_some() || OTHERS.contains(&&*served.resource.group) {
        return;
    }
    for (index, name) in object::finalizers(it).into_iter().enumerate() {
        known_finalizer(name, &format!("metadata.finalizers[{index}]"), errors);
    }
}

/// Checks the metadata of what becomes of an object.
pub(super) fn check_update(served: &Served, old: &Value, new: &Value, errors: &mut Errors) {
    if object::is_deleting(old) {
        let had = object::finalizers(old);
        let added: Vec<&str> =
            object::finalizers(new).into_iter().filter(|it| !had.contains(it)).collect();
        if !added.is_empty() {
            let added: Vec<String> = added.iter().map(|it| format!("{it:?}")).collect();
            let added = added.join(", ");
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{added}}}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", &why));
        }
    }
    common(new, errors);
    kept_finalizers(served, new, errors);
}

fn wrong(rule: Name, name: &str) -> Vec<String> {
    match rule {
        Name::Subdomain => Format::Subdomain.check(name),
        Name::Label => Format::Label.check(name),
        Name::Path => Format::PathSegment.check(name),
        Name::Ip => Format::Ip.check(name),
        Name::Tenant if name == insula_api::names::ALL => vec!["\"all\" is reserved".into()],
        Name::Tenant => Format::Label.check(name),
        Name::Any => Vec::new(),
    }
}

fn common(it: &Value, errors: &mut Errors) {
    let metadata = object::metadata(it);
    if let Some(labels) = metadata.get("labels") {
        rule::labels(labels, "metadata.labels", errors);
    }
    if let Some(Value::Object(found)) = metadata.get("annotations") {
        annotations(found, "metadata.annotations", errors);
    }
    owners(metadata.get("ownerReferences"), errors);
}

pub(super) fn annotations(it: &Map<String, Value>, path: &str, errors: &mut Errors) {
    for key in it.keys() {
        for why in Format::Qualified.check(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, &key.as_str().into(), &why));
        }
    }
    let size =
        |(key, value): (&String, &Value)| key.len() + value.as_str().unwrap_or_default().len();
    if ANNOTATIONS < it.iter().map(size).sum() {
        errors.push(FieldError::too_long(path, ANNOTATIONS));
    }
}

/// Owners as messages show them.
fn shown_owners(owners: &Value) -> String {
    let schema = Schema::built_in();
    match schema.by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") {
        Some(metadata) => internal::line(metadata, "ownerReferences", owners),
        None => owners.to_string(),
    }
}

fn owners(found: Option<&Value>, errors: &mut Errors) {
    const PATH: &str = "metadata.ownerReferences";
    let Some(all) = found else { return };
    let mut controller: Option<String> = None;
    let shown = LazyCell::new(|| shown_owners(all));
    for owner in all.as_array().into_iter().flatten() {
        let text = |field: &str| object::text(owner, &[field]);
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let version = api_version.rsplit('/').next().unwrap_or_default();
        for (field, value, why) in [
            ("apiVersion", version, "version must not be empty"),
            ("kind", kind, "must not be empty"),
            ("name", text("name"), "must not be empty"),
            ("uid", text("uid"), "must not be empty"),
        ] {
            if value.is_empty() {
                let shown = text(field).into();
                errors.push(FieldError::invalid(format!("{PATH}.{field}"), &shown, why));
            }
        }
        if (api_version, kind) == ("v1", "Event") {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(PATH, owner, why));
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            let name = format!("{kind}/{}", text("name"));
            match &controller {
                None => controller = Some(name),
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                    );
                    errors.push(FieldError::invalid_form(PATH, &shown, &why));
                }
            }
        }
    }
}
