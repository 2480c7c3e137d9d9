//! What extension servers say that they have: discovery and OpenAPI, for ours to be merged with.
//!
//! They are fetched when somebody asks for the merged document, not more often than every
//! [`FRESH`], and only if they are newer than what is known. What cannot be fetched now is shown as
//! it was, and in discovery as stale.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use insula_api::discovery::{ACCEPT, GroupList, KIND};
use serde_json::{Map, Value, json};
use tokio::{sync::Mutex, time::Instant};

use super::{Api, OfTenant, Remote, delegate};
use crate::{Server, body::empty, discovery, openapi::v2, outbound::OutboundError};

/// How long a document is believed without asking for a newer one.
const FRESH: Duration = Duration::from_secs(10);
/// How soon to try again after a failure.
const AGAIN: Duration = Duration::from_secs(2);
/// How long one document may take, and all of a tenant's together.
const WITHIN: Duration = Duration::from_secs(5);
const ALL_WITHIN: Duration = Duration::from_secs(10);
/// Documents fetched at the same time.
const PARALLEL: usize = 8;
/// Largest document of each kind, in bytes.
const MAX_DISCOVERY: usize = 2 * 1024 * 1024;
const MAX_INDEX: usize = 256 * 1024;
const MAX_V2: usize = 8 * 1024 * 1024;

/// The documents of one extension server, about one group version.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    discovery: Mutex<Kept<Arc<Vec<Value>>>>,
    index: Mutex<Kept<Option<String>>>,
    v2: Mutex<Kept<Arc<v2::Foreign>>>,
}

/// What is known of one document.
#[derive(Debug)]
struct Kept<T> {
    value: Option<T>,
    tag: Option<HeaderValue>,
    /// When to ask again.
    until: Option<Instant>,
    is_current: bool,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { value: None, tag: None, until: None, is_current: false }
    }
}

/// Why a document was not fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("the document cannot be read")]
    Unreadable(#[from] serde_json::Error),
}

/// A document that is newer than what is known.
struct Newer {
    headers: HeaderMap,
    body: Bytes,
}

/// A document with its tag, or none if it is as it was.
type Fetched<T> = Result<Option<(T, Option<HeaderValue>)>, FetchError>;

/// An extension server, with what it takes to ask it.
#[derive(Clone, Copy)]
struct Source<'a> {
    server: &'a Server,
    api: &'a Api,
    remote: &'a Remote,
}

impl Source<'_> {
    /// Gets `path`, unless it is still what `tag` stands for.
    async fn get(
        self,
        path: &str,
        accept: &'static str,
        tag: Option<&HeaderValue>,
        limit: usize,
    ) -> Result<Option<Newer>, FetchError> {
        let get = async {
            let Self { server, api, remote } = self;
            let tenant = &api.tenant;
            let trust = remote.trust(server, tenant).await?;
            let place = server.resolve(tenant, remote.destination(path)).await?;
            let mut request = Request::new(empty());
            *request.uri_mut() = path.parse().map_err(|_| OutboundError::Url)?;
            let headers = request.headers_mut();
            let ourselves = delegate::headers_of(&delegate::ourselves());
            headers.extend(ourselves.ok_or(OutboundError::Url)?);
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            if let Some(tag) = tag {
                headers.insert(header::IF_NONE_MATCH, tag.clone());
            }
            let answer = server.send_outbound(tenant, &place, &trust, request).await?;
            let (head, body) = answer.into_parts();
            match head.status {
                StatusCode::NOT_MODIFIED if tag.is_some() => return Ok(None),
                StatusCode::OK => (),
                other => return Err(FetchError::Status(other)),
            }
            let body = Limited::new(body, limit).collect().await.map_err(|error| {
                match error.is::<http_body_util::LengthLimitError>() {
                    true => OutboundError::TooLong(limit),
                    false => OutboundError::Broken,
                }
            })?;
            Ok(Some(Newer { headers: head.headers, body: body.to_bytes() }))
        };
        tokio::time::timeout(WITHIN, get).await.unwrap_or(Err(OutboundError::Late.into()))
    }
}

