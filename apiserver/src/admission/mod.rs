//! Admission: what the platform, and a tenant's own rules, add to objects and forbid, beyond
//! their own validity.
//!
//! The chain is data: [`CHAIN`] is an ordered list of plugins, each of which says what it is
//! about and changes or refuses. Every write, delete and connection runs it through one
//! [`Admission`]: first all that change the object, then, when it is valid, all that refuse.
//! The order is upstream's.
//!
//! What plugins look up lies in memory ([`lookup`]); a tenant that has no rules of its own pays
//! for none.

mod attributes;
mod connect;
mod hooks;
mod lookup;
mod plugins;
mod policies;
mod registration;
mod reinvoke;
pub(crate) mod rules;
mod shape;

use std::{collections::HashSet, sync::LazyLock};

use futures::future::BoxFuture;
use insula_api::object;
use serde_json::Value;
use tokio::time::Instant;

pub(crate) use self::registration::{GROUP as RULES, check as check_rules};
pub(crate) use self::{
    attributes::{Admission, Operation, Step},
    connect::connect,
};
use self::{hooks::Hooks, policies::Policies, rules::compiled::Compiled};
use crate::{
    Server, aggregation, bootstrap,
    call::Call,
    custom,
    error::{ApiError, Result},
    rbac::aggregate,
    shown,
};

/// What a plugin is about.
#[derive(Debug, Clone, Copy)]
enum About {
    Everything,
    /// Group, resource and subresource.
    These(&'static [(&'static str, &'static str, &'static str)]),
    /// All resources of a group, and their subresources.
    Group(&'static str),
}

type MutateNow = for<'a> fn(&Admission<'a>, &mut Value) -> Result<()>;
type MutateLater = for<'a> fn(&'a Admission<'a>, &'a mut Value) -> BoxFuture<'a, Result<()>>;
type ValidateNow = for<'a> fn(&Admission<'a>, Option<&Value>) -> Result<()>;
type ValidateLater = for<'a> fn(&'a Admission<'a>, Option<&'a Value>) -> BoxFuture<'a, Result<()>>;

/// How a plugin changes an object.
#[derive(Clone, Copy)]
enum Mutate {
    Nothing,
    Now(MutateNow),
    Later(MutateLater),
}

/// How a plugin refuses one. Deletes and most connections have no object.
#[derive(Clone, Copy)]
enum Validate {
    Nothing,
    Now(ValidateNow),
    Later(ValidateLater),
}

/// One member of the chain.
struct Plugin {
    name: &'static str,
    operations: &'static [Operation],
    about: About,
    mutate: Mutate,
    validate: Validate,
}

impl Plugin {
    fn handles(&self, it: &Admission<'_>) -> bool {
        let is_about = match self.about {
            About::Everything => true,
            About::Group(group) => it.resource().group == group,
            About::These(list) => list.iter().any(|(group, resource, subresource)| {
                it.resource().name == *resource
                    && it.resource().group == *group
                    && it.subresource == *subresource
            }),
        };
        is_about && self.operations.contains(&it.operation)
    }
}

/// All that tenants rule themselves, compiled.
#[derive(Debug)]
pub(crate) struct Rules {
    mutating_webhooks: Compiled<Hooks>,
    validating_webhooks: Compiled<Hooks>,
    mutating_policies: Policies,
    validating_policies: Policies,
}

impl Rules {
    /// What is remembered of tenants.
    pub(crate) fn memories(&self) -> impl Iterator<Item = &dyn crate::lately::Forgets> {
        let hooks = [&self.mutating_webhooks, &self.validating_webhooks];
        let policies = [&self.mutating_policies, &self.validating_policies];
        let hooks = hooks.into_iter().map(|it| -> &dyn crate::lately::Forgets { &it.tenants });
        hooks.chain(policies.into_iter().flat_map(Policies::memories))
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            mutating_webhooks: Compiled::new(
                RULES,
                "mutatingwebhookconfigurations",
                hooks::compile,
            ),
            validating_webhooks: Compiled::new(
                RULES,
                "validatingwebhookconfigurations",
                hooks::compile,
            ),
            mutating_policies: Policies::new(
                "mutatingadmissionpolicies",
                "mutatingadmissionpolicybindings",
            ),
            validating_policies: Policies::new(
                "validatingadmissionpolicies",
                "validatingadmissionpolicybindings",
            ),
        }
    }
}

