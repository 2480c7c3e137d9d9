//! What is not a resource: discovery, OpenAPI, health, versions, metrics.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts};
use insula_api::names::TenantName;
use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    Server,
    aggregation::{
        delegate::{self, Delegated},
        documents::{self, AllDiscovered},
    },
    answer, backup,
    body::{Body, empty},
    discovery::{AGGREGATED, Discovery},
    encryption,
    error::{ApiError, Result},
    health,
    identity::Identity,
    openapi::{self, Document, Reader},
    registry::Whose,
    request::Query,
    version,
};

/// A request that was let in.
pub(crate) struct Asked<'a> {
    pub head: &'a Parts,
    pub identity: Option<&'a Identity>,
    pub whose: &'a Whose,
    /// Without what names the tenant.
    pub path: &'a str,
}

impl Server {
    /// Everything that is not a resource.
    pub(crate) async fn other(&self, asked: Asked<'_>) -> Result<Response<Body>> {
        let Asked { head, identity, whose, path } = asked;
        let json = |value: &Value| Ok(answer::value(StatusCode::OK, value, false));
        let platform = identity.is_some_and(|it| it.tenant.is_system())
            && !matches!(whose, Whose::One(tenant) if !tenant.is_system());
        let parts: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        let is_told = parts == encryption::PATH && platform && head.method == Method::POST;
        if !reads && !is_told && !matches!(parts.first(), Some(&("healthz" | "livez" | "readyz"))) {
            return Err(ApiError::method_not_allowed());
        }
        let (customs, apis) = match (parts.first(), whose.tenant()) {
            (Some(&("apis" | "openapi")) | None, Some(tenant)) => self.own_of(tenant).await?,
            _ => Default::default(),
        };
        if let (
            ["apis", group, version] | ["openapi", "v3", "apis", group, version],
            Some(identity),
        ) = (parts.as_slice(), identity)
            && let Some(api) = apis.remote(group, version)
        {
            let it = Delegated::read(api, identity, head);
            return Ok(delegate::serve(self, &it, head, empty(), &mut None).await);
        }
        let registry = &self.registry;
        let reader = Reader { registry, customs: &customs, apis: &apis, platform };
        // Made only by the paths that show it.
        let discovery = || Discovery::new(registry, &customs, &apis, platform);
        let found = |document: Option<Value>| match document {
            Some(document) => json(&document),
            None => Err(ApiError::unknown_resource()),
        };
        // Of all tenants at once nobody issues anything.
        let issuer = || whose.tenant().cloned().unwrap_or_else(TenantName::system);
        let accept = head.headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
        let aggregated = accept
            .is_some_and(|it| it.contains("as=APIGroupDiscoveryList") && it.contains("v=v2;"));
        match parts.as_slice() {
            [which @ ("healthz" | "livez" | "readyz"), check @ ..] => {
                Ok(health::answer(self, which, check, head.uri.query()))
            }
            parts if parts == backup::PATH && platform => Ok(self.backup()),
            parts if parts == encryption::PATH && platform => {
                let renew = Query::parse(head.uri.query()).get("renew") == Some("true");
                json(&self.encryption(&head.method, renew).await?)
            }
            ["version"] => json(&version::document()),
            // They are of all tenants together.
            ["metrics"] if !platform => {
                let user = identity.map_or("system:anonymous", |it| &*it.user);
                Err(ApiError::forbidden_path(user, "get", "/metrics"))
            }
            ["metrics"] => {
                let text = self.metrics_text().await;
                Ok(answer::bytes(StatusCode::OK, text.into(), answer::TEXT))
            }
            [which @ ("api" | "apis")] if aggregated => {
                let others = match *which == "apis" {
                    true => documents::discovered(self, &apis).await,
                    false => AllDiscovered::new(),
                };
                let text = discovery().aggregated(*which == "api", &others).to_string();
                let mut response = tagged(&head.headers, text.into(), AGGREGATED);
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                Ok(response)
            }
            ["api"] => json(&discovery().core_versions(&self.advertise)),
            ["apis"] => json(&discovery().group_list()),
            ["apis", group] => match discovery().one_group(group) {
                Some(document) => json(&document),
                None => Ok(nowhere()),
            },
            ["api", version] => found(discovery().resource_list("", version)),
            ["apis", group, version] => match discovery().resource_list(group, version) {
                Some(document) => json(&document),
                None => Err(self.unknown_in(group)),
            },
            ["openapi", "v2"] => {
                let others = documents::v2_parts(self, &apis).await;
                openapi_v2(&head.headers, reader, &others)
            }
            ["openapi", "v3"] => {
                let mut index = openapi::index(reader);
                if let Some(paths) = index.get_mut("paths").and_then(Value::as_object_mut) {
                    paths.extend(documents::indexed(self, &apis).await);
                }
                Ok(tagged(&head.headers, index.to_string().into(), answer::JSON))
            }
            ["openapi", "v3", rest @ ..] => {
                let rest = rest.join("/");
                match openapi::document(reader, &rest) {
                    Some(document) => openapi_v3(head, &rest, &document),
                    None => Err(ApiError::unknown_resource()),
                }
            }
            [".well-known", "openid-configuration"] => json(&self.keys.discovery(&issuer())),
            ["openid", "v1", "jwks"] => {
                let text = self.keys.jwks(&issuer()).map_err(ApiError::internal)?.to_string();
                Ok(answer::bytes(StatusCode::OK, text.into(), "application/jwk-set+json"))
            }
            [] => json(&json!({ "paths": discovery().paths() })),
            _ => Ok(nowhere()),
        }
    }
}

