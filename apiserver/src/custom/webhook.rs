//! Conversion between versions by a webhook that a tenant runs.
//!
//! A tenant decides where the server connects to, so it is bounded whom it can reach, how long
//! it may take and how much it may answer: only TLS with a certificate that the definition (or
//! the machine) trusts, no address that means this host or its link, no certificate of ours.
//!
//! What a webhook may change is the object but not who it is: of the metadata it answers with,
//! labels and annotations count.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use insula_api::{names::TenantName, object};
use insula_custom::definition::{ClientConfig, ServiceReference, Webhook};
use rustls::{ClientConfig as TlsConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    Server,
    custom::compiled::Custom,
    error::{ApiError, Result, chain},
};

/// How long a webhook may take, with all connecting.
const WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to connect to one address.
const CONNECT: Duration = Duration::from_secs(5);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Most objects of one request.
const BATCH: usize = 500;
/// Version of `ConversionReview` that is spoken, best first.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// Why a webhook did not convert.
#[derive(Debug, thiserror::Error)]
enum WebhookError {
    #[error("{0}")]
    Refused(String),
    #[error("cannot reach {at}")]
    Unreachable {
        at: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{at} is not an address that a tenant's webhook may have")]
    Forbidden { at: String },
    #[error("no answer within {} s", WITHIN.as_secs())]
    Late,
}

fn refused(why: impl Into<String>) -> WebhookError {
    WebhookError::Refused(why.into())
}

/// Where a webhook is: what its certificate has to be for, and where to connect.
struct Place {
    host: String,
    /// To connect to; the host and port, if they are not looked up elsewhere.
    addresses: Vec<String>,
    path: String,
}

#[derive(Deserialize)]
struct Review {
    response: Option<Response>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Response {
    uid: String,
    converted_objects: Vec<Value>,
    result: Outcome,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Outcome {
    status: String,
    message: String,
}

impl Server {
    /// Has a webhook convert objects of one tenant to `api_version`.
    pub(super) async fn convert(
        &self,
        custom: &Custom,
        webhook: &Webhook,
        objects: &[Value],
        api_version: &str,
    ) -> Result<Vec<Value>> {
        let mut converted = Vec::with_capacity(objects.len());
        for batch in objects.chunks(BATCH) {
            let asked = self.ask_webhook(webhook, batch, api_version);
            let answered = tokio::time::timeout(WITHIN, asked).await;
            let made = match answered.unwrap_or(Err(WebhookError::Late)) {
                Ok(made) => made,
                Err(error) => {
                    let resource = &custom.version.resource;
                    let (group, version) = (&resource.group, &resource.version);
                    let kind = format!("{group}/{version}, Kind={}", resource.kind);
                    let why = chain(&error);
                    return Err(ApiError::internal(format!(
                        "conversion webhook for {kind} failed: {why}"
                    )));
                }
            };
            converted.extend(made);
        }
        Ok(converted)
    }

    async fn ask_webhook(
        &self,
        webhook: &Webhook,
        objects: &[Value],
        api_version: &str,
    ) -> Result<Vec<Value>, WebhookError> {
        let known = |it: &&&str| webhook.conversion_review_versions.iter().any(|have| have == **it);
        let review = REVIEWS.iter().find(known).ok_or_else(|| {
            refused("the definition accepts no version of ConversionReview that is known here")
        })?;
        let review = format!("apiextensions.k8s.io/{review}");
        let uid = uuid::Uuid::new_v4().to_string();
        let body = json!({
            "kind": "ConversionReview", "apiVersion": review,
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
        });
        let tenant = objects.first().map(|it| object::meta_str(it, "tenant")).unwrap_or_default();
        let tenant = TenantName::parse(tenant).map_err(|error| refused(error.to_string()))?;
        let place = self.place_of(&tenant, &webhook.client_config).await?;
        let answer = post(&place, &webhook.client_config, &tenant, body.to_string().into()).await?;
        let answer: Review = serde_json::from_slice(&answer)
            .map_err(|error| refused(format!("the answer is no ConversionReview: {error}")))?;
        let response = answer.response.ok_or_else(|| refused("no response provided"))?;
        if response.uid != uid {
            let found = response.uid.chars().take(64).collect::<String>();
            return Err(refused(format!("expected response.uid={uid:?}, got {found:?}")));
        }
        if response.result.status != "Success" {
            let why = match response.result.message.as_str() {
                "" => format!(
                    "response.result.status was '{}', not 'Success'",
                    response.result.status
                ),
                message => message.chars().take(1024).collect(),
            };
            return Err(refused(why));
        }
        let (found, wanted) = (response.converted_objects.len(), objects.len());
        if found != wanted {
            return Err(refused(format!("returned {found} objects, expected {wanted}")));
        }
        let pairs = objects.iter().zip(response.converted_objects);
        pairs.map(|(old, new)| same_object(old, new, api_version)).collect()
    }

    /// Where the webhook of a tenant is.
    async fn place_of(
        &self,
        tenant: &TenantName,
        config: &ClientConfig,
    ) -> Result<Place, WebhookError> {
        if let Some(service) = &config.service {
            return self.place_of_service(tenant, service).await;
        }
        let url: Uri = config
            .url
            .as_deref()
            .unwrap_or_default()
            .parse()
            .map_err(|_| refused("the webhook's URL cannot be read"))?;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(443);
        let address =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Place { host, addresses: vec![address], path: url.path().to_owned() })
    }

    async fn place_of_service(
        &self,
        tenant: &TenantName,
        service: &ServiceReference,
    ) -> Result<Place, WebhookError> {
        let (namespace, name) = (service.namespace.as_str(), service.name.as_str());
        let failed = |error: ApiError| refused(error.message);
        let shown = format!("service {namespace}/{name}");
        let found = self.find(tenant, "", "services", namespace, name).await.map_err(failed)?;
        let found = found.ok_or_else(|| refused(format!("{shown} was not found")))?;
        let port = service.port.unwrap_or(443);
        let ports = found["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let of_port = ports.iter().find(|it| it["port"] == port);
        let external = object::text(&found, &["spec", "externalName"]);
        let endpoints =
            self.find(tenant, "", "endpoints", namespace, name).await.map_err(failed)?;
        let mut addresses = Vec::new();
        if object::text(&found, &["spec", "type"]) == "ExternalName" {
            addresses.push(format!("{external}:{port}"));
        } else if let Some(of_port) = of_port {
            let named = of_port.get("name").cloned().unwrap_or(Value::Null);
            let subsets = endpoints.as_ref().and_then(|it| it.get("subsets")?.as_array());
            for subset in subsets.into_iter().flatten() {
                let ports = subset["ports"].as_array().into_iter().flatten();
                let target = ports
                    .filter(|it| it.get("name").cloned().unwrap_or(Value::Null) == named)
                    .find_map(|it| it["port"].as_u64());
                let hosts = subset["addresses"].as_array().into_iter().flatten();
                let hosts = hosts.filter_map(|it| it["ip"].as_str());
                if let Some(target) = target {
                    addresses.extend(hosts.map(|host| match host.contains(':') {
                        true => format!("[{host}]:{target}"),
                        false => format!("{host}:{target}"),
                    }));
                }
            }
        } else {
            return Err(refused(format!("no service port {port} found for {shown}")));
        }
        if addresses.is_empty() {
            return Err(refused(format!("no endpoints available for {shown}")));
        }
        let path = service.path.clone().unwrap_or_else(|| "/".into());
        Ok(Place { host: format!("{name}.{namespace}.svc"), addresses, path })
    }
}

/// Who may be reached for a tenant: not this host, nor what only this link can reach.
fn is_open(tenant: &TenantName, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_local = match ip {
        IpAddr::V4(it) => it.is_link_local() || it.is_broadcast(),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    };
    tenant.is_system()
        || !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_local)
}

async fn post(
    place: &Place,
    config: &ClientConfig,
    tenant: &TenantName,
    body: Bytes,
) -> Result<Bytes, WebhookError> {
    let stream = connect(place, tenant).await?;
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| {
        WebhookError::Unreachable { at: place.host.clone(), source }
    };
    let name =
        ServerName::try_from(place.host.clone()).map_err(|error| unreachable(error.into()))?;
    let tls = TlsConnector::from(tls(config.ca_bundle.as_deref())?);
    let stream = tls.connect(name, stream).await.map_err(|error| unreachable(error.into()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(error.into()))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(&place.path)
        .header(header::HOST, &place.host)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(body))
        .map_err(|error| unreachable(error.into()))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|it| unreachable(it.into()))?;
        if !answer.status().is_success() {
            return Err(refused(format!("the webhook answered {}", answer.status())));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok(body.map_err(unreachable)?.to_bytes())
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // However it ended: the answer may have come before, and else the exchange says why not.
        _ = connection => exchange.await,
    }
}

/// Connects to the first address that takes it.
async fn connect(place: &Place, tenant: &TenantName) -> Result<TcpStream, WebhookError> {
    let mut failed = None;
    for address in &place.addresses {
        let found: Vec<SocketAddr> = match tokio::net::lookup_host(address).await {
            Ok(found) => found.collect(),
            Err(error) => {
                failed =
                    Some(WebhookError::Unreachable { at: address.clone(), source: error.into() });
                continue;
            }
        };
        for at in found {
            // What was looked up is what is connected to: no second look at the name.
            if !is_open(tenant, at.ip()) {
                failed = Some(WebhookError::Forbidden { at: at.to_string() });
                continue;
            }
            match tokio::time::timeout(CONNECT, TcpStream::connect(at)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => {
                    failed = Some(WebhookError::Unreachable {
                        at: at.to_string(),
                        source: error.into(),
                    });
                }
                Err(_) => failed = Some(WebhookError::Late),
            }
        }
    }
    Err(failed.unwrap_or_else(|| refused("the webhook has no address")))
}

/// Trusts the bundle, or what the machine trusts if there is none.
fn tls(ca_bundle: Option<&str>) -> Result<Arc<TlsConfig>, WebhookError> {
    static MACHINES: LazyLock<RootCertStore> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(error = chain(error), "a certificate of this machine cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        roots
    });
    let roots = match ca_bundle.map(str::trim).filter(|it| !it.is_empty()) {
        None => MACHINES.clone(),
        Some(bundle) => {
            let bad =
                || refused("unable to load root certificates: unable to parse bytes as PEM block");
            let pem =
                base64::engine::general_purpose::STANDARD.decode(bundle).map_err(|_| bad())?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.map_err(|_| bad())?).map_err(|_| bad())?;
            }
            roots
        }
    };
    let config = TlsConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