impl<T: Clone> Kept<T> {
    /// The document as it is now, or was last; and whether it is known to be that of now.
    async fn value<F: Future<Output = Fetched<T>>>(
        &mut self,
        source: Source<'_>,
        fetch: impl FnOnce(Option<HeaderValue>) -> F,
    ) -> (Option<T>, bool) {
        if !source.remote.is_available {
            // It is asked as soon as it is.
            (self.until, self.is_current) = (None, false);
            return (self.value.clone(), false);
        }
        let now = Instant::now();
        if self.until.is_none_or(|until| until <= now) {
            let tag = self.tag.clone().filter(|_| self.value.is_some());
            self.is_current = match fetch(tag).await {
                Ok(None) => true,
                Ok(Some((value, tag))) => {
                    (self.value, self.tag) = (Some(value), tag);
                    true
                }
                Err(error) => {
                    let Api { tenant, group, version, .. } = source.api;
                    tracing::debug!(%tenant, group, version, %error, "a document is not fetched");
                    false
                }
            };
            self.until = Some(Instant::now() + if self.is_current { FRESH } else { AGAIN });
        }
        (self.value.clone(), self.is_current)
    }
}

/// What one group version of somebody else's has, as aggregated discovery shows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Discovered {
    pub resources: Arc<Vec<Value>>,
    pub is_current: bool,
}

/// All that a tenant's extension servers have, by group and version.
pub(crate) type AllDiscovered = HashMap<(String, String), Discovered>;

/// Has `of` look at each of a tenant's extension servers, all within a time.
async fn each<'a, T: Send + 'a>(
    server: &'a Server,
    apis: &'a OfTenant,
    of: impl Fn(Source<'a>) -> BoxFuture<'a, Option<T>>,
) -> Vec<(&'a Api, T)> {
    let mut found = Vec::new();
    let looking: Vec<BoxFuture<'a, Option<(&'a Api, T)>>> = apis
        .remotes()
        .map(|(api, remote)| {
            let it = of(Source { server, api, remote });
            async move { Some((&**api, it.await?)) }.boxed()
        })
        .collect();
    let mut looking = stream::iter(looking).buffer_unordered(PARALLEL);
    let until = Instant::now() + ALL_WITHIN;
    while let Ok(Some(next)) = tokio::time::timeout_at(until, looking.next()).await {
        found.extend(next);
    }
    found.sort_by(|(left, _), (right, _)| {
        (&left.group, &left.version).cmp(&(&right.group, &right.version))
    });
    found
}

/// What a tenant's extension servers have.
pub(crate) async fn discovered(server: &Server, apis: &OfTenant) -> AllDiscovered {
    let found = each(server, apis, |source| {
        async move {
            let mut kept = source.remote.documents.discovery.lock().await;
            let fetched = kept.value(source, |tag| fetch_discovery(source, tag)).await;
            Some(Discovered { resources: fetched.0.unwrap_or_default(), is_current: fetched.1 })
        }
        .boxed()
    });
    let found = found.await.into_iter();
    found.map(|(api, it)| ((api.group.clone(), api.version.clone()), it)).collect()
}

async fn fetch_discovery(source: Source<'_>, tag: Option<HeaderValue>) -> Fetched<Arc<Vec<Value>>> {
    let (group, version) = (&source.api.group, &source.api.version);
    let aggregated = match source.get("/apis", ACCEPT, tag.as_ref(), MAX_DISCOVERY).await {
        Ok(None) => return Ok(None),
        Ok(found) => found.filter(|it| {
            let media_type = it.headers.get(header::CONTENT_TYPE);
            media_type
                .and_then(|it| it.to_str().ok())
                .is_some_and(|it| it.contains(&format!("as={KIND}")))
        }),
        // It may be too old to have it.
        Err(FetchError::Status(code)) if code != StatusCode::SERVICE_UNAVAILABLE => None,
        Err(error) => return Err(error),
    };
    if let Some(Newer { headers, body }) = aggregated {
        let list: GroupList<Value> = serde_json::from_slice(&body)?;
        let groups = list.items.into_iter().filter(|it| it.metadata.name == *group);
        let mut versions = groups.flat_map(|it| it.versions);
        let found = versions.find(|it| it.version == *version);
        let mut resources = found.map(|it| it.resources).unwrap_or_default();
        resources.retain_mut(complete);
        return Ok(Some((Arc::new(resources), headers.get(header::ETAG).cloned())));
    }
    let path = format!("/apis/{group}/{version}");
    let found = source.get(&path, "application/json", None, MAX_DISCOVERY).await?;
    let Some(Newer { body, .. }) = found else { return Ok(None) };
    let list: Value = serde_json::from_slice(&body)?;
    let resources = list.get("resources").and_then(Value::as_array);
    let mut resources =
        discovery::of_resource_list(resources.map_or(&[], Vec::as_slice), group, version);
    resources.retain_mut(complete);
    Ok(Some((Arc::new(resources), None)))
}

