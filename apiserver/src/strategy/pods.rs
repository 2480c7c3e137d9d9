//! Pods: what a pod begins with.

use insula_api::{object, quota::qos::qos_class, time};
use serde_json::{Value, json};

/// Sets the status of a new pod, and completes selectors that are about pods like itself.
pub(super) fn begin(pod: &mut Value) {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    let gates = pod["spec"].get("schedulingGates").and_then(Value::as_array);
    if gates.is_some_and(|it| !it.is_empty()) {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null, "lastTransitionTime": time::now(),
        }]);
    }
    pod["status"] = status;
    // No time to end in is no time at all.
    if let Some(grace) = pod["spec"].get_mut("terminationGracePeriodSeconds")
        && grace.as_i64().is_some_and(|it| it < 0)
    {
        *grace = 1.into();
    }
    let labels = object::metadata(pod).get("labels").cloned().unwrap_or_else(|| json!({}));
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = pod["spec"].get_mut("affinity").and_then(|it| it.get_mut(kind)) else {
            continue;
        };
        for (list, term) in [
            ("preferredDuringSchedulingIgnoredDuringExecution", Some("podAffinityTerm")),
            ("requiredDuringSchedulingIgnoredDuringExecution", None),
        ] {
            let terms = affinity.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
            for it in terms {
                let it = match term {
                    Some(field) => it.get_mut(field),
                    None => Some(it),
                };
                if let Some(it) = it {
                    select_alike(it, "matchLabelKeys", "In", &labels);
                    select_alike(it, "mismatchLabelKeys", "NotIn", &labels);
                }
            }
        }
    }
    let spread = pod["spec"].get_mut("topologySpreadConstraints").and_then(Value::as_array_mut);
    for it in spread.into_iter().flatten() {
        select_alike(it, "matchLabelKeys", "In", &labels);
    }
}

/// Adds to a term's selector that the labels under `keys` are, or are not, those of the pod.
fn select_alike(term: &mut Value, keys: &str, operator: &str, labels: &Value) {
    if term.get("labelSelector").is_none() {
        return;
    }
    let keys = term.get(keys).and_then(Value::as_array).cloned().unwrap_or_default();
    for key in keys {
        let Some(value) = key.as_str().and_then(|key| labels.get(key)) else { continue };
        let expressions = &mut term["labelSelector"]["matchExpressions"];
        let added = json!({"key": key, "operator": operator, "values": [value]});
        match expressions.as_array_mut() {
            Some(list) => list.push(added),
            None => *expressions = json!([added]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_about_pods_like_this_one() {
        let mut pod = json!({"metadata": {"labels": {"v": "1"}}, "spec": {"schedulingGates": [{"name": "g"}],
            "topologySpreadConstraints": [{"matchLabelKeys": ["v", "none"], "labelSelector": {}}]}});
        begin(&mut pod);
        assert_eq!(
            pod["spec"]["topologySpreadConstraints"][0]["labelSelector"],
            json!({"matchExpressions": [{"key": "v", "operator": "In", "values": ["1"]}]})
        );
        assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
    }
}
