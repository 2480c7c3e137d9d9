//! What tenants see of what is the fleet's: nodes, and of each only what placing pods needs.

use bytes::Bytes;
use insula_api::{
    object,
    resources::{Resource, Scope},
};
use serde_json::Value;

use crate::{
    error::{ApiError, Result},
    identity::Identity,
};

/// Parts of a node that tenants see.
const OF_STATUS: [&str; 4] = ["conditions", "nodeInfo", "capacity", "allocatable"];
const OF_SPEC: [&str; 2] = ["taints", "unschedulable"];

/// Whether a caller sees objects of a resource only in part.
pub(crate) fn is_partial(identity: &Identity, resource: &Resource) -> bool {
    resource.scope == Scope::Fleet && !identity.tenant.is_system()
}

/// Whether tenants may do `verb` with a resource of the fleet, if their rules let them.
pub(crate) fn is_granted(resource: &Resource, verb: &str) -> bool {
    resource.name == "nodes"
        && resource.group.is_empty()
        && matches!(verb, "get" | "list" | "watch")
}

/// A node as tenants see it.
pub(crate) fn part_of(json: &Bytes) -> Result<Bytes> {
    let mut node: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
    for (part, seen) in [("status", &OF_STATUS[..]), ("spec", &OF_SPEC)] {
        if let Some(fields) = node.get_mut(part).and_then(Value::as_object_mut) {
            fields.retain(|field, _| seen.contains(&field.as_str()));
        }
    }
    let metadata = object::metadata_mut(&mut node);
    metadata.remove("annotations");
    metadata.remove("managedFields");
    Ok(node.to_string().into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_and_what_others_run_are_not_seen() {
        let node = json!({
            "metadata": {"name": "n", "annotations": {"a": "b"}, "managedFields": []},
            "spec": {"unschedulable": true, "podCIDR": "10.0.0.0/24", "providerID": "p"},
            "status": {"addresses": [{"address": "1.2.3.4"}], "capacity": {"cpu": "2"}, "allocatable": {"cpu": "1"}, "images": []},
        });
        let seen: Value =
            serde_json::from_slice(&part_of(&node.to_string().into()).unwrap()).unwrap();
        assert_eq!(
            seen,
            json!({
                "metadata": {"name": "n"},
                "spec": {"unschedulable": true},
                "status": {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "1"}},
            })
        );
    }
}
