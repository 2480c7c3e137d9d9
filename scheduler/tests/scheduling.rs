//! The scheduler on a real API server, with nodes that are only objects.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

#[path = "../../controllers/tests/cloud/mod.rs"]
mod cloud;

use std::{collections::BTreeMap, time::Duration};

use insula_api::names::TenantName;
use insula_client::{DeleteOptions, ListOptions, Patch, Tenant, Tenanted};
use insula_scheduler::Config;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, ServiceAccount};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::cloud::Cloud;

/// A cloud with a scheduler, tenants, and nothing that makes pods run.
struct Scheduled {
    cloud: Cloud,
    scheduler: CancellationToken,
}

impl Scheduled {
    async fn start(tenants: &[&str]) -> Self {
        let cloud = Cloud::start(2).await;
        for tenant in tenants {
            prepare(&cloud, tenant).await;
        }
        let it = Self { scheduler: cloud.shutdown.child_token(), cloud };
        it.run_scheduler();
        it
    }

    fn run_scheduler(&self) {
        let client = self.cloud.client.clone();
        let running = insula_scheduler::run(Config::default(), client, self.scheduler.clone());
        self.cloud.tasks.spawn(running);
    }

    async fn node(&self, name: &str, cpu: &str) {
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        let nodes = self.cloud.client.system().api::<Node>();
        nodes.create(&serde_json::from_value(node).unwrap()).await.unwrap();
        let status = json!({"status": {
            "allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "500"},
            "capacity": {"cpu": cpu, "memory": "64Gi", "pods": "500"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        nodes.patch_status(name, &Patch::Merge(status)).await.unwrap();
        // As the controller of nodes does when they are ready.
        let untaint = Patch::Merge(json!({"spec": {"taints": null}}));
        nodes.patch(name, &untaint).await.unwrap();
    }

    async fn pod(&self, tenant: &str, name: &str, cpu: &str) -> Tenanted<Pod> {
        self.pod_with(tenant, name, cpu, |_| ()).await
    }

    async fn pod_with(
        &self,
        tenant: &str,
        name: &str,
        cpu: &str,
        change: impl FnOnce(&mut Value),
    ) -> Tenanted<Pod> {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [
                {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}},
            ]},
        });
        change(&mut pod);
        self.cloud.create::<Pod>(&named(tenant), "default", pod).await
    }

    async fn get(&self, tenant: &str, name: &str) -> Tenanted<Pod> {
        let scope = self.cloud.client.tenant(&named(tenant));
        scope.namespaced::<Pod>("default").get(name).await.unwrap()
    }

    async fn until_on(&self, tenant: &str, name: &str, node: &str) {
        let what = format!("{tenant}/{name} is on {node}");
        self.cloud.until(&what, async || node_of(&self.get(tenant, name).await) == node).await;
    }

    /// Reason and message of the pod's condition that it found no node.
    async fn until_waits(&self, tenant: &str, name: &str, reason: &str, message: &str) {
        let what = format!("{tenant}/{name} waits: {reason}: {message}");
        self.cloud
            .until(&what, async || {
                let status = self.get(tenant, name).await.object.status.unwrap_or_default();
                status.conditions.unwrap_or_default().iter().any(|it| {
                    it.type_ == "PodScheduled"
                        && it.status == "False"
                        && it.reason.as_deref() == Some(reason)
                        && it.message.as_deref() == Some(message)
                })
            })
            .await;
    }

    async fn until_event(&self, tenant: &str, reason: &str, message: &str) {
        self.cloud
            .until(&format!("{reason}: {message}"), async || {
                let events = self.cloud.list::<Event>(&named(tenant), "default").await;
                events.iter().any(|it| {
                    it.reason.as_deref() == Some(reason) && it.message.as_deref() == Some(message)
                })
            })
            .await;
    }

    async fn all_pods(&self) -> Vec<Tenanted<Pod>> {
        let pods = self.cloud.client.all().collection::<Pod>();
        pods.list_all(&ListOptions::default()).await.unwrap()
    }
}

fn named(tenant: &str) -> TenantName {
    TenantName::parse(tenant).unwrap()
}