const PODS: About = About::These(&[("", "pods", "")]);
const WRITES: &[Operation] = &[Operation::Create, Operation::Update];
const CREATE: &[Operation] = &[Operation::Create];
const UPDATE: &[Operation] = &[Operation::Update];
const CERTIFICATES: &str = "certificates.k8s.io";
const CHANGES: &[Operation] = &[Operation::Create, Operation::Update, Operation::Delete];
const ALL: &[Operation] =
    &[Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];

/// All plugins, in order.
static CHAIN: &[Plugin] = &[
    Plugin {
        name: "TenantPlacement",
        operations: CHANGES,
        about: About::Group("insula.io"),
        mutate: Mutate::Now(plugins::platform::place),
        validate: Validate::Later(plugins::platform::check),
    },
    Plugin {
        name: "TenantQuota",
        operations: CHANGES,
        about: About::These(&[("insula.io", "tenantquotas", "")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::tenant_quota::check),
    },
    Plugin {
        name: "SharedDefinitions",
        operations: CREATE,
        about: About::These(&[("apiextensions.k8s.io", "customresourcedefinitions", "")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::shared::definition),
    },
    Plugin {
        name: "SharedByPlatform",
        operations: &[Operation::Update, Operation::Delete],
        about: About::These(&shown::KINDS),
        mutate: Mutate::Nothing,
        validate: Validate::Now(plugins::shared::keep),
    },
    Plugin {
        name: "VolumeHandles",
        operations: WRITES,
        about: About::These(&[("", "persistentvolumes", ""), ("", "persistentvolumes", "status")]),
        mutate: Mutate::Now(plugins::handles::vouch),
        validate: Validate::Now(plugins::handles::check),
    },
    Plugin {
        name: "RoleEscalation",
        operations: WRITES,
        about: About::Group("rbac.authorization.k8s.io"),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::escalation::check),
    },
    Plugin {
        name: "NamespaceLifecycle",
        operations: CHANGES,
        about: About::Everything,
        mutate: Mutate::Later(plugins::namespace::lives),
        validate: Validate::Later(plugins::namespace::stays),
    },
    Plugin {
        name: "LimitRanger",
        operations: CREATE,
        about: PODS,
        mutate: Mutate::Later(plugins::limits::fill),
        validate: Validate::Later(plugins::limits::check),
    },
    Plugin {
        name: "LimitRanger",
        operations: UPDATE,
        about: About::These(&[("", "pods", "resize")]),
        mutate: Mutate::Later(plugins::limits::fill),
        validate: Validate::Later(plugins::limits::check),
    },
    Plugin {
        name: "LimitRanger",
        operations: WRITES,
        about: About::These(&[("", "persistentvolumeclaims", "")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::limits::check),
    },
    Plugin {
        name: "ServiceAccount",
        operations: CREATE,
        about: PODS,
        mutate: Mutate::Later(plugins::service_account::mutate),
        validate: Validate::Later(plugins::service_account::validate),
    },
    Plugin {
        name: "ServiceAccount",
        operations: UPDATE,
        about: About::These(&[("", "pods", "ephemeralcontainers")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::service_account::validate),
    },
    Plugin {
        name: "NodeRestriction",
        operations: CHANGES,
        about: About::Everything,
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::node_restriction::check),
    },
    Plugin {
        name: "TaintNodesByCondition",
        operations: CREATE,
        about: About::These(&[("", "nodes", "")]),
        mutate: Mutate::Now(plugins::nodes::keep_clear),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "PodSecurity",
        operations: WRITES,
        about: About::These(&[
            ("", "namespaces", ""),
            ("", "pods", ""),
            ("", "pods", "ephemeralcontainers"),
            ("", "pods", "resize"),
            ("", "podtemplates", ""),
            ("", "replicationcontrollers", ""),
            ("apps", "replicasets", ""),
            ("apps", "deployments", ""),
            ("apps", "statefulsets", ""),
            ("apps", "daemonsets", ""),
            ("batch", "jobs", ""),
            ("batch", "cronjobs", ""),
        ]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::pod_security::check),
    },
    Plugin {
        name: "Priority",
        operations: WRITES,
        about: PODS,
        mutate: Mutate::Later(plugins::priority::resolve),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "Priority",
        operations: WRITES,
        about: About::These(&[("scheduling.k8s.io", "priorityclasses", "")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::priority::validate_class),
    },
    Plugin {
        name: "DefaultTolerationSeconds",
        operations: WRITES,
        about: PODS,
        mutate: Mutate::Now(plugins::pods::tolerate_lost_nodes),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "DefaultStorageClass",
        operations: CREATE,
        about: About::These(&[("", "persistentvolumeclaims", "")]),
        mutate: Mutate::Later(plugins::storage::default_class),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "StorageObjectInUseProtection",
        operations: CREATE,
        about: About::These(&[
            ("", "persistentvolumes", ""),
            ("", "persistentvolumeclaims", ""),
            ("storage.k8s.io", "volumeattributesclasses", ""),
        ]),
        mutate: Mutate::Now(plugins::storage::protect),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "PersistentVolumeClaimResize",
        operations: UPDATE,
        about: About::These(&[("", "persistentvolumeclaims", "")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::storage::resize),
    },
    Plugin {
        name: "RuntimeClass",
        operations: CREATE,
        about: PODS,
        mutate: Mutate::Later(plugins::runtime_class::apply),
        validate: Validate::Later(plugins::runtime_class::validate),
    },
    Plugin {
        name: "CertificateApproval",
        operations: UPDATE,
        about: About::These(&[(CERTIFICATES, "certificatesigningrequests", "approval")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::certificates::approve),
    },
    Plugin {
        name: "CertificateSigning",
        operations: UPDATE,
        about: About::These(&[(CERTIFICATES, "certificatesigningrequests", "status")]),
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::certificates::sign),
    },
    Plugin {
        name: "CertificateSubjectRestriction",
        operations: CREATE,
        about: About::These(&[(CERTIFICATES, "certificatesigningrequests", "")]),
        mutate: Mutate::Nothing,
        validate: Validate::Now(plugins::certificates::restrict),
    },
    Plugin {
        name: "DefaultIngressClass",
        operations: CREATE,
        about: About::These(&[("networking.k8s.io", "ingresses", "")]),
        mutate: Mutate::Later(plugins::ingress::default_class),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "PodTopologyLabels",
        operations: WRITES,
        about: About::These(&[("", "pods", ""), ("", "pods", "binding")]),
        mutate: Mutate::Later(plugins::nodes::label),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "MutatingAdmissionPolicy",
        operations: &[Operation::Create, Operation::Update, Operation::Connect],
        about: About::Everything,
        mutate: Mutate::Later(policies::mutate),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "MutatingAdmissionWebhook",
        operations: ALL,
        about: About::Everything,
        mutate: Mutate::Later(hooks::mutate),
        validate: Validate::Nothing,
    },
    Plugin {
        name: "ValidatingAdmissionPolicy",
        operations: ALL,
        about: About::Everything,
        mutate: Mutate::Nothing,
        validate: Validate::Later(policies::validate),
    },
    Plugin {
        name: "ValidatingAdmissionWebhook",
        operations: ALL,
        about: About::Everything,
        mutate: Mutate::Nothing,
        validate: Validate::Later(hooks::validate),
    },
    Plugin {
        name: "TenantQuota",
        operations: CREATE,
        about: PODS,
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::tenant_quota::check_pod),
    },
    Plugin {
        name: "ResourceQuota",
        operations: WRITES,
        about: About::Everything,
        mutate: Mutate::Nothing,
        validate: Validate::Later(plugins::quota::charge),
    },
];

/// The names in the chain, each once.
pub(crate) static PLUGINS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let mut seen = HashSet::new();
    CHAIN.iter().map(|it| it.name).filter(|name| seen.insert(*name)).collect()
});

/// Of each member of the chain, where its name is in [`PLUGINS`].
static PLACES: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let place = |it: &Plugin| PLUGINS.iter().position(|name| *name == it.name);
    CHAIN.iter().map(|it| place(it).unwrap_or_default()).collect()
});

