//! What runs pods: deployments and the like, jobs, and when they run.

use insula_api::{cron::Schedule, object, selector::LabelSelector};
use serde_json::Value;

use super::at::{At, Check, texts};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.apps.v1.DaemonSetSpec", |it| workload(it, "daemonset")),
    ("api.apps.v1.DeploymentSpec", deployment),
    ("api.apps.v1.DaemonSetUpdateStrategy", rolling_daemons),
    ("api.apps.v1.DeploymentStrategy", strategy),
    ("api.apps.v1.ReplicaSetSpec", |it| workload(it, "deployment")),
    ("api.apps.v1.StatefulSetSpec", stateful_set),
    ("api.apps.v1.ControllerRevision", |it| {
        if !it.has("data") {
            it.required("data", "data is mandatory");
        }
    }),
    ("api.batch.v1.CronJobSpec", cron),
    ("api.core.v1.ReplicationControllerSpec", replication_controller),
];

pub(super) fn labels_of(it: &At<'_>) -> Value {
    let labels = it.get("template").and_then(|it| it.pointer("/metadata/labels"));
    labels.cloned().unwrap_or_default()
}

/// The selector is there, selects something, and selects what the template makes.
fn workload(it: &mut At<'_>, kind: &str) {
    let selector = it.get("selector").cloned();
    if let Some(selector) = &selector {
        let size = |field: &str| {
            let found = selector.get(field);
            found.and_then(Value::as_object).map_or(0, serde_json::Map::len)
                + found.and_then(Value::as_array).map_or(0, Vec::len)
        };
        if size("matchLabels") + size("matchExpressions") == 0 {
            // The rule of the table takes an empty one for none.
            it.take_back("selector", None);
            it.invalid("selector", selector, &format!("empty selector is invalid for {kind}"));
        }
    }
    let labels = labels_of(it);
    // None selects nothing; an empty one everything.
    let compiled = selector
        .clone()
        .map(serde_json::from_value::<LabelSelector>)
        .map(|it| it.map(|it| it.compile()));
    let is_selected = match &compiled {
        None => false,
        Some(Ok(Ok(selector))) => selector.is_empty() || selector.matches(&texts(Some(&labels))),
        // What is wrong with it the table has told.
        Some(_) if kind == "daemonset" => true,
        Some(_) => {
            let shown = selector.unwrap_or_default();
            // Of these upstream says no more.
            let why = if kind == "statefulset" { "" } else { "invalid label selector" };
            it.invalid("selector", &shown, why);
            true
        }
    };
    if !is_selected {
        let why = "`selector` does not match template `labels`";
        it.invalid("template.metadata.labels", &labels, why);
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
    let shown = it.it;
    match (it.text("type"), rolling) {
        ("", _) | ("Recreate", None) => (),
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
        _ => it.unsupported("", shown, &["Recreate", "RollingUpdate"]),
    }
}

/// What stateful sets are told besides, in words of their own.
fn stateful_set(it: &mut At<'_>) {
    workload(it, "statefulset");
    let policy = it.text("podManagementPolicy").to_owned();
    if !policy.is_empty() && !["OrderedReady", "Parallel"].contains(&&*policy) {
        let why = "must be 'OrderedReady' or 'Parallel'";
        it.invalid("podManagementPolicy", &policy.into(), why);
    }
    let strategy = it.get("updateStrategy").cloned().unwrap_or_default();
    let rolling = strategy.get("rollingUpdate").cloned();
    match (object::text(&strategy, &["type"]), rolling) {
        ("", _) => it.required("updateStrategy", ""),
        ("OnDelete", Some(rolling)) => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            it.invalid("updateStrategy.rollingUpdate", &rolling, why);
        }
        ("OnDelete" | "RollingUpdate", _) => (),
        _ => it.invalid("updateStrategy", &strategy, "must be 'RollingUpdate' or 'OnDelete'"),
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
    let (kind, whole) = (it.text("type"), it.it);
    if !kind.is_empty() && !["OnDelete", "RollingUpdate"].contains(&kind) {
        return it.unsupported("", whole, &["RollingUpdate", "OnDelete"]);
    }
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
    if !is_selected && wanted.is_some() && it.has("template") {
        let why = "`selector` does not match template `labels`";
        it.invalid("template.metadata.labels", &labels, why);
    }
    always(it);
}

fn cron(it: &mut At<'_>) {
    let schedule = it.text("schedule").to_owned();
    if let Err(error) = Schedule::parse(&schedule)
        && !schedule.is_empty()
    {
        it.invalid("schedule", &schedule.as_str().into(), &error.to_string());
    }
    if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        it.invalid("schedule", &schedule.as_str().into(), why);
    }
    if let Some(zone) = it.get("timeZone").cloned() {
        let name = zone.as_str().unwrap_or_default();
        if name.is_empty() {
            it.invalid("timeZone", &zone, "timeZone must be nil or non-empty string");
        } else if name.eq_ignore_ascii_case("local") {
            it.invalid("timeZone", &zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
        } else if jiff::tz::TimeZone::get(name).is_err() {
            it.invalid("timeZone", &zone, &format!("unknown time zone {name}"));
        }
    }
}

/// What of a new cron job is about its jobs' names.
pub(super) fn cron_name(it: &Value, errors: &mut Vec<FieldError>) {
    if 52 < object::name(it).len() {
        let why = "must be no more than 52 characters";
        errors.push(FieldError::invalid("metadata.name", &object::name(it).into(), why));
    }
}
