//! What a disruption budget allows, as its pods are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

use crate::objects::{is_pod_ready, share_of, to_time};

/// For so long an eviction that was allowed may take until the pod is on its way out.
const DELETION: Duration = Duration::from_secs(2 * 60);
const CONDITION: &str = "DisruptionAllowed";

/// What a look at the pods of a budget comes to.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) status: PodDisruptionBudgetStatus,
    /// The names of pods whose evictions were allowed and never came.
    pub(super) not_deleted: Vec<String>,
    /// When the status changes by the passing of time alone.
    pub(super) next: Option<Duration>,
}

/// How many pods a budget speaks of, and how many of them have to be healthy. `n_wanted` is how
/// many those who manage the pods want; it counts where the budget is a share, or says how many
/// may be missing.
pub(super) fn needed(spec: &PodDisruptionBudgetSpec, n_pods: i32, n_wanted: i32) -> (i32, i32) {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::{Int, String};
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (n_wanted, (n_wanted - share_of(most, n_wanted, true)).max(0)),
        (None, Some(Int(least))) => (n_pods, *least),
        (None, Some(least @ String(_))) => (n_wanted, share_of(least, n_wanted, true)),
        (None, None) => (n_pods, 0),
    }
}

/// Whether it takes those who manage the pods to know how many there are to be.
pub(super) fn counts_wanted(spec: &PodDisruptionBudgetSpec) -> bool {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String;
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(String(_)))
}

