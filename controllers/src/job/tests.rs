use std::collections::HashSet;

use insula_api::names::TenantName;
use k8s_openapi::api::batch::v1::JobStatus;
use serde_json::{Value, json};

use super::*;
use crate::objects::controller_reference;

const NOW: i64 = 1_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn job(spec: Value, status: Value) -> Tenanted<Job> {
    let mut spec = spec;
    spec["template"] = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}});
    let it = json!({
        "metadata": {"name": "j", "namespace": "ns", "uid": "j"}, "spec": spec, "status": status,
    });
    let tenant = TenantName::parse("acme").unwrap();
    Tenanted { tenant, object: serde_json::from_value(it).unwrap() }
}

/// A pod, `PHASE` or `PHASE/INDEX`; `-` before it: on its way out; `~`: no longer held.
fn pod(name: &str, what: &str) -> PodRef {
    let owner = controller_reference(&job(json!({}), json!({})));
    let (is_leaving, what) = (what.starts_with('-'), what.trim_start_matches('-'));
    let (is_free, what) = (what.starts_with('~'), what.trim_start_matches('~'));
    let (phase, index) = what.split_once('/').unwrap_or((what, ""));
    let mut it = json!({
        "metadata": {
            "name": name, "namespace": "ns", "uid": name, "finalizers": [TRACKING],
            "ownerReferences": [owner], "annotations": {},
        },
        "status": {"phase": phase},
    });
    if is_leaving {
        it["metadata"]["deletionTimestamp"] = json!("1970-01-12T13:46:00Z");
    }
    if is_free {
        it["metadata"]["finalizers"] = json!([]);
    }
    if !index.is_empty() {
        it["metadata"]["annotations"][INDEX] = index.into();
    }
    let tenant = TenantName::parse("acme").unwrap();
    Arc::new(Tenanted { tenant, object: serde_json::from_value(it).unwrap() })
}

fn pods(them: &[&str]) -> Vec<PodRef> {
    them.iter().enumerate().map(|(n, what)| pod(&format!("p{n}"), what)).collect()
}

/// One pass over a Job: the verdict, the plan, and the status.
fn pass(job: &Tenanted<Job>, them: &[&str]) -> (Verdict, Plan, status::Told) {
    let settled = HashSet::new();
    let it = Observed::new(job, job.spec.as_ref().unwrap(), pods(them), &settled);
    let verdict = verdict(&it, now());
    let plan = plan::plan(&it, &verdict, Streak::default(), now());
    let told = status::tell(&it, &verdict, &plan, &settled, now());
    (verdict, plan, told)
}

fn holds(status: &JobStatus) -> Vec<&str> {
    let conditions = status.conditions.iter().flatten().filter(|it| it.status == "True");
    conditions.map(|it| it.type_.as_str()).collect()
}

#[test]
fn as_many_as_are_wanted_at_once() {
    let job = job(json!({"completions": 5, "parallelism": 3}), json!({"succeeded": 1}));
    let (_, plan, told) = pass(&job, &["Running"]);
    assert_eq!((plan.create.len(), told.status.active), (2, Some(3)));
    assert_eq!(told.status.start_time.unwrap().0, now());
    let job = self::job(json!({"completions": 5, "parallelism": 3}), json!({"succeeded": 4}));
    let (_, plan, _) = pass(&job, &["Running", "Pending", "Pending"]);
    let names: Vec<_> = plan.delete.iter().map(|pod| pod.name()).collect();
    assert_eq!(names, ["p2", "p1"], "what has come least far is one too many");
}

#[test]
fn pods_are_counted_in_three_steps() {
    let spec = json!({"completions": 2, "parallelism": 1});
    let first = job(spec.clone(), json!({}));
    let (_, plan, told) = pass(&first, &["Succeeded", "Failed"]);
    let uncounted = told.status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!(uncounted.succeeded.as_deref(), Some(&["p0".to_owned()][..]));
    assert_eq!(uncounted.failed.as_deref(), Some(&["p1".to_owned()][..]));
    assert_eq!((told.let_go.len(), told.status.succeeded), (2, None));
    assert_eq!(plan.create.len(), 1, "they count before they are numbers");

    // Written, but not let go: nothing is lost.
    let again = job(spec.clone(), serde_json::to_value(&told.status).unwrap());
    let (_, _, same) = pass(&again, &["Succeeded", "Failed", "Running"]);
    assert_eq!((same.let_go.len(), same.status.succeeded, same.status.failed), (2, None, None));

    let (_, _, last) = pass(&again, &["~Succeeded", "~Failed", "Running"]);
    assert_eq!((last.status.succeeded, last.status.failed), (Some(1), Some(1)));
    assert!(last.let_go.is_empty());
    assert_eq!(last.status.uncounted_terminated_pods, Some(Default::default()));
}

