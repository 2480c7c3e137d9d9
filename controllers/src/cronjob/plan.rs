//! Which Job a CronJob makes now, which it deletes, and when it is looked at again.

use std::{sync::Arc, time::Duration};

use insula_api::cron::Schedule;
use insula_client::Tenanted;
use jiff::{Timestamp, tz::TimeZone};
use k8s_openapi::api::{
    batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
    core::v1::ObjectReference,
};

use crate::{job::is_finished, objects::to_time};

pub(super) type JobRef = Arc<Tenanted<Job>>;

/// So many times may have been missed before somebody is told.
const MANY: usize = 100;
/// The list of active Jobs may be read before the newest are written into it.
const FRESH: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);
/// Clocks of replicas may differ by so much without being worth a word.
const SKEW: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// More are not counted: a clock may have jumped by years.
const MOST: usize = 10_000;

/// A CronJob and its Jobs.
#[derive(Debug)]
pub(super) struct Observed<'a> {
    pub(super) cron: &'a Tenanted<CronJob>,
    pub(super) spec: &'a CronJobSpec,
    pub(super) jobs: Vec<JobRef>,
    pub(super) now: Timestamp,
}

/// A Job to be made, for the moment `at`.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) at: Timestamp,
    pub(super) zone: TimeZone,
    /// To be deleted before.
    pub(super) replaced: Vec<JobRef>,
}

/// One step.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) start: Option<Start>,
    /// Of old times, more than are kept.
    pub(super) delete: Vec<JobRef>,
    /// Before anything is started.
    pub(super) status: CronJobStatus,
    /// News for the users: whether it is good, the reason, and what is said.
    pub(super) news: Vec<(bool, &'static str, String)>,
    pub(super) next: Option<Duration>,
}

/// The name of the Job for a moment: its minutes since 1970.
pub(super) fn job_name(cron: &str, at: Timestamp) -> String {
    format!("{cron}-{}", at.as_second() / 60)
}

/// How the list of active Jobs names one.
pub(super) fn reference(job: &Tenanted<Job>) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        name: Some(job.name().to_owned()),
        namespace: Some(job.namespace().to_owned()),
        resource_version: Some(job.resource_version().to_owned()),
        uid: Some(job.uid().to_owned()),
        ..ObjectReference::default()
    }
}

/// How a finished Job ended.
fn end_of(job: &Job) -> &'static str {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    let holds = |type_: &str| {
        conditions
            .is_some_and(|them| them.iter().any(|it| it.type_ == type_ && it.status == "True"))
    };
    if holds("Complete") { "Complete" } else { "Failed" }
}

/// Decides.
pub(super) fn plan(it: &Observed<'_>) -> Plan {
    let mut plan = Plan { status: it.cron.status.clone().unwrap_or_default(), ..Plan::default() };
    take_stock(it, &mut plan);
    if it.cron.is_deleting() {
        return plan;
    }
    plan.delete = outdated(it);
    if it.spec.suspend != Some(true) {
        start(it, &mut plan);
    }
    plan
}

/// Brings the list of active Jobs up to date.
fn take_stock(it: &Observed<'_>, plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in &it.jobs {
        let known = active.iter().position(|active| active.uid.as_deref() == Some(job.uid()));
        let created = job.metadata.creation_timestamp.as_ref().map(|time| time.0);
        match (known, is_finished(job)) {
            (None, false) if created.is_some_and(|at| it.now.duration_since(at) < FRESH) => (),
            (None, false) => {
                let message = format!(
                    "Saw a job that the controller did not create or forgot: {}",
                    job.name()
                );
                plan.news.push((false, "UnexpectedJob", message));
            }
            (Some(at), true) => {
                active.remove(at);
                let end = end_of(job);
                let message = format!("Saw completed job: {}, condition: {end}", job.name());
                plan.news.push((true, "SawCompletedJob", message));
            }
            _ => (),
        }
        let done = job.status.as_ref().and_then(|status| status.completion_time.clone());
        if let Some(done) = done.filter(|_| is_finished(job) && end_of(job) == "Complete")
            && plan.status.last_successful_time.as_ref().is_none_or(|last| last.0 < done.0)
        {
            plan.status.last_successful_time = Some(done);
        }
    }
    active.retain(|active| {
        let is_there = it.jobs.iter().any(|job| active.uid.as_deref() == Some(job.uid()));
        if !is_there {
            let name = active.name.as_deref().unwrap_or_default();
            plan.news.push((true, "MissingJob", format!("Active job went missing: {name}")));
        }
        is_there
    });
    plan.status.active = (!active.is_empty()).then_some(active);
}

