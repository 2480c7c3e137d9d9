//! Hollow nodes against a real server: they are nodes to everybody else.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use harness::{Cloud, Kubectl, insula, texts};
use insula_hollow::{HollowError, HollowNodes, Options, Target};
use serde_json::{Value, json};

fn apply(kubectl: &Kubectl, object: &Value) {
    let out = kubectl.feed(&["create", "-f", "-"], &object.to_string());
    assert!(out.status.success(), "{:?}", texts(&out));
}

fn deployment(replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    })
}

fn job(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0, "completions": 2, "parallelism": 2,
            "template": {
                "metadata": {"annotations": annotations},
                "spec": {
                    "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
                },
            },
        },
    })
}

/// `insula loadtest nodes`.
struct Nodes(Child);

impl Nodes {
    fn run(cloud: &Cloud, more: &[&str]) -> Self {
        let mut command = insula();
        command.args(["loadtest", "nodes", "--kubeconfig"]);
        command.arg(cloud.path("admin.kubeconfig")).args(more).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn terminate(mut self) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const READY: &str = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";

fn is_ready(count: usize) -> impl Fn(&str) -> bool {
    move |text| text.split(' ').filter(|it| *it == "True").count() == count
}

/// A deployment becomes available, jobs end as they are to, pods go when they are deleted, and all
/// of it goes on when the nodes or the server were away.
#[test]
fn pods_live_on_hollow_nodes_with_feeds() {
    pods_live_on_hollow_nodes("feed");
}

#[test]
fn pods_live_on_hollow_nodes_like_kubelets() {
    pods_live_on_hollow_nodes("kubelet");
}

fn pods_live_on_hollow_nodes(mode: &str) {
    let mut cloud = Cloud::start(false, &["--partitions", "2"]);
    let (acme, globex) = cloud.tenants();
    let admin = cloud.admin();
    let nodes = Nodes::run(&cloud, &["--mode", mode, "--count", "5", "--zones", "a,b"]);
    admin.until(&["get", "nodes", "-o", READY], is_ready(5));
    let zone = admin.ok(&["get", "node", "hollow-1", "-o", "jsonpath={.metadata.labels}"]);
    assert!(zone.contains("\"topology.kubernetes.io/zone\":\"b\""), "{zone}");
    assert!(zone.contains("\"kubernetes.io/hostname\":\"hollow-1\""), "{zone}");

    for kubectl in [&acme, &globex] {
        apply(kubectl, &deployment(4));
    }
    apply(&acme, &job("good", json!({"hollow.insula.io/exit-after": "200ms"})));
    apply(&globex, &job("bad", json!({"hollow.insula.io/exit-code": "3"})));
    for kubectl in [&acme, &globex] {
        let available = ["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"];
        kubectl.until(&available, |it| it == "4");
    }
    acme.until(&["get", "job", "good", "-o", "jsonpath={.status.succeeded}"], |it| it == "2");
    let failed = "jsonpath={.status.conditions[?(@.type=='Failed')].status}";
    globex.until(&["get", "job", "bad", "-o", failed], |it| it == "True");
    let code = "jsonpath={.items[0].status.containerStatuses[0].state.terminated.exitCode}";
    assert_eq!(globex.ok(&["get", "pods", "-l", "job-name=bad", "-o", code]), "3");
    let ip = acme.ok(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"]);
    assert!(ip.starts_with("10."), "{ip}");

    // The server is away for a moment.
    cloud.kill();
    std::thread::sleep(Duration::from_secs(2));
    cloud.again();
    acme.ok(&["scale", "deployment", "web", "--replicas", "6"]);
    acme.until(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"], |it| {
        it == "6"
    });

    // So are the nodes, which then go on with the pods that they have.
    nodes.terminate();
    let uids = ["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid}"];
    let before = acme.ok(&uids);
    let nodes = Nodes::run(&cloud, &["--mode", mode, "--count", "5", "--remove"]);
    globex.ok(&["delete", "deployment", "web", "--wait=false"]);
    globex.until(&["get", "pods", "-l", "app=web", "-o", "name"], str::is_empty);
    assert_eq!(acme.ok(&uids), before);

    nodes.terminate();
    assert_eq!(admin.ok(&["get", "nodes", "-o", "name"]), "");
    assert_eq!(admin.ok(&["get", "leases", "-n", "kube-node-lease", "-o", "name"]), "");
}

#[test]
fn what_cannot_be_is_said() {
    let cloud = Cloud::without_node();
    let run = |kubeconfig: &std::path::Path, more: &[&str]| {
        let mut command = insula();
        command.args(["loadtest", "nodes", "--kubeconfig"]).arg(kubeconfig).args(more);
        let out = command.output().unwrap();
        assert!(!out.status.success());
        texts(&out).1
    };
    let admin = cloud.path("admin.kubeconfig");
    let said = run(&admin, &["--count", "1", "--mode", "kublet"]);
    assert!(said.contains("there is no mode \"kublet\""), "{said}");
    let said = run(&admin, &["--count", "1", "--capacity", "cpus=4"]);
    assert!(said.contains("\"cpus\" is none of cpu, memory, disk, pods"), "{said}");
    let said = run(&admin, &["--count", "1", "--prefix", "Hollow_"]);
    assert!(said.contains("is no beginning of node names"), "{said}");
    let said = run(&admin, &["--count", "5000000"]);
    assert!(said.contains("more than a process may have"), "{said}");
    let said = run(std::path::Path::new("/nowhere"), &["--count", "1"]);
    assert!(said.contains("cannot use kubeconfig /nowhere"), "{said}");
    let nobody = cloud.user("system", "nobody", "nobodies");
    let said = run(nobody.kubeconfig(), &["--count", "1"]);
    assert!(said.contains("cannot register node hollow-0"), "{said}");
    assert!(said.contains("User \"nobody\" cannot get resource \"nodes\""), "{said}");
}

/// Leases that feeds renew are leases: nodes stay ready for longer than a lease lasts, are not
/// ready any more when nobody says that they live, and those with leases of their own beside them
/// are no different.
#[test]
fn heartbeats_on_feeds_keep_nodes_ready() {
    let cloud = Cloud::start(false, &["--partitions", "2"]);
    let admin = cloud.admin();
    let fed = Nodes::run(&cloud, &["--mode", "feed", "--count", "40", "--prefix", "fed-"]);
    let _alone = Nodes::run(&cloud, &["--mode", "kubelet", "--count", "5", "--prefix", "alone-"]);
    admin.until(&["get", "nodes", "-o", READY], is_ready(45));
    std::thread::sleep(Duration::from_secs(60));
    let ready = admin.ok(&["get", "nodes", "-o", READY]);
    assert!(is_ready(45)(&ready), "{ready}");
    fed.terminate();
    admin.until(&["get", "nodes", "-o", READY], |it| {
        is_ready(5)(it) && it.matches("Unknown").count() == 40
    });
    let _again = Nodes::run(&cloud, &["--mode", "feed", "--count", "40", "--prefix", "fed-"]);
    admin.until(&["get", "nodes", "-o", READY], is_ready(45));
}

/// As who runs scenarios uses them.
#[tokio::test]
async fn they_run_in_the_process_that_asks() {
    let cloud = Cloud::without_node();
    let target = || Target::Kubeconfig(cloud.path("admin.kubeconfig"));
    let hollow = HollowNodes::start(Options::new(100), target()).await.unwrap();
    hollow.ready().await;
    assert_eq!(hollow.counts().registered, 100);
    assert_eq!(hollow.remove().await, 0);
    let options = Options { prefix: String::new(), ..Options::new(1) };
    let refused = HollowNodes::start(options, target()).await;
    assert!(matches!(refused, Err(HollowError::Prefix(_))));
}
