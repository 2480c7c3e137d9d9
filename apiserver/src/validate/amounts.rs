//! Quotas, ranges of limits, and how many replicas there may be.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    at::{At, Check},
    formats::Format,
    rule::quantity,
};
use crate::quota::{MAX_WEIGHT, OWN};

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("api.autoscaling.v2.ContainerResourceMetricSource", one_target),
    ("api.autoscaling.v2.ExternalMetricSource", |it| {
        some_target(it, "must set either a target value for metric or a per-pod target");
        let target = it.get("target").cloned().unwrap_or_default();
        if target.get("value").is_some() && target.get("averageValue").is_some() {
            let why = "may not set both a target value for metric and a per-pod target";
            it.forbidden("target.value", why);
        }
    }),
    ("api.autoscaling.v2.HorizontalPodAutoscalerSpec", autoscaler),
    ("api.autoscaling.v2.HPAScalingRules", scaling_rules),
    ("api.autoscaling.v2.MetricSpec", metric),
    ("api.autoscaling.v2.MetricTarget", target),
    ("api.autoscaling.v2.ObjectMetricSource", |it| {
        some_target(it, "must set either a target value or averageValue");
    }),
    ("api.autoscaling.v2.PodsMetricSource", |it| {
        if it.get("target").is_none_or(|it| it.get("averageValue").is_none()) {
            it.required("target.averageValue", "must specify a positive target averageValue");
        }
    }),
    ("api.autoscaling.v2.ResourceMetricSource", one_target),
    ("api.core.v1.LimitRangeItem", limit_range),
    ("api.core.v1.LimitRangeSpec", |it| {
        let mut seen = HashSet::new();
        for (index, limit) in it.list("limits").to_vec().iter().enumerate() {
            if let Some(kind) = limit.get("type").filter(|kind| !seen.insert(kind.to_string())) {
                it.duplicate(&format!("limits[{index}].type"), kind);
            }
        }
    }),
    ("api.core.v1.ResourceQuotaSpec", quota),
    ("io.insula.v1.TenantQuotaSpec", tenant_quota),
];

/// Resources that only quotas of some scopes may be about.
const STANDARD_OF_QUOTA: [&str; 20] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];

/// Whether a quota of a scope may be about a resource.
fn goes_with(scope: &str, resource: &str) -> bool {
    let of_pods =
        ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || of_pods.contains(&resource),
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        _ => true,
    }
}

/// The names that a quota limits; `own` are known beside those of Kubernetes.
fn limited(it: &mut At<'_>, own: &[&str]) {
    const STANDARD: [&str; 24] = [
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.storage",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "persistentvolumeclaims",
        "configmaps",
        "services.nodeports",
        "services.loadbalancers",
        "storage",
        "hugepages",
        "requests.hugepages",
        "limits.hugepages",
        "bindings",
    ];
    let hard = it.get("hard").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, value) in &hard {
        let at = format!("hard[{name}]");
        let wrong = Format::Qualified.check(name);
        if name.starts_with("insula.io/") && !own.contains(&&**name) {
            it.unsupported(&at, &name.as_str().into(), own);
        }
        for why in &wrong {
            it.invalid(&at, &name.as_str().into(), why);
        }
        let is_known = STANDARD.contains(&&**name) || name.contains("hugepages-");
        if wrong.is_empty() && !name.contains('/') && !is_known {
            it.invalid(
                &at,
                &name.as_str().into(),
                "must be a standard resource type or fully qualified",
            );
            it.invalid(&at, &name.as_str().into(), "must be a standard resource for quota");
        }
        let counted = ["pods", "services", "replicationcontrollers", "secrets", "configmaps"];
        let is_count =
            counted.contains(&&**name) || name.starts_with("count/") || own.contains(&&**name);
        if is_count && quantity(value).is_some_and(|it| it.wide_milli() % 1000 != 0) {
            it.invalid(&at, value, "must be an integer");
        }
    }
}

