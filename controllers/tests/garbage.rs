//! The three ways to go, and that nothing goes that is still owned.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::{collections::BTreeSet, time::Duration};

use insula_api::names::TenantName;
use insula_client::{DeleteOptions, Patch, Propagation};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Event, Secret},
    rbac::v1::ClusterRole,
};
use serde_json::{Value, json};

use self::cloud::{Cloud, names};

/// A config map, owned by others of which `(name, uid, blocks)` are given.
fn map(name: &str, owners: &[(&str, &str, bool)]) -> Value {
    let owners: Vec<_> = owners
        .iter()
        .map(|(name, uid, blocks)| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid,
                "blockOwnerDeletion": blocks,
            })
        })
        .collect();
    json!({"metadata": {"name": name, "ownerReferences": owners}})
}

struct Family {
    cloud: Cloud,
    acme: TenantName,
    owner: String,
}

impl Family {
    /// A cloud in which `owner` owns `child`, and `child` owns `grandchild`.
    async fn start() -> Self {
        let cloud = Cloud::with_controllers(2).await;
        let acme = cloud.tenant("acme").await;
        cloud
            .until("the namespace is complete", async || {
                !cloud.list::<ConfigMap>(&acme, "default").await.is_empty()
            })
            .await;
        let owner = cloud.create::<ConfigMap>(&acme, "default", map("owner", &[])).await;
        let child = map("child", &[("owner", owner.uid(), true)]);
        let child = cloud.create::<ConfigMap>(&acme, "default", child).await;
        let grandchild = map("grandchild", &[("child", child.uid(), true)]);
        cloud.create::<ConfigMap>(&acme, "default", grandchild).await;
        Self { cloud, acme, owner: owner.uid().to_owned() }
    }

    async fn left(&self) -> Vec<String> {
        let maps = self.cloud.list::<ConfigMap>(&self.acme, "default").await;
        let names = names(&maps).into_iter().filter(|name| *name != "kube-root-ca.crt");
        names.map(str::to_owned).collect()
    }

    async fn until_left(&self, expected: &[&str]) {
        let what = format!("{expected:?} are left");
        self.cloud.until(&what, async || self.left().await == expected).await;
    }

