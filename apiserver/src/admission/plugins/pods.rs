//! What is done to every pod: tolerations of lost nodes. And how plugins walk a pod.

use insula_api::object;
use serde_json::{Map, Value, json};

use crate::{admission::Admission, error::Result};

/// The items of a list; none if it is absent.
pub(super) fn list<'a>(it: &'a Value, field: &str) -> std::slice::Iter<'a, Value> {
    it.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}

/// All containers of a pod's specification, each with the list it is in.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|kind| list(spec, kind).map(move |it| (kind, it)))
}

/// Visits the containers of some lists of a pod.
pub(super) fn for_each_container(
    pod: &mut Value,
    lists: &[&str],
    mut visit: impl FnMut(&mut Map<String, Value>),
) {
    for name in lists {
        match pod.get_mut("spec").and_then(|it| it.get_mut(*name)) {
            Some(Value::Array(list)) => {
                list.iter_mut().filter_map(Value::as_object_mut).for_each(&mut visit);
            }
            // A virtual machine is in the place of all containers.
            Some(Value::Object(one)) => visit(one),
            _ => (),
        }
    }
}

/// Pods stay on a node that is lost for five minutes.
pub(in crate::admission) fn tolerate_lost_nodes(_: &Admission<'_>, pod: &mut Value) -> Result<()> {
    let missing: Vec<Value> = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .into_iter()
        .filter(|key| {
            !list(&pod["spec"], "tolerations").any(|it| {
                let of_key = it["key"] == *key || object::text(it, &["key"]).is_empty();
                let effect = object::text(it, &["effect"]);
                of_key && matches!(effect, "" | "NoExecute")
            })
        })
        .map(|key| {
            json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                       "tolerationSeconds": 300})
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if let Some(list) = spec.entry("tolerations").or_insert_with(|| json!([])).as_array_mut() {
        list.extend(missing);
    }
    Ok(())
}