/// Judges. `n_wanted` as for [`needed`].
pub(super) fn judge(
    budget: &PodDisruptionBudget,
    spec: &PodDisruptionBudgetSpec,
    pods: &[Arc<Tenanted<Pod>>],
    n_wanted: i32,
    now: Timestamp,
) -> Verdict {
    let n_pods = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let (expected, desired) = needed(spec, n_pods, n_wanted);
    let old = budget.status.clone().unwrap_or_default();
    let mut disrupted = BTreeMap::new();
    let mut not_deleted = Vec::new();
    let mut next: Option<Duration> = None;
    for pod in pods.iter().filter(|pod| !pod.is_deleting()) {
        let Some(since) = old.disrupted_pods.as_ref().and_then(|it| it.get(pod.name())) else {
            continue;
        };
        let took = Duration::try_from(now.duration_since(since.0)).unwrap_or_default();
        if took < DELETION {
            let left = DELETION - took;
            next = Some(next.map_or(left, |next| next.min(left)));
            disrupted.insert(pod.name().to_owned(), since.clone());
        } else {
            not_deleted.push(pod.name().to_owned());
        }
    }
    let is_healthy = |pod: &&Arc<Tenanted<Pod>>| {
        !pod.is_deleting() && !disrupted.contains_key(pod.name()) && is_pod_ready(pod)
    };
    let healthy = i32::try_from(pods.iter().filter(is_healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let reason = if 0 < allowed { "SufficientPods" } else { "InsufficientPods" };
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: budget.metadata.generation,
        conditions: old.conditions,
    };
    set(&mut status, 0 < allowed, reason, "", now);
    Verdict { status, not_deleted, next }
}

/// The status of a budget that could not be judged: nothing is allowed.
pub(super) fn failed(
    budget: &PodDisruptionBudget,
    why: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let mut status = budget.status.clone().unwrap_or_default();
    status.disruptions_allowed = Some(0);
    for count in
        [&mut status.current_healthy, &mut status.desired_healthy, &mut status.expected_pods]
    {
        count.get_or_insert(0);
    }
    status.observed_generation = budget.metadata.generation;
    set(&mut status, false, "SyncFailed", why, now);
    status
}

fn set(
    status: &mut PodDisruptionBudgetStatus,
    is_so: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let value = if is_so { "True" } else { "False" };
    let all = status.conditions.get_or_insert_default();
    let known = all.iter().find(|it| it.type_ == CONDITION && it.status == value);
    let since: Time = known.map_or_else(|| to_time(now), |it| it.last_transition_time.clone());
    let condition = Condition {
        type_: CONDITION.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: status.observed_generation,
        last_transition_time: since,
    };
    match all.iter_mut().find(|it| it.type_ == CONDITION) {
        Some(it) => *it = condition,
        None => all.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, is_ready: bool) -> Arc<Tenanted<Pod>> {
        let ready = if is_ready { "True" } else { "False" };
        let it = json!({
            "metadata": {"name": name},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        let tenant = TenantName::parse("acme").unwrap();
        Arc::new(Tenanted { tenant, object: serde_json::from_value(it).unwrap() })
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let it =
            json!({"metadata": {"name": "b", "generation": 3}, "spec": spec, "status": status});
        serde_json::from_value(it).unwrap()
    }

    /// Of so many pods, some are ready; `expected`: expected pods, desired, healthy, allowed.
    #[track_caller]
    fn check(spec: Value, n_pods: usize, n_ready: usize, n_wanted: i32, expected: [i32; 4]) {
        let pods: Vec<_> = (0..n_pods).map(|n| pod(&n.to_string(), n < n_ready)).collect();
        let budget = budget(spec, json!({}));
        let found =
            judge(&budget, budget.spec.as_ref().unwrap(), &pods, n_wanted, Timestamp::UNIX_EPOCH);
        let it = found.status;
        let counts =
            [it.expected_pods, it.desired_healthy, it.current_healthy, it.disruptions_allowed];
        assert_eq!(counts.map(Option::unwrap), expected);
        assert_eq!(it.observed_generation, Some(3));
        let condition = &it.conditions.unwrap()[0];
        assert_eq!(condition.status == "True", Some(0) < it.disruptions_allowed);
    }

    #[test]
    fn what_is_allowed() {
        check(json!({"minAvailable": 2}), 3, 3, 0, [3, 2, 3, 1]);
        check(json!({"minAvailable": 2}), 3, 1, 0, [3, 2, 1, 0]);
        check(json!({"minAvailable": 0}), 0, 0, 0, [0, 0, 0, 0]);
        check(json!({"minAvailable": "50%"}), 3, 3, 3, [3, 2, 3, 1]);
        check(json!({"minAvailable": "28%"}), 7, 7, 7, [7, 2, 7, 5]);
        check(json!({"maxUnavailable": 1}), 3, 3, 3, [3, 2, 3, 1]);
        check(json!({"maxUnavailable": 1}), 2, 2, 3, [3, 2, 2, 0]);
        check(json!({"maxUnavailable": "30%"}), 10, 10, 10, [10, 7, 10, 3]);
        check(json!({"maxUnavailable": 5}), 3, 3, 3, [3, 0, 3, 3]);
        check(json!({}), 1, 1, 0, [1, 0, 1, 1]);
    }

    #[test]
    fn evictions_are_waited_for() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let pods = [pod("a", true), pod("b", true), pod("c", true)];
        let told = json!({
            "currentHealthy": 3, "desiredHealthy": 1, "expectedPods": 3, "disruptionsAllowed": 1,
            "disruptedPods": {
                "a": at(900).to_string(), "b": at(999).to_string(), "gone": at(999).to_string(),
            },
        });
        let budget = budget(json!({"minAvailable": 1}), told);
        let spec = budget.spec.as_ref().unwrap();
        let found = judge(&budget, spec, &pods, 0, at(1000));
        let kept: Vec<_> = found.status.disrupted_pods.unwrap().into_keys().collect();
        assert_eq!((kept, found.not_deleted.len()), (vec!["a".to_owned(), "b".to_owned()], 0));
        assert_eq!(
            (found.status.current_healthy, found.next),
            (Some(1), Some(Duration::from_secs(20)))
        );
        let found = judge(&budget, spec, &pods, 0, at(1030));
        assert_eq!(found.not_deleted, ["a"]);
        assert_eq!(found.status.current_healthy, Some(2));
    }

    #[test]
    fn what_cannot_be_judged_allows_nothing() {
        let told = json!({
            "currentHealthy": 3, "desiredHealthy": 1, "expectedPods": 3, "disruptionsAllowed": 2,
        });
        let status = failed(&budget(json!({}), told), "why", Timestamp::UNIX_EPOCH);
        assert_eq!((status.disruptions_allowed, status.expected_pods), (Some(0), Some(3)));
        let condition = &status.conditions.unwrap()[0];
        assert_eq!((&*condition.reason, &*condition.message), ("SyncFailed", "why"));
    }
}
