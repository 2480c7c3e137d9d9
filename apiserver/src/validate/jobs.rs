//! Jobs: what ends them, and which pods are theirs.

use std::collections::{BTreeMap, BTreeSet};

use insula_api::{internal, object, schema::TypeId, selector::LabelSelector};
use insula_custom::path::Path;
use serde_json::{Value, json};

use super::{
    Errors,
    at::{At, Check, texts},
    formats::Format,
    updates::{list, put},
    workloads::labels_of,
};
use crate::error::FieldError;

pub(super) const CHECKS: &[(&str, Check)] = &[("api.batch.v1.JobSpec", job)];

/// From here on a job is asked to say how many of its indexes may fail.
const MANY: i64 = 100_000;

fn job(it: &mut At<'_>) {
    indexes(it);
    let rules = it.get("podFailurePolicy").map(|it| list(it, "rules").to_vec()).unwrap_or_default();
    if 20 < rules.len() {
        let at = it.at("podFailurePolicy.rules");
        it.errors.push(FieldError::too_many(at, rules.len(), 20));
    }
    for (index, rule) in rules.iter().enumerate() {
        failure(it, rule, &format!("podFailurePolicy.rules[{index}]"));
    }
    if let Some(policy) = it.get("successPolicy").cloned() {
        match it.text("completionMode") {
            "Indexed" => success(it, &policy),
            _ => it.invalid("successPolicy", &policy, "requires indexed completion mode"),
        }
    }
    let replacement = it.get("podReplacementPolicy").filter(|it| **it != "Failed").cloned();
    if let Some(policy) = replacement.filter(|_| it.has("podFailurePolicy")) {
        it.take_back("podReplacementPolicy", None);
        it.unsupported("podReplacementPolicy", &policy, &["Failed"]);
    }
    let spec = it.get("template").and_then(|it| it.get("spec")).cloned().unwrap_or_default();
    let policy = object::text(&spec, &["restartPolicy"]);
    match policy {
        "Always" | "" => {
            let why = "valid values: \"OnFailure\", \"Never\"";
            it.required("template.spec.restartPolicy", why);
        }
        "OnFailure" if it.has("podFailurePolicy") => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            it.invalid("template.spec.restartPolicy", &policy.into(), why);
        }
        _ => (),
    }
    if !matches!(it.path, Path::Field(Path::Root, _)) {
        // Of a cron job: jobs get their selectors when they are made.
        return it.take_back("selector", None);
    }
    let labels = labels_of(it);
    let selector = it.get("selector").cloned();
    let parsed: Option<LabelSelector> = selector.and_then(|it| serde_json::from_value(it).ok());
    let is_selected = match parsed.map(|it| it.compile()) {
        None => false,
        Some(compiled) => compiled.is_ok_and(|it| it.matches(&texts(Some(&labels)))),
    };
    if !is_selected {
        let why = "`selector` does not match template `labels`";
        it.invalid("template.metadata.labels", &labels, why);
    }
}

/// What goes with pods that have an index each, and what only with them.
fn indexes(it: &mut At<'_>) {
    let [completions, parallelism, failed, limit] =
        ["completions", "parallelism", "maxFailedIndexes", "backoffLimitPerIndex"]
            .map(|field| it.number(field));
    if failed.is_some() && limit.is_none() {
        it.required("backoffLimitPerIndex", "when maxFailedIndexes is specified");
    }
    let refuse = |it: &mut At<'_>, field: &str, value: Option<i64>, why: &str| {
        if let Some(value) = value {
            it.invalid(field, &value.into(), why);
        }
    };
    if it.text("completionMode") != "Indexed" {
        let why = "requires indexed completion mode";
        refuse(it, "backoffLimitPerIndex", limit, why);
        return refuse(it, "maxFailedIndexes", failed, why);
    }
    if completions.is_none() {
        it.required("completions", "when completion mode is Indexed");
    }
    let above = |value: Option<i64>, limit: i64| value.filter(|it| limit < *it);
    let why = format!("must be less than or equal to {MANY} when completion mode is Indexed");
    refuse(it, "parallelism", above(parallelism, MANY), &why);
    if let Some(completions) = completions {
        let why = "must be less than or equal to completions";
        refuse(it, "maxFailedIndexes", above(failed, completions), why);
    }
    let why = format!("must be less than or equal to {MANY}");
    refuse(it, "maxFailedIndexes", above(failed, MANY), &why);
    if limit.is_some() && above(completions, MANY).is_some() {
        const MOST: i64 = 10_000;
        if failed.is_none() {
            let why = format!("must be specified when completions is above {MANY}");
            it.required("maxFailedIndexes", &why);
        }
        let why = format!(
            "must be less than or equal to {MOST} when completions are above {MANY} and used with backoff limit per index"
        );
        refuse(it, "parallelism", above(parallelism, MOST), &why);
        refuse(it, "maxFailedIndexes", above(failed, MOST), &why);
    }
}

