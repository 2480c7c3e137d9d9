//! One API server in this process, with a store of its own, asked request by request.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full};
use insula_api::names::TenantName;
use insula_apiserver::{
    Server,
    identity::{Identity, MASTERS},
};
use serde_json::Value;

pub(crate) const APPLY: &str = "application/apply-patch+yaml";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(crate) const JSON: &str = "application/json";
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// See the module.
pub(crate) struct Api {
    pub(crate) server: Arc<Server>,
    _dir: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
}

impl Api {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::alone(dir.path()).await.unwrap();
        Self { server, _dir: dir }
    }

    /// A server that the caller has made, whose data lie in `dir`.
    pub(crate) fn on(server: Arc<Server>, dir: tempfile::TempDir) -> Self {
        Self { server, _dir: dir }
    }

    /// Sends a request as the platform's superuser.
    pub(crate) async fn ask(
        &self,
        method: Method,
        uri: &str,
        headers: &[(header::HeaderName, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::USER_AGENT, "tester/v1 (linux)");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let caller = Identity::new(TenantName::system(), "tester", &[MASTERS]);
        let response = self.server.handle_trusted(request, caller).await;
        let code = response.status().as_u16();
        let warnings = response.headers().get_all(header::WARNING).iter();
        let warnings = warnings.map(|it| it.to_str().unwrap().to_owned()).collect();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { code, body: serde_json::from_slice(&body).unwrap(), warnings }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        uri: &str,
        kind: &str,
        body: &str,
    ) -> (u16, Value) {
        let it = self.ask(method, uri, &[(header::CONTENT_TYPE, kind)], body).await;
        (it.code, it.body)
    }

    pub(crate) async fn post(&self, uri: &str, body: &Value) -> (u16, Value) {
        self.send(Method::POST, uri, JSON, &body.to_string()).await
    }

    pub(crate) async fn put(&self, uri: &str, body: &Value) -> (u16, Value) {
        self.send(Method::PUT, uri, JSON, &body.to_string()).await
    }

    pub(crate) async fn patch(&self, uri: &str, kind: &str, body: &Value) -> (u16, Value) {
        self.send(Method::PATCH, uri, kind, &body.to_string()).await
    }

    pub(crate) async fn delete(&self, uri: &str) -> (u16, Value) {
        self.send(Method::DELETE, uri, JSON, "").await
    }

    pub(crate) async fn apply(&self, uri: &str, manager: &str, body: &Value) -> (u16, Value) {
        self.patch(&format!("{uri}?fieldManager={manager}"), APPLY, body).await
    }

    /// What has to be there.
    pub(crate) async fn get(&self, uri: &str) -> Value {
        let (code, it) = self.send(Method::GET, uri, JSON, "").await;
        assert_eq!(code, 200, "{it}");
        it
    }

    /// Creates what has to be accepted.
    pub(crate) async fn make(&self, uri: &str, body: &Value) -> Value {
        let (code, it) = self.post(uri, body).await;
        assert_eq!(code, 201, "{it}");
        it
    }

    /// The cells of the rows of a table.
    pub(crate) async fn rows(&self, uri: &str) -> Vec<Value> {
        let it = self.ask(Method::GET, uri, &[(header::ACCEPT, TABLE)], "").await;
        assert_eq!(it.code, 200, "{}", it.body);
        it.body["rows"].as_array().unwrap().iter().map(|row| row["cells"].clone()).collect()
    }
}
