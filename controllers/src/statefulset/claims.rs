//! Whose the claims of a set's pods are: the set's if they go with it, a pod's if they go with a pod
//! that is scaled away, otherwise nobody's (KEP-1847).

use insula_client::Tenanted;
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use super::pod::retention;
use crate::objects::controller_reference;

/// Whose a claim of `pod` is to be; `None` if it is already, or is somebody else's.
pub(super) fn owners(
    claim: &PersistentVolumeClaim,
    set: &Tenanted<StatefulSet>,
    pod: &Tenanted<Pod>,
    is_scaled: bool,
) -> Option<Vec<OwnerReference>> {
    let have = claim.metadata.owner_references.as_deref().unwrap_or_default();
    let ours = [controller_reference(set), controller_reference(pod)];
    let is_called = |it: &OwnerReference, as_this: &OwnerReference| {
        (it.kind.as_str(), it.name.as_str()) == (&as_this.kind, &as_this.name)
            && group(&it.api_version) == group(&as_this.api_version)
    };
    let stale =
        |it: &OwnerReference| ours.iter().any(|own| is_called(it, own) && it.uid != own.uid);
    if have.iter().any(stale) {
        // It is of one that had the same name, and goes with that.
        return None;
    }
    let is_ours = |it: &&OwnerReference| ours.iter().any(|own| is_called(it, own));
    let mut new: Vec<_> = have.iter().filter(|it| !is_ours(it)).cloned().collect();
    let [of_set, of_pod] = ours.clone();
    let owner = match retention(set) {
        (_, true) if is_scaled => Some(of_pod),
        (true, _) => Some(of_set),
        _ => None,
    };
    if new.iter().all(|it| it.controller != Some(true)) {
        new.extend(owner);
    }
    (new != have).then_some(new)
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn object<K: DeserializeOwned>(it: Value) -> Tenanted<K> {
        let tenant = TenantName::parse("acme").unwrap();
        Tenanted { tenant, object: serde_json::from_value(it).unwrap() }
    }

    /// Who the owners of a claim are to be, each `KIND:NAME:UID` with `!` for a controller.
    fn to_be(policy: (&str, &str), is_scaled: bool, have: &[&str]) -> Option<Vec<String>> {
        let set = object(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "s"},
            "spec": {
                "serviceName": "", "selector": {}, "template": {},
                "persistentVolumeClaimRetentionPolicy":
                    {"whenDeleted": policy.0, "whenScaled": policy.1},
            },
        }));
        let pod = object(json!({"metadata": {"name": "web-3", "namespace": "ns", "uid": "p"}}));
        let refs = have.iter().map(|it| {
            let parts: Vec<&str> = it.trim_end_matches('!').split(':').collect();
            let version = if parts[0] == "StatefulSet" { "apps/v1" } else { "v1" };
            let is_controller = it.ends_with('!').then_some(true);
            json!({"apiVersion": version, "kind": parts[0], "name": parts[1], "uid": parts[2],
                   "controller": is_controller, "blockOwnerDeletion": is_controller})
        });
        let refs: Vec<Value> = refs.collect();
        let claim: Tenanted<PersistentVolumeClaim> =
            object(json!({"metadata": {"name": "data-web-3", "ownerReferences": refs}}));
        let shown = |it: OwnerReference| {
            let mark = if it.controller == Some(true) { "!" } else { "" };
            format!("{}:{}:{}{mark}", it.kind, it.name, it.uid)
        };
        owners(&claim, &set, &pod, is_scaled).map(|them| them.into_iter().map(shown).collect())
    }

    #[test]
    fn claims_belong_to_whom_they_go_with() {
        const SET: &str = "StatefulSet:web:s!";
        const POD: &str = "Pod:web-3:p!";
        let own = |them: &[&str]| Some(them.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
        for (when_deleted, when_scaled, is_scaled, wanted) in [
            ("Retain", "Retain", false, &[][..]),
            ("Retain", "Retain", true, &[]),
            ("Delete", "Retain", false, &[SET]),
            ("Delete", "Retain", true, &[SET]),
            ("Retain", "Delete", false, &[]),
            ("Retain", "Delete", true, &[POD]),
            ("Delete", "Delete", false, &[SET]),
            ("Delete", "Delete", true, &[POD]),
        ] {
            let to_be = |have: &[&str]| to_be((when_deleted, when_scaled), is_scaled, have);
            // Whoever owned it before, by another policy.
            for have in [&[][..], &[SET], &[POD], &["StatefulSet:web:s"]] {
                let expected = if have == wanted { None } else { own(wanted) };
                assert_eq!(to_be(have), expected, "{when_deleted} {when_scaled} {have:?}");
            }
            let mut beside = vec!["ConfigMap:c:u"];
            assert_eq!(to_be(&beside).is_none(), wanted.is_empty());
            beside.extend(wanted);
            assert_eq!(to_be(&beside), None, "others may own it too");
            // What has another controller is not ours, nor what is of another set of that name.
            assert_eq!(to_be(&["ConfigMap:c:u!"]), None);
            assert_eq!(to_be(&["ConfigMap:c:u!", "StatefulSet:web:s"]), own(&["ConfigMap:c:u!"]));
            assert_eq!(to_be(&["StatefulSet:web:former!"]), None);
            assert_eq!(to_be(&["Pod:web-3:former!"]), None);
        }
    }
}
