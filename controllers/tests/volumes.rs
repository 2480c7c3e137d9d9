//! Claims and volumes, and the claims that pods have of their own.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use insula_api::names::TenantName;
use insula_client::{DeleteOptions, Kind, Patch, Tenanted};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod},
    resource::v1::{ResourceClaim, ResourceClaimTemplate},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use self::cloud::Cloud;

/// A tenant's storage.
struct Storage {
    cloud: Cloud,
    acme: TenantName,
}

impl Storage {
    async fn start() -> Self {
        let cloud = Cloud::start(1).await;
        cloud.run_controllers(insula_controllers::Config::new("the root of trust"));
        let acme = cloud.tenant("acme").await;
        Self { cloud, acme }
    }

    async fn make<K: Kind>(&self, value: Value) -> Tenanted<K> {
        let object = serde_json::from_value(value).unwrap();
        self.cloud.client.tenant(&self.acme).api::<K>().create(&object).await.unwrap()
    }

    async fn volume(&self, name: &str, more: Value) -> Tenanted<PersistentVolume> {
        let mut spec = json!({
            "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/nowhere"},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.make(json!({"metadata": {"name": name}, "spec": spec})).await
    }

    async fn claim(&self, name: &str, more: Value) -> Tenanted<PersistentVolumeClaim> {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let it = json!({"metadata": {"name": name}, "spec": spec});
        self.cloud.create(&self.acme, "default", it).await
    }

    async fn claim_now(&self, name: &str) -> PersistentVolumeClaim {
        let api = self.cloud.client.tenant(&self.acme);
        api.namespaced::<PersistentVolumeClaim>("default").get(name).await.unwrap().object
    }

    async fn volume_now(&self, name: &str) -> PersistentVolume {
        let api = self.cloud.client.tenant(&self.acme).api::<PersistentVolume>();
        api.get(name).await.unwrap().object
    }

    async fn until_claim(&self, name: &str, phase: &str) {
        let holds = async || {
            let status = self.claim_now(name).await.status.unwrap_or_default();
            status.phase.as_deref() == Some(phase)
        };
        self.cloud.until(&format!("claim {name} is {phase}"), holds).await;
    }

    async fn until_volume(&self, name: &str, phase: &str) {
        let holds = async || {
            let status = self.volume_now(name).await.status.unwrap_or_default();
            status.phase.as_deref() == Some(phase)
        };
        self.cloud.until(&format!("volume {name} is {phase}"), holds).await;
    }

    /// Waits for an event about an object; returns its message.
    async fn until_told(&self, namespace: &str, name: &str, reason: &str) -> String {
        let mut found = None;
        let told = async || {
            let events = self.cloud.list::<Event>(&self.acme, namespace).await;
            let about = |it: &&Tenanted<Event>| {
                it.involved_object.name.as_deref() == Some(name)
                    && it.reason.as_deref() == Some(reason)
            };
            found = events.iter().find(about).and_then(|it| it.message.clone());
            found.is_some()
        };
        self.cloud.until(&format!("{reason} of {name} is told"), told).await;
        found.unwrap()
    }
}

fn annotation<'a>(object: &'a impl insula_client::Object, key: &str) -> &'a str {
    let all = object.meta().annotations.as_ref();
    all.and_then(|all| all.get(key)).map_or("", String::as_str)
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_bound_to_volumes_and_let_go() {
    let storage = Storage::start().await;
    let large = json!({"capacity": {"storage": "50Gi"}, "storageClassName": "none"});
    storage.volume("large", large).await;
    storage.volume("small", json!({"storageClassName": "none"})).await;
    storage.until_volume("small", "Available").await;
    storage.until_volume("large", "Available").await;
    storage.claim("first", json!({"storageClassName": "none"})).await;
    storage.until_claim("first", "Bound").await;
    let first = storage.claim_now("first").await;
    assert_eq!(first.spec.as_ref().unwrap().volume_name.as_deref(), Some("small"));
    assert_eq!(annotation(&first, "pv.kubernetes.io/bind-completed"), "yes");
    assert_eq!(annotation(&first, "pv.kubernetes.io/bound-by-controller"), "yes");
    assert_eq!(first.status.unwrap().capacity.unwrap()["storage"].0, "5Gi");
    let small = storage.volume_now("small").await;
    let named = small.spec.as_ref().unwrap().claim_ref.clone().unwrap();
    assert_eq!(named.uid, first.metadata.uid);
    assert_eq!(annotation(&small, "pv.kubernetes.io/bound-by-controller"), "yes");
    storage.until_volume("small", "Bound").await;

    // The second takes what is left, and a third nothing.
    storage.claim("second", json!({"storageClassName": "none"})).await;
    storage.until_claim("second", "Bound").await;
    storage.claim("third", json!({"storageClassName": ""})).await;
    let message = storage.until_told("default", "third", "FailedBinding").await;
    let expected = "no persistent volumes available for this claim and no storage class is set";
    assert_eq!(message, expected);
    // What comes later for somebody else is not taken; what is free is.
    let reserved = json!({"claimRef": {"namespace": "default", "name": "fourth"}});
    storage.volume("reserved", reserved).await;
    storage.until_volume("reserved", "Available").await;
    storage.volume("free", json!({})).await;
    storage.until_claim("third", "Bound").await;
    let third = storage.claim_now("third").await.spec.unwrap();
    assert_eq!(third.volume_name.as_deref(), Some("free"));
    storage.claim("fourth", json!({"storageClassName": ""})).await;
    storage.until_claim("fourth", "Bound").await;
    let reserved = storage.volume_now("reserved").await;
    assert_eq!(annotation(&reserved, "pv.kubernetes.io/bound-by-controller"), "");

    // Whoever lets go of a volume leaves it as it is, or to nobody who could remove it.
    let policy = Patch::Merge(json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
    let volumes = storage.cloud.client.tenant(&storage.acme).api::<PersistentVolume>();
    volumes.patch("large", &policy).await.unwrap();
    let api = storage.cloud.client.tenant(&storage.acme);
    let claims = api.namespaced::<PersistentVolumeClaim>("default");
    for name in ["first", "second"] {
        claims.delete(name, &DeleteOptions::default()).await.unwrap();
    }
    storage.until_volume("small", "Released").await;
    storage.until_volume("large", "Failed").await;
    let why = storage.until_told("default", "large", "VolumeFailedDelete").await;
    assert!(why.contains("no deletable volume plugin matched"), "{why}");
    // A volume that is forced away takes its data along.
    volumes.delete("free", &DeleteOptions::default()).await.unwrap();
    let freed = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    volumes.patch("free", &freed).await.unwrap();
    storage.until_claim("third", "Lost").await;
    let message = storage.until_told("default", "third", "ClaimLost").await;
    let expected = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    assert_eq!(message, expected);
    storage.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_say_who_provides() {
    let storage = Storage::start().await;
    storage.claim("early", json!({})).await;
    storage.until_told("default", "early", "FailedBinding").await;
    let fast = json!({
        "metadata": {"name": "fast", "annotations": {
            "storageclass.kubernetes.io/is-default-class": "true",
        }},
        "provisioner": "disks.example.com",
    });
    storage.make::<StorageClass>(fast).await;
    // The platform's are for all tenants.
    let lazy = json!({
        "metadata": {"name": "lazy"}, "provisioner": "disks.example.com",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    let shared = storage.cloud.client.system().api::<StorageClass>();
    shared.create(&serde_json::from_value(lazy).unwrap()).await.unwrap();
    let message = storage.until_told("default", "early", "ExternalProvisioning").await;
    assert!(message.starts_with("Waiting for a volume to be created either by"), "{message}");
    let early = storage.claim_now("early").await;
    assert_eq!(early.spec.as_ref().unwrap().storage_class_name.as_deref(), Some("fast"));
    let by = annotation(&early, "volume.kubernetes.io/storage-provisioner");
    assert_eq!(by, "disks.example.com");
    assert_eq!(annotation(&early, "volume.beta.kubernetes.io/storage-provisioner"), by);

    let lazy = storage.claim("lazy", json!({"storageClassName": "lazy"})).await;
    let message = storage.until_told("default", "lazy", "WaitForFirstConsumer").await;
    assert_eq!(message, "waiting for first consumer to be created before binding");
    let api = storage.cloud.client.tenant(&storage.acme);
    let claims = api.namespaced::<PersistentVolumeClaim>("default");
    let selected = json!({"volume.kubernetes.io/selected-node": "n"});
    let selected = Patch::Merge(json!({"metadata": {"annotations": selected}}));
    claims.patch("lazy", &selected).await.unwrap();
    storage.until_told("default", "lazy", "ExternalProvisioning").await;
    // As a provisioner does it.
    storage
        .make::<PersistentVolume>(json!({
            "metadata": {"name": "made", "annotations": {
                "pv.kubernetes.io/provisioned-by": "disks.example.com",
            }},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "lazy", "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": "default", "name": "lazy", "uid": lazy.uid(),
                },
                "csi": {"driver": "disks.example.com", "volumeHandle": "h"},
            },
        }))
        .await;
    storage.until_claim("lazy", "Bound").await;
    // A claim that grows is told to wait for who can have it grow.
    let grows = Patch::Merge(json!({"allowVolumeExpansion": true}));
    shared.patch("lazy", &grows).await.unwrap();
    let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    claims.patch("lazy", &Patch::Merge(more)).await.unwrap();
    let message = storage.until_told("default", "lazy", "ExternalExpanding").await;
    assert_eq!(message, "waiting for an external controller to expand this PVC");
    // Its provisioner removes it once it is released.
    claims.delete("lazy", &DeleteOptions::default()).await.unwrap();
    storage.until_volume("made", "Released").await;
    storage.cloud.end().await;
}

/// A pod that is never run, with these parts.
async fn pod(storage: &Storage, name: &str, more: Value) -> Tenanted<Pod> {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let it = json!({"metadata": {"name": name}, "spec": spec});
    storage.cloud.create(&storage.acme, "default", it).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_claims_of_their_own() {
    let storage = Storage::start().await;
    let template = json!({
        "metadata": {"labels": {"of": "p"}},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "x",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    });
    storage.claim("q-scratch", json!({})).await;
    let own = json!({
        "volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}],
    });
    let p = pod(&storage, "p", own.clone()).await;
    let api = storage.cloud.client.tenant(&storage.acme);
    let claims = api.namespaced::<PersistentVolumeClaim>("default");
    let made = async || claims.get_opt("p-scratch").await.unwrap();
    storage.cloud.until("it has its claim", async || made().await.is_some()).await;
    let claim = made().await.unwrap();
    assert_eq!(claim.metadata.owner_references.as_ref().unwrap()[0].uid, p.uid());
    assert_eq!(claim.metadata.labels.as_ref().unwrap()["of"], "p");
    pod(&storage, "q", own).await;
    let message = storage.until_told("default", "q", "FailedBinding").await;
    let expected = "ephemeral volume scratch: PVC default/q-scratch was not created for pod \
                    default/q (pod is not owner)";
    assert_eq!(message, expected);

    let asking = json!({"resourceClaims": [
        {"name": "gpu", "resourceClaimTemplateName": "gpus"},
    ]});
    pod(&storage, "r", asking).await;
    let message = storage.until_told("default", "r", "FailedResourceClaimCreation").await;
    assert!(message.contains("\"gpus\" not found"), "{message}");
    let template = json!({
        "metadata": {"name": "gpus"},
        "spec": {"spec": {"devices": {"requests": [
            {"name": "one", "exactly": {"deviceClassName": "gpu"}},
        ]}}},
    });
    storage.cloud.create::<ResourceClaimTemplate>(&storage.acme, "default", template).await;
    let pods = api.namespaced::<Pod>("default");
    let named = async || {
        let status = pods.get("r").await.unwrap().object.status.unwrap_or_default();
        status.resource_claim_statuses.unwrap_or_default().into_iter().next()
    };
    storage.cloud.until("it is told its claim", async || named().await.is_some()).await;
    let name = named().await.unwrap().resource_claim_name.unwrap();
    assert!(name.starts_with("r-gpu-"), "{name}");
    let devices = api.namespaced::<ResourceClaim>("default");
    let claim = devices.get(&name).await.unwrap();
    let marked = annotation(&claim.object, "resource.kubernetes.io/pod-claim-name");
    assert_eq!(marked, "gpu");

    // A scheduler allocates it; who has ended does not need it.
    let held = Patch::Merge(json!({"metadata": {
        "finalizers": ["resource.kubernetes.io/delete-protection"],
    }}));
    devices.patch(&name, &held).await.unwrap();
    let uid = pods.get("r").await.unwrap().uid().to_owned();
    let allocated = Patch::Merge(json!({"status": {
        "allocation": {"devices": {}}, "reservedFor": [
            {"resource": "pods", "name": "r", "uid": uid},
        ],
    }}));
    devices.patch_status(&name, &allocated).await.unwrap();
    let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
    pods.patch_status("r", &ended).await.unwrap();
    let gone = async || devices.get_opt(&name).await.unwrap().is_none();
    storage.cloud.until("it is let go of", gone).await;
    storage.cloud.end().await;
}

/// Whose the claims of a set's pods are follows the set's policy, whenever that changes.
#[tokio::test(flavor = "multi_thread")]
async fn claims_go_with_whom_their_set_says() {
    let storage = Storage::start().await;
    let (cloud, acme) = (&storage.cloud, &storage.acme);
    cloud.run_pods();
    let mut set = self::cloud::replicated("db", "db", 2);
    set["spec"]["serviceName"] = "db".into();
    set["spec"]["podManagementPolicy"] = "Parallel".into();
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }}]);
    cloud.create::<StatefulSet>(acme, "default", set).await;
    let owners = async || {
        let claims = cloud.list::<PersistentVolumeClaim>(acme, "default").await;
        let owner = |it: &Tenanted<PersistentVolumeClaim>| {
            let owners = it.metadata.owner_references.iter().flatten();
            let owners: Vec<&str> = owners.map(|it| it.name.as_str()).collect();
            format!("{} {}", it.name(), owners.join(" "))
        };
        let mut all: Vec<String> = claims.iter().map(owner).collect();
        all.sort();
        all
    };
    let sets = cloud.client.tenant(acme).namespaced::<StatefulSet>("default");
    let policy = async |when_deleted: &str, when_scaled: &str, replicas: i32| {
        let policy = json!({"whenDeleted": when_deleted, "whenScaled": when_scaled});
        let spec = json!({"replicas": replicas, "persistentVolumeClaimRetentionPolicy": policy});
        sets.patch("db", &Patch::Merge(json!({"spec": spec}))).await.unwrap();
    };
    cloud.until("nobody's", async || owners().await == ["data-db-0 ", "data-db-1 "]).await;
    policy("Delete", "Retain", 2).await;
    cloud.until("the set's", async || owners().await == ["data-db-0 db", "data-db-1 db"]).await;
    policy("Retain", "Retain", 2).await;
    cloud.until("nobody's again", async || owners().await == ["data-db-0 ", "data-db-1 "]).await;
    policy("Delete", "Delete", 1).await;
    cloud.until("one went with its pod", async || owners().await == ["data-db-0 db"]).await;
    sets.delete("db", &DeleteOptions::default()).await.unwrap();
    cloud.until("and one with the set", async || owners().await.is_empty()).await;
    storage.cloud.end().await;
}
