//! On which nodes the pods of a DaemonSet run.

use insula_api::selector::Selector;
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
    PodTemplateSpec, Toleration,
};

use crate::taints::{
    DISK_PRESSURE, MEMORY_PRESSURE, NETWORK_UNAVAILABLE, NO_EXECUTE, NO_SCHEDULE, NOT_READY,
    PID_PRESSURE, UNREACHABLE, UNSCHEDULABLE, taints, tolerates,
};

/// What is to be done about the pods of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Eligible {
    /// A pod is to be there.
    pub(super) runs: bool,
    /// One that is there may stay.
    pub(super) stays: bool,
}

/// All of a template that [`eligible`] looks at.
pub(super) fn placement(template: &PodTemplateSpec) -> PodTemplateSpec {
    let required = |spec: &PodSpec| Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: required(spec).cloned(),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    };
    let spec = template.spec.as_ref().map(|spec| PodSpec {
        node_name: spec.node_name.clone(),
        node_selector: spec.node_selector.clone(),
        affinity: Some(required(spec)),
        tolerations: spec.tolerations.clone(),
        host_network: spec.host_network,
        ..PodSpec::default()
    });
    PodTemplateSpec { spec, ..PodTemplateSpec::default() }
}

/// Judges a node as the scheduler would, without looking at what is free on it.
pub(super) fn eligible(template: &PodTemplateSpec, node: &Node) -> Eligible {
    let never = Eligible { runs: false, stays: false };
    let Some(spec) = &template.spec else { return never };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if spec.node_name.as_ref().is_some_and(|it| !it.is_empty() && it != name)
        || !is_selected(spec, node)
    {
        return never;
    }
    let tolerations = tolerations(spec);
    let keeps_off = |effects: &[&str]| {
        taints(node).iter().any(|taint| {
            effects.contains(&taint.effect.as_str())
                && !tolerations.iter().any(|it| tolerates(it, taint))
        })
    };
    Eligible { runs: !keeps_off(&[NO_SCHEDULE, NO_EXECUTE]), stays: !keeps_off(&[NO_EXECUTE]) }
}

fn is_selected(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let mut wanted = spec.node_selector.iter().flatten();
    if !wanted.all(|(key, value)| label(key) == Some(value.as_str())) {
        return false;
    }
    let required = required(spec);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| {
            let by_labels = term.match_expressions.as_deref().unwrap_or_default();
            let by_fields = term.match_fields.as_deref().unwrap_or_default();
            // One that says nothing selects nothing.
            !(by_labels.is_empty() && by_fields.is_empty())
                && matches(by_labels, label)
                && matches(by_fields, |field| (field == "metadata.name").then_some(name))
        })
    })
}

fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

fn matches<'v>(
    wanted: &[NodeSelectorRequirement],
    value_of: impl Fn(&str) -> Option<&'v str>,
) -> bool {
    wanted.iter().all(|it| {
        let value = value_of(&it.key);
        let values = it.values.as_deref().unwrap_or_default();
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = values.first().and_then(|it| number(it));
        match it.operator.as_str() {
            "Gt" => value.and_then(number).zip(bound).is_some_and(|(it, bound)| bound < it),
            "Lt" => value.and_then(number).zip(bound).is_some_and(|(it, bound)| it < bound),
            operator => {
                let none: [(&str, &str); 0] = [];
                let one = [(it.key.as_str(), operator, values)];
                let selector = Selector::from_parts(none, one);
                selector.is_ok_and(|selector| selector.matches_by(|_| value))
            }
        }
    })
}

/// What the pods of a DaemonSet tolerate beside what their template says: they are to be there
/// also while a node is not well.
fn always(is_on_host_network: bool) -> Vec<Toleration> {
    let mut known = vec![
        (NOT_READY, NO_EXECUTE),
        (UNREACHABLE, NO_EXECUTE),
        (DISK_PRESSURE, NO_SCHEDULE),
        (MEMORY_PRESSURE, NO_SCHEDULE),
        (PID_PRESSURE, NO_SCHEDULE),
        (UNSCHEDULABLE, NO_SCHEDULE),
    ];
    if is_on_host_network {
        known.push((NETWORK_UNAVAILABLE, NO_SCHEDULE));
    }
    let toleration = |(key, effect): (&str, &str)| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some(effect.to_owned()),
        ..Toleration::default()
    };
    known.into_iter().map(toleration).collect()
}

