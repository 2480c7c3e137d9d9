//! The life of a tenant: one line begins it, and at its end nothing of it is left anywhere.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{path::Path, process::Output};

use harness::{Cloud, Kubectl, etcd::Etcd, insula, texts};
use insula_partition::{
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    store::ReadAt,
};

/// Things of many kinds, in and out of namespaces.
const THINGS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, kind: Widget}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: more}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {password: hidden}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: held, namespace: more}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: l}
spec: {holderIdentity: x}
---
apiVersion: v1
kind: Event
metadata: {name: e}
involvedObject: {kind: Pod, namespace: default, name: p}
reason: Test
type: Normal
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: v}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  hostPath: {path: /tmp/x}
---
apiVersion: v1
kind: Service
metadata: {name: svc}
spec: {ports: [{port: 80}], type: NodePort}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 2
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec: {containers: [{name: c, image: x}]}
"#;
const WIDGET: &str =
    r#"{"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}"#;

fn tenant(cloud: &Cloud, arguments: &[&str]) -> Output {
    let mut command = insula();
    command.args(["tenant", "create"]).args(arguments).arg("--data-dir").arg(cloud.data_dir());
    command.output().unwrap()
}

/// Makes a tenant by the one line, with its administrator.
fn begin(cloud: &Cloud, name: &str, more: &[&str]) -> Kubectl {
    let out = cloud.path(&format!("{name}.kubeconfig"));
    let file = out.to_str().unwrap();
    let arguments = [&[name, "--admin", "alice", "--out", file], more].concat();
    let made = tenant(cloud, &arguments);
    let (stdout, stderr) = texts(&made);
    assert!(made.status.success(), "{stdout}{stderr}");
    let first = format!("tenant.insula.io/{name} created");
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(stdout.is_empty() && lines.contains(&first.as_str()), "{stdout}{stderr}");
    Kubectl::new(out)
}

fn fill(user: &Kubectl) {
    let (stdout, stderr) = texts(&user.feed(&["apply", "-f", "-"], THINGS));
    assert_eq!(stdout.lines().count(), 9, "{stdout}{stderr}");
    user.ok(&["wait", "--for=condition=Established", "crd/widgets.example.com"]);
    let (stdout, stderr) = texts(&user.feed(&["create", "-f", "-"], WIDGET));
    assert!(stdout.contains("created"), "{stderr}");
    user.ok(&["create", "token", "default"]);
    user.until(&["get", "pods", "-o", "name"], |it| it.lines().count() == 2);
}

/// Deletes a tenant while the cloud dies on the way, and waits until it is gone.
fn end(cloud: &mut Cloud, user: &Kubectl, name: &str) {
    let finalizers = r#"{"metadata":{"finalizers":["example.com/keep"]}}"#;
    let held = ["-n", "more", "patch", "configmap", "held", "--type=merge", "-p"];
    user.ok(&[&held[..], &[finalizers]].concat());
    cloud.admin().ok(&["delete", "tenant", name, "--wait=false"]);
    // Half-way: what is held keeps the rest of it.
    cloud.admin().until(
        &["--server", &at(cloud, name), "get", "secrets", "-A", "-o", "name"],
        str::is_empty,
    );
    cloud.kill();
    cloud.again();
    let phase = ["get", "tenant", name, "-o", "jsonpath={.status.phase}"];
    cloud.admin().until(&phase, |it| it == "Terminating");
    let free = r#"{"metadata":{"finalizers":null}}"#;
    let server = at(cloud, name);
    cloud.admin().ok(&[&["--server", &server][..], &held[..], &[free]].concat());
    cloud.admin().until(&["get", "tenant", name, "--ignore-not-found"], str::is_empty);
}

/// The tenant's own API, for a user of the platform.
fn at(cloud: &Cloud, tenant: &str) -> String {
    format!("{}/tenants/{tenant}", cloud.endpoint)
}

