//! The scheduler on a real API server, with nodes that are only objects.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod scheduled;

use std::{collections::BTreeMap, time::Duration};

use insula_client::{DeleteOptions, Patch, PatchOptions};
use insula_scheduler::{Config, Configuration};
use k8s_openapi::{
    ClusterResourceScope, Metadata, Resource,
    api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
        scheduling::v1::PriorityClass,
        storage::v1::StorageClass,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::scheduled::{Scheduled, named, node_of};

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
    let message = "0/3 nodes are available: 3 Insufficient cpu. no new claims to deallocate, \
                   preemption: 0/3 nodes are \
                   available: 3 No preemption victims found for incoming pod.";
    it.until_waits(tenant, name, "Unschedulable", message).await;

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
    let message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
                   no new claims to deallocate, \
                   preemption: 0/1 nodes are available: 1 Preemption is not helpful for \
                   scheduling.";
    it.until_waits("acme", "choosy", "Unschedulable", message).await;
    it.until_event("acme", "FailedScheduling", message).await;
    let nodes = it.cloud.client.system().api::<Node>();
    let labels = Patch::Merge(json!({"metadata": {"labels": {"disk": "ssd"}}}));
    nodes.patch("n1", &labels).await.unwrap();
    it.until_on("acme", "choosy", "n1").await;

    it.pod("acme", "large", "1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, \
                   preemption: 0/1 nodes are \
                   available: 1 No preemption victims found for incoming pod.";
    it.until_waits("acme", "large", "Unschedulable", message).await;
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    nodes.patch("n1", &cordon).await.unwrap();
    let grown = Patch::Merge(json!({"status": {"allocatable": {"cpu": "3"}}}));
    nodes.patch_status("n1", &grown).await.unwrap();
    let message = "0/1 nodes are available: 1 node(s) were unschedulable. no new claims to deallocate, \
                   preemption: 0/1 nodes \
                   are available: 1 Preemption is not helpful for scheduling.";
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
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, \
                   preemption: 0/1 nodes are \
                   available: 1 No preemption victims found for incoming pod.";
    it.until_waits("acme", "two", "Unschedulable", message).await;
    it.cloud.end().await;
}

/// A pod that shrinks holds what it had until its node says that it has less.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_resized_pod_has_counts_until_it_is_given_back() {
    let it = Scheduled::start(&["acme"]).await;
    it.node("n1", "2").await;
    it.pod("acme", "large", "2").await;
    it.until_on("acme", "large", "n1").await;
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    let has = async |cpu: &str| {
        let status = json!({"status": {"containerStatuses": [{
            "name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": cpu}, "resources": {"requests": {"cpu": cpu}},
        }]}});
        pods.patch_status("large", &Patch::Strategic(status)).await.unwrap();
    };
    has("2").await;
    let smaller = json!({"spec": {"containers": [
        {"name": "c", "resources": {"requests": {"cpu": "1"}}},
    ]}});
    let resize = PatchOptions::default();
    let smaller = Patch::Strategic(smaller);
    pods.patch_with("large", Some("resize"), &smaller, &resize).await.unwrap();
    it.pod("acme", "other", "1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, \
                   preemption: 0/1 nodes are \
                   available: 1 No preemption victims found for incoming pod.";
    it.until_waits("acme", "other", "Unschedulable", message).await;
    has("1").await;
    it.until_on("acme", "other", "n1").await;
    it.cloud.end().await;
}

/// What a metrics server says of a node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeMetrics {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    usage: BTreeMap<String, String>,
}

impl Resource for NodeMetrics {
    const API_VERSION: &'static str = "metrics.k8s.io/v1beta1";
    const GROUP: &'static str = "metrics.k8s.io";
    const KIND: &'static str = "NodeMetrics";
    const VERSION: &'static str = "v1beta1";
    const URL_PATH_SEGMENT: &'static str = "nodes";
    type Scope = ClusterResourceScope;
}

