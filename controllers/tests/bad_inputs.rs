//! What users ask for that cannot be, or is far too much: it is said, nothing spins, and what can be
//! done is done as soon as it can be.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, stream};
use insula_api::names::TenantName;
use insula_client::{Patch, Tenanted};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, ReplicaSet, StatefulSet},
    core::v1::{Event, Pod, ResourceQuota, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use serde_json::json;

use self::cloud::{Cloud, replicated};

/// Long enough for dozens of tries, if nothing held them back.
const A_WHILE: Duration = Duration::from_secs(3);

async fn get(cloud: &Cloud, tenant: &TenantName, name: &str) -> Tenanted<ReplicaSet> {
    cloud.client.tenant(tenant).namespaced("default").get(name).await.unwrap()
}

/// Why a set has not the pods it is to have.
async fn failure(cloud: &Cloud, tenant: &TenantName, name: &str) -> Option<String> {
    let status = get(cloud, tenant, name).await.object.status?;
    let conditions = status.conditions.unwrap_or_default();
    let failed = conditions.into_iter().find(|it| it.type_ == "ReplicaFailure")?;
    assert_eq!((&*failed.status, failed.reason.as_deref()), ("True", Some("FailedCreate")));
    failed.message
}

/// How many pods each has that owns some.
async fn owned(cloud: &Cloud, tenant: &TenantName) -> BTreeMap<String, usize> {
    let mut owned = BTreeMap::new();
    for pod in cloud.list::<Pod>(tenant, "default").await {
        for owner in pod.object.metadata.owner_references.unwrap_or_default() {
            *owned.entry(owner.name).or_default() += 1;
        }
    }
    owned
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_that_select_the_same_pods_keep_to_their_own() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    for (name, replicas) in [("one", 2), ("two", 3)] {
        cloud.create::<ReplicaSet>(&acme, "default", replicated(name, "web", replicas)).await;
    }
    let wanted = BTreeMap::from([("one".to_owned(), 2), ("two".to_owned(), 3)]);
    let are_counted = async || {
        let ready = async |name| get(&cloud, &acme, name).await.object.status?.ready_replicas;
        (ready("one").await, ready("two").await) == (Some(2), Some(3))
    };
    cloud.until("each counts its own", are_counted).await;
    let versions = async || {
        let of = async |name| get(&cloud, &acme, name).await.resource_version().to_owned();
        (of("one").await, of("two").await)
    };
    let before = versions().await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(versions().await, before, "nobody writes on");
    assert_eq!(owned(&cloud, &acme).await, wanted);
    cloud.end().await;
}

/// An eviction would have to heed several budgets at once, and is refused: users are told before.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_two_budgets_select_say_so() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    for (name, app) in [("all", "web"), ("many", "web"), ("other", "db")] {
        let budget = json!({"metadata": {"name": name}, "spec": {
            "minAvailable": 1, "selector": {"matchLabels": {"app": app}}}});
        cloud.create::<PodDisruptionBudget>(&acme, "default", budget).await;
    }
    let budgets = cloud.client.tenant(&acme).namespaced::<PodDisruptionBudget>("default");
    cloud
        .until("they are known", async || {
            let all = budgets.get("many").await.unwrap();
            all.object.status.is_some_and(|it| it.observed_generation == Some(1))
        })
        .await;
    for app in ["web", "db"] {
        cloud.create::<ReplicaSet>(&acme, "default", replicated(app, app, 1)).await;
    }
    let told = async || {
        let events = cloud.list::<Event>(&acme, "default").await;
        let told = events.into_iter().map(|it| it.object);
        let told = told.filter(|it| it.reason.as_deref() == Some("MultiplePodDisruptionBudgets"));
        told.map(|it| (it.involved_object.name, it.message.unwrap())).collect::<Vec<_>>()
    };
    cloud.until("it is said", async || !told().await.is_empty()).await;
    cloud
        .until("all run", async || {
            let all = budgets.get("other").await.unwrap();
            all.object.status.is_some_and(|it| it.current_healthy == Some(1))
        })
        .await;
    for (pod, message) in told().await {
        assert!(pod.unwrap().starts_with("web-"), "{message}");
        assert!(message.ends_with(": all, many"), "{message}");
    }
    cloud.end().await;
}

