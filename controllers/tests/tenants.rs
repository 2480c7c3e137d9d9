//! Tenants and namespaces: what they begin with, and that they end whole and alone.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use insula_api::kinds::TenantPhase;
use insula_client::{DeleteOptions, ListOptions, Patch, Tenant};
use insula_controllers::{Config, Observer};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Node, Pod, Secret, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde_json::json;

use self::cloud::{Cloud, names};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_begins_with_its_namespaces_and_what_each_namespace_has() {
    let cloud = Cloud::with_controllers(2).await;
    let acme = cloud.tenant("acme").await;
    let namespaces = cloud.client.tenant(&acme).api::<Namespace>();
    let tenants = cloud.client.system().api::<Tenant>();
    cloud
        .until("the tenant is active", async || {
            let status = tenants.get("acme").await.unwrap().object.status;
            status.and_then(|status| status.phase) == Some(TenantPhase::Active)
        })
        .await;
    let all = namespaces.list_all(&ListOptions::default()).await.unwrap();
    assert_eq!(names(&all), ["default", "kube-public", "kube-system"], "an active tenant has all");
    for namespace in names(&all) {
        cloud
            .until("the certificate authority is published", async || {
                let maps = cloud.list::<ConfigMap>(&acme, namespace).await;
                maps.iter().any(|it| {
                    it.name() == "kube-root-ca.crt"
                        && it.data.as_ref().unwrap()["ca.crt"] == "the root of trust"
                })
            })
            .await;
    }
    cloud.end().await;
}

