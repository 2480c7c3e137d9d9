//! What objects cost that the controllers follow and have nothing to do about.
//!
//! Every allocation of the process is counted; it is the only test of its binary. What is measured
//! is what the process holds more when its controllers have begun, with more objects against with
//! fewer, so that neither the server nor what controllers need anyway is in it.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]
#![allow(clippy::print_stderr, reason = "what was measured is worth knowing")]

mod cloud;
#[path = "../../apiserver/tests/harness/counting.rs"]
mod counting;

use std::time::Duration;

use counting::held;
use futures::{StreamExt as _, stream};
use insula_api::names::TenantName;
use insula_client::{Kind, Patch, Tenanted};
use insula_controllers::Config;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{ConfigMap, Node, Pod},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::cloud::Cloud;

/// How many objects there are of a kind when it is measured first, and then. The first are more
/// than the controllers keep ready to be looked at.
const FEW: usize = 600;
const MANY: usize = 1_200;
/// Of one pod, set of pods, or slice of ten endpoints, in bytes.
const LIMITS: [usize; 3] = [2_000, 2_200, 2_800];

fn template(name: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name, "tier": "front", "pod-template-hash": "6d4f8b7c9d"}},
        "spec": {
            "containers": [{
                "name": "web", "image": "registry.local/shop/web:1.27.3", "args": ["--port=8080"],
                "ports": [{"containerPort": 8080, "name": "http"}],
                "env": [{"name": "MODE", "value": "production"}, {"name": "POD", "valueFrom":
                    {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 5},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/web"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "web"}}],
        },
    })
}

fn set(n: usize, replicas: usize) -> Value {
    let name = format!("web-{n}");
    json!({
        "metadata": {"name": name, "labels": {"app": name},
            "annotations": {"deployment.kubernetes.io/revision": "1"}},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": template(&name)},
    })
}

fn pod(n: usize, owner: &Tenanted<ReplicaSet>) -> Value {
    let mut pod = template("web-0");
    pod["metadata"]["name"] = json!(format!("web-0-{n:05}"));
    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "name": "web-0", "uid": owner.uid(), "controller": true, "blockOwnerDeletion": true}]);
    pod["spec"]["nodeName"] = json!("node");
    pod
}

/// What a node says of a pod that runs.
fn running() -> Value {
    let at = "2026-01-01T00:00:00Z";
    let condition = |name: &str| json!({"type": name, "status": "True", "lastTransitionTime": at});
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "PodScheduled"];
    let conditions = conditions.map(condition);
    json!({"status": {
        "phase": "Running", "startTime": at, "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}],
        "hostIP": "10.0.0.1",
        "conditions": conditions,
        "containerStatuses": [{"name": "web", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.local/shop/web:1.27.3",
            "imageID": "sha256:1f0e3dad99908345f7439f8ffabdffc4bd6f3b5b8b8bff8b9f5f6c7d8e9f0a1b",
            "containerID": "containerd://5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9",
            "state": {"running": {"startedAt": at}}}],
    }})
}

