//! Cluster roles that are put together from others, by `aggregationRule`.
//!
//! A request is judged by what its tenant's cluster roles say at that moment ([`Roles::gather`]).
//! The rules that came together are also written into the objects ([`settle`]), under the name of
//! upstream's controller, so that they show: by the server that changed a cluster role, before it
//! answers, and else by any server that finds them to differ when it compiles the tenant's policy.
//! So no tenant that is at rest costs anything, and what a crash left undone is done once somebody
//! asks.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use insula_api::{
    names::TenantName,
    object::{self, Stored},
    selector::{LabelSelector, Selector},
};
use insula_partition::{
    snapshot::{Entry, Snapshot},
    store::{Change, Expect, ReadAt, Store, StoreError, Write},
};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{GROUP, Rule, each};
use crate::{
    Server,
    error::{ApiError, Result},
    ownership::Writer,
    registry::Served,
};

const RESOURCE: &str = "clusterroles";
/// Who manages rules that came together, as with upstream.
const MANAGER: &str = "clusterrole-aggregation-controller";
/// How often one call looks again after somebody else was faster.
const ROUNDS: usize = 16;

/// A cluster role, as far as it counts here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClusterRole {
    rules: Option<Vec<Rule>>,
    #[serde(rename = "aggregationRule")]
    aggregation: Option<Aggregation>,
    metadata: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Aggregation {
    #[serde(deserialize_with = "selectors")]
    cluster_role_selectors: Vec<Selector>,
}

/// What cannot be understood selects nothing; writes are checked.
fn selectors<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Selector>, D::Error> {
    let all: Option<Vec<LabelSelector>> = Deserialize::deserialize(from)?;
    Ok(all.into_iter().flatten().filter_map(|it| it.compile().ok()).collect())
}

/// All cluster roles of a tenant, by name.
#[derive(Debug, Default)]
pub(super) struct Roles<'a>(BTreeMap<&'a str, ClusterRole>);

impl<'a> FromIterator<(&'a str, ClusterRole)> for Roles<'a> {
    fn from_iter<I: IntoIterator<Item = (&'a str, ClusterRole)>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl<'a> Roles<'a> {
    /// Those of `tenant` in `snapshot`.
    pub(super) fn read(snapshot: &'a Snapshot, prefix: &'a str) -> Self {
        each(snapshot, prefix).map(|((_, name), role)| (name, role)).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.0.keys().copied()
    }

    /// The rules of `name`, from whatever it is put together: in the order of its selectors, then
    /// of names, each once, as upstream's controller has them. Roles that are put together
    /// themselves give what they get; going round in circles gives nothing new.
    pub(super) fn gather(&self, name: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        let (mut roles, mut known) = (HashSet::from([name]), HashSet::new());
        let mut next: Vec<&ClusterRole> = self.0.get(name).into_iter().collect();
        while let Some(role) = next.pop() {
            let Some(aggregation) = &role.aggregation else {
                let own = role.rules.iter().flatten();
                rules.extend(own.filter(|it| known.insert(*it)).cloned());
                continue;
            };
            let first = next.len();
            for selector in &aggregation.cluster_role_selectors {
                let selected = self.0.iter().filter(|(name, it)| {
                    selector.matches(&it.metadata.labels) && roles.insert(name)
                });
                next.extend(selected.map(|(_, role)| role));
            }
            // The first is to be taken first.
            next[first..].reverse();
        }
        rules
    }

    /// Whether the object of `name` shows `rules`, what comes together in it. Those that are not
    /// put together show what they are.
    pub(super) fn shows(&self, name: &str, rules: &[Rule]) -> bool {
        self.0.get(name).is_none_or(|role| {
            role.aggregation.is_none() || role.rules.as_deref().unwrap_or_default() == rules
        })
    }

    /// Those whose objects do not show what comes together in them, with what does.
    fn unsettled(&self) -> impl Iterator<Item = (&'a str, Vec<Rule>)> {
        let gathering = self.0.iter().filter(|(_, role)| role.aggregation.is_some());
        let all = gathering.map(|(name, _)| (*name, self.gather(name)));
        all.filter(|(name, rules)| !self.shows(name, rules))
    }
}

