//! The connection: where the API server is, who asks, and how one request is sent.

use std::{convert::Infallible, fmt, marker::PhantomData, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use insula_api::names::{ALL, TenantName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::{
    client::{Body, ClientBuilder, ConfigExt as _},
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use tower::{BoxError, Service, ServiceBuilder};

use crate::{
    Api, Collection, Discovery, Error, Follow, Kind, Object, ResourceRef,
    fence::{self, Fence},
    metrics,
    multiplexed::Link,
    path,
    said::{Said, Sent, as_sent},
};

/// No request but a watch takes longer: a little more than the server's own limit of 30 s for
/// webhooks, less than the 60 s after which it gives up.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(40);
const JSON: &str = "application/json";
/// One JSON document a line.
const LINES: &str = "application/x-ndjson";
/// The largest answer: several times a full page of the largest objects there can be.
const MAX_ANSWER: usize = 256 << 20;
/// How often a request that the server refused unread, for lack of room, is sent again.
const MAX_REFUSALS: u32 = 5;
/// The longest wait before a refused request is sent again.
const MAX_REFUSAL_DELAY: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot use kubeconfig {path}")]
    Kubeconfig {
        path: String,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("kubeconfig {path} names a server that is no address")]
    Server {
        path: String,
        #[source]
        source: http::Error,
    },
    #[error("cannot set up the connection")]
    Connection(#[source] Box<kube::Error>),
    #[error("{0:?} is not a user agent")]
    UserAgent(String),
}

/// Speaks to the API server as one user. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    ways: Arc<Ways>,
    user_agent: HeaderValue,
    timeout: Duration,
    has_tenants: bool,
}

/// How requests are sent.
struct Ways {
    usual: kube::Client,
    /// By which both sides can talk at once.
    both_ways: kube::Client,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("user_agent", &self.user_agent).finish_non_exhaustive()
    }
}

impl Ways {
    fn one(client: kube::Client) -> Self {
        Self { both_ways: client.clone(), usual: client }
    }
}

impl Client {
    /// Connects as the current context of a kubeconfig says.
    ///
    /// A tenant prefix in its `server:` is dropped: this client names the tenant per request.
    pub async fn from_kubeconfig(path: &Path, user_agent: &str) -> Result<Self, ClientError> {
        let user_agent = parse_user_agent(user_agent)?;
        let config = read_config(path).await?;
        let both_ways = multiplexed(&config)?;
        let usual = ClientBuilder::try_from(config)
            .map_err(|source| ClientError::Connection(Box::new(source)))?
            .build();
        Ok(Self::new(Ways { usual, both_ways }, user_agent))
    }

    /// The same with many requests on one connection, by HTTP/2: for who has many under way.
    ///
    /// Every call makes connections of its own, which are made again when they have ended.
    pub async fn multiplexed(path: &Path, user_agent: &str) -> Result<Self, ClientError> {
        let user_agent = parse_user_agent(user_agent)?;
        Ok(Self::new(Ways::one(multiplexed(&read_config(path).await?)?), user_agent))
    }

    /// The same client for a Kubernetes without tenants: request paths do not name one, and all
    /// that there is counts as that of `system`.
    pub fn without_tenants(&self) -> Self {
        Self { has_tenants: false, ..self.clone() }
    }

    /// Whether the server is one that has tenants.
    pub fn has_tenants(&self) -> bool {
        self.has_tenants
    }

    fn new(ways: Ways, user_agent: HeaderValue) -> Self {
        Self { ways: Arc::new(ways), user_agent, timeout: DEFAULT_TIMEOUT, has_tenants: true }
    }

    /// Hands requests to `service`, an API server in this process. Must be called inside a tokio
    /// runtime.
    ///
    /// The service decides whose requests these are.
    pub fn in_process<S, B>(service: S, user_agent: &str) -> Result<Self, ClientError>
    where
        S: Service<Request<Sent>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let user_agent = parse_user_agent(user_agent)?;
        let service = ServiceBuilder::new().map_request(as_sent).service(service);
        Ok(Self::new(Ways::one(kube::Client::new(service, "default")), user_agent))
    }

    /// The same client under another name, for example one per controller.
    pub fn with_user_agent(&self, user_agent: &str) -> Result<Self, ClientError> {
        Ok(Self { user_agent: parse_user_agent(user_agent)?, ..self.clone() })
    }

    /// The same client with another limit on how long a request but a watch may take.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The API of one tenant.
    pub fn tenant(&self, tenant: &TenantName) -> Scope {
        Scope { client: self.clone(), tenant: tenant.clone() }
    }

    /// The API of the platform's own tenant, which holds what all tenants share.
    pub fn system(&self) -> Scope {
        self.tenant(&TenantName::system())
    }

    /// All tenants at once, to read only. For users of tenant `system`.
    pub fn all(&self) -> AllTenants {
        AllTenants { client: self.clone() }
    }

    /// Begins to read what is at `path`, however large it is.
    pub async fn download(&self, path: &str) -> Result<Download, Error> {
        let request = describe(&Method::GET, path);
        let response = self.send(&Method::GET, path, "*/*", None).await?;
        Ok(Download { body: checked(response, &request).await?.into_body(), request })
    }

    /// Talks both ways, in lines: the answer begins while what is said goes on.
    ///
    /// All conversations of a client share a connection, which speaks HTTP/2.
    pub async fn converse<B>(&self, path: &str, said: B) -> Result<Follow, Error>
    where
        B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let request = describe(&Method::POST, path);
        let said = Some(Said::new(said));
        let response = self.send_with(&Method::POST, path, LINES, None, said).await?;
        Ok(Follow::new(checked(response, &request).await?.into_body(), request))
    }

    /// Reads the document at `path`, which is no resource.
    pub async fn document(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, JSON, None).await
    }

    /// Has done what a `POST` to `path` asks for, which is no resource; what it answers.
    pub async fn order(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::POST, path, JSON, None).await
    }

    /// Sends a request and decodes the answer, which must be a success.
    pub(crate) async fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<R, Error> {
        let bytes = self.fetch(&method, uri, accept, body).await?;
        serde_json::from_slice(&bytes)
            .map_err(|source| Error::Decode { request: describe(&method, uri), source })
    }

    /// Sends a request and reads the answer, which must be a success.
    pub(crate) async fn fetch(
        &self,
        method: &Method,
        uri: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Bytes, Error> {
        let request = describe(method, uri);
        // Named nowhere: it would lie in this future twice.
        tokio::time::timeout(self.timeout, async {
            read(self.exchange(method, uri, accept, body, &request).await?, &request).await
        })
        .await
        .unwrap_or_else(|_| Err(self.late(&request)))
    }

    /// Sends a request that must succeed, and whose answer says nothing more: however much of it
    /// there is, none is kept.
    pub(crate) async fn call_unread(
        &self,
        method: &Method,
        uri: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<(), Error> {
        let request = describe(method, uri);
        tokio::time::timeout(self.timeout, async {
            pass_over(self.exchange(method, uri, accept, body, &request).await?, &request).await
        })
        .await
        .unwrap_or_else(|_| Err(self.late(&request)))
    }

    fn late(&self, request: &str) -> Error {
        Error::Timeout { request: request.to_owned(), seconds: self.timeout.as_secs() }
    }

    /// Sends a request until the server has room for it; the answer is a success, not yet read.
    async fn exchange(
        &self,
        method: &Method,
        uri: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
        request: &str,
    ) -> Result<Response<Body>, Error> {
        let mut n_refusals = 0;
        loop {
            let response = self.send(method, uri, accept, body.clone()).await?;
            let Some(delay) = refusal_delay(&response, n_refusals) else {
                return checked(response, request).await;
            };
            n_refusals += 1;
            tracing::debug!(%request, ?delay, "refused for lack of room");
            tokio::time::sleep(delay).await;
        }
    }

    /// Sends a request; the answer is not yet read and may be a failure.
    pub(crate) async fn send(
        &self,
        method: &Method,
        uri: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response<Body>, Error> {
        self.send_with(method, uri, accept, body, None).await
    }

    /// As [`Client::send`], with something that is said bit by bit in place of a body.
    async fn send_with(
        &self,
        method: &Method,
        uri: &str,
        accept: &'static str,
        body: Option<(&'static str, Bytes)>,
        said: Option<Said>,
    ) -> Result<Response<Body>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(if self.has_tenants { uri } else { path::without_tenant(uri) })
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, &self.user_agent);
        if method != Method::GET
            && let Some(fence) = Fence::current()
        {
            request = request.header(fence::HEADER, fence.header());
        }
        let content = match body {
            Some((content_type, bytes)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                Body::from(bytes)
            }
            None => Body::empty(),
        };
        let mut client = &self.ways.usual;
        if let Some(said) = said {
            request = request.header(header::CONTENT_TYPE, LINES).extension(said);
            client = &self.ways.both_ways;
        }
        let request = request
            .body(content)
            .map_err(|source| Error::Request { request: describe(method, uri), source })?;
        let begun = Instant::now();
        let answer = client.send(request).await;
        metrics::sent(method, answer.as_ref().ok().map(Response::status), begun.elapsed());
        answer.map_err(|source| Error::Transport {
            request: describe(method, uri),
            source: Box::new(source),
        })
    }
}

/// All requests on one connection, which is made with the first of them.
fn multiplexed(config: &Config) -> Result<kube::Client, ClientError> {
    let connection = |source| ClientError::Connection(Box::new(source));
    let link = Link::new(config)
        .map_err(|source| ClientError::Connection(Box::new(kube::Error::Service(source))))?;
    let stack = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(connection)?)
        .layer(config.extra_headers_layer().map_err(connection)?)
        .map_err(BoxError::from)
        .map_request(as_sent)
        .service(link);
    Ok(kube::Client::new(stack, "default"))
}

