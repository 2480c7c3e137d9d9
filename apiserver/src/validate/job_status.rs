//! What the status of a job may not say.
//!
//! Whoever manages a job says so in its status, and others count on how a job ends: that it is
//! decided before it is over, and over only once. What is looked at is what has changed, so that
//! what is wrong already does not keep anybody from writing the rest.

use insula_api::{internal, object, schema::TypeId};
use serde_json::Value;

use super::{
    Errors,
    jobs::{intervals, n_indexes},
    status::count,
    updates::list,
};
use crate::error::FieldError;

const CONDITIONS: &str = "status.conditions";
const COMPLETION: &str = "status.completionTime";

/// A job and what its conditions say.
struct Told<'a> {
    status: &'a Value,
    complete: bool,
    failed: bool,
    fails: bool,
    succeeds: bool,
}

impl<'a> Told<'a> {
    fn of(job: &'a Value) -> Self {
        let status = &job["status"];
        let is = |kind: &str| holds(status, kind, "True");
        Self {
            status,
            complete: is("Complete"),
            failed: is("Failed"),
            fails: is("FailureTarget"),
            succeeds: is("SuccessCriteriaMet"),
        }
    }

    fn is_finished(&self) -> bool {
        self.complete || self.failed
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.status.get(field).filter(|it| !it.is_null())
    }

    fn text(&self, field: &str) -> &'a str {
        object::text(self.status, &[field])
    }
}

fn holds(status: &Value, kind: &str, wanted: &str) -> bool {
    list(status, "conditions").iter().any(|it| it["type"] == kind && it["status"] == wanted)
}

/// What a write of a job's status may not do.
pub(super) fn update(id: TypeId, old: &Value, new: &Value, errors: &mut Errors) {
    let (had, has) = (Told::of(old), Told::of(new));
    pods(&has, errors);
    end(id, new, &had, &has, errors);
    indexes(new, &had, &has, errors);
    let changed = |field: &str| had.get(field) != has.get(field);
    if (changed("terminating") || had.is_finished() != has.is_finished())
        && 0 < count(has.status, "terminating")
        && has.is_finished()
    {
        wrong(&has, "terminating", "terminating>0 is invalid for finished job", errors);
    }
    if (changed("ready") || changed("active"))
        && count(has.status, "active") < count(has.status, "ready")
    {
        wrong(&has, "ready", "cannot set more ready pods than active", errors);
    }
    let mut clash = |is: bool, why: &str| {
        if is {
            errors.push(FieldError::invalid_whole(CONDITIONS, why));
        }
    };
    let by_policy = new["spec"].get("successPolicy").is_some();
    clash(
        has.succeeds && has.failed,
        "cannot set SuccessCriteriaMet=True and Failed=true conditions",
    );
    clash(
        has.succeeds && has.fails,
        "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
    );
    clash(
        by_policy && !has.succeeds && has.complete,
        "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
    );
    clash(had.failed && !has.failed, "cannot disable the terminal Failed=True condition");
    clash(had.complete && !has.complete, "cannot disable the terminal Complete=True condition");
    clash(had.fails && !has.fails, "cannot disable the terminal FailureTarget=True condition");
    course(new, &had, &has, errors);
}

/// Shows a field of the status that cannot be as it is.
fn wrong(it: &Told<'_>, field: &str, why: &str, errors: &mut Errors) {
    let shown = it.get(field).unwrap_or(&Value::Null);
    errors.push(FieldError::invalid(format!("status.{field}"), shown, why));
}

/// Pods that are not yet counted are named once.
fn pods(has: &Told<'_>, errors: &mut Errors) {
    let Some(uncounted) = has.get("uncountedTerminatedPods") else { return };
    let mut seen = std::collections::HashSet::new();
    for field in ["succeeded", "failed"] {
        for (index, uid) in list(uncounted, field).iter().enumerate() {
            let at = format!("status.uncountedTerminatedPods.{field}[{index}]");
            if uid == "" {
                errors.push(FieldError::invalid(at, uid, "must not be empty"));
            } else if !seen.insert(uid.as_str()) {
                errors.push(FieldError::duplicate(at, uid));
            }
        }
    }
}

