//! Taints of nodes, and what pods tolerate.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(crate) const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
pub(crate) const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
pub(crate) const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
pub(crate) const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// What runs on such a node may be taken for gone, says somebody who knows.
pub(crate) const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The effects of taints: nothing new is placed, and what runs has to go.
pub(crate) const NO_SCHEDULE: &str = "NoSchedule";
pub(crate) const NO_EXECUTE: &str = "NoExecute";

pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The taints for which pods have to go.
pub(crate) fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    taints(node).iter().filter(|it| it.effect == NO_EXECUTE)
}

/// Whether a toleration is of a taint.
pub(crate) fn tolerates(it: &Toleration, taint: &Taint) -> bool {
    let effect = it.effect.as_deref().unwrap_or_default();
    let key = it.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match it.operator.as_deref() {
        Some("Exists") => true,
        _ => {
            !key.is_empty()
                && it.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}

/// How long a pod may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    Forever,
    Until(Timestamp),
    NotAtAll,
}

/// How long a pod may stay on a node with these `NoExecute` taints. A taint that does not say
/// since when it is there counts from `since`.
pub(crate) fn stay<'t>(
    taints: impl Iterator<Item = &'t Taint>,
    tolerations: &[Toleration],
    since: Timestamp,
) -> Stay {
    let mut end: Option<Timestamp> = None;
    for taint in taints {
        let Some(toleration) = tolerations.iter().find(|it| tolerates(it, taint)) else {
            return Stay::NotAtAll;
        };
        let Some(seconds) = toleration.toleration_seconds else { continue };
        if seconds <= 0 {
            return Stay::NotAtAll;
        }
        let begin = taint.time_added.as_ref().map_or(since, |it| it.0);
        // So far away that no clock gets there.
        let Ok(until) = begin.checked_add(SignedDuration::from_secs(seconds)) else { continue };
        end = Some(end.map_or(until, |end| end.min(until)));
    }
    end.map_or(Stay::Forever, Stay::Until)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// At second 100 a pod was first seen; `expected` is a second, or forever.
    #[track_caller]
    fn check(taints: Value, tolerations: Value, expected: Option<Option<i64>>) {
        let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
        let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
        let since = Timestamp::from_second(100).unwrap();
        let stay = match stay(taints.iter(), &tolerations, since) {
            Stay::Forever => None,
            Stay::Until(end) => Some(Some(end.as_second())),
            Stay::NotAtAll => Some(None),
        };
        assert_eq!(stay, expected);
    }

    #[test]
    fn stays() {
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute"});
        let old = json!({"key": "a", "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:10Z"});
        let for_ = |key: &str, seconds: i64| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        let always = json!({"key": "a", "operator": "Exists", "effect": "NoExecute"});
        check(json!([]), json!([]), None);
        check(json!([taint("a")]), json!([]), Some(None));
        check(json!([taint("a")]), json!([always]), None);
        check(json!([taint("a")]), json!([for_("a", 30)]), Some(Some(130)));
        check(json!([old]), json!([for_("a", 30)]), Some(Some(40)));
        check(json!([taint("a")]), json!([for_("a", 0)]), Some(None));
        check(json!([taint("a")]), json!([for_("a", i64::MAX)]), None);
        // The first that fits counts, and the shortest of all taints'.
        check(json!([taint("a")]), json!([for_("a", 30), always]), Some(Some(130)));
        check(json!([taint("a"), taint("b")]), json!([for_("a", 30)]), Some(None));
        let both = json!([for_("a", 30), for_("b", 20)]);
        check(json!([taint("a"), taint("b")]), both, Some(Some(120)));
    }
}
