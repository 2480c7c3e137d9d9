//! Conditions of an object's status.

use insula_api::time;
use serde_json::{Value, json};

/// Sets the condition of its type; its time moves with its status.
pub(super) fn set(it: &mut Value, mut condition: Value) {
    let list = it["status"].get("conditions").and_then(Value::as_array).cloned();
    let mut list = list.unwrap_or_default();
    let known = list.iter_mut().find(|known| known["type"] == condition["type"]);
    let since = known.as_ref().filter(|known| known["status"] == condition["status"]);
    condition["lastTransitionTime"] =
        since.map_or_else(|| time::now().into(), |known| known["lastTransitionTime"].clone());
    match known {
        Some(known) => {
            if let (Some(known), Some(fields)) = (known.as_object_mut(), condition.as_object()) {
                known.extend(fields.clone());
            }
        }
        None => list.push(condition),
    }
    it["status"]["conditions"] = list.into();
}

/// As [`set`], of a pod, whose conditions say when they were probed.
pub(super) fn set_of_pod(pod: &mut Value, mut condition: Value) {
    condition["lastProbeTime"] = json!(null);
    set(pod, condition);
}
