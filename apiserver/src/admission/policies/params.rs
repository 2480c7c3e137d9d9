//! The parameters that a binding gives its policy: objects of the tenant.

use std::sync::Arc;

use insula_api::{object, selector::Selector};
use insula_partition::store::ReadAt;
use serde_json::Value;

use super::written::{ParamKind, ParamRef};
use crate::{
    admission::{Admission, rules::is_labelled},
    error::{ApiError, Result},
    registry::{self, Served},
};

/// Most objects that a selector may choose.
const MAX_PARAMS: usize = 1000;

/// What there is of parameters.
#[derive(Debug)]
pub(super) enum Found {
    /// None are asked for.
    NotNeeded,
    All(Vec<Value>),
    /// Why they cannot be had.
    Unusable(String),
}

impl Found {
    /// Each with which the policy is asked once.
    pub(super) fn each(&self) -> Vec<Option<&Value>> {
        match self {
            Self::NotNeeded => vec![None],
            Self::All(list) => list.iter().map(Some).collect(),
            Self::Unusable(_) => Vec::new(),
        }
    }
}

/// The resource that holds objects of this kind, built in or of the tenant.
pub(super) async fn resource_of(
    admission: &Admission<'_>,
    kind: &ParamKind,
) -> Result<Option<Arc<Served>>> {
    let is_it = |it: &&Arc<Served>| {
        it.resource.kind == kind.kind && it.resource.api_version() == kind.api_version
    };
    if let Some(found) = admission.server.registry.all().iter().find(is_it) {
        return Ok(Some(found.clone()));
    }
    let customs = admission.server.customs.of(admission.server, admission.tenant()?).await?;
    Ok(customs.all().find(is_it).cloned())
}

/// Finds the parameters of a binding.
pub(super) async fn find(
    admission: &Admission<'_>,
    served: Option<&Arc<Served>>,
    wanted: Option<&ParamRef>,
) -> Result<Found> {
    let (Some(served), Some(wanted)) = (served, wanted) else { return Ok(Found::NotNeeded) };
    let unusable = |why: &str| Ok(Found::Unusable(why.to_owned()));
    let namespace = match (served.resource.is_namespaced(), wanted.namespace.as_str()) {
        (true, "") => admission.namespace.as_str(),
        (true, namespace) => namespace,
        (false, "") => "",
        (false, _) => {
            return unusable(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`",
            );
        }
    };
    if served.resource.is_namespaced() && namespace.is_empty() {
        return unusable(
            "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources",
        );
    }
    let mut list = match (&wanted.selector, wanted.name.as_str()) {
        (None, "") => return unusable("one of name or selector must be provided"),
        (None, name) => {
            let tenant = admission.tenant()?;
            let found = admission.server.glance(served, tenant, namespace, name).await?;
            found.into_iter().map(Arc::unwrap_or_clone).collect()
        }
        (Some(selector), _) => {
            let selector = match selector.compile() {
                Ok(selector) => selector,
                Err(error) => return unusable(&error.to_string()),
            };
            selected(admission, served, namespace, &selector).await?
        }
    };
    if MAX_PARAMS < list.len() {
        return unusable(&format!("more than {MAX_PARAMS} params found for policy binding"));
    }
    if list.is_empty() && wanted.parameter_not_found_action.as_deref() == Some("Deny") {
        return unusable("no params found for policy binding with `Deny` parameterNotFoundAction");
    }
    for it in &mut list {
        admission.server.show_value(served, it).await?;
    }
    Ok(Found::All(list))
}

/// Those that a selector matches: one more than there may be, at most.
async fn selected(
    admission: &Admission<'_>,
    served: &Served,
    namespace: &str,
    selector: &Selector,
) -> Result<Vec<Value>> {
    let tenant = admission.tenant()?;
    let snapshot = admission.server.at_hand(served, tenant, namespace, ReadAt::Any).await?;
    let prefix = registry::key(tenant, namespace, "");
    let mut found = Vec::new();
    for (index, (_, entry)) in snapshot.range(&prefix, None).enumerate() {
        if index % 100 == 99 {
            admission.go_on().await?;
        }
        let it = object::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
        if is_labelled(selector, &it) {
            found.push(it);
        }
        if MAX_PARAMS < found.len() {
            break;
        }
    }
    Ok(found)
}
