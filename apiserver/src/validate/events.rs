//! Events: more is asked of those that are written in their own group.
//!
//! They are checked as they are sent, not as they are kept: what a client calls a field is what
//! it is told of. Unlike other objects an event in the newer form is told of as one of the core
//! group, as upstream does it.

use insula_api::{object, resources::Resource};
use serde_json::Value;

use super::{Errors, formats::Format, updates::IMMUTABLE};
use crate::error::FieldError;

/// Whether a resource is one of the two that serve events.
pub(super) fn is_events(resource: &Resource) -> bool {
    resource.name == "events" && matches!(&*resource.group, "" | "events.k8s.io")
}

/// What the two forms call the same.
struct Names {
    /// The object that an event is about.
    about: &'static str,
    reporter: &'static str,
    text: &'static str,
}

const OLD: Names =
    Names { about: "involvedObject", reporter: "reportingComponent", text: "message" };
const NEW: Names = Names { about: "regarding", reporter: "reportingController", text: "note" };

fn is_set(it: &Value, field: &str) -> bool {
    it.get(field).is_some_and(|it| !it.is_null())
}

fn required(field: &str) -> FieldError {
    FieldError::required(field, "")
}

/// What is checked of every event.
pub(super) fn check(resource: &Resource, it: &Value, errors: &mut Errors) {
    let names = if resource.group.is_empty() { OLD } else { NEW };
    let text = |field: &str| object::text(it, &[field]);
    let (own, other) = (object::namespace(it), object::text(it, &[names.about, "namespace"]));
    let is_elsewhere = match (is_set(it, "eventTime"), other) {
        (false, "") => !matches!(own, "" | "default"),
        (false, other) => own != other,
        (true, other) => other.is_empty() && !matches!(own, "default" | "kube-system"),
    };
    if is_elsewhere {
        let why = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", &other.into(), why));
    }
    if !is_set(it, "eventTime") {
        return;
    }
    let reporter = text(names.reporter);
    if reporter.is_empty() {
        errors.push(required(names.reporter));
    }
    for why in Format::Qualified.check(reporter) {
        errors.push(FieldError::invalid(names.reporter, &reporter.into(), &why));
    }
    for (field, shown, limit) in [
        ("reportingInstance", "reportingInstance", 128),
        ("action", "action", 128),
        ("reason", "reason", 128),
        (names.text, "message", 1024),
    ] {
        let found = text(field);
        if found.is_empty() && field != names.text {
            errors.push(required(shown));
        }
        if limit < found.len() {
            let why = format!("can have at most {limit} characters");
            errors.push(FieldError::invalid(shown, &"".into(), &why));
        }
    }
}

/// What is checked of new events in the newer form.
pub(super) fn create(resource: &Resource, it: &Value, errors: &mut Errors) {
    if resource.group.is_empty() {
        return;
    }
    series(it, errors);
    if !is_set(it, "eventTime") {
        errors.push(required("eventTime"));
    }
    let kind = object::text(it, &["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        let why = format!("has invalid value: {kind}");
        errors.push(FieldError::invalid("type", &"".into(), &why));
    }
    let source = it.get("deprecatedSource").and_then(Value::as_object);
    for (field, is_set) in [
        ("firstTimestamp", is_set(it, "deprecatedFirstTimestamp")),
        ("lastTimestamp", is_set(it, "deprecatedLastTimestamp")),
        ("count", it.get("deprecatedCount").is_some_and(|it| *it != 0)),
        ("source", source.is_some_and(|it| !it.is_empty())),
    ] {
        if is_set {
            errors.push(FieldError::invalid(field, &"".into(), "needs to be unset"));
        }
    }
}

/// What may not become of events in the newer form.
pub(super) fn update(old: &Value, new: &Value, errors: &mut Errors) {
    if old.get("series") != new.get("series") {
        series(new, errors);
    }
    for (field, shown) in [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingController", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if told(old, field) != told(new, field) {
            let value = new.get(field).cloned().unwrap_or_default();
            errors.push(FieldError::invalid(shown, &value, IMMUTABLE));
        }
    }
}

/// What a field says. The older form has empty ones where the newer has none.
fn told<'a>(it: &'a Value, field: &str) -> Option<&'a Value> {
    it.get(field).filter(|it| !it.is_null() && **it != "" && **it != 0)
}

fn series(it: &Value, errors: &mut Errors) {
    let Some(series) = it.get("series").filter(|it| !it.is_null()) else { return };
    if series.get("count").and_then(Value::as_i64).unwrap_or(0) < 2 {
        errors.push(FieldError::invalid("series.count", &"".into(), "should be at least 2"));
    }
    if !is_set(series, "lastObservedTime") {
        errors.push(required("series.lastObservedTime"));
    }
}
