//! What a Job's own rules say of pods that failed, and of indexes that succeeded.

use insula_client::Tenanted;
use k8s_openapi::api::{
    batch::v1::{
        Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern,
    },
    core::v1::{ContainerStateTerminated, ContainerStatus, Pod},
};

use super::indexes::Indexes;

/// What to make of a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It counts towards the limit.
    Counts,
    /// As if it had not been.
    Ignored,
    /// Its index is given up.
    FailsIndex,
    /// The whole Job is given up, for this reason.
    FailsJob { message: String },
}

/// Judges a failed pod by `spec.podFailurePolicy`: the first rule that matches decides.
pub(super) fn judge(job: &Job, pod: &Tenanted<Pod>) -> Failure {
    let policy = job.spec.as_ref().and_then(|spec| spec.pod_failure_policy.as_ref());
    for (n, rule) in policy.iter().flat_map(|policy| &policy.rules).enumerate() {
        let matched = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => by_exit_code(pod, codes),
            (None, Some(patterns)) => by_condition(pod, patterns),
            (None, None) => None,
        };
        let Some(what) = matched else { continue };
        return match rule.action.as_str() {
            "Ignore" => Failure::Ignored,
            "FailIndex" => Failure::FailsIndex,
            "FailJob" => Failure::FailsJob {
                message: format!("{what} matching {} rule at index {n}", rule.action),
            },
            _ => Failure::Counts,
        };
    }
    Failure::Counts
}

fn by_exit_code(
    pod: &Tenanted<Pod>,
    rule: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<String> {
    let (container, ended) = terminated(pod).find(|(container, ended)| {
        let is_meant = rule.container_name.as_ref().is_none_or(|name| *name == container.name);
        let is_listed = rule.values.contains(&ended.exit_code);
        is_meant && ended.exit_code != 0 && is_listed == (rule.operator == "In")
    })?;
    Some(format!(
        "Container {} for pod {}/{} failed with exit code {}",
        container.name,
        pod.namespace(),
        pod.name(),
        ended.exit_code
    ))
}

fn by_condition(
    pod: &Tenanted<Pod>,
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|it| {
        patterns.iter().any(|pattern| {
            pattern.type_ == it.type_ && pattern.status.as_deref().unwrap_or("True") == it.status
        })
    })?;
    Some(format!("Pod {}/{} has condition {}", pod.namespace(), pod.name(), found.type_))
}

/// The containers of a pod that have ended, those that run first before the others.
fn terminated(pod: &Pod) -> impl Iterator<Item = (&ContainerStatus, &ContainerStateTerminated)> {
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_ref());
    let then = status.and_then(|status| status.container_statuses.as_ref());
    first
        .into_iter()
        .chain(then)
        .flatten()
        .filter_map(|container| Some((container, container.state.as_ref()?.terminated.as_ref()?)))
}

/// The first rule of `spec.successPolicy` that is met, by its index.
pub(super) fn success(job: &Job, succeeded: &Indexes) -> Option<usize> {
    let spec = job.spec.as_ref()?;
    let end = spec.completions.unwrap_or(0);
    spec.success_policy.as_ref()?.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_ref().map(|text| Indexes::parse(text, end));
        match (wanted, rule.succeeded_count) {
            (Some(wanted), Some(count)) => count <= wanted.n_common(succeeded),
            (Some(wanted), None) => wanted.n_common(succeeded) == wanted.len(),
            (None, Some(count)) => count <= succeeded.len(),
            (None, None) => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::json;

    use super::*;

    fn job(spec: serde_json::Value) -> Job {
        let template = json!({"spec": {"containers": []}});
        let mut spec = spec;
        spec["template"] = template;
        serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
    }

    fn pod(code: i32, condition: &str) -> Tenanted<Pod> {
        let status = json!({
            "phase": "Failed",
            "conditions": [{"type": condition, "status": "True"}],
            "containerStatuses": [
                {"name": "fine", "state": {"terminated": {"exitCode": 0}}, "image": "", "imageID": "", "ready": false, "restartCount": 0},
                {"name": "main", "state": {"terminated": {"exitCode": code}}, "image": "", "imageID": "", "ready": false, "restartCount": 0},
            ],
        });
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}, "status": status});
        let tenant = TenantName::parse("acme").unwrap();
        Tenanted { tenant, object: serde_json::from_value(pod).unwrap() }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let job = job(json!({"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
        ]}}));
        assert_eq!(judge(&job, &pod(42, "DisruptionTarget")), Failure::Ignored);
        let message =
            "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(judge(&job, &pod(42, "Ready")), Failure::FailsJob { message: message.into() });
        assert_eq!(judge(&job, &pod(7, "Ready")), Failure::FailsIndex);
        assert_eq!(judge(&job, &pod(1, "Ready")), Failure::Counts);
        assert_eq!(judge(&job, &pod(0, "Ready")), Failure::Counts, "nothing failed by itself");
    }

    #[test]
    fn success_by_indexes_by_count_or_both() {
        let with = |rule: serde_json::Value| {
            job(json!({"completions": 10, "successPolicy": {"rules": [rule]}}))
        };
        let done = Indexes::parse("1,3-5", 10);
        let by = |rule| success(&with(rule), &done);
        assert_eq!(by(json!({"succeededIndexes": "3,4"})), Some(0));
        assert_eq!(by(json!({"succeededIndexes": "3,6"})), None);
        assert_eq!(by(json!({"succeededCount": 4})), Some(0));
        assert_eq!(by(json!({"succeededCount": 5})), None);
        assert_eq!(by(json!({"succeededIndexes": "5-9", "succeededCount": 1})), Some(0));
        assert_eq!(by(json!({"succeededIndexes": "5-9", "succeededCount": 2})), None);
    }
}
