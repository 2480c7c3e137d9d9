//! One look at one extension server: is its service there, has it endpoints, does it answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use insula_api::{names::TenantName, object};
use insula_partition::store::ReadAt;
use serde_json::{Value, json};

use super::super::{Api, Remote, ServiceReference, delegate, kept};
use crate::{
    Server,
    body::{Body, empty, full},
    custom::set_condition,
    error::{ApiError, Result},
    identity::{Identity, MASTERS},
    outbound::OutboundError,
    registry,
};

/// How long an extension server has to say that it is there.
const WITHIN: Duration = Duration::from_secs(5);
/// Who writes conditions.
const MANAGER: &str = "kube-apiserver";

/// What an object's condition is to say.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    is_available: bool,
    reason: &'static str,
    message: String,
}

impl Found {
    fn not(reason: &'static str, message: String) -> Self {
        Self { is_available: false, reason, message }
    }
}

/// Looks at an extension server and writes down what was found. Whether it is well.
pub(super) async fn check(server: &Server, tenant: &TenantName, name: &str) -> bool {
    let looked = async {
        let Some(api) = read(server, tenant, name).await? else { return Ok(true) };
        let Some(remote) = &api.remote else { return Ok(true) };
        let found = match of_service(server, tenant, &remote.service).await? {
            Some(found) => found,
            None => answers(server, &api, remote).await,
        };
        write(server, tenant, name, &found).await?;
        Ok::<_, ApiError>(found.is_available)
    };
    looked.await.unwrap_or_else(|error| {
        tracing::debug!(%tenant, name, %error, "an extension server could not be looked at");
        false
    })
}

/// After an object changed: writes down at once what can be known without asking anybody.
pub(crate) fn changed<'a>(
    server: &'a Server,
    tenant: &'a TenantName,
    name: &'a str,
) -> BoxFuture<'a, ()> {
    changed_now(server, tenant, name).boxed()
}

async fn changed_now(server: &Server, tenant: &TenantName, name: &str) {
    let looked = async {
        let Some(api) = read(server, tenant, name).await? else { return Ok(()) };
        let Some(remote) = &api.remote else { return Ok(()) };
        match of_service(server, tenant, &remote.service).await? {
            Some(found) => write(server, tenant, name, &found).await,
            None => Ok(()),
        }
    };
    if let Err(error) = looked.await {
        tracing::debug!(%tenant, name, %error, "an extension server is looked at later");
    }
}

async fn read(server: &Server, tenant: &TenantName, name: &str) -> Result<Option<Arc<Api>>> {
    let known = server.aggregation.of(server, tenant).await?;
    Ok(known.services.get(name).cloned())
}

/// What is wrong with the service, if anything is.
async fn of_service(
    server: &Server,
    tenant: &TenantName,
    wanted: &ServiceReference,
) -> Result<Option<Found>> {
    let ServiceReference { namespace, name, port } = wanted;
    let service = server.find(tenant, "", "services", namespace, name).await?;
    let Some(service) = service else {
        let message = format!("service/{name} in {namespace:?} is not present");
        return Ok(Some(Found::not("ServiceNotFound", message)));
    };
    if !matches!(object::text(&service, &["spec", "type"]), "" | "ClusterIP") {
        return Ok(None);
    }
    let ports = service["spec"]["ports"].as_array();
    let Some(found) = ports.and_then(|it| it.iter().find(|it| it["port"] == *port)) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Ok(Some(Found::not("ServicePortError", message)));
    };
    let port_name = object::text(found, &["name"]);
    match server.service_addresses(tenant, namespace, name, &port.to_string()).await {
        Ok(_) => Ok(None),
        Err(OutboundError::NoEndpoints(_)) => {
            let (reason, message) = match has_slices(server, tenant, namespace, name).await? {
                false => (
                    "EndpointsNotFound",
                    format!("cannot find endpointslices for service/{name} in {namespace:?}"),
                ),
                true => (
                    "MissingEndpoints",
                    format!(
                        "endpointslices for service/{name} in {namespace:?} have no addresses \
                         with port name {port_name:?}"
                    ),
                ),
            };
            Ok(Some(Found::not(reason, message)))
        }
        Err(error) => {
            let message =
                format!("service/{name} in {namespace:?} cannot be checked due to: {error}");
            Ok(Some(Found::not("EndpointsAccessError", message)))
        }
    }
}