/// Finished Jobs beyond those that are kept, the oldest.
fn outdated(it: &Observed<'_>) -> Vec<JobRef> {
    let mut all = Vec::new();
    for (end, limit) in [
        ("Complete", it.spec.successful_jobs_history_limit),
        ("Failed", it.spec.failed_jobs_history_limit),
    ] {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let finished = it.jobs.iter().filter(|job| is_finished(job) && !job.is_deleting());
        let mut of_end: Vec<_> = finished.filter(|job| end_of(job) == end).cloned().collect();
        of_end.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|status| status.start_time.clone());
            (started.map(|time| time.0), job.name().to_owned())
        });
        of_end.truncate(of_end.len().saturating_sub(limit));
        all.extend(of_end);
    }
    all
}

fn start(it: &Observed<'_>, plan: &mut Plan) {
    let text = &it.spec.schedule;
    let schedule = match Schedule::parse(text) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: {text:?} : {error}");
            return plan.news.push((false, "UnparseableCronJobSchedule", message));
        }
    };
    let named = it.spec.time_zone.as_ref().or(schedule.zone.as_ref());
    let zone = match named.map_or(Ok(TimeZone::UTC), |name| TimeZone::get(name)) {
        Ok(zone) => zone,
        Err(error) => {
            let name = named.map_or("", String::as_str);
            let message = format!("invalid timeZone: {name:?}: {error}");
            return plan.news.push((false, "UnknownTimeZone", message));
        }
    };
    let until = schedule.next(it.now, &zone).map(|next| {
        // A little later, so that the clock is past it for certain.
        Duration::try_from(next.duration_since(it.now)).unwrap_or_default()
            + Duration::from_millis(100)
    });
    plan.next = until;
    let last = plan.status.last_schedule_time.as_ref().map(|time| time.0);
    if let Some(last) = last.filter(|last| SKEW < last.duration_since(it.now)) {
        let message = format!(
            "last scheduled for {last}, which is yet to come: nothing is started before. Check clock skew"
        );
        plan.news.push((false, "LastScheduleInFuture", message));
    }
    let Some(at) = latest_missed(it, plan, &schedule, &zone) else { return };
    if last == Some(at) {
        return;
    }
    let name = job_name(it.cron.name(), at);
    if let Some(job) = it.jobs.iter().find(|job| job.name() == name) {
        // Made for another time of this minute, or by a pass that did not come to write it down.
        plan.status.last_schedule_time = Some(to_time(at));
        let active = plan.status.active.get_or_insert_default();
        if !is_finished(job) && !active.iter().any(|it| it.uid.as_deref() == Some(job.uid())) {
            active.push(reference(job));
        }
        plan.status.active = plan.status.active.take().filter(|it| !it.is_empty());
        return;
    }
    let active: Vec<_> = it.jobs.iter().filter(|job| !is_finished(job)).cloned().collect();
    match it.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.news.push((true, "JobAlreadyActive", message.to_owned()));
        }
        Some("Replace") => plan.start = Some(Start { at, zone, replaced: active }),
        _ => plan.start = Some(Start { at, zone, replaced: Vec::new() }),
    }
}

