//! What a node's agent may write: its own node, and what concerns the pods that run on it.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::Value;

use super::{certificates::common_name, pods::list, service_account::MIRROR};
use crate::{
    admission::{Admission, Operation, annotation},
    error::{ApiError, Result},
};

const LEASES: &str = "kube-node-lease";
/// Labels of Kubernetes' own that an agent knows best.
const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
const SIGNERS: [&str; 2] =
    ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

/// Refuses what is not the node's business. Others than nodes are not looked at.
pub(in crate::admission) fn check<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let Some(node) = admission.call.identity.node() else { return Ok(()) };
        let resource = admission.resource();
        let why = match (resource.group.as_str(), resource.name.as_str()) {
            ("", "pods") => of_pod(admission, node, it).await?,
            ("", "nodes") => of_node(admission, node, it),
            ("", "persistentvolumeclaims") => of_claim(admission, node, it),
            ("", "serviceaccounts") if admission.subresource == "token" => {
                of_token(admission, node, it).await?
            }
            ("coordination.k8s.io", "leases") => of_lease(admission, node, it),
            ("storage.k8s.io", "csinodes") if admission.name_of(it) != node => {
                Some("can only access CSINode with the same name as the requesting node".into())
            }
            ("resource.k8s.io", "resourceslices") => of_slice(admission, node, it),
            ("certificates.k8s.io", "certificatesigningrequests") => {
                of_request(admission, node, it)
            }
            _ => None,
        };
        match why {
            Some(why) => Err(admission.forbidden(it, &why)),
            None => Ok(()),
        }
    }
    .boxed()
}

fn node_of(pod: &Value) -> &str {
    object::text(pod, &["spec", "nodeName"])
}

