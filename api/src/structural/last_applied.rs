//! The way from kubectl's client-side apply to server-side apply.
//!
//! Client-side apply keeps what it applied last in an annotation, and is an update like others to
//! the managers. When the same manager applies on the server for the first time, it would be in
//! conflict with itself: what the annotation explains is therefore no conflict.

use serde_json::Value;

use super::{
    compare::compare,
    extract::{Duplicates, set_of},
    place::Place,
};

/// The annotation of client-side apply.
pub const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager whose conflicts the annotation may explain.
pub const MANAGER: &str = "kubectl";
/// Most bytes of all annotations of an object; an annotation that does not fit is left out.
const MAX_ANNOTATIONS: usize = 256 * 1024;

fn annotation(object: &Value) -> Option<&str> {
    object
        .get("metadata")?
        .get("annotations")?
        .get(ANNOTATION)?
        .as_str()
        .filter(|it| !it.is_empty())
}

/// Whether the object has the annotation.
pub fn is_kept(object: &Value) -> bool {
    annotation(object).is_some()
}

/// The paths, as messages show them, that `live` still has as client-side apply left them.
pub fn explained<P: Place>(root: P, live: &Value) -> Vec<String> {
    let Some(text) = annotation(live) else { return Vec::new() };
    let Ok(applied) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    if applied.get("apiVersion") != live.get("apiVersion") {
        return Vec::new();
    }
    let (Ok(mut set), Ok(changes)) =
        (set_of(root, &applied, Duplicates::Refused), compare(root, &applied, live))
    else {
        return Vec::new();
    };
    for changed in [&changes.modified, &changes.added, &changes.removed] {
        set.remove(changed);
    }
    set.texts()
}

/// Keeps `config` in the annotation of `object`.
pub fn keep(object: &mut Value, config: &Value) {
    let mut config = config.clone();
    if let Some(annotations) =
        config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(ANNOTATION);
    }
    let metadata = crate::object::metadata_mut(object);
    let annotations =
        metadata.entry("annotations").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Some(annotations) = annotations.as_object_mut() else { return };
    // Upstream's encoder ends with a line's end.
    annotations.insert(ANNOTATION.into(), format!("{config}\n").into());
    let size: usize = annotations
        .iter()
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    if MAX_ANNOTATIONS < size {
        annotations.remove(ANNOTATION);
    }
}
