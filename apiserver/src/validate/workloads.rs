//! What runs pods: deployments and the like, jobs, and when they run.

use insula_api::{object, selector::LabelSelector};
use serde_json::Value;

use super::rules::{At, Check, texts};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.apps.v1.DaemonSetSpec", |it| workload(it, "daemonset")),
    ("api.apps.v1.DeploymentSpec", deployment),
    ("api.apps.v1.DaemonSetUpdateStrategy", rolling_daemons),
    ("api.apps.v1.DeploymentStrategy", strategy),
    ("api.apps.v1.ReplicaSetSpec", |it| workload(it, "deployment")),
    ("api.apps.v1.StatefulSetSpec", |it| workload(it, "statefulset")),
    ("api.apps.v1.ControllerRevision", |it| {
        if !it.has("data") {
            it.required("data", "data is mandatory");
        }
    }),
    ("api.batch.v1.CronJobSpec", cron),
    ("api.batch.v1.JobSpec", job),
    ("api.core.v1.ReplicationControllerSpec", replication_controller),
];

fn labels_of(it: &At<'_>) -> Value {
    let labels = it.get("template").and_then(|it| it.pointer("/metadata/labels"));
    labels.cloned().unwrap_or_else(|| serde_json::json!({}))
}

/// The selector is there, selects something, and selects what the template makes.
fn workload(it: &mut At<'_>, kind: &str) {
    if let Some(selector) = it.get("selector").cloned() {
        let size = |field: &str| {
            let found = selector.get(field);
            found.and_then(Value::as_object).map_or(0, serde_json::Map::len)
                + found.and_then(Value::as_array).map_or(0, Vec::len)
        };
        if size("matchLabels") + size("matchExpressions") == 0 {
            // The rule of the table takes an empty one for none.
            it.take_back("selector", None);
            it.invalid("selector", &selector, &format!("empty selector is invalid for {kind}"));
        }
        let parsed: Option<LabelSelector> = serde_json::from_value(selector).ok();
        let labels = labels_of(it);
        if let Some(Ok(compiled)) = parsed.map(|it| it.compile())
            && !compiled.is_empty()
            && !compiled.matches(&texts(Some(&labels)))
        {
            let why = "`selector` does not match template `labels`";
            it.invalid("template.metadata.labels", &labels, why);
        }
    }
    always(it);
}

/// What such workloads run is run again whenever it ends.
fn always(it: &mut At<'_>) {
    let spec = it.get("template").and_then(|it| it.get("spec"));
    let policy = spec.and_then(|it| it.get("restartPolicy")).cloned();
    let allowed = ["Always", "Never", "OnFailure"];
    if let Some(policy) = policy
        && policy != "Always"
        && allowed.contains(&policy.as_str().unwrap_or_default())
    {
        it.unsupported("template.spec.restartPolicy", &policy, &["Always"]);
    }
    let deadline = it.get("template").and_then(|it| it.pointer("/spec/activeDeadlineSeconds"));
    if deadline.is_some_and(|it| !it.is_null()) {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        it.forbidden("template.spec.activeDeadlineSeconds", why);
    }
}

fn deployment(it: &mut At<'_>) {
    workload(it, "deployment");
    if let (Some(deadline), ready) =
        (it.number("progressDeadlineSeconds"), it.number("minReadySeconds").unwrap_or(0))
        && deadline <= ready
    {
        it.invalid(
            "progressDeadlineSeconds",
            &deadline.into(),
            "must be greater than minReadySeconds",
        );
    }
}

/// Whether a count or percentage is nothing.
fn is_nothing(value: Option<&Value>) -> bool {
    match value {
        None => true,
        Some(Value::String(text)) => text.trim_end_matches('%').parse() == Ok(0),
        Some(other) => *other == 0,
    }
}

