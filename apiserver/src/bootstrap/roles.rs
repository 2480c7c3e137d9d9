//! Default roles and bindings: upstream's table, and what tenants of ours have beside it.

use std::collections::BTreeMap;

use insula_api::object;
use serde_json::{Map, Value, json};

use super::GROUP;
use crate::rbac::aggregate;

const TABLES: [&str; 2] = [
    include_str!("../../../api/tables/default-rbac.tsv"),
    include_str!("../../../api/tables/insula-rbac.tsv"),
];
/// Default roles and bindings that every tenant has; the platform has all of them.
const FOR_TENANTS: &[&str] = &[
    "admin",
    "cluster-admin",
    "edit",
    "extension-apiserver-authentication-reader",
    "insula:aggregate-to-view",
    "view",
    "system:aggregate-to-admin",
    "system:aggregate-to-edit",
    "system:aggregate-to-view",
    "system:auth-delegator",
    "system:basic-user",
    "system:discovery",
    "system::extension-apiserver-authentication-reader",
    "system:public-info-viewer",
    "system:service-account-issuer-discovery",
];

/// The default roles and bindings of the tables, as objects.
fn all() -> Vec<Value> {
    let mut objects: BTreeMap<(String, String, String), Value> = BTreeMap::new();
    let list =
        |text: &str| -> Value { text.split(',').map(Value::from).collect::<Vec<_>>().into() };
    for line in TABLES
        .iter()
        .flat_map(|it| it.lines())
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let mut columns = [""; 9];
        for (slot, column) in columns.iter_mut().zip(line.split('\t')) {
            *slot = column;
        }
        let [kind, namespace, name, labels, groups, resources, names, urls, verbs] = columns;
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let it = objects.entry(key).or_insert_with(|| {
            let mut metadata = json!({
                "name": name,
                "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
                "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
            });
            if !namespace.is_empty() {
                metadata["namespace"] = namespace.into();
            }
            json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata})
        });
        if kind.ends_with("Binding") {
            bind(it, labels, groups);
            continue;
        }
        for (key, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
            it["metadata"]["labels"][key] = value.into();
        }
        if let Some(selectors) = groups.strip_prefix("aggregates ") {
            if let Ok(selectors) = serde_json::from_str::<Value>(selectors) {
                it["aggregationRule"] = json!({ "clusterRoleSelectors": selectors });
                it["rules"] = json!([]);
            }
            continue;
        }
        let mut rule = Map::new();
        rule.insert("verbs".into(), list(verbs));
        if urls.is_empty() {
            rule.insert("apiGroups".into(), list(groups));
            rule.insert("resources".into(), list(resources));
            if !names.is_empty() {
                rule.insert("resourceNames".into(), list(names));
            }
        } else {
            rule.insert("nonResourceURLs".into(), list(urls));
        }
        match it.get_mut("rules").and_then(Value::as_array_mut) {
            Some(rules) => rules.push(rule.into()),
            None => it["rules"] = json!([rule]),
        }
    }
    objects.into_values().collect()
}

/// All of the platform's.
pub(super) fn of_platform() -> Vec<Value> {
    let mut roles = all();
    aggregate::fill(&mut roles);
    roles
}

/// Those that every tenant has.
pub(super) fn of_tenants() -> Vec<Value> {
    let mut roles = all();
    roles.retain(|it| {
        FOR_TENANTS.contains(&object::name(it))
            // Superusers are the platform's; in a tenant their group is a name like any other.
            && !(it["kind"] == "ClusterRoleBinding" && object::name(it) == "cluster-admin")
    });
    aggregate::fill(&mut roles);
    roles
}

/// A binding's row: `Kind:name` of the role, then its subjects, each `Kind:namespace:name`.
fn bind(it: &mut Value, role: &str, subjects: &str) {
    let (kind, name) = role.split_once(':').unwrap_or(("ClusterRole", role));
    it["roleRef"] = json!({"apiGroup": GROUP, "kind": kind, "name": name});
    let subjects: Vec<Value> = subjects
        .split(',')
        .filter_map(|subject| {
            let mut parts = subject.splitn(3, ':');
            let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
            Some(match kind {
                "ServiceAccount" => json!({"kind": kind, "namespace": namespace, "name": name}),
                _ => json!({"kind": kind, "apiGroup": GROUP, "name": name}),
            })
        })
        .collect();
    it["subjects"] = subjects.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_makes_roles_and_bindings() {
        let all = all();
        let find = |kind: &str, name: &str| {
            all.iter().find(|it| it["kind"] == kind && object::name(it) == name).cloned().unwrap()
        };
        let admin = find("ClusterRole", "cluster-admin");
        assert_eq!(
            admin["rules"][0],
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})
        );
        assert_eq!(admin["rules"][1], json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
        assert!(find("ClusterRole", "edit")["aggregationRule"].is_object());
        let binding = find("ClusterRoleBinding", "cluster-admin");
        assert_eq!(binding["roleRef"]["name"], "cluster-admin");
        assert_eq!(
            binding["subjects"][0],
            json!({"kind": "Group", "apiGroup": GROUP, "name": "system:masters"})
        );
    }
}
