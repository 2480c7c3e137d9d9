//! Horizontal pod autoscalers of version 1, which know one metric: the processor's use in percent.
//!
//! What version 1 has no field for is in annotations, as JSON, so that whoever reads and writes
//! that version loses nothing.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::{Move, moves, to_other, to_stored};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// Annotations that are made here, and that nobody keeps.
const MADE: &[&str] = &[
    METRICS,
    CURRENT,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
/// What is aimed at if nothing is said, in percent.
const UTILIZATION: i64 = 80;

static SPEC: LazyLock<Vec<Move>> = LazyLock::new(|| moves("MetricSpec"));
static STATUS: LazyLock<Vec<Move>> = LazyLock::new(|| moves("MetricStatus"));
/// Amounts that version 1 always writes.
const ALWAYS: &[(&str, &str)] = &[("object", "targetValue"), ("pods", "targetAverageValue")];
const ALWAYS_CURRENT: &[(&str, &str)] = &[
    ("object", "currentValue"),
    ("external", "currentValue"),
    ("pods", "currentAverageValue"),
    ("resource", "currentAverageValue"),
    ("containerResource", "currentAverageValue"),
];

/// Version 2 to version 1.
pub(super) fn show(it: &mut Value) {
    drop_made(it);
    let (mut others, mut target) = (Vec::new(), None);
    for metric in take_list(it, "spec", "metrics") {
        match utilization(&metric, "target") {
            Some(percent) => target = target.or(Some(percent)),
            None => others.push(shown(metric, &SPEC, ALWAYS)),
        }
    }
    if let Some(percent) = target {
        it["spec"]["targetCPUUtilizationPercentage"] = percent;
    }
    let current = take_list(it, "status", "currentMetrics");
    if let Some(percent) = current.iter().filter_map(|it| utilization(it, "current")).next_back() {
        it["status"]["currentCPUUtilizationPercentage"] = percent;
    }
    let current = current.into_iter().map(|it| shown(it, &STATUS, ALWAYS_CURRENT)).collect();
    let conditions = take_list(it, "status", "conditions");
    for (name, list) in [(METRICS, others), (CURRENT, current), (CONDITIONS, conditions)] {
        if !list.is_empty() {
            annotate(it, name, &list.into());
        }
    }
    if let Some(behavior) = it["spec"].as_object_mut().and_then(|spec| spec.remove("behavior")) {
        // Upstream writes the names of its program's fields here.
        annotate(it, BEHAVIOR, &renamed(behavior, char::to_ascii_uppercase));
    }
}

/// Version 1 to version 2.
pub(super) fn keep(it: &mut Value) {
    let read = |name: &str| -> Option<Value> {
        let annotations = it.pointer("/metadata/annotations")?;
        serde_json::from_str(annotations.get(name)?.as_str()?).ok()
    };
    let list = |name: &str| match read(name) {
        Some(Value::Array(list)) => Some(list),
        _ => None,
    };
    let (metrics, current) = (list(METRICS).unwrap_or_default(), list(CURRENT));
    let (conditions, behavior) = (list(CONDITIONS), read(BEHAVIOR));
    drop_made(it);
    let mut metrics: Vec<Value> = metrics.into_iter().map(kept).collect();
    let target = it["spec"].as_object_mut().and_then(|spec| spec.remove(TARGET));
    match target {
        Some(percent) if !percent.is_null() => metrics.push(of_processor("target", percent)),
        _ if metrics.is_empty() => metrics.push(of_processor("target", UTILIZATION.into())),
        _ => (),
    }
    it["spec"]["metrics"] = metrics.into();
    if let Some(behavior) = behavior.filter(Value::is_object) {
        it["spec"]["behavior"] = renamed(behavior, char::to_ascii_lowercase);
    }
    let status = it.get_mut("status").and_then(Value::as_object_mut);
    let percent = status.and_then(|it| it.remove("currentCPUUtilizationPercentage"));
    match (current, percent) {
        (Some(current), _) => {
            let moved = current.into_iter().map(|mut metric| {
                to_stored(&STATUS, &mut metric);
                metric
            });
            it["status"]["currentMetrics"] = moved.collect();
        }
        (None, Some(percent)) => {
            it["status"]["currentMetrics"] = json!([of_processor("current", percent)]);
        }
        (None, None) => (),
    }
    if let Some(conditions) = conditions {
        it["status"]["conditions"] = conditions.into();
    }
}

const TARGET: &str = "targetCPUUtilizationPercentage";

/// The percentage that a metric of the processor is about.
fn utilization(metric: &Value, which: &str) -> Option<Value> {
    let resource = metric.get("resource").filter(|it| it["name"] == "cpu")?;
    resource.get(which)?.get("averageUtilization").filter(|it| !it.is_null()).cloned()
}

fn of_processor(which: &str, percent: Value) -> Value {
    let mut amount = json!({ "averageUtilization": percent });
    if which == "target" {
        amount["type"] = "Utilization".into();
    }
    json!({"type": "Resource", "resource": {"name": "cpu", which: amount}})
}

fn shown(mut metric: Value, moves: &[Move], always: &[(&str, &str)]) -> Value {
    // How a target is meant is clear from which of its fields is there.
    for source in metric.as_object_mut().into_iter().flat_map(Map::values_mut) {
        let Some(target) = source.get_mut("target").and_then(Value::as_object_mut) else {
            continue;
        };
        target.remove("type");
        if target.is_empty()
            && let Some(source) = source.as_object_mut()
        {
            source.remove("target");
        }
    }
    to_other(moves, &mut metric);
    for (source, field) in always {
        if let Some(source) = metric.get_mut(source).and_then(Value::as_object_mut) {
            source.entry(*field).or_insert_with(|| "0".into());
        }
    }
    metric
}

fn kept(mut metric: Value) -> Value {
    if let Some(object) = metric.get_mut("object").and_then(Value::as_object_mut)
        && object.contains_key("averageValue")
        && object.get("targetValue").is_some_and(|it| it == "0")
    {
        // Version 1 cannot leave it out.
        object.remove("targetValue");
    }
    to_stored(&SPEC, &mut metric);
    for (name, source) in metric.as_object_mut().into_iter().flatten() {
        let Some(source) = source.as_object_mut() else { continue };
        let target = source.entry("target").or_insert_with(|| json!({}));
        let has = |field: &str| target.get(field).is_some_and(|it| !it.is_null());
        let kind = match name.as_str() {
            "resource" | "containerResource" if has("averageUtilization") => "Utilization",
            "object" if !has("averageValue") => "Value",
            "external" if has("value") => "Value",
            _ => "AverageValue",
        };
        target["type"] = kind.into();
    }
    metric
}

fn take_list(it: &mut Value, part: &str, field: &str) -> Vec<Value> {
    let found = it.get_mut(part).and_then(Value::as_object_mut).and_then(|it| it.remove(field));
    match found {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn annotate(it: &mut Value, name: &str, value: &Value) {
    it["metadata"]["annotations"][name] = value.to_string().into();
}

fn drop_made(it: &mut Value) {
    let Some(metadata) = it.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| !MADE.contains(&name.as_str()));
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
}

/// The same with the first letter of every field's name changed, and without what is null.
fn renamed(it: Value, change: fn(&char) -> char) -> Value {
    match it {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            let renamed = fields.map(|(name, value)| {
                let mut letters = name.chars();
                let first = letters.next().map(|it| change(&it));
                (first.into_iter().chain(letters).collect::<String>(), renamed(value, change))
            });
            Value::Object(renamed.collect())
        }
        Value::Array(list) => list.into_iter().map(|it| renamed(it, change)).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::other;
    use super::*;
    use crate::schema::Gvk;

    fn check(v2: &Value, v1: &[(&str, Value)]) {
        let it = other(&Gvk::new("autoscaling", "v1", "HorizontalPodAutoscaler")).unwrap();
        let mut made = v2.clone();
        it.show(&mut made);
        for (pointer, expected) in v1 {
            let found = made.pointer(pointer).cloned().unwrap_or_default();
            let found = match found.as_str().and_then(|text| serde_json::from_str(text).ok()) {
                Some(parsed) => parsed,
                None => found,
            };
            assert_eq!(found, *expected, "{pointer}");
        }
        it.keep(&mut made);
        assert_eq!(made, *v2);
    }

    #[test]
    fn one_metric_of_the_processor_is_a_field() {
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "annotations": {"mine": "1"}},
            "spec": {"maxReplicas": 3, "metrics": [of_processor("target", 50.into())]},
            "status": {"currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                "current": {"averageUtilization": 7, "averageValue": "3m"}}}]},
        });
        check(
            &v2,
            &[
                ("/apiVersion", json!("autoscaling/v1")),
                ("/spec/targetCPUUtilizationPercentage", 50.into()),
                ("/spec/metrics", Value::Null),
                ("/status/currentCPUUtilizationPercentage", 7.into()),
            ],
        );
    }

    #[test]
    fn all_others_are_annotations() {
        let v2 = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "m"}, "target": {"type": "Value", "value": "9"}}},
                {"type": "External", "external": {"metric": {"name": "m", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "2"}}},
            ], "behavior": {"scaleUp": {"selectPolicy": "Max", "policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}]}}},
            "status": {"conditions": [{"type": "AbleToScale", "status": "True"}]},
        });
        check(
            &v2,
            &[
                (
                    "/metadata/annotations/autoscaling.alpha.kubernetes.io~1metrics",
                    json!([
                        {"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}},
                        {"type": "Pods", "pods": {"metricName": "m", "targetAverageValue": "5"}},
                        {"type": "Object", "object": {"target": {"kind": "Service", "name": "s"}, "metricName": "m", "targetValue": "9"}},
                        {"type": "External", "external": {"metricName": "m", "metricSelector": {"matchLabels": {"a": "b"}}, "targetAverageValue": "2"}},
                    ]),
                ),
                (
                    "/metadata/annotations/autoscaling.alpha.kubernetes.io~1behavior",
                    json!({"ScaleUp": {"SelectPolicy": "Max", "Policies": [{"Type": "Pods", "Value": 4, "PeriodSeconds": 15}]}}),
                ),
            ],
        );
    }

    #[test]
    fn nothing_said_is_the_default() {
        let it = other(&Gvk::new("autoscaling", "v1", "HorizontalPodAutoscaler")).unwrap();
        let mut made =
            json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "spec": {}});
        it.keep(&mut made);
        assert_eq!(made["spec"]["metrics"], json!([of_processor("target", 80.into())]));
    }
}