/// Keys of a tenant in all partitions that lie in a directory, and whether the map knows it.
fn scan(data: &Path, tenant: &str) -> (Vec<String>, bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = StoreConfig::Embedded { partitions: 2 };
        let config = PartitionsConfig::alone(data.join("partitions"), store);
        let partitions = Partitions::open(config).await.unwrap();
        let mut found = Vec::new();
        for name in partitions.names() {
            let store = partitions.store(&name).unwrap();
            for collection in store.collections().await.unwrap() {
                let snapshot = store.read(&collection, ReadAt::Latest).await.unwrap();
                let prefix = format!("{tenant}/");
                let keys = snapshot.range(&prefix, None).map(|(key, _)| key.to_string());
                found.extend(keys.map(|key| format!("{name} {collection} {key}")));
            }
        }
        let is_pinned = partitions.map().pins().contains_key(tenant);
        partitions.shutdown().await.unwrap();
        (found, is_pinned)
    })
}

#[test]
fn a_tenant_ends_without_a_trace() {
    let mut cloud = Cloud::without_node();
    let acme = begin(&cloud, "acme", &["--partition", "p2"]);
    let globex = begin(&cloud, "globex", &["--partition", "p2"]);
    fill(&acme);
    fill(&globex);
    let data = cloud.data_dir();
    end(&mut cloud, &acme, "acme");
    assert!(acme.fails(&["get", "pods"]).contains("Forbidden"));
    cloud.terminate();
    let (left, is_pinned) = scan(&data, "acme");
    assert!(left.is_empty() && !is_pinned, "{left:?} {is_pinned}");
    // The scan would have found them.
    let (left, is_pinned) = scan(&data, "globex");
    assert!(20 < left.len() && is_pinned, "{left:?}");
    // The name can be used again, and begins with nothing.
    cloud.again();
    let acme = begin(&cloud, "acme", &[]);
    assert_eq!(acme.ok(&["get", "secrets,leases,deployments", "-o", "name"]), "");
    assert!(globex.ok(&["get", "widgets"]).contains('w'));
}

#[test]
fn a_tenant_ends_without_a_trace_in_etcd() {
    let (one, two) = (Etcd::start(), Etcd::start());
    let store = format!("etcd=one={};two={}", one.url, two.url);
    let mut cloud = Cloud::start(false, &["--store", &store]);
    let acme = begin(&cloud, "acme", &["--partition", "two"]);
    fill(&acme);
    let keys = |of: &str| -> Vec<String> {
        let all = [&one, &two].map(|it| it.ctl(None, &["get", "", "--prefix", "--keys-only"]));
        let all: Vec<&str> = all.iter().flat_map(|it| it.lines()).collect();
        all.iter().filter(|it| it.contains(&format!("/{of}/"))).map(|it| (*it).into()).collect()
    };
    assert!(20 < keys("acme").len(), "{:?}", keys("acme"));
    end(&mut cloud, &acme, "acme");
    assert_eq!(keys("acme"), Vec::<String>::new());
    assert!(!keys("system").is_empty());
}

#[test]
fn one_line_makes_a_tenant() {
    let cloud = Cloud::without_node();
    let alice = begin(&cloud, "acme", &[]);
    assert!(alice.ok(&["get", "namespaces", "-o", "name"]).contains("namespace/default"));
    alice.ok(&["auth", "can-i", "*", "*"]);
    alice.ok(&["create", "secret", "generic", "s"]);
    // Again, for whoever lost the file.
    let again = tenant(&cloud, &["acme", "--admin", "alice"]);
    assert!(again.status.success() && texts(&again).0.contains("client-key-data"));
    for (arguments, why) in [
        (&["acme", "--admin", "mallory"][..], "none of its first administrators"),
        (&["system", "--admin", "alice"], "platform's own tenant"),
        (&["all", "--admin", "alice"], "reserved"),
        (&["No Good", "--admin", "alice"], "not a tenant name"),
        (&["fine", "--admin", ""], "not a user name"),
        (&["fine", "--admin", "alice", "--partition", "p9"], "p9"),
    ] {
        let refused = tenant(&cloud, arguments);
        let (_, stderr) = texts(&refused);
        assert!(!refused.status.success() && stderr.contains(why), "{arguments:?}: {stderr}");
    }
    let admin = cloud.admin();
    let said = admin.fails(&["delete", "tenant", "system"]);
    assert!(said.contains("the platform's own tenant may not be deleted"), "{said}");
    let said = alice.fails(&["delete", "namespace", "default"]);
    assert!(said.contains("this namespace may not be deleted"), "{said}");
}