fn slice(n: usize) -> Value {
    let endpoint = |i: usize| {
        let ready = json!({"ready": true, "serving": true, "terminating": false});
        json!({"addresses": [format!("10.2.{n}.{i}", n = n % 250)], "nodeName": "node", "zone": "a",
            "conditions": ready, "targetRef": {"kind": "Pod", "namespace": "default",
                "name": format!("web-0-{i:05}"), "uid": format!("{:032x}", n * 1000 + i)}})
    };
    json!({
        "metadata": {"name": format!("other-{n}"), "labels": {
            "endpointslice.kubernetes.io/managed-by": "a.test", "kubernetes.io/service-name": "other"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..10).map(endpoint).collect::<Vec<_>>(),
    })
}

/// Creates many at a time, so that they share flushes of the disk.
async fn create_all<K: Kind>(cloud: &Cloud, tenant: &TenantName, objects: Vec<Value>) {
    let create = |it| cloud.create::<K>(tenant, "default", it);
    stream::iter(objects).map(create).buffer_unordered(16).for_each(async |_| ()).await;
}

async fn create_pods(
    cloud: &Cloud,
    tenant: &TenantName,
    owner: &Tenanted<ReplicaSet>,
    which: std::ops::Range<usize>,
) {
    let api = cloud.client.tenant(tenant).namespaced::<Pod>("default");
    let create = async |n| {
        let pod = cloud.create::<Pod>(tenant, "default", pod(n, owner)).await;
        api.patch_status(pod.name(), &Patch::Merge(running())).await.unwrap();
    };
    stream::iter(which).map(create).buffer_unordered(16).for_each(async |()| ()).await;
}

/// Bytes that controllers hold when they have nothing to do.
async fn held_by_controllers(cloud: &Cloud) -> usize {
    let before = held();
    let shutdown = CancellationToken::new();
    let config = Config::new("the root of trust");
    let running = insula_controllers::run(config, cloud.client.clone(), shutdown.clone());
    let running = tokio::spawn(running);
    // Whatever they find to do they have done when nothing is allocated any more.
    let (mut last, mut since) = (0, tokio::time::Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = held();
        if (64 << 10) < now.abs_diff(last) {
            (last, since) = (now, tokio::time::Instant::now());
        }
    }
    let after = held();
    shutdown.cancel();
    running.await.unwrap().unwrap();
    after.saturating_sub(before)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_followed_costs_little() {
    let cloud = Cloud::start(1).await;
    let acme = {
        let shutdown = CancellationToken::new();
        let config = Config::new("the root of trust");
        let running = insula_controllers::run(config, cloud.client.clone(), shutdown.clone());
        let running = tokio::spawn(running);
        let acme = cloud.tenant("acme").await;
        shutdown.cancel();
        running.await.unwrap().unwrap();
        acme
    };
    let map = json!({"metadata": {"name": "web"}});
    cloud.create::<ConfigMap>(&acme, "default", map).await;
    let node = json!({"metadata": {"name": "node"}});
    let node = serde_json::from_value(node).unwrap();
    cloud.client.system().api::<Node>().create(&node).await.unwrap();
    let owner = cloud.create::<ReplicaSet>(&acme, "default", set(0, MANY)).await;
    let of_all = ["pod", "set of pods", "slice of ten endpoints"];
    for (index, (what, limit)) in of_all.into_iter().zip(LIMITS).enumerate() {
        let mut held = [0, 0];
        for (round, which) in [0..FEW, FEW..MANY].into_iter().enumerate() {
            match index {
                0 => {
                    // As many as are asked for: nothing is to be done about them.
                    let n = which.end;
                    let api = cloud.client.tenant(&acme).namespaced::<ReplicaSet>("default");
                    api.patch("web-0", &Patch::Merge(json!({"spec": {"replicas": n}})))
                        .await
                        .unwrap();
                    create_pods(&cloud, &acme, &owner, which).await;
                }
                1 => {
                    let sets = which.map(|n| set(n + 1, 0)).collect();
                    create_all::<ReplicaSet>(&cloud, &acme, sets).await;
                }
                _ => create_all::<EndpointSlice>(&cloud, &acme, which.map(slice).collect()).await,
            }
            // The first time they may find something to write, which servers remember; and who
            // gets no processor for a while allocates nothing either.
            let mut last = held_by_controllers(&cloud).await;
            held[round] = loop {
                let next = held_by_controllers(&cloud).await;
                if next.abs_diff(last) < last / 16 {
                    break next;
                }
                last = next;
            };
        }
        let each = held[1].saturating_sub(held[0]) / (MANY - FEW);
        eprintln!("a {what}: {each} bytes, of {} in all", held[1]);
        assert!(0 < each && each < limit, "a {what} takes {each} bytes");
    }
    assert_eq!(cloud.list::<Pod>(&acme, "default").await.len(), MANY, "nothing was changed");
    cloud.end().await;
}