    async fn delete_owner(&self, propagation: Propagation) {
        let maps = self.cloud.client.tenant(&self.acme).namespaced::<ConfigMap>("default");
        let options = DeleteOptions::default().propagation(propagation);
        maps.delete("owner", &options).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_background_all_go_after_the_owner() {
    let family = Family::start().await;
    family.delete_owner(Propagation::Background).await;
    family.until_left(&[]).await;
    family.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_foreground_the_owner_goes_last() {
    let family = Family::start().await;
    let maps = family.cloud.client.tenant(&family.acme).namespaced::<ConfigMap>("default");
    let hold = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/keep"]}}));
    maps.patch("grandchild", &hold).await.unwrap();
    family.delete_owner(Propagation::Foreground).await;
    let begun = async |name: &str| maps.get(name).await.unwrap().is_deleting();
    family.cloud.until("deletion reaches the last", async || begun("grandchild").await).await;
    assert!(begun("owner").await && begun("child").await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(family.left().await, ["child", "grandchild", "owner"], "all wait for the last");
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("grandchild", &free).await.unwrap();
    family.until_left(&[]).await;
    family.cloud.end().await;
}

/// Each waits for the next, and none is the last.
#[tokio::test(flavor = "multi_thread")]
async fn who_own_each_other_go_as_well() {
    let family = Family::start().await;
    let maps = family.cloud.client.tenant(&family.acme).namespaced::<ConfigMap>("default");
    let grandchild = maps.get("grandchild").await.unwrap();
    let closed = map("owner", &[("grandchild", grandchild.uid(), true)]);
    maps.patch("owner", &Patch::Merge(closed)).await.unwrap();
    family.delete_owner(Propagation::Foreground).await;
    family.until_left(&[]).await;
    family.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_stay_and_forget_their_owner() {
    let family = Family::start().await;
    family.delete_owner(Propagation::Orphan).await;
    family.until_left(&["child", "grandchild"]).await;
    let maps = family.cloud.client.tenant(&family.acme).namespaced::<ConfigMap>("default");
    assert_eq!(maps.get("child").await.unwrap().metadata.owner_references, None);
    assert!(maps.get("grandchild").await.unwrap().metadata.owner_references.is_some());
    family.cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_owner_that_stays_is_enough() {
    let family = Family::start().await;
    let (cloud, acme) = (&family.cloud, &family.acme);
    let second = cloud.create::<ConfigMap>(acme, "default", map("second", &[])).await;
    let both = map("both", &[("owner", &family.owner, false), ("second", second.uid(), false)]);
    cloud.create::<ConfigMap>(acme, "default", both).await;
    family.delete_owner(Propagation::Background).await;
    family.until_left(&["both", "second"]).await;
    let maps = cloud.client.tenant(acme).namespaced::<ConfigMap>("default");
    cloud
        .until("the dead owner is forgotten", async || {
            let owners = maps.get("both").await.unwrap().object.metadata.owner_references.unwrap();
            owners.len() == 1 && owners[0].uid == second.uid()
        })
        .await;
    family.cloud.end().await;
}

/// Who was told to name an owner that is not where it could own.
async fn misplaced(family: &Family) -> Vec<String> {
    let events = family.cloud.list::<Event>(&family.acme, "default").await;
    let told = events
        .into_iter()
        .filter(|it| it.reason.as_deref() == Some("OwnerRefInvalidNamespace"))
        .filter_map(|it| it.object.involved_object.name);
    BTreeSet::from_iter(told).into_iter().collect()
}

/// Owners that never were, or are another tenant's or another namespace's, own nothing.
#[tokio::test(flavor = "multi_thread")]
async fn false_owners_own_nothing() {
    let family = Family::start().await;
    let (cloud, acme) = (&family.cloud, &family.acme);
    let globex = cloud.tenant("globex").await;
    let foreign = cloud.create::<ConfigMap>(&globex, "default", map("foreign", &[])).await;
    let elsewhere = cloud.create::<ConfigMap>(acme, "kube-public", map("elsewhere", &[])).await;
    for (name, owner, uid) in [
        ("of-nobody", "nobody", "00000000-0000-0000-0000-000000000000"),
        ("of-former", "owner", "00000000-0000-0000-0000-000000000001"),
        ("of-foreign", "foreign", foreign.uid()),
        ("of-elsewhere", "elsewhere", elsewhere.uid()),
    ] {
        cloud.create::<ConfigMap>(acme, "default", map(name, &[(owner, uid, false)])).await;
    }
    family.until_left(&["child", "grandchild", "owner"]).await;
    let told = ["of-elsewhere", "of-foreign", "of-former", "of-nobody"];
    cloud.until("it is said", async || misplaced(&family).await == told).await;
    assert!(
        cloud.list::<ConfigMap>(&globex, "default").await.iter().any(|it| it.name() == "foreign")
    );

    // An owner of a kind that nobody serves may be an owner yet to come.
    let unknown = json!({"metadata": {"name": "s", "ownerReferences": [{
        "apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": "u",
    }]}});
    cloud.create::<Secret>(acme, "default", unknown).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(names(&cloud.list::<Secret>(acme, "default").await), ["s"]);

    // What is in no namespace cannot say in which to look: it stays.
    let owners = map("of-all", &[("owner", &family.owner, false)]);
    let roles = cloud.client.tenant(acme).api::<ClusterRole>();
    roles.create(&serde_json::from_value(owners).unwrap()).await.unwrap();
    let told = ["of-all", "of-elsewhere", "of-foreign", "of-former", "of-nobody"];
    cloud.until("it is said", async || misplaced(&family).await == told).await;
    assert!(!roles.get("of-all").await.unwrap().is_deleting());

    // Who loses an owner that was there is told nothing.
    family.delete_owner(Propagation::Background).await;
    family.until_left(&[]).await;
    assert_eq!(misplaced(&family).await, told);
    family.cloud.end().await;
}