/// Pods that are refused: the set says why, tries ever less often, and goes on when it can.
#[tokio::test(flavor = "multi_thread")]
async fn what_admission_refuses_is_said_and_made_later() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let mut refused = replicated("web", "web", 3);
    refused["spec"]["template"]["spec"]["serviceAccountName"] = json!("nobody");
    cloud.create::<ReplicaSet>(&acme, "default", refused).await;
    cloud
        .until("it says why", async || {
            failure(&cloud, &acme, "web").await.is_some_and(|it| it.contains("nobody"))
        })
        .await;
    tokio::time::sleep(A_WHILE).await;
    let events = cloud.list::<Event>(&acme, "default").await;
    let failed = events.iter().filter(|it| it.reason.as_deref() == Some("FailedCreate"));
    let tries: i32 = failed.map(|it| it.count.unwrap_or(1)).sum();
    // 10 ms, 20 ms, 40 ms and so on: nine of them are beyond the time there was.
    assert!((1..=12).contains(&tries), "{tries} tries");
    assert!(owned(&cloud, &acme).await.is_empty());

    let account = json!({"metadata": {"name": "nobody"}});
    cloud.create::<ServiceAccount>(&acme, "default", account).await;
    cloud
        .until("its pods are made", async || owned(&cloud, &acme).await.get("web") == Some(&3))
        .await;
    cloud.until("it is content", async || failure(&cloud, &acme, "web").await.is_none()).await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_runs_out_half_way_is_used_to_its_end() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let quota = json!({"metadata": {"name": "pods"}, "spec": {"hard": {"pods": "3"}}});
    cloud.create::<ResourceQuota>(&acme, "default", quota).await;
    let quotas = cloud.client.tenant(&acme).namespaced::<ResourceQuota>("default");
    cloud
        .until("the quota counts", async || {
            quotas.get("pods").await.unwrap().object.status.is_some_and(|it| it.hard.is_some())
        })
        .await;
    cloud.create::<ReplicaSet>(&acme, "default", replicated("web", "web", 5)).await;
    cloud
        .until("it says why", async || {
            failure(&cloud, &acme, "web")
                .await
                .is_some_and(|it| it.contains("exceeded quota: pods"))
        })
        .await;
    cloud
        .until("there are three", async || owned(&cloud, &acme).await.get("web") == Some(&3))
        .await;
    quotas.patch("pods", &Patch::Merge(json!({"spec": {"hard": {"pods": "9"}}}))).await.unwrap();
    cloud
        .until("the others follow", async || owned(&cloud, &acme).await.get("web") == Some(&5))
        .await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_thousand_revisions_are_cut_down_to_what_is_kept() {
    const MANY: usize = 1_200;
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let mut wanted = replicated("db", "db", 1);
    wanted["spec"]["serviceName"] = json!("db");
    wanted["spec"]["revisionHistoryLimit"] = json!(2);
    // None of the many is the one that it makes of its template.
    let db = cloud.create::<StatefulSet>(&acme, "default", wanted).await;
    let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db",
        "uid": db.uid(), "controller": true, "blockOwnerDeletion": true}]);
    let old = |n: usize| {
        let template = json!({"metadata": {"labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": format!("old:{n}")}]}});
        let revision = json!({
            "metadata": {"name": format!("old-{n}"), "labels": {"app": "db"},
                "ownerReferences": owner},
            "revision": n + 10,
            "data": {"spec": {"template": template}},
        });
        cloud.create::<ControllerRevision>(&acme, "default", revision)
    };
    stream::iter(0..MANY).map(old).buffer_unordered(16).for_each(async |_| ()).await;
    let sets = cloud.client.tenant(&acme).namespaced::<StatefulSet>("default");
    let next = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "c", "image": "app:2"}]}}}});
    sets.patch("db", &Patch::Strategic(next)).await.unwrap();
    cloud
        .until("few are left", async || {
            // The two that are kept beside those of the pods that there are.
            cloud.list::<ControllerRevision>(&acme, "default").await.len() <= 4
        })
        .await;
    cloud
        .until("it runs as asked for", async || {
            let pods = cloud.list::<Pod>(&acme, "default").await;
            let images = pods.iter().filter_map(|it| it.spec.as_ref()?.containers[0].image.clone());
            images.eq(["app:2".to_owned()])
        })
        .await;
    cloud.end().await;
}