#[test]
fn a_job_is_complete_when_all_is_counted() {
    let spec = json!({"completions": 1});
    let (verdict, _, told) = pass(&job(spec.clone(), json!({})), &["Succeeded"]);
    assert!(matches!(&verdict, Verdict::Succeeds { reason, .. } if reason == "CompletionsReached"));
    assert_eq!(holds(&told.status), ["SuccessCriteriaMet"]);
    let next = job(spec, serde_json::to_value(&told.status).unwrap());
    let (_, plan, told) = pass(&next, &["~Succeeded"]);
    assert_eq!(holds(&told.status), ["SuccessCriteriaMet", "Complete"]);
    assert!(plan.create.is_empty());
    assert_eq!(told.status.completion_time.unwrap().0, now());
    assert_eq!(told.news, [(true, "Completed".into(), "Job completed".into())]);
}

#[test]
fn too_many_failures_end_it() {
    let spec = json!({"completions": 3, "parallelism": 3, "backoffLimit": 1});
    let (verdict, plan, told) =
        pass(&job(spec.clone(), json!({"failed": 1})), &["Failed", "Running"]);
    assert!(matches!(&verdict, Verdict::Fails { reason, .. } if reason == "BackoffLimitExceeded"));
    assert_eq!((plan.delete.len(), holds(&told.status)), (1, vec!["FailureTarget"]));
    let next = job(spec, serde_json::to_value(&told.status).unwrap());
    let (_, _, told) = pass(&next, &["~Failed", "-Running"]);
    assert_eq!(holds(&told.status), ["FailureTarget"], "one is still on its way out");
    let next = job(json!({}), serde_json::to_value(&told.status).unwrap());
    let settled = HashSet::from(["p1".to_owned()]);
    let it = Observed::new(&next, next.spec.as_ref().unwrap(), Vec::new(), &settled);
    let verdict = self::verdict(&it, now());
    let told = status::tell(&it, &verdict, &Plan::default(), &settled, now());
    assert_eq!(holds(&told.status), ["FailureTarget", "Failed"]);
    assert_eq!(told.status.failed, Some(3));
}

#[test]
fn failures_are_replaced_later_and_later() {
    let job = job(json!({"completions": 2, "parallelism": 2}), json!({}));
    let settled = HashSet::new();
    let it = Observed::new(&job, job.spec.as_ref().unwrap(), pods(&["Failed"]), &settled);
    let streak = Streak::default().after(&it, now());
    let wait = |n, last: i64| {
        let streak = Streak { n, last: Some(Timestamp::from_second(NOW - last).unwrap()) };
        plan::plan(&it, &Verdict::GoesOn, streak, now()).wait.map(|it| it.as_secs())
    };
    assert_eq!((streak.n, streak.last), (1, Some(now())));
    assert_eq!((wait(1, 0), wait(1, 10), wait(3, 10)), (Some(10), None, Some(30)));
    assert_eq!(wait(60, 0), Some(600));
}

#[test]
fn each_index_has_one_pod() {
    let spec = json!({"completions": 5, "parallelism": 4, "completionMode": "Indexed"});
    let job = job(spec, json!({"completedIndexes": "0"}));
    let (_, plan, told) = pass(&job, &["Succeeded/2", "Running/1"]);
    let indexes: Vec<_> = plan.create.iter().filter_map(|new| new.index).collect();
    assert_eq!(indexes, [3, 4]);
    assert_eq!(told.status.completed_indexes.as_deref(), Some("0,2"));
    assert_eq!(told.status.succeeded, Some(2));
    let (_, plan, _) = pass(&job, &["Running/1", "Pending/1", "Pending/9", "Pending/0"]);
    let names: Vec<_> = plan.delete.iter().map(|pod| pod.name()).collect();
    assert_eq!(names, ["p1", "p2", "p3"], "twice, outside, and done");
    let it = pod_of(&job, job.spec.as_ref().unwrap(), plan::New { index: Some(3), failures: None });
    assert!(it.metadata.name.unwrap().starts_with("j-3-"));
    assert_eq!(it.spec.unwrap().hostname.as_deref(), Some("j-3"));
}

