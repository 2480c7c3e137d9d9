//! How fast the core of the scheduler decides, without API server: pods and processor time for
//! each, and bytes for each node and pod, for shapes of pods and numbers of nodes.
//!
//! In `churn` a pod goes for each that comes, on nodes that are half full. In `tenants` 300 tenants
//! have pods of the same template. In `replicas` all pods are of one replica set, and so are spread
//! by default; in `replicas-of-tenants` 300 tenants have such a set each.
//!
//! `cargo run --release -p insula-scheduler --example throughput -- [SHAPE [NODES [PODS]]]`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for developers")]

use std::time::Duration;

use insula_api::names::TenantName;
use insula_client::Tenanted;
use insula_scheduler::{Core, Pod, Profile};
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Node};
use serde_json::{Value, json};
use tokio::time::Instant;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
const N_TENANTS: usize = 300;

fn node(n: usize) -> Node {
    serde_json::from_value(json!({
        "metadata": {"labels": {HOST: format!("n{n}"), ZONE: format!("z{}", n % 10)}},
        "status": {
            "allocatable": {"cpu": "32", "memory": "64Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
    .unwrap()
}

/// The pods of upstream's benches: each asks for 100m and 500Mi.
fn pod(shape: &str, n: usize) -> Tenanted<Pod> {
    let mut it = json!({
        "metadata": {
            "name": format!("p{n}"), "namespace": "bench", "uid": format!("uid-{n}"),
            "labels": {"app": "bench"},
        },
        "spec": {"containers": [{"name": "c", "image": "pause", "resources": {"requests": {
            "cpu": "100m", "memory": "500Mi",
        }}}]},
    });
    let alike = json!({"matchLabels": {"app": "bench"}});
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": alike});
    let preferred = |key: &str| json!([{"weight": 1, "podAffinityTerm": term(key)}]);
    let spread = |when: &str| json!([{"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": when, "labelSelector": alike}]);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let soft = "preferredDuringSchedulingIgnoredDuringExecution";
    let spec: &mut Value = &mut it["spec"];
    match shape {
        "basic" | "churn" | "tenants" | "replicas" | "replicas-of-tenants" => (),
        "affinity" => spec["affinity"]["podAffinity"][required] = json!([term(ZONE)]),
        "anti-affinity" => spec["affinity"]["podAntiAffinity"][required] = json!([term(HOST)]),
        "preferred-affinity" => spec["affinity"]["podAffinity"][soft] = preferred(HOST),
        "preferred-anti-affinity" => spec["affinity"]["podAntiAffinity"][soft] = preferred(HOST),
        "spread" => spec["topologySpreadConstraints"] = spread("DoNotSchedule"),
        "preferred-spread" => spec["topologySpreadConstraints"] = spread("ScheduleAnyway"),
        "unschedulable" => spec["nodeSelector"] = json!({"nowhere": "yes"}),
        other => panic!("no such shape: {other}"),
    }
    if shape.starts_with("replicas") {
        it["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "bench", "uid": "uid",
            "controller": true,
        }]);
    }
    Tenanted { tenant: tenant(shape, n), object: serde_json::from_value(it).unwrap() }
}

fn tenant(shape: &str, n: usize) -> TenantName {
    let has_many = matches!(shape, "tenants" | "replicas-of-tenants");
    let name = if has_many { format!("t{}", n % N_TENANTS) } else { "acme".to_owned() };
    TenantName::parse(&name).unwrap()
}

fn replica_set(tenant: TenantName) -> Tenanted<ReplicaSet> {
    let object = serde_json::from_value(json!({
        "metadata": {"name": "bench", "namespace": "bench"},
        "spec": {"selector": {"matchLabels": {"app": "bench"}}},
    }));
    Tenanted { tenant, object: object.unwrap() }
}

/// Nanoseconds that this thread, the only one, has been on a processor.
fn processor() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|it| it.parse().ok()).unwrap_or_default()
}

/// Bytes of memory in use.
fn memory() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|it| it.parse::<f64>().ok());
    pages.unwrap_or_default() * 4096.0
}

fn run(shape: &str, n_nodes: usize, n_pods: usize) {
    let mut core = Core::new(vec![Profile::default()]);
    let empty = memory();
    for n in 0..n_nodes {
        core.put_node(&format!("n{n}"), &node(n));
    }
    if shape.starts_with("replicas") {
        (0..N_TENANTS).for_each(|n| core.put_replica_set(&replica_set(tenant(shape, n))));
    }
    let with_nodes = memory();
    let pods: Vec<_> = (0..n_pods).map(|n| pod(shape, n)).collect();
    // Half of what fits, so that there is something to go.
    let n_before = if shape == "churn" { n_pods / 2 } else { 0 };
    let (before, pods) = pods.split_at(n_before);
    before.iter().for_each(|pod| drop(core.place(pod)));
    let with_pods = memory();
    let (begun, worked) = (Instant::now(), processor());
    let mut n_placed = 0;
    for (n, pod) in pods.iter().enumerate() {
        if let Some(gone) = before.get(n) {
            core.remove_pod(&gone.key());
        }
        n_placed += usize::from(core.place(pod).is_ok());
    }
    let worked = processor() - worked;
    let took = begun.elapsed().max(Duration::from_nanos(1));
    let n_decided = pods.len().max(1) as f64;
    println!(
        "{shape:24} {n_nodes:6} nodes {:7} pods {n_placed:7} placed {:9.0} pods/s {:8.2} us/pod \
         {:8.2} us of processor {:6.0} B/node {:6.0} B/pod",
        pods.len(),
        n_decided / took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / n_decided,
        worked / 1e3 / n_decided,
        (with_nodes - empty).max(0.0) / n_nodes.max(1) as f64,
        (memory() - with_pods).max(0.0) / n_decided,
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|it| it.parse::<usize>().ok());
    if let Some(shape) = args.first() {
        run(shape, number(1).unwrap_or(5_000), number(2).unwrap_or(50_000));
        return;
    }
    for n_nodes in [1_000, 5_000, 50_000] {
        run("basic", n_nodes, 100 * n_nodes.min(1_000));
        run("unschedulable", n_nodes, 100_000);
        run("churn", n_nodes, 100 * n_nodes.min(1_000));
    }
    for n_nodes in [20_000, 100_000] {
        run("tenants", n_nodes, 30_000);
    }
    for n_nodes in [5_000, 100_000] {
        run("replicas", n_nodes, 30_000);
        run("replicas-of-tenants", n_nodes, 30_000);
    }
    for shape in [
        "affinity",
        "anti-affinity",
        "preferred-affinity",
        "preferred-anti-affinity",
        "spread",
        "preferred-spread",
    ] {
        for n_nodes in [1_000, 5_000] {
            run(shape, n_nodes, n_nodes);
        }
    }
}
