//! What nodes and the pods on them cost a scheduler that has nothing to decide.
//!
//! Every allocation of the process is counted; it is the only test of its binary. What is measured
//! is what the process holds more when its scheduler has begun, with more objects against with
//! fewer, so that neither the server nor what a scheduler needs anyway is in it.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]
#![allow(clippy::print_stderr, reason = "what was measured is worth knowing")]

#[path = "../../apiserver/tests/harness/counting.rs"]
mod counting;
mod scheduled;

use std::time::Duration;

use counting::held;
use futures::{StreamExt as _, stream};
use insula_client::Patch;
use insula_scheduler::Config;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::scheduled::{Scheduled, named};

/// How many nodes there are when it is measured first, and then. The first and their pods are more
/// than the scheduler keeps ready to be looked at.
const FEW: usize = 700;
const MANY: usize = 1_300;
const PODS: usize = 3;
/// Of one node with its pods, in bytes.
const LIMIT: usize = 6 << 10;

/// A pod that a replica set has made, on its node.
fn on(pod: &mut Value, node: &str) {
    pod["metadata"]["labels"] = json!({"app": "web", "pod-template-hash": "6d4cf56db6"});
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4cf56db6",
        "uid": "5c1b1a5e-0c3b-4b9e-9f0e-1d2c3b4a5f60", "controller": true, "blockOwnerDeletion": true,
    }]);
    pod["spec"]["nodeName"] = json!(node);
}

/// What a node says of a pod that runs.
fn running() -> Value {
    let at = "2026-01-01T00:00:00Z";
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "PodScheduled"]
        .map(|name| json!({"type": name, "status": "True", "lastTransitionTime": at}));
    json!({"status": {
        "phase": "Running", "startTime": at, "podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}],
        "hostIP": "10.0.0.1", "conditions": conditions,
    }})
}

async fn grow(it: &Scheduled, which: std::ops::Range<usize>) {
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    let make = async |n: usize| {
        let node = format!("hollow-{n}");
        it.node(&node, "4").await;
        for p in 0..PODS {
            let name = format!("web-6d4cf56db6-{n:05}{p}");
            it.pod_with("acme", &name, "10m", |pod| on(pod, &node)).await;
            pods.patch_status(&name, &Patch::Merge(running())).await.unwrap();
        }
    };
    stream::iter(which).map(make).buffer_unordered(32).for_each(async |()| ()).await;
}

/// Bytes that a scheduler holds when it has nothing to do.
async fn held_by_scheduler(it: &Scheduled) -> usize {
    let before = settled().await;
    let shutdown = CancellationToken::new();
    let client = it.cloud.client.clone();
    let running = insula_scheduler::run(Config::default(), client, shutdown.clone());
    let running = tokio::spawn(running);
    let after = settled().await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    after.saturating_sub(before)
}

/// What is held when nothing more is allocated, nor packed by the server.
async fn settled() -> usize {
    let (mut last, mut since) = (0, tokio::time::Instant::now());
    while since.elapsed() < Duration::from_secs(7) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = held();
        if (64 << 10) < now.abs_diff(last) {
            (last, since) = (now, tokio::time::Instant::now());
        }
    }
    held()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_three_pods_takes_less_than_6_kib_of_a_scheduler() {
    let it = Scheduled::without_scheduler(&["acme"]).await;
    let mut held = [0, 0];
    for (round, which) in [0..FEW, FEW..MANY].into_iter().enumerate() {
        grow(&it, which).await;
        // The first time it may write something, which servers remember.
        held_by_scheduler(&it).await;
        held[round] = held_by_scheduler(&it).await;
    }
    let each = held[1].saturating_sub(held[0]) / (MANY - FEW);
    eprintln!("a node with {PODS} pods: {each} bytes, of {} in all", held[1]);
    assert!(0 < each && each < LIMIT, "{each} bytes");
    it.cloud.end().await;
}
