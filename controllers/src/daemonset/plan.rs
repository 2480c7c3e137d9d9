//! Which pods of a DaemonSet to make and to delete.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetSpec},
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::eligible::{Eligible, eligible, node_of};
use crate::{
    objects::{is_pod_available, pod_phase, share_of},
    revisions::HASH,
};

pub(super) type PodRef = Arc<Tenanted<Pod>>;

/// Most pods made or deleted in one pass.
const BURST: usize = 250;

/// A set, its pods, and the nodes.
#[derive(Debug)]
pub(super) struct Observed<'a> {
    pub(super) set: &'a Tenanted<DaemonSet>,
    pub(super) spec: &'a DaemonSetSpec,
    /// By the nodes that they are on, or meant for.
    pub(super) pods: BTreeMap<String, Vec<PodRef>>,
    pub(super) nodes: BTreeMap<String, Eligible>,
    /// The hash of the present template.
    pub(super) hash: String,
    pub(super) now: Timestamp,
}

/// One step.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// For nodes of these names.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<PodRef>,
    /// Pods among those that have ended, to be told of.
    pub(super) ended: Vec<PodRef>,
}

impl<'a> Observed<'a> {
    pub(super) fn new(
        set: &'a Tenanted<DaemonSet>,
        spec: &'a DaemonSetSpec,
        pods: Vec<PodRef>,
        nodes: &[Arc<Tenanted<Node>>],
        hash: &str,
        now: Timestamp,
    ) -> Self {
        let mut by_node: BTreeMap<String, Vec<PodRef>> = BTreeMap::new();
        for pod in pods {
            let node = pod.spec.as_ref().and_then(node_of).unwrap_or_default().to_owned();
            by_node.entry(node).or_default().push(pod);
        }
        let judged =
            |node: &Arc<Tenanted<Node>>| (node.name().to_owned(), eligible(&spec.template, node));
        let nodes = nodes.iter().map(judged).collect();
        Self { set, spec, pods: by_node, nodes, hash: hash.to_owned(), now }
    }

    pub(super) fn is_new(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(HASH)) == Some(&self.hash)
    }

    pub(super) fn is_available(&self, pod: &Tenanted<Pod>) -> bool {
        let seconds = self.spec.min_ready_seconds.unwrap_or(0);
        !pod.is_deleting() && is_pod_available(pod, seconds, self.now)
    }

    /// Nodes that would keep a pod which has failed.
    pub(super) fn failed(&self) -> impl Iterator<Item = &str> {
        let staying = self.nodes.iter().filter(|(_, judged)| judged.stays);
        let has_failed = |node: &String| {
            let mut pods = self.pods.get(node).into_iter().flatten();
            pods.any(|pod| !pod.is_deleting() && pod_phase(pod) == "Failed")
        };
        staying.map(|(node, _)| node).filter(move |node| has_failed(node)).map(String::as_str)
    }

    fn rolls(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref().and_then(|it| it.type_.as_deref());
        strategy != Some("OnDelete")
    }

    /// How many more pods there may be, and how many fewer, while the set rolls.
    fn limits(&self) -> (usize, usize) {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|it| it.rolling_update.as_ref());
        let n_nodes = self.nodes.values().filter(|it| it.runs).count();
        let n_nodes = i32::try_from(n_nodes).unwrap_or(i32::MAX);
        let read = |it: Option<&IntOrString>| {
            let share = it.map_or(0, |it| share_of(it, n_nodes, true));
            usize::try_from(share).unwrap_or_default()
        };
        let surge = read(rolling.and_then(|it| it.max_surge.as_ref()));
        let given = rolling.and_then(|it| it.max_unavailable.as_ref());
        let missing = if given.is_none() { 1 } else { read(given) };
        // Something has to give.
        (surge, if surge == 0 { missing.max(1) } else { missing })
    }
}