#[test]
fn an_index_can_be_given_up_alone() {
    let spec = json!({
        "completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
        "backoffLimit": i32::MAX,
    });
    let job = job(spec, json!({}));
    // The first failure stays, to tell the next pod of it.
    let (_, plan, told) = pass(&job, &["Failed/0", "Running/1"]);
    assert!(plan.create.is_empty() && told.let_go.is_empty());
    assert_eq!(plan.wait.map(|it| it.as_secs()), Some(10));
    assert_eq!(told.status.failed_indexes.as_deref(), Some(""));
    let mut again = (*pod("p0", "Failed/0")).clone();
    again.metadata.annotations.get_or_insert_default().insert(INDEX_FAILURES.into(), "1".into());
    let settled = HashSet::new();
    let both = vec![Arc::new(again), pod("p1", "Succeeded/1")];
    let it = Observed::new(&job, job.spec.as_ref().unwrap(), both, &settled);
    let verdict = self::verdict(&it, now());
    assert!(matches!(&verdict, Verdict::Fails { reason, .. } if reason == "FailedIndexes"));
    let told = status::tell(&it, &verdict, &Plan::default(), &settled, now());
    assert_eq!(told.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(told.let_go.len(), 2);
}

#[test]
fn suspended_and_resumed() {
    let (verdict, plan, told) = pass(&job(json!({"suspend": true}), json!({})), &["Running"]);
    assert_eq!((verdict, plan.delete.len()), (Verdict::Suspended, 1));
    assert_eq!((holds(&told.status), told.status.start_time.is_none()), (vec!["Suspended"], true));
    let resumed = job(json!({"suspend": false}), serde_json::to_value(&told.status).unwrap());
    let (_, plan, told) = pass(&resumed, &[]);
    assert_eq!((plan.create.len(), holds(&told.status).len()), (1, 0));
    assert_eq!(told.news, [(true, "Resumed".into(), "Job resumed".into())]);
}

#[test]
fn a_queue_of_work_is_done_when_one_says_so() {
    let job = job(json!({"parallelism": 3}), json!({}));
    let (verdict, plan, _) = pass(&job, &["Succeeded", "Running"]);
    assert_eq!((verdict, plan.create.len(), plan.delete.len()), (Verdict::GoesOn, 0, 0));
    let (verdict, ..) = pass(&job, &["Succeeded", "Succeeded"]);
    assert!(matches!(verdict, Verdict::Succeeds { .. }));
}

#[test]
fn who_is_deleted_is_replaced_at_once_unless_failures_only_are() {
    let at_once = job(json!({"backoffLimit": 6}), json!({}));
    let (_, plan, told) = pass(&at_once, &["-Running"]);
    assert_eq!((plan.create.len(), told.let_go.len()), (1, 1));
    let later = job(json!({"podReplacementPolicy": "Failed"}), json!({}));
    let (_, plan, told) = pass(&later, &["-Running"]);
    assert_eq!((plan.create.len(), told.let_go.len()), (0, 0));
    assert_eq!(told.status.terminating, Some(1));
}

#[test]
fn a_deadline_ends_it() {
    let start = json!({"startTime": "1970-01-12T13:46:30Z"});
    let late = job(json!({"activeDeadlineSeconds": 5}), start.clone());
    let (verdict, ..) = pass(&late, &["Running"]);
    assert!(matches!(&verdict, Verdict::Fails { reason, .. } if reason == "DeadlineExceeded"));
    let (verdict, ..) = pass(&job(json!({"activeDeadlineSeconds": 50}), start), &["Running"]);
    assert_eq!(verdict, Verdict::GoesOn);
}
