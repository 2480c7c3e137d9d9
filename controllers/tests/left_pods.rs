//! Pods that nobody else deletes.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::{Patch, Tenanted};
use insula_controllers::{Config, Observer};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::cloud::Cloud;

/// For so long a node must be missing.
const QUARANTINE: Duration = Duration::from_secs(40);

/// How often the collector of pods looked at something.
#[derive(Debug, Default)]
struct Looks(AtomicUsize);

impl Observer for Looks {
    fn reconciled(&self, controller: &'static str, _: bool, _: Duration) {
        if controller == "pod-garbage-collector" {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn waiting(&self, _: &'static str, _: usize) {}
    fn copied(&self, _: usize) {}
}

/// Nodes are not heard of, which is not to matter here.
fn config() -> Config {
    let mut config = Config::new("the root of trust");
    config.node_grace = Duration::from_secs(3600);
    config
}

async fn node(cloud: &Cloud, name: &str) {
    let it: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    cloud.client.system().api::<Node>().create(&it).await.unwrap();
}

async fn remove_node(cloud: &Cloud, name: &str) {
    cloud.client.system().api::<Node>().delete(name, &Default::default()).await.unwrap();
}

/// A pod, on a node if one is named, in a phase.
async fn pod(cloud: &Cloud, tenant: &TenantName, name: &str, node: Option<&str>, phase: &str) {
    let it = json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
    });
    cloud.create::<Pod>(tenant, "default", it).await;
    patch_status(cloud, tenant, name, json!({"phase": phase})).await;
}

async fn patch_status(cloud: &Cloud, tenant: &TenantName, name: &str, status: Value) {
    let pods = cloud.client.tenant(tenant).namespaced::<Pod>("default");
    pods.patch_status(name, &Patch::Strategic(json!({"status": status}))).await.unwrap();
}

/// Has a pod wait for somebody before it goes.
async fn hold(cloud: &Cloud, tenant: &TenantName, name: &str, by: &[&str]) {
    let pods = cloud.client.tenant(tenant).namespaced::<Pod>("default");
    pods.patch(name, &Patch::Merge(json!({"metadata": {"finalizers": by}}))).await.unwrap();
}

async fn delete(cloud: &Cloud, tenant: &TenantName, name: &str) {
    let pods = cloud.client.tenant(tenant).namespaced::<Pod>("default");
    pods.delete(name, &Default::default()).await.unwrap();
}

async fn get(cloud: &Cloud, tenant: &TenantName, name: &str) -> Option<Tenanted<Pod>> {
    cloud.client.tenant(tenant).namespaced::<Pod>("default").get_opt(name).await.unwrap()
}

async fn until_gone(cloud: &Cloud, tenant: &TenantName, name: &str) {
    let gone = async || get(cloud, tenant, name).await.is_none();
    cloud.until(&format!("{name} is gone"), gone).await;
}

/// The phase of a pod, and why it was disrupted.
fn end_of(pod: &Pod) -> (Option<&str>, Option<&str>) {
    let status = pod.status.as_ref();
    let all = status.and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    let disruption = all.iter().find(|it| it.type_ == "DisruptionTarget");
    (status.and_then(|it| it.phase.as_deref()), disruption.and_then(|it| it.reason.as_deref()))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_run_are_not_looked_at() {
    let cloud = Cloud::start(1).await;
    let looks = Arc::new(Looks::default());
    cloud.run_controllers(Config { observer: looks.clone(), ..config() });
    let acme = cloud.tenant("acme").await;
    node(&cloud, "n").await;
    // Of one that is not known yet nothing is thought at once either.
    for (number, on) in [None, Some("n"), Some("late")].iter().cycle().take(30).enumerate() {
        pod(&cloud, &acme, &format!("p{number}"), *on, "Running").await;
    }
    node(&cloud, "late").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(looks.0.load(Ordering::Relaxed), 0);
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_nodes_that_are_gone_go() {
    let cloud = Cloud::start(2).await;
    let replica = |host: &str| {
        let shutdown = CancellationToken::new();
        let config = Config { host: Some(host.to_owned()), ..config() };
        let running = insula_controllers::run(config, cloud.client.clone(), shutdown.clone());
        (shutdown, tokio::spawn(running))
    };
    let (shutdown, running) = replica("one");
    let (acme, globex) = (cloud.tenant("acme").await, cloud.tenant("globex").await);
    for name in ["early", "late", "back"] {
        node(&cloud, name).await;
    }
    pod(&cloud, &acme, "early", Some("early"), "Running").await;
    shutdown.cancel();
    running.await.unwrap().unwrap();

    // While nobody looks, and who takes the tenants over has to find it out.
    remove_node(&cloud, "early").await;
    let (shutdown, running) = replica("two");
    pod(&cloud, &acme, "late", Some("late"), "Running").await;
    pod(&cloud, &acme, "ended", Some("late"), "Succeeded").await;
    pod(&cloud, &globex, "late", Some("late"), "Running").await;
    pod(&cloud, &globex, "held", Some("late"), "Running").await;
    hold(&cloud, &globex, "held", &["test/kept"]).await;
    pod(&cloud, &acme, "back", Some("back"), "Running").await;
    pod(&cloud, &acme, "never", Some("never"), "Running").await;
    pod(&cloud, &acme, "bound", None, "Pending").await;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "bound"},
        "target": {"kind": "Node", "name": "never-either"},
    });
    let pods = cloud.client.tenant(&acme).namespaced::<Pod>("default");
    pods.create_subresource::<Value, Value>("bound", "binding", &binding).await.unwrap();
    let since = Instant::now();
    remove_node(&cloud, "late").await;
    remove_node(&cloud, "back").await;
    node(&cloud, "back").await;

