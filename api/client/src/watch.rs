//! One watch: a stream of events, one per line.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Error, Follow, Object, Tenanted};

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
    pub(crate) fn new(follow: Follow, tenant: Arc<str>) -> Self {
        Self { follow, tenant, object: std::marker::PhantomData }
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
        let object = |text: &str| {
            Tenanted::read(&self.tenant, text).map_err(|source| self.follow.undecoded(source))
        };
        Ok(match Line::read(line, &self.follow)? {
            Line::Added(text) => WatchEvent::Added(object(text)?),
            Line::Modified(text) => WatchEvent::Modified(object(text)?),
            Line::Deleted(text) => WatchEvent::Deleted(object(text)?),
            Line::Bookmark { resource_version } => WatchEvent::Bookmark { resource_version },
        })
    }
}

/// What a line of a watch says, the object not yet read.
pub(crate) enum Line<'a> {
    Added(&'a str),
    Modified(&'a str),
    Deleted(&'a str),
    Bookmark { resource_version: String },
}

impl<'a> Line<'a> {
    /// Reads a line of `follow`. An event of type ERROR is an error.
    pub(crate) fn read(line: &'a [u8], follow: &Follow) -> Result<Self, Error> {
        let decode = |source| follow.undecoded(source);
        let wire: WireEvent<'a> = serde_json::from_slice(line).map_err(decode)?;
        let text = wire.object.get();
        match wire.event.as_ref() {
            "ADDED" => Ok(Self::Added(text)),
            "MODIFIED" => Ok(Self::Modified(text)),
            "DELETED" => Ok(Self::Deleted(text)),
            "BOOKMARK" => {
                let bookmark: WireBookmark = serde_json::from_str(text).map_err(decode)?;
                let resource_version = bookmark.metadata.resource_version;
                Ok(Self::Bookmark { resource_version })
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(text).map_err(decode)?;
                Err(Error::Api(Box::new(status)))
            }
            other => Err(decode(serde::de::Error::custom(format!("unknown event type {other:?}")))),
        }
    }
}
