//! What a StatefulSet does next: one pod at a time, in order, unless it may all at once.

use std::{collections::BTreeMap, sync::Arc};

use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec},
    core::v1::Pod,
};

use super::pod::{ordinal, revision_of};
use crate::objects::{is_pod_available, is_pod_finished, is_pod_ready, pod_phase, share_of};

type PodRef = Arc<Tenanted<Pod>>;

/// A set and its pods.
#[derive(Debug)]
pub(super) struct Observed<'a> {
    pub(super) set: &'a Tenanted<StatefulSet>,
    pub(super) spec: &'a StatefulSetSpec,
    /// By their ordinals.
    pub(super) pods: BTreeMap<i32, PodRef>,
    /// The names of the revisions that the set comes from and goes to.
    pub(super) current: String,
    pub(super) update: String,
    pub(super) now: Timestamp,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Create { ordinal: i32, is_update: bool },
    Delete { ordinal: i32 },
}

impl<'a> Observed<'a> {
    pub(super) fn new(
        set: &'a Tenanted<StatefulSet>,
        spec: &'a StatefulSetSpec,
        pods: Vec<PodRef>,
        (current, update): (&str, &str),
        now: Timestamp,
    ) -> Self {
        let pods = pods.into_iter().filter_map(|it| Some((ordinal(set.name(), it.name())?, it)));
        let (current, update) = (current.to_owned(), update.to_owned());
        Self { set, spec, pods: pods.collect(), current, update, now }
    }

    fn first(&self) -> i32 {
        self.spec.ordinals.as_ref().and_then(|it| it.start).unwrap_or(0)
    }

    pub(super) fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1).max(0)
    }

    /// The ordinals that there are to be.
    pub(super) fn wanted(&self) -> std::ops::Range<i32> {
        self.first()..self.first().saturating_add(self.replicas())
    }

    fn is_parallel(&self) -> bool {
        self.spec.pod_management_policy.as_deref() == Some("Parallel")
    }

    fn rolls(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref().and_then(|it| it.type_.as_deref());
        strategy != Some("OnDelete")
    }

    /// Pods below this ordinal keep the revision that they have.
    fn partition(&self) -> Option<i32> {
        let strategy = self.spec.update_strategy.as_ref()?.rolling_update.as_ref()?;
        Some(self.first().saturating_add(strategy.partition.unwrap_or(0)))
    }

    fn is_available(&self, pod: &Tenanted<Pod>) -> bool {
        let seconds = self.spec.min_ready_seconds.unwrap_or(0);
        !pod.is_deleting()
            && pod_phase(pod) == "Running"
            && is_pod_ready(pod)
            && is_pod_available(pod, seconds, self.now)
    }

    /// Whether a pod that is missing is made of the newest revision.
    fn is_made_new(&self, ordinal: i32) -> bool {
        if !self.rolls() {
            return true;
        }
        match self.partition() {
            Some(partition) => partition <= ordinal,
            None => {
                let n_current = self.set.status.as_ref().and_then(|it| it.current_replicas);
                self.first().saturating_add(n_current.unwrap_or(0)) <= ordinal
            }
        }
    }

    /// How many pods may be missing or unavailable while the set rolls.
    fn max_unavailable(&self) -> usize {
        let strategy = self.spec.update_strategy.as_ref();
        let most = strategy
            .and_then(|it| it.rolling_update.as_ref())
            .and_then(|it| it.max_unavailable.as_ref());
        let most = most.map_or(1, |it| share_of(it, self.replicas(), true));
        usize::try_from(most.max(1)).unwrap_or(1)
    }
}

/// Decides. In order, the first step that has to be waited for is the last.
pub(super) fn plan(it: &Observed<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    if it.set.is_deleting() {
        return actions;
    }
    let in_order = !it.is_parallel();
    for ordinal in it.wanted() {
        match it.pods.get(&ordinal) {
            None => {
                actions.push(Action::Create { ordinal, is_update: it.is_made_new(ordinal) });
            }
            Some(pod) if pod.is_deleting() => (),
            Some(pod) if is_pod_finished(pod) => {
                actions.push(Action::Delete { ordinal });
            }
            Some(pod) if it.is_available(pod) => continue,
            Some(_) => (),
        }
        if in_order {
            return actions;
        }
    }
    let wanted = it.wanted();
    let condemned: Vec<_> = it.pods.iter().rev().filter(|(it, _)| !wanted.contains(it)).collect();
    // In order, one that is not well may go before those above it are, if it is the first such.
    let is_well = |pod: &PodRef| it.is_available(pod);
    let first_ill = condemned.iter().rev().find(|(_, pod)| !is_well(pod)).map(|(it, _)| **it);
    let mut is_shrinking = false;
    for (ordinal, pod) in condemned {
        is_shrinking = true;
        if !pod.is_deleting() {
            if in_order && !is_well(pod) && first_ill != Some(*ordinal) {
                return actions;
            }
            actions.push(Action::Delete { ordinal: *ordinal });
        }
        if in_order {
            return actions;
        }
    }
    if it.rolls() && !is_shrinking && actions.is_empty() {
        roll(it, &mut actions);
    }
    actions
}

