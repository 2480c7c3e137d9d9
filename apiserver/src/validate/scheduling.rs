//! Where pods may run: tolerations, affinities, how they are spread; and selectors.

use super::{
    at::{At, Check},
    formats::Format,
    pods::{list, text},
};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("apimachinery.pkg.apis.meta.v1.LabelSelectorRequirement", requirement),
    ("api.core.v1.Affinity", affinity),
    ("api.core.v1.NodeSelector", node_selector),
    ("api.core.v1.NodeSelectorRequirement", node_requirement),
    ("api.core.v1.PodAffinityTerm", affinity_term),
    ("api.core.v1.PodSchedulingGroup", scheduling_group),
    ("api.core.v1.Toleration", toleration),
    ("api.core.v1.TopologySpreadConstraint", spread),
    ("api.scheduling.v1alpha2.PodGroupSchedulingPolicy", group_policy),
    ("api.scheduling.v1alpha2.PodGroupSpec", only_what_is_honoured),
    ("api.scheduling.v1alpha2.PodGroupTemplate", only_what_is_honoured),
];

/// Which group of pods a pod is of.
fn scheduling_group(it: &mut At<'_>) {
    if !it.has("podGroupName") {
        let why = "must specify one of: `podGroupName`";
        return it.invalid("podGroupName", &serde_json::Value::Null, why);
    }
    let name = it.text("podGroupName").to_owned();
    for why in Format::Subdomain.check(&name) {
        it.invalid("podGroupName", &name.as_str().into(), &why);
    }
}

/// How the pods of a group are scheduled: in one way.
fn group_policy(it: &mut At<'_>) {
    match (it.has("basic"), it.has("gang")) {
        (false, false) => it.invalid("", &"".into(), "must specify one of: `basic`, `gang`"),
        (true, true) => {
            let why = "must specify exactly one of: `basic`, `gang`";
            it.invalid("", &"{`basic`, `gang`}".into(), why);
        }
        _ => (),
    }
}

/// What nothing would come of is refused: where upstream's gates are closed, and ours too.
fn only_what_is_honoured(it: &mut At<'_>) {
    let is_set = it.get("schedulingConstraints").is_some_and(|it| !it.is_null());
    if is_set {
        it.forbidden("schedulingConstraints", "");
    }
    if !it.list("resourceClaims").is_empty() {
        it.forbidden("resourceClaims", "");
    }
}

fn toleration(it: &mut At<'_>) {
    let text = |field: &str| it.text(field).to_owned();
    let (key, operator, value, effect) =
        (text("key"), text("operator"), text("value"), text("effect"));
    if key.is_empty() && operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        it.invalid("operator", &operator.as_str().into(), why);
    }
    if it.has("tolerationSeconds") && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        it.invalid("effect", &effect.as_str().into(), why);
    }
    match &*operator {
        "" | "Equal" => {
            let wrong = Format::LabelValue.check(&value);
            if !wrong.is_empty() && !value.is_empty() {
                it.invalid("operator", &value.into(), &wrong.join(";"));
            }
        }
        "Exists" if !value.is_empty() => {
            it.invalid(
                "operator",
                &value.into(),
                "value must be empty when `operator` is 'Exists'",
            );
        }
        "Exists" => (),
        _ => it.unsupported("operator", &operator.into(), &["Equal", "Exists"]),
    }
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !effect.is_empty() && !effects.contains(&&*effect) {
        it.unsupported("effect", &effect.into(), &effects);
    }
}

fn spread(it: &mut At<'_>) {
    if it.number("maxSkew").is_none_or(|it| it == 0) {
        it.take_back("maxSkew", None);
        it.invalid("maxSkew", &0.into(), "must be greater than zero");
    }
    if it.text("topologyKey").is_empty() {
        it.required("topologyKey", "can not be empty");
    } else {
        let key = it.text("topologyKey").to_owned();
        for why in Format::Qualified.check(&key) {
            it.invalid("topologyKey", &key.as_str().into(), &why);
        }
    }
    let allowed = ["DoNotSchedule", "ScheduleAnyway"];
    let when = it.text("whenUnsatisfiable").to_owned();
    if !allowed.contains(&&*when) {
        it.unsupported("whenUnsatisfiable", &when.as_str().into(), &allowed);
    }
    if let Some(domains) = it.number("minDomains") {
        if domains <= 0 {
            it.invalid("minDomains", &domains.into(), "must be greater than zero");
        }
        if when != "DoNotSchedule" {
            let why =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
            it.invalid("minDomains", &domains.into(), &why);
        }
    }
    label_keys(it, "matchLabelKeys");
}

/// Keys that stand for requirements of the selector beside them.
fn label_keys(it: &mut At<'_>, field: &str) {
    let keys = it.list(field).to_vec();
    if !keys.is_empty() && !it.has("labelSelector") {
        it.forbidden(field, "must not be specified when labelSelector is not set");
    }
    for (index, key) in keys.iter().enumerate() {
        for why in Format::Qualified.check(key.as_str().unwrap_or_default()) {
            it.invalid(&format!("{field}[{index}]"), key, &why);
        }
    }
}

fn affinity_term(it: &mut At<'_>) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        label_keys(it, field);
    }
    let key = it.text("topologyKey").to_owned();
    if key.is_empty() {
        it.required("topologyKey", "can not be empty");
    }
    for why in Format::Qualified.check(&key) {
        it.invalid("topologyKey", &key.as_str().into(), &why);
    }
}

fn affinity(it: &mut At<'_>) {
    let required = it
        .get("nodeAffinity")
        .and_then(|it| it.get("requiredDuringSchedulingIgnoredDuringExecution"));
    if required.is_some_and(|it| list(it, "nodeSelectorTerms").is_empty()) {
        let at = "nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        it.required(at, "must have at least one node selector term");
    }
}

fn node_selector(it: &mut At<'_>) {
    for (index, term) in it.list("nodeSelectorTerms").to_vec().iter().enumerate() {
        for (at, field) in list(term, "matchFields").iter().enumerate() {
            if text(field, "key") != "metadata.name" {
                let at = format!("nodeSelectorTerms[{index}].matchFields[{at}].key");
                it.invalid(&at, &field["key"], "not a valid field selector key");
            }
        }
    }
}

/// One requirement of a selector of nodes.
fn node_requirement(it: &mut At<'_>) {
    let one = matches!(it.text("operator"), "Gt" | "Lt");
    if one && it.list("values").len() != 1 {
        it.required("values", "must be specified single value when `operator` is 'Lt' or 'Gt'");
    }
    selects(it, one, serde_json::Value::Null);
}

/// One requirement of a label selector.
fn requirement(it: &mut At<'_>) {
    selects(it, false, "".into());
}

/// What holds for requirements of both kinds; `none` is how an operator that is not there is shown.
fn selects(it: &mut At<'_>, is_known: bool, none: serde_json::Value) {
    let is_empty = it.list("values").is_empty();
    match it.text("operator") {
        "In" | "NotIn" if is_empty => {
            it.required("values", "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !is_empty => it.forbidden(
            "values",
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => (),
        _ if is_known => (),
        _ => {
            let operator = it.get("operator").unwrap_or(&none);
            it.invalid("operator", operator, "not a valid selector operator");
        }
    }
    if it.text("key").is_empty() {
        for why in Format::Qualified.check("") {
            it.invalid("key", &"".into(), &why);
        }
    }
}
