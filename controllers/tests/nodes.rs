//! Nodes that are lost, tainted, and emptied.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::time::Duration;

use insula_api::names::TenantName;
use insula_client::{Client, Error, Patch, Tenanted};
use insula_controllers::Config;
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use serde_json::{Value, json};

use self::cloud::Cloud;

/// Long enough for a heartbeat on a busy machine.
const GRACE: Duration = Duration::from_secs(6);

async fn node(cloud: &Cloud, name: &str) {
    let nodes = cloud.client.system().api::<Node>();
    let it: Node = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    nodes.create(&it).await.unwrap();
    ready(&cloud.client, name).await;
}

async fn ready(client: &Client, name: &str) {
    let now = Timestamp::now().to_string();
    let patch = json!({"status": {"conditions": [
        {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now},
    ]}});
    let nodes = client.system().api::<Node>();
    nodes.patch_status(name, &Patch::Strategic(patch)).await.unwrap();
}

/// Renews the lease of a node from now on.
async fn live(cloud: &Cloud, name: &str) {
    let leases = cloud.client.system().namespaced::<Lease>("kube-node-lease");
    let lease = json!({"metadata": {"name": name}, "spec": {"leaseDurationSeconds": 40}});
    leases.create(&serde_json::from_value(lease).unwrap()).await.unwrap();
    let (name, shutdown) = (name.to_owned(), cloud.shutdown.clone());
    cloud.tasks.spawn(shutdown.run_until_cancelled_owned(async move {
        loop {
            let now = format!("{:.6}", Timestamp::now());
            let patch = Patch::Merge(json!({"spec": {"renewTime": now}}));
            leases.patch(&name, &patch).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }));
}

async fn get(cloud: &Cloud, tenant: &TenantName, pod: &str) -> Tenanted<Pod> {
    cloud.client.tenant(tenant).namespaced::<Pod>("default").get(pod).await.unwrap()
}

/// A condition of a pod: its status and its reason.
fn condition(pod: &Pod, type_: &str) -> Option<(String, String)> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    let it = all.iter().find(|it| it.type_ == type_)?;
    Some((it.status.clone(), it.reason.clone().unwrap_or_default()))
}

