//! Nobody can give what they do not have.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::{Value, json};

use crate::{admission::Admission, error::Result, rbac};

/// Refuses roles and bindings that grant more than their writer holds.
pub(in crate::admission) fn check<'a>(
    admission: &'a Admission<'a>,
    it: Option<&'a Value>,
) -> BoxFuture<'a, Result<()>> {
    async move {
        match it {
            Some(new) => check_new(admission, new).await,
            None => Ok(()),
        }
    }
    .boxed()
}

async fn check_new(admission: &Admission<'_>, new: &Value) -> Result<()> {
    let (server, call) = (admission.server, admission.call);
    if call.identity.is_superuser() {
        return Ok(());
    }
    let resource = admission.resource().name.as_str();
    let is_binding = resource.ends_with("bindings");
    let is_unchanged = admission.old.is_some_and(|old| {
        let same = |field| old.get(field) == new.get(field);
        if is_binding {
            same("subjects") && same("roleRef")
        } else {
            same("rules") && same("aggregationRule")
        }
    });
    if is_unchanged {
        return Ok(());
    }
    let verb = if is_binding { "bind" } else { "escalate" };
    let namespace = admission.namespace.as_str();
    let wanted: Vec<rbac::Rule> = if is_binding {
        let kind = object::text(new, &["roleRef", "kind"]);
        let name = object::text(new, &["roleRef", "name"]);
        let plural = if kind == "ClusterRole" { "clusterroles" } else { "roles" };
        if server.allows(call, verb, plural, namespace, name).await? {
            return Ok(());
        }
        server.role_rules(call.tenant()?, kind, namespace, name).await?
    } else {
        if server.allows(call, verb, resource, namespace, object::name(new)).await? {
            return Ok(());
        }
        let rules = new.get("rules").cloned().unwrap_or_else(|| json!([]));
        let aggregates = new.get("aggregationRule").is_some_and(|it| !it.is_null());
        let mut rules: Vec<rbac::Rule> = serde_json::from_value(rules)
            .map_err(|error| call.forbidden(object::name(new), &error.to_string()))?;
        if aggregates {
            // What it will gather later is not known, so only those who have all may make one.
            rules.push(rbac::Rule::everything());
        }
        rules
    };
    let policy = server.policy_for(call).await?;
    let held: Vec<&rbac::Rule> = policy.rules(&call.identity, namespace).collect();
    if let Some(missing) = rbac::missing(&held, &wanted) {
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{missing}",
            call.identity.user, call.identity.groups
        );
        return Err(call.forbidden(object::name(new), &why));
    }
    Ok(())
}