/// What is said of a job that is over, or about to be.
fn end(id: TypeId, job: &Value, had: &Told<'_>, has: &Told<'_>, errors: &mut Errors) {
    let spec = &job["spec"];
    let never_begins = spec.get("suspend") == Some(&Value::Bool(true))
        && spec.get("completions").is_some_and(|it| *it == 0);
    let changed = |field: &str| had.get(field) != has.get(field);
    let completed = had.complete != has.complete;
    let failed = had.failed != has.failed;
    let finished = had.is_finished() != has.is_finished();
    let clash = |why: &str| FieldError::invalid_whole(CONDITIONS, why);
    let (start, completion) = (has.get("startTime"), has.get("completionTime"));
    if (completed || failed) && has.complete && has.failed {
        errors.push(clash("cannot set Complete=True and Failed=true conditions"));
    }
    if (completed || had.fails != has.fails) && has.complete && has.fails {
        errors.push(clash("cannot set Complete=True and FailureTarget=true conditions"));
    }
    if completed || changed("completionTime") {
        if completion.is_some() && !has.complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            wrong(has, "completionTime", why, errors);
        }
        if completion.is_none() && has.complete {
            let why = "completionTime is required for Complete jobs";
            errors.push(FieldError::required(COMPLETION, why));
        }
    }
    // Both are in whole seconds and of one zone, so their texts have their order.
    if (changed("startTime") || changed("completionTime"))
        && start.is_some()
        && completion.is_some()
        && has.text("completionTime") < has.text("startTime")
    {
        wrong(has, "completionTime", "must be equal to or after `startTime`", errors);
    }
    if (failed || changed("failedIndexes")) && has.failed && !has.fails {
        let why = "cannot set Failed=True condition without the FailureTarget=true condition";
        errors.push(clash(why));
    }
    if (completed || had.succeeds != has.succeeds) && has.complete && !has.succeeds {
        let why =
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        errors.push(clash(why));
    }
    if !has.is_finished() {
        return;
    }
    if (finished || changed("active")) && 0 < count(has.status, "active") {
        wrong(has, "active", "active>0 is invalid for finished job", errors);
    }
    if (finished || changed("startTime")) && start.is_none() && !never_begins {
        let why = "startTime is required for finished job";
        errors.push(FieldError::required("status.startTime", why));
    }
    const UNCOUNTED: &str = "uncountedTerminatedPods";
    let left = has
        .get(UNCOUNTED)
        .filter(|it| ["succeeded", "failed"].iter().any(|field| !list(it, field).is_empty()));
    if let Some(left) = left.filter(|_| finished || changed(UNCOUNTED)) {
        let at = format!("status.{UNCOUNTED}");
        let shown = internal::line(id, &at, left);
        errors.push(FieldError::invalid_form(at, &shown, "must be empty for finished job"));
    }
}

/// Which indexes are done and which are lost.
fn indexes(job: &Value, had: &Told<'_>, has: &Told<'_>, errors: &mut Errors) {
    const DONE: &str = "completedIndexes";
    const LOST: &str = "failedIndexes";
    let changed = |field: &str| had.get(field) != has.get(field);
    let is_limited = job["spec"].get("backoffLimitPerIndex").is_some();
    let completions = job["spec"].get("completions").and_then(Value::as_i64);
    for (field, is_known) in [(DONE, true), (LOST, is_limited)] {
        if let Some(completions) = completions.filter(|_| is_known && changed(field))
            && let Err(why) = n_indexes(has.text(field), completions)
        {
            wrong(has, field, &format!("error parsing {field}: {why}"), errors);
        }
    }
    if changed(DONE)
        && !has.text(DONE).is_empty()
        && object::text(job, &["spec", "completionMode"]) != "Indexed"
    {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        wrong(has, DONE, why, errors);
    }
    if changed(LOST) && !is_limited && has.get(LOST).is_some() {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        wrong(has, LOST, why, errors);
    }
    if let Some(completions) = completions.filter(|_| changed(DONE) || changed(LOST)) {
        let [done, lost] = [DONE, LOST].map(|field| intervals(has.text(field), completions));
        let done: Vec<(i64, i64)> = done.flatten().collect();
        let both = lost.flatten().find_map(|lost| {
            let done = done.iter().find(|done| done.0 <= lost.1 && lost.0 <= done.1)?;
            Some(done.0.max(lost.0))
        });
        if let Some(index) = both {
            let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
            wrong(has, LOST, &why, errors);
        }
    }
}