/// One rule of what the failure of a pod leads to.
fn failure(it: &mut At<'_>, rule: &Value, at: &str) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let action = object::text(rule, &["action"]);
    let field = format!("{at}.action");
    match action {
        "" => it.required(&field, &format!("valid values: {}", quoted(&ACTIONS))),
        "FailIndex" if !it.has("backoffLimitPerIndex") => {
            it.invalid(&field, &action.into(), "requires the backoffLimitPerIndex to be set");
        }
        known if ACTIONS.contains(&known) => (),
        _ => it.unsupported(&field, &action.into(), &ACTIONS),
    }
    let (codes, conditions) = (rule.get("onExitCodes"), list(rule, "onPodConditions"));
    if let Some(codes) = codes {
        exit_codes(it, codes, &format!("{at}.onExitCodes"));
    }
    if 20 < conditions.len() {
        let at = it.at(&format!("{at}.onPodConditions"));
        it.errors.push(FieldError::too_many(at, conditions.len(), 20));
    }
    for (index, condition) in conditions.iter().enumerate() {
        const STATUSES: [&str; 3] = ["False", "True", "Unknown"];
        let at = format!("{at}.onPodConditions[{index}]");
        let kind = object::text(condition, &["type"]);
        for why in Format::Qualified.check(kind) {
            it.invalid(&format!("{at}.type"), &kind.into(), &why);
        }
        let status = object::text(condition, &["status"]);
        if status.is_empty() {
            it.required(&format!("{at}.status"), &format!("valid values: {}", quoted(&STATUSES)));
        } else if !STATUSES.contains(&status) {
            it.unsupported(&format!("{at}.status"), &status.into(), &STATUSES);
        }
    }
    match (codes.is_some(), !conditions.is_empty()) {
        (true, true) => {
            it.wrong(at, "specifying both OnExitCodes and OnPodConditions is not supported");
        }
        (false, false) => {
            it.wrong(at, "specifying one of OnExitCodes and OnPodConditions is required");
        }
        _ => (),
    }
}

/// As Go shows a list of texts.
fn quoted(list: &[&str]) -> String {
    let list: Vec<String> = list.iter().map(|it| format!("{it:?}")).collect();
    format!("[{}]", list.join(" "))
}

