//! `bindings` of a partition: many pods come to their nodes by one request, and in one step.
//!
//! Each binding is what a `binding` of its pod would be, in the pod's own tenant: the same rules,
//! admission and outcome. What is shared is the request and the write. Who may use it may create
//! bindings in every tenant; nobody is asked about single pods. Events of what was bound, if they
//! are asked for, come by a second write.

use std::{sync::Arc, time::Duration};

use insula_api::{
    kinds::{MAX_POD_BINDINGS, PodBinding, PodBindingResult, PodBindingsSpec},
    names::TenantName,
    path::ResourcePath,
    schema::Gvk,
};
use insula_partition::store::Revision;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::binding;
use crate::{
    Server,
    call::Call,
    epochs,
    error::{ApiError, FieldError, Result, chain},
    events::Occurrence,
    gate,
    rbac::Attributes,
    registry::{self, Whose},
    write::{self, Together},
};

/// How long an event may take, such as by a tenant's own admission: other bindings wait for the
/// same answer, and whoever asked can still write it.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

/// Whether a request is for what lies in the partition that it names, and so for a server that
/// has that.
pub(crate) fn is_in_partition(path: &ResourcePath) -> bool {
    &*path.subresource == "bindings" && &*path.resource == "partitions" && path.group == "insula.io"
}

/// Binds the pods that the body names.
pub(crate) async fn bind_all(server: &Server, call: &Call, body: &[u8]) -> Result<Value> {
    let kind = Gvk::new("insula.io", "v1", "PodBindings");
    // What is admitted is each binding, where its pod is.
    let mut request = call.decode(&kind, body)?;
    check_may(server, call, "pods", "binding").await?;
    let spec: PodBindingsSpec =
        serde_json::from_value(request["spec"].take()).map_err(ApiError::internal)?;
    if MAX_POD_BINDINGS < spec.bindings.len() {
        let n_bindings = spec.bindings.len();
        let errors = [FieldError::too_many("spec.bindings", n_bindings, MAX_POD_BINDINGS)];
        return Err(ApiError::invalid("insula.io", "PodBindings", "", &errors));
    }
    if spec.reporting_component.is_some() {
        check_may(server, call, "events", "").await?;
    }
    let partition = &call.path.name;
    let place = server.partitions.place_of(partition);
    let store = place.ok_or_else(|| call.not_found(partition))?.store;
    let together = Arc::new(Together::default());
    let bindings = spec.bindings.iter().map(|it| bind_one(server, call, &spec, it, &together));
    let results: Vec<_> = together
        .run(&*store, bindings.collect())
        .await
        .into_iter()
        .map(|done| match done {
            Ok(reported) => PodBindingResult { code: 201, reported, ..PodBindingResult::default() },
            Err(error) => PodBindingResult {
                code: error.code.as_u16(),
                reason: Some(error.reason.to_string()),
                message: Some(error.message),
                reported: false,
            },
        })
        .collect();
    request["spec"] = json!(spec);
    request["status"] = json!({ "results": results });
    Ok(request)
}

/// The caller may create these in all tenants.
async fn check_may(server: &Server, call: &Call, resource: &str, subresource: &str) -> Result<()> {
    let attributes = Attributes {
        verb: "create".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        ..Attributes::default()
    };
    match server.may(&call.identity, &Whose::All, &attributes).await? {
        true => Ok(()),
        false => Err(gate::denied(&call.identity, &attributes)),
    }
}

/// Binds one pod; whether there is an event of it.
async fn bind_one(
    server: &Server,
    call: &Call,
    spec: &PodBindingsSpec,
    it: &PodBinding,
    together: &Arc<Together>,
) -> Result<bool> {
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
        Err(error) => Err(error),
        Ok(bound) => Ok(tell(server, &of_pod, spec, it, bound).await),
    }
}

/// Writes an event of a pod that was bound, if it is asked for. Whether there is one.
async fn tell(
    server: &Server,
    of_pod: &Call,
    spec: &PodBindingsSpec,
    it: &PodBinding,
    bound: Revision,
) -> bool {
    // Who looks for a pod's events looks for its uid.
    let (Some(component), Some(uid)) = (&spec.reporting_component, &it.uid) else { return false };
    let message = format!("Successfully assigned {}/{} to {}", it.namespace, it.name, it.node);
    let occurrence = Occurrence {
        about: json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": it.namespace, "name": it.name,
            "uid": uid, "resourceVersion": bound.0.to_string(),
        }),
        is_good: true,
        reason: "Scheduled",
        message: &message,
        component,
        instance: spec.reporting_instance.as_deref().unwrap_or_default(),
    };
    let Ok(of_event) = of_pod.about(server, "", "events", "", "") else { return false };
    let created = write::create_made(server, &of_event, occurrence.event());
    match timeout(TOLD_WITHIN, created).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::debug!(pod = it.name, error = chain(&error), "an event was not written");
            false
        }
        Err(_) => false,
    }
}

/// Nothing was done: the pod is elsewhere.
fn misdirected(tenant: &TenantName, partition: &str) -> ApiError {
    ApiError::misdirected(format!("tenant {tenant} does not live on partition {partition}"))
}
