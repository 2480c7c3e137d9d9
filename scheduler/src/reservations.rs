//! Room that is kept for pods of a group on nodes of several replicas, until all of it is certain.
//!
//! What is agreed on stands in the pods: a condition beside the nomination. The replica of the
//! tenant *asks* for room, that of the node *reserves* it, and the first one *confirms* it when
//! there is enough; only then is the pod bound. Or the first one gives back all that it asked for.
//! Each of them writes in the epoch of its block, so whoever takes over finds what holds.
//!
//! # Invariants
//!
//! * Room that is reserved is given to nobody else before the pod says that it is given back, or
//!   the pod is gone.
//! * Only the replica of the tenant confirms or gives back, and it confirms nothing before enough
//!   pods of the group have nodes or reserved room.
//! * Once enough is reserved, none of it is given back: one that was the tenant's replica before,
//!   and has yet to hear that it is so no more, may be binding to it. So what was only asked for is
//!   given back first, unless it is reserved by then, and the rest when none of that is left.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// The condition of a pod that says what holds of the room that it is nominated for.
pub(crate) const CONDITION: &str = "insula.io/RoomReserved";

/// What a pod says of the room that it is nominated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// It is wanted, and must not be bound yet.
    Asked,
    /// It is kept.
    Reserved,
    /// The pod may be bound.
    Confirmed,
}

impl Mark {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Asked => ("False", "Asked"),
            Self::Reserved => ("True", "Reserved"),
            Self::Confirmed => ("True", "Confirmed"),
        }
    }

    /// What a pod says of its room on `node`; nothing if it is not nominated for that.
    pub(crate) fn of(pod: &Pod, node: &str) -> Option<Self> {
        let status = pod.status.as_ref()?;
        if status.nominated_node_name.as_deref() != Some(node) {
            return None;
        }
        let conditions = status.conditions.iter().flatten();
        let condition = conditions.into_iter().find(|it| it.type_ == CONDITION)?;
        // What was said of another node is of no account.
        if condition.message.as_deref() != Some(node) {
            return None;
        }
        [Self::Asked, Self::Reserved, Self::Confirmed]
            .into_iter()
            .find(|it| Some(it.words().1) == condition.reason.as_deref())
    }

    /// The condition that says so.
    pub(crate) fn condition(self, node: &str, now: &str) -> Value {
        let (status, reason) = self.words();
        json!({
            "type": CONDITION, "status": status, "reason": reason, "message": node,
            "lastTransitionTime": now,
        })
    }
}

/// The condition of a pod whose room was given back.
pub(crate) fn given_back(now: &str) -> Value {
    json!({
        "type": CONDITION, "status": "False", "reason": "GivenBack", "message": "",
        "lastTransitionTime": now,
    })
}

/// How far a group is whose pods were asked room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Pods that room was asked for, and not reserved yet.
    pub(crate) n_asked: usize,
    /// Pods whose room is reserved, or confirmed.
    pub(crate) n_reserved: usize,
    /// Pods of the group that have nodes beside those.
    pub(crate) n_bound: usize,
    pub(crate) min_count: usize,
    pub(crate) waited: Duration,
    pub(crate) timeout: Duration,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Wait,
    /// Confirm what is reserved; give back what was only asked for.
    Confirm,
    /// Give back what was only asked for; when there is no such, what is reserved.
    GiveBack,
}

impl Progress {
    pub(crate) fn next(&self) -> Next {
        let is_enough = self.min_count <= self.n_bound + self.n_reserved;
        let is_late = self.timeout <= self.waited;
        let can_be_enough = self.min_count <= self.n_bound + self.n_reserved + self.n_asked;
        match (is_enough, can_be_enough) {
            // Whoever is a little later is taken along.
            (true, _) if self.n_asked == 0 || is_late => Next::Confirm,
            (_, true) if !is_late => Next::Wait,
            _ => Next::GiveBack,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check((n_asked, n_reserved, n_bound): (usize, usize, usize), waited: u64, expected: Next) {
        let (waited, timeout) = (Duration::from_secs(waited), Duration::from_secs(10));
        let it = Progress { n_asked, n_reserved, n_bound, min_count: 4, waited, timeout };
        assert_eq!(it.next(), expected, "{it:?}");
    }

    #[test]
    fn nothing_is_confirmed_before_there_is_enough() {
        check((4, 0, 0), 0, Next::Wait);
        check((1, 3, 0), 9, Next::Wait);
        check((1, 3, 0), 10, Next::GiveBack);
        check((0, 4, 0), 0, Next::Confirm);
        check((0, 3, 1), 0, Next::Confirm);
        check((1, 4, 0), 9, Next::Wait);
        check((1, 4, 0), 10, Next::Confirm);
        // One of them is gone.
        check((0, 3, 0), 0, Next::GiveBack);
        check((2, 1, 0), 0, Next::GiveBack);
    }

    #[test]
    fn a_pod_says_what_holds_on_its_node() {
        for mark in [Mark::Asked, Mark::Reserved, Mark::Confirmed] {
            let pod: Pod = serde_json::from_value(json!({"status": {
                "nominatedNodeName": "n1",
                "conditions": [mark.condition("n1", "2026-01-01T00:00:00Z")],
            }}))
            .unwrap();
            assert_eq!(Mark::of(&pod, "n1"), Some(mark));
            assert_eq!(Mark::of(&pod, "n2"), None);
        }
        let elsewhere: Pod = serde_json::from_value(json!({"status": {
            "nominatedNodeName": "n2",
            "conditions": [Mark::Confirmed.condition("n1", "2026-01-01T00:00:00Z")],
        }}))
        .unwrap();
        assert_eq!(Mark::of(&elsewhere, "n2"), None);
        let back: Pod = serde_json::from_value(json!({"status": {
            "nominatedNodeName": "n1", "conditions": [given_back("2026-01-01T00:00:00Z")],
        }}))
        .unwrap();
        assert_eq!(Mark::of(&back, "n1"), None);
    }
}