/// A running pod on a node, with these tolerations.
async fn pod(cloud: &Cloud, tenant: &TenantName, name: &str, node: &str, tolerations: Value) {
    let it = json!({
        "metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {
            "nodeName": node, "tolerations": tolerations, "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": "i"}],
        },
    });
    cloud.create::<Pod>(tenant, "default", it).await;
    let status = json!({"status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let pods = cloud.client.tenant(tenant).namespaced::<Pod>("default");
    pods.patch_status(name, &Patch::Strategic(status)).await.unwrap();
}

async fn taints(cloud: &Cloud, node: &str) -> Vec<String> {
    let node = cloud.client.system().api::<Node>().get(node).await.unwrap();
    let taints = node.object.spec.and_then(|spec| spec.taints).unwrap_or_default();
    taints.iter().map(|it| format!("{}:{}", it.key, it.effect)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_node_that_is_lost_have_to_go() {
    let cloud = Cloud::start(2).await;
    let mut config = Config::new("the root of trust");
    config.node_grace = GRACE;
    cloud.run_controllers(config);
    let (acme, globex) = (cloud.tenant("acme").await, cloud.tenant("globex").await);
    for name in ["near", "far"] {
        node(&cloud, name).await;
    }
    live(&cloud, "near").await;
    let stays = |seconds: Option<i64>| {
        json!([{
            "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }])
    };
    pod(&cloud, &acme, "near", "near", stays(Some(0))).await;
    pod(&cloud, &acme, "patient", "far", json!([])).await;
    pod(&cloud, &acme, "forever", "far", stays(None)).await;
    pod(&cloud, &acme, "impatient", "far", stays(Some(1))).await;
    pod(&cloud, &globex, "impatient", "far", stays(Some(0))).await;
    let unreachable =
        ["NoSchedule", "NoExecute"].map(|it| format!("node.kubernetes.io/unreachable:{it}"));
    cloud.until("it is tainted", async || taints(&cloud, "far").await == unreachable).await;
    let far = cloud.client.system().api::<Node>().get("far").await.unwrap();
    let conditions = far.object.status.unwrap().conditions.unwrap();
    let unknown = conditions.iter().filter(|it| it.status == "Unknown").count();
    assert_eq!(unknown, 4, "{conditions:?}");
    for tenant in [&acme, &globex] {
        let gone = async || {
            let it = get(&cloud, tenant, "impatient").await;
            it.is_deleting()
                && condition(&it, "DisruptionTarget")
                    == Some(("True".into(), "DeletionByTaintManager".into()))
        };
        cloud.until("it is sent away", gone).await;
    }
    cloud
        .until("its pods are not ready", async || {
            let it = get(&cloud, &acme, "patient").await;
            condition(&it, "Ready").is_some_and(|it| it.0 == "False")
        })
        .await;
    ready(&cloud.client, "far").await;
    live(&cloud, "far").await;
    cloud.until("it is back", async || taints(&cloud, "far").await.is_empty()).await;
    for name in ["near", "patient", "forever"] {
        assert!(!get(&cloud, &acme, name).await.is_deleting(), "{name}");
    }
    assert_eq!(condition(&*get(&cloud, &acme, "near").await, "Ready").unwrap().0, "True");
    assert!(taints(&cloud, "near").await.is_empty());
    cloud.end().await;
}

/// Controllers that are told of no lease any more give up who is silent, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_given_up_because_news_of_it_are_late() {
    let cloud = Cloud::start(1).await;
    let mut config = Config::new("the root of trust");
    config.node_grace = GRACE;
    cloud.run_controllers_with(config, cloud.client_deaf_to("leases"));
    for name in ["near", "far"] {
        node(&cloud, name).await;
    }
    live(&cloud, "near").await;
    let is_given_up =
        async |name| taints(&cloud, name).await.iter().any(|it| it.contains("unreachable"));
    cloud.until("far is given up", async || is_given_up("far").await).await;
    for _ in 0..4 {
        assert!(!is_given_up("near").await, "it renews its lease");
        tokio::time::sleep(GRACE / 2).await;
    }
    cloud.end().await;
}

/// A taint by hand, and pods that come later.
#[tokio::test(flavor = "multi_thread")]
async fn taints_send_pods_away() {
    let cloud = Cloud::start(1).await;
    cloud.run_controllers(Config::new("the root of trust"));
    let acme = cloud.tenant("acme").await;
    node(&cloud, "n").await;
    live(&cloud, "n").await;
    let all = json!([{"operator": "Exists"}]);
    let some = json!([{"key": "gpu", "operator": "Equal", "value": "a", "effect": "NoExecute", "tolerationSeconds": 3600}]);
    pod(&cloud, &acme, "all", "n", all).await;
    pod(&cloud, &acme, "some", "n", some.clone()).await;
    pod(&cloud, &acme, "none", "n", json!([])).await;
    let nodes = cloud.client.system().api::<Node>();
    let taint = |value: &str| {
        Patch::Merge(json!({"spec": {"taints": [
            {"key": "gpu", "value": value, "effect": "NoExecute"},
        ]}}))
    };
    nodes.patch("n", &taint("a")).await.unwrap();
    let goes = async |name: &str| {
        cloud.until(name, async || get(&cloud, &acme, name).await.is_deleting()).await;
    };
    goes("none").await;
    pod(&cloud, &acme, "later", "n", json!([])).await;
    goes("later").await;
    assert!(!get(&cloud, &acme, "some").await.is_deleting());
    // The same taint with another value is one that it does not tolerate.
    nodes.patch("n", &taint("b")).await.unwrap();
    goes("some").await;
    assert!(!get(&cloud, &acme, "all").await.is_deleting());
    nodes.patch("n", &Patch::Merge(json!({"spec": {"unschedulable": true}}))).await.unwrap();
    let expected = ["gpu:NoExecute", "node.kubernetes.io/unschedulable:NoSchedule"];
    cloud.until("it shows", async || taints(&cloud, "n").await == expected).await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_are_kept() {
    let cloud = Cloud::with_controllers(2).await;
    let acme = cloud.tenant("acme").await;
    let template = json!({
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let selector = json!({"matchLabels": {"app": "a"}});
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 4, "selector": selector, "template": template},
    });
    cloud.create::<k8s_openapi::api::apps::v1::Deployment>(&acme, "default", web).await;
    let budget = json!({
        "metadata": {"name": "b"}, "spec": {"selector": selector, "maxUnavailable": "0%"},
    });
    cloud.create::<PodDisruptionBudget>(&acme, "default", budget).await;
    let budgets = cloud.client.tenant(&acme).namespaced::<PodDisruptionBudget>("default");
    let counts = async || {
        let it = budgets.get("b").await.unwrap().object;
        let status = it.status.unwrap_or_default();
        let generation = status.observed_generation == it.metadata.generation;
        [
            status.expected_pods,
            status.desired_healthy,
            status.current_healthy,
            status.disruptions_allowed,
        ]
        .map(|it| it.unwrap_or(-1) + if generation { 0 } else { 100 })
    };
    cloud.until("it is judged", async || counts().await == [4, 4, 4, 0]).await;
    let pods = cloud.client.tenant(&acme).namespaced::<Pod>("default");
    let evict = async || -> Result<Value, Error> {
        let name = cloud.list::<Pod>(&acme, "default").await[0].name().to_owned();
        let body = json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": name, "namespace": "default"},
        });
        pods.create_subresource(&name, "eviction", &body).await
    };
    let refused = evict().await.unwrap_err();
    assert!(matches!(&refused, Error::Api(it) if it.code == Some(429)), "{refused:?}");
    let more = Patch::Merge(json!({"spec": {"maxUnavailable": "25%"}}));
    budgets.patch("b", &more).await.unwrap();
    cloud.until("one may go", async || counts().await == [4, 3, 4, 1]).await;
    evict().await.unwrap();
    cloud.until("another took its place", async || counts().await == [4, 3, 4, 1]).await;
    // A pod of a kind that nobody knows.
    let strange = json!({
        "metadata": {"name": "strange", "labels": {"app": "a"}, "ownerReferences": [{
            "apiVersion": "x.io/v1", "kind": "Odd", "name": "o", "uid": "u", "controller": true,
        }], "finalizers": ["test/kept"]},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    cloud.create::<Pod>(&acme, "default", strange).await;
    cloud
        .until("it cannot be judged", async || {
            let status = budgets.get("b").await.unwrap().object.status.unwrap_or_default();
            let it = status.conditions.into_iter().flatten().next();
            let message = "found no controllers for pod \"strange\"";
            status.disruptions_allowed == Some(0)
                && it.is_some_and(|it| it.reason == "SyncFailed" && it.message == message)
        })
        .await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_given_addresses_for_pods() {
    let cloud = Cloud::start(1).await;
    let nodes = cloud.client.system().api::<Node>();
    let own = json!({"metadata": {"name": "old"}, "spec": {
        "podCIDR": "10.9.1.0/24", "podCIDRs": ["10.9.1.0/24", "fd09::/64"],
    }});
    nodes.create(&serde_json::from_value(own).unwrap()).await.unwrap();
    let mut config = Config::new("the root of trust");
    let range = |text: &str, prefix| (text.parse().unwrap(), prefix);
    config.pod_ranges = vec![range("10.9.0.0/22", 24), range("fd09::/60", 64)];
    config.kept_ranges = vec!["10.9.0.0/24".parse().unwrap()];
    cloud.run_controllers(config);
    let given = async |name: &str| -> Vec<String> {
        let spec = nodes.get(name).await.unwrap().object.spec.unwrap_or_default();
        spec.pod_cidrs.unwrap_or_default()
    };
    let mut seen = vec!["10.9.1.0/24".to_owned()];
    for name in ["a", "b"] {
        node(&cloud, name).await;
        cloud.until("it has addresses", async || given(name).await.len() == 2).await;
        let [four, six]: [String; 2] = given(name).await.try_into().unwrap();
        assert!(six.starts_with("fd09:") && six.ends_with("/64"), "{six}");
        seen.push(four);
    }
    seen.sort();
    assert_eq!(seen, ["10.9.1.0/24", "10.9.2.0/24", "10.9.3.0/24"], "none twice, none of others");
    // There is one more when one is let go of.
    node(&cloud, "late").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(given("late").await.is_empty());
    nodes.delete("a", &Default::default()).await.unwrap();
    cloud.until("it has addresses", async || given("late").await.len() == 2).await;
    cloud.end().await;
}