/// Which controllers have reconciled something, by the names that metrics have.
#[derive(Debug, Default)]
struct Seen(Mutex<BTreeSet<&'static str>>);

impl Observer for Seen {
    fn reconciled(&self, controller: &'static str, _succeeded: bool, _took: Duration) {
        self.0.lock().unwrap().insert(controller);
    }
    fn waiting(&self, _controller: &'static str, _n_keys: usize) {}
    fn copied(&self, _n_objects: usize) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn only_controllers_that_are_chosen_run() {
    let cloud = Cloud::start(1).await;
    let run = |choices: &[&str]| {
        let seen = Arc::new(Seen::default());
        let mut config = Config::new("the root of trust");
        config.observer = seen.clone();
        config.controllers = choices.iter().map(|it| it.parse().unwrap()).collect();
        cloud.run_controllers(config);
        seen
    };
    let most = run(&["*", "-root-ca-certificate-publisher-controller"]);
    let acme = cloud.tenant("acme").await;
    let accounts = cloud.client.tenant(&acme).namespaced::<ServiceAccount>("default");
    let has_account = async || accounts.get_opt("default").await.unwrap().is_some();
    cloud.until("the namespace has its account", has_account).await;
    let one = run(&["root-ca-certificate-publisher-controller"]);
    let maps = cloud.client.tenant(&acme).namespaced::<ConfigMap>("default");
    let is_published = async || maps.get_opt("kube-root-ca.crt").await.unwrap().is_some();
    cloud.until("the other publishes the authority", is_published).await;
    let most = most.0.lock().unwrap().clone();
    assert!(most.contains("service-account-controller"), "{most:?}");
    assert!(!most.contains("root-ca-cert-publisher"), "{most:?}");
    assert_eq!(*one.0.lock().unwrap(), BTreeSet::from(["root-ca-cert-publisher"]));
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_namespace_has_comes_back() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let accounts = cloud.client.tenant(&acme).namespaced::<ServiceAccount>("default");
    let before = accounts.get("default").await.unwrap();
    accounts.delete("default", &DeleteOptions::default()).await.unwrap();
    cloud
        .until("the account is new", async || {
            let account = accounts.get_opt("default").await.unwrap();
            account.is_some_and(|it| it.uid() != before.uid())
        })
        .await;
    let maps = cloud.client.tenant(&acme).namespaced::<ConfigMap>("default");
    cloud
        .until("the authority is there", async || {
            maps.get_opt("kube-root-ca.crt").await.unwrap().is_some()
        })
        .await;
    let spoilt = Patch::Merge(json!({"data": {"ca.crt": "forged", "more": "data"}}));
    maps.patch("kube-root-ca.crt", &spoilt).await.unwrap();
    cloud
        .until("the authority is right again", async || {
            let data = maps.get("kube-root-ca.crt").await.unwrap().object.data.unwrap();
            data.len() == 1 && data["ca.crt"] == "the root of trust"
        })
        .await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_ends_with_all_that_is_in_it() {
    let cloud = Cloud::with_controllers(2).await;
    let acme = cloud.tenant("acme").await;
    let namespaces = cloud.client.tenant(&acme).api::<Namespace>();
    let web: Namespace = serde_json::from_value(json!({"metadata": {"name": "web"}})).unwrap();
    namespaces.create(&web).await.unwrap();
    cloud
        .until("pods can be created", async || {
            let accounts = cloud.list::<ServiceAccount>(&acme, "web").await;
            !accounts.is_empty()
        })
        .await;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cloud.create::<Pod>(&acme, "web", pod.clone()).await;
    cloud.create::<Pod>(&acme, "default", pod).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/keep"]}});
    cloud.create::<ConfigMap>(&acme, "web", held).await;
    // More than is looked at at once.
    let maps = (0..1100).map(|n| json!({"metadata": {"name": format!("m{n}")}}));
    let mut made = stream::iter(maps)
        .map(|it| cloud.create::<ConfigMap>(&acme, "web", it))
        .buffer_unordered(16);
    while made.next().await.is_some() {}
    drop(made);
    namespaces.delete("web", &DeleteOptions::default()).await.unwrap();

    let condition = async |kind: &str| {
        let status = namespaces.get("web").await.unwrap().object.status.unwrap();
        let all = status.conditions.unwrap_or_default();
        all.into_iter().find(|it| it.type_ == kind).map(|it| (it.status, it.message.unwrap()))
    };
    cloud
        .until("what holds the namespace is told", async || {
            let finalizers = condition("NamespaceFinalizersRemaining").await;
            finalizers.is_some_and(|(status, message)| {
                status == "True" && message.contains("example.com/keep in 1 resource instances")
            })
        })
        .await;
    let (_, message) = condition("NamespaceContentRemaining").await.unwrap();
    assert_eq!(message, "Some resources are remaining: configmaps. has 1 resource instances");
    assert!(cloud.list::<Pod>(&acme, "web").await.is_empty(), "pods went first");

    let maps = cloud.client.tenant(&acme).namespaced::<ConfigMap>("web");
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("held", &free).await.unwrap();
    cloud
        .until("the namespace is gone", async || namespaces.get_opt("web").await.unwrap().is_none())
        .await;
    assert_eq!(names(&cloud.list::<Pod>(&acme, "default").await), ["p"]);
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_ends_alone() {
    let cloud = Cloud::with_controllers(2).await;
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    cloud.client.system().api::<Node>().create(&node).await.unwrap();
    let (acme, globex) = (cloud.tenant("acme").await, cloud.tenant("globex").await);
    for tenant in [&acme, &globex] {
        cloud.create::<ConfigMap>(tenant, "default", json!({"metadata": {"name": "c"}})).await;
        let role = json!({"metadata": {"name": "r"}, "rules": []});
        let role: ClusterRole = serde_json::from_value(role).unwrap();
        cloud.client.tenant(tenant).api::<ClusterRole>().create(&role).await.unwrap();
    }
    let tenants = cloud.client.system().api::<Tenant>();
    tenants.delete("acme", &DeleteOptions::default()).await.unwrap();
    cloud
        .until("the tenant is gone", async || tenants.get_opt("acme").await.unwrap().is_none())
        .await;

    let all = ListOptions::default();
    let left = |items: usize, of: &str| assert_eq!(items, 0, "{of} of acme are left");
    let of_acme = |it: &insula_api::names::TenantName| it.as_str() == "acme";
    let maps = cloud.client.all().collection::<ConfigMap>().list_all(&all).await.unwrap();
    left(maps.iter().filter(|it| of_acme(&it.tenant)).count(), "config maps");
    let spaces = cloud.client.all().collection::<Namespace>().list_all(&all).await.unwrap();
    left(spaces.iter().filter(|it| of_acme(&it.tenant)).count(), "namespaces");
    let roles = cloud.client.all().collection::<ClusterRole>().list_all(&all).await.unwrap();
    left(roles.iter().filter(|it| of_acme(&it.tenant)).count(), "cluster roles");
    let bindings = cloud.client.all().collection::<ClusterRoleBinding>().list_all(&all).await;
    left(bindings.unwrap().iter().filter(|it| of_acme(&it.tenant)).count(), "bindings");

    assert!(maps.iter().any(|it| it.tenant == globex && it.name() == "c"));
    assert!(roles.iter().any(|it| it.tenant == globex && it.name() == "r"));
    let nodes = cloud.client.system().api::<Node>();
    assert!(nodes.get_opt("n1").await.unwrap().is_some(), "the fleet is untouched");

    // The name can be used again.
    cloud.tenant("acme").await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_to_join_with_vouch_and_end() {
    let cloud = Cloud::with_controllers(1).await;
    let acme = cloud.tenant("acme").await;
    let token = |id: &str| {
        json!({
            "metadata": {"name": format!("bootstrap-token-{id}")},
            "type": "bootstrap.kubernetes.io/token",
            "stringData": {
                "token-id": id, "token-secret": "0123456789abcdef",
                "usage-bootstrap-signing": "true",
            },
        })
    };
    cloud.create::<Secret>(&acme, "kube-system", token("aaaaaa")).await;
    cloud
        .until("what is published can be", async || {
            let namespaces = cloud.client.tenant(&acme).api::<Namespace>();
            namespaces.get_opt("kube-public").await.unwrap().is_some()
        })
        .await;
    let info = json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "content"}});
    cloud.create::<ConfigMap>(&acme, "kube-public", info).await;
    let maps = cloud.client.tenant(&acme).namespaced::<ConfigMap>("kube-public");
    let signers = async || -> Vec<String> {
        let data = maps.get("cluster-info").await.unwrap().object.data.unwrap();
        let keys =
            data.into_keys().filter_map(|it| it.strip_prefix("jws-kubeconfig-").map(str::to_owned));
        keys.collect()
    };
    cloud.until("it is signed", async || signers().await == ["aaaaaa"]).await;
    cloud.create::<Secret>(&acme, "kube-system", token("bbbbbb")).await;
    cloud.until("both sign it", async || signers().await == ["aaaaaa", "bbbbbb"]).await;
    let past = Patch::Merge(json!({"stringData": {"expiration": "2020-01-01T00:00:00Z"}}));
    let secrets = cloud.client.tenant(&acme).namespaced::<Secret>("kube-system");
    secrets.patch("bootstrap-token-bbbbbb", &past).await.unwrap();
    cloud.until("one has ended", async || signers().await == ["aaaaaa"]).await;
    let ended = async || secrets.get_opt("bootstrap-token-bbbbbb").await.unwrap().is_none();
    cloud.until("nobody can use it", ended).await;
    cloud.end().await;
}