impl<'a> Admission<'a> {
    /// Has all plugins change `it`. Call [`Admission::has_changed`] afterwards.
    pub(crate) async fn mutate(&self, it: &mut Value) -> Result<()> {
        let begun = Instant::now();
        let mut done = self.mutate_once(it).await;
        if done.is_ok() && self.begin_again() {
            done = self.mutate_once(it).await;
        }
        self.has_taken(Step::Admit, begun, &done);
        done
    }

    fn has_taken(&self, step: Step, begun: Instant, done: &Result<()>) {
        let admissions = self.server.metrics.admissions();
        admissions.step(step, self.operation, done.is_err(), begun.elapsed());
    }

    /// A plugin is done, which began at `begun`; the next one begins.
    fn next(&self, plugin: usize, step: Step, begun: &mut Instant, done: &Result<()>) {
        let now = Instant::now();
        let took = now - std::mem::replace(begun, now);
        let of = (step, self.operation);
        self.server.metrics.admissions().plugin(plugin, of, done.is_err(), took);
    }

    /// Lets others have their turn between two steps of what may take long, and ends it when
    /// nobody waits for it any more.
    pub(crate) async fn go_on(&self) -> Result<()> {
        tokio::task::yield_now().await;
        match self.call.until < tokio::time::Instant::now() {
            true => Err(ApiError::late()),
            false => Ok(()),
        }
    }

