//! Deployments, ReplicaSets and what is behind services, on a real API server.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::time::Duration;

use insula_api::names::TenantName;
use insula_client::{DeleteOptions, Patch, Tenanted};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment, ReplicaSet, StatefulSet},
    core::v1::{Endpoints, Event, Pod, Service},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
};
use serde_json::{Value, json};

use self::cloud::{Cloud, replicated};

fn deployment(name: &str, replicas: i32) -> Value {
    replicated(name, name, replicas)
}

async fn get(cloud: &Cloud, tenant: &TenantName, name: &str) -> Tenanted<Deployment> {
    cloud.client.tenant(tenant).namespaced::<Deployment>("default").get(name).await.unwrap()
}

async fn patch(cloud: &Cloud, tenant: &TenantName, name: &str, value: Value) {
    let api = cloud.client.tenant(tenant).namespaced::<Deployment>("default");
    api.patch(name, &Patch::Strategic(value)).await.unwrap();
}

fn image(version: u32) -> Value {
    let containers = json!([{"name": "c", "image": format!("app:{version}")}]);
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

/// Waits until a rollout is over, and for the pods that it no longer needs to be gone.
async fn rolled_out(cloud: &Cloud, tenant: &TenantName, name: &str, replicas: i32) {
    cloud
        .until(&format!("{name} is rolled out"), async || {
            let it = get(cloud, tenant, name).await;
            let status = it.status.clone().unwrap_or_default();
            let counts = [
                status.replicas,
                status.updated_replicas,
                status.ready_replicas,
                status.available_replicas,
            ];
            let progressing = status.conditions.unwrap_or_default().into_iter().any(|it| {
                it.type_ == "Progressing" && it.reason.as_deref() == Some("NewReplicaSetAvailable")
            });
            status.observed_generation == it.metadata.generation
                && progressing
                && counts.iter().all(|it| it.unwrap_or(0) == replicas)
        })
        .await;
    cloud
        .until("only wanted pods are left", async || {
            let pods = cloud.list::<Pod>(tenant, "default").await;
            pods.iter().filter(|it| it.name().starts_with(&format!("{name}-"))).count()
                == usize::try_from(replicas).unwrap()
        })
        .await;
}

fn revision(it: &Tenanted<Deployment>) -> &str {
    &it.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"]
}

async fn images(cloud: &Cloud, tenant: &TenantName) -> Vec<String> {
    let pods = cloud.list::<Pod>(tenant, "default").await;
    let mut images: Vec<_> = pods
        .iter()
        .map(|it| it.spec.as_ref().unwrap().containers[0].image.clone().unwrap())
        .collect();
    images.sort();
    images
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_lives_its_life() {
    let cloud = Cloud::with_controllers(2).await;
    let acme = cloud.tenant("acme").await;
    cloud.create::<Deployment>(&acme, "default", deployment("web", 3)).await;
    rolled_out(&cloud, &acme, "web", 3).await;
    assert_eq!(images(&cloud, &acme).await, ["app:1", "app:1", "app:1"]);
    let pods = cloud.list::<Pod>(&acme, "default").await;
    let set = &cloud.list::<ReplicaSet>(&acme, "default").await[0];
    for pod in &pods {
        let owner = &pod.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((owner.uid.as_str(), owner.controller), (set.uid(), Some(true)));
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert_eq!(set.name(), format!("web-{}", labels["pod-template-hash"]));
    }

    patch(&cloud, &acme, "web", image(2)).await;
    rolled_out(&cloud, &acme, "web", 3).await;
    assert_eq!(images(&cloud, &acme).await, ["app:2", "app:2", "app:2"]);
    cloud.until("revision 2", async || revision(&get(&cloud, &acme, "web").await) == "2").await;

    patch(&cloud, &acme, "web", json!({"spec": {"replicas": 5}})).await;
    rolled_out(&cloud, &acme, "web", 5).await;

    // What `kubectl rollout undo` does: the template of an old revision.
    patch(&cloud, &acme, "web", image(1)).await;
    rolled_out(&cloud, &acme, "web", 5).await;
    cloud.until("revision 3", async || revision(&get(&cloud, &acme, "web").await) == "3").await;
    assert_eq!(images(&cloud, &acme).await, vec!["app:1"; 5]);
    let sets = cloud.list::<ReplicaSet>(&acme, "default").await;
    assert_eq!(sets.len(), 2, "the old set was used again");

    patch(&cloud, &acme, "web", json!({"spec": {"replicas": 0}})).await;
    rolled_out(&cloud, &acme, "web", 0).await;
    let events = cloud.list::<Event>(&acme, "default").await;
    let message = format!("Scaled up replica set {} from 0 to 3", set.name());
    assert!(events.iter().any(|it| {
        it.reason.as_deref() == Some("ScalingReplicaSet") && it.message.as_deref() == Some(&message)
    }));
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_rollout_stops_and_a_rollback_heals_it() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let mut wanted = deployment("web", 4);
    wanted["spec"]["progressDeadlineSeconds"] = json!(3);
    cloud.create::<Deployment>(&acme, "default", wanted).await;
    rolled_out(&cloud, &acme, "web", 4).await;

    let mut broken = image(2);
    broken["spec"]["template"]["metadata"] = json!({"labels": {"broken": "yes"}});
    patch(&cloud, &acme, "web", broken).await;
    cloud
        .until("the rollout is late", async || {
            let status = get(&cloud, &acme, "web").await.status.clone().unwrap_or_default();
            status.conditions.unwrap_or_default().into_iter().any(|it| {
                it.reason.as_deref() == Some("ProgressDeadlineExceeded") && it.status == "False"
            })
        })
        .await;
    // At most a quarter may be missing: three of the old pods serve on.
    let status = get(&cloud, &acme, "web").await.object.status.unwrap();
    assert_eq!(status.available_replicas, Some(3));

    let mut healed = image(1);
    healed["spec"]["template"]["metadata"] = json!({"labels": {"broken": null}});
    patch(&cloud, &acme, "web", healed).await;
    rolled_out(&cloud, &acme, "web", 4).await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_never_runs_old_beside_new() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let mut wanted = deployment("web", 3);
    wanted["spec"]["strategy"] = json!({"type": "Recreate"});
    cloud.create::<Deployment>(&acme, "default", wanted).await;
    rolled_out(&cloud, &acme, "web", 3).await;
    patch(&cloud, &acme, "web", image(2)).await;
    let mut seen_both = false;
    cloud
        .until("all pods are new", async || {
            let images = images(&cloud, &acme).await;
            seen_both |=
                images.iter().any(|it| it == "app:1") && images.iter().any(|it| it == "app:2");
            images == ["app:2", "app:2", "app:2"]
        })
        .await;
    assert!(!seen_both);
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_deployment_does_not_roll() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    cloud.create::<Deployment>(&acme, "default", deployment("web", 2)).await;
    rolled_out(&cloud, &acme, "web", 2).await;
    patch(&cloud, &acme, "web", json!({"spec": {"paused": true}})).await;
    patch(&cloud, &acme, "web", image(2)).await;
    cloud
        .until("the pause is told", async || {
            let it = get(&cloud, &acme, "web").await;
            let status = it.status.clone().unwrap_or_default();
            status.observed_generation == it.metadata.generation
                && status
                    .conditions
                    .unwrap_or_default()
                    .iter()
                    .any(|it| it.reason.as_deref() == Some("DeploymentPaused"))
        })
        .await;
    assert_eq!(images(&cloud, &acme).await, ["app:1", "app:1"]);
    patch(&cloud, &acme, "web", json!({"spec": {"paused": false}})).await;
    rolled_out(&cloud, &acme, "web", 2).await;
    assert_eq!(images(&cloud, &acme).await, ["app:2", "app:2"]);
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_sets_are_kept_up_to_the_limit() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let mut wanted = deployment("web", 1);
    wanted["spec"]["revisionHistoryLimit"] = json!(1);
    cloud.create::<Deployment>(&acme, "default", wanted).await;
    for version in 2..=4 {
        patch(&cloud, &acme, "web", image(version)).await;
        rolled_out(&cloud, &acme, "web", 1).await;
    }
    cloud
        .until("one old set is left", async || {
            cloud.list::<ReplicaSet>(&acme, "default").await.len() == 2
        })
        .await;
    cloud.end().await;
}

/// Sets without a deployment: pods that die are replaced, strays adopted, others let go, and
/// never is there one too many.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_set_keeps_its_number() {
    let cloud = Cloud::with_controllers(2).await;
    let acme = cloud.tenant("acme").await;
    let stray = json!({
        "metadata": {"name": "stray", "labels": {"app": "db"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let stray = cloud.create::<Pod>(&acme, "default", stray).await;
    // A set that did not know of it yet would make twenty, and then let any one go.
    let budget = json!({
        "metadata": {"name": "db"},
        "spec": {"minAvailable": 0, "selector": {"matchLabels": {"app": "db"}}},
    });
    cloud.create::<PodDisruptionBudget>(&acme, "default", budget).await;
    let budgets = cloud.client.tenant(&acme).namespaced::<PodDisruptionBudget>("default");
    cloud
        .until("the stray is known", async || {
            let status = budgets.get("db").await.unwrap().object.status;
            status.is_some_and(|it| it.expected_pods == Some(1))
        })
        .await;
    let mut set = deployment("db", 20);
    set["spec"].as_object_mut().unwrap().remove("strategy");
    let set = cloud.create::<ReplicaSet>(&acme, "default", set).await;
    let pods = cloud.client.tenant(&acme).namespaced::<Pod>("default");
    let is_full = async || {
        let all = cloud.list::<Pod>(&acme, "default").await;
        let owned = all.iter().filter(|it| {
            let owners = it.metadata.owner_references.as_deref().unwrap_or_default();
            owners.iter().any(|owner| owner.uid == set.uid())
        });
        assert!(all.len() <= 21, "{} pods", all.len());
        owned.count() == 20
    };
    cloud.until("twenty pods are owned", is_full).await;
    let adopted = pods.get("stray").await.unwrap();
    assert_eq!(adopted.uid(), stray.uid());
    assert_eq!(adopted.metadata.owner_references.as_ref().map(Vec::len), Some(1));

    // Let one go by its labels: it lives on, and another takes its place.
    pods.patch("stray", &Patch::Merge(json!({"metadata": {"labels": {"app": "x"}}})))
        .await
        .unwrap();
    cloud.until("there are twenty again", is_full).await;
    cloud
        .until("the stray is nobody's", async || {
            let stray = pods.get("stray").await.unwrap();
            stray.metadata.owner_references.as_ref().is_none_or(Vec::is_empty)
        })
        .await;

    let some: Vec<_> = cloud.list::<Pod>(&acme, "default").await;
    for pod in some.iter().filter(|it| it.name() != "stray").take(7) {
        pods.delete(pod.name(), &DeleteOptions::default()).await.unwrap();
    }
    cloud.until("the dead are replaced", is_full).await;
    let sets = cloud.client.tenant(&acme).namespaced::<ReplicaSet>("default");
    cloud
        .until("the status tells", async || {
            let status = sets.get("db").await.unwrap().object.status.unwrap_or_default();
            (status.replicas, status.ready_replicas, status.available_replicas)
                == (20, Some(20), Some(20))
        })
        .await;
    sets.patch("db", &Patch::Merge(json!({"spec": {"replicas": 3}}))).await.unwrap();
    cloud
        .until("three are left", async || cloud.list::<Pod>(&acme, "default").await.len() == 4)
        .await;
    cloud.end().await;
}

/// Anybody can write down the uid of another tenant's object as their manager's.
#[tokio::test(flavor = "multi_thread")]
async fn what_names_an_owner_elsewhere_is_not_its_own() {
    let cloud = Cloud::with_controllers(2).await;
    let (acme, evil) = (cloud.tenant("acme").await, cloud.tenant("evil").await);
    let mut set = deployment("db", 2);
    set["spec"].as_object_mut().unwrap().remove("strategy");
    set["spec"]["serviceName"] = "db".into();
    let set = cloud.create::<StatefulSet>(&acme, "default", set).await;
    let sets = cloud.client.tenant(&acme).namespaced::<StatefulSet>("default");
    let ready = async || {
        sets.get("db").await.unwrap().object.status.unwrap_or_default().ready_replicas == Some(2)
    };
    cloud.until("it runs", ready).await;
    let revisions = cloud.list::<ControllerRevision>(&acme, "default").await;
    let [own] = revisions.as_slice() else { panic!("{revisions:?}") };
    // The garbage collector of the other tenant would take it away, for want of an owner.
    let mut forged = json!({
        "metadata": {
            "name": "forged", "labels": own.metadata.labels, "finalizers": ["evil/kept"],
            "ownerReferences": own.metadata.owner_references,
        },
        "revision": 99,
        "data": own.data,
    });
    forged["data"]["spec"]["template"]["spec"]["containers"][0]["image"] = "evil".into();
    cloud.create::<ControllerRevision>(&evil, "default", forged).await;
    let pods = cloud.client.tenant(&acme).namespaced::<Pod>("default");
    pods.delete("db-1", &DeleteOptions::default()).await.unwrap();
    sets.patch("db", &Patch::Merge(json!({"spec": {"replicas": 3}}))).await.unwrap();
    cloud.until("there are three", async || pods.get_opt("db-2").await.unwrap().is_some()).await;
    let status = sets.get("db").await.unwrap().object.status.unwrap_or_default();
    assert_eq!(status.update_revision.as_deref(), Some(own.name()));
    assert_eq!(cloud.list::<ControllerRevision>(&acme, "default").await[0].revision, 1);
    for pod in cloud.list::<Pod>(&acme, "default").await {
        assert_ne!(pod.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("evil"));
    }
    assert_eq!(sets.get("db").await.unwrap().uid(), set.uid());
    cloud.end().await;
}

/// A tenant with many objects does not make another wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_tenant_is_served_beside_a_large_one() {
    let cloud = Cloud::with_controllers(2).await;
    let (large, small) = (cloud.tenant("large").await, cloud.tenant("small").await);
    for n in 0..30 {
        let name = format!("web{n}");
        cloud.create::<Deployment>(&large, "default", deployment(&name, 10)).await;
    }
    cloud.create::<Deployment>(&small, "default", deployment("web", 2)).await;
    let begun = tokio::time::Instant::now();
    rolled_out(&cloud, &small, "web", 2).await;
    let small_took = begun.elapsed();
    cloud
        .until("all of the large tenant's pods are there", async || {
            cloud.list::<Pod>(&large, "default").await.len() == 300
        })
        .await;
    let large_took = begun.elapsed();
    assert!(
        small_took < large_took.max(Duration::from_secs(2)),
        "{small_took:?} of {large_took:?}"
    );
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_by_hand_are_mirrored() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let service = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}});
    cloud.create::<Service>(&acme, "default", service).await;
    let endpoints = json!({
        "metadata": {"name": "db", "labels": {"of": "db"}, "annotations": {"note": "a"}},
        "subsets": [{
            "addresses": [{"ip": "192.0.2.1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
            "ports": [{"port": 5432}],
        }],
    });
    cloud.create::<Endpoints>(&acme, "default", endpoints).await;
    let slice = async || {
        let all = cloud.list::<EndpointSlice>(&acme, "default").await;
        let of = all.into_iter().find(|it| it.name().starts_with("db-"));
        of.map(|it| it.object)
    };
    cloud.until("there is a slice", async || slice().await.is_some()).await;
    let it = slice().await.unwrap();
    let labels = it.metadata.labels.unwrap();
    let by = "endpointslicemirroring-controller.k8s.io";
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], by);
    assert_eq!((&*labels["kubernetes.io/service-name"], &*labels["of"]), ("db", "db"));
    assert_eq!(it.metadata.annotations.unwrap()["note"], "a");
    let ready = |it: &k8s_openapi::api::discovery::v1::Endpoint| {
        (it.addresses[0].clone(), it.conditions.as_ref().unwrap().ready)
    };
    let mut found: Vec<_> = it.endpoints.iter().flatten().map(ready).collect();
    found.sort();
    let expected = [("192.0.2.1", true), ("192.0.2.2", false)];
    assert_eq!(found, expected.map(|(ip, ready)| (ip.to_owned(), Some(ready))));
    let api = cloud.client.tenant(&acme).namespaced::<Endpoints>("default");
    let skipped = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let skipped = Patch::Merge(json!({"metadata": {"labels": skipped}}));
    api.patch("db", &skipped).await.unwrap();
    cloud.until("it is gone", async || slice().await.is_none()).await;
    cloud.end().await;
}
