//! What is tested: an API server and several connections to it.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode};
use insula_client::{Answer, Client, ClientError, Error, chain};
use serde_json::Value;

use crate::LoadError;

const AGENT: &str = "insula-loadtest";
/// How long the target may take to answer the first request.
const FIRST: Duration = Duration::from_secs(15);
const TENANTS: &str = "/apis/insula.io/v1/tenants";

/// See the module.
#[derive(Debug)]
pub(crate) struct Target {
    connections: Vec<Client>,
    next: AtomicUsize,
    /// For what is not measured: making places, following pods, cleaning up.
    control: Client,
    /// What `/version` says.
    pub(crate) version: Value,
    /// Whether it has tenants that we may make.
    pub(crate) has_tenants: bool,
}

/// How a kind is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    /// `/api/v1` or `/apis/apps/v1`.
    pub(crate) base: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
}

impl Target {
    /// Connects, and asks what there is.
    pub(crate) async fn connect(
        kubeconfig: &Path,
        n_connections: usize,
        timeout: Duration,
        tenants: bool,
    ) -> Result<Self, LoadError> {
        let connect = async || -> Result<Client, ClientError> {
            Ok(Client::multiplexed(kubeconfig, AGENT).await?.with_timeout(timeout))
        };
        let control = connect().await?;
        let mut connections = Vec::new();
        for _ in 0..n_connections.max(1) {
            connections.push(connect().await?);
        }
        let first = control.with_timeout(FIRST);
        let version = first.ask(&Method::GET, "/version", None).await.map_err(refused)?;
        if let Some(error) = version.error() {
            return Err(refused(error));
        }
        let version = serde_json::from_slice(&version.body).unwrap_or_default();
        let has_tenants = tenants && {
            let page = format!("{TENANTS}?limit=1");
            let answer = first.ask(&Method::GET, &page, None).await.map_err(refused)?;
            match answer.code {
                code if code.is_success() => true,
                StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => false,
                _ => return Err(answer.error().map_or(LoadError::NoAnswer, refused)),
            }
        };
        Ok(Self { connections, next: AtomicUsize::new(0), control, version, has_tenants })
    }

    /// The next connection, in turn.
    pub(crate) fn connection(&self) -> &Client {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections.get(turn % self.connections.len()).unwrap_or(&self.control)
    }

    pub(crate) fn n_connections(&self) -> usize {
        self.connections.len()
    }

    /// The connection for what is not measured.
    pub(crate) fn control(&self) -> &Client {
        &self.control
    }

    /// Sends what is not measured; an answer that is no success is an error.
    pub(crate) async fn order(
        &self,
        method: Method,
        path: &str,
        content: Option<(&'static str, Bytes)>,
    ) -> Result<Answer, Error> {
        let answer = self.control.ask(&method, path, content).await?;
        match answer.error() {
            Some(error) => Err(error),
            None => Ok(answer),
        }
    }

    /// Reads a document.
    pub(crate) async fn read(&self, path: &str) -> Result<Value, Error> {
        let answer = self.order(Method::GET, path, None).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|source| Error::Decode { request: format!("GET {path}"), source })
    }

    /// The path of all nodes.
    pub(crate) fn nodes(&self) -> &'static str {
        match self.has_tenants {
            true => "/tenants/system/api/v1/nodes",
            false => "/api/v1/nodes",
        }
    }

    /// How the kind of a template is served.
    pub(crate) async fn resource(&self, template: &Value) -> Result<Resource, LoadError> {
        let text = |field: &str| template[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let base = match version.contains('/') {
            true => format!("/apis/{version}"),
            false => format!("/api/{version}"),
        };
        let unknown = || LoadError::Kind { kind: kind.clone(), version: version.clone() };
        let document = match self.read(&base).await {
            Err(error) if error.is_not_found() => return Err(unknown()),
            read => read.map_err(refused)?,
        };
        let served = document["resources"].as_array().into_iter().flatten().find(|it| {
            it["kind"] == kind.as_str()
                && it["name"].as_str().is_some_and(|name| !name.contains('/'))
        });
        let served = served.ok_or_else(unknown)?;
        let plural = served["name"].as_str().unwrap_or_default().to_owned();
        Ok(Resource { base, plural, namespaced: served["namespaced"] == true })
    }
}

/// The beginning of all paths of a tenant; none without tenants.
pub(crate) fn prefix(tenant: Option<&str>) -> String {
    tenant.map_or_else(String::new, |tenant| format!("/tenants/{tenant}"))
}

/// What to do about a target that does not let us in.
fn refused(error: Error) -> LoadError {
    let advice = match error.code() {
        Some(401) => {
            "the kubeconfig's credentials are not accepted: were they made for this server?"
        }
        Some(403) => "the kubeconfig's user may not do this: use one who administers the cluster",
        Some(429) => "the server has no room: try again later",
        Some(_) => "is the address in the kubeconfig that of a Kubernetes API?",
        None => "is the server running, at the address in the kubeconfig, and reachable from here?",
    };
    LoadError::Refused { what: chain(&error).to_string(), advice }
}
