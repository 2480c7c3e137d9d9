//! The default flow schemas and priority levels, from `api/tables/default-fairness.tsv`.

use serde_json::{Value, json};

const TABLE: &str = include_str!("../../../api/tables/default-fairness.tsv");

/// All of them, as objects.
pub(crate) fn objects() -> Vec<Value> {
    let rows = TABLE.lines().filter(|row| !row.starts_with('#'));
    rows.filter_map(|row| {
        let columns: Vec<&str> = row.split('\t').collect();
        match columns.as_slice() {
            ["level", name, rest @ ..] => Some(level(name, rest)),
            ["schema", name, level, precedence, distinguisher, subjects, rules @ ..] => {
                let precedence = precedence.parse().unwrap_or(0);
                let spec = schema(level, precedence, distinguisher, subjects, rules);
                let mut schema = object("FlowSchema", name, &spec);
                schema["status"] = leads_to(level);
                Some(schema)
            }
            _ => None,
        }
    })
    .collect()
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind,
        "metadata": {
            "name": name, "generation": 1,
            "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"},
        },
        "spec": spec, "status": {},
    })
}

/// The status of a schema whose level is there: nobody has to write it later.
fn leads_to(level: &str) -> Value {
    let message = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it \
         exists"
    );
    json!({"conditions": [{
        "type": "Dangling", "status": "False", "reason": "Found", "message": message,
        "lastTransitionTime": insula_api::time::now(),
    }]})
}

fn level(name: &str, columns: &[&str]) -> Value {
    let numbers: Vec<i64> = columns.iter().filter_map(|it| it.parse().ok()).collect();
    let spec = match numbers.as_slice() {
        [shares, lendable, rest @ ..] => {
            let response = match rest {
                [queues, hand] => json!({"type": "Queue", "queuing": {
                    "queues": queues, "handSize": hand, "queueLengthLimit": 50,
                }}),
                _ => json!({"type": "Reject"}),
            };
            json!({"type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": lendable,
                "limitResponse": response,
            }})
        }
        _ => json!({"type": "Exempt", "exempt": {
            "nominalConcurrencyShares": 0, "lendablePercent": 0,
        }}),
    };
    object("PriorityLevelConfiguration", name, &spec)
}

fn schema(
    level: &str,
    precedence: i64,
    distinguisher: &str,
    subjects: &str,
    rules: &[&str],
) -> Value {
    let subjects: Vec<Value> = subjects
        .split(',')
        .filter_map(|subject| {
            let (kind, name) = subject.split_once(':')?;
            Some(match kind {
                "User" => json!({"kind": kind, "user": {"name": name}}),
                "Group" => json!({"kind": kind, "group": {"name": name}}),
                _ => json!({"kind": kind, "serviceAccount": {"name": name, "namespace": "kube-system"}}),
            })
        })
        .collect();
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|it| if it == "-" { String::new() } else { it.to_owned() }).collect()
    };
    let (mut resources, mut urls) = (Vec::new(), Vec::new());
    for rule in rules {
        let words: Vec<&str> = rule.split(' ').collect();
        match words.as_slice() {
            ["resource", verbs, groups, names, wide @ ..] => {
                let mut rule = json!({
                    "verbs": list(verbs), "apiGroups": list(groups), "resources": list(names),
                    "namespaces": ["*"],
                });
                if !wide.is_empty() {
                    rule["clusterScope"] = true.into();
                }
                resources.push(rule);
            }
            ["url", verbs, paths] => {
                urls.push(json!({"verbs": list(verbs), "nonResourceURLs": list(paths)}));
            }
            _ => {
                resources.push(json!({
                    "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
                    "clusterScope": true,
                }));
                urls.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
            }
        }
    }
    let mut rule = json!({ "subjects": subjects });
    for (field, list) in [("resourceRules", resources), ("nonResourceRules", urls)] {
        if !list.is_empty() {
            rule[field] = list.into();
        }
    }
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
        "rules": [rule],
    });
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({ "type": distinguisher });
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{registry::Registry, strategy, validate};

    #[test]
    fn all_are_valid_and_none_lacks_its_level() {
        let registry = Registry::built_in();
        let all = objects();
        assert_eq!(all.len(), 19);
        for mut it in all.clone() {
            let plural = match it["kind"].as_str().unwrap() {
                "FlowSchema" => "flowschemas",
                _ => "prioritylevelconfigurations",
            };
            let served = registry.get("flowcontrol.apiserver.k8s.io", "v1", plural).unwrap();
            assert_eq!(validate::create(served, &it), [], "{it}");
            let before = it.clone();
            strategy::normalize(served, &mut it);
            assert_eq!(it, before);
            let level = &it["spec"]["priorityLevelConfiguration"]["name"];
            let known = |it: &Value| it["metadata"]["name"] == *level && it["kind"] != "FlowSchema";
            assert!(level.is_null() || all.iter().any(known), "{it}");
        }
    }
}
