//! What a stored value uses of quotas, told from its bytes and from nothing else.
//!
//! Partitions sum this over what tenants have, and members of a raft group must come to the same:
//! there is no clock here, so a pod that should have ended uses what it uses until it says that it
//! has. An answer that changes is a change of what a partition's log means.

use serde_json::Value;

use super::{
    amounts::Amounts,
    usage::{Kind, Of, usage_of},
};
use crate::object;

/// What `value`, of a collection such as `core/pods` or `apps/deployments`, uses. What cannot be
/// read is counted and nothing else.
pub fn of(collection: &str, value: &[u8]) -> Amounts {
    let (group, resource) = collection.split_once('/').unwrap_or(("", collection));
    let of = Of { group: if group == "core" { "" } else { group }, resource };
    if of.kind() == Kind::Others {
        return usage_of(of, &Value::Null, false);
    }
    let value: Value = serde_json::from_slice(value).unwrap_or_default();
    let has_ended = matches!(object::text(&value, &["status", "phase"]), "Succeeded" | "Failed");
    usage_of(of, &value, has_ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changing a line here makes members of different versions part from each other.
    #[test]
    fn the_answers_are_pinned() {
        let told = |collection: &str, value: &str| {
            let found = of(collection, value.as_bytes());
            found.iter().map(|(name, it)| format!("{name}={it}")).collect::<Vec<_>>().join(" ")
        };
        let pod = |status: &str| {
            format!(
                r#"{{"metadata":{{"deletionTimestamp":"2020-01-01T00:00:00Z","deletionGracePeriodSeconds":1}},
                "spec":{{"containers":[{{"resources":{{"requests":{{"cpu":"250m","memory":"64Mi","ephemeral-storage":"1Gi","example.com/gpu":"1"}},
                "limits":{{"cpu":"1"}}}}}}],"overhead":{{"cpu":"50m"}}}},"status":{{"phase":"{status}"}}}}"#
            )
        };
        assert_eq!(
            told("core/pods", &pod("Running")),
            "count/pods=1 cpu=300m ephemeral-storage=1Gi limits.cpu=1050m memory=64Mi pods=1 \
             requests.cpu=300m requests.ephemeral-storage=1Gi requests.example.com/gpu=1 \
             requests.memory=64Mi"
        );
        assert_eq!(told("core/pods", &pod("Failed")), "count/pods=1");
        assert_eq!(told("core/pods", "no pod"), "count/pods=1 pods=1");
        assert_eq!(told("core/secrets", "{}"), "count/secrets=1 secrets=1");
        assert_eq!(told("apps/deployments", "{}"), "count/deployments.apps=1");
        assert_eq!(
            told("core/services", r#"{"spec":{"type":"NodePort","ports":[{},{}]}}"#),
            "count/services=1 services=1 services.loadbalancers=0 services.nodeports=2"
        );
        let claim =
            r#"{"spec":{"storageClassName":"fast","resources":{"requests":{"storage":"2Gi"}}}}"#;
        assert_eq!(
            told("core/persistentvolumeclaims", claim),
            "count/persistentvolumeclaims=1 \
             fast.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
             fast.storageclass.storage.k8s.io/requests.storage=2Gi \
             persistentvolumeclaims=1 requests.storage=2Gi"
        );
    }
}