fn tenant_quota(it: &mut At<'_>) {
    limited(it, &OWN);
    if it.number("weight").is_some_and(|weight| !(1..=MAX_WEIGHT).contains(&weight)) {
        let weight = it.get("weight").cloned().unwrap_or_default();
        it.invalid("weight", &weight, "must be between 1 and 10000");
    }
}

fn quota(it: &mut At<'_>) {
    limited(it, &[]);
    let hard = it.get("hard").and_then(Value::as_object).cloned().unwrap_or_default();
    let scopes = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    let found = it.list("scopes").to_vec();
    for scope in &found {
        if !scopes.contains(&scope.as_str().unwrap_or_default()) {
            it.invalid("scopes", &it.it["scopes"].clone(), "unsupported scope");
        }
    }
    for scope in found.iter().filter_map(Value::as_str) {
        for name in hard.keys() {
            if STANDARD_OF_QUOTA.contains(&&**name) && !goes_with(scope, name) {
                let why = "unsupported scope applied to resource";
                it.invalid("scopes", &it.it["scopes"].clone(), why);
            }
        }
    }
    for (one, two) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if found.contains(&one.into()) && found.contains(&two.into()) {
            it.invalid("scopes", &it.it["scopes"].clone(), "conflicting scopes");
        }
    }
}