fn strategy(it: &mut At<'_>) {
    let rolling = it.get("rollingUpdate").cloned();
    match (it.text("type"), rolling) {
        ("Recreate", Some(_)) => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            it.forbidden("rollingUpdate", why);
        }
        ("RollingUpdate", None) => {
            it.required("rollingUpdate", "this should be defaulted and never be nil");
        }
        ("RollingUpdate", Some(rolling)) => {
            if is_nothing(rolling.get("maxUnavailable")) && is_nothing(rolling.get("maxSurge")) {
                let shown = rolling.get("maxUnavailable").cloned().unwrap_or_default();
                let why = "may not be 0 when `maxSurge` is 0";
                it.invalid("rollingUpdate.maxUnavailable", &shown, why);
            }
            percent_at_most_all(it, &rolling, "maxUnavailable");
        }
        _ => (),
    }
}

fn percent_at_most_all(it: &mut At<'_>, rolling: &Value, field: &str) {
    let Some(value) = rolling.get(field).filter(|it| it.is_string()) else { return };
    let percent =
        value.as_str().unwrap_or_default().strip_suffix('%').and_then(|it| it.parse().ok());
    if percent.is_some_and(|it: u64| 100 < it) {
        it.invalid(&format!("rollingUpdate.{field}"), value, "must not be greater than 100%");
    }
}

fn rolling_daemons(it: &mut At<'_>) {
    let Some(rolling) = it.get("rollingUpdate").cloned() else {
        if it.text("type") == "RollingUpdate" {
            it.required("rollingUpdate", "");
        }
        return;
    };
    if it.text("type") != "RollingUpdate" {
        return;
    }
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    if is_nothing(unavailable) && is_nothing(surge) {
        it.required("rollingUpdate.maxUnavailable", "cannot be 0 when maxSurge is 0");
    }
    if !is_nothing(unavailable) && !is_nothing(surge) {
        let shown = surge.cloned().unwrap_or_default();
        let why = "may not be set when maxUnavailable is non-zero";
        it.invalid("rollingUpdate.maxSurge", &shown, why);
    }
    for field in ["maxUnavailable", "maxSurge"] {
        percent_at_most_all(it, &rolling, field);
    }
}

fn replication_controller(it: &mut At<'_>) {
    let (wanted, labels) = (it.get("selector").cloned(), labels_of(it));
    let is_selected = wanted
        .as_ref()
        .and_then(Value::as_object)
        .is_some_and(|it| it.iter().all(|(key, value)| labels.get(key) == Some(value)));
    if !is_selected && wanted.is_some() {
        let why = "`selector` does not match template `labels`";
        it.invalid("template.metadata.labels", &labels, why);
    }
    always(it);
}

fn job(it: &mut At<'_>) {
    let is_indexed = it.text("completionMode") == "Indexed";
    if is_indexed {
        if !it.has("completions") {
            it.required("completions", "when completion mode is Indexed");
        }
        if it.number("parallelism").is_some_and(|it| 100_000 < it) {
            let shown = it.it["parallelism"].clone();
            let why = "must be less than or equal to 100000 when completion mode is Indexed";
            it.invalid("parallelism", &shown, why);
        }
    } else if it.has("backoffLimitPerIndex") {
        let shown = it.it["backoffLimitPerIndex"].clone();
        it.invalid("backoffLimitPerIndex", &shown, "requires indexed completion mode");
    }
    if it.has("maxFailedIndexes") && !it.has("backoffLimitPerIndex") {
        it.required("backoffLimitPerIndex", "when maxFailedIndexes is specified");
    }
    let spec = it.get("template").and_then(|it| it.get("spec")).cloned().unwrap_or_default();
    let policy = object::text(&spec, &["restartPolicy"]);
    if policy == "Always" {
        it.unsupported("template.spec.restartPolicy", &policy.into(), &["OnFailure", "Never"]);
    }
    if it.has("podFailurePolicy") && policy != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        it.invalid("template.spec.restartPolicy", &policy.into(), why);
    }
    selects_its_own(it);
}

