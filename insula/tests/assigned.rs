//! A real node on the node feed, and without it: nothing is missed, nothing is disturbed.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use harness::{Kubectl, servers::Servers};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(180);

/// The partitions are on s2, the node's server is s1.
fn apart() -> Servers {
    let mut servers = Servers::new();
    servers.add("s2", "all", &[]);
    servers.add("s1", "none", &[]);
    servers.controllers("s2");
    servers.tenants("s2");
    servers
}

/// Runs a pod whose process can be told from all others of the machine; it takes no time to end.
fn run(user: &Kubectl, name: &str, mark: &str, node: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": "localhost/insula/busybox:1",
                "command": ["sh", "-c", "sleep 100000 & wait", mark],
            }],
        },
    });
    let out = user.feed(&["create", "-f", "-"], &pod.to_string());
    assert!(out.status.success(), "{:?}", harness::texts(&out));
}

/// Whether a process of that mark runs on this machine.
fn runs(mark: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|it| {
        let line = fs::read(it.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
    })
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WITHIN, "not within {WITHIN:?}: {what}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn container(user: &Kubectl, pod: &str) -> String {
    let path = "jsonpath={.status.phase} {.status.containerStatuses[0].containerID}";
    user.until(&["get", "pod", pod, "-o", path], |it| it.starts_with("Running "))
}

/// When the node was last heard of, and when its lease was last written by whoever writes leases.
fn lease(admin: &Kubectl) -> (String, String) {
    let args =
        ["get", "lease", "n1", "-n", "kube-node-lease", "--show-managed-fields", "-o", "json"];
    let lease: Value = serde_json::from_str(&admin.until(&args, |_| true)).unwrap();
    let written = lease["metadata"]["managedFields"].to_string();
    (lease["spec"]["renewTime"].as_str().unwrap().to_owned(), written)
}

/// Waits until heartbeats come, by the feed or by writes.
#[track_caller]
fn until_beats(admin: &Kubectl, by_feed: bool) {
    let mut last = lease(admin);
    let mut n_in_a_row = 0;
    until("heartbeats", || {
        let now = lease(admin);
        if now.0 != last.0 {
            n_in_a_row = if (now.1 == last.1) == by_feed { n_in_a_row + 1 } else { 0 };
            last = now;
        }
        n_in_a_row == 2
    });
}

/// A mark that no other run of these tests has.
fn mark(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

#[test]
fn a_node_is_told_what_it_missed_while_its_server_was_away() {
    let mut servers = apart();
    servers.node("s1");
    let admin = servers.admin("s2");
    let [acme, globex] =
        ["acme", "globex"].map(|it| servers.user("s2", it, "dev", &format!("{it}-admins")));
    let [stays, goes, comes] = ["stays", "goes", "comes"].map(mark);
    run(&acme, "stays", &stays, "n1");
    run(&globex, "goes", &goes, "n1");
    let before = container(&acme, "stays");
    container(&globex, "goes");
    until_beats(&admin, true);

    servers.kill("s1");
    globex.ok(&["delete", "pod", "goes", "--force", "--grace-period=0"]);
    run(&globex, "comes", &comes, "n1");
    assert!(runs(&goes), "nobody has told the node");
    servers.start("s1");
    until("what was deleted ends", || !runs(&goes));
    container(&globex, "comes");
    assert!(runs(&comes));
    assert_eq!(container(&acme, "stays"), before, "nothing happened to it");
    until_beats(&admin, true);
    let log = fs::read_to_string(servers.path("node.log")).unwrap();
    assert!(!log.contains("pods are watched"), "{log}");

    // Who removes the node sees it again soon.
    let uid = ["get", "node", "n1", "-o", "jsonpath={.metadata.uid}"];
    let old = admin.ok(&uid);
    admin.ok(&["delete", "node", "n1", "--wait=false"]);
    admin.until(&uid, |it| !it.is_empty() && *it != *old);
}

#[test]
fn a_node_without_a_feed_watches_until_there_is_one() {
    const ROLE: &str = "system:node";
    let mut servers = apart();
    let admin = servers.admin("s2");
    let role: Value =
        serde_json::from_str(&admin.ok(&["get", "clusterrole", ROLE, "-o", "json"])).unwrap();
    let rules = role["rules"].as_array().unwrap();
    let without: Vec<&Value> = rules.iter().filter(|it| it["nonResourceURLs"].is_null()).collect();
    assert!(without.len() < rules.len(), "{role}");
    let set = |rules: Value| {
        let patch = json!({"rules": rules}).to_string();
        admin.ok(&["patch", "clusterrole", ROLE, "--type=merge", "-p", &patch]);
    };
    set(json!(without));
    servers.node("s1");
    let acme = servers.user("s2", "acme", "dev", "acme-admins");
    let [stays, goes, comes] = ["kept", "left", "new"].map(mark);
    run(&acme, "stays", &stays, "n1");
    run(&acme, "goes", &goes, "n1");
    let before = container(&acme, "stays");
    container(&acme, "goes");
    until_beats(&admin, false);

    set(json!(rules));
    let log = servers.path("node.log");
    let says = |text: &str| fs::read_to_string(&log).unwrap().contains(text);
    until("the feed is there", || says("the server has a node feed now"));
    acme.ok(&["delete", "pod", "goes"]);
    until("what was deleted ends", || !runs(&goes));
    run(&acme, "comes", &comes, "n1");
    container(&acme, "comes");
    assert_eq!(container(&acme, "stays"), before, "nothing happened to it");
    until_beats(&admin, true);

    // And back: what is taken away ends what it carries.
    set(json!(without));
    until("pods are watched", || {
        fs::read_to_string(&log).unwrap().matches("pods are watched").count() == 2
    });
    acme.ok(&["delete", "pod", "comes"]);
    until("what was deleted ends", || !runs(&comes));
    until_beats(&admin, false);
    assert_eq!(container(&acme, "stays"), before, "nothing happened to it");
}
