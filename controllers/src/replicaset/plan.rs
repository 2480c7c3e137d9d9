//! How many pods to create, or which to delete.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::objects::{is_pod_ready, pod_phase, pod_ready_since};

/// Most pods created or deleted in one pass. A bad template then costs one burst of failures.
const BURST: usize = 500;
/// What users say a pod's deletion costs them.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// One step towards the target.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Tenanted<Pod>>>),
}

/// How many related pods each node has: a pod that is doubled up goes before one that is alone.
#[derive(Debug, Default)]
pub(super) struct Related(BTreeMap<String, usize>);

impl Related {
    pub(super) fn count<'a>(pods: impl IntoIterator<Item = &'a Arc<Tenanted<Pod>>>) -> Self {
        let mut counts = BTreeMap::new();
        for pod in pods {
            if crate::objects::is_pod_active(pod) {
                *counts.entry(node(pod).to_owned()).or_default() += 1;
            }
        }
        Self(counts)
    }

    fn on(&self, node: &str) -> usize {
        self.0.get(node).copied().unwrap_or_default()
    }
}

/// Decides. `active` are the pods that count towards `wanted`.
pub(super) fn plan(
    wanted: i32,
    active: &[Arc<Tenanted<Pod>>],
    related: &Related,
    now: Timestamp,
) -> Plan {
    let wanted = usize::try_from(wanted).unwrap_or_default();
    match active.len().cmp(&wanted) {
        Ordering::Equal => Plan::Nothing,
        Ordering::Less => Plan::Create((wanted - active.len()).min(BURST)),
        Ordering::Greater => {
            let mut victims = active.to_vec();
            victims.sort_by(|a, b| dispensable_first(a, b, related, now));
            victims.truncate((active.len() - wanted).min(BURST));
            Plan::Delete(victims)
        }
    }
}

/// Orders pods by how little their loss would hurt.
fn dispensable_first(
    a: &Tenanted<Pod>,
    b: &Tenanted<Pod>,
    related: &Related,
    now: Timestamp,
) -> Ordering {
    let by_node = || {
        let doubled = |pod: &Tenanted<Pod>| related.on(node(pod));
        doubled(b).cmp(&doubled(a))
    };
    node(b)
        .is_empty()
        .cmp(&node(a).is_empty())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| is_pod_ready(a).cmp(&is_pod_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(by_node)
        .then_with(|| youngest_first(pod_ready_since(a), pod_ready_since(b), now))
        .then_with(|| n_restarts(b).cmp(&n_restarts(a)))
        .then_with(|| youngest_first(created(a), created(b), now))
        .then_with(|| a.uid().cmp(b.uid()))
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod_phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|it| it.get(DELETION_COST));
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn n_restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|it| it.restart_count).max().unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Ages that differ by less than a factor of two count as equal, so that a steady change of
/// scale does not always hit the newest node. An unknown age counts as oldest.
fn youngest_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |at: Timestamp| {
        let seconds = u64::try_from(now.as_second() - at.as_second()).unwrap_or_default();
        seconds.checked_ilog2().map_or(0, |log| log + 1)
    };
    match (a, b) {
        (Some(a), Some(b)) => magnitude(a).cmp(&magnitude(b)),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use k8s_openapi::{
        api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    const NOW: i64 = 1_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A running, ready, assigned, old pod, but for what `change` does to it.
    fn pod(name: &str, change: impl FnOnce(&mut Pod)) -> Arc<Tenanted<Pod>> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.metadata.creation_timestamp = Some(Time(at(0)));
        pod.spec = Some(PodSpec { node_name: Some("n1".into()), ..PodSpec::default() });
        let ready = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(0))),
            ..PodCondition::default()
        };
        pod.status = Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![ready]),
            ..PodStatus::default()
        });
        change(&mut pod);
        Arc::new(Tenanted { tenant: TenantName::parse("acme").unwrap(), object: pod })
    }

    fn status(pod: &mut Pod) -> &mut PodStatus {
        pod.status.get_or_insert_default()
    }

    #[track_caller]
    fn check_victims(wanted: i32, pods: &[Arc<Tenanted<Pod>>], expected: &[&str]) {
        let related = Related::count(pods);
        let Plan::Delete(victims) = plan(wanted, pods, &related, at(NOW)) else {
            panic!("nothing is deleted");
        };
        let names: Vec<_> = victims.iter().map(|pod| pod.name()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn creates_what_is_missing_up_to_a_burst() {
        let pods = [pod("a", |_| ())];
        let create = |wanted| match plan(wanted, &pods, &Related::default(), at(NOW)) {
            Plan::Create(count) => Some(count),
            _ => None,
        };
        assert_eq!((create(1), create(4), create(10_000)), (None, Some(3), Some(BURST)));
    }

    #[test]
    fn the_most_dispensable_go_first() {
        let pods = [
            pod("fine", |_| ()),
            pod("young", |it| it.metadata.creation_timestamp = Some(Time(at(NOW - 9)))),
            pod("restarted", |it| {
                let container = ContainerStatus { restart_count: 3, ..ContainerStatus::default() };
                status(it).container_statuses = Some(vec![container]);
            }),
            pod("just-ready", |it| {
                if let Some(ready) = status(it).conditions.iter_mut().flatten().next() {
                    ready.last_transition_time = Some(Time(at(NOW - 5)));
                }
            }),
            pod("cheap", |it| {
                it.metadata.annotations = Some([(DELETION_COST.into(), "-5".into())].into());
            }),
            pod("unready", |it| status(it).conditions = None),
            pod("pending", |it| status(it).phase = Some("Pending".into())),
            pod("unassigned", |it| it.spec = None),
        ];
        check_victims(
            1,
            &pods,
            &["unassigned", "pending", "unready", "cheap", "just-ready", "restarted", "young"],
        );
    }

    #[test]
    fn doubled_up_pods_go_before_lonely_ones() {
        let on = |name: &str, node: &str| {
            pod(name, |it| it.spec.get_or_insert_default().node_name = Some(node.into()))
        };
        let pods = [on("a", "alone"), on("b", "crowd"), on("c", "crowd")];
        check_victims(2, &pods, &["b"]);
    }

    #[test]
    fn ages_of_one_magnitude_are_equal() {
        let ready = |ago| Some(at(NOW - ago));
        assert_eq!(youngest_first(ready(65), ready(120), at(NOW)), Ordering::Equal);
        assert_eq!(youngest_first(ready(60), ready(120), at(NOW)), Ordering::Less);
        assert_eq!(youngest_first(None, ready(120), at(NOW)), Ordering::Greater);
    }

    #[test]
    fn a_negative_target_is_zero() {
        check_victims(-3, &[pod("a", |_| ())], &["a"]);
    }
}
