//! Controllers as a process of their own: by kubeconfig, over TLS, across a restart of the server.

#![allow(clippy::unwrap_used, reason = "a failure fails the test")]

mod cloud;

use std::{net::SocketAddr, path::Path, time::Duration};

use base64::Engine as _;
use insula_api::names::TenantName;
use insula_apiserver::{Tls, identity::MASTERS};
use insula_client::{Client, Informer, ObjectKey, Tenant};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, ServiceAccount},
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::cloud::{Backend, run_pods};

/// Serves `backend` until it ends.
async fn serve(backend: &Backend, address: SocketAddr) -> tokio::task::JoinHandle<()> {
    // The port of the server before may not be free at once.
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let loopback = ["127.0.0.1".parse().unwrap()];
    let pair = backend.authority.server("server", &["localhost"], &loopback).unwrap();
    let tls = Tls::new(backend.authority.certificate(), &pair).unwrap();
    tokio::spawn(backend.server.clone().serve(listener, tls))
}

fn write_kubeconfig(backend: &Backend, address: SocketAddr, path: &Path) {
    let pair = backend.authority.client(&TenantName::system(), "admin", &[MASTERS]).unwrap();
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let config = json!({
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://{address}/tenants/system"),
            "certificate-authority-data": encode(backend.authority.certificate()),
        }}],
        "users": [{"name": "u", "user": {
            "client-certificate-data": encode(&pair.certificate),
            "client-key-data": encode(&pair.key),
        }}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    std::fs::write(path, config.to_string()).unwrap();
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..3000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never true: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_outlive_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start(directory.path(), 2).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let serving = serve(&backend, address).await;
    let path = directory.path().join("kubeconfig");
    write_kubeconfig(&backend, address, &path);
    let client = Client::from_kubeconfig(&path, "remote-test").await.unwrap();

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let config = insula_controllers::Config::new("the root of trust");
    tasks.spawn(insula_controllers::run(config, client.clone(), stop.clone()));
    run_pods(&client, &tasks, &stop);
    let maps: Informer<ConfigMap> =
        Informer::builder(client.all().collection()).start(&tasks, stop.clone());

    let acme = TenantName::parse("acme").unwrap();
    let mut tenant = Tenant::default();
    tenant.metadata.name = Some("acme".to_owned());
    client.system().api::<Tenant>().create(&tenant).await.unwrap();
    let accounts = client.tenant(&acme).namespaced::<ServiceAccount>("default");
    until("the account is there", async || accounts.get_opt("default").await.unwrap().is_some())
        .await;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    let deployments = client.tenant(&acme).namespaced::<Deployment>("default");
    deployments.create(&serde_json::from_value(deployment).unwrap()).await.unwrap();
    let pods = client.tenant(&acme).namespaced::<Pod>("default");
    let n_pods = async || pods.list(&Default::default()).await.map_or(0, |page| page.items.len());
    until("two pods", async || n_pods().await == 2).await;

    backend.end().await;
    serving.await.unwrap();
    let backend = Backend::start(directory.path(), 2).await;
    let serving = serve(&backend, address).await;

    let mut map = ConfigMap::default();
    map.metadata.name = Some("after".to_owned());
    let api = client.tenant(&acme).namespaced::<ConfigMap>("default");
    until("the server answers", async || api.create(&map).await.is_ok()).await;
    let key = ObjectKey::new(&acme, "default", "after");
    until("the informer follows", async || maps.get(&key).is_some()).await;
    let scale = insula_client::Patch::Merge(json!({"spec": {"replicas": 5}}));
    deployments.patch("web", &scale).await.unwrap();
    until("five pods", async || n_pods().await == 5).await;

    stop.cancel();
    tasks.close();
    tokio::time::timeout(Duration::from_secs(120), tasks.wait()).await.unwrap();
    backend.end().await;
    serving.await.unwrap();
}
