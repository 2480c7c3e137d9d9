//! How much a pod may count on what it asks for: upstream's classes of quality of service.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::requests::{CPU, MEMORY, amount};

/// The class of a pod. A lower one is ended sooner when a node is short of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Qos {
    /// It asks for nothing.
    BestEffort,
    Burstable,
    /// It never takes more than it asks for.
    Guaranteed,
}

/// What decides about the class: other resources do not.
const COUNTED: [&str; 2] = [CPU, MEMORY];

impl Qos {
    /// By the resources of the pod as a whole if it says them, else by those of all containers.
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let is_said = |it: &&ResourceRequirements| it.requests.is_some() || it.limits.is_some();
        let all: Vec<Option<&ResourceRequirements>> = match spec.resources.as_ref().filter(is_said)
        {
            Some(whole) => vec![Some(whole)],
            None => {
                let containers =
                    spec.containers.iter().chain(spec.init_containers.iter().flatten());
                containers.map(|it| it.resources.as_ref()).collect()
            }
        };
        let of = |map: Option<&BTreeMap<String, Quantity>>, name: &str| {
            map.and_then(|it| it.get(name)).map_or(0, |it| amount(name, it))
        };
        let mut asks = false;
        let mut is_guaranteed = true;
        for it in all {
            for name in COUNTED {
                let limit = of(it.and_then(|it| it.limits.as_ref()), name);
                let request = of(it.and_then(|it| it.requests.as_ref()), name);
                asks |= 0 < limit || 0 < request;
                // The API server has set requests that are not said to the limits.
                is_guaranteed &= 0 < limit && limit == request;
            }
        }
        match (asks, is_guaranteed) {
            (false, _) => Self::BestEffort,
            (true, false) => Self::Burstable,
            (true, true) => Self::Guaranteed,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(spec: Value, expected: Qos) {
        assert_eq!(Qos::of(&serde_json::from_value(spec).unwrap()), expected);
    }

    #[test]
    fn classes_are_upstreams() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let whole = json!({"requests": both, "limits": both});
        let container = |resources: Value| json!({"name": "c", "resources": resources});
        check(json!({"containers": [container(json!({}))]}), Qos::BestEffort);
        let other = json!({"requests": {"example.com/gpu": "1"}});
        check(json!({"containers": [container(other)]}), Qos::BestEffort);
        check(json!({"containers": [container(json!({"requests": both}))]}), Qos::Burstable);
        check(json!({"containers": [container(whole.clone())]}), Qos::Guaranteed);
        let mixed = [container(whole.clone()), container(json!({}))];
        check(json!({"containers": mixed}), Qos::Burstable);
        let init = json!({
            "containers": [container(whole.clone())], "initContainers": [container(json!({}))],
        });
        check(init, Qos::Burstable);
        check(json!({"containers": [container(json!({}))], "resources": whole}), Qos::Guaranteed);
    }
}