/// What the current context of a kubeconfig says, without the tenant.
async fn read_config(path: &Path) -> Result<Config, ClientError> {
    let shown = || path.display().to_string();
    let kubeconfig = |source| ClientError::Kubeconfig { path: shown(), source: Box::new(source) };
    let file = Kubeconfig::read_from(path).map_err(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(kubeconfig)?;
    config.cluster_url = without_tenant(&config.cluster_url)
        .map_err(|source| ClientError::Server { path: shown(), source })?;
    // Which failures may be repeated is decided per request, below and by the caller.
    config.default_retry = false;
    Ok(config)
}

/// An answer that is read piece by piece.
#[derive(Debug)]
pub struct Download {
    body: Body,
    request: String,
}

impl Download {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                // Trailers say nothing here.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(source)) => {
                    let (request, limit) = (self.request.clone(), usize::MAX);
                    return Err(Error::Body { request, limit, source: Box::new(source) });
                }
            }
        }
    }
}

/// Turns an answer that is a failure into an error.
pub(crate) async fn checked(
    response: Response<Body>,
    request: &str,
) -> Result<Response<Body>, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(failure(status, &read(response, request).await?))
}

/// Reads an answer to its end.
pub(crate) async fn read(response: Response<Body>, request: &str) -> Result<Bytes, Error> {
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let collected = body.collect().await.map_err(|source| Error::Body {
        request: request.to_owned(),
        limit: MAX_ANSWER,
        source,
    })?;
    Ok(collected.to_bytes())
}