/// Deletes pods of older revisions, from the last on, so that they are made anew.
fn roll(it: &Observed<'_>, actions: &mut Vec<Action>) {
    let least = it.partition().unwrap_or_else(|| it.first());
    let is_ill = |ordinal: &i32| it.pods.get(ordinal).is_none_or(|pod| !it.is_available(pod));
    let mut n_ill = it.wanted().filter(is_ill).count();
    let most = it.max_unavailable();
    for ordinal in it.wanted().rev().take_while(|ordinal| least <= *ordinal) {
        let Some(pod) = it.pods.get(&ordinal) else { continue };
        if revision_of(pod) == it.update || pod.is_deleting() {
            // One at a time: what was made anew must be well before the next goes.
            if most == 1 && !it.is_available(pod) {
                return;
            }
            continue;
        }
        let is_ill = !it.is_available(pod);
        if !is_ill && most <= n_ill {
            return;
        }
        n_ill += usize::from(!is_ill);
        actions.push(Action::Delete { ordinal });
        if most == 1 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> Tenanted<StatefulSet> {
        let mut spec = spec;
        spec["selector"] = json!({});
        spec["template"] = json!({"spec": {"containers": []}});
        let it = json!({"metadata": {"name": "w", "namespace": "n", "uid": "u"}, "spec": spec});
        let tenant = TenantName::parse("acme").unwrap();
        Tenanted { tenant, object: serde_json::from_value(it).unwrap() }
    }

    /// A pod, `ORDINAL:REVISION:STATE`, the state one of `ready`, `pending`, `failed`, `leaving`.
    fn pod(what: &str) -> PodRef {
        let mut parts = what.split(':');
        let mut next = || parts.next().unwrap();
        let (ordinal, revision, state) = (next(), next(), next());
        let mut it = json!({
            "metadata": {"name": format!("w-{ordinal}"), "labels": {"controller-revision-hash": revision}},
            "status": {
                "phase": match state { "pending" => "Pending", "failed" => "Failed", _ => "Running" },
                "conditions": [{"type": "Ready", "status": if state == "ready" { "True" } else { "False" }}],
            },
        });
        if state == "leaving" {
            it["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        }
        let tenant = TenantName::parse("acme").unwrap();
        Arc::new(Tenanted { tenant, object: serde_json::from_value(it).unwrap() })
    }

    #[track_caller]
    fn check(spec: Value, pods: &[&str], expected: &str) {
        let set = set(spec);
        let pods = pods.iter().map(|it| pod(it)).collect();
        let spec = set.spec.as_ref().unwrap();
        let it = Observed::new(&set, spec, pods, ("a", "b"), Timestamp::UNIX_EPOCH);
        let shown = plan(&it).into_iter().map(|it| match it {
            Action::Create { ordinal, is_update } => {
                format!("+{ordinal}{}", if is_update { "b" } else { "a" })
            }
            Action::Delete { ordinal } => format!("-{ordinal}"),
        });
        assert_eq!(shown.collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn one_after_the_other() {
        let spec = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 0}}});
        check(spec.clone(), &[], "+0b");
        check(spec.clone(), &["0:b:pending"], "");
        check(spec.clone(), &["0:b:ready"], "+1b");
        check(spec.clone(), &["0:b:ready", "2:b:ready"], "+1b");
        check(spec.clone(), &["0:b:leaving", "1:b:ready"], "");
        check(spec.clone(), &["0:b:failed", "1:b:ready"], "-0");
        check(spec, &["0:b:ready", "1:b:ready", "2:b:ready"], "");
    }

    #[test]
    fn all_at_once() {
        let spec = json!({
            "replicas": 3, "podManagementPolicy": "Parallel", "ordinals": {"start": 5},
            "updateStrategy": {"rollingUpdate": {"partition": 1}},
        });
        check(spec.clone(), &[], "+5a +6b +7b");
        check(spec, &["6:b:failed", "0:a:ready", "9:a:pending"], "+5a -6 +7b -9 -0");
    }

    #[test]
    fn scaled_down_from_the_end() {
        let spec = json!({"replicas": 1});
        check(spec.clone(), &["0:b:ready", "1:b:ready", "2:b:ready"], "-2");
        check(spec.clone(), &["0:b:ready", "1:b:ready", "2:b:leaving"], "");
        check(spec.clone(), &["0:b:pending", "1:b:ready", "2:b:ready"], "");
        check(spec.clone(), &["0:b:ready", "1:b:pending", "2:b:ready"], "-2");
        check(spec, &["0:b:ready", "1:b:pending", "2:b:pending"], "");
    }

    #[test]
    fn rolled_from_the_end() {
        let spec = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 0}}});
        check(spec.clone(), &["0:a:ready", "1:a:ready", "2:a:ready"], "-2");
        check(spec.clone(), &["0:a:ready", "1:a:ready", "2:b:ready"], "-1");
        let canary = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}});
        check(canary.clone(), &["0:a:ready", "1:a:ready", "2:a:ready"], "-2");
        check(canary.clone(), &["0:a:ready", "1:a:ready", "2:b:ready"], "");
        check(canary, &["0:a:ready", "2:b:ready"], "+1a");
        let by_hand = json!({"replicas": 2, "updateStrategy": {"type": "OnDelete"}});
        check(by_hand.clone(), &["0:a:ready", "1:a:ready"], "");
        check(by_hand, &["0:a:ready"], "+1b");
    }

    #[test]
    fn several_may_be_missing() {
        let rolling = json!({"partition": 0, "maxUnavailable": "50%"});
        let spec = json!({"replicas": 4, "updateStrategy": {"rollingUpdate": rolling}});
        check(spec.clone(), &["0:a:ready", "1:a:ready", "2:a:ready", "3:a:ready"], "-3 -2");
    }
}