/// What only goes one way.
fn course(job: &Value, had: &Told<'_>, has: &Told<'_>, errors: &mut Errors) {
    let changed = |field: &str| had.get(field) != has.get(field);
    let spec = &job["spec"];
    let is_elastic = object::text(spec, &["completionMode"]) == "Indexed"
        && spec.get("completions") == spec.get("parallelism");
    for (field, may_shrink) in [("failed", false), ("succeeded", is_elastic)] {
        if !may_shrink && count(has.status, field) < count(had.status, field) {
            let why = format!("cannot decrease the {field} counter");
            let shown = count(has.status, field).into();
            errors.push(FieldError::invalid(format!("status.{field}"), &shown, &why));
        }
    }
    let both = |field: &str| had.get(field).is_some() && has.get(field).is_some();
    if changed("completionTime") && both("completionTime") {
        wrong(has, "completionTime", super::updates::IMMUTABLE, errors);
    }
    let resumes = holds(had.status, "Suspended", "True") && holds(has.status, "Suspended", "False");
    let is_suspended = spec.get("suspend") == Some(&Value::Bool(true));
    if changed("startTime") && had.get("startTime").is_some() && !is_suspended && !resumes {
        wrong(has, "startTime", "field is immutable for unsuspended job once set", errors);
    }
    if had.succeeds && !has.succeeds {
        let why = "cannot disable the SuccessCriteriaMet=True condition";
        errors.push(FieldError::invalid_whole(CONDITIONS, why));
    }
    if had.complete && !had.succeeds && has.succeeds {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.push(FieldError::invalid_whole(CONDITIONS, why));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{compare, served},
        *,
    };

    #[track_caller]
    fn check(spec: Value, old: Value, new: Value, expected: &[&str]) {
        let jobs = served("batch", "v1", "jobs");
        let of = |status: Value| json!({"metadata": {"name": "j"}, "spec": spec, "status": status});
        compare(&super::super::update(&jobs, "status", &of(old), &of(new)), expected);
    }

    fn are(kinds: &[&str]) -> Value {
        kinds.iter().map(|it| json!({"type": it, "status": "True"})).collect()
    }

    #[test]
    fn a_job_is_decided_before_it_is_over() {
        let once = json!({"completions": 1, "parallelism": 1});
        check(
            once.clone(),
            json!({}),
            json!({"conditions": are(&["Complete"])}),
            &[
                "status.completionTime: Required value: completionTime is required for Complete jobs",
                "status.conditions: Invalid value: cannot set Complete=True condition without the Succ",
                "status.startTime: Required value: startTime is required for finished job",
            ],
        );
        check(
            once.clone(),
            json!({}),
            json!({"conditions": are(&["Failed"]), "active": 1, "uncountedTerminatedPods": {"succeeded": ["a"]}}),
            &[
                "status.conditions: Invalid value: cannot set Failed=True condition without the Fail",
                "status.active: Invalid value: 1: active>0 is invalid for finished job",
                "status.startTime: Required value: startTime is required for finished job",
                "status.uncountedTerminatedPods: Invalid value: {\"Succeeded\":[\"a\"],\"Failed\":null}: must",
            ],
        );
        check(
            once.clone(),
            json!({}),
            json!({
                "conditions": are(&["Failed", "Complete", "FailureTarget", "SuccessCriteriaMet"]),
                "completionTime": "2024-01-01T00:00:00Z", "startTime": "2025-01-01T00:00:00Z",
                "completedIndexes": "1", "failedIndexes": "2",
            }),
            &[
                "status.conditions: Invalid value: cannot set Complete=True and Failed=true conditions",
                "status.conditions: Invalid value: cannot set Complete=True and FailureTarget=true cond",
                "status.completionTime: Invalid value: \"2024-01-01T00:00:00Z\": must be equal to or aft",
                "status.completedIndexes: Invalid value: \"1\": error parsing completedIndexes: too large",
                "status.completedIndexes: Invalid value: \"1\": cannot set non-empty completedIndexes",
                "status.failedIndexes: Invalid value: \"2\": cannot set non-null failedIndexes when",
                "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and Failed=true",
                "status.conditions: Invalid value: cannot set SuccessCriteriaMet=True and FailureTarget",
            ],
        );
        check(
            once.clone(),
            json!({"conditions": are(&["SuccessCriteriaMet"])}),
            json!({"conditions": []}),
            &[
                "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
            ],
        );
        let never = json!({"completions": 0, "suspend": true});
        let over = json!({"conditions": are(&["SuccessCriteriaMet", "Complete"]), "completionTime": "2024-01-01T00:00:00Z"});
        check(never, json!({}), over.clone(), &[]);
        // What is wrong already keeps nobody from writing the rest.
        let mut more = over.clone();
        more["ready"] = 0.into();
        check(once, over, more, &[]);
    }

    #[test]
    fn counts_and_times_go_one_way() {
        let once = json!({"completions": 1, "parallelism": 1});
        let had = json!({"startTime": "2025-01-01T00:00:00Z", "failed": 3, "succeeded": 2});
        check(
            once.clone(),
            had.clone(),
            json!({"startTime": "2025-01-01T00:00:01Z", "failed": 2, "succeeded": 1}),
            &[
                "status.failed: Invalid value: 2: cannot decrease the failed counter",
                "status.succeeded: Invalid value: 1: cannot decrease the succeeded counter",
                "status.startTime: Invalid value: \"2025-01-01T00:00:01Z\": field is immutable for uns",
            ],
        );
        let mut has = had.clone();
        has["completionTime"] = "2025-01-01T00:00:01Z".into();
        let told =
            "status.completionTime: Invalid value: \"2025-01-01T00:00:01Z\": cannot set compl";
        check(once.clone(), had, has, &[told]);
        let suspended =
            json!({"startTime": "2025-01-01T00:00:00Z", "conditions": are(&["Suspended"])});
        let resumed = json!({"startTime": "2025-01-01T00:00:01Z", "conditions": [{"type": "Suspended", "status": "False"}]});
        check(once.clone(), suspended, resumed, &[]);
        check(
            once,
            json!({}),
            json!({"active": -1, "ready": 2, "uncountedTerminatedPods": {"succeeded": ["a", "a"], "failed": ["", "a"]}}),
            &[
                "status.active: Invalid value: -1: must be greater than or equal to 0",
                "status.uncountedTerminatedPods.succeeded[1]: Duplicate value: \"a\"",
                "status.uncountedTerminatedPods.failed[0]: Invalid value: \"\": must not be empty",
                "status.uncountedTerminatedPods.failed[1]: Duplicate value: \"a\"",
                "status.ready: Invalid value: 2: cannot set more ready pods than active",
            ],
        );
    }

    #[test]
    fn an_index_is_done_or_lost() {
        let indexed =
            json!({"completionMode": "Indexed", "completions": 5, "backoffLimitPerIndex": 1});
        check(
            indexed.clone(),
            json!({}),
            json!({"completedIndexes": "5", "failedIndexes": "2,1"}),
            &[
                "status.completedIndexes: Invalid value: \"5\": error parsing completedIndexes: too large index: \"5\"",
                "status.failedIndexes: Invalid value: \"2,1\": error parsing failedIndexes: non-increasing order, previous: 2, current: 1",
            ],
        );
        check(
            indexed.clone(),
            json!({}),
            json!({"completedIndexes": "1-3", "failedIndexes": "2"}),
            &[
                "status.failedIndexes: Invalid value: \"2\": failedIndexes and completedIndexes overlap at index: 2",
            ],
        );
        check(indexed, json!({}), json!({"completedIndexes": "1,3", "failedIndexes": "2"}), &[]);
    }
}
