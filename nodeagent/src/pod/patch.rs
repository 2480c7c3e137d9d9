//! The difference between two statuses as a strategic merge patch.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Lists whose elements the server would merge by a key, so that leaving one out keeps it.
const MERGED_LISTS: [&str; 2] = ["podIPs", "hostIPs"];

/// What turns `old` into `new`, for the pod with this uid only. `None` if nothing differs.
///
/// Conditions that `new` does not have are left to whoever set them.
pub(crate) fn status_patch(
    uid: &str,
    old: &PodStatus,
    new: &PodStatus,
) -> Result<Option<Value>, serde_json::Error> {
    let (old, new) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return Ok(None) };
    let mut status = Map::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        status.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        if old.get(&name) == Some(&value) {
            continue;
        }
        let value = match value {
            Value::Array(all) if name == "conditions" => {
                let before = old.get(&name).and_then(Value::as_array);
                let changed =
                    all.into_iter().filter(|it| !before.is_some_and(|all| all.contains(it)));
                let changed: Vec<Value> = changed.map(|it| with_removals(it, before)).collect();
                if changed.is_empty() {
                    continue;
                }
                changed.into()
            }
            Value::Array(mut all) if MERGED_LISTS.contains(&name.as_str()) => {
                all.insert(0, json!({"$patch": "replace"}));
                all.into()
            }
            other => other,
        };
        status.insert(name, value);
    }
    Ok((!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status})))
}

/// A condition with `null` for each field it had and no longer has: merging would keep it.
fn with_removals(mut condition: Value, before: Option<&Vec<Value>>) -> Value {
    let before = before
        .and_then(|all| all.iter().find(|it| it["type"] == condition["type"]))
        .and_then(Value::as_object);
    if let (Some(before), Some(condition)) = (before, condition.as_object_mut()) {
        for name in before.keys() {
            condition.entry(name).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(old: Value, new: Value, expected: Value) {
        let of = |value| serde_json::from_value::<PodStatus>(value).unwrap();
        let patch = status_patch("u", &of(old), &of(new)).unwrap();
        let expected =
            (!expected.is_null()).then(|| json!({"metadata": {"uid": "u"}, "status": expected}));
        assert_eq!(patch, expected);
    }

    #[test]
    fn only_what_differs_is_sent() {
        let status = json!({"phase": "Running", "podIP": "1.2.3.4"});
        check(status.clone(), status, Value::Null);
        check(
            json!({"phase": "Pending", "reason": "x"}),
            json!({"phase": "Running"}),
            json!({"phase": "Running", "reason": null}),
        );
    }

    #[test]
    fn lists_that_merge_are_replaced() {
        check(
            json!({"podIPs": [{"ip": "1.1.1.1"}]}),
            json!({"podIPs": [{"ip": "2.2.2.2"}]}),
            json!({"podIPs": [{"$patch": "replace"}, {"ip": "2.2.2.2"}]}),
        );
    }

    #[test]
    fn conditions_of_others_are_left_alone() {
        check(
            json!({"conditions": [
                {"type": "Ready", "status": "False", "reason": "r"},
                {"type": "Mine", "status": "True"}, {"type": "Same", "status": "True"}]}),
            json!({"conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Same", "status": "True"}]}),
            json!({"conditions": [{"type": "Ready", "status": "True", "reason": null}]}),
        );
    }
}