/// Decides. On nodes that are `held`, pods that have failed stay for now.
pub(super) fn plan(it: &Observed<'_>, held: &BTreeSet<String>) -> Plan {
    let mut plan = Plan::default();
    if it.set.is_deleting() {
        return plan;
    }
    let (surge, missing) = it.limits();
    for (node, judged) in &it.nodes {
        let pods = it.pods.get(node).map_or(&[][..], Vec::as_slice);
        let judged = (*judged, held.contains(node));
        on_node(it, &mut plan, node, judged, pods, surge);
    }
    // Nodes that are gone: the collector of pods takes care of those that were on them; those
    // that wait for one wait in vain.
    for pod in it.pods.iter().filter(|(node, _)| !it.nodes.contains_key(*node)).flat_map(|it| it.1)
    {
        let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if !pod.is_deleting() && !has_node {
            plan.delete.push(pod.clone());
        }
    }
    if it.rolls() {
        roll(it, &mut plan, surge, missing);
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan
}

fn on_node(
    it: &Observed<'_>,
    plan: &mut Plan,
    node: &str,
    (judged, is_held): (Eligible, bool),
    pods: &[PodRef],
    surge: usize,
) {
    if !judged.stays {
        plan.delete.extend(pods.iter().filter(|pod| !pod.is_deleting()).cloned());
        return;
    }
    let mut alive = Vec::new();
    let mut is_emptying = false;
    for pod in pods {
        if pod.is_deleting() || is_held && pod_phase(pod) == "Failed" {
            is_emptying = true;
        } else if matches!(pod_phase(pod), "Failed" | "Succeeded") {
            plan.delete.push(pod.clone());
            plan.ended.push(pod.clone());
            is_emptying = true;
        } else {
            alive.push(pod.clone());
        }
    }
    if alive.is_empty() {
        if judged.runs && !is_emptying {
            plan.create.push(node.to_owned());
        }
        return;
    }
    // The oldest stays; beside it, where there may be more, one of the present template.
    alive.sort_by(|a, b| {
        let key = |pod: &PodRef| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created, pod.uid().to_owned())
        };
        key(a).cmp(&key(b))
    });
    let (new, old): (Vec<_>, Vec<_>) = alive.into_iter().partition(|pod| it.is_new(pod));
    let keeps_both = surge != 0 && !new.is_empty() && !old.is_empty() && it.rolls();
    let surplus = match keeps_both {
        true => new.into_iter().skip(1).chain(old.into_iter().skip(1)).collect::<Vec<_>>(),
        false if new.is_empty() || old.is_empty() => {
            new.into_iter().chain(old).skip(1).collect::<Vec<_>>()
        }
        false => new.into_iter().skip(1).chain(old).collect(),
    };
    plan.delete.extend(surplus);
}