    for name in ["early", "late", "ended", "never", "bound"] {
        until_gone(&cloud, &acme, name).await;
        let waited = since.elapsed();
        assert!(name != "late" || QUARANTINE <= waited, "only {waited:?}");
    }
    until_gone(&cloud, &globex, "late").await;
    let failed = async || {
        let pod = get(&cloud, &globex, "held").await.unwrap();
        pod.is_deleting() && end_of(&pod) == (Some("Failed"), Some("DeletionByPodGC"))
    };
    cloud.until("it says why", failed).await;
    hold(&cloud, &globex, "held", &[]).await;
    until_gone(&cloud, &globex, "held").await;
    assert!(!get(&cloud, &acme, "back").await.unwrap().is_deleting(), "its node is back");
    shutdown.cancel();
    running.await.unwrap().unwrap();
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_wait_for_nobody_end() {
    let cloud = Cloud::start(1).await;
    cloud.run_controllers(config());
    let acme = cloud.tenant("acme").await;
    for name in ["down", "up"] {
        node(&cloud, name).await;
        pod(&cloud, &acme, name, Some(name), "Running").await;
        pod(&cloud, &acme, &format!("{name}-runs"), Some(name), "Running").await;
        delete(&cloud, &acme, name).await;
    }
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let nodes = cloud.client.system().api::<Node>();
    nodes.patch_status("up", &Patch::Strategic(ready)).await.unwrap();
    pod(&cloud, &acme, "homeless", None, "Pending").await;
    hold(&cloud, &acme, "homeless", &["test/kept"]).await;
    delete(&cloud, &acme, "homeless").await;
    let end = async || end_of(&get(&cloud, &acme, "homeless").await.unwrap()).0 == Some("Failed");
    cloud.until("it has ended", end).await;

    // It was looked at before somebody says so.
    let out = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "x", "effect": "NoSchedule"},
    ]}});
    for name in ["down", "up"] {
        nodes.patch(name, &Patch::Merge(out.clone())).await.unwrap();
    }
    until_gone(&cloud, &acme, "down").await;
    for name in ["up", "up-runs", "down-runs"] {
        assert!(get(&cloud, &acme, name).await.is_some(), "{name}");
    }
    cloud.end().await;
}