/// The latest time until now for which no Job was made, unless it is too late for it.
fn latest_missed(
    it: &Observed<'_>,
    plan: &mut Plan,
    schedule: &Schedule,
    zone: &TimeZone,
) -> Option<Timestamp> {
    let last = plan.status.last_schedule_time.as_ref().map(|time| time.0);
    let made = it.cron.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut from = last.or(made)?;
    let deadline = it.spec.starting_deadline_seconds;
    let earliest = deadline
        .and_then(|seconds| it.now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok());
    if let Some(earliest) = earliest {
        // What lies before would be too late.
        from = from.max(earliest.checked_sub(jiff::SignedDuration::from_nanos(1)).ok()?);
    }
    let (mut found, mut n) = (None, 0);
    while let Some(at) = schedule.next(found.unwrap_or(from), zone).filter(|at| *at <= it.now) {
        found = Some(at);
        n += 1;
        if n == MOST {
            // From a little before now on, the last of them is found as well.
            from = it.now.checked_sub(jiff::SignedDuration::from_hours(48)).ok()?;
            let mut at = schedule.next(from, zone).filter(|at| *at <= it.now);
            while let Some(later) = at {
                found = Some(later);
                at = schedule.next(later, zone).filter(|at| *at <= it.now);
            }
            break;
        }
    }
    if MANY < n {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.news.push((false, "TooManyMissedTimes", message.to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    /// Plans at a time of the 21st of November 2026 for a CronJob made at midnight; `jobs` are
    /// `UID:STATE` with the states `active`, `done` and `failed`.
    fn plan_at(time: &str, spec: Value, status: Value, jobs: &[&str]) -> Plan {
        let mut spec = spec;
        if spec.get("schedule").is_none() {
            spec["schedule"] = "0 * * * *".into();
        }
        spec["jobTemplate"] = json!({});
        let it = json!({
            "metadata": {"name": "c", "uid": "u", "creationTimestamp": "2026-11-21T00:00:00Z"},
            "spec": spec, "status": status,
        });
        let tenant = TenantName::parse("acme").unwrap();
        let object: CronJob = serde_json::from_value(it).unwrap();
        let cron = Tenanted { tenant: tenant.clone(), object };
        let job = |what: &&str| {
            let (uid, state) = what.split_once(':').unwrap();
            let end = if state == "done" { "Complete" } else { "Failed" };
            let ended = json!([{"type": end, "status": "True"}]);
            let it = json!({
                "metadata": {"name": uid, "uid": uid},
                "status": {
                    "conditions": if state == "active" { json!([]) } else { ended },
                    "completionTime": (state == "done").then_some("2026-11-21T00:30:00Z"),
                },
            });
            let object = serde_json::from_value(it).unwrap();
            Arc::new(Tenanted { tenant: tenant.clone(), object })
        };
        let now = format!("2026-11-21T{time}Z").parse().unwrap();
        let jobs = jobs.iter().map(job).collect();
        plan(&Observed { cron: &cron, spec: &cron.spec, jobs, now })
    }

    fn started(plan: &Plan) -> Option<String> {
        plan.start.as_ref().map(|it| it.at.to_string())
    }

    fn reasons(plan: &Plan) -> Vec<&str> {
        plan.news.iter().map(|(_, reason, _)| *reason).collect()
    }

    #[test]
    fn the_latest_time_that_was_missed() {
        let none = plan_at("00:59:59", json!({}), json!({}), &[]);
        assert!(none.start.is_none());
        assert_eq!(none.next, Some(Duration::from_millis(1100)));
        let due = plan_at("03:10:00", json!({}), json!({}), &[]);
        assert_eq!(started(&due).unwrap(), "2026-11-21T03:00:00Z");
        let last = json!({"lastScheduleTime": "2026-11-21T03:00:00Z"});
        assert!(plan_at("03:10:00", json!({}), last.clone(), &[]).start.is_none());
        assert!(plan_at("04:10:00", json!({"suspend": true}), last, &[]).start.is_none());
        let late = json!({"startingDeadlineSeconds": 60});
        assert!(plan_at("03:10:00", late.clone(), json!({}), &[]).start.is_none());
        assert!(plan_at("03:00:30", late.clone(), json!({}), &[]).start.is_some());
        assert!(plan_at("03:01:00", late, json!({}), &[]).start.is_some(), "to the second");
        let many = plan_at("03:10:00", json!({"schedule": "* * * * *"}), json!({}), &[]);
        assert_eq!(reasons(&many), ["TooManyMissedTimes"]);
        assert_eq!(started(&many).unwrap(), "2026-11-21T03:10:00Z");
    }

    #[test]
    fn a_clock_that_jumped_by_years_does_not_stop_it() {
        let last = json!({"lastScheduleTime": "2001-01-01T00:00:00Z"});
        let plan = plan_at("03:10:30", json!({"schedule": "* * * * *"}), last, &[]);
        assert_eq!(started(&plan).unwrap(), "2026-11-21T03:10:00Z");
    }

    /// Nothing is started again that was started before the clock was set back.
    #[test]
    fn a_clock_that_was_set_back_is_told_of() {
        let soon = json!({"lastScheduleTime": "2026-11-21T03:11:00Z"});
        let soon = plan_at("03:10:30", json!({"schedule": "* * * * *"}), soon, &[]);
        assert!(soon.start.is_none() && reasons(&soon).is_empty(), "another replica's clock");
        let last = json!({"lastScheduleTime": "2027-01-01T00:00:00Z"});
        let plan = plan_at("03:10:30", json!({"schedule": "* * * * *"}), last, &[]);
        assert!(plan.start.is_none());
        assert_eq!(reasons(&plan), ["LastScheduleInFuture"]);
        assert_eq!(plan.next, Some(Duration::from_millis(30_100)));
    }

    #[test]
    fn zones() {
        let tokyo = json!({"schedule": "30 9 * * *", "timeZone": "Asia/Tokyo"});
        let plan = plan_at("00:31:00", tokyo, json!({}), &[]);
        assert_eq!(started(&plan).unwrap(), "2026-11-21T00:30:00Z");
        let unknown = plan_at("00:31:00", json!({"timeZone": "No/Where"}), json!({}), &[]);
        assert_eq!(reasons(&unknown), ["UnknownTimeZone"]);
        let bad = plan_at("00:31:00", json!({"schedule": "x"}), json!({}), &[]);
        assert_eq!((reasons(&bad), bad.next), (vec!["UnparseableCronJobSchedule"], None));
    }

    #[test]
    fn what_runs_while_another_is_due() {
        let active = json!({"active": [{"uid": "a", "name": "a"}]});
        let with = |policy: &str| {
            plan_at("01:00:00", json!({"concurrencyPolicy": policy}), active.clone(), &["a:active"])
        };
        assert!(with("Allow").start.unwrap().replaced.is_empty());
        assert_eq!(reasons(&with("Forbid")), ["JobAlreadyActive"]);
        assert!(with("Forbid").start.is_none());
        assert_eq!(with("Replace").start.unwrap().replaced.len(), 1);
    }

    #[test]
    fn what_has_ended_and_what_is_gone() {
        let active =
            json!({"active": [{"uid": "a", "name": "a"}, {"uid": "gone", "name": "gone"}]});
        let plan = plan_at("00:40:00", json!({}), active, &["a:done", "b:active"]);
        assert_eq!(reasons(&plan), ["SawCompletedJob", "UnexpectedJob", "MissingJob"]);
        assert_eq!(plan.status.active, None);
        assert_eq!(plan.status.last_successful_time.unwrap().0.to_string(), "2026-11-21T00:30:00Z");
    }

    #[test]
    fn some_of_the_past_is_kept() {
        let spec = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
        let jobs = ["a:done", "b:done", "c:failed", "d:active"];
        let plan = plan_at("00:40:00", spec, json!({}), &jobs);
        let names: Vec<_> = plan.delete.iter().map(|job| job.name()).collect();
        assert_eq!(names, ["a", "c"]);
    }
}
