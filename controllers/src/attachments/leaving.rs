//! When a volume that nobody wants on a node any more may be taken from it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use crate::{
    objects::is_node_ready,
    taints::{OUT_OF_SERVICE, taints},
};

/// For so long an agent that is not ready may take to unmount a volume.
const PATIENCE: Duration = Duration::from_secs(6 * 60);

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It is mounted, for all that is known. When to look again, if nothing changes.
    Wait(Option<Duration>),
    /// The node has to be told first, so that its agent does not mount it again.
    Tell,
    Detach,
}

/// Whether a node says that a volume is attached to it.
pub(super) fn is_told(node: &Node, id: &str) -> bool {
    let attached = node.status.as_ref().and_then(|it| it.volumes_attached.as_ref());
    attached.into_iter().flatten().any(|it| it.name == id)
}

fn is_mounted(node: &Node, id: &str) -> bool {
    let used = node.status.as_ref().and_then(|it| it.volumes_in_use.as_ref());
    used.into_iter().flatten().any(|it| it == id)
}

/// What to do about a volume that nobody has wanted on a node for so long. Of a node that is gone
/// nobody knows what it has mounted.
pub(super) fn leaving(node: Option<&Node>, id: &str, unwanted_for: Duration) -> Leaving {
    let is_ready = node.is_some_and(is_node_ready);
    let is_out = node.is_some_and(|it| taints(it).iter().any(|taint| taint.key == OUT_OF_SERVICE));
    let is_forced = is_out || !is_ready && PATIENCE <= unwanted_for;
    if node.is_none_or(|it| is_mounted(it, id)) && !is_forced {
        return Leaving::Wait((!is_ready).then(|| PATIENCE.saturating_sub(unwanted_for)));
    }
    match node {
        Some(node) if is_told(node, id) => Leaving::Tell,
        _ => Leaving::Detach,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "kubernetes.io/csi/d^h";

    fn node(ready: &str, taints: Value, used: &[&str], attached: &[&str]) -> Node {
        let attached: Vec<_> =
            attached.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
        serde_json::from_value(json!({
            "spec": {"taints": taints},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "volumesInUse": used, "volumesAttached": attached,
            },
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(node: Option<Node>, minutes: u64, expected: Leaving) {
        let unwanted_for = Duration::from_secs(60 * minutes);
        assert_eq!(leaving(node.as_ref(), ID, unwanted_for), expected);
    }

    #[test]
    fn what_is_mounted_stays_unless_its_node_is_lost() {
        let (none, out) = (json!([]), json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]));
        let mounted = |ready: &str, taints: &Value| Some(node(ready, taints.clone(), &[ID], &[ID]));
        check(mounted("True", &none), 60, Leaving::Wait(None));
        check(mounted("Unknown", &none), 1, Leaving::Wait(Some(Duration::from_secs(300))));
        check(mounted("Unknown", &none), 6, Leaving::Tell);
        check(mounted("Unknown", &out), 0, Leaving::Tell);
        check(Some(node("Unknown", out, &[ID], &[])), 0, Leaving::Detach);
        check(None, 5, Leaving::Wait(Some(Duration::from_secs(60))));
        check(None, 6, Leaving::Detach);
    }

    #[test]
    fn nodes_are_told_before_a_volume_goes() {
        check(Some(node("True", json!([]), &["other"], &[ID])), 0, Leaving::Tell);
        check(Some(node("True", json!([]), &[], &["other"])), 0, Leaving::Detach);
    }
}
