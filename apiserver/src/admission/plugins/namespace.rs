//! Objects are created only in namespaces that exist and are not going, and some namespaces stay.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::{Value, json};

use crate::{
    admission::{Admission, Operation},
    bootstrap,
    error::Result,
};

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// The namespace of a new object is there, and stays.
pub(in crate::admission) fn lives<'a>(
    admission: &'a Admission<'a>,
    it: &'a mut Value,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let resource = admission.resource();
        let is_review = resource.name == "localsubjectaccessreviews";
        if admission.operation != Operation::Create || is_review {
            return Ok(());
        }
        let tenant = admission.tenant()?;
        if !tenant.is_system() && resource.is_stored() {
            let identity = &admission.call.identity;
            bootstrap::check_tenant_lives(admission.server, tenant, identity).await?;
        }
        if !resource.is_namespaced() {
            return Ok(());
        }
        let namespace = admission.namespace.as_str();
        if !object::is_deleting(admission.namespace_object().await?) {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut error = admission.forbidden(Some(it), &why);
        if let Some(details) = &mut error.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
        }
        Err(error)
    }
    .boxed()
}

/// A namespace that stays is not deleted.
pub(in crate::admission) fn stays<'a>(
    admission: &'a Admission<'a>,
    _: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        let name = admission.name.as_str();
        let is_immortal = IMMORTAL.contains(&name);
        if admission.operation != Operation::Delete || !admission.is_namespace() || !is_immortal {
            return Ok(());
        }
        // They go with their tenant, and only so.
        let tenant = admission.tenant()?;
        if admission.call.identity.tenant.is_system() && !tenant.is_system() {
            let found = bootstrap::find_tenant(admission.server, tenant).await?;
            if found.is_none_or(|it| object::is_deleting(&it)) {
                return Ok(());
            }
        }
        Err(admission.forbidden(None, "this namespace may not be deleted"))
    }
    .boxed()
}