/// All that the pods of a template tolerate.
pub(super) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    for it in always(spec.host_network == Some(true)) {
        if !all.contains(&it) {
            all.push(it);
        }
    }
    all
}

/// Has a pod run on the node of this name only. The scheduler binds it, when it has room.
pub(super) fn pin(spec: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
    };
    // What the template requires was judged already.
    let affinity = spec.affinity.get_or_insert_with(Affinity::default);
    let of_nodes = affinity.node_affinity.get_or_insert_with(NodeAffinity::default);
    of_nodes.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node that a pod is on, or is meant for.
pub(super) fn node_of(spec: &PodSpec) -> Option<&str> {
    if let Some(name) = spec.node_name.as_deref().filter(|it| !it.is_empty()) {
        return Some(name);
    }
    let terms = required(spec)?.node_selector_terms.iter();
    let mut fields = terms.flat_map(|term| term.match_fields.iter().flatten());
    let found = fields.find(|it| it.key == "metadata.name" && it.operator == "In")?;
    found.values.as_ref()?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(spec: Value, node: Value, runs: bool, stays: bool) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let template = serde_json::from_value(json!({"spec": spec})).unwrap();
        let node = serde_json::from_value(node).unwrap();
        assert_eq!(eligible(&template, &node), Eligible { runs, stays });
        let placed = serde_json::to_string(&placement(&template)).unwrap();
        let placed = serde_json::from_str(&placed).unwrap();
        assert_eq!(eligible(&placed, &node), Eligible { runs, stays });
    }

    fn tainted(key: &str, effect: &str) -> Value {
        let taint = json!({"key": key, "effect": effect, "value": "v"});
        json!({"metadata": {"name": "n"}, "spec": {"taints": [taint]}})
    }

    #[test]
    fn taints_keep_pods_off_or_drive_them_away() {
        check(json!({}), json!({"metadata": {"name": "n"}}), true, true);
        check(json!({}), tainted("a", "NoSchedule"), false, true);
        check(json!({}), tainted("a", "NoExecute"), false, false);
        check(json!({}), tainted("a", "PreferNoSchedule"), true, true);
        check(json!({}), tainted("node.kubernetes.io/unschedulable", "NoSchedule"), true, true);
        let network = "node.kubernetes.io/network-unavailable";
        check(json!({}), tainted(network, "NoSchedule"), false, true);
        check(json!({"hostNetwork": true}), tainted(network, "NoSchedule"), true, true);
        let equal = json!({"tolerations": [{"key": "a", "value": "v"}]});
        check(equal.clone(), tainted("a", "NoExecute"), true, true);
        check(equal, tainted("b", "NoExecute"), false, false);
        let all = json!({"tolerations": [{"operator": "Exists"}]});
        check(all, tainted("b", "NoExecute"), true, true);
    }

    #[test]
    fn nodes_are_selected_by_labels_and_names() {
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cpus": "8"}}});
        let by = |expressions: Value, fields: Value| {
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": expressions, "matchFields": fields}],
            }}}})
        };
        check(json!({"nodeSelector": {"disk": "ssd"}}), node.clone(), true, true);
        check(json!({"nodeSelector": {"disk": "hdd"}}), node.clone(), false, false);
        check(json!({"nodeName": "other"}), node.clone(), false, false);
        let more = |bound: &str| json!([{"key": "cpus", "operator": "Gt", "values": [bound]}]);
        check(by(more("4"), json!([])), node.clone(), true, true);
        check(by(more("8"), json!([])), node.clone(), false, false);
        let named = json!([{"key": "metadata.name", "operator": "In", "values": ["n"]}]);
        check(by(json!([]), named), node.clone(), true, true);
        check(by(json!([]), json!([])), node, false, false);
    }

    #[test]
    fn a_pinned_pod_is_of_its_node() {
        let mut spec = PodSpec::default();
        assert_eq!(node_of(&spec), None);
        pin(&mut spec, "n7");
        assert_eq!(node_of(&spec), Some("n7"));
        spec.node_name = Some("n8".into());
        assert_eq!(node_of(&spec), Some("n8"));
    }
}
