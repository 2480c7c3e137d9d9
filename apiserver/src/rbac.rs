//! Role based access control, evaluated inside one tenant.
//!
//! A tenant's rules are compiled from its roles and bindings once and kept until one of them
//! changes; a check is then a walk over the bindings of the caller's subjects.
//!
//! Semantics are upstream's: a request is allowed if any rule of any role bound to the caller
//! matches; `ClusterRoleBinding`s count everywhere, `RoleBinding`s in their namespace.
//! Of the platform's own `ClusterRoleBinding`s those count in tenants that say so, see [`reach`].

pub(crate) mod aggregate;
mod policies;
#[cfg(test)]
mod property;
pub(crate) mod reach;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use insula_api::names::TenantName;
use insula_partition::snapshot::Snapshot;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub(crate) use self::policies::Policies;
use self::{aggregate::Roles, policies::Sources, reach::Reach};
use crate::{identity::Identity, registry::Whose};

const GROUP: &str = "rbac.authorization.k8s.io";

/// What a caller wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Set for requests that are not about a resource; the rest is then empty.
    pub path: String,
}

/// One policy rule.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    pub(crate) fn allows(&self, it: &Attributes) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|x| x == "*" || x == value);
        if !has(&self.verbs, &it.verb) {
            return false;
        }
        if !it.path.is_empty() {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => it.path.starts_with(prefix),
                None => *url == it.path,
            });
        }
        has(&self.api_groups, &it.group)
            && self.resources.iter().any(|known| resource_matches(known, it))
            && (self.resource_names.is_empty()
                || (!it.name.is_empty() && self.resource_names.contains(&it.name)))
    }

    /// As `SelfSubjectRulesReview` shows it.
    fn review(&self) -> Value {
        if self.non_resource_urls.is_empty() {
            json!({"verbs": self.verbs, "apiGroups": self.api_groups,
                   "resources": self.resources, "resourceNames": self.resource_names})
        } else {
            json!({"verbs": self.verbs, "nonResourceURLs": self.non_resource_urls})
        }
    }
}

impl Rule {
    /// All verbs on everything.
    pub(crate) fn everything() -> Self {
        let all = || vec!["*".to_owned()];
        Self { verbs: all(), api_groups: all(), resources: all(), ..Self::default() }
    }

    /// Whether this rule alone allows all that `one`, a rule with single entries, allows.
    fn covers(&self, one: &Self) -> bool {
        let within = |have: &[String], want: &[String]| {
            have.iter().any(|it| it == "*") || want.iter().all(|it| have.contains(it))
        };
        if !within(&self.verbs, &one.verbs) {
            return false;
        }
        if !one.non_resource_urls.is_empty() {
            return one.non_resource_urls.iter().all(|url| {
                self.non_resource_urls.iter().any(|have| match have.strip_suffix('*') {
                    Some(prefix) => url.starts_with(prefix),
                    None => have == url,
                })
            });
        }
        let resources = within(&self.resources, &one.resources)
            || one.resources.iter().all(|it| match it.split_once('/') {
                Some((_, sub)) => self.resources.contains(&format!("*/{sub}")),
                None => false,
            });
        let names = self.resource_names.is_empty()
            || (!one.resource_names.is_empty()
                && one.resource_names.iter().all(|it| self.resource_names.contains(it)));
        within(&self.api_groups, &one.api_groups) && resources && names
    }

    /// The rule as rules with one verb and one target each.
    fn singles(&self) -> Vec<Self> {
        let mut out = Vec::new();
        let one = |text: &String| vec![text.clone()];
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                out.push(Self { verbs: one(verb), non_resource_urls: one(url), ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let base = Self {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Self::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(base);
                        continue;
                    }
                    out.extend(
                        self.resource_names
                            .iter()
                            .map(|name| Self { resource_names: one(name), ..base.clone() }),
                    );
                }
            }
        }
        out
    }
}

/// The first part of `wanted` that no rule of `held` covers, as people read it.
pub(crate) fn missing(held: &[&Rule], wanted: &[Rule]) -> Option<String> {
    let singles = wanted.iter().flat_map(Rule::singles);
    let missing = singles.into_iter().find(|it| !held.iter().any(|held| held.covers(it)))?;
    Some(match missing.non_resource_urls.as_slice() {
        [] => format!(
            "{{APIGroups:{:?}, Resources:{:?}, Verbs:{:?}}}",
            missing.api_groups, missing.resources, missing.verbs
        ),
        urls => format!("{{NonResourceURLs:{urls:?}, Verbs:{:?}}}", missing.verbs),
    })
}

fn resource_matches(known: &str, it: &Attributes) -> bool {
    if known == "*" {
        return true;
    }
    match (known.split_once('/'), it.subresource.is_empty()) {
        (None, true) => known == it.resource,
        (Some((resource, sub)), false) => {
            sub == it.subresource && (resource == "*" || resource == it.resource)
        }
        _ => false,
    }
}

/// A role. Of cluster roles see [`aggregate`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Role {
    rules: Option<Vec<Rule>>,
}

/// A role binding or cluster role binding.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Binding {
    metadata: BindingMeta,
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BindingMeta {
    annotations: HashMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

impl Subject {
    fn is(&self, identity: &Identity) -> bool {
        match self.kind.as_str() {
            "User" => self.name == identity.user,
            "Group" => identity.in_group(&self.name),
            "ServiceAccount" => identity
                .user
                .strip_prefix("system:serviceaccount:")
                .is_some_and(|rest| rest.split_once(':') == Some((&self.namespace, &self.name))),
            _ => false,
        }
    }
}

/// Subjects and the rules they get.
type Grant = (Vec<Subject>, Arc<[Rule]>);

/// All rules of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    /// Rules of each cluster role, and of each role by namespace and name.
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<(String, String), Arc<[Rule]>>,
    /// Subjects and the rules they get in every namespace, and of which tenants.
    everywhere: Vec<(Reach, Grant)>,
    /// By namespace.
    within: HashMap<String, Vec<Grant>>,
    /// Some cluster role's object does not show what came together in it, and nobody has taken
    /// care of that yet.
    is_unsettled: AtomicBool,
}

