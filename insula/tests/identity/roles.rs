//! Cluster roles that are put together from others.

use serde_json::{Value, json};

use crate::harness::{Cloud, Kubectl, texts};

/// The resources that the rules of a cluster role name.
fn resources(user: &Kubectl, name: &str) -> Vec<String> {
    let text = user.ok(&["get", "clusterrole", name, "-o", "json"]);
    let it: Value = serde_json::from_str(&text).unwrap();
    let rules = it["rules"].as_array().unwrap().iter();
    let all = rules.flat_map(|it| it["resources"].as_array().unwrap());
    all.map(|it| it.as_str().unwrap().to_owned()).collect()
}

fn apply(user: &Kubectl, it: &Value) {
    let out = user.feed(&["apply", "-f", "-"], &it.to_string());
    assert!(out.status.success(), "{}", texts(&out).1);
}

#[test]
fn what_comes_together_shows_at_once_and_goes_again() {
    let cloud = Cloud::without_node();
    let (acme, globex) = cloud.tenants();
    // What a tenant begins with is whole.
    for (name, resource) in [("view", "configmaps"), ("edit", "secrets"), ("admin", "roles")] {
        let all = resources(&acme, name);
        assert!(all.iter().any(|it| it == resource), "{name}: {all:?}");
    }
    assert!(!resources(&acme, "view").iter().any(|it| it == "secrets"));
    let said = acme.ok(&["describe", "clusterrole", "view"]);
    assert!(said.contains("configmaps"), "{said}");

    let mut widgets = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "widgets", "labels": {
            "rbac.authorization.k8s.io/aggregate-to-view": "true",
        }},
        "rules": [{"apiGroups": ["example.com"], "resources": ["widgets"], "verbs": ["get"]}],
    });
    let has = |user: &Kubectl, name: &str, resource: &str| {
        resources(user, name).iter().any(|it| it == resource)
    };
    let begun = resources(&globex, "view");
    apply(&acme, &widgets);
    // Without waiting; what views gives to those who edit, and those to those who administrate.
    for name in ["view", "edit", "admin"] {
        assert!(has(&acme, name, "widgets"), "{name}");
    }
    assert_eq!(resources(&globex, "view"), begun, "another tenant's");
    acme.ok(&["create", "serviceaccount", "viewer"]);
    acme.ok(&[
        "create",
        "clusterrolebinding",
        "v",
        "--clusterrole=view",
        "--serviceaccount=default:viewer",
    ]);
    let may = |what: &str| {
        let who = "--as=system:serviceaccount:default:viewer";
        acme.ok(&["auth", "can-i", "--list", who]).lines().any(|line| line.starts_with(what))
    };
    assert!(may("widgets.example.com") && !may("gadgets.example.com"));

    widgets["rules"][0]["resources"] = json!(["gadgets"]);
    apply(&acme, &widgets);
    assert!(has(&acme, "view", "gadgets") && !has(&acme, "view", "widgets"));
    assert!(may("gadgets.example.com") && !may("widgets.example.com"));

    // What somebody writes into it does not stay.
    let all = resources(&acme, "view");
    let none = r#"[{"op": "replace", "path": "/rules", "value": []}]"#;
    acme.ok(&["patch", "clusterrole", "view", "--type=json", "-p", none]);
    assert_eq!(resources(&acme, "view"), all);
    let text = acme.ok(&["get", "clusterrole", "view", "-o", "json", "--show-managed-fields"]);
    let it: Value = serde_json::from_str(&text).unwrap();
    let managers = it["metadata"]["managedFields"].as_array().unwrap();
    let applies = managers.iter().find(|it| it["manager"] == "clusterrole-aggregation-controller");
    let applies = applies.unwrap();
    assert!(applies["operation"] == "Apply" && applies["fieldsV1"]["f:rules"].is_object());

    acme.ok(&["delete", "clusterrole", "widgets"]);
    assert!(!has(&acme, "view", "gadgets"));
    assert!(!may("gadgets.example.com"));
    // Nothing is written that is as it should be.
    let version = ["get", "clusterrole", "view", "-o", "jsonpath={.metadata.resourceVersion}"];
    let before = acme.ok(&version);
    acme.ok(&["create", "clusterrole", "other", "--verb=get", "--resource=pods"]);
    assert_eq!(acme.ok(&version), before);
}
