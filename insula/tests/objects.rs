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

use harness::{Cloud, Kubectl, texts};

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
        let line = seen.recv_timeout(Duration::from_secs(120)).expect("no event");
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

/// Applies a manifest, and gives what was said, warnings too.
fn apply(admin: &Kubectl, manifest: &str) -> String {
    let (done, said) = texts(&admin.feed(&["apply", "-f", "-"], manifest));
    done + &said
}

#[test]
fn a_partition_is_added_by_apply_and_gets_its_share() {
    let cloud = Cloud::without_node();
    cloud.tenants();
    let admin = cloud.admin();
    let p3 = |spec: &str| {
        format!(
            "apiVersion: insula.io/v1\nkind: Partition\n\
             metadata: {{name: p3, labels: {{disk: fast}}}}\nspec: {spec}\n"
        )
    };
    assert_eq!(apply(&admin, &p3("{filling: true}")), "partition.insula.io/p3 created\n");
    let field = |name: &str, path: &str| {
        admin.ok(&["get", "partition", name, "-o", &format!("jsonpath={{{path}}}")])
    };
    // It is filled from both sides, and then says so.
    let slots = ["get", "partition", "p3", "-o", "jsonpath={.status.slots} {.spec.filling}"];
    admin.until(&slots, |it| it == "5461 ");
    assert_eq!(field("p1", ".status.slots"), "5462");
    assert_eq!(field("p1", ".status.slotRanges"), r#"["0-5461"]"#);
    let moves = admin.ok(&["get", "pm", "-o", "name"]);
    assert_eq!(moves.lines().filter(|it| it.contains("fill-p3")).count(), 6, "{moves}");

    // A range of slots goes back.
    let one = "apiVersion: insula.io/v1\nkind: PartitionMove\nmetadata: {name: back}\n\
               spec: {slots: {first: 5462, last: 5562}, to: p1}\n";
    assert_eq!(apply(&admin, one), "partitionmove.insula.io/back created\n");
    admin.until(&["get", "pm", "back", "-o", "jsonpath={.status.phase}"], |it| it == "Done");
    assert_eq!(apply(&admin, one), "partitionmove.insula.io/back unchanged\n");
    let changed = apply(&admin, &one.replace("to: p1", "to: p2"));
    assert!(changed.contains("cancel it by deleting it"), "{changed}");
    assert_eq!(field("p1", ".status.slotRanges"), r#"["0-5562"]"#);

    // What was applied is taken back by applying without it.
    assert_eq!(apply(&admin, &p3("{draining: true}")), "partition.insula.io/p3 configured\n");
    admin.until(&slots, |it| it == "0 ");
    assert_eq!(apply(&admin, &p3("{}")), "partition.insula.io/p3 configured\n");
    assert_eq!(field("p3", ".spec.draining"), "");
    let aside = |spec: &str| {
        let apply = ["apply", "--server-side", "--field-manager=ops", "-f", "-"];
        texts(&admin.feed(&apply, &p3(spec).replace("p3", "p4"))).1
    };
    assert_eq!(aside("{draining: true}"), "");
    assert_eq!(field("p4", ".spec.draining"), "true");
    assert_eq!(aside("{}"), "");
    assert_eq!(field("p4", ".spec.draining"), "");
    let both = apply(&admin, &p3("{draining: true, filling: true}"));
    assert!(both.contains("spec.filling"), "{both}");
    admin.ok(&["label", "partition", "p3", "rack=7"]);
    admin.ok(&["label", "apiservers", "s1", "rack=7"]);
    let found = admin.ok(&["get", "partitions,servers", "-l", "rack=7", "-o", "name"]);
    assert_eq!(found, "partition.insula.io/p3\nserver.insula.io/s1\n");
    assert_eq!(field("p3", ".metadata.labels.disk"), "fast");
    let draining = r#"{"spec":{"draining":true}}"#;
    let said = admin.fails(&["patch", "partition", "meta", "--type=merge", "-p", draining]);
    assert!(said.contains("holds the partition map"), "{said}");
}

#[test]
fn kubectl_explains_and_describes() {
    let cloud = Cloud::without_node();
    cloud.tenants();
    let admin = cloud.admin();
    for (what, expected) in [
        ("partition", "One unit of storage"),
        ("partition.spec.draining", "all that is here moves elsewhere"),
        ("tenant.spec.partition", "moves the tenant while its users go on"),
        ("server.status.leads", "whose groups it leads"),
        ("partitionmove.spec.slots.first", "The first slot"),
    ] {
        let text = admin.ok(&["explain", what]);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(expected), "{what}: {text}");
    }
    let home = admin.ok(&["get", "tenant", "acme", "-o", "jsonpath={.status.partition}"]);
    let other = if home == "p1" { "p2" } else { "p1" };
    let patch = format!(r#"{{"spec":{{"partition":"{other}"}}}}"#);
    admin.ok(&["patch", "tenant", "acme", "--type=merge", "-p", &patch]);
    let told = admin.until(&["describe", "partitionmoves"], |it| it.contains("writes waited"));
    // A step that is over within a moment may not be seen.
    for step in ["Copying", "Done"] {
        assert!(told.contains(&format!("Normal  {step}")), "{step}: {told}");
    }
    let partition = admin.ok(&["describe", "partition", other]);
    assert!(partition.contains("Slot Ranges"), "{partition}");
    assert!(admin.ok(&["describe", "server", "s1"]).contains("Leads"));
}
