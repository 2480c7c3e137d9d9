//! What a node with three pods costs a server: its objects, its lease, and its part of a node feed.
//!
//! Every allocation of the process is counted, so that nothing can hide; it is the only test of
//! its binary. History is left out: it is bounded, whatever there is; so what is held is what has lain
//! still for a while.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![allow(clippy::print_stderr, reason = "what was measured is worth knowing")]

#[path = "harness/counting.rs"]
mod counting;
#[path = "harness/mod.rs"]
mod harness;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use counting::held;
use futures::{StreamExt as _, stream};
use harness::{Api, STRATEGIC};
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use insula_api::names::TenantName;
use insula_apiserver::{
    Server,
    identity::{Identity, MASTERS},
};
use insula_partition::{
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    store::{Collection, ReadAt},
};
use serde_json::{Value, json};

/// What it may take, in bytes: with a hollow node it is to stay below 35 KB.
const LIMIT: usize = 5 << 10;
const NODES: usize = 1000;
const PODS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

struct Cloud {
    api: Api,
    partitions: Arc<Partitions>,
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    let now = "2026-01-01T00:00:00Z";
    json!({
        "type": kind, "status": status, "reason": reason, "message": format!("kubelet says {reason}"),
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    })
}

/// A node as its agent registers it.
fn node(name: &str) -> Value {
    let room = json!({"cpu": "4", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let conditions = [
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        condition("Ready", "True", "KubeletReady"),
    ];
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        }},
        "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "10.1.2.3"}, {"type": "Hostname", "address": name}],
            "capacity": room, "allocatable": room, "conditions": conditions,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": name, "systemUUID": name, "bootID": name, "kernelVersion": "6.1.0",
                "osImage": "Debian GNU/Linux 12", "containerRuntimeVersion": "containerd://1.7",
                "kubeletVersion": "v1.36.0", "kubeProxyVersion": "v1.36.0",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}

fn lease(node: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": node, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"},
    })
}

/// A pod that a replica set has made, on its node.
fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "labels": {"app": "web", "pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4cf56db6",
                "uid": "5c1b1a5e-0c3b-4b9e-9f0e-1d2c3b4a5f60", "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {"nodeName": node, "containers": [{
            "name": "web", "image": "registry.local/web:1",
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        }]},
    })
}

fn ready(node: usize) -> Value {
    let now = "2026-01-01T00:00:00Z";
    let conditions =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
            .map(|it| json!({"type": it, "status": "True", "lastTransitionTime": now}));
    let ip = format!("10.2.{}.{}", node / 250, node % 250);
    json!({"status": {
        "phase": "Running", "hostIP": "10.1.2.3", "podIP": ip, "podIPs": [{"ip": ip}],
        "startTime": now, "conditions": conditions,
        "containerStatuses": [{
            "name": "web", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.local/web:1", "imageID": "registry.local/web@sha256:1",
            "containerID": format!("containerd://{node:064}"),
            "state": {"running": {"startedAt": now}},
        }],
    }})
}

impl Cloud {
    /// Does something for each of so many nodes, many at a time; they share flushes of the disk.
    async fn each(&self, from: usize, what: impl AsyncFn(usize)) {
        let all = stream::iter(from..from + NODES);
        all.for_each_concurrent(32, async |n| what(n).await).await;
    }

