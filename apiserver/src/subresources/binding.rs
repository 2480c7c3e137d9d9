//! `binding`: the one way a pod comes to its node.

use std::time::Duration;

use insula_api::{object, schema::Gvk};
use insula_partition::store::Revision;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::conditions;
use crate::{
    Server,
    call::Call,
    error::{ApiError, FieldError, Result},
    ownership::Writer,
    write::{self, Changed},
};

/// How long a tenant's own admission may take where other bindings wait for the same answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Binds a pod to a node.
pub(crate) async fn bind(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let binding = call.decode(&kind(), body)?;
    bind_as(server, call, binding).await?;
    Ok(super::success())
}

fn kind() -> Gvk {
    Gvk::new("", "v1", "Binding")
}

/// Binds the pod of the call as `binding`, which was decoded, says. Gives its new revision.
pub(super) async fn bind_as(server: &Server, call: &Call, mut binding: Value) -> Result<Revision> {
    let admitted = super::admit(server, call, kind(), &mut binding);
    match &call.together {
        // Others wait for the same answer; whoever has to be asked first is bound alone.
        Some(_) => timeout(PATIENCE, admitted).await.unwrap_or_else(|_| Err(ApiError::late()))?,
        None => admitted.await?,
    }
    let node = object::text(&binding, &["target", "name"]).to_owned();
    let kind = object::text(&binding, &["target", "kind"]);
    if node.is_empty() || !(kind.is_empty() || kind == "Node") {
        let error = match node.is_empty() {
            true => FieldError::required("target.name", ""),
            false => FieldError::unsupported("target.kind", &kind.into(), &["Node"]),
        };
        return Err(ApiError::invalid("", "Binding", &call.path.name, &[error]));
    }
    if object::name(&binding) != call.path.name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let uid = object::uid(&binding).to_owned();
    let revision = object::meta_str(&binding, "resourceVersion").to_owned();
    let mut of_pod = call.clone();
    // The whole pod changes: specification and status at once, which no client may do.
    of_pod.path.subresource = "binding".into();
    // Being bound makes nobody a manager.
    let writer = Writer::new(call)?.untracked();
    let bound = write::change(server, &of_pod, &writer, |current, _| {
        let current = &current.object;
        let name = &call.path.name;
        let conflict = |why: String| Err(ApiError::conflict("", "pods/binding", name, &why));
        if !uid.is_empty() && uid != object::uid(current) {
            return conflict(format!("Precondition failed: UID in precondition: {uid}"));
        }
        let found = object::meta_str(current, "resourceVersion");
        if !revision.is_empty() && revision != found {
            return conflict(format!(
                "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {found}"
            ));
        }
        if object::is_deleting(current) {
            return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        let bound = object::text(current, &["spec", "nodeName"]);
        if !bound.is_empty() {
            return conflict(format!("pod {name} is already assigned to node \"{bound}\""));
        }
        let gates = current["spec"].get("schedulingGates").and_then(Value::as_array);
        if gates.is_some_and(|it| !it.is_empty()) {
            return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        let mut pod = current.clone();
        pod["spec"]["nodeName"] = node.as_str().into();
        if let Some(annotations) =
            object::metadata(&binding).get("annotations").and_then(Value::as_object)
        {
            let have =
                object::metadata_mut(&mut pod).entry("annotations").or_insert_with(|| json!({}));
            for (key, value) in annotations {
                have[key] = value.clone();
            }
        }
        if let Some(labels) = object::metadata(&binding).get("labels").and_then(Value::as_object) {
            let have = object::metadata_mut(&mut pod).entry("labels").or_insert_with(|| json!({}));
            for (key, value) in labels {
                have[key] = value.clone();
            }
        }
        if let Some(status) = pod["status"].as_object_mut() {
            // It was a hint, and is out of date.
            status.remove("nominatedNodeName");
        }
        conditions::set_of_pod(&mut pod, json!({"type": "PodScheduled", "status": "True"}));
        Ok(Ok(Changed::new(pod, true).admitted()))
    });
    Ok(bound.await?.entry.modified)
}

/// Binds the pod that a binding names, by the old path that does not name it.
pub(crate) async fn bind_named(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let binding = call.decode(&kind(), body)?;
    let of_pod = call.about(server, "", "pods", object::name(&binding), "binding")?;
    bind(server, &of_pod, body).await
}
