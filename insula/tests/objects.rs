//! Partitions, servers and moves as objects, with stock kubectl.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
    time::Duration,
};

use harness::{Cloud, texts};

#[test]
fn a_partition_is_added_filled_and_drained() {
    let cloud = Cloud::without_node();
    let (acme, _globex) = cloud.tenants();
    let admin = cloud.admin();

    let mut watch = admin
        .command()
        .args(["get", "partitions", "--watch-only", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let (sender, seen) = mpsc::channel();
    thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    // Until the watch is there, whatever it is told of.
    let p3 =
        r#"{"apiVersion":"insula.io/v1","kind":"Partition","metadata":{"name":"p3"},"spec":{}}"#;
    let (_, said) = texts(&admin.feed(&["create", "-f", "-"], p3));
    assert_eq!(said, "");
    let hears = || loop {
        let line = seen.recv_timeout(Duration::from_secs(20)).expect("no event");
        if line.ends_with("/p3") {
            return;
        }
    };
    hears();
    watch.kill().unwrap();
    watch.wait().unwrap();
    let said = texts(&admin.feed(&["create", "-f", "-"], p3)).1;
    assert!(said.contains("AlreadyExists"), "{said}");
    admin.until(&["get", "partition", "p3", "-o", "jsonpath={.status.phase}"], |it| it == "Ready");

    // A tenant moves there, while it is used.
    acme.ok(&["create", "configmap", "before"]);
    let to = |name: &str| format!(r#"{{"spec":{{"partition":"{name}"}}}}"#);
    admin.ok(&["patch", "tenant", "acme", "--type=merge", "-p", &to("p3")]);
    let at = ["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"];
    admin.until(&at, |at| at == "p3");
    acme.ok(&["get", "configmap", "before"]);
    acme.ok(&["create", "configmap", "after"]);
    let moves = admin.ok(&["get", "partitionmoves"]);
    assert!(moves.contains("acme") && moves.contains("p3"), "{moves}");
    admin.until(&["get", "events", "-o", "jsonpath={.items[*].reason}"], |it| it.contains("Done"));
    let wide = admin.ok(&["get", "tenants", "-o", "wide"]);
    assert!(wide.lines().any(|it| it.contains("acme") && it.contains("p3")), "{wide}");

    // What cannot be is refused, in words that help.
    let said = admin.fails(&["patch", "tenant", "acme", "--type=merge", "-p", &to("p9")]);
    assert!(said.contains("spec.partition") && said.contains("\"p1\", \"p2\", \"p3\""), "{said}");
    let said = admin.fails(&["delete", "partition", "p3"]);
    assert!(said.contains("tenant acme") && said.contains("drain"), "{said}");
    let said = admin.fails(&["delete", "partition", "meta"]);
    assert!(said.contains("partition map"), "{said}");
    let servers = r#"{"spec":{"servers":["s9"]}}"#;
    let said = admin.fails(&["patch", "partition", "p1", "--type=merge", "-p", servers]);
    assert!(said.contains("spec.servers") && said.contains("s9"), "{said}");
    for kind in ["partitions", "servers", "partitionmoves"] {
        let said = acme.fails(&["get", "--raw", &format!("/apis/insula.io/v1/{kind}")]);
        assert!(said.contains("Forbidden"), "{kind}: {said}");
    }

    // Draining takes away what is there; then it can go.
    let draining = r#"{"spec":{"draining":true}}"#;
    admin.ok(&["patch", "partition", "p3", "--type=merge", "-p", draining]);
    let said = admin.fails(&["patch", "tenant", "globex", "--type=merge", "-p", &to("p3")]);
    assert!(said.contains("drained"), "{said}");
    admin.until(&at, |at| at != "p3");
    acme.ok(&["get", "configmap", "before", "after"]);
    admin.until(&["get", "partitionmoves", "-o", "jsonpath={.items[*].status.phase}"], |it| {
        it.split(' ').all(|phase| phase == "Done")
    });
    admin.ok(&["delete", "partition", "p3"]);
    assert!(admin.fails(&["get", "partition", "p3"]).contains("NotFound"));

    // A move that is over is forgotten.
    let moves = admin.ok(&["get", "partitionmoves", "-o", "name"]);
    for name in moves.lines() {
        admin.ok(&["delete", name]);
    }
    assert_eq!(admin.ok(&["get", "partitionmoves", "-o", "name"]), "");
}

#[test]
fn moves_are_asked_for_and_refused() {
    let cloud = Cloud::without_node();
    cloud.tenants();
    let admin = cloud.admin();
    let create = |spec: &str| {
        let text = format!(
            "apiVersion: insula.io/v1\nkind: PartitionMove\nmetadata: {{name: one}}\nspec: {spec}\n"
        );
        texts(&admin.feed(&["create", "-f", "-"], &text))
    };
    let refused = |spec: &str, why: &str| {
        let (_, said) = create(spec);
        assert!(said.contains(why), "{spec}: {said:?}, not {why:?}");
    };
    let home = admin.ok(&["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"]);
    let other = if home == "p1" { "p2" } else { "p1" };
    refused("{tenant: acme, to: p9}", "spec.to");
    refused("{tenant: system, to: p1}", "slots");
    refused("{to: p1}", "either a tenant or slots");
    refused("{slots: {first: 9, last: 3}, to: p1}", "16383");
    refused(&format!("{{tenant: acme, to: {home}}}"), "already");
    let (said, error) = create(&format!("{{tenant: acme, to: {other}}}"));
    assert!(said.contains("created"), "{error}");
    admin.until(&["get", "pm", "one", "-o", "jsonpath={.status.phase}"], |it| it == "Done");
    let wide = admin.ok(&["get", "pm", "one", "-o", "wide"]);
    assert!(wide.contains("100%") && wide.contains("acme"), "{wide}");
    admin.until(&["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"], |it| it == other);
    let servers = admin.ok(&["get", "servers", "-o", "wide"]);
    assert!(servers.contains("Ready"), "{servers}");
    assert!(admin.fails(&["delete", "server", "s1"]).contains("Forbidden"));
}
