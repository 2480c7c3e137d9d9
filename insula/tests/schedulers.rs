//! Several schedulers as processes: whichever is killed or paused while pods come, no node is given
//! more than it has, and all that has room gets it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at what it did not expect"
)]

mod harness;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use harness::{
    Cloud, Kubectl,
    replicas::{EVENTUALLY, Replicas, get},
};
use serde_json::{Value, json};

const TENANTS: usize = 8;
const NODES: usize = 10;
/// Pods of half a processor that have room on a node.
const PER_NODE: usize = 10;
const PER_TENANT: usize = 15;

fn list(items: Vec<Value>) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn feed(user: &Kubectl, text: &str) {
    let made = user.feed(&["create", "-f", "-"], text);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Nodes that are only objects.
fn make_nodes(admin: &Kubectl) {
    for n in 0..NODES {
        let name = format!("n{n}");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        feed(admin, &node.to_string());
        let amounts = json!({"cpu": "5", "memory": "64Gi", "pods": "500"});
        let status = json!({"status": {
            "allocatable": amounts, "capacity": amounts,
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patch = status.to_string();
        admin.ok(&["patch", "node", &name, "--subresource=status", "--type=merge", "-p", &patch]);
        admin.ok(&["patch", "node", &name, "--type=merge", "-p", r#"{"spec":{"taints":null}}"#]);
    }
}

/// How many pods each node has; those without are under an empty name.
fn on_nodes(admin: &Kubectl) -> BTreeMap<String, usize> {
    let all = admin.ok(&["get", "--raw", "/api/v1/tenants/all/pods"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    let mut counts = BTreeMap::new();
    for pod in all["items"].as_array().unwrap() {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        *counts.entry(node.to_owned()).or_default() += 1;
    }
    counts
}

#[track_caller]
fn until(what: &str, replicas: &Replicas<'_>, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < EVENTUALLY, "never true: {what}\n{}", replicas.logs());
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn schedulers_are_killed_and_paused_while_pods_come() {
    let without = ["--without", "node,controllers,scheduler", "--partitions", "2"];
    let cloud = Cloud::start(false, &without);
    let admin = cloud.admin();
    let mut replicas = Replicas::of_scheduler(&cloud);
    for _ in 0..3 {
        replicas.start();
    }
    replicas.until_shared(&admin, 3);
    let table = admin.ok(&["get", "schedulerinstances"]);
    assert!(table.starts_with("NAME ") && table.contains("SLOTS"), "{table}");
    assert_eq!(replicas.holders(&admin).len(), 3);
    make_nodes(&admin);
    let users: Vec<Kubectl> = (0..TENANTS)
        .map(|number| {
            let name = format!("t{number}");
            let tenant = json!({
                "apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": name},
            });
            feed(&admin, &tenant.to_string());
            // As the controllers would, of which there are none.
            let user = cloud.user(&name, "dev", &format!("{name}-admins"));
            for (kind, namespace) in [("Namespace", None), ("ServiceAccount", Some("default"))] {
                let object = json!({
                    "apiVersion": "v1", "kind": kind,
                    "metadata": {"name": "default", "namespace": namespace},
                });
                feed(&user, &object.to_string());
            }
            user
        })
        .collect();

    let pods = |from: usize, to: usize| {
        let pod = |n: usize| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{n}")},
                "spec": {"containers": [{
                    "name": "c", "image": "none", "resources": {"requests": {"cpu": "500m"}},
                }]},
            })
        };
        list((from..to).map(pod).collect())
    };
    let make = |from, to| users.iter().for_each(|user| feed(user, &pods(from, to)));
    make(0, 5);
    replicas.signal(0, "-STOP");
    make(5, 8);
    replicas.kill(1);
    make(8, 11);
    // One has all, and does what both began.
    replicas.until_shared(&admin, 1);
    let n_pods = TENANTS * 11;
    until("all that came has a node", &replicas, || {
        let counts = on_nodes(&admin);
        counts.values().sum::<usize>() == n_pods && !counts.contains_key("")
    });
    replicas.signal(0, "-CONT");
    make(11, PER_TENANT);
    replicas.until_shared(&admin, 2);
    replicas.start();
    replicas.until_shared(&admin, 3);

    let full = |n: usize| (format!("n{n}"), PER_NODE);
    let mut expected: BTreeMap<String, usize> = (0..NODES).map(full).collect();
    expected.insert(String::new(), TENANTS * PER_TENANT - NODES * PER_NODE);
    until("the nodes are full", &replicas, || on_nodes(&admin) == expected);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(on_nodes(&admin), expected, "no pod left, so none had more");
    assert_eq!(get(&admin, &["slottable", "schedulers"])["kind"], "SlotTable");
}