/// Reads an answer to its end and keeps nothing of it.
async fn pass_over(response: Response<Body>, request: &str) -> Result<(), Error> {
    let mut rest = Download { body: response.into_body(), request: request.to_owned() };
    while rest.next().await?.is_some() {}
    Ok(())
}

/// The error in an answer that is not a success. Proxies on the way may answer in any language.
pub(crate) fn failure(code: StatusCode, body: &[u8]) -> Error {
    let mut status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| Status {
        message: Some(String::from_utf8_lossy(body).chars().take(1000).collect()),
        ..Status::default()
    });
    status.code.get_or_insert_with(|| code.as_u16().into());
    Error::Api(Box::new(status))
}

/// How long to wait before sending again what the server refused before looking at it.
fn refusal_delay(response: &Response<Body>, n_refusals: u32) -> Option<Duration> {
    if response.status() != StatusCode::TOO_MANY_REQUESTS || n_refusals == MAX_REFUSALS {
        return None;
    }
    let after = response.headers().get(header::RETRY_AFTER)?;
    let delay = Duration::from_secs(after.to_str().ok()?.parse().ok()?);
    (delay <= MAX_REFUSAL_DELAY).then_some(delay)
}

pub(crate) fn describe(method: &Method, uri: &str) -> String {
    let path = uri.split_once('?').map_or(uri, |(path, _)| path);
    format!("{method} {path}")
}

