use insula_api::names::TenantName;
use insula_client::Tenanted;
use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::requests::{CPU, MEMORY, PODS};

fn node(cpu: &str, memory: &str, change: impl FnOnce(&mut Value)) -> Node {
    let mut value = json!({
        "metadata": {"labels": {"zone": "a"}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn pod(spec: Value) -> Candidate {
    let object: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
    Candidate::of(&Tenanted { tenant: TenantName::parse("acme").unwrap(), object })
}

fn asking(cpu: &str, memory: &str) -> Value {
    json!({"containers": [
        {"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}},
    ]})
}

fn table(all: Vec<(&str, Node)>) -> Nodes {
    let mut nodes = Nodes::new();
    for (name, node) in all {
        nodes.put(name, &node);
    }
    nodes
}

#[track_caller]
fn check(nodes: &Nodes, pod: &Candidate, expected: &str) {
    let shown = match decide(nodes, pod, 0) {
        Decision::Take { row } => nodes.name(row).to_string(),
        Decision::None { message, .. } => message,
    };
    assert_eq!(shown, expected);
}

#[test]
fn every_reason_is_told_in_upstreams_words() {
    check(&Nodes::new(), &pod(asking("1", "1")), "no nodes available to schedule pods");
    let nodes = table(vec![
        ("cordoned", node("4", "4Gi", |it| it["spec"]["unschedulable"] = json!(true))),
        (
            "tainted",
            node("4", "4Gi", |it| {
                it["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
            }),
        ),
        ("silent", node("4", "4Gi", |it| it["status"]["conditions"] = json!([]))),
        ("elsewhere", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"}))),
        ("small", node("1", "1Gi", |_| ())),
        ("tight", node("1", "4Gi", |_| ())),
    ]);
    let mut wanted = asking("2", "2Gi");
    wanted["nodeSelector"] = json!({"zone": "a"});
    check(
        &nodes,
        &pod(wanted),
        "0/6 nodes are available: 1 Insufficient memory, 1 node(s) didn't match Pod's node \
         affinity/selector, 1 node(s) were unschedulable, 2 Insufficient cpu, 2 node(s) had \
         untolerated taint(s).",
    );
    check(
        &nodes,
        &pod(json!({"containers": [
            {"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}},
        ], "tolerations": [{"operator": "Exists"}]})),
        "0/6 nodes are available: 6 Insufficient example.com/gpu.",
    );
}

#[test]
fn tolerations_and_affinity_open_the_way() {
    let nodes = table(vec![
        (
            "tainted",
            node("4", "4Gi", |it| {
                it["spec"]["taints"] = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]);
            }),
        ),
        ("b", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"}))),
    ]);
    let mut tolerant = asking("1", "1Gi");
    tolerant["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    tolerant["nodeSelector"] = json!({"zone": "a"});
    check(&nodes, &pod(tolerant), "tainted");
    let affinity = |terms: Value| {
        let mut it = asking("1", "1Gi");
        it["tolerations"] = json!([{"operator": "Exists"}]);
        it["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
            json!({"nodeSelectorTerms": terms});
        pod(it)
    };
    let in_zone = |zone: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
    check(&nodes, &affinity(json!([in_zone("b")])), "b");
    check(&nodes, &affinity(json!([in_zone("c"), in_zone("a")])), "tainted");
    let named = json!({"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": ["b"]},
    ]});
    check(&nodes, &affinity(json!([named])), "b");
    check(
        &nodes,
        &affinity(json!([{}])),
        "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
    );
}

#[test]
fn ports_are_had_once() {
    let mut nodes = table(vec![("n", node("4", "4Gi", |_| ()))]);
    let wants = pod(json!({"containers": [
        {"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]},
    ]}));
    check(&nodes, &wants, "n");
    nodes.hold(0, &wants.requests, &wants.ports);
    check(
        &nodes,
        &wants,
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
    );
    nodes.release(0, &wants.requests, &wants.ports);
    check(&nodes, &wants, "n");
}

#[test]
fn the_emptier_and_the_better_balanced_node_is_preferred() {
    let mut nodes =
        table(vec![("full", node("4", "4Gi", |_| ())), ("empty", node("4", "4Gi", |_| ()))]);
    let held = pod(asking("2", "2Gi"));
    nodes.hold(nodes.row("full").unwrap(), &held.requests, &[]);
    check(&nodes, &pod(asking("1", "1Gi")), "empty");
    let nodes =
        table(vec![("much-memory", node("4", "16Gi", |_| ())), ("even", node("4", "4Gi", |_| ()))]);
    check(&nodes, &pod(asking("1", "2Gi")), "much-memory");
}

#[test]
fn preferences_outweigh_emptiness() {
    let nodes = table(vec![
        ("a", node("2", "2Gi", |_| ())),
        ("b", node("4", "4Gi", |it| it["metadata"]["labels"] = json!({"zone": "b"}))),
    ]);
    let mut wanted = asking("1", "1Gi");
    wanted["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{
        "weight": 1,
        "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
    }]);
    check(&nodes, &pod(wanted), "a");
    let nodes = table(vec![
        (
            "shy",
            node("4", "4Gi", |it| {
                it["spec"]["taints"] = json!([{"key": "k", "effect": "PreferNoSchedule"}]);
            }),
        ),
        ("open", node("2", "2Gi", |_| ())),
    ]);
    check(&nodes, &pod(asking("1", "1Gi")), "open");
}

#[test]
fn ties_are_broken_in_turn() {
    let nodes = table(vec![("a", node("4", "4Gi", |_| ())), ("b", node("4", "4Gi", |_| ()))]);
    let pod = pod(asking("1", "1Gi"));
    let taken: Vec<_> = (0..4).map(|tie| decide(&nodes, &pod, tie)).collect();
    assert_ne!(taken[0], taken[1]);
    assert_eq!(taken[..2], taken[2..]);
}

#[derive(Debug, Clone)]
enum Step {
    /// A pod that asks for so many millicores, mebibytes and a host port, if not 0.
    Pod(i64, i64, i32),
    /// The pod that was placed so many before the last one ends.
    End(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pod = (0..3000_i64, 0..3000_i64, prop_oneof![Just(0), 80..83]);
    let step = prop_oneof![
        3 => pod.prop_map(|(cpu, memory, port)| Step::Pod(cpu, memory, port)),
        1 => (0..10_usize).prop_map(Step::End),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever comes and goes, no node holds more than it offers, and no port twice; and a pod
    /// is refused only if it really fits nowhere.
    #[test]
    fn nothing_is_over_committed(
        sizes in proptest::collection::vec((500..4000_i64, 500..4000_i64, 1..6_i64), 1..6),
        steps in steps(),
    ) {
        let mut nodes = Nodes::new();
        for (n, (cpu, memory, pods)) in sizes.iter().enumerate() {
            let it = node(&format!("{cpu}m"), &format!("{memory}Mi"), |it| {
                it["status"]["allocatable"]["pods"] = json!(pods.to_string());
            });
            nodes.put(&format!("n{n}"), &it);
        }
        let mut placed: Vec<(usize, Candidate)> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::End(back) => {
                    if back < placed.len() {
                        let (row, pod) = placed.remove(placed.len() - 1 - back);
                        nodes.release(row, &pod.requests, &pod.ports);
                    }
                }
                Step::Pod(cpu, memory, port) => {
                    let mut spec = asking(&format!("{cpu}m"), &format!("{memory}Mi"));
                    if port != 0 {
                        spec["containers"][0]["ports"] =
                            json!([{"containerPort": 1, "hostPort": port}]);
                    }
                    let pod = pod(spec);
                    match decide(&nodes, &pod, n) {
                        Decision::Take { row } => {
                            nodes.hold(row, &pod.requests, &pod.ports);
                            placed.push((row, pod));
                        }
                        Decision::None { .. } => {
                            let fits = |row: usize| {
                                let free = |name| nodes.resource(name).unwrap().free(row);
                                cpu <= free(CPU)
                                    && memory << 20 <= free(MEMORY)
                                    && 1 <= free(PODS)
                                    && !nodes.ports[row].iter().any(|it| it.port == port)
                            };
                            let fitting = nodes.rows().find(|row| fits(*row));
                            prop_assert_eq!(fitting, None);
                        }
                    }
                }
            }
            for column in nodes.columns() {
                for row in nodes.rows() {
                    let (held, offered) = (column.held[row], column.allocatable[row]);
                    prop_assert!(0 <= held && held <= offered, "{}: {held} of {offered}", column.name);
                }
            }
            for row in nodes.rows() {
                let mut ports: Vec<i32> = nodes.ports[row].iter().map(|it| it.port).collect();
                ports.sort_unstable();
                let n_ports = ports.len();
                ports.dedup();
                prop_assert_eq!(ports.len(), n_ports);
            }
        }
    }
}