/// All in one document.
fn openapi_v2(
    headers: &HeaderMap,
    reader: Reader<'_>,
    others: &[Arc<openapi::v2::Foreign>],
) -> Result<Response<Body>> {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    const OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let protobuf = wants_message(headers, &[PROTOBUF, OLD])?;
    let tag = openapi::v2::tag(reader, others);
    let media_type = if protobuf { PROTOBUF } else { answer::JSON };
    let mut response = match is_known(headers, &tag) {
        true => not_modified(),
        false if protobuf => {
            answer::bytes(StatusCode::OK, openapi::v2::message(reader, others), media_type)
        }
        false => answer::bytes(StatusCode::OK, openapi::v2::document(reader, others), media_type),
    };
    set_tag(&mut response, &tag);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// There is no such path.
fn nowhere() -> Response<Body> {
    answer::bytes(StatusCode::NOT_FOUND, Bytes::from_static(b"404 page not found\n"), answer::TEXT)
}

/// Whether a document is asked for as a message of protobuf, which has these names: the one with
/// an `@` is that of old clients. The first form that we have is taken.
fn wants_message(headers: &HeaderMap, names: &[&str]) -> Result<bool> {
    let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
    let accept = accept.unwrap_or_default();
    let mut offered = accept.split(',').filter_map(|it| match it.split(';').next()?.trim() {
        "" | "*/*" | "application/*" | "application/json" => Some(false),
        name if names.contains(&name) => Some(true),
        _ => None,
    });
    offered.next().ok_or_else(|| ApiError::not_acceptable(false))
}

/// One document, which those who know its hash may keep for ever.
fn openapi_v3(head: &Parts, path: &str, document: &Document) -> Result<Response<Body>> {
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
    const OLD: &str = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";
    let protobuf = wants_message(&head.headers, &[PROTOBUF, OLD])?;
    let asked = Query::parse(head.uri.query());
    let asked = asked.get("hash");
    if asked.is_some_and(|it| it != document.hash) {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let prefix = head.uri.path().strip_suffix(path).unwrap_or("/openapi/v3/");
        let to = format!("{prefix}{path}?hash={}", document.hash);
        let to = HeaderValue::from_str(&to).map_err(ApiError::internal)?;
        response.headers_mut().insert(header::LOCATION, to);
        return Ok(response);
    }
    let tag = format!("\"{}\"", document.hash);
    let mut response = match is_known(&head.headers, &tag) {
        true => not_modified(),
        false if protobuf => answer::packed(document.message(), PROTOBUF),
        false => answer::packed(document.body.clone(), answer::JSON),
    };
    set_tag(&mut response, &tag);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if asked.is_some() {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let end = Timestamp::now().to_zoned(TimeZone::UTC).checked_add(1.year());
        if let Ok(end) = end
            && let Ok(end) =
                HeaderValue::from_str(&end.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        {
            headers.insert(header::EXPIRES, end);
        }
    }
    Ok(response)
}

/// A document, unless the client has it.
fn tagged(headers: &HeaderMap, body: Bytes, media_type: &'static str) -> Response<Body> {
    let tag = format!("\"{:X}\"", xxh3_128(&body));
    let mut response = match is_known(headers, &tag) {
        true => not_modified(),
        false => answer::bytes(StatusCode::OK, body, media_type),
    };
    set_tag(&mut response, &tag);
    response
}

fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    headers
        .get(header::IF_NONE_MATCH)
        .and_then(|it| it.to_str().ok())
        .is_some_and(|known| known.split(',').any(|it| it.trim().trim_start_matches("W/") == tag))
}

fn not_modified() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn set_tag(response: &mut Response<Body>, tag: &str) {
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
}