impl Metadata for NodeMetrics {
    type Ty = ObjectMeta;
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What nodes use is read where Kubernetes has it: here from objects in place of a metrics server.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_use_less_are_preferred_if_that_is_to_count() {
    let it = Scheduled::without_scheduler(&["acme"]).await;
    for name in ["busy", "idle"] {
        it.node(name, "10").await;
    }
    let system = it.cloud.client.system();
    let kind = json!({
        "metadata": {
            "name": "nodes.metrics.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": "metrics.k8s.io", "scope": "Cluster",
            "names": {
                "plural": "nodes", "singular": "node", "kind": "NodeMetrics",
                "listKind": "NodeMetricsList",
            },
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                },
            }}],
        },
    });
    let kinds = system.api::<CustomResourceDefinition>();
    kinds.create(&serde_json::from_value(kind).unwrap()).await.unwrap();
    let metrics = system.api::<NodeMetrics>();
    for (name, cpu) in [("busy", "9"), ("idle", "100m")] {
        let usage = json!({
            "apiVersion": "metrics.k8s.io/v1beta1", "kind": "NodeMetrics",
            "metadata": {"name": name}, "usage": {"cpu": cpu, "memory": "1Gi"},
        });
        let usage: NodeMetrics = serde_json::from_value(usage).unwrap();
        it.cloud.until("it is measured", async || metrics.create(&usage).await.is_ok()).await;
    }
    // By what pods ask for the other one would be better.
    it.pod_with("acme", "large", "4", |pod| pod["spec"]["nodeName"] = json!("idle")).await;
    let text = "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles: [{plugins: {score: {enabled: [{name: LoadAware, weight: 10}]}}}]";
    it.run_scheduler_as(Config::of(Configuration::parse(text).unwrap()));
    // The first may be decided on before anything is measured.
    it.pod("acme", "first", "10m").await;
    it.cloud
        .until("pods go where less is used", async || {
            let name = format!("p{}", it.all_pods().await.len());
            it.pod("acme", &name, "10m").await;
            it.cloud
                .until("it has a node", async || !node_of(&it.get("acme", &name).await).is_empty())
                .await;
            node_of(&it.get("acme", &name).await) == "idle"
        })
        .await;
    it.cloud.end().await;
}