/// Whether an entry is one; clients stumble over those that are not, and over kinds that are not
/// there.
fn complete(resource: &mut Value) -> bool {
    let text = |field: &str| resource.get(field).is_some_and(Value::is_string);
    let are_texts = |field: &str| {
        let list = resource.get(field).map(Value::as_array);
        list.is_none_or(|it| it.is_some_and(|it| it.iter().all(Value::is_string)))
    };
    if !text("resource")
        || !text("scope")
        || !["verbs", "shortNames", "categories"].iter().all(|it| are_texts(it))
    {
        return false;
    }
    let Some(fields) = resource.as_object_mut() else { return false };
    fields.entry("responseKind").or_insert_with(|| json!({"group": "", "version": "", "kind": ""}));
    let parts = fields.get_mut("subresources").and_then(Value::as_array_mut);
    for part in parts.into_iter().flatten().filter_map(Value::as_object_mut) {
        part.entry("responseKind")
            .or_insert_with(|| json!({"group": "", "version": "", "kind": ""}));
    }
    true
}

/// Where extension servers' OpenAPI v3 documents are, as entries of the index.
pub(crate) async fn indexed(server: &Server, apis: &OfTenant) -> Map<String, Value> {
    let found = each(server, apis, |source| {
        async move {
            let mut kept = source.remote.documents.index.lock().await;
            let fetched = kept.value(source, |tag| fetch_index(source, tag)).await;
            fetched.0.flatten()
        }
        .boxed()
    });
    let found = found.await.into_iter();
    found
        .map(|(api, url)| {
            let path = format!("apis/{}/{}", api.group, api.version);
            (path, json!({ "serverRelativeURL": url }))
        })
        .collect()
}

async fn fetch_index(source: Source<'_>, tag: Option<HeaderValue>) -> Fetched<Option<String>> {
    let found = source.get("/openapi/v3", "application/json", tag.as_ref(), MAX_INDEX).await?;
    let Some(Newer { headers, body }) = found else { return Ok(None) };
    let index: Value = serde_json::from_slice(&body)?;
    let path = format!("apis/{}/{}", source.api.group, source.api.version);
    let url = index.get("paths").and_then(|it| it.get(&path));
    let url = url.and_then(|it| it.get("serverRelativeURL")).and_then(Value::as_str);
    let url = url.filter(|it| it.starts_with(&format!("/openapi/v3/{path}")));
    Ok(Some((url.map(str::to_owned), headers.get(header::ETAG).cloned())))
}

/// Parts of OpenAPI v2 that extension servers have.
pub(crate) async fn v2_parts(server: &Server, apis: &OfTenant) -> Vec<Arc<v2::Foreign>> {
    let found = each(server, apis, |source| {
        async move {
            let mut kept = source.remote.documents.v2.lock().await;
            kept.value(source, |tag| fetch_v2(source, tag)).await.0
        }
        .boxed()
    });
    found.await.into_iter().map(|(_, part)| part).collect()
}

async fn fetch_v2(source: Source<'_>, tag: Option<HeaderValue>) -> Fetched<Arc<v2::Foreign>> {
    let found = source.get("/openapi/v2", "application/json", tag.as_ref(), MAX_V2).await?;
    let Some(Newer { headers, body }) = found else { return Ok(None) };
    let document: Value = serde_json::from_slice(&body)?;
    let part = v2::of_others(document, &source.api.group, &source.api.version);
    Ok(Some((Arc::new(part), headers.get(header::ETAG).cloned())))
}
