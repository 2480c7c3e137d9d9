//! Keeps what resource quotas say is used.
//!
//! The API server charges a quota for what it lets in; what is freed is found here, by counting
//! again: when something that a quota counts goes, when a quota is new or asks for something
//! else, and now and then. A count is written only over the quota that it was begun with, so that
//! what is charged meanwhile is never lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use insula_api::{
    names::TenantName,
    pods::add,
    quantity::Quantity,
    quota::{
        amounts::Amounts,
        scopes,
        usage::{Kind, Of, is_matching, usage},
    },
};
use insula_client::{
    Client, Informer, ListOptions, Object, ObjectKey, ResourceRef, Tenanted, WriteOptions,
};
use k8s_openapi::{
    api::core::v1::{Pod, ResourceQuota, ResourceQuotaStatus},
    apimachinery::pkg::{api::resource::Quantity as Text, apis::meta::v1::ObjectMeta},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    controller::{Controller, Next, ReconcileError, Rest},
    everything::Everything,
    informers::Informers,
    queue::Queue,
};

/// How often is counted although nothing happened, as upstream does it.
const RESYNC: Duration = Duration::from_secs(300);
/// What goes often goes with others: one count for all of them.
const TOGETHER: Duration = Duration::from_millis(200);
/// After less was found than was charged: something may have been charged for and not yet be
/// there.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// An object with all that it says, of whatever kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Whole {
    metadata: ObjectMeta,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Object for Whole {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Counts what is used. Keys are quotas.
#[derive(Debug)]
pub(crate) struct Quotas {
    client: Client,
    everything: Everything,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
}

type Hard = BTreeMap<String, Text>;

fn hard(quota: &ResourceQuota) -> Option<&Hard> {
    quota.spec.as_ref()?.hard.as_ref()
}

/// Whether a quota is about objects of a resource.
fn is_about(quota: &ResourceQuota, of: Of<'_>) -> bool {
    hard(quota).is_some_and(|it| it.keys().any(|name| is_matching(of, name)))
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Asks for a count by the quotas of a namespace that are about a resource.
fn ask(quotas: &Informer<ResourceQuota>, queue: &Queue<ObjectKey>, key: &ObjectKey, of: Of<'_>) {
    if key.namespace.is_empty() {
        return;
    }
    for quota in quotas.in_namespace(&key.tenant, &key.namespace) {
        if is_about(&quota.object, of) {
            queue.add_after(quota.key(), TOGETHER);
        }
    }
}

impl Quotas {
    pub(crate) fn new(client: Client, informers: &Informers, everything: Everything) -> Self {
        let (quotas, pods) = (informers.quotas.clone(), informers.pods.informer.clone());
        Self { client, everything, quotas, pods }
    }

    /// What the objects of a namespace use of a quota's resources.
    async fn count(
        &self,
        tenant: &TenantName,
        namespace: &str,
        quota: &Value,
        names: &BTreeSet<&str>,
    ) -> Result<Amounts, ReconcileError> {
        let of: BTreeSet<(&str, &str)> = names
            .iter()
            .filter_map(|name| Of::named(name))
            .map(|of| (of.group, of.resource))
            .collect();
        let mut used = Amounts::new();
        for (group, resource) in of {
            let of = Of { group, resource };
            let found = self.everything.of_name(tenant, group, resource).await?;
            // Of what nobody serves there is no count, as there is none that could be charged.
            let Some(served) = found.filter(|it| it.namespaced) else { continue };
            let asked = names.iter().copied().filter(|name| is_matching(of, name));
            let mut sum: Amounts = asked.map(|name| (name.to_owned(), Quantity::ZERO)).collect();
            for it in self.objects(tenant, namespace, served).await? {
                if scopes::match_all(of.kind(), quota, &it) {
                    let mut more = usage(of, &it);
                    more.retain(|name, _| sum.contains_key(name));
                    add(&mut sum, &more);
                }
            }
            used.extend(sum);
        }
        Ok(used)
    }

    async fn objects(
        &self,
        tenant: &TenantName,
        namespace: &str,
        resource: ResourceRef,
    ) -> Result<Vec<Value>, ReconcileError> {
        let of = Of { group: &resource.group, resource: &resource.plural };
        let scope = self.client.tenant(tenant);
        if of.kind() == Kind::Others {
            // They are counted, not looked into.
            let api =
                scope.resource::<insula_client::PartialObject>(resource.clone(), Some(namespace));
            let found = api.list_all(&ListOptions::default()).await?;
            return Ok(vec![Value::Object(Map::new()); found.len()]);
        }
        let api = scope.resource::<Whole>(resource.clone(), Some(namespace));
        let found = api.list_all(&ListOptions::default()).await?;
        let values = found.into_iter().map(|it| serde_json::to_value(it.object));
        values.collect::<Result<_, _>>().map_err(|error| {
            ReconcileError::Incomplete(format!("{resource} cannot be counted: {error}"))
        })
    }
}

impl Controller for Quotas {
    const NAME: &'static str = "resourcequota-controller";
    const REST: Rest = Rest::LOOKING;
    type Key = ObjectKey;

    fn watch(self: &Arc<Self>, queue: &Queue<ObjectKey>) {
        let keys = queue.clone();
        self.quotas.on_change(move |change| {
            let Some(new) = change.new else { return };
            let is_changed = change.old.is_none_or(|old| old.spec != new.spec);
            let known = new.status.as_ref().and_then(|it| it.hard.as_ref());
            if is_changed || known != hard(&new.object) {
                keys.add(change.key.clone());
            }
        });
        let (quotas, keys) = (self.quotas.clone(), queue.clone());
        self.everything.on_change(move |resource, change| {
            let of = Of { group: &resource.group, resource: &resource.plural };
            // These may need less than before and still be there.
            let may_shrink = matches!(of.kind(), Kind::Services | Kind::Claims);
            if change.new.is_none() || (change.old.is_some() && may_shrink) {
                ask(&quotas, &keys, change.key, of);
            }
        });
        let (quotas, keys) = (self.quotas.clone(), queue.clone());
        self.pods.on_change(move |change| {
            let ended =
                |it: Option<&Arc<Tenanted<Pod>>>| it.is_some_and(|it| has_ended(&it.object));
            if ended(change.new) && !ended(change.old) {
                ask(&quotas, &keys, change.key, Of { group: "", resource: "pods" });
            }
        });
    }

    async fn synced(&self) -> bool {
        self.quotas.synced().await && self.pods.synced().await
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, ReconcileError> {
        let api = self.client.tenant(&key.tenant).namespaced::<ResourceQuota>(&key.namespace);
        let Some(mut quota) = api.get_opt(&key.name).await? else {
            return Ok(Next::WhenChanged);
        };
        if quota.is_deleting() {
            return Ok(Next::WhenChanged);
        }
        let wanted = hard(&quota.object).cloned().unwrap_or_default();
        let shown = serde_json::to_value(&quota.object).map_err(|error| {
            ReconcileError::Incomplete(format!("{key} cannot be read: {error}"))
        })?;
        let names: BTreeSet<&str> = wanted.keys().map(String::as_str).collect();
        let used = self.count(&key.tenant, &key.namespace, &shown, &names).await?;
        let used: Hard =
            used.iter().map(|(name, it)| (name.clone(), Text(it.to_string()))).collect();
        let old = quota.object.status.take().unwrap_or_default();
        let new = ResourceQuotaStatus { hard: Some(wanted), used: Some(used) };
        if old.hard.unwrap_or_default() == *new.hard.as_ref().unwrap_or(&Hard::new())
            && old.used.as_ref() == new.used.as_ref()
        {
            return Ok(Next::After(RESYNC));
        }
        let is_less = is_any_less(new.used.as_ref(), old.used.as_ref());
        quota.object.status = Some(new);
        api.replace(&quota.object, Some("status"), &WriteOptions::default()).await?;
        Ok(Next::After(if is_less { LOOK_AGAIN } else { RESYNC }))
    }
}

/// Whether there is less of something than there was.
fn is_any_less(new: Option<&Hard>, old: Option<&Hard>) -> bool {
    let amount = |text: &Text| Quantity::parse(&text.0).ok();
    let (Some(new), Some(old)) = (new, old) else { return false };
    old.iter().any(|(name, before)| {
        let now = new.get(name).and_then(amount);
        matches!((now, amount(before)), (Some(now), Some(before)) if now < before)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(rows: &[(&str, &str)]) -> Hard {
        rows.iter().map(|(name, text)| ((*name).to_owned(), Text((*text).to_owned()))).collect()
    }

    #[test]
    fn a_quota_is_about_what_it_limits() {
        let quota = |rows: &[(&str, &str)]| ResourceQuota {
            spec: Some(k8s_openapi::api::core::v1::ResourceQuotaSpec {
                hard: Some(amounts(rows)),
                ..Default::default()
            }),
            ..ResourceQuota::default()
        };
        let of = |group, resource| Of { group, resource };
        let it = quota(&[("requests.cpu", "1"), ("count/widgets.example.com", "2")]);
        assert!(is_about(&it, of("", "pods")));
        assert!(is_about(&it, of("example.com", "widgets")));
        assert!(!is_about(&it, of("", "secrets")) && !is_about(&it, of("", "widgets")));
        assert!(!is_about(&ResourceQuota::default(), of("", "pods")));
    }

    #[test]
    fn less_is_told_by_amount() {
        let old = amounts(&[("cpu", "1"), ("pods", "2")]);
        let less = |rows: &[(&str, &str)]| is_any_less(Some(&amounts(rows)), Some(&old));
        assert!(less(&[("cpu", "900m"), ("pods", "2")]));
        assert!(!less(&[("cpu", "1000m"), ("pods", "3")]));
        assert!(!is_any_less(Some(&old), None));
    }
}
