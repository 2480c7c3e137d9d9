//! Admission policies: rules in CEL that a tenant writes down, and bindings that put them in force.
//!
//! A policy says what is looked at and what must hold, or what changes; a binding says where, and
//! with which parameters. Policies without a binding do nothing.

mod mutating;
mod params;
mod patches;
pub(super) mod typing;
mod validating;
mod variables;
mod written;

use insula_cel::Value as Cel;
use serde_json::Value;

pub(super) use self::{
    mutating::mutate,
    validating::validate,
    written::{Binding, Declared, Policy, Variable, compile, compile_binding},
};
use super::{
    Admission, RULES,
    hooks::Shown,
    rules::{
        Meant,
        compiled::{Compiled, Entries, Entry},
        scope::{Judge, NOTHING, Scope},
    },
};
use crate::{error::Result, lately::Forgets};

/// Policies and bindings of one kind, of all tenants.
#[derive(Debug)]
pub(super) struct Policies {
    policies: Compiled<Policy>,
    bindings: Compiled<Binding>,
}

impl Policies {
    pub(super) fn new(policies: &'static str, bindings: &'static str) -> Self {
        Self {
            policies: Compiled::new(RULES, policies, compile),
            bindings: Compiled::new(RULES, bindings, compile_binding),
        }
    }

    pub(super) fn memories(&self) -> [&dyn Forgets; 2] {
        [&self.policies.tenants, &self.bindings.tenants]
    }

    /// Those of the tenant that may be about this request.
    async fn of(
        &self,
        admission: &Admission<'_>,
    ) -> Result<Option<(Entries<Policy>, Entries<Binding>)>> {
        // They could never be repaired if they were in their own way.
        if admission.is_about_rules() {
            return Ok(None);
        }
        let (server, tenant) = (admission.server, admission.tenant()?);
        let Some(bindings) = self.bindings.of(server, tenant).await? else { return Ok(None) };
        let Some(policies) = self.policies.of(server, tenant).await? else { return Ok(None) };
        Ok(admission.is_under_own_rules().await?.then_some((policies, bindings)))
    }
}

/// The bindings of a policy, by name.
fn bindings_of<'a>(
    policy: &'a Entry<Policy>,
    bindings: &'a Entries<Binding>,
) -> impl Iterator<Item = &'a Entry<Binding>> {
    let own = bindings.iter().filter(|it| it.compiled.policy_name == policy.name);
    own.map(AsRef::as_ref)
}

/// All that expressions speak of, but for parameters.
struct Context<'a> {
    shown: Shown,
    request: Value,
    namespace: &'a Value,
    judge: Option<Judge>,
}

impl<'a> Context<'a> {
    async fn new(
        admission: &'a Admission<'_>,
        meant: &Meant,
        it: Option<&Value>,
        needs_judge: bool,
    ) -> Result<Self> {
        let is_in_one = !admission.namespace.is_empty() && !admission.is_namespace();
        Ok(Self {
            shown: Shown::new(admission, meant, it).await?,
            request: Value::Object(admission.request(meant, it)),
            namespace: match is_in_one {
                true => admission.namespace_object().await?,
                false => &NOTHING,
            },
            judge: match needs_judge {
                true => Some(admission.judge().await?),
                false => None,
            },
        })
    }

    /// Without whom could be asked who may do what.
    fn plain_variables<'v>(
        &'v self,
        admission: &Admission<'_>,
        params: Option<&'v Value>,
    ) -> Vec<(&'v str, Cel<'v>)> {
        let mut list = self.variables(admission, params);
        list.retain(|(_, it)| !matches!(it, Cel::Asking(_)));
        list
    }

    fn variables<'v>(
        &'v self,
        admission: &Admission<'_>,
        params: Option<&'v Value>,
    ) -> Vec<(&'v str, Cel<'v>)> {
        Scope {
            object: &self.shown.object,
            old: &self.shown.old,
            request: &self.request,
            params,
            namespace: self.namespace,
            judge: self.judge.as_ref(),
            check: admission.check(),
        }
        .variables()
    }
}
