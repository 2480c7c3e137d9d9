//! Nobody can give what they do not have where it counts.

use futures::{FutureExt as _, future::BoxFuture};
use insula_api::object;
use serde_json::{Value, json};

use crate::{
    admission::Admission,
    error::{ApiError, FieldError, Result},
    rbac::{
        self, Attributes, Rule,
        reach::{self, Reach},
    },
    registry::Whose,
};

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

/// A part of a role or binding that must be the same for it to grant the same.
type Part<'a> = Option<&'a Value>;

fn parts<'a>(it: &'a Value, is_binding: bool) -> [Part<'a>; 3] {
    match is_binding {
        true => [
            it.get("subjects"),
            it.get("roleRef"),
            object::metadata(it).get("annotations").and_then(|all| all.get(reach::TENANTS)),
        ],
        false => [it.get("rules"), it.get("aggregationRule"), None],
    }
}

async fn check_new(admission: &Admission<'_>, new: &Value) -> Result<()> {
    let (server, call) = (admission.server, admission.call);
    let resource = admission.resource().name.as_str();
    let is_binding = resource.ends_with("bindings");
    if admission.old.is_some_and(|old| parts(old, is_binding) == parts(new, is_binding)) {
        return Ok(());
    }
    let places = places(admission, new)?;
    if call.identity.is_superuser() {
        return Ok(());
    }
    let verb = if is_binding { "bind" } else { "escalate" };
    let namespace = admission.namespace.as_str();
    let kind = object::text(new, &["roleRef", "kind"]);
    let (about, name) = match (is_binding, kind) {
        (false, _) => (resource, object::name(new)),
        (true, "ClusterRole") => ("clusterroles", object::text(new, &["roleRef", "name"])),
        (true, _) => ("roles", object::text(new, &["roleRef", "name"])),
    };
    let wanted: Vec<Rule> = match is_binding {
        true => server.role_rules(call.tenant()?, kind, namespace, name).await?,
        false => {
            let rules = new.get("rules").cloned().unwrap_or_else(|| json!([]));
            let mut rules: Vec<Rule> = serde_json::from_value(rules)
                .map_err(|error| call.forbidden(object::name(new), &error.to_string()))?;
            if new.get("aggregationRule").is_some_and(|it| !it.is_null()) {
                // What it will gather later is not known, so only those who have all may make one.
                rules.push(Rule::everything());
            }
            rules
        }
    };
    let policy = server.policy_for(call).await?;
    for whose in &places {
        let attributes = Attributes {
            verb: verb.into(),
            group: "rbac.authorization.k8s.io".into(),
            resource: about.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        if policy.allows(&call.identity, whose, &attributes) {
            continue;
        }
        let held: Vec<&Rule> = policy.rules(&call.identity, whose, namespace).collect();
        if let Some(missing) = rbac::missing(&held, &wanted) {
            let why = format!(
                "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{missing}",
                call.identity.user, call.identity.groups
            );
            return Err(call.forbidden(object::name(new), &why));
        }
    }
    Ok(())
}

/// Whose objects a role or binding lets others reach: there its writer must hold all of it.
fn places(admission: &Admission<'_>, new: &Value) -> Result<Vec<Whose>> {
    let tenant = admission.call.tenant()?;
    let own = || vec![Whose::One(tenant.clone())];
    let text = object::metadata(new).get("annotations").and_then(|all| all.get(reach::TENANTS));
    match (admission.resource().name.as_str(), text.and_then(Value::as_str)) {
        // Bindings may take it to every tenant, those of today and of tomorrow.
        ("clusterroles", _) if tenant.is_system() => Ok(vec![Whose::All]),
        ("clusterrolebindings", Some(text)) => {
            let refuse = |why: &str| {
                let field = format!("metadata.annotations[{}]", reach::TENANTS);
                let error = FieldError::invalid(&field, &text.into(), why);
                let resource = admission.resource();
                let name = object::name(new);
                Err(ApiError::invalid(&resource.group, &resource.kind, name, &[error]))
            };
            match Reach::parse(text) {
                _ if !tenant.is_system() => refuse("only bindings of the platform name tenants"),
                Ok(reach) => Ok(reach.whose(tenant)),
                Err(error) => refuse(&error.to_string()),
            }
        }
        _ => Ok(own()),
    }
}
