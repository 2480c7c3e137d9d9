//! How well a pod is served when there is not enough for all.

use serde_json::Value;

use crate::{pods::parts, quantity::Quantity};

/// `Guaranteed`, `Burstable` or `BestEffort`, by what of cpu and memory the pod may have.
pub fn qos_class(pod: &Value) -> &'static str {
    let amount = |it: &Value, kind: &str, name: &str| {
        let found = it.get("resources")?.get(kind)?.get(name)?.as_str()?;
        Quantity::parse(found).ok().filter(|it| !it.is_zero())
    };
    let of_pod = &pod["spec"];
    let says = |it: &Value| {
        let part =
            |kind| it.get("resources").and_then(|it| it.get(kind)).and_then(Value::as_object);
        part("limits").is_some_and(|it| !it.is_empty())
            || part("requests").is_some_and(|it| !it.is_empty())
    };
    // What a pod says of itself as a whole counts in place of what its parts say.
    let subjects: Vec<&Value> = match says(of_pod) {
        true => vec![of_pod],
        false => parts(of_pod).map(|(_, it)| it).collect(),
    };
    let (mut any, mut guaranteed) = (false, true);
    for it in subjects {
        for name in ["cpu", "memory"] {
            let (limit, request) = (amount(it, "limits", name), amount(it, "requests", name));
            any |= limit.is_some() || request.is_some();
            // A request defaults to its limit.
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})
    }

    #[test]
    fn qos_classes() {
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let all = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}});
        assert_eq!(qos_class(&pod(all.clone())), "Guaranteed");
        let machine = json!({"spec": {"virtualMachine": {"resources": all.clone()}}});
        assert_eq!(qos_class(&machine), "Guaranteed");
        let mut whole = pod(json!({"requests": {"cpu": "1"}}));
        whole["spec"]["resources"] = all;
        assert_eq!(qos_class(&whole), "Guaranteed");
    }
}
