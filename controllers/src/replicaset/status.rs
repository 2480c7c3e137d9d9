//! What the status of a set of equal pods says, in the terms of a ReplicaSet's.

use std::{sync::Arc, time::Duration};

use insula_client::Tenanted;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
    core::v1::Pod,
};

use super::Replicated;
use crate::{
    objects::{is_pod_available, is_pod_ready, pod_ready_since, to_time},
    status::non_zero,
};

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The status of `set`; `failure` is the reason and message of a failed scaling.
pub(super) fn status<K: Replicated>(
    set: &K,
    active: &[Arc<Tenanted<Pod>>],
    n_terminating: usize,
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let min_ready = set.min_ready_seconds();
    let template_labels = set
        .template()
        .and_then(|template| template.metadata.as_ref())
        .and_then(|meta| meta.labels.as_ref());
    let is_fully_labelled = |pod: &Pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let count = |test: &dyn Fn(&Pod) -> bool| {
        saturate(active.iter().filter(|pod| test(&pod.object)).count())
    };
    ReplicaSetStatus {
        replicas: saturate(active.len()),
        fully_labeled_replicas: non_zero(count(&is_fully_labelled)),
        ready_replicas: non_zero(count(&is_pod_ready)),
        available_replicas: non_zero(count(&|pod| is_pod_available(pod, min_ready, now))),
        terminating_replicas: Some(saturate(n_terminating)),
        observed_generation: set.meta().generation,
        conditions: conditions(set.conditions(), failure, now),
    }
}

fn conditions(
    old: Vec<ReplicaSetCondition>,
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let (known, mut conditions): (Vec<_>, Vec<_>) =
        old.into_iter().partition(|it| it.type_ == REPLICA_FAILURE);
    if let Some((reason, message)) = failure {
        let known = known.into_iter().next();
        let is_new = known.as_ref().is_none_or(|it| it.reason.as_deref() != Some(reason));
        conditions.push(match known {
            Some(known) if !is_new => known,
            _ => ReplicaSetCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(to_time(now)),
            },
        });
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// How long until the next ready pod becomes available.
pub(super) fn until_available(
    active: &[Arc<Tenanted<Pod>>],
    min_ready_seconds: u64,
    now: Timestamp,
) -> Duration {
    let min_ready = i64::try_from(min_ready_seconds).unwrap_or(i64::MAX);
    let left = active
        .iter()
        .filter_map(|pod| pod_ready_since(pod))
        .map(|since| since.as_second().saturating_add(min_ready) - now.as_second())
        .filter(|left| 0 < *left)
        .min();
    Duration::from_secs(left.and_then(|left| left.try_into().ok()).unwrap_or(min_ready_seconds))
}

fn saturate(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use k8s_openapi::{
        api::{
            apps::v1::{ReplicaSet, ReplicaSetSpec},
            core::v1::{PodCondition, PodStatus, PodTemplateSpec},
        },
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    };

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(ready_since: Option<i64>, label: &str) -> Arc<Tenanted<Pod>> {
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("app".to_owned(), label.to_owned())].into());
        let conditions = ready_since.map(|since| {
            vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(Time(at(since))),
                ..PodCondition::default()
            }]
        });
        pod.status = Some(PodStatus { conditions, ..PodStatus::default() });
        Arc::new(Tenanted { tenant: TenantName::parse("acme").unwrap(), object: pod })
    }

    fn set() -> ReplicaSet {
        let labels = Some([("app".to_owned(), "web".to_owned())].into());
        let metadata = Some(ObjectMeta { labels, ..ObjectMeta::default() });
        ReplicaSet {
            metadata: ObjectMeta { generation: Some(7), ..ObjectMeta::default() },
            spec: Some(ReplicaSetSpec {
                min_ready_seconds: Some(10),
                template: Some(PodTemplateSpec { metadata, spec: None }),
                ..ReplicaSetSpec::default()
            }),
            status: None,
        }
    }

    #[test]
    fn counts() {
        let pods = [pod(Some(80), "web"), pod(Some(95), "web"), pod(None, "other")];
        let status = status(&set(), &pods, 1, None, at(100));
        assert_eq!(status.replicas, 3);
        assert_eq!(status.fully_labeled_replicas, Some(2));
        assert_eq!(status.ready_replicas, Some(2));
        assert_eq!(status.available_replicas, Some(1));
        assert_eq!(status.terminating_replicas, Some(1));
        assert_eq!(status.observed_generation, Some(7));
        assert_eq!(until_available(&pods, 10, at(100)), Duration::from_secs(5));
    }

    #[test]
    fn a_failure_shows_until_it_is_over() {
        let mut set = set();
        let failed = status(&set, &[], 0, Some(("FailedCreate", "no".into())), at(100));
        let shown = failed.conditions.clone().unwrap();
        assert_eq!(
            (shown[0].type_.as_str(), shown[0].message.as_deref()),
            ("ReplicaFailure", Some("no"))
        );
        set.status = Some(failed.clone());
        let again = status(&set, &[], 0, Some(("FailedCreate", "still".into())), at(200));
        assert_eq!(again.conditions, failed.conditions, "the same failure is not news");
        assert_eq!(status(&set, &[], 0, None, at(200)).conditions, None);
    }
}