fn parse_user_agent(text: &str) -> Result<HeaderValue, ClientError> {
    HeaderValue::from_str(text).map_err(|_| ClientError::UserAgent(text.to_owned()))
}

/// Cuts `/tenants/{t}` off the end of a server's address.
fn without_tenant(url: &http::Uri) -> Result<http::Uri, http::Error> {
    let path = url.path().trim_end_matches('/');
    let cut = match path.rsplit_once("/tenants/") {
        Some((before, tenant)) if !tenant.is_empty() && !tenant.contains('/') => before,
        _ => path,
    };
    let mut parts = url.clone().into_parts();
    parts.path_and_query = Some(if cut.is_empty() { "/" } else { cut }.parse()?);
    Ok(http::Uri::from_parts(parts)?)
}

/// The API of one tenant.
#[derive(Debug, Clone)]
pub struct Scope {
    client: Client,
    tenant: TenantName,
}

impl Scope {
    /// Objects of `K` that have no namespace, or those of all namespaces.
    pub fn api<K: Kind>(&self) -> Api<K> {
        self.resource(K::resource(), None)
    }

    /// Objects of `K` in one namespace.
    pub fn namespaced<K: Kind>(&self, namespace: &str) -> Api<K> {
        self.resource(K::resource(), Some(namespace))
    }

    /// Objects of a resource known only at run time, for example as [`crate::PartialObject`].
    pub fn resource<K: Object>(&self, resource: ResourceRef, namespace: Option<&str>) -> Api<K> {
        Api::new(Collection {
            client: self.client.clone(),
            tenant: self.tenant.as_str().into(),
            namespace: namespace.filter(|it| !it.is_empty()).map(Into::into),
            resource,
            object: PhantomData,
        })
    }

    /// What this tenant's API server offers.
    pub async fn discover(&self) -> Result<Discovery, Error> {
        Discovery::read(&self.client, self.tenant.as_str()).await
    }
}

/// All tenants at once, to read only.
#[derive(Debug, Clone)]
pub struct AllTenants {
    client: Client,
}

impl AllTenants {
    /// Objects of `K` of all tenants and namespaces.
    pub fn collection<K: Kind>(&self) -> Collection<K> {
        self.resource(K::resource())
    }

    /// Objects of a resource known only at run time, of all tenants and namespaces.
    pub fn resource<K: Object>(&self, resource: ResourceRef) -> Collection<K> {
        Collection {
            client: self.client.clone(),
            tenant: ALL.into(),
            namespace: None,
            resource,
            object: PhantomData,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: &str) {
        assert_eq!(without_tenant(&url.parse().unwrap()).unwrap().to_string(), expected);
    }

    #[test]
    fn the_tenant_prefix_is_dropped() {
        check("https://10.0.0.1:6443", "https://10.0.0.1:6443/");
        check("https://10.0.0.1:6443/tenants/acme", "https://10.0.0.1:6443/");
        check("https://10.0.0.1:6443/tenants/acme/", "https://10.0.0.1:6443/");
        check("https://gate/insula/tenants/acme", "https://gate/insula");
        check("https://gate/tenants", "https://gate/tenants");
    }

    #[test]
    fn a_failure_in_any_language_is_a_status() {
        let error = failure(StatusCode::BAD_GATEWAY, b"<html>no upstream</html>");
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            (Some(502), "<html>no upstream</html>")
        );
        let status = br#"{"kind":"Status","apiVersion":"v1","metadata":{},"reason":"NotFound","message":"gone","code":404}"#;
        let error = failure(StatusCode::NOT_FOUND, status);
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "gone");
    }
}