/// A tenant's priority class.
async fn priority(it: &Scheduled, tenant: &str, name: &str, value: i32) {
    let class = json!({"metadata": {"name": name}, "value": value});
    let classes = it.cloud.client.tenant(&named(tenant)).api::<PriorityClass>();
    classes.create(&serde_json::from_value(class).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn important_pods_make_room_for_themselves() {
    let it = Scheduled::start(&["acme", "globex"]).await;
    it.node("n1", "2").await;
    priority(&it, "acme", "high", 1000).await;
    it.pod("acme", "low", "1").await;
    it.pod("globex", "theirs", "1").await;
    it.until_on("acme", "low", "n1").await;
    it.until_on("globex", "theirs", "n1").await;
    let important = |pod: &mut Value| pod["spec"]["priorityClassName"] = json!("high");
    let pod = it.pod_with("acme", "important", "1", important).await;
    let nominated = async || {
        let status = it.get("acme", "important").await.object.status.unwrap_or_default();
        status.nominated_node_name.as_deref() == Some("n1")
    };
    it.cloud.until("it is promised the node", nominated).await;
    it.until_waits(
        "acme",
        "important",
        "Unschedulable",
        "0/1 nodes are available: 1 Insufficient cpu.",
    )
    .await;
    it.cloud
        .until("the other one is asked to end, and told why", async || {
            let low = it.get("acme", "low").await;
            let conditions = low.status.as_ref().and_then(|it| it.conditions.clone());
            low.is_deleting()
                && conditions.into_iter().flatten().any(|it| {
                    it.type_ == "DisruptionTarget"
                        && it.reason.as_deref() == Some("PreemptionByScheduler")
                })
        })
        .await;
    it.until_event("acme", "Preempted", &format!("Preempted by pod {} on node n1", pod.uid()))
        .await;
    // The room is promised: another of the same tenant does not get it.
    it.pod("acme", "late", "1").await;
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    pods.delete("low", &DeleteOptions::default().grace_period(0)).await.unwrap();
    it.until_on("acme", "important", "n1").await;
    assert_eq!(node_of(&it.get("globex", "theirs").await), "n1", "others are left alone");
    assert_eq!(node_of(&it.get("acme", "late").await), "");
    it.cloud.end().await;
}

/// Those that have waited are in nobody's way while nobody else looks.
#[tokio::test(flavor = "multi_thread")]
async fn who_had_others_ended_does_not_wait_when_they_are_gone() {
    const REST: Duration = Duration::from_secs(600);
    let it = Scheduled::without_scheduler(&["acme"]).await;
    let rest = REST.as_secs();
    let file = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
podInitialBackoffSeconds: {rest}
podMaxBackoffSeconds: {rest}
"
    );
    it.run_scheduler_as(Config::of(Configuration::parse(&file).unwrap()));
    it.node("n1", "2").await;
    priority(&it, "acme", "high", 1000).await;
    for name in ["low-1", "low-2"] {
        it.pod("acme", name, "1").await;
        it.until_on("acme", name, "n1").await;
    }
    let important = |pod: &mut Value| pod["spec"]["priorityClassName"] = json!("high");
    it.pod_with("acme", "important", "2", important).await;
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    // One after the other: when the first is gone, it looks in vain.
    for name in ["low-1", "low-2"] {
        let ends = async || it.get("acme", name).await.is_deleting();
        it.cloud.until("it is asked to end", ends).await;
        pods.delete(name, &DeleteOptions::default().grace_period(0)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    it.until_on("acme", "important", "n1").await;
    it.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_spread_over_zones() {
    let it = Scheduled::start(&["acme"]).await;
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        it.node_in(name, "64", zone).await;
    }
    let spread = |pod: &mut Value| {
        pod["metadata"]["labels"] = json!({"app": "web"});
        pod["spec"]["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]);
    };
    for n in 0..20 {
        it.pod_with("acme", &format!("p{n}"), "100m", spread).await;
    }
    let in_b = async || {
        let pods = it.all_pods().await;
        let on = |test: &dyn Fn(&str) -> bool| pods.iter().filter(|it| test(node_of(it))).count();
        (on(&|node| node.starts_with('a')), on(&|node| node == "b1"))
    };
    it.cloud.until("half of them are in each zone", async || in_b().await == (10, 10)).await;
    it.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_bound_where_the_pod_goes() {
    let it = Scheduled::start(&["acme"]).await;
    it.node_in("n1", "8", "a").await;
    it.node_in("n2", "8", "b").await;
    let tenant = it.cloud.client.tenant(&named("acme"));
    let class = |name: &str, mode: &str| {
        json!({
            "metadata": {"name": name}, "provisioner": "example.com/disks",
            "volumeBindingMode": mode,
            "allowedTopologies": [{"matchLabelExpressions": [
                {"key": "topology.kubernetes.io/zone", "values": ["b"]},
            ]}],
        })
    };
    let classes = tenant.api::<StorageClass>();
    for (name, mode) in [("late", "WaitForFirstConsumer"), ("at-once", "Immediate")] {
        classes.create(&serde_json::from_value(class(name, mode)).unwrap()).await.unwrap();
    }
    let uses = |claim: &'static str| {
        move |pod: &mut Value| {
            pod["spec"]["volumes"] =
                json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
        }
    };
    it.pod_with("acme", "early", "1", uses("data")).await;
    let not_helpful = |n: usize, said: &str| {
        format!(
            "0/{n} nodes are available: {said}. no new claims to deallocate, \
             preemption: 0/{n} nodes are available: {n} \
             Preemption is not helpful for scheduling."
        )
    };
    let message = not_helpful(2, "persistentvolumeclaim \"data\" not found");
    it.until_waits("acme", "early", "Unschedulable", &message).await;
    let claim = |name: &str, class: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        })
    };
    it.cloud
        .create::<PersistentVolumeClaim>(&named("acme"), "default", claim("now", "at-once"))
        .await;
    it.pod_with("acme", "unbound", "1", uses("now")).await;
    let message = not_helpful(2, "pod has unbound immediate PersistentVolumeClaims");
    it.until_waits("acme", "unbound", "Unschedulable", &message).await;

    it.cloud
        .create::<PersistentVolumeClaim>(&named("acme"), "default", claim("data", "late"))
        .await;
    let claims = tenant.namespaced::<PersistentVolumeClaim>("default");
    let selected = async || {
        let claim = claims.get("data").await.unwrap();
        let annotations = claim.object.metadata.annotations.unwrap_or_default();
        annotations.get("volume.kubernetes.io/selected-node").map(String::as_str) == Some("n2")
    };
    it.cloud.until("the provisioner is told the node", selected).await;
    assert_eq!(node_of(&it.get("acme", "early").await), "", "it waits for its volume");
    // What the provisioner and the controller of volumes do.
    let volume = json!({
        "metadata": {"name": "pv"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "storageClassName": "late", "hostPath": {"path": "/v"},
            "claimRef": {"namespace": "default", "name": "data"},
        },
    });
    let volumes = tenant.api::<PersistentVolume>();
    volumes.create(&serde_json::from_value(volume).unwrap()).await.unwrap();
    claims.patch("data", &Patch::Merge(json!({"spec": {"volumeName": "pv"}}))).await.unwrap();
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    claims.patch_status("data", &bound).await.unwrap();
    it.until_on("acme", "early", "n2").await;
    it.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_choose_their_profile() {
    let mut it = Scheduled::start(&["acme"]).await;
    it.scheduler.cancel();
    it.scheduler = it.cloud.shutdown.child_token();
    let file = "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packing
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated}}
  plugins: {score: {disabled: [{name: NodeResourcesBalancedAllocation}]}}
";
    it.run_scheduler_as(Config::of(Configuration::parse(file).unwrap()));
    it.node("n1", "8").await;
    it.node("n2", "8").await;
    it.pod("acme", "first", "1").await;
    it.cloud
        .until("it is somewhere", async || !node_of(&it.get("acme", "first").await).is_empty())
        .await;
    let first = node_of(&it.get("acme", "first").await).to_owned();
    let other = if first == "n1" { "n2" } else { "n1" };
    it.pod("acme", "spread", "1").await;
    it.until_on("acme", "spread", other).await;
    it.pod("acme", "third", "2").await;
    it.cloud
        .until("it is somewhere", async || !node_of(&it.get("acme", "third").await).is_empty())
        .await;
    let fuller = node_of(&it.get("acme", "third").await).to_owned();
    it.pod_with("acme", "packed", "1", |pod| pod["spec"]["schedulerName"] = json!("packing")).await;
    it.until_on("acme", "packed", &fuller).await;
    it.cloud.end().await;
}