async fn of_pod(
    admission: &Admission<'_>,
    node: &str,
    it: Option<&Value>,
) -> Result<Option<String>> {
    let is_own = admission.old.is_none_or(|old| node_of(old) == node);
    let operation = admission.operation.name();
    Ok(match (admission.subresource.as_ref(), admission.operation) {
        ("", Operation::Create) => it.and_then(|it| of_mirror(node, it)),
        ("", Operation::Delete) => (!is_own).then(|| {
            format!("node {node:?} can only delete pods with spec.nodeName set to itself")
        }),
        ("", _) => Some(format!(
            "unexpected operation {operation:?}, node {node:?} can only create and delete mirror pods"
        )),
        ("status", Operation::Update) => of_status(admission, node, it, is_own),
        ("eviction", Operation::Create) => {
            let pod =
                admission.find("", "pods", &admission.namespace, admission.name_of(it)).await?;
            let is_other = pod.is_some_and(|it| node_of(&it) != node);
            is_other.then(|| {
                format!("node {node} can only evict pods with spec.nodeName set to itself")
            })
        }
        ("status" | "eviction", _) => Some(format!("unexpected operation {operation:?}")),
        (other, _) => Some(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
    })
}

fn of_status(
    admission: &Admission<'_>,
    node: &str,
    it: Option<&Value>,
    is_own: bool,
) -> Option<String> {
    let (new, old) = (it?, admission.old?);
    if !is_own {
        return Some(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let labels = |it: &Value| object::metadata(it).get("labels").cloned();
    if labels(new) != labels(old) {
        return Some(format!("node {node:?} cannot update labels through pod status"));
    }
    let claims = |it: &Value| it["status"].get("resourceClaimStatuses").cloned();
    (claims(new) != claims(old))
        .then(|| format!("node {node:?} cannot update resource claim statues"))
}

/// A mirror pod: the node's own, and of nothing that the API keeps.
fn of_mirror(node: &str, pod: &Value) -> Option<String> {
    if annotation(pod, MIRROR).is_none() {
        return Some(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if node_of(pod) != node {
        return Some(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    let owners = object::metadata(pod).get("ownerReferences").and_then(Value::as_array);
    let owner = match owners.map(Vec::as_slice).unwrap_or_default() {
        [owner] => owner,
        [] => {
            return Some(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return Some(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    let is_node = owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node;
    if !is_node {
        return Some(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if owner["controller"] != true {
        return Some(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return Some(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let spec = &pod["spec"];
    let what = kept_by_the_api(spec)?;
    Some(format!("node {node:?} can not create pods that reference {what}"))
}

/// What of the API's objects a pod needs, beside accounts and secrets, if anything.
fn kept_by_the_api(spec: &Value) -> Option<&'static str> {
    const VOLUMES: &[(&str, &str)] = &[
        ("configMap", "configmaps"),
        ("secret", "secrets"),
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
        ("azureFile", "secrets (via azureFile volumes)"),
    ];
    let maps = ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|field| list(spec, field))
        .any(|container| {
            let of_env = |it: &Value| it.pointer("/valueFrom/configMapKeyRef").is_some();
            list(container, "env").any(of_env)
                || list(container, "envFrom").any(|it| it.get("configMapRef").is_some())
        });
    if maps {
        return Some("configmaps");
    }
    if list(spec, "resourceClaims").next().is_some() {
        return Some("resourceclaims");
    }
    for volume in list(spec, "volumes") {
        if let Some((_, what)) = VOLUMES.iter().find(|(kind, _)| volume.get(kind).is_some()) {
            return Some(what);
        }
        let sources = volume.get("projected").into_iter().flat_map(|it| list(it, "sources"));
        // Whatever comes later is taken for something that the API keeps.
        if sources.into_iter().any(|it| it.get("downwardAPI").is_none()) {
            return Some("objects of the API (via projected volumes)");
        }
    }
    None
}

fn of_node(admission: &Admission<'_>, node: &str, it: Option<&Value>) -> Option<String> {
    let name = admission.name_of(it);
    if name != node {
        return Some(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let (new, old) = (it?, admission.old);
    if let Some(old) = old {
        let taints = |it: &Value| list(&it["spec"], "taints").cloned().collect::<Vec<Value>>();
        if taints(new) != taints(old) {
            return Some(format!("node {node:?} is not allowed to modify taints"));
        }
        let owners = |it: &Value| object::metadata(it).get("ownerReferences").cloned();
        if owners(new) != owners(old) {
            return Some(format!("node {node:?} is not allowed to modify ownerReferences"));
        }
    }
    let label = |it: &Value, key: &str| object::metadata(it).get("labels")?.get(key).cloned();
    let keys = |it: &Value| -> Vec<String> {
        let labels = object::metadata(it).get("labels").and_then(Value::as_object);
        labels.into_iter().flatten().map(|(key, _)| key.clone()).collect()
    };
    let mut all = keys(new);
    all.extend(old.map(keys).unwrap_or_default());
    all.retain(|key| label(new, key) != old.and_then(|old| label(old, key)) && is_forbidden(key));
    all.sort();
    all.dedup();
    let told = all.join(", ");
    match (all.is_empty(), old.is_some()) {
        (true, _) => None,
        (false, false) => {
            Some(format!("node {node:?} is not allowed to set the following labels: {told}"))
        }
        (false, true) => Some(format!("is not allowed to modify labels: {told}")),
    }
}

/// Whether a label is Kubernetes' own and not the agent's to set.
fn is_forbidden(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let is_in =
        |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if is_in("node-restriction.kubernetes.io") {
        return true;
    }
    let is_own =
        OWN_LABELS.contains(&key) || is_in("kubelet.kubernetes.io") || is_in("node.kubernetes.io");
    (is_in("kubernetes.io") || is_in("k8s.io")) && !is_own
}

fn of_claim(admission: &Admission<'_>, node: &str, it: Option<&Value>) -> Option<String> {
    if admission.subresource != "status" {
        return Some("may only update PVC status".into());
    }
    let without = |it: &Value| {
        let mut it = it.clone();
        object::metadata_mut(&mut it).remove("resourceVersion");
        if let Some(status) = it.get_mut("status").and_then(Value::as_object_mut) {
            let sizes =
                ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"];
            status.retain(|field, _| !sizes.contains(&field.as_str()));
        }
        it
    };
    (without(it?) != without(admission.old?)).then(|| {
        format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        )
    })
}

async fn of_token(
    admission: &Admission<'_>,
    node: &str,
    it: Option<&Value>,
) -> Result<Option<String>> {
    let Some(it) = it else { return Ok(None) };
    let bound = &it["spec"]["boundObjectRef"];
    let (name, uid) = (object::text(bound, &["name"]), object::text(bound, &["uid"]));
    if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || name.is_empty() {
        return Ok(Some("node requested token not bound to a pod".into()));
    }
    if uid.is_empty() {
        return Ok(Some("node requested token with a pod binding without a uid".into()));
    }
    let found = admission.find("", "pods", &admission.namespace, name).await?;
    let pod = found.ok_or_else(|| ApiError::not_found("", "pods", name))?;
    if object::uid(&pod) != uid {
        return Ok(Some(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        )));
    }
    let is_other = node_of(&pod) != node;
    Ok(is_other
        .then(|| "node requested token bound to a pod scheduled on a different node".to_owned()))
}

fn of_lease(admission: &Admission<'_>, node: &str, it: Option<&Value>) -> Option<String> {
    if admission.namespace != LEASES {
        return Some(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    (admission.name_of(it) != node)
        .then(|| "can only access node lease with the same name as the requesting node".into())
}

fn of_slice(admission: &Admission<'_>, node: &str, it: Option<&Value>) -> Option<String> {
    let (it, verb) = match admission.operation {
        Operation::Create => (it?, "create"),
        Operation::Delete => (admission.old?, "delete"),
        _ => return None,
    };
    (node_of(it) != node).then(|| {
        format!("can only {verb} ResourceSlice with the same NodeName as the requesting node")
    })
}

fn of_request(admission: &Admission<'_>, node: &str, it: Option<&Value>) -> Option<String> {
    let it = it?;
    let signer = object::text(it, &["spec", "signerName"]);
    if admission.operation != Operation::Create || !SIGNERS.contains(&signer) {
        return None;
    }
    let wanted = format!("system:node:{node}");
    match common_name(object::text(it, &["spec", "request"])) {
        Err(why) => Some(format!("unable to parse csr: {why}")),
        Ok(name) if name != wanted => Some(format!("can only create a node CSR with CN={wanted}")),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_of_kubernetes_are_not_the_agents() {
        for allowed in [
            "example.com/x",
            "plain",
            "kubernetes.io/hostname",
            "node.kubernetes.io/anything",
            "sub.kubelet.kubernetes.io/x",
        ] {
            assert!(!is_forbidden(allowed), "{allowed}");
        }
        for forbidden in [
            "kubernetes.io/x",
            "foo.k8s.io/x",
            "node-role.kubernetes.io/master",
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
        ] {
            assert!(is_forbidden(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn mirror_pods_are_of_the_node() {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n", "controller": true});
        let pod = json!({
            "metadata": {"annotations": {MIRROR: "x"}, "ownerReferences": [owner]},
            "spec": {"nodeName": "n"},
        });
        assert_eq!(of_mirror("n", &pod), None);
        assert!(of_mirror("m", &pod).is_some());
        let mut secret = pod.clone();
        secret["spec"]["volumes"] = json!([{"name": "v", "secret": {}}]);
        assert_eq!(
            of_mirror("n", &secret).unwrap(),
            "node \"n\" can not create pods that reference secrets"
        );
        let mut claim = pod.clone();
        claim["spec"]["volumes"] = json!([{"name": "v", "ephemeral": {}}]);
        assert!(of_mirror("n", &claim).is_some());
        let mut own = pod.clone();
        own["spec"]["volumes"] =
            json!([{"name": "v", "projected": {"sources": [{"downwardAPI": {}}]}}]);
        assert_eq!(of_mirror("n", &own), None);
        let mut orphan = pod;
        orphan["metadata"]["ownerReferences"] = json!([]);
        assert!(of_mirror("n", &orphan).unwrap().contains("an owner reference set to itself"));
    }
}
