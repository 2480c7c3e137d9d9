//! What keeps pods away from a node, by what it says of itself.

use k8s_openapi::api::core::v1::{Node, Taint};

/// Taint of a node whose agent says it is not ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node whose agent says nothing.
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// A node's taints that keep pods away, with those that its state amounts to.
pub(super) fn taints_of(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let mut taints: Vec<Taint> = taints
        .into_iter()
        .map(|taint| Taint {
            time_added: None,
            value: taint.value.filter(|it| !it.is_empty()),
            ..taint
        })
        .collect();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|it| it.type_ == "Ready");
    let state = match ready.map(|it| it.status.as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        // A node that says nothing of itself yet is not ready either.
        Some(_) | None => Some(NOT_READY),
    };
    if let Some(key) = state
        && !taints.iter().any(|taint| taint.key == key && taint.effect == "NoSchedule")
    {
        taints.push(Taint {
            key: key.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    taints.sort_by(|a, b| (&a.key, &a.effect, &a.value).cmp(&(&b.key, &b.effect, &b.value)));
    taints
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_is_not_ready_is_tainted() {
        let keys = |status: &str| -> Vec<String> {
            let it: Node = serde_json::from_value(json!({
                "spec": {"taints": [{"key": "a", "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": status}]},
            }))
            .unwrap();
            taints_of(&it).into_iter().map(|taint| taint.key).collect()
        };
        assert_eq!(keys("True"), ["a"]);
        assert_eq!(keys("False"), ["a", NOT_READY]);
        assert_eq!(keys("Unknown"), ["a", UNREACHABLE]);
        assert_eq!(taints_of(&Node::default()).len(), 1);
    }
}
