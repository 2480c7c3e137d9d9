//! Groups of pods on a real API server: all of them get nodes, or none.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod scheduled;

use std::time::Duration;

use insula_client::{DeleteOptions, Patch};
use insula_scheduler::{Config, Configuration};
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    scheduling::{v1::PriorityClass, v1alpha2::PodGroup},
};
use serde_json::{Value, json};

use self::scheduled::{Scheduled, named, node_of};

const TOO_FEW: &str = "waiting for minCount pods from a gang to appear in scheduling queue";
const UNSCHEDULABLE: &str = "pod group is unschedulable, waiting for minCount pods from a gang to \
                             be scheduled";

async fn group(it: &Scheduled, tenant: &str, name: &str, policy: Value) {
    let group = json!({"metadata": {"name": name}, "spec": {"schedulingPolicy": policy}});
    it.cloud.create::<PodGroup>(&named(tenant), "default", group).await;
}

fn gang(min_count: usize) -> Value {
    json!({"gang": {"minCount": min_count}})
}

fn of_group(name: &str) -> impl Fn(&mut Value) {
    move |pod: &mut Value| pod["spec"]["schedulingGroup"] = json!({"podGroupName": name})
}

/// How many of the pods whose names begin so have nodes.
async fn n_bound(it: &Scheduled, prefix: &str) -> usize {
    let pods = it.all_pods().await;
    let bound = |it: &&_| !node_of(it).is_empty();
    pods.iter().filter(|it| it.name().starts_with(prefix)).filter(bound).count()
}

async fn until_bound(it: &Scheduled, prefix: &str, n_pods: usize) {
    let what = format!("{n_pods} of {prefix} are bound");
    it.cloud.until(&what, async || n_bound(it, prefix).await == n_pods).await;
}