fn exit_codes(it: &mut At<'_>, codes: &Value, at: &str) {
    const OPERATORS: [&str; 2] = ["In", "NotIn"];
    let operator = object::text(codes, &["operator"]);
    let field = format!("{at}.operator");
    if operator.is_empty() {
        it.required(&field, &format!("valid values: {}", quoted(&OPERATORS)));
    } else if !OPERATORS.contains(&operator) {
        it.unsupported(&field, &operator.into(), &OPERATORS);
    }
    if let Some(name) = codes.get("containerName").and_then(Value::as_str) {
        let spec = it.get("template").and_then(|it| it.get("spec")).cloned().unwrap_or_default();
        let mut containers =
            ["containers", "initContainers"].iter().flat_map(|field| list(&spec, field));
        if !containers.any(|it| it["name"] == name) {
            let why = "must be one of the container or initContainer names in the pod template";
            it.invalid(&format!("{at}.containerName"), &name.into(), why);
        }
    }
    let values = list(codes, "values");
    let field = format!("{at}.values");
    if values.is_empty() {
        let shown = codes.get("values").cloned().unwrap_or_default();
        it.invalid(&field, &shown, "at least one value is required");
    } else if 255 < values.len() {
        let at = it.at(&field);
        it.errors.push(FieldError::too_many(at, values.len(), 255));
    }
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().enumerate() {
        let field = format!("{field}[{index}]");
        if operator == "In" && *value == 0 {
            it.invalid(&field, value, "must not be 0 for the In operator");
        }
        if !seen.insert(value.as_i64()) {
            it.duplicate(&field, value);
        }
    }
    if !values.is_sorted_by_key(|it| it.as_i64()) {
        it.invalid(&field, &codes["values"], "must be ordered");
    }
}

/// What makes an indexed job a success before all of it is done.
fn success(it: &mut At<'_>, policy: &Value) {
    let rules = list(policy, "rules");
    if rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        it.required("successPolicy.rules", why);
    }
    if 20 < rules.len() {
        let at = it.at("successPolicy.rules");
        it.errors.push(FieldError::too_many(at, rules.len(), 20));
    }
    let completions = it.number("completions").unwrap_or(0);
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("successPolicy.rules[{index}]");
        let (count, wanted) = (rule.get("succeededCount"), rule.get("succeededIndexes"));
        if count.is_none() && wanted.is_none() {
            let why = "at least one of succeededCount or succeededIndexes must be specified";
            it.required(&at, why);
        }
        let mut n_wanted = None;
        if let Some(text) = wanted.and_then(Value::as_str) {
            let field = format!("{at}.succeededIndexes");
            if 65_536 < text.len() {
                let at = it.at(&field);
                it.errors.push(FieldError::too_long(at, 65_536));
            }
            match n_indexes(text, completions) {
                Ok(n) => n_wanted = Some(n),
                Err(why) => {
                    let why = format!("error parsing succeededIndexes: {why}");
                    it.invalid(&field, &text.into(), &why);
                }
            }
        }
        let Some(count) = count.and_then(Value::as_i64) else { continue };
        let field = format!("{at}.succeededCount");
        if count < 0 {
            it.invalid(&field, &count.into(), super::rule::NEGATIVE);
        }
        if completions < count {
            let why = format!(
                "must be less than or equal to {completions} (the number of specified completions)"
            );
            it.invalid(&field, &count.into(), &why);
        }
        if let Some(n_wanted) = n_wanted.filter(|it| *it < count) {
            let why = format!(
                "must be less than or equal to {n_wanted} (the number of indexes in the specified succeededIndexes field)"
            );
            it.invalid(&field, &count.into(), &why);
        }
    }
}

/// How many indexes a text such as `1,3-5` means.
pub(super) fn n_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut n_found) = (None, 0);
    for interval in intervals(text, completions) {
        let (first, end) = interval?;
        if let Some(last) = last.filter(|last| first <= *last) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        n_found += end - first + 1;
        last = Some(end);
    }
    Ok(n_found)
}

