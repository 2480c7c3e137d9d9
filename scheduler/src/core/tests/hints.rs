//! Pods that are told that they would be better off elsewhere.

use super::*;
use crate::{measured::Usage, plugins::DeschedulingHints};

fn core_with_hints(all: Vec<(&str, Node)>) -> Core {
    let hints = Some(DeschedulingHints::default());
    let mut core = Core::new(vec![Profile { hints, ..Profile::default() }]);
    for (name, node) in all {
        core.put_node(name, &node);
    }
    core
}

/// A pod of a replica set.
fn owned(cpu: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut it = asking(cpu, "1Mi");
    it["metadata"] = json!({
        "labels": {"app": "web"},
        "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u",
            "controller": true,
        }],
    });
    change(&mut it);
    it
}

/// What pods on a node are told: their names, reasons and messages.
fn told(core: &mut Core, node: &str) -> Vec<(String, &'static str, String)> {
    let settings = core.hints().unwrap_or_default();
    let mut review = core.begin_review(&settings);
    let row = core.world.nodes.row(node).unwrap();
    let hints = core.review(&mut review, row);
    hints.into_iter().map(|it| (it.key.name.to_string(), it.reason, it.message)).collect()
}

fn names(core: &mut Core, node: &str) -> Vec<String> {
    told(core, node).into_iter().map(|(name, ..)| name).collect()
}

fn tainted() -> Node {
    node("4", "4Gi", |it| it["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]))
}

#[test]
fn pods_that_would_not_be_put_there_any_more_are_told_so() {
    let mut core =
        core_with_hints(vec![("n1", node("4", "4Gi", |_| ())), ("n2", node("4", "4Gi", |_| ()))]);
    bind(&mut core, "plain", "n1", owned("1", |_| ()));
    bind(
        &mut core,
        "picky",
        "n1",
        owned("1", |it| it["spec"]["nodeSelector"] = json!({"zone": "a"})),
    );
    let tolerations = json!([{"operator": "Exists"}]);
    bind(&mut core, "calm", "n1", owned("1", |it| it["spec"]["tolerations"] = tolerations));
    assert!(told(&mut core, "n1").is_empty());

    core.put_node("n1", &node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"})));
    let affinity = (
        "picky".to_owned(),
        "NodeAffinityViolated",
        "node n1 does not match the pod's node affinity or selector any more; node n2 has room for it"
            .to_owned(),
    );
    assert_eq!(told(&mut core, "n1"), [affinity]);

    core.put_node("n1", &tainted());
    let mut all = told(&mut core, "n1");
    all.sort();
    assert_eq!(all.len(), 2);
    assert_eq!((&*all[0].0, all[0].1), ("picky", "NodeTaintViolated"));
    assert_eq!((&*all[1].0, all[1].1), ("plain", "NodeTaintViolated"));
    // Nowhere else is room: nothing would come of it.
    core.put_node("n2", &tainted());
    assert!(told(&mut core, "n1").is_empty());
    // Cordons and conditions of nodes are others' business.
    let cordoned = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
    core.put_node("n1", &node("4", "4Gi", |it| it["spec"]["taints"] = cordoned));
    core.put_node("n2", &node("4", "4Gi", |_| ()));
    assert!(told(&mut core, "n1").is_empty());
}

#[test]
fn pods_among_too_many_others_are_told_so() {
    let mut core = core_with_hints(vec![
        ("n1", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"host": "n1"}))),
        ("n2", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"host": "n2"}))),
    ]);
    let selector = json!({"matchLabels": {"app": "web"}});
    let spread = |it: &mut Value| {
        it["spec"]["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "host", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": selector,
        }]);
    };
    for name in ["a", "b"] {
        bind(&mut core, name, "n1", owned("1", spread));
    }
    assert_eq!(told(&mut core, "n1")[0].1, "TopologySpreadConstraintViolated");
    bind(&mut core, "c", "n2", owned("1", spread));
    assert!(told(&mut core, "n1").is_empty(), "two and one are no more than one apart");
    for name in ["a", "b", "c"] {
        core.remove_pod(&pod(name, json!({})).key());
    }

    let apart = |it: &mut Value| {
        it["spec"]["affinity"]["podAntiAffinity"] = json!({
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "host", "labelSelector": selector},
            ],
        });
    };
    bind(&mut core, "a", "n1", owned("1", apart));
    assert!(told(&mut core, "n1").is_empty(), "it does not keep itself away");
    bind(&mut core, "b", "n1", owned("1", apart));
    assert_eq!(told(&mut core, "n1")[0].1, "InterPodAffinityViolated");
}

