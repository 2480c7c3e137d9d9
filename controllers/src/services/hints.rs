//! From where an endpoint is best reached, where a service asks for that.

use k8s_openapi::api::{
    core::v1::ServiceSpec,
    discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone},
};

/// The hints of an endpoint. One that is not ready has none, nor has one whose place is not known.
pub(super) fn of(spec: &ServiceSpec, endpoint: &Endpoint) -> Option<EndpointHints> {
    let is_ready = endpoint.conditions.as_ref().is_some_and(|it| it.ready == Some(true));
    let for_zones = || {
        let zone = endpoint.zone.clone().filter(|_| is_ready)?;
        Some(vec![ForZone { name: zone }])
    };
    let for_nodes = || {
        let node = endpoint.node_name.clone().filter(|_| is_ready)?;
        Some(vec![ForNode { name: node }])
    };
    let hints = match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => {
            EndpointHints { for_zones: for_zones(), for_nodes: None }
        }
        "PreferSameNode" => EndpointHints { for_zones: for_zones(), for_nodes: for_nodes() },
        _ => return None,
    };
    (hints != EndpointHints::default()).then_some(hints)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(asked: Option<&str>, ready: bool, zone: Option<&str>, expected: Value) {
        let endpoint = json!({
            "addresses": ["10.0.0.1"], "nodeName": "n", "zone": zone, "conditions": {"ready": ready},
        });
        let spec = ServiceSpec {
            traffic_distribution: asked.map(str::to_owned),
            ..ServiceSpec::default()
        };
        let found = of(&spec, &serde_json::from_value(endpoint).unwrap());
        assert_eq!(serde_json::to_value(found).unwrap(), expected);
    }

    #[test]
    fn hints() {
        let (near, null) = (json!({"forZones": [{"name": "a"}]}), Value::Null);
        check(None, true, Some("a"), null.clone());
        check(Some("PreferClose"), true, Some("a"), near.clone());
        check(Some("PreferSameZone"), true, Some("a"), near);
        check(Some("PreferSameZone"), false, Some("a"), null.clone());
        check(Some("PreferSameZone"), true, None, null);
        let both = json!({"forZones": [{"name": "a"}], "forNodes": [{"name": "n"}]});
        check(Some("PreferSameNode"), true, Some("a"), both);
        check(Some("PreferSameNode"), true, None, json!({"forNodes": [{"name": "n"}]}));
    }
}