/// Fills in what comes together in those of `objects` that are cluster roles.
pub(crate) fn fill(objects: &mut [Value]) {
    let is_role = |it: &Value| it["kind"] == "ClusterRole";
    let roles: Roles<'_> = objects
        .iter()
        .filter(|it| is_role(it))
        .map(|it| (object::name(it), ClusterRole::deserialize(it).unwrap_or_default()))
        .collect();
    let gathered: Vec<(String, Vec<Rule>)> =
        roles.unsettled().map(|(name, rules)| (name.to_owned(), rules)).collect();
    for (name, rules) in gathered {
        let named = objects.iter_mut().find(|it| is_role(it) && object::name(it) == name);
        if let Some(it) = named {
            it["rules"] = json!(rules);
        }
    }
}

pub(crate) fn holds_cluster_roles(served: &Served) -> bool {
    served.resource.group == GROUP && served.resource.name == RESOURCE
}

/// After a cluster role of `tenant` changed: shows what came of it.
pub(crate) async fn changed(server: &Server, tenant: &TenantName) {
    if let Err(error) = settle(server, tenant).await {
        tracing::warn!(%tenant, %error, "aggregated cluster roles could not be written yet");
    }
}

/// As [`changed`], beside whoever found it to be due.
pub(crate) fn begin(server: &Server, tenant: &TenantName) {
    let Some(server) = server.myself() else { return };
    let tenant = tenant.clone();
    server.clone().tasks.spawn(async move {
        let shutdown = server.shutdown.clone();
        shutdown.run_until_cancelled(changed(&server, &tenant)).await;
    });
}

/// Writes into the cluster roles of `tenant` what comes together in them. Any server may, and
/// several at once: each write is guarded.
async fn settle(server: &Server, tenant: &TenantName) -> Result<()> {
    let Some(served) = server.registry.any_version(GROUP, RESOURCE) else { return Ok(()) };
    let store = served.own(&server.partitions, tenant);
    let prefix = format!("{tenant}/");
    for _ in 0..ROUNDS {
        let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
        let mut is_done = true;
        for (name, rules) in Roles::read(&snapshot, &prefix).unsettled() {
            let key: Arc<str> = format!("{prefix}/{name}").into();
            let Some(entry) = snapshot.get(&key) else { continue };
            is_done &= write(served, &*store, key, entry, &rules).await?;
        }
        if is_done {
            return Ok(());
        }
    }
    Err(ApiError::internal("cluster roles change faster than they can be put together"))
}