/// Replaces pods of older templates, as many at once as may be.
fn roll(it: &Observed<'_>, plan: &mut Plan, surge: usize, missing: usize) {
    let (mut n_missing, mut n_surging) = (0, 0);
    let (mut idle, mut serving, mut unpaired) = (Vec::new(), Vec::new(), Vec::new());
    for (node, _) in it.nodes.iter().filter(|(_, judged)| judged.runs) {
        let pods = it.pods.get(node).map_or(&[][..], Vec::as_slice);
        let is_alive =
            |pod: &&PodRef| !pod.is_deleting() && !matches!(pod_phase(pod), "Failed" | "Succeeded");
        let new = pods.iter().filter(is_alive).find(|pod| it.is_new(pod));
        let old = pods.iter().filter(is_alive).find(|pod| !it.is_new(pod));
        match (new, old) {
            (Some(new), Some(old)) => {
                n_surging += 1;
                if it.is_available(new) || !it.is_available(old) {
                    // The new one has taken over, or there is nothing to take over.
                    plan.delete.push(old.clone());
                }
            }
            (None, Some(old)) if it.is_available(old) => {
                serving.push(old.clone());
                unpaired.push(node.clone());
            }
            (None, Some(old)) => {
                n_missing += 1;
                idle.push(old.clone());
            }
            (Some(new), None) => n_missing += usize::from(!it.is_available(new)),
            (None, None) => n_missing += 1,
        }
    }
    // What serves nobody can go at once.
    plan.delete.extend(idle);
    if surge == 0 {
        plan.delete.extend(serving.into_iter().take(missing.saturating_sub(n_missing)));
    } else {
        plan.create.extend(unpaired.into_iter().take(surge.saturating_sub(n_surging)));
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    /// Plans for `pods`, each `NODE:HASH:STATE`, on nodes `a` to `d`; `d` does not take any.
    #[track_caller]
    fn check(strategy: Value, pods: &[&str], created: &[&str], deleted: &[&str]) {
        check_held(strategy, &[], pods, created, deleted);
    }

    /// As [`check`], while failed pods stay on nodes that are `held`.
    #[track_caller]
    fn check_held(
        strategy: Value,
        held: &[&str],
        pods: &[&str],
        created: &[&str],
        deleted: &[&str],
    ) {
        let tenant = TenantName::parse("acme").unwrap();
        let set = json!({
            "metadata": {"name": "s", "uid": "u"},
            "spec": {
                "selector": {}, "template": {"spec": {"containers": []}},
                "updateStrategy": strategy,
            },
        });
        let object: DaemonSet = serde_json::from_value(set).unwrap();
        let set = Tenanted { tenant: tenant.clone(), object };
        let pod = |what: &&str| {
            let parts: Vec<&str> = what.split(':').collect();
            let phase = match parts[2] {
                "failed" => "Failed",
                _ => "Running",
            };
            let ready = if parts[2] == "ready" { "True" } else { "False" };
            let mut it = json!({
                "metadata": {"name": what, "uid": what, "labels": {"controller-revision-hash": parts[1]}},
                "spec": {"nodeName": parts[0], "containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
            });
            if parts[2] == "leaving" {
                it["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
            }
            let object = serde_json::from_value(it).unwrap();
            Arc::new(Tenanted { tenant: tenant.clone(), object })
        };
        let node = |name: &str| {
            let taints = json!([{"key": "k", "effect": "NoExecute"}]);
            let spec = if name == "d" { json!({"taints": taints}) } else { json!({}) };
            let it = json!({"metadata": {"name": name}, "spec": spec});
            let object = serde_json::from_value(it).unwrap();
            Arc::new(Tenanted { tenant: TenantName::system(), object })
        };
        let nodes: Vec<_> = ["a", "b", "c", "d"].into_iter().map(node).collect();
        let pods = pods.iter().map(pod).collect();
        let spec = set.spec.as_ref().unwrap();
        let it = Observed::new(&set, spec, pods, &nodes, "2", Timestamp::UNIX_EPOCH);
        let held = held.iter().map(|it| (*it).to_owned()).collect();
        let plan = plan(&it, &held);
        let mut names: Vec<_> = plan.delete.iter().map(|pod| pod.name()).collect();
        names.sort_unstable();
        assert_eq!(
            (plan.create, names),
            (created.iter().map(|it| (*it).into()).collect(), deleted.to_vec())
        );
    }

    #[test]
    fn one_on_each_node_that_takes_it() {
        check(json!({}), &[], &["a", "b", "c"], &[]);
        check(json!({}), &["a:2:ready", "d:2:ready"], &["b", "c"], &["d:2:ready"]);
        check(json!({}), &["a:2:ready", "b:2:leaving", "c:2:failed"], &[], &["c:2:failed"]);
        check(json!({}), &["a:2:ready", "a:2:x", "b:2:x", "c:2:x"], &[], &["a:2:x"]);
    }

    #[test]
    fn what_failed_may_have_to_stay_for_a_while() {
        let pods = ["a:2:failed", "b:2:failed", "c:2:ready", "d:2:failed"];
        check(json!({}), &pods, &[], &["a:2:failed", "b:2:failed", "d:2:failed"]);
        check_held(json!({}), &["a", "d"], &pods, &[], &["b:2:failed", "d:2:failed"]);
    }

    #[test]
    fn rolled_by_deleting_a_few() {
        let all = ["a:1:ready", "b:1:ready", "c:1:ready"];
        check(json!({}), &all, &[], &["a:1:ready"]);
        check(json!({}), &["a:2:pending", "b:1:ready", "c:1:ready"], &[], &[]);
        check(json!({}), &["a:2:ready", "b:1:ready", "c:1:ready"], &[], &["b:1:ready"]);
        check(json!({}), &["a:1:pending", "b:1:ready", "c:2:ready"], &[], &["a:1:pending"]);
        let half = json!({"rollingUpdate": {"maxUnavailable": "50%"}});
        check(half, &all, &[], &["a:1:ready", "b:1:ready"]);
        check(json!({"type": "OnDelete"}), &all, &[], &[]);
    }

    #[test]
    fn rolled_by_adding_a_few() {
        let surge = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        check(surge.clone(), &["a:1:ready", "b:1:ready", "c:1:ready"], &["a"], &[]);
        let begun = ["a:1:ready", "a:2:pending", "b:1:ready", "c:1:ready"];
        check(surge.clone(), &begun, &[], &[]);
        let over = ["a:1:ready", "a:2:ready", "b:1:ready", "c:1:ready"];
        check(surge, &over, &[], &["a:1:ready"]);
    }
}