fn node_of(pod: &Tenanted<Pod>) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// What the controllers would do for a new tenant.
async fn prepare(cloud: &Cloud, tenant: &str) {
    let mut it = Tenant::default();
    it.metadata.name = Some(tenant.to_owned());
    cloud.client.system().api::<Tenant>().create(&it).await.unwrap();
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some("default".to_owned());
    cloud.client.tenant(&named(tenant)).api::<Namespace>().create(&namespace).await.unwrap();
    let account = json!({"metadata": {"name": "default"}});
    cloud.create::<ServiceAccount>(&named(tenant), "default", account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_all_tenants_get_nodes_and_are_told() {
    let it = Scheduled::start(&["acme", "globex"]).await;
    it.node("n1", "8").await;
    it.pod("acme", "p", "1").await;
    it.pod("globex", "p", "1").await;
    it.until_on("acme", "p", "n1").await;
    it.until_on("globex", "p", "n1").await;
    it.until_event("acme", "Scheduled", "Successfully assigned default/p to n1").await;
    let status = it.get("acme", "p").await.object.status.unwrap();
    let conditions = status.conditions.unwrap();
    assert!(conditions.iter().any(|it| it.type_ == "PodScheduled" && it.status == "True"));
    it.cloud.end().await;
}

/// Four hundred pods of two tenants race for room for three hundred.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_fills_the_nodes_and_no_more() {
    let it = Scheduled::start(&["acme", "globex"]).await;
    for n in 0..3 {
        it.node(&format!("n{n}"), "10").await;
    }
    let create = async |tenant: &str| {
        for n in 0..200 {
            it.pod(tenant, &format!("p{n}"), "100m").await;
        }
    };
    tokio::join!(create("acme"), create("globex"));
    let bound = async || {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for pod in it.all_pods().await {
            *counts.entry(node_of(&pod).to_owned()).or_default() += 1;
        }
        counts
    };
    let full = |node: &str| (node.to_owned(), 100);
    let expected = BTreeMap::from([(String::new(), 100), full("n0"), full("n1"), full("n2")]);
    it.cloud.until("the nodes are full", async || bound().await == expected).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bound().await, expected, "full is full");

    let waiting: Vec<_> =
        it.all_pods().await.into_iter().filter(|pod| node_of(pod).is_empty()).collect();
    let (tenant, name) = (waiting[0].tenant.as_str(), waiting[0].name());
    it.until_waits(tenant, name, "Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.")
        .await;

    // Whoever ends makes room for one who waits.
    for pod in it.all_pods().await.iter().filter(|pod| node_of(pod) == "n1").take(5) {
        let pods = it.cloud.client.tenant(&pod.tenant).namespaced::<Pod>("default");
        let now = DeleteOptions::default().grace_period(0);
        pods.delete(pod.name(), &now).await.unwrap();
    }
    it.cloud
        .until("the room is taken", async || {
            let counts = bound().await;
            counts[""] == 95 && counts["n1"] == 100
        })
        .await;
    it.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_wait_for_what_they_need_and_are_told_why() {
    let it = Scheduled::start(&["acme"]).await;
    it.pod("acme", "first", "1").await;
    it.until_waits("acme", "first", "Unschedulable", "no nodes available to schedule pods").await;
    it.node("n1", "2").await;
    it.until_on("acme", "first", "n1").await;

    it.pod_with("acme", "choosy", "1", |pod| {
        pod["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    })
    .await;
    let message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    it.until_waits("acme", "choosy", "Unschedulable", message).await;
    it.until_event("acme", "FailedScheduling", message).await;
    let nodes = it.cloud.client.system().api::<Node>();
    let labels = Patch::Merge(json!({"metadata": {"labels": {"disk": "ssd"}}}));
    nodes.patch("n1", &labels).await.unwrap();
    it.until_on("acme", "choosy", "n1").await;

    it.pod("acme", "large", "1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu.";
    it.until_waits("acme", "large", "Unschedulable", message).await;
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    nodes.patch("n1", &cordon).await.unwrap();
    let grown = Patch::Merge(json!({"status": {"allocatable": {"cpu": "3"}}}));
    nodes.patch_status("n1", &grown).await.unwrap();
    let message = "0/1 nodes are available: 1 node(s) were unschedulable.";
    it.until_waits("acme", "large", "Unschedulable", message).await;
    nodes.patch("n1", &Patch::Merge(json!({"spec": {"unschedulable": null}}))).await.unwrap();
    it.until_on("acme", "large", "n1").await;
    it.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_and_other_schedulers_are_respected() {
    let it = Scheduled::start(&["acme"]).await;
    it.node("n1", "2").await;
    it.pod_with("acme", "gated", "1", |pod| {
        pod["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    })
    .await;
    it.pod_with("acme", "others", "1", |pod| pod["spec"]["schedulerName"] = json!("other")).await;
    let message = "Scheduling is blocked due to non-empty scheduling gates";
    it.until_waits("acme", "gated", "SchedulingGated", message).await;
    it.pod("acme", "plain", "1").await;
    it.until_on("acme", "plain", "n1").await;
    assert_eq!(node_of(&it.get("acme", "gated").await), "");
    assert_eq!(node_of(&it.get("acme", "others").await), "");
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    let open = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    pods.patch("gated", &open).await.unwrap();
    it.until_on("acme", "gated", "n1").await;
    it.cloud.end().await;
}

/// What the last scheduler placed, the next one knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_scheduler_goes_on_where_the_old_one_was() {
    let mut it = Scheduled::start(&["acme"]).await;
    it.node("n1", "2").await;
    it.pod("acme", "one", "1500m").await;
    it.until_on("acme", "one", "n1").await;
    it.scheduler.cancel();
    it.pod("acme", "two", "1").await;
    it.pod("acme", "three", "500m").await;
    it.scheduler = it.cloud.shutdown.child_token();
    it.run_scheduler();
    it.until_on("acme", "three", "n1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu.";
    it.until_waits("acme", "two", "Unschedulable", message).await;
    it.cloud.end().await;
}