#[test]
fn a_node_with_too_much_to_do_is_relieved_of_what_matters_least() {
    let mut core = core_with_hints(vec![
        ("busy", node("10", "10Gi", |_| ())),
        ("idle", node("10", "10Gi", |_| ())),
    ]);
    let ranked = |priority: i32| move |it: &mut Value| it["spec"]["priority"] = json!(priority);
    bind(&mut core, "high", "busy", owned("1", ranked(100)));
    for name in ["low1", "low2", "low3"] {
        bind(&mut core, name, "busy", owned("1", ranked(1)));
    }
    let row = core.world.nodes.row("busy").unwrap();
    let uses = |core: &mut Core, cpu: i64| {
        core.world.nodes.measure(row, Some(Usage { cpu, memory: 0 }));
    };
    uses(&mut core, 8_000);
    assert!(told(&mut core, "busy").is_empty(), "80 % is not more than 80 %");
    uses(&mut core, 9_500);
    assert_eq!(names(&mut core, "busy"), ["low1", "low2"]);
    let (_, reason, message) = told(&mut core, "busy").remove(0);
    assert_eq!(reason, "NodeOverutilized");
    assert_eq!(message, "node busy uses 95% of its cpu; node idle has room for it");

    // Those that nothing would make anew, or that belong to their node, are left alone.
    let no_owner = |it: &mut Value| it["metadata"]["ownerReferences"] = json!([]);
    bind(&mut core, "low1", "busy", owned("1", no_owner));
    let of_node =
        |it: &mut Value| it["metadata"]["ownerReferences"][0]["kind"] = json!("DaemonSet");
    bind(&mut core, "low2", "busy", owned("1", of_node));
    assert_eq!(names(&mut core, "busy"), ["low3", "high"]);

    // What the other node has no room for is not sent there.
    let other = core.world.nodes.row("idle").unwrap();
    core.world.nodes.measure(other, Some(Usage { cpu: 6_000, memory: 0 }));
    assert!(told(&mut core, "busy").is_empty());
    core.world.nodes.measure(other, Some(Usage { cpu: 4_900, memory: 0 }));
    uses(&mut core, 10_000);
    assert_eq!(names(&mut core, "busy"), ["low3", "high"]);
}

#[test]
fn budgets_and_what_is_meant_to_come_are_kept_to() {
    let mut core = core_with_hints(vec![
        ("busy", node("10", "10Gi", |_| ())),
        ("idle", node("10", "10Gi", |_| ())),
    ]);
    for name in ["p1", "p2", "p3", "p4"] {
        bind(&mut core, name, "busy", owned("2", |_| ()));
    }
    let busy = core.world.nodes.row("busy").unwrap();
    let idle = core.world.nodes.row("idle").unwrap();
    core.world.nodes.measure(busy, Some(Usage { cpu: 16_000, memory: 0 }));
    core.world.nodes.measure(idle, Some(Usage { cpu: 4_500, memory: 0 }));
    // The second one would fill it to more than 80 %.
    assert_eq!(names(&mut core, "busy"), ["p1"]);

    let budget = json!({
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}},
        "status": {"disruptionsAllowed": 0, "currentHealthy": 4, "desiredHealthy": 4, "expectedPods": 4},
    });
    let object: k8s_openapi::api::policy::v1::PodDisruptionBudget =
        serde_json::from_value(budget).unwrap();
    let budget = Tenanted { tenant: TenantName::parse("acme").unwrap(), object };
    core.world.budgets.put(&budget.key(), Some(&budget));
    assert!(told(&mut core, "busy").is_empty());
}

#[test]
fn nobody_is_told_of_what_is_not_looked_for() {
    let mut core = core(vec![("n1", tainted()), ("n2", node("4", "4Gi", |_| ()))]);
    bind(&mut core, "p", "n1", owned("1", |_| ()));
    assert!(core.hints().is_none() && told(&mut core, "n1").is_empty());
}