/// Applies `rules` to a cluster role. False if somebody else was faster.
async fn write(
    served: &Served,
    store: &dyn Store,
    key: Arc<str>,
    entry: &Entry,
    rules: &[Rule],
) -> Result<bool> {
    let old = Stored::parse(&entry.value.bytes()).map_err(ApiError::internal)?;
    let config = json!({
        "apiVersion": old.object["apiVersion"], "kind": old.object["kind"],
        "metadata": {"name": object::name(&old.object)},
        "rules": rules,
    });
    let writer = Writer::of_server(served, "").named(MANAGER);
    let applied = writer.applied(writer.versions(), &old, &config, true)?;
    let applied = applied.map_err(|_| ApiError::internal("cluster roles have one version"))?;
    let value = object::encode_with(&applied.value, applied.managed.as_deref());
    let change = Change::Put(value.into());
    let write = Write::durable(served.collection.clone(), key, Expect::At(entry.modified), change);
    match store.write(write).await {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::registry;

    fn role(it: Value) -> ClusterRole {
        ClusterRole::deserialize(it).unwrap()
    }

    fn rule(resource: &str) -> Value {
        json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]})
    }

    /// A role of its own, with a label for those who gather.
    fn leaf(label: &str, resources: &[&str]) -> ClusterRole {
        let rules: Vec<Value> = resources.iter().copied().map(rule).collect();
        role(json!({"metadata": {"labels": {"to": label}}, "rules": rules}))
    }

    fn gathers(label: &str, selectors: &Value) -> ClusterRole {
        role(json!({
            "metadata": {"labels": {"to": label}},
            "aggregationRule": {"clusterRoleSelectors": selectors},
            "rules": null,
        }))
    }

    fn resources(roles: &Roles<'_>, name: &str) -> Vec<String> {
        roles.gather(name).into_iter().flat_map(|it| it.resources).collect()
    }

    fn to(label: &str) -> Value {
        json!({"matchLabels": {"to": label}})
    }

    #[test]
    fn rules_come_in_the_order_of_selectors_then_of_names_each_once() {
        let roles = Roles::from_iter([
            ("all", gathers("", &json!([to("b"), to("a")]))),
            ("z", leaf("b", &["pods", "nodes"])),
            ("c", leaf("a", &["secrets"])),
            ("b", leaf("b", &["services", "pods"])),
            ("other", leaf("c", &["leases"])),
        ]);
        assert_eq!(resources(&roles, "all"), ["services", "pods", "nodes", "secrets"]);
        assert_eq!(resources(&roles, "z"), ["pods", "nodes"]);
        assert_eq!(resources(&roles, "absent"), Vec::<String>::new());
        assert!(!roles.shows("all", &roles.gather("all")));
        assert!(roles.shows("z", &roles.gather("z")));
    }

    #[test]
    fn what_is_put_together_is_passed_on_and_circles_end() {
        let roles = Roles::from_iter([
            ("admin", gathers("", &json!([to("admin")]))),
            ("edit", gathers("admin", &json!([to("edit")]))),
            ("view", gathers("edit", &json!([to("view"), to("admin")]))),
            ("1", leaf("view", &["pods"])),
            ("2", leaf("edit", &["secrets"])),
        ]);
        // Of edit's two, "2" comes before "view".
        assert_eq!(resources(&roles, "admin"), ["secrets", "pods"]);
        assert_eq!(resources(&roles, "view"), ["pods", "secrets"]);
        // As deep as a tenant likes.
        let names: Vec<String> = (0..=1000).map(|it| it.to_string()).collect();
        let chain = names.windows(2).map(|it| (&*it[0], gathers(&it[0], &json!([to(&it[1])]))));
        let roles: Roles<'_> = chain.chain([("end", leaf("1000", &["pods"]))]).collect();
        assert_eq!(resources(&roles, "0"), ["pods"]);
    }

    #[test]
    fn selectors_are_those_of_everything_else() {
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "to", "operator": operator, "values": values}]});
        let of = |selector: Value| {
            let roles = Roles::from_iter([
                ("all", gathers("all", &json!([selector]))),
                ("a", leaf("a", &["pods"])),
                ("b", leaf("b", &["nodes"])),
            ]);
            resources(&roles, "all")
        };
        assert_eq!(of(expression("In", json!(["b"]))), ["nodes"]);
        assert_eq!(of(expression("NotIn", json!(["b"]))), ["pods"]);
        // None is any, as everywhere.
        assert_eq!(of(json!({})), ["pods", "nodes"]);
        assert_eq!(of(expression("Near", json!([]))), Vec::<String>::new());
    }

    #[test]
    fn what_is_filled_in_is_settled() {
        let meta = |name: &str, label: &str| json!({"name": name, "labels": {"to": label}});
        let mut all = [
            json!({"kind": "ClusterRole", "metadata": meta("view", ""), "rules": [],
                   "aggregationRule": {"clusterRoleSelectors": [to("view")]}}),
            json!({"kind": "Role", "metadata": meta("x", "view"), "rules": [rule("secrets")]}),
            json!({"kind": "ClusterRole", "metadata": meta("x", "view"), "rules": [rule("pods")]}),
        ];
        fill(&mut all);
        assert_eq!(all[0]["rules"], json!([rule("pods")]));
        assert_eq!(all[1]["rules"], json!([rule("secrets")]));
    }

    #[tokio::test]
    async fn what_a_crash_left_undone_is_done_once_somebody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::alone(dir.path()).await.unwrap();
        let acme = TenantName::parse("acme").unwrap();
        let served = server.registry.any_version(GROUP, RESOURCE).unwrap();
        let store = served.own(&server.partitions, &acme);
        let role = |name: &str, more: Value| {
            let mut it = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": name, "uid": name, "labels": {"to": name}},
            });
            it.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            it
        };
        for it in [
            role("gathers", json!({"aggregationRule": {"clusterRoleSelectors": [to("pods")]}})),
            role("pods", json!({"rules": [rule("pods")]})),
        ] {
            let key = registry::key(&acme, "", object::name(&it));
            let put = Change::Put(object::encode(&it).into());
            let collection = served.collection.clone();
            store.write(Write::durable(collection, key, Expect::Absent, put)).await.unwrap();
        }
        let policy = server.policy_of(&acme).await.unwrap();
        assert_eq!(policy.role("ClusterRole", "", "gathers").unwrap().len(), 1);
        let shows = async || loop {
            let it = server.find(&acme, GROUP, RESOURCE, "", "gathers").await.unwrap().unwrap();
            if it["rules"] == json!([rule("pods")]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        tokio::time::timeout(Duration::from_secs(60), shows()).await.unwrap();
        let policy = server.policy_of(&acme).await.unwrap();
        assert!(!policy.is_to_be_settled(), "there is nothing left to do");
    }
}