    /// What is held when history is forgotten, and what it leaves has been packed.
    async fn held(&self) -> usize {
        for name in self.partitions.names() {
            let store = self.partitions.store(&name).unwrap();
            store.compact(store.progress()).await.unwrap();
            for resource in ["nodes", "pods"] {
                let collection = Collection::new("", resource);
                let plain = async || {
                    let snapshot = store.read(&collection, ReadAt::Latest).await.unwrap();
                    snapshot.range("", None).filter(|(_, entry)| !entry.value.is_packed()).count()
                };
                let begun = Instant::now();
                // One is what others differ from.
                while NODES / 100 < plain().await {
                    assert!(begun.elapsed() < PATIENCE, "{resource} lie plain");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        held()
    }

    /// How long an object is as it is stored, on average.
    async fn stored(&self, collection: Collection) -> usize {
        let (mut count, mut bytes) = (0, 0);
        for name in self.partitions.names() {
            let store = self.partitions.store(&name).unwrap();
            for (_, entry) in store.read(&collection, ReadAt::Latest).await.unwrap().range("", None)
            {
                count += 1;
                bytes += entry.value.len();
            }
        }
        bytes / count
    }

    /// Makes so many nodes with all that they have. Returns what each costs, by what it is of.
    async fn grow(&self, from: usize) -> Vec<(&'static str, usize)> {
        let mut last = self.held().await;
        let mut found = Vec::new();
        let mut note = async |what: &'static str| {
            let now = self.held().await;
            found.push((what, now.saturating_sub(std::mem::replace(&mut last, now)) / NODES));
        };
        let name = |n: usize| format!("hollow-{n}");
        let api = &self.api;
        self.each(from, async |n| drop(api.make("/api/v1/nodes", &node(&name(n))).await)).await;
        note("node").await;
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        self.each(from, async |n| drop(api.make(leases, &lease(&name(n))).await)).await;
        note("lease").await;
        let pods = "/tenants/acme/api/v1/namespaces/default/pods";
        self.each(from, async |n| {
            for p in 0..PODS {
                let pod_name = format!("web-6d4cf56db6-{n:05}{p}");
                api.make(pods, &pod(&pod_name, &name(n))).await;
                let status = format!("{pods}/{pod_name}/status");
                let (code, said) = api.patch(&status, STRATEGIC, &ready(n)).await;
                assert_eq!(code, 200, "{said}");
            }
        })
        .await;
        note("pods").await;
        let names: Vec<String> = (from..from + NODES).map(name).collect();
        let open = json!({"open": {"nodes": names}});
        let beat = json!({"beat": {}});
        let said = Bytes::from(format!("{open}\n{beat}\n"));
        let said = stream::once(async { Ok::<_, Infallible>(Frame::data(said)) });
        // It stays open as long as it says nothing of an end.
        let said = StreamBody::new(said.chain(stream::pending()));
        let request = Request::builder().method(Method::POST).uri("/insula/nodefeed");
        let request = request.body(Box::pin(said)).unwrap();
        let caller = Identity::new(TenantName::system(), "crew", &[MASTERS]);
        let answer = api.server.handle_trusted(request, caller).await;
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(&format!("\"renewed\":{NODES}")) {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            heard = [&heard[heard.len().saturating_sub(64)..], &frame[..]].concat();
        }
        drop(heard);
        note("feed").await;
        drop(body);
        found
    }
}

#[tokio::test]
async fn a_node_with_three_pods_takes_less_than_5_kib_of_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        PartitionsConfig::alone(dir.path().join("data"), StoreConfig::Embedded { partitions: 1 });
    let partitions = Arc::new(Partitions::open(config).await.unwrap());
    let server = Server::alone_on(dir.path(), partitions.clone()).await.unwrap();
    let cloud = Cloud { api: Api::on(server, dir), partitions };
    let tenant =
        json!({"apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": "acme"}});
    cloud.api.make("/apis/insula.io/v1/tenants", &tenant).await;
    let namespaces = "/tenants/acme/api/v1/namespaces";
    let namespace =
        |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    cloud.api.make(namespaces, &namespace("default")).await;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    cloud.api.make(&format!("{namespaces}/default/serviceaccounts"), &account).await;
    cloud.api.post("/api/v1/namespaces", &namespace("kube-node-lease")).await;
    // What the first ones make the process hold for all is not theirs.
    cloud.grow(0).await;
    let found = cloud.grow(NODES).await;
    let each: usize = found.iter().map(|(_, bytes)| bytes).sum();
    for (group, resource) in [("", "nodes"), ("coordination.k8s.io", "leases"), ("", "pods")] {
        let bytes = cloud.stored(Collection::new(group, resource)).await;
        eprintln!("{resource}: {bytes} bytes stored");
    }
    eprintln!("a node with {PODS} pods: {each} bytes of memory, {found:?}");
    assert!(each < LIMIT, "{each} bytes: {found:?}");
}