/// Status, reason and message of the condition of a group.
async fn until_group(it: &Scheduled, tenant: &str, name: &str, expected: [&str; 3]) {
    let groups = it.cloud.client.tenant(&named(tenant)).namespaced::<PodGroup>("default");
    it.cloud
        .until(&format!("group {name} is {expected:?}"), async || {
            let status = groups.get(name).await.unwrap().object.status.unwrap_or_default();
            status.conditions.unwrap_or_default().iter().any(|it| {
                it.type_ == "PodGroupScheduled"
                    && [it.status.as_str(), &it.reason, &it.message] == expected
            })
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn none_is_bound_before_all_have_places() {
    let it = Scheduled::start(&["acme"]).await;
    it.node("n1", "2").await;
    // Pods wait for their group's object, then for enough of each other, then for room.
    let member = of_group("g");
    it.pod_with("acme", "g0", "1", &member).await;
    let message = "waiting for pods's pod group \"g\" to appear in scheduling queue";
    it.until_waits("acme", "g0", "Unschedulable", message).await;
    group(&it, "acme", "g", gang(3)).await;
    it.pod_with("acme", "g1", "1", &member).await;
    it.until_waits("acme", "g1", "Unschedulable", TOO_FEW).await;
    it.pod_with("acme", "g2", "1", &member).await;
    it.until_waits("acme", "g0", "Unschedulable", UNSCHEDULABLE).await;
    it.until_event("acme", "FailedScheduling", UNSCHEDULABLE).await;
    let told = "pod group is unschedulable";
    until_group(&it, "acme", "g", ["False", "Unschedulable", told]).await;
    assert_eq!(n_bound(&it, "g").await, 0);
    // What a group that waits does not have others may.
    it.pod("acme", "single", "1").await;
    it.until_on("acme", "single", "n1").await;
    it.node("n2", "2").await;
    until_bound(&it, "g", 3).await;
    until_group(&it, "acme", "g", ["True", "Scheduled", ""]).await;
    // Whoever comes later is bound alone.
    it.node("n3", "1").await;
    it.pod_with("acme", "g3", "1", &member).await;
    it.until_on("acme", "g3", "n3").await;
    it.cloud.end().await;
}

/// Two groups that fit one at a time: each has all it needs, or nothing.
#[tokio::test(flavor = "multi_thread")]
async fn groups_do_not_keep_each_other_from_their_places() {
    let it = Scheduled::start(&["acme", "globex"]).await;
    it.node("n1", "2").await;
    it.node("n2", "2").await;
    for tenant in ["acme", "globex"] {
        group(&it, tenant, "g", gang(4)).await;
    }
    for n in 0..4 {
        it.pod_with("acme", &format!("a{n}"), "1", of_group("g")).await;
        it.pod_with("globex", &format!("b{n}"), "1", of_group("g")).await;
    }
    let counts = async || (n_bound(&it, "a").await, n_bound(&it, "b").await);
    it.cloud.until("one has all", async || matches!(counts().await, (4, 0) | (0, 4))).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (first, second, waits) = match counts().await {
        (4, 0) => ("acme", "a", "b"),
        (0, 4) => ("globex", "b", "a"),
        other => panic!("{other:?}"),
    };
    let pods = it.cloud.client.tenant(&named(first)).namespaced::<Pod>("default");
    for n in 0..4 {
        let now = DeleteOptions::default().grace_period(0);
        pods.delete(&format!("{second}{n}"), &now).await.unwrap();
    }
    until_bound(&it, waits, 4).await;
    it.cloud.end().await;
}

/// The labels of the older convention, and groups that are none.
#[tokio::test(flavor = "multi_thread")]
async fn labels_make_a_group_and_basic_groups_are_none() {
    let it = Scheduled::start(&["acme"]).await;
    it.node("n1", "2").await;
    let labelled = |pod: &mut Value| {
        pod["metadata"]["labels"] = json!({
            "pod-group.scheduling.sigs.k8s.io/name": "old",
            "pod-group.scheduling.sigs.k8s.io/min-available": "2",
        });
    };
    it.pod_with("acme", "old0", "1", labelled).await;
    it.until_waits("acme", "old0", "Unschedulable", TOO_FEW).await;
    group(&it, "acme", "basic", json!({"basic": {}})).await;
    it.pod_with("acme", "basic0", "1", of_group("basic")).await;
    it.until_on("acme", "basic0", "n1").await;
    it.pod_with("acme", "old1", "500m", labelled).await;
    it.until_waits("acme", "old0", "Unschedulable", UNSCHEDULABLE).await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, \
                   preemption: 0/1 nodes are \
                   available: 1 No preemption victims found for incoming pod.";
    it.until_waits("acme", "old1", "Unschedulable", message).await;
    assert_eq!(n_bound(&it, "old").await, 0);
    let grown = Patch::Merge(json!({"status": {"allocatable": {"cpu": "3"}}}));
    it.cloud.client.system().api::<Node>().patch_status("n1", &grown).await.unwrap();
    until_bound(&it, "old", 2).await;
    it.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_end_for_a_group_only_if_all_of_it_fits_then() {
    let it = Scheduled::start(&["acme"]).await;
    it.node("n1", "2").await;
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    let classes = it.cloud.client.tenant(&named("acme")).api::<PriorityClass>();
    classes.create(&serde_json::from_value(class).unwrap()).await.unwrap();
    for n in 0..2 {
        it.pod("acme", &format!("low{n}"), "1").await;
    }
    until_bound(&it, "low", 2).await;
    group(&it, "acme", "g", gang(3)).await;
    let important = |pod: &mut Value| {
        of_group("g")(pod);
        pod["spec"]["priorityClassName"] = json!("high");
    };
    for n in 0..3 {
        it.pod_with("acme", &format!("g{n}"), "1", important).await;
    }
    it.until_waits("acme", "g0", "Unschedulable", UNSCHEDULABLE).await;
    let is_ending = async |name: &str| it.get("acme", name).await.is_deleting();
    assert!(!is_ending("low0").await && !is_ending("low1").await, "nobody ends in vain");
    assert_eq!(n_bound(&it, "g").await, 0);
    // With room for one more all fit, if the two end.
    it.node("n2", "1").await;
    let ended = async || is_ending("low0").await && is_ending("low1").await;
    it.cloud.until("both are asked to end", ended).await;
    let told = "pod group is unschedulable, pod group is waiting for preemption to complete";
    until_group(&it, "acme", "g", ["False", "Unschedulable", told]).await;
    assert_eq!(n_bound(&it, "g").await, 0, "not before they have ended");
    let pods = it.cloud.client.tenant(&named("acme")).namespaced::<Pod>("default");
    for name in ["low0", "low1"] {
        pods.delete(name, &DeleteOptions::default().grace_period(0)).await.unwrap();
    }
    until_bound(&it, "g", 3).await;
    it.cloud.end().await;
}

/// Turned off, pods of a group are pods.
#[tokio::test(flavor = "multi_thread")]
async fn gangs_can_be_turned_off() {
    let it = Scheduled::without_scheduler(&["acme"]).await;
    it.node("n1", "1").await;
    let text = "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles: [{plugins: {multiPoint: {disabled: [{name: GangScheduling}]}}}]";
    it.run_scheduler_as(Config::of(Configuration::parse(text).unwrap()));
    group(&it, "acme", "g", gang(3)).await;
    it.pod_with("acme", "g0", "1", of_group("g")).await;
    it.until_on("acme", "g0", "n1").await;
    it.cloud.end().await;
}