fn limit_range(it: &mut At<'_>) {
    let kind = it.text("type").to_owned();
    let amounts =
        |field: &str| it.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let [min, max, default, request, ratio] =
        ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"].map(amounts);
    const KINDS: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];
    let is_name = !kind.is_empty() && insula_api::formats::qualified(&kind).is_empty();
    if is_name && !kind.contains('/') && !KINDS.contains(&&*kind) {
        let shown = kind.as_str().into();
        it.invalid("type", &shown, "must be a standard limit type or fully qualified");
    }
    if kind == "Pod" {
        for (field, map) in [("default", &default), ("defaultRequest", &request)] {
            if !map.is_empty() {
                it.forbidden(field, "may not be specified when `type` is 'Pod'");
            }
        }
    }
    if kind == "PersistentVolumeClaim"
        && !min.contains_key("storage")
        && !max.contains_key("storage")
    {
        it.required(
            "limits",
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    let names: HashSet<&String> = [&min, &max, &default, &request, &ratio]
        .into_iter()
        .flat_map(serde_json::Map::keys)
        .collect();
    let mut names: Vec<&String> = names.into_iter().collect();
    names.sort();
    for name in names {
        let of = |map: &serde_json::Map<String, Value>| map.get(name).and_then(quantity);
        let (low, high, given, asked) = (of(&min), of(&max), of(&default), of(&request));
        for (field, small, large, why) in [
            ("min", low, high, "min value {a} is greater than max value {b}"),
            (
                "defaultRequest",
                low,
                asked,
                "min value {a} is greater than default request value {b}",
            ),
            (
                "defaultRequest",
                asked,
                high,
                "default request value {a} is greater than max value {b}",
            ),
            (
                "defaultRequest",
                asked,
                given,
                "default request value {a} is greater than default limit value {b}",
            ),
            ("default", low, given, "min value {a} is greater than default value {b}"),
            ("default", given, high, "default value {a} is greater than max value {b}"),
        ] {
            if let (Some(small), Some(large)) = (small, large)
                && large < small
            {
                let why = why.replace("{a}", &small.to_string()).replace("{b}", &large.to_string());
                let shown = match &*why {
                    why if why.starts_with("default value") => large,
                    _ if field == "default" => small,
                    why if field == "min" || why.starts_with("default") => small,
                    _ => large,
                };
                it.invalid(&format!("{field}[{name}]"), &shown.to_string().into(), &why);
            }
        }
        if of(&ratio).is_some_and(|it| it.milli_value() < 1000) {
            let shown = ratio[name].clone();
            let why = format!("ratio {} is less than 1", shown.as_str().unwrap_or_default());
            it.invalid(&format!("maxLimitRequestRatio[{name}]"), &shown, &why);
        }
    }
}

fn autoscaler(it: &mut At<'_>) {
    let (min, max) = (it.number("minReplicas"), it.number("maxReplicas").unwrap_or(0));
    if let Some(min @ ..1) = min {
        it.invalid("minReplicas", &min.into(), "must be greater than or equal to 1");
    }
    match max {
        0 => it.required("maxReplicas", "must be set and greater than 0"),
        ..0 => it.invalid("maxReplicas", &max.into(), "must be greater than or equal to 1"),
        _ => (),
    }
    if min.is_some_and(|min| max < min) {
        it.invalid("maxReplicas", &max.into(), "must be greater than or equal to `minReplicas`");
    }
    let is_outer = |it: &Value| matches!(it["type"].as_str(), Some("Object" | "External"));
    if min == Some(0) && !it.list("metrics").iter().any(is_outer) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        it.forbidden("metrics", why);
    }
    let of_target = |field: &str| {
        let target = it.get("scaleTargetRef").and_then(|it| it.get(field));
        target.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (api_version, kind) = (of_target("apiVersion"), of_target("kind"));
    let why = match api_version.split_once('/') {
        Some((_, version)) if version.contains('/') => {
            format!("unexpected GroupVersion string: {api_version}")
        }
        Some(("", _)) | None if kind != "ReplicationController" => {
            "apiVersion must specify API group".to_owned()
        }
        _ => return,
    };
    it.invalid("scaleTargetRef.apiVersion", &api_version.into(), &why);
}

fn metric(it: &mut At<'_>) {
    let kind = it.text("type").to_owned();
    let fields = ["object", "pods", "resource", "external", "containerResource"];
    let mut chars = kind.chars();
    let wanted: String =
        chars.next().map(|it| it.to_ascii_lowercase()).into_iter().chain(chars).collect();
    if !fields.contains(&&*wanted) {
        return;
    }
    if !it.has(&wanted) {
        it.required(&wanted, "must populate information for the given metric source");
    }
    for field in fields {
        if field != wanted && it.has(field) {
            it.forbidden(field, "must populate the given metric source only");
        }
    }
}

fn target(it: &mut At<'_>) {
    if it.number("averageUtilization").is_some_and(|it| it < 1) {
        let shown = it.it["averageUtilization"].clone();
        it.invalid("averageUtilization", &shown, "must be greater than 0");
    }
    for field in ["value", "averageValue"] {
        let found = it.get(field).cloned();
        if let Some(found) = found
            && quantity(&found).is_some_and(|it| it.is_zero() || it.is_negative())
        {
            it.invalid(field, &found, "must be positive");
        }
    }
}

/// A metric of a resource aims at an amount or at a part of what is asked for.
fn one_target(it: &mut At<'_>) {
    let target = it.get("target").cloned().unwrap_or_default();
    let has = |field: &str| target.get(field).is_some_and(|it| !it.is_null());
    match (has("averageUtilization"), has("averageValue")) {
        (false, false) => {
            let why = "must set either a target raw value or a target utilization";
            it.required("target.averageUtilization", why);
        }
        (true, true) => {
            let why = "may not set both a target raw value and a target utilization";
            it.forbidden("target.averageValue", why);
        }
        _ => (),
    }
}

fn some_target(it: &mut At<'_>, why: &str) {
    let target = it.get("target").cloned().unwrap_or_default();
    if target.get("value").is_none() && target.get("averageValue").is_none() {
        it.required("target.averageValue", why);
    }
}

fn scaling_rules(it: &mut At<'_>) {
    match it.number("stabilizationWindowSeconds") {
        Some(seconds @ ..0) => {
            let why = "must be greater than or equal to zero";
            it.invalid("stabilizationWindowSeconds", &seconds.into(), why);
        }
        Some(seconds @ 3601..) => {
            let why = "must be less than or equal to 3600";
            it.invalid("stabilizationWindowSeconds", &seconds.into(), why);
        }
        _ => (),
    }
    if it.has("policies") && it.list("policies").is_empty() {
        it.required("policies", "must specify at least one Policy");
    }
}