    async fn mutate_once(&self, it: &mut Value) -> Result<()> {
        let mut begun = Instant::now();
        for (plugin, place) in CHAIN.iter().zip(&*PLACES) {
            let done = match plugin.mutate {
                Mutate::Nothing => continue,
                _ if !plugin.handles(self) => continue,
                Mutate::Now(mutate) => mutate(self, it),
                Mutate::Later(mutate) => mutate(self, it).await,
            };
            self.next(*place, Step::Admit, &mut begun, &done);
            done.inspect_err(|error| self.refused_by(plugin, error))?;
        }
        Ok(())
    }

    /// Has all plugins look at what became of the object; `it` is absent for a delete.
    pub(crate) async fn validate(&self, it: Option<&Value>) -> Result<()> {
        let begun = Instant::now();
        let done = self.validate_once(it).await;
        self.has_taken(Step::Validate, begun, &done);
        done
    }

    async fn validate_once(&self, it: Option<&Value>) -> Result<()> {
        let mut begun = Instant::now();
        for (plugin, place) in CHAIN.iter().zip(&*PLACES) {
            let done = match plugin.validate {
                Validate::Nothing => continue,
                _ if !plugin.handles(self) => continue,
                Validate::Now(validate) => validate(self, it),
                Validate::Later(validate) => validate(self, it).await,
            };
            self.next(*place, Step::Validate, &mut begun, &done);
            done.inspect_err(|error| self.refused_by(plugin, error))?;
        }
        Ok(())
    }

    fn refused_by(&self, plugin: &Plugin, error: &ApiError) {
        tracing::debug!(plugin = plugin.name, resource = self.resource().name, %error, "refused");
    }
}

/// What follows from a create that succeeded.
pub(crate) async fn created(server: &Server, call: &Call, it: &Value) -> Result<()> {
    if call.served.resource.group == "insula.io" && call.served.resource.name == "tenants" {
        bootstrap::created(server, it).await?;
    }
    written(server, call, it).await;
    Ok(())
}

/// What follows from a change that succeeded. It is done: what follows may fail or be late.
pub(crate) async fn changed(server: &Server, call: &Call) {
    let Some(tenant) = call.whose.tenant() else { return };
    if custom::holds_definitions(&call.served) {
        custom::changed(server, tenant).await;
    }
    if aggregate::holds_cluster_roles(&call.served) {
        aggregate::changed(server, tenant).await;
    }
    if aggregation::holds_services(&call.served) {
        // What definitions make comes back.
        server.customs.ask(tenant);
    }
}

/// What follows from a write of `it` that succeeded.
pub(crate) async fn written(server: &Server, call: &Call, it: &Value) {
    changed(server, call).await;
    if aggregation::holds_services(&call.served)
        && call.path.subresource.is_empty()
        && let Some(tenant) = call.whose.tenant()
    {
        aggregation::available::changed(server, tenant, object::name(it)).await;
    }
    if policies::typing::is_checked(&call.served)
        && call.path.subresource.is_empty()
        && let Some(tenant) = call.whose.tenant()
        && let Err(error) = policies::typing::settle(server, tenant, object::name(it)).await
    {
        // It is looked at again with its next change.
        tracing::warn!(%tenant, policy = object::name(it), %error, "types could not be checked");
    }
}

/// A text of an object's annotations.
fn annotation<'a>(it: &'a Value, key: &str) -> Option<&'a str> {
    object::metadata(it).get("annotations")?.get(key)?.as_str()
}