/// Room that was promised to a pod is anybody's when it does not come any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_is_promised_any_more_is_given_to_who_waits() {
    let it = Scheduled::without_scheduler(&["acme"]).await;
    it.node("n1", "1").await;
    // It keeps its promise while it has a gate.
    it.pod_with("acme", "promised", "1", |pod| {
        pod["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    })
    .await;
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    let promise = Patch::Merge(json!({"status": {"nominatedNodeName": "n1"}}));
    pods.patch_status("promised", &promise).await.unwrap();
    it.run_scheduler();
    it.pod("acme", "waits", "1").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, \
                   preemption: 0/1 nodes are \
                   available: 1 No preemption victims found for incoming pod.";
    it.until_waits("acme", "waits", "Unschedulable", message).await;
    let now = DeleteOptions::default().grace_period(0);
    pods.delete("promised", &now).await.unwrap();
    it.until_on("acme", "waits", "n1").await;
    it.cloud.end().await;
}

/// Nodes say which runtimes they have; machines and containers go where theirs is.
#[tokio::test(flavor = "multi_thread")]
async fn machines_wait_for_a_node_that_runs_them() {
    let it = Scheduled::start(&["acme"]).await;
    it.node("n1", "8").await;
    it.node("n2", "8").await;
    let nodes = it.cloud.client.system().api::<Node>();
    let say = async |containers: &str, machines: &str| {
        let status = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True"},
            {"type": "ContainerRuntimeReady", "status": containers},
            {"type": "VmRuntimeReady", "status": machines},
        ]}});
        nodes.patch_status("n2", &Patch::Merge(status)).await.unwrap();
    };
    say("False", "False").await;
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    // Not as a typed pod: its type does not know machines.
    let create = async |name: &str| {
        let machine = Patch::Apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"virtualMachine": {
                "name": "vm", "image": "i", "resources": {"limits": {"cpu": "6", "memory": "1Gi"}},
            }},
        }));
        let mut options = PatchOptions::default();
        options.write.field_manager = Some("test".to_owned());
        pods.patch_with(name, None, &machine, &options).await.unwrap();
    };
    create("m1").await;
    it.until_waits(
        "acme",
        "m1",
        "Unschedulable",
        "0/2 nodes are available: 2 node(s) had no ready VM runtime. no new claims to deallocate, \
         preemption: 0/2 nodes are \
         available: 2 Preemption is not helpful for scheduling.",
    )
    .await;
    say("False", "True").await;
    it.until_on("acme", "m1", "n2").await;

    // What a machine takes counts, and it is no place for containers.
    create("m2").await;
    it.until_waits(
        "acme",
        "m2",
        "Unschedulable",
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had no ready VM runtime. \
         no new claims to deallocate, \
         preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 \
         Preemption is not helpful for scheduling.",
    )
    .await;
    for n in 0..8 {
        it.pod("acme", &format!("c{n}"), "1").await;
    }
    for n in 0..8 {
        it.until_on("acme", &format!("c{n}"), "n1").await;
    }

    // Resized in place: it gives back what another one can have.
    let less = json!({"spec": {"virtualMachine": {"resources": {
        "requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"},
    }}}});
    let resize = Patch::Merge(less);
    pods.patch_with("m1", Some("resize"), &resize, &PatchOptions::default()).await.unwrap();
    it.until_on("acme", "m2", "n2").await;
    it.cloud.end().await;
}