/// A job selects by its template's labels.
fn selects_its_own(it: &mut At<'_>) {
    let Some(selector) = it.get("selector").cloned() else { return };
    let parsed: Option<LabelSelector> = serde_json::from_value(selector).ok();
    let labels = labels_of(it);
    if let Some(Ok(compiled)) = parsed.map(|it| it.compile())
        && !compiled.matches(&texts(Some(&labels)))
    {
        let why = "`selector` does not match template `labels`";
        it.invalid("template.metadata.labels", &labels, why);
    }
}

fn cron(it: &mut At<'_>) {
    // Jobs get their selector when they are made.
    it.take_back("jobTemplate.spec.selector", Some("FieldValueRequired"));
    let schedule = it.text("schedule").to_owned();
    if let Err(why) = schedule_is_readable(&schedule)
        && !schedule.is_empty()
    {
        it.invalid("schedule", &schedule.as_str().into(), &why);
    }
    if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        it.invalid("schedule", &schedule.as_str().into(), why);
    }
    if let Some(zone) = it.get("timeZone").cloned() {
        let name = zone.as_str().unwrap_or_default();
        if name.is_empty() {
            it.invalid("timeZone", &zone, "must be nil or non-empty string");
        } else if name.eq_ignore_ascii_case("local") {
            it.invalid("timeZone", &zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
        } else if jiff::tz::TimeZone::get(name).is_err() {
            it.invalid("timeZone", &zone, &format!("unknown time zone {name}"));
        }
    }
}

/// Five fields of numbers, ranges, lists and steps; or one of few names.
fn schedule_is_readable(text: &str) -> Result<(), String> {
    let text = match text.split_once(' ') {
        Some((zone, rest)) if zone.starts_with("TZ=") || zone.starts_with("CRON_TZ=") => {
            rest.trim()
        }
        _ => text,
    };
    if let Some(name) = text.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let every = name.strip_prefix("every ").is_some_and(|it| !it.is_empty());
        return match known.contains(&name) || every {
            true => Ok(()),
            false => Err(format!("unrecognized descriptor: {text}")),
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    const MONTHS: &[&str] =
        &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u32, u32, &[&str]); 5] =
        [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, MONTHS), (0, 6, DAYS)];
    for (field, (low, high, names)) in fields.iter().zip(bounds) {
        for part in field.split(',').filter(|it| !it.is_empty()) {
            range_is_readable(part, low, high, names)?;
        }
    }
    Ok(())
}

fn range_is_readable(part: &str, low: u32, high: u32, names: &[&str]) -> Result<(), String> {
    let number = |text: &str| -> Result<u32, String> {
        let name = text.to_ascii_lowercase();
        if let Some(index) = names.iter().position(|it| *it == name) {
            return Ok(u32::try_from(index).unwrap_or(u32::MAX) + low);
        }
        text.parse().map_err(|_| {
            format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
            )
        })
    };
    let (range, step) = match part.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {part}")),
        Some((range, step)) => (range, number(step)?),
        None => (part, 1),
    };
    let (start, end) = match range.split_once('-') {
        _ if range == "*" || range == "?" => (low, high),
        Some((_, end)) if end.contains('-') => return Err(format!("too many hyphens: {part}")),
        Some((start, end)) => (number(start)?, number(end)?),
        None => {
            let start = number(range)?;
            (start, if part.contains('/') { high } else { start })
        }
    };
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {part}"));
    }
    if high < end {
        return Err(format!("end of range ({end}) above maximum ({high}): {part}"));
    }
    if end < start {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(())
}

/// What of a new cron job is about its jobs' names.
pub(super) fn cron_name(it: &Value, errors: &mut Vec<FieldError>) {
    if 52 < object::name(it).len() {
        let why = "must be no more than 52 characters";
        errors.push(FieldError::invalid("metadata.name", &object::name(it).into(), why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 0-3 1,15 JAN-mar SUN",
            "@daily",
            "@every 1h",
            "0 0 * * ?",
            "5/15 * * * *",
        ] {
            assert_eq!(schedule_is_readable(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a"),
            ("@often", "unrecognized descriptor: @often"),
        ] {
            assert!(schedule_is_readable(bad).unwrap_err().starts_with(why), "{bad}");
        }
    }
}