/// Whether anything says where a service is.
async fn has_slices(
    server: &Server,
    tenant: &TenantName,
    namespace: &str,
    service: &str,
) -> Result<bool> {
    if server.find(tenant, "", "endpoints", namespace, service).await?.is_some() {
        return Ok(true);
    }
    let served = server.registry.any_version("discovery.k8s.io", "endpointslices");
    let served = served.ok_or_else(ApiError::unknown_resource)?;
    let (_, store) = served.place(&server.partitions, tenant, namespace, "");
    let snapshot = store.read(&served.collection, ReadAt::Latest).await?;
    let prefix = registry::key(tenant, namespace, "");
    let mut slices = snapshot.range(&prefix, None);
    Ok(slices.any(|(_, entry)| {
        object::parse(&entry.value.bytes()).is_ok_and(|it| {
            let labels = object::metadata(&it).get("labels");
            labels.and_then(|it| it.get("kubernetes.io/service-name")).and_then(Value::as_str)
                == Some(service)
        })
    }))
}

/// Whether the extension server says that it has its group version.
async fn answers(server: &Server, api: &Api, remote: &Remote) -> Found {
    let path = format!("/apis/{}/{}", api.group, api.version);
    let failed = |why: String| Found::not("FailedDiscoveryCheck", why);
    let place = match server.resolve(&api.tenant, remote.destination(&path)).await {
        Ok(place) => place,
        Err(error) => return failed(error.to_string()),
    };
    let address = place.addresses.first().cloned().unwrap_or_default();
    let url = format!("https://{address}{path}");
    let bad = |why: String| failed(format!("failing or missing response from {url}: {why}"));
    let get = async {
        let trust = remote.trust(server, &api.tenant).await?;
        let mut request = Request::new(empty());
        *request.uri_mut() = path.parse().map_err(|_| OutboundError::Url)?;
        request
            .headers_mut()
            .extend(delegate::headers_of(&delegate::ourselves()).ok_or(OutboundError::Url)?);
        let answer = server.send_outbound(&api.tenant, &place, &trust, request).await?;
        Ok::<_, OutboundError>(answer.status())
    };
    match tokio::time::timeout(WITHIN, get).await {
        Ok(Ok(code)) if code.is_success() => {
            Found { is_available: true, reason: "Passed", message: "all checks passed".into() }
        }
        Ok(Ok(code)) => bad(format!("bad status from {url}: {}", code.as_u16())),
        Ok(Err(error)) => bad(format!("Get {url:?}: {error}")),
        Err(_) => bad(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

/// A request of this server to itself.
fn ask(
    server: Arc<Server>,
    request: Request<Body>,
    by: Identity,
) -> BoxFuture<'static, Response<Body>> {
    async move { server.handle_trusted(request, by).await }.boxed()
}

/// Has the object say what was found, through the gate, unless it does.
async fn write(server: &Server, tenant: &TenantName, name: &str, found: &Found) -> Result<()> {
    let (collection, store) = kept(server, tenant)?;
    let key = registry::key(tenant, "", name);
    let snapshot =
        insula_partition::store::Store::read(&store, &collection, ReadAt::Latest).await?;
    let Some(entry) = snapshot.get(&key) else { return Ok(()) };
    let mut it: Value = serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
    let mut status = it.get("status").cloned().unwrap_or_else(|| json!({}));
    let value = if found.is_available { "True" } else { "False" };
    set_condition(&mut status, "Available", value, found.reason, &found.message);
    if it.get("status") == Some(&status) {
        return Ok(());
    }
    it["status"] = status;
    let uri = format!(
        "/tenants/{tenant}/apis/apiregistration.k8s.io/v1/apiservices/{name}/status?fieldManager={MANAGER}"
    );
    let request = Request::put(uri)
        .header(header::CONTENT_TYPE, "application/json")
        .body(full(Bytes::from(it.to_string())))
        .map_err(ApiError::internal)?;
    let by = Identity::new(TenantName::system(), "system:apiserver", &[MASTERS]);
    let Some(server) = server.myself() else { return Ok(()) };
    let answer = ask(server, request, by).await;
    let code = answer.status();
    let body = answer.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    // Whoever changed it meanwhile has it looked at again.
    match code.is_success() || code == http::StatusCode::CONFLICT {
        true => Ok(()),
        false => Err(ApiError::internal(format!(
            "the condition of {name} is not written: {}",
            String::from_utf8_lossy(&body.unwrap_or_default())
        ))),
    }
}
