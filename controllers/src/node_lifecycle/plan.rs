//! What is written of a node: that nothing is heard of it, and the taints that follow from its
//! conditions.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    objects::to_time,
    taints::{
        DISK_PRESSURE, MEMORY_PRESSURE, NETWORK_UNAVAILABLE, NO_EXECUTE, NO_SCHEDULE, NOT_READY,
        PID_PRESSURE, UNREACHABLE, UNSCHEDULABLE, taints,
    },
};

/// Taints that follow from conditions: the condition, the status of it, and the key.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", MEMORY_PRESSURE),
    ("DiskPressure", "True", DISK_PRESSURE),
    ("PIDPressure", "True", PID_PRESSURE),
    ("NetworkUnavailable", "True", NETWORK_UNAVAILABLE),
];

pub(super) fn conditions(node: &Node) -> &[NodeCondition] {
    node.status.as_ref().and_then(|it| it.conditions.as_deref()).unwrap_or_default()
}

/// The status of a node's condition.
pub(super) fn status<'n>(node: &'n Node, condition: &str) -> Option<&'n str> {
    conditions(node).iter().find(|it| it.type_ == condition).map(|it| it.status.as_str())
}

/// Whether a node has said, or it was said of it, that it is not ready.
pub(super) fn is_down(node: &Node) -> bool {
    status(node, "Ready").is_some_and(|it| it != "True")
}

/// The conditions that change because nothing is heard of a node.
pub(super) fn lost(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let unknown = |type_: &str| {
        let known = conditions(node).iter().find(|it| it.type_ == type_);
        let (reason, message) = match known {
            Some(it) if it.status == "Unknown" => return None,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let created = || node.metadata.creation_timestamp.clone();
        Some(NodeCondition {
            type_: type_.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: known.map_or_else(created, |it| it.last_heartbeat_time.clone()),
            last_transition_time: Some(to_time(now)),
        })
    };
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter_map(unknown)
        .collect()
}

/// The taint for which pods have to go, if a node is not ready.
pub(super) fn wants_no_execute(node: &Node) -> Option<&'static str> {
    match status(node, "Ready") {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    }
}

/// Whether a node has a `NoExecute` taint of ours.
pub(super) fn has_no_execute(node: &Node, key: &str) -> bool {
    taints(node).iter().any(|it| it.effect == NO_EXECUTE && it.key == key)
}

/// The taints that a node is to have, if they are others than it has. `no_execute` is the key of
/// the one of ours for which pods have to go, or that none is to be there.
pub(super) fn retainted(
    node: &Node,
    no_execute: Option<&str>,
    now: Timestamp,
) -> Option<Vec<Taint>> {
    let by_condition = BY_CONDITION.iter().filter_map(|(condition, value, key)| {
        (status(node, condition) == Some(value)).then_some(*key)
    });
    let is_off = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    // One that has said nothing yet keeps the taint that it was made with.
    let is_new = status(node, "Ready").is_none();
    let mut wanted: Vec<(&str, &str)> = by_condition
        .chain(is_new.then_some(NOT_READY))
        .chain(is_off.then_some(UNSCHEDULABLE))
        .map(|it| (it, NO_SCHEDULE))
        .collect();
    wanted.extend(no_execute.map(|it| (it, NO_EXECUTE)));
    let is_ours = |it: &Taint| match it.effect.as_str() {
        NO_SCHEDULE => {
            it.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| it.key == *key)
        }
        NO_EXECUTE => it.key == NOT_READY || it.key == UNREACHABLE,
        _ => false,
    };
    let old = taints(node);
    let mut new: Vec<Taint> = old
        .iter()
        .filter(|it| !is_ours(it) || wanted.contains(&(it.key.as_str(), it.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !new.iter().any(|it| it.key == key && it.effect == effect) {
            new.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: Value, conditions: Value) -> Node {
        let it = json!({
            "metadata": {"name": "n", "creationTimestamp": "1970-01-01T00:00:01Z"},
            "spec": spec,
            "status": {"conditions": conditions},
        });
        serde_json::from_value(it).unwrap()
    }

    #[test]
    fn silence_makes_conditions_unknown() {
        let now = Timestamp::from_second(9).unwrap();
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": "1970-01-01T00:00:05Z"});
        let known = json!({"type": "DiskPressure", "status": "Unknown"});
        let found = lost(&node(json!({}), json!([ready, known])), now);
        let told = |it: &NodeCondition| {
            (
                it.type_.clone(),
                it.reason.clone().unwrap(),
                it.last_heartbeat_time.clone().unwrap().0.as_second(),
            )
        };
        let expected = [
            ("Ready", "NodeStatusUnknown", 5),
            ("MemoryPressure", "NodeStatusNeverUpdated", 1),
            ("PIDPressure", "NodeStatusNeverUpdated", 1),
        ];
        let expected =
            expected.map(|(type_, reason, at)| (type_.to_owned(), reason.to_owned(), at));
        assert_eq!(found.iter().map(told).collect::<Vec<_>>(), expected);
        assert!(found.iter().all(|it| it.status == "Unknown"));
        // Once told it is not told again.
        let silent = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
            .map(|it| json!({"type": it, "status": "Unknown"}));
        assert!(lost(&node(json!({}), json!(silent)), now).is_empty());
    }

    /// The keys and effects that a node with these conditions ends up with.
    #[track_caller]
    fn check(
        spec: Value,
        conditions: Value,
        no_execute: Option<&str>,
        expected: Option<&[(&str, &str)]>,
    ) {
        let now = Timestamp::UNIX_EPOCH;
        let found = retainted(&node(spec, conditions), no_execute, now);
        let found = found
            .map(|it| it.iter().map(|it| (it.key.clone(), it.effect.clone())).collect::<Vec<_>>());
        let expected = expected.map(|it| {
            it.iter().map(|(key, effect)| ((*key).to_owned(), (*effect).to_owned())).collect()
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn taints_follow_conditions() {
        let is = |type_: &str, status: &str| json!([{"type": type_, "status": status}]);
        let tainted = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
        check(json!({}), is("Ready", "True"), None, None);
        check(tainted(NOT_READY, NO_SCHEDULE), json!([]), None, None);
        check(json!({}), is("Ready", "False"), None, Some(&[(NOT_READY, NO_SCHEDULE)]));
        check(
            json!({}),
            json!([
                {"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"},
            ]),
            None,
            Some(&[(DISK_PRESSURE, NO_SCHEDULE)]),
        );
        check(
            json!({}),
            is("Ready", "Unknown"),
            Some(UNREACHABLE),
            Some(&[(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
        );
        check(tainted(NOT_READY, NO_SCHEDULE), is("Ready", "False"), None, None);
        check(tainted(NOT_READY, NO_SCHEDULE), is("Ready", "True"), None, Some(&[]));
        check(tainted(UNREACHABLE, NO_EXECUTE), is("Ready", "True"), None, Some(&[]));
        check(tainted("gpu", NO_EXECUTE), is("Ready", "True"), None, None);
        check(
            json!({"unschedulable": true}),
            is("Ready", "True"),
            None,
            Some(&[(UNSCHEDULABLE, NO_SCHEDULE)]),
        );
        // By hand, and for another effect, is nobody's business here.
        check(tainted(NOT_READY, "PreferNoSchedule"), is("Ready", "True"), None, None);
    }
}
