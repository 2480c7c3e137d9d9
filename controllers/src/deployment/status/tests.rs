use std::sync::Arc;

use insula_api::names::TenantName;
use insula_client::Tenanted;
use k8s_openapi::api::apps::v1::{
    DeploymentSpec, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus,
};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn tenanted<K>(object: K) -> Tenanted<K> {
    Tenanted { tenant: TenantName::parse("acme").unwrap(), object }
}

fn deployment(status: Option<DeploymentStatus>) -> Tenanted<Deployment> {
    let mut it = Deployment::default();
    it.metadata.name = Some("web".into());
    it.spec = Some(DeploymentSpec {
        replicas: Some(2),
        progress_deadline_seconds: Some(60),
        ..DeploymentSpec::default()
    });
    it.status = status;
    tenanted(it)
}

fn set(size: i32, ready: i32) -> Arc<Tenanted<ReplicaSet>> {
    let mut it = ReplicaSet::default();
    it.metadata.name = Some("web-x".into());
    it.spec = Some(ReplicaSetSpec { replicas: Some(size), ..ReplicaSetSpec::default() });
    it.status = Some(ReplicaSetStatus {
        replicas: size,
        ready_replicas: Some(ready),
        available_replicas: Some(ready),
        terminating_replicas: Some(1),
        ..ReplicaSetStatus::default()
    });
    Arc::new(tenanted(it))
}

/// The status of a rollout, given the status before.
fn next(
    before: Option<DeploymentStatus>,
    new: Option<Arc<Tenanted<ReplicaSet>>>,
    progress: &Progress,
    second: i64,
) -> DeploymentStatus {
    let deployment = deployment(before);
    let observed = Observed { deployment: &deployment, new, old: Vec::new(), old_pods_run: false };
    status(&observed, true, progress, at(second))
}

fn reason(status: &DeploymentStatus, kind: &str) -> String {
    find(status, kind).and_then(|it| it.reason.clone()).unwrap_or_default()
}

fn updated(status: &DeploymentStatus, kind: &str) -> i64 {
    find(status, kind).unwrap().last_update_time.as_ref().unwrap().0.as_second()
}

#[test]
fn a_rollout_from_creation_to_its_end() {
    let created = Progress::Created { set: "web-x".into() };
    let one = next(None, None, &created, 10);
    assert_eq!(reason(&one, PROGRESSING), "NewReplicaSetCreated");
    assert_eq!(reason(&one, AVAILABLE), "MinimumReplicasUnavailable");

    let two = next(Some(one), Some(set(2, 0)), &Progress::None, 20);
    assert_eq!(reason(&two, PROGRESSING), "ReplicaSetUpdated");
    assert_eq!(
        (two.replicas, two.updated_replicas, two.unavailable_replicas),
        (Some(2), Some(2), Some(2))
    );
    assert_eq!((two.ready_replicas, two.terminating_replicas), (None, Some(1)));

    let three = next(Some(two), Some(set(2, 1)), &Progress::None, 30);
    assert_eq!(
        (reason(&three, PROGRESSING), updated(&three, PROGRESSING)),
        ("ReplicaSetUpdated".into(), 30)
    );

    let four = next(Some(three), Some(set(2, 2)), &Progress::None, 40);
    assert_eq!(reason(&four, PROGRESSING), "NewReplicaSetAvailable");
    assert_eq!(reason(&four, AVAILABLE), "MinimumReplicasAvailable");
    let condition = find(&four, PROGRESSING).unwrap();
    assert_eq!(
        condition.message.as_deref(),
        Some("ReplicaSet \"web-x\" has successfully progressed.")
    );
    assert_eq!(condition.last_transition_time.as_ref().unwrap().0, at(10), "True all along");

    let five = next(Some(four.clone()), Some(set(2, 2)), &Progress::None, 50);
    assert_eq!(five, four, "nothing happened, nothing changes");
}

#[test]
fn a_rollout_that_stands_still_times_out() {
    let created = Progress::Created { set: "web-x".into() };
    let mut status = next(None, None, &created, 10);
    status = next(Some(status), Some(set(2, 0)), &Progress::None, 20);
    let deployment = deployment(Some(status.clone()));
    assert_eq!(next_check(&deployment, &status, at(50)), Some(Duration::from_secs(31)));
    status = next(Some(status), Some(set(2, 0)), &Progress::None, 80);
    assert_eq!(reason(&status, PROGRESSING), "ReplicaSetUpdated");
    status = next(Some(status), Some(set(2, 0)), &Progress::None, 81);
    assert_eq!(reason(&status, PROGRESSING), DEADLINE_EXCEEDED);
    assert_eq!(find(&status, PROGRESSING).unwrap().status, "False");
    assert_eq!(next_check(&deployment, &status, at(90)), None);
    status = next(Some(status), Some(set(2, 2)), &Progress::None, 99);
    assert_eq!(reason(&status, PROGRESSING), NEW_SET_AVAILABLE, "late is better than never");
}

#[test]
fn without_deadline_there_is_no_progress_to_tell() {
    for deadline in [None, Some(i32::MAX)] {
        let mut deployment = deployment(None);
        deployment.object.spec.as_mut().unwrap().progress_deadline_seconds = deadline;
        let observed = Observed {
            deployment: &deployment,
            new: Some(set(2, 0)),
            old: Vec::new(),
            old_pods_run: false,
        };
        let created = Progress::Created { set: "web-x".into() };
        assert!(find(&status(&observed, true, &created, at(1)), PROGRESSING).is_none());
    }
}

#[test]
fn pausing_and_resuming_are_told_once() {
    let paused = |before: Option<DeploymentStatus>, paused: bool, second: i64| {
        let mut deployment = deployment(before);
        deployment.object.spec.as_mut().unwrap().paused = Some(paused);
        let observed = Observed {
            deployment: &deployment,
            new: Some(set(2, 0)),
            old: Vec::new(),
            old_pods_run: false,
        };
        status(&observed, false, &Progress::None, at(second))
    };
    let one = paused(None, true, 10);
    assert_eq!(reason(&one, PROGRESSING), "DeploymentPaused");
    let two = paused(Some(one), true, 20);
    assert_eq!(updated(&two, PROGRESSING), 10);
    let three = paused(Some(two), false, 30);
    assert_eq!(
        (reason(&three, PROGRESSING), updated(&three, PROGRESSING)),
        ("DeploymentResumed".into(), 30)
    );
}

#[test]
fn a_sets_failure_is_the_deployments() {
    let mut failing = set(2, 0);
    let condition = ReplicaSetCondition {
        type_: REPLICA_FAILURE.into(),
        status: "True".into(),
        reason: Some("FailedCreate".into()),
        message: Some("exceeded quota".into()),
        last_transition_time: None,
    };
    Arc::make_mut(&mut failing).object.status.as_mut().unwrap().conditions = Some(vec![condition]);
    let one = next(None, Some(failing), &Progress::None, 10);
    assert_eq!(reason(&one, REPLICA_FAILURE), "FailedCreate");
    let two = next(Some(one), Some(set(2, 0)), &Progress::None, 20);
    assert!(find(&two, REPLICA_FAILURE).is_none());
}