impl Policy {
    /// The rules that apply to `identity`, of the tenant of this policy, to what is of `whose`, in
    /// `namespace` (`""`: at the cluster scope).
    pub(crate) fn rules<'a>(
        &'a self,
        identity: &'a Identity,
        whose: &'a Whose,
        namespace: &str,
    ) -> impl Iterator<Item = &'a Rule> {
        let is_at_home = whose.tenant() == Some(&identity.tenant);
        // A namespace of that name in another tenant is another namespace.
        let within = self.within.get(namespace).filter(|_| is_at_home && !namespace.is_empty());
        self.everywhere
            .iter()
            .filter(move |(reach, _)| reach.covers(&identity.tenant, whose))
            .map(|(_, grant)| grant)
            .chain(within.into_iter().flatten())
            .filter(|(subjects, _)| subjects.iter().any(|subject| subject.is(identity)))
            .flat_map(|(_, rules)| rules.iter())
    }

    /// Whether `identity`, of the tenant of this policy, may do `attributes` to what is of `whose`.
    pub(crate) fn allows(
        &self,
        identity: &Identity,
        whose: &Whose,
        attributes: &Attributes,
    ) -> bool {
        if identity.is_superuser() {
            return true;
        }
        self.rules(identity, whose, &attributes.namespace).any(|rule| rule.allows(attributes))
    }

    /// The rules of a role that a binding may refer to.
    pub(crate) fn role(&self, kind: &str, namespace: &str, name: &str) -> Option<&[Rule]> {
        let found = match kind {
            "ClusterRole" => self.cluster_roles.get(name),
            _ => self.roles.get(&(namespace.to_owned(), name.to_owned())),
        };
        found.map(AsRef::as_ref)
    }

    /// True once, for whoever is to have aggregated cluster roles show what they are.
    pub(crate) fn is_to_be_settled(&self) -> bool {
        self.is_unsettled.load(Relaxed) && self.is_unsettled.swap(false, Relaxed)
    }

    /// `SelfSubjectRulesReview.status`.
    pub(crate) fn review(&self, identity: &Identity, whose: &Whose, namespace: &str) -> Value {
        let (others, resources): (Vec<&Rule>, Vec<&Rule>) = self
            .rules(identity, whose, namespace)
            .partition(|rule| !rule.non_resource_urls.is_empty());
        json!({
            "resourceRules": resources.iter().map(|it| it.review()).collect::<Vec<_>>(),
            "nonResourceRules": others.iter().map(|it| it.review()).collect::<Vec<_>>(),
            "incomplete": false,
        })
    }
}

/// Namespace and name of each object below `prefix`, a tenant's, with its value. What cannot be
/// read grants nothing.
fn each<'a, T: DeserializeOwned>(
    snapshot: &'a Snapshot,
    prefix: &'a str,
) -> impl Iterator<Item = ((&'a str, &'a str), T)> {
    snapshot.range(prefix, None).filter_map(move |(key, entry)| {
        let place = key[prefix.len()..].split_once('/')?;
        match serde_json::from_slice(&entry.value.bytes()) {
            Ok(value) => Some((place, value)),
            Err(error) => {
                tracing::error!(%key, %error, "a role or binding cannot be read");
                None
            }
        }
    })
}

fn compile(tenant: &TenantName, sources: &Sources) -> Policy {
    let prefix = format!("{tenant}/");
    let cluster_roles = Roles::read(&sources.cluster_roles, &prefix);
    let mut compiled: HashMap<&str, Arc<[Rule]>> = HashMap::new();
    let mut is_unsettled = false;
    for name in cluster_roles.names() {
        let rules = cluster_roles.gather(name);
        is_unsettled |= !cluster_roles.shows(name, &rules);
        compiled.insert(name, rules.into());
    }
    let roles: HashMap<(&str, &str), Arc<[Rule]>> = each::<Role>(&sources.roles, &prefix)
        .map(|(place, role)| (place, role.rules.unwrap_or_default().into()))
        .collect();
    let mut policy = Policy { is_unsettled: is_unsettled.into(), ..Policy::default() };
    for (_, binding) in each::<Binding>(&sources.cluster_bindings, &prefix) {
        if let Some(rules) = compiled.get(binding.role_ref.name.as_str()) {
            // What cannot be read grants nothing.
            let Ok(reach) = Reach::of(tenant, &binding.metadata.annotations) else { continue };
            let grant = (binding.subjects.unwrap_or_default(), rules.clone());
            policy.everywhere.push((reach, grant));
        }
    }
    for ((namespace, _), binding) in each::<Binding>(&sources.bindings, &prefix) {
        let name = binding.role_ref.name.as_str();
        let rules = match binding.role_ref.kind.as_str() {
            "ClusterRole" => compiled.get(name),
            _ => roles.get(&(namespace, name)),
        };
        if let Some(rules) = rules {
            let list = policy.within.entry(namespace.to_owned()).or_default();
            list.push((binding.subjects.unwrap_or_default(), rules.clone()));
        }
    }
    policy.cluster_roles =
        compiled.iter().map(|(name, rules)| ((*name).to_owned(), rules.clone())).collect();
    policy.roles = roles
        .iter()
        .map(|((namespace, name), rules)| (((*namespace).into(), (*name).into()), rules.clone()))
        .collect();
    policy
}
