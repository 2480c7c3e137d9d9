//! Whatever becomes of requests, no pod is forgotten that there is room for.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod scheduled;

use std::time::Duration;

use insula_client::Patch;
use insula_scheduler::Config;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use self::scheduled::{Scheduled, named, node_of};

const N_NODES: usize = 20;
const PER_NODE: usize = 20;
const TENANTS: [&str; 2] = ["acme", "globex"];

/// There is room for all, and for no more: what is not given back is missed.
async fn all_pods_have_nodes_in_the_end(config: Config) {
    let it = Scheduled::without_scheduler(&TENANTS).await;
    for n in 0..N_NODES {
        it.node(&format!("n{n}"), &PER_NODE.to_string()).await;
    }
    let client = it.cloud.client_in_trouble();
    let running = insula_scheduler::run(config, client, it.scheduler.clone());
    it.cloud.tasks.spawn(running);
    let make = async |tenant: &str| {
        let pods = it.cloud.client.tenant(&named(tenant)).namespaced::<Pod>("default");
        for n in 0..N_NODES * PER_NODE / TENANTS.len() {
            let name = format!("p{n}");
            it.pod(tenant, &name, "1").await;
            // Others write to pods, too, and come between.
            if n % 5 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let patch = Patch::Merge(json!({"metadata": {"annotations": {"a": "b"}}}));
                pods.patch(&name, &patch).await.unwrap();
            }
        }
    };
    tokio::join!(make(TENANTS[0]), make(TENANTS[1]));
    let mut left = Vec::new();
    for _ in 0..1500 {
        let all = it.all_pods().await;
        let waits = all.iter().filter(|pod| node_of(pod).is_empty());
        left = waits.map(|pod| pod.key().to_string()).collect();
        if left.is_empty() {
            for n in 0..N_NODES {
                let node = format!("n{n}");
                assert_eq!(all.iter().filter(|pod| node_of(pod) == node).count(), PER_NODE);
            }
            return it.cloud.end().await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("forgotten: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_forgotten_by_the_only_scheduler() {
    all_pods_have_nodes_in_the_end(Config::default()).await;
}

/// It loses what it has now and then, as it cannot say in time that it is there.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_forgotten_by_a_replica() {
    let host = Some("r0".to_owned());
    all_pods_have_nodes_in_the_end(Config { host, ..Config::default() }).await;
}