/// The first and the last of each interval of indexes.
pub(super) fn intervals(
    text: &str,
    completions: i64,
) -> impl Iterator<Item = Result<(i64, i64), String>> {
    let number = move |text: &str| -> Result<i64, String> {
        let found: i64 = text
            .parse()
            .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if completions <= found {
            return Err(format!("too large index: {text:?}"));
        }
        Ok(found)
    };
    let parts = text.split(',').filter(move |_| !text.is_empty());
    parts.map(move |part| match part.split_once('-') {
        Some((_, end)) if end.contains('-') => Err(format!(
            "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
        Some((first, end)) => match (number(first)?, number(end)?) {
            (first, end) if end <= first => {
                Err(format!("non-increasing order, previous: {first}, current: {end}"))
            }
            interval => Ok(interval),
        },
        None => number(part).map(|it| (it, it)),
    })
}

/// Whether a job is suspended and nothing of it runs: then it may be told where to run.
pub(super) fn waits(job: &Value) -> bool {
    let status = &job["status"];
    let conditions = list(status, "conditions");
    let is_told = conditions.iter().any(|it| it["type"] == "Suspended" && it["status"] == "True");
    job["spec"].get("suspend") == Some(&Value::Bool(true))
        && (is_told || status.get("startTime").is_none())
        && status.get("active").is_none_or(|it| *it == 0)
}

/// What the pods of a job that waits were to be, with what they may be told more.
pub(super) fn told_more(had: &Value, has: &Value) -> Value {
    let mut allowed = had["spec"].clone();
    let wanted = &has["spec"];
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        put(&mut allowed, field, wanted.get(field).cloned());
    }
    let affinity = wanted.get("affinity");
    let mut both = allowed.get("affinity").cloned().unwrap_or_else(|| json!({}));
    put(&mut both, "nodeAffinity", affinity.and_then(|it| it.get("nodeAffinity")).cloned());
    let is_needed = affinity.is_some() || both != json!({});
    put(&mut allowed, "affinity", Some(both).filter(|_| is_needed));
    for field in ["containers", "initContainers"] {
        let wanted = list(wanted, field);
        let containers = allowed.get_mut(field).and_then(Value::as_array_mut);
        for it in containers.filter(|it| it.len() == wanted.len()).into_iter().flatten() {
            if let Some(same) = wanted.iter().find(|same| same["name"] == it["name"]) {
                put(it, "resources", same.get("resources").cloned());
            }
        }
    }
    allowed
}

/// A job that leaves its selector to the server has the one that the server made, and its pods the
/// labels for it.
pub(super) fn own_selector(id: TypeId, it: &Value, errors: &mut Errors) {
    if it["spec"].get("manualSelector") == Some(&Value::Bool(true)) {
        return;
    }
    let Some(selector) = it["spec"].get("selector").filter(|it| !it.is_null()) else { return };
    let own = [
        ("controller-uid", object::uid(it)),
        ("job-name", object::name(it)),
        ("batch.kubernetes.io/controller-uid", object::uid(it)),
        ("batch.kubernetes.io/job-name", object::name(it)),
    ];
    let labels = it.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
    let mut found = Vec::new();
    for (key, value) in own {
        let at = format!("spec.template.metadata.labels[{key}]");
        let why = format!("must be '{value}'");
        match labels.get(key) {
            Some(is) if is == value => (),
            Some(_) => found.push(FieldError::invalid(at, labels, &why)),
            None => found.push(FieldError::required(at, &why)),
        }
    }
    let own: BTreeMap<String, String> =
        own.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let parsed: Option<LabelSelector> = serde_json::from_value(selector.clone()).ok();
    if let Some(Ok(compiled)) = parsed.map(|it| it.compile())
        && !compiled.matches(&own)
    {
        let shown = internal::line(id, "spec.selector", selector);
        let why = "`selector` not auto-generated";
        found.push(FieldError::invalid_form("spec.selector", &shown, why));
    }
    errors.splice(0..0, found);
}

/// As [`own_selector`], of a change; what was like that before stays so.
pub(super) fn kept_selector(id: TypeId, old: &Value, new: &Value, errors: &mut Errors) {
    let parts = |it: &Value| {
        let labels = it.pointer("/spec/template/metadata/labels").cloned();
        (object::uid(it).to_owned(), labels, it["spec"].get("selector").cloned())
    };
    if parts(old) != parts(new) {
        own_selector(id, new, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        assert_eq!(n_indexes("0,2-4", 5), Ok(4));
        assert_eq!(n_indexes("", 5), Ok(0));
        for bad in ["5", "a", "2,1", "1-1", "1-2-3", "3-2"] {
            assert!(n_indexes(bad, 5).is_err(), "{bad}");
        }
    }
}
