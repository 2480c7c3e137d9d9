//! Which objects a quota is about: those that are in all of its scopes.

use serde_json::Value;

use super::{list, qos::qos_class, usage::Kind};
use crate::{
    object,
    selector::{LabelSelector, LabelSelectorRequirement},
};

/// Whether `it` is in all scopes of the quota.
pub fn match_all(kind: Kind, quota: &Value, it: &Value) -> bool {
    let spec = &quota["spec"];
    let simple =
        list(spec, "scopes").filter_map(Value::as_str).all(|scope| is_in(kind, scope, None, it));
    let selector = spec.get("scopeSelector").map(|it| list(it, "matchExpressions"));
    simple
        && selector
            .into_iter()
            .flatten()
            .all(|term| is_in(kind, object::text(term, &["scopeName"]), Some(term), it))
}

fn is_in(kind: Kind, scope: &str, term: Option<&Value>, it: &Value) -> bool {
    match (kind, scope) {
        (Kind::Pods, "Terminating") => has_deadline(it),
        (Kind::Pods, "NotTerminating") => !has_deadline(it),
        (Kind::Pods, "BestEffort") => qos_class(it) == "BestEffort",
        (Kind::Pods, "NotBestEffort") => qos_class(it) != "BestEffort",
        (Kind::Pods, "PriorityClass") => {
            is_selected(scope, object::text(it, &["spec", "priorityClassName"]), term)
        }
        (Kind::Pods, "CrossNamespacePodAffinity") => crosses_namespaces(it),
        (Kind::Claims, "VolumeAttributesClass") => {
            is_selected(scope, object::text(it, &["spec", "volumeAttributesClassName"]), term)
        }
        _ => false,
    }
}

/// Whether the pod says itself when it ends.
pub fn has_deadline(pod: &Value) -> bool {
    let seconds = pod["spec"].get("activeDeadlineSeconds").and_then(Value::as_i64);
    seconds.is_some_and(|it| 0 <= it)
}

fn is_selected(scope: &str, class: &str, term: Option<&Value>) -> bool {
    let operator = term.map_or("Exists", |it| object::text(it, &["operator"]));
    if operator == "Exists" {
        return !class.is_empty();
    }
    let values = term.map(|it| list(it, "values")).into_iter().flatten();
    let requirement = LabelSelectorRequirement {
        key: scope.to_owned(),
        operator: operator.to_owned(),
        values: Some(values.filter_map(|it| it.as_str().map(str::to_owned)).collect()),
    };
    let selector = LabelSelector { match_labels: None, match_expressions: Some(vec![requirement]) };
    selector.compile().is_ok_and(|it| it.matches_by(|_| Some(class).filter(|it| !it.is_empty())))
}

fn crosses_namespaces(pod: &Value) -> bool {
    let Some(affinity) = pod["spec"].get("affinity") else { return false };
    ["podAffinity", "podAntiAffinity"].iter().filter_map(|it| affinity.get(*it)).any(|it| {
        let required = list(it, "requiredDuringSchedulingIgnoredDuringExecution");
        let preferred = list(it, "preferredDuringSchedulingIgnoredDuringExecution");
        let preferred = preferred.filter_map(|it| it.get("podAffinityTerm"));
        required.chain(preferred).any(|term| {
            list(term, "namespaces").next().is_some()
                || term.get("namespaceSelector").is_some_and(|it| !it.is_null())
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scopes() {
        let quota = |spec: Value| json!({ "spec": spec });
        let pod = json!({"spec": {"priorityClassName": "high", "containers": []}});
        for (spec, expected) in [
            (json!({}), true),
            (json!({"scopes": ["BestEffort", "NotTerminating"]}), true),
            (json!({"scopes": ["BestEffort", "Terminating"]}), false),
            (json!({"scopes": ["PriorityClass"]}), true),
            (
                json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
                true,
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "NotIn", "values": ["high"]}]}}),
                false,
            ),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), false),
        ] {
            assert_eq!(match_all(Kind::Pods, &quota(spec.clone()), &pod), expected, "{spec}");
        }
        // What is no pod is in no scope of pods.
        assert!(!match_all(Kind::Others, &quota(json!({"scopes": ["BestEffort"]})), &json!({})));
    }
}
