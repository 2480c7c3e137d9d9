//! `bindings` of a partition: many pods come to their nodes by one request, and in one step.
//!
//! Each binding is what a `binding` of its pod would be, in the pod's own tenant: the same rules,
//! admission and outcome. What is shared is the request and the write. Who may use it may create
//! bindings in every tenant; nobody is asked about single pods.

use std::sync::Arc;

use insula_api::{
    kinds::{MAX_POD_BINDINGS, PodBinding, PodBindingResult, PodBindingsSpec},
    names::TenantName,
    path::ResourcePath,
    schema::Gvk,
};
use serde_json::{Value, json};

use super::binding;
use crate::{
    Server,
    call::Call,
    epochs,
    error::{ApiError, FieldError, Result},
    gate,
    rbac::Attributes,
    registry::{self, Whose},
    write::Together,
};

/// Whether a request is for what lies in the partition that it names, and so for a server that
/// has that.
pub(crate) fn is_in_partition(path: &ResourcePath) -> bool {
    &*path.subresource == "bindings" && &*path.resource == "partitions" && path.group == "insula.io"
}

/// Binds the pods that the body names.
pub(crate) async fn bind_all(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let kind = Gvk::new("insula.io", "v1", "PodBindings");
    // What is admitted is each binding, where its pod is.
    let (mut request, _) = call.decode(&kind, body)?;
    check_may(server, call).await?;
    let spec: PodBindingsSpec =
        serde_json::from_value(request["spec"].take()).map_err(ApiError::internal)?;
    if MAX_POD_BINDINGS < spec.bindings.len() {
        let n_bindings = spec.bindings.len();
        let errors = [FieldError::too_many("spec.bindings", n_bindings, MAX_POD_BINDINGS)];
        return Err(ApiError::invalid("insula.io", "PodBindings", "", &errors));
    }
    let partition = &call.path.name;
    let place = server.partitions.place_of(partition);
    let store = place.ok_or_else(|| call.not_found(partition))?.store;
    let together = Arc::new(Together::default());
    let bindings = spec.bindings.iter().map(|it| bind_one(server, call, it, &together));
    let results: Vec<_> = together
        .run(&*store, bindings.collect())
        .await
        .into_iter()
        .map(|done| match done {
            Ok(()) => PodBindingResult { code: 201, ..PodBindingResult::default() },
            Err(error) => PodBindingResult {
                code: error.code.as_u16(),
                reason: Some(error.reason.to_string()),
                message: Some(error.message),
            },
        })
        .collect();
    request["spec"] = json!(spec);
    request["status"] = json!({ "results": results });
    Ok(request)
}

/// The caller may bind pods of all tenants.
async fn check_may(server: &Server, call: &Call) -> Result<()> {
    let attributes = Attributes {
        verb: "create".into(),
        resource: "pods".into(),
        subresource: "binding".into(),
        ..Attributes::default()
    };
    match server.may(&call.identity, &Whose::All, &attributes).await? {
        true => Ok(()),
        false => Err(gate::denied(&call.identity, &attributes)),
    }
}

async fn bind_one(
    server: &Server,
    call: &Call,
    it: &PodBinding,
    together: &Arc<Together>,
) -> Result<()> {
    let tenant = TenantName::parse(&it.tenant)
        .map_err(|error| ApiError::bad_request(format!("tenant {:?}: {error}", it.tenant)))?;
    for (what, text) in [("namespace", &it.namespace), ("name", &it.name)] {
        if text.is_empty() || text.contains('/') {
            return Err(ApiError::bad_request(format!("{what} {text:?} is none of a pod")));
        }
    }
    let key = registry::shard_of_tenant(&tenant);
    if *server.partitions.place(&key).partition != *call.path.name {
        return Err(misdirected(&tenant, &call.path.name));
    }
    let epoch = match it.fence.as_deref().filter(|it| !it.is_empty()) {
        None => None,
        Some(text) => Some(epochs::read(text).ok_or_else(|| {
            ApiError::bad_request(format!("fence {text:?} is not of the form TASK=EPOCH"))
        })?),
    };
    let mut of_pod = call.about(server, "", "pods", &it.name, "binding")?;
    of_pod.path.namespace.clone_from(&it.namespace);
    of_pod.whose = Whose::One(tenant);
    of_pod.epoch = epoch;
    of_pod.together = Some(together.clone());
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": it.name, "namespace": it.namespace, "uid": it.uid},
        "target": {"kind": "Node", "name": it.node},
    });
    match binding::bind_as(server, &of_pod, binding).await {
        Err(error) if error.is_moving => Err(misdirected(of_pod.tenant()?, &call.path.name)),
        other => other,
    }
}

/// Nothing was done: the pod is elsewhere.
fn misdirected(tenant: &TenantName, partition: &str) -> ApiError {
    ApiError::misdirected(format!("tenant {tenant} does not live on partition {partition}"))
}
