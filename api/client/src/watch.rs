//! One watch: a stream of events, one per line.

use std::{borrow::Cow, sync::Arc};

use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    Client, Error, Follow, Object, Tenanted,
    client::{checked, describe},
};

/// The longest event: several times the largest object that can be stored.
pub(crate) const MAX_EVENT: usize = 16 << 20;

/// A change to a collection.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent<K> {
    Added(Tenanted<K>),
    Modified(Tenanted<K>),
    /// Carries the object's last state.
    Deleted(Tenanted<K>),
    /// Nothing up to this version was missed.
    Bookmark {
        resource_version: String,
    },
}

/// Events as they arrive. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch<K> {
    follow: Follow,
    tenant: Arc<str>,
    object: std::marker::PhantomData<fn() -> K>,
}

#[derive(Deserialize)]
struct WireEvent<'a> {
    #[serde(borrow, rename = "type")]
    event: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct WireBookmark {
    metadata: WireBookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireBookmarkMeta {
    resource_version: String,
}

impl<K: Object> Watch<K> {
    /// Begins to watch what `tenant` has; `all` are all tenants.
    pub(crate) async fn open(client: &Client, uri: &str, tenant: Arc<str>) -> Result<Self, Error> {
        let request = describe(&Method::GET, uri);
        let response = client.send(&Method::GET, uri, K::ACCEPT, None).await?;
        let body = checked(response, &request).await?.into_body();
        let follow = Follow::new(body, request);
        Ok(Self { follow, tenant, object: std::marker::PhantomData })
    }

    /// The next event; `None` once the server has ended the watch.
    ///
    /// An event of type ERROR is an error. Dropping the returned future loses nothing.
    pub async fn next(&mut self) -> Result<Option<WatchEvent<K>>, Error> {
        match self.follow.next().await? {
            Some(line) => self.decode(&line).map(Some),
            None => Ok(None),
        }
    }

    fn decode(&self, line: &[u8]) -> Result<WatchEvent<K>, Error> {
        let decode = |source| Error::Decode { request: self.follow.request().to_owned(), source };
        let wire: WireEvent<'_> = serde_json::from_slice(line).map_err(decode)?;
        let text = wire.object.get();
        let object = || Tenanted::<K>::read(&self.tenant, text).map_err(decode);
        match wire.event.as_ref() {
            "ADDED" => object().map(WatchEvent::Added),
            "MODIFIED" => object().map(WatchEvent::Modified),
            "DELETED" => object().map(WatchEvent::Deleted),
            "BOOKMARK" => {
                let bookmark: WireBookmark = serde_json::from_str(text).map_err(decode)?;
                let resource_version = bookmark.metadata.resource_version;
                Ok(WatchEvent::Bookmark { resource_version })
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(text).map_err(decode)?;
                Err(Error::Api(Box::new(status)))
            }
            other => Err(decode(serde::de::Error::custom(format!("unknown event type {other:?}")))),
        }
    }
}
