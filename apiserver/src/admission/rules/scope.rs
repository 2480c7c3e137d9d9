//! The values of the variables that rules speak of.

use std::sync::Arc;

use insula_cel::{
    Value as Cel,
    authorizer::{Asking, Authorizer, Check, Decision},
};
use serde_json::{Map, Value, json};

use super::{
    Meant,
    expression::{DYN, NAMESPACE, REQUEST},
};
use crate::{
    admission::Admission,
    error::Result,
    identity::Identity,
    rbac::{Attributes, Policy},
    registry::Whose,
    subresources::user_info,
};

/// Knows who may do what in one tenant.
#[derive(Debug)]
pub(in crate::admission) struct Judge {
    caller: Identity,
    whose: Whose,
    /// The rules that the caller is judged by, and those of the tenant.
    of_caller: Arc<Policy>,
    of_tenant: Arc<Policy>,
}

impl Authorizer for Judge {
    fn decide(&self, check: &Check) -> Decision {
        let attributes = Attributes {
            verb: check.verb.clone(),
            group: check.group.clone(),
            resource: check.resource.clone(),
            subresource: check.subresource.clone(),
            namespace: check.namespace.clone(),
            name: check.name.clone(),
            path: check.path.clone().unwrap_or_default(),
        };
        let allowed = match (&check.account, self.whose.tenant()) {
            (Some((namespace, name)), Some(tenant)) => {
                let user = format!("system:serviceaccount:{namespace}:{name}");
                let all = "system:serviceaccounts";
                let groups = [all, &format!("{all}:{namespace}")];
                let account = Identity::new(tenant.clone(), &user, &groups);
                self.of_tenant.allows(&account, &self.whose, &attributes)
            }
            _ => self.of_caller.allows(&self.caller, &self.whose, &attributes),
        };
        Decision { allowed, reason: String::new(), error: None }
    }
}

/// What is there where an object is not.
pub(in crate::admission) static NOTHING: Value = Value::Null;

/// What is evaluated over.
pub(in crate::admission) struct Scope<'a> {
    pub object: &'a Value,
    pub old: &'a Value,
    pub request: &'a Value,
    /// Absent where there are none to speak of.
    pub params: Option<&'a Value>,
    pub namespace: &'a Value,
    pub judge: Option<&'a Judge>,
    /// What is asked about with `authorizer.requestResource`.
    pub check: Check,
}

impl<'a> Scope<'a> {
    pub(in crate::admission) fn variables(&self) -> Vec<(&'a str, Cel<'a>)> {
        let mut list = vec![
            ("object", Cel::of_json(self.object, &DYN)),
            ("oldObject", Cel::of_json(self.old, &DYN)),
            ("request", Cel::of_json(self.request, &REQUEST)),
            ("namespaceObject", Cel::of_json(self.namespace, &NAMESPACE)),
            ("params", self.params.map_or(Cel::Null, |it| Cel::of_json(it, &DYN))),
        ];
        if let Some(judge) = self.judge {
            list.push(("authorizer", Asking::authorizer(judge)));
            let check = self.check.clone();
            list.push(("authorizer.requestResource", Asking::resource(judge, check)));
        }
        list
    }
}

impl Admission<'_> {
    /// The caller's and the tenant's rules.
    pub(in crate::admission) async fn judge(&self) -> Result<Judge> {
        Ok(Judge {
            caller: (*self.call.identity).clone(),
            whose: self.call.whose.clone(),
            of_caller: self.server.policy_for(self.call).await?,
            of_tenant: self.server.policy_of(self.tenant()?).await?,
        })
    }

    /// The request's own resource, as a question about it.
    pub(in crate::admission) fn check(&self) -> Check {
        let resource = self.resource();
        Check {
            group: resource.group.clone(),
            resource: resource.name.clone(),
            subresource: self.subresource.clone().into_owned(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            ..Check::default()
        }
    }

    /// `request`, as expressions and webhooks see it, without its objects.
    pub(in crate::admission) fn request(
        &self,
        meant: &Meant,
        it: Option<&Value>,
    ) -> Map<String, Value> {
        let kind = |it: &insula_api::schema::Gvk| json!({"group": it.group, "version": it.version, "kind": it.kind});
        let resource = |it: &insula_api::resources::Resource| json!({"group": it.group, "version": it.version, "resource": it.name});
        let mut request = Map::new();
        let mut put = |field: &str, value: Value| {
            if value != "" {
                request.insert(field.to_owned(), value);
            }
        };
        put("kind", kind(&meant.kind));
        put("resource", resource(&meant.served.resource));
        put("subResource", (*self.subresource).into());
        put("requestKind", kind(&self.kind));
        put("requestResource", resource(self.resource()));
        put("requestSubResource", (*self.subresource).into());
        put("name", self.name_of(it).into());
        put("namespace", self.namespace.as_str().into());
        put("operation", self.operation.name().into());
        put("userInfo", user_info(&self.call.identity));
        put("dryRun", self.dry_run.into());
        put("options", self.options.clone());
        request
    }
}
