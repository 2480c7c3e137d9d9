//! What a tenant costs that nobody asks anything: its three namespaces and all that it begins with
//! take less than 20 KiB of a server's memory.
//!
//! Every allocation of the process is counted, so that nothing can hide; it is the only test of
//! its binary.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![allow(clippy::print_stderr, reason = "what was measured is worth knowing")]

#[path = "harness/counting.rs"]
mod counting;

use std::sync::Arc;

use bytes::Bytes;
use counting::held;
use futures::StreamExt as _;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use insula_api::names::TenantName;
use insula_apiserver::{
    Server,
    identity::{Identity, MASTERS},
    pki::Authority,
};
use insula_partition::{
    partitions::{Partitions, PartitionsConfig, StoreConfig},
    store::ReadAt,
};
use serde_json::{Value, json};

/// As it is promised, in bytes.
const LIMIT: usize = 20 << 10;
/// The namespaces that controllers make in each tenant.
const NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];

struct Cloud {
    server: Arc<Server>,
    partitions: Arc<Partitions>,
    root: String,
}

impl Cloud {
    async fn create(&self, uri: &str, body: &Value) {
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "test/1")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let caller = Identity::new(TenantName::system(), "test", &[MASTERS]);
        let response = self.server.handle_trusted(request, caller).await;
        let code = response.status();
        let said = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(code, 201, "{uri}: {}", String::from_utf8_lossy(&said));
    }

    /// A tenant as it is when its controllers have done what they do for each.
    async fn tenant(&self, name: &str) {
        let it =
            json!({"apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": name}});
        self.create("/apis/insula.io/v1/tenants", &it).await;
        let all = format!("/tenants/{name}/api/v1/namespaces");
        for namespace in NAMESPACES {
            let it =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            self.create(&all, &it).await;
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
            self.create(&format!("{all}/{namespace}/serviceaccounts"), &account).await;
            let root = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": {"ca.crt": self.root},
                "metadata": {"name": "kube-root-ca.crt", "annotations": {"kubernetes.io/description":
                    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."}},
            });
            self.create(&format!("{all}/{namespace}/configmaps"), &root).await;
        }
    }

    /// Many of them, so that they share flushes of the disk.
    async fn tenants(&self, name: &str, count: usize) {
        let made = futures::stream::iter(0..count);
        let made = made.for_each_concurrent(32, async |n| self.tenant(&format!("{name}{n}")).await);
        made.await;
    }

    /// What is held when history is forgotten, which is bounded for all tenants together.
    async fn held(&self) -> usize {
        for name in self.partitions.names() {
            let store = self.partitions.store(&name).unwrap();
            store.compact(store.progress()).await.unwrap();
        }
        held()
    }

    /// Objects, and bytes of them as they are stored, of one tenant.
    async fn stored(&self, tenant: &str) -> (usize, usize) {
        let (mut objects, mut bytes) = (0, 0);
        for name in self.partitions.names() {
            let store = self.partitions.store(&name).unwrap();
            for collection in store.collections().await.unwrap() {
                let all = store.read(&collection, ReadAt::Latest).await.unwrap();
                for (_, entry) in all.range(&format!("{tenant}/"), None) {
                    objects += 1;
                    bytes += entry.value.len();
                }
            }
        }
        (objects, bytes)
    }
}

#[tokio::test]
async fn an_idle_tenant_takes_less_than_20_kib() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        PartitionsConfig::alone(dir.path().join("data"), StoreConfig::Embedded { partitions: 1 });
    let partitions = Arc::new(Partitions::open(config).await.unwrap());
    let server = Server::alone_on(dir.path(), partitions.clone()).await.unwrap();
    let root = Authority::open_or_create(dir.path()).unwrap().certificate().to_owned();
    let cloud = Cloud { server, partitions, root };
    // What the first ones make the process hold for all is not theirs: memories of what was looked
    // at lately, which are bounded.
    cloud.tenants("first", 1000).await;
    let before = cloud.held().await;
    let count = 200;
    cloud.tenants("tenant", count).await;
    let each = (cloud.held().await - before) / count;
    let (objects, bytes) = cloud.stored("tenant7").await;
    eprintln!("a tenant: {objects} objects, {bytes} bytes stored, {each} bytes of memory");
    assert!(30 < objects, "{objects}: a tenant without what it begins with");
    assert!(each < LIMIT, "{each} bytes");
}
