//! What a definition costs the second tenant that has it: hardly anything.
//!
//! Every allocation of the process is counted, so that nothing can hide; it is the only test of
//! its binary.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![allow(clippy::print_stderr, reason = "what was measured is worth knowing")]

#[path = "harness/counting.rs"]
mod counting;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use counting::held;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use insula_api::names::TenantName;
use insula_apiserver::{
    Server,
    identity::{Identity, MASTERS},
};
use serde_json::{Map, Value, json};

struct Client(Arc<Server>);

impl Client {
    async fn ask(&self, method: Method, uri: &str, body: Option<&Value>) -> (StatusCode, Bytes) {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, "test/1")
            .body(Full::new(body.map(|it| Bytes::from(it.to_string())).unwrap_or_default()))
            .unwrap();
        let caller = Identity::new(TenantName::system(), "test", &[MASTERS]);
        let response = self.0.handle_trusted(request, caller).await;
        let code = response.status();
        (code, response.into_body().collect().await.unwrap().to_bytes())
    }

    async fn create(&self, uri: &str, body: &Value) {
        let (code, said) = self.ask(Method::POST, uri, Some(body)).await;
        assert_eq!(code, 201, "{}", String::from_utf8_lossy(&said));
    }

    /// Asks until the answer is as wanted.
    async fn until(&self, uri: &str, wanted: impl Fn(StatusCode, &[u8]) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let (code, said) = self.ask(Method::GET, uri, None).await;
            if wanted(code, &said) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{uri}: {code}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Defines a kind in a tenant and uses it in every way; what that made the process hold.
    async fn define(&self, tenant: &str, definition: &Value) -> usize {
        let before = held();
        let base = format!("/tenants/{tenant}");
        let group = definition["spec"]["group"].as_str().unwrap();
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap();
        let all = format!("{base}/apis/apiextensions.k8s.io/v1/customresourcedefinitions");
        self.create(&all, definition).await;
        let name = definition["metadata"]["name"].as_str().unwrap();
        let is_established = |code: StatusCode, said: &[u8]| {
            let it: Value = serde_json::from_slice(said).unwrap_or_default();
            let conditions = it["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is = |it: &Value| it["type"] == "Established" && it["status"] == "True";
            code == 200 && conditions.iter().any(is)
        };
        self.until(&format!("{all}/{name}"), is_established).await;
        // What clients know it by is there at once, and within a second at the latest.
        let has = |text: String| {
            move |code: StatusCode, said: &[u8]| {
                code == 200 && String::from_utf8_lossy(said).contains(&text)
            }
        };
        for (uri, text) in [
            (format!("{base}/apis"), group.to_owned()),
            (format!("{base}/apis/{group}/v1"), plural.to_owned()),
            (format!("{base}/openapi/v3"), format!("apis/{group}/v1")),
            (format!("{base}/openapi/v3/apis/{group}/v1"), plural.to_owned()),
            (format!("{base}/openapi/v2"), plural.to_owned()),
        ] {
            let took = self.until(&uri, has(text)).await;
            assert!(took < Duration::from_secs(5), "{uri}: {took:?}");
        }
        let objects = format!("{base}/apis/{group}/v1/{plural}");
        self.until(&objects, |code, _| code == 200).await;
        held().saturating_sub(before)
    }
}

/// A definition whose schema has about `size` bytes: structures in structures, with all that
/// schemas of real kinds have.
fn definition(kind: &str, size: usize) -> Value {
    let mut fields = Map::new();
    let mut written = 0;
    for n in 0.. {
        let described = |what: &str| {
            format!(
                "What the {what} of part {n} of a {kind} is made of, and what becomes of it when it is left out."
            )
        };
        let part = json!({
            "type": "object", "description": described("whole"), "required": ["name", "ports"],
            "properties": {
                "name": {"type": "string", "description": described("name"), "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
                "mode": {"type": "string", "description": described("mode"), "enum": ["Always", "IfNotPresent", "Never"], "default": "Always"},
                "count": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000, "description": described("count")},
                "amount": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "description": described("amount")},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}, "description": described("labels")},
                "ports": {"type": "array", "description": described("ports"), "maxItems": 16,
                    "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                    "items": {"type": "object", "required": ["port"], "properties": {
                        "port": {"type": "integer", "description": described("port")},
                        "protocol": {"type": "string", "default": "TCP", "description": described("protocol")}}}},
                "inner": {"type": "object", "description": described("inside"), "properties": {
                    "selector": {"type": "object", "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}}},
                    "items": {"type": "array", "items": {"type": "string"}, "description": described("items")}}},
            },
        });
        written += part.to_string().len();
        fields.insert(format!("part{n}"), part);
        if size <= written {
            break;
        }
    }
    let plural = format!("{}s", kind.to_lowercase());
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {
            "group": "example.com", "scope": "Cluster",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": fields}}}}}],
        },
    })
}

#[tokio::test]
async fn the_second_tenant_pays_hardly_anything() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client(Server::alone(dir.path()).await.unwrap());
    for tenant in ["acme", "globex"] {
        let it =
            json!({"apiVersion": "insula.io/v1", "kind": "Tenant", "metadata": {"name": tenant}});
        client.create("/apis/insula.io/v1/tenants", &it).await;
        // What each tenant has of its own is there before anything is measured.
        client.define(tenant, &definition("Small", 1)).await;
    }
    let large = definition("Large", 200_000);
    let text = large.to_string().len();
    let first = client.define("acme", &large).await;
    let second = client.define("globex", &large).await;
    eprintln!("text {text}, first {first}, second {second}");
    // Twice its text, as it is and as it was before its status was written, is packed.
    assert!(second * 20 < first, "first {first}, second {second}");
}
