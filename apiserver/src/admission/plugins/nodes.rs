//! Pods learn where their node is, and nothing is placed on a node before it is ready.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::{Value, json};

use crate::{admission::Admission, error::Result};

/// What pods learn of their node.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// A new node is not ready yet. The controller of nodes takes the taint away.
pub(in crate::admission) fn keep_clear(_: &Admission<'_>, node: &mut Value) -> Result<()> {
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    let Some(node) = node.as_object_mut() else { return Ok(()) };
    let spec = node.entry("spec").or_insert_with(|| json!({}));
    let Some(spec) = spec.as_object_mut() else { return Ok(()) };
    let taints = spec.entry("taints").or_insert_with(|| json!([]));
    if taints.is_null() {
        *taints = json!([]);
    }
    let Some(taints) = taints.as_array_mut() else { return Ok(()) };
    if !taints.iter().any(|it| it["key"] == taint["key"] && it["effect"] == taint["effect"]) {
        taints.push(taint);
    }
    Ok(())
}

/// The topology labels of its node become a pod's: when it is bound, or created as bound.
pub(in crate::admission) fn label<'a>(
    admission: &'a Admission<'a>,
    it: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let node = match admission.subresource.as_ref() {
            "binding" if object::text(it, &["target", "kind"]) != "Node" => return Ok(()),
            "binding" => object::text(it, &["target", "name"]),
            _ => object::text(it, &["spec", "nodeName"]),
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = admission.labels_of_node(node).await? else { return Ok(()) };
        for key in TOPOLOGY {
            if let Some(value) = node.metadata.labels.get(key) {
                let own = object::metadata_mut(it).entry("labels").or_insert_with(|| json!({}));
                own[key] = value.as_str().into();
            }
        }
        Ok(())
    }
    .boxed()
}