/// What a webhook made of `old`, with the metadata that only the server decides.
fn same_object(old: &Value, mut new: Value, api_version: &str) -> Result<Value, WebhookError> {
    let invalid = |why: String| refused(format!("returned invalid object: {why}"));
    if new["apiVersion"] != api_version {
        let found = new["apiVersion"].as_str().unwrap_or_default().chars().take(256);
        let found: String = found.collect();
        return Err(invalid(format!(
            "invalid groupVersion (expected {api_version}, received {found})"
        )));
    }
    if new["kind"] != old["kind"] {
        return Err(invalid(format!(
            "must have the same kind: {} != {}",
            old["kind"], new["kind"]
        )));
    }
    for (field, shown) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (was, is) = (object::meta_str(old, field), object::meta_str(&new, field));
        if was != is {
            return Err(invalid(format!("must have the same {shown}: {was} != {is}")));
        }
    }
    let mut metadata = object::metadata(old).clone();
    for field in ["labels", "annotations"] {
        match object::metadata(&new).get(field) {
            None | Some(Value::Null) => {
                metadata.remove(field);
            }
            Some(Value::Object(map)) if map.values().all(Value::is_string) => {
                metadata.insert(field.into(), map.clone().into());
            }
            Some(_) => {
                return Err(refused(format!(
                    "returned invalid metadata: invalid metadata.{field} in converted object"
                )));
            }
        }
    }
    new["metadata"] = metadata.into();
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_do_not_reach_this_host() {
        let acme = TenantName::parse("acme").unwrap();
        for closed in [
            "127.0.0.1",
            "0.0.0.0",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "::ffff:127.0.0.1",
            "224.0.0.1",
        ] {
            assert!(!is_open(&acme, closed.parse().unwrap()), "{closed}");
        }
        for open in ["10.0.0.1", "192.0.2.1", "2001:db8::1"] {
            assert!(is_open(&acme, open.parse().unwrap()), "{open}");
        }
        assert!(is_open(&TenantName::system(), "127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_webhook_changes_objects_but_not_who_they_are() {
        let old = json!({"apiVersion": "x.y/v1", "kind": "A", "metadata": {"name": "n", "uid": "u", "labels": {"a": "b"}, "finalizers": ["f"]}});
        let new = |metadata: Value| json!({"apiVersion": "x.y/v2", "kind": "A", "metadata": metadata, "spec": 1});
        let made = same_object(
            &old,
            new(json!({"name": "n", "uid": "u", "annotations": {"c": "d"}})),
            "x.y/v2",
        )
        .unwrap();
        assert_eq!(
            made,
            json!({"apiVersion": "x.y/v2", "kind": "A", "spec": 1, "metadata": {
                "name": "n", "uid": "u", "annotations": {"c": "d"}, "finalizers": ["f"]}})
        );
        for bad in
            [json!({"name": "m", "uid": "u"}), json!({"name": "n", "uid": "u", "labels": {"a": 1}})]
        {
            assert!(same_object(&old, new(bad), "x.y/v2").is_err());
        }
        assert!(same_object(&old, new(json!({"name": "n", "uid": "u"})), "x.y/v3").is_err());
    }
}
