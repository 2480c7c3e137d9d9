//! The verbs on one collection.

use std::{marker::PhantomData, ops::Deref, sync::Arc};

use bytes::Bytes;
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    Client, DeleteOptions, Error, Follow, ListOptions, Object, Patch, PatchOptions, ResourceRef,
    Tenanted, WatchOptions, WriteOptions,
    client::{checked, describe},
    path,
    watch::Watch,
};

const JSON: &str = "application/json";
/// The objects of one page when a whole collection is read.
const PAGE: u32 = 500;

/// The objects of one resource, of one namespace or of all, of one tenant or of all: to read.
#[derive(Debug)]
pub struct Collection<K> {
    pub(crate) client: Client,
    pub(crate) tenant: Arc<str>,
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) resource: ResourceRef,
    pub(crate) object: PhantomData<fn() -> K>,
}

// Not derived: that would ask for `K: Clone`.
impl<K> Clone for Collection<K> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            tenant: self.tenant.clone(),
            namespace: self.namespace.clone(),
            resource: self.resource.clone(),
            object: PhantomData,
        }
    }
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<K> {
    pub items: Vec<Tenanted<K>>,
    /// The version from which to watch. Opaque.
    pub resource_version: String,
    /// What to send to get the next page; `None` after the last.
    pub continue_token: Option<String>,
    /// How many objects follow, if the server knows.
    pub n_remaining: Option<i64>,
}

/// A list, its objects not yet read.
#[derive(Deserialize)]
pub(crate) struct WireList<'a> {
    metadata: ListMeta,
    // Servers may send null for an empty list.
    #[serde(borrow, default)]
    pub(crate) items: Option<Vec<&'a RawValue>>,
}

impl<'a> WireList<'a> {
    /// Reads what a list of `collection` was answered with.
    pub(crate) fn read<K>(answer: &'a [u8], collection: &Collection<K>) -> Result<Self, Error> {
        serde_json::from_slice(answer).map_err(|source| Error::Decode {
            request: describe(&Method::GET, &collection.path()),
            source,
        })
    }

    /// From which to watch; empty if there is none.
    pub(crate) fn version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }

    /// With which the next page is asked for.
    pub(crate) fn continue_token(&self) -> Option<&str> {
        self.metadata.continue_.as_deref().filter(|token| !token.is_empty())
    }
}

impl<K: Object> Collection<K> {
    /// One page, or all if no limit is set.
    ///
    /// An object that breaks its schema is logged and left out: it must not hide all others.
    pub async fn list(&self, options: &ListOptions) -> Result<Page<K>, Error> {
        let answer = self.list_text(options, K::ACCEPT_LIST).await?;
        let list = WireList::read(&answer, self)?;
        let mut items = Vec::with_capacity(list.items.as_ref().map_or(0, Vec::len));
        for item in list.items.iter().flatten() {
            match self.read(item.get()) {
                Ok(object) => items.push(object),
                Err(error) => {
                    tracing::warn!(resource = %self.resource, %error, "object left out of a list");
                }
            }
        }
        Ok(Page {
            items,
            resource_version: list.version().to_owned(),
            continue_token: list.continue_token().map(str::to_owned),
            n_remaining: list.metadata.remaining_item_count,
        })
    }

    /// All objects, read page by page at one version.
    pub async fn list_all(&self, options: &ListOptions) -> Result<Vec<Tenanted<K>>, Error> {
        let mut options = options.clone();
        options.limit.get_or_insert(PAGE);
        let mut items = Vec::new();
        loop {
            let mut page = self.list(&options).await?;
            items.append(&mut page.items);
            if page.continue_token.is_none() {
                return Ok(items);
            }
            options.continue_token = page.continue_token;
            options.resource_version = None;
        }
    }

    /// Follows changes.
    pub async fn watch(&self, options: &WatchOptions) -> Result<Watch<K>, Error> {
        Ok(Watch::new(self.watch_text(options, K::ACCEPT).await?, self.tenant.clone()))
    }

    /// An object of an answer.
    fn read(&self, text: &str) -> Result<Tenanted<K>, serde_json::Error> {
        Tenanted::read(&self.tenant, text)
    }
}

impl<K> Collection<K> {
    /// The resource that is read.
    pub fn resource(&self) -> &ResourceRef {
        &self.resource
    }

    /// The same, of whatever kind.
    pub(crate) fn untyped(&self) -> Collection<()> {
        Collection {
            client: self.client.clone(),
            tenant: self.tenant.clone(),
            namespace: self.namespace.clone(),
            resource: self.resource.clone(),
            object: PhantomData,
        }
    }

    pub(crate) fn path(&self) -> String {
        path::collection(&self.tenant, &self.resource, self.namespace.as_deref())
    }

    /// A page as it is answered.
    pub(crate) async fn list_text(
        &self,
        options: &ListOptions,
        accept: &'static str,
    ) -> Result<Bytes, Error> {
        let uri = self.path() + options.query().as_str();
        self.client.fetch(&Method::GET, &uri, accept, None).await
    }

    /// The lines of a watch.
    pub(crate) async fn watch_text(
        &self,
        options: &WatchOptions,
        accept: &'static str,
    ) -> Result<Follow, Error> {
        let uri = self.path() + options.query().as_str();
        let request = describe(&Method::GET, &uri);
        let response = self.client.send(&Method::GET, &uri, accept, None).await?;
        Ok(Follow::new(checked(response, &request).await?.into_body(), request))
    }
}

/// The objects of one resource of one tenant: to read and to write.
#[derive(Debug)]
pub struct Api<K> {
    collection: Collection<K>,
}

// Not derived: that would ask for `K: Clone`.
impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Self { collection: self.collection.clone() }
    }
}

impl<K> Deref for Api<K> {
    type Target = Collection<K>;
    fn deref(&self) -> &Collection<K> {
        &self.collection
    }
}

impl<K> From<Api<K>> for Collection<K> {
    fn from(api: Api<K>) -> Self {
        api.collection
    }
}

/// What a delete found.
#[derive(Debug, Clone)]
pub enum Deleted<K> {
    /// The object as it was last, or as it is while its deletion goes on.
    Object(Box<Tenanted<K>>),
    /// It is gone; the server says no more.
    Status(Box<Status>),
}

impl<K: Object> Api<K> {
    pub(crate) fn new(collection: Collection<K>) -> Self {
        Self { collection }
    }

    pub async fn get(&self, name: &str) -> Result<Tenanted<K>, Error> {
        let uri = self.object_path(name, None);
        let answer = self.client.fetch(&Method::GET, &uri, K::ACCEPT, None).await?;
        self.object_in(&answer, &Method::GET, &uri)
    }

    /// Like [`Api::get`], with `None` for an object that does not exist.
    pub async fn get_opt(&self, name: &str) -> Result<Option<Tenanted<K>>, Error> {
        found(self.get(name).await)
    }

    /// Creates an object. Its name may be left to the server by `metadata.generateName`.
    pub async fn create(&self, object: &K) -> Result<Tenanted<K>, Error> {
        self.create_with(object, &WriteOptions::default()).await
    }

    pub async fn create_with(
        &self,
        object: &K,
        options: &WriteOptions,
    ) -> Result<Tenanted<K>, Error> {
        let uri = self.path() + options.query().as_str();
        self.write_object(Method::POST, &uri, JSON, object).await
    }

    /// Creates an object; what the server made of it is not read.
    pub async fn create_unread(&self, object: &K) -> Result<(), Error> {
        let (method, uri) = (Method::POST, self.path());
        let body = encode(&method, &uri, JSON, object)?;
        self.client.call_unread(&method, &uri, K::ACCEPT, Some(body)).await
    }

    /// Replaces an object, if it still has the version that `object` carries.
    pub async fn update(&self, object: &K) -> Result<Tenanted<K>, Error> {
        self.replace(object, None, &WriteOptions::default()).await
    }

    /// Replaces the status of an object, if it still has the version that `object` carries.
    pub async fn update_status(&self, object: &K) -> Result<Tenanted<K>, Error> {
        self.replace(object, Some("status"), &WriteOptions::default()).await
    }

    /// Replaces a subresource that has the shape of the object itself, such as `finalize`.
    pub async fn replace(
        &self,
        object: &K,
        subresource: Option<&str>,
        options: &WriteOptions,
    ) -> Result<Tenanted<K>, Error> {
        let name = object.meta().name.as_deref().ok_or_else(|| Error::Incomplete {
            kind: self.resource.kind.to_string(),
            field: "name",
        })?;
        let uri = self.object_path(name, subresource) + options.query().as_str();
        self.write_object(Method::PUT, &uri, JSON, object).await
    }

    pub async fn patch(&self, name: &str, patch: &Patch) -> Result<Tenanted<K>, Error> {
        self.patch_with(name, None, patch, &PatchOptions::default()).await
    }

    pub async fn patch_status(&self, name: &str, patch: &Patch) -> Result<Tenanted<K>, Error> {
        self.patch_with(name, Some("status"), patch, &PatchOptions::default()).await
    }

    pub async fn patch_with(
        &self,
        name: &str,
        subresource: Option<&str>,
        patch: &Patch,
        options: &PatchOptions,
    ) -> Result<Tenanted<K>, Error> {
        let uri = self.object_path(name, subresource) + options.query().as_str();
        self.write_object(Method::PATCH, &uri, patch.content_type(), patch.body()).await
    }

    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<Deleted<K>, Error> {
        let uri = self.object_path(name, None);
        let request = || describe(&Method::DELETE, &uri);
        let answer: Box<RawValue> = self.write(Method::DELETE, &uri, JSON, options).await?;
        #[derive(Deserialize)]
        struct AnyKind<'a> {
            #[serde(borrow, default)]
            kind: std::borrow::Cow<'a, str>,
        }
        let decode = |source| Error::Decode { request: request(), source };
        let kind: AnyKind<'_> = serde_json::from_str(answer.get()).map_err(decode)?;
        if kind.kind == "Status" {
            Ok(Deleted::Status(serde_json::from_str(answer.get()).map_err(decode)?))
        } else {
            Ok(Deleted::Object(Box::new(self.read(answer.get()).map_err(decode)?)))
        }
    }

    /// Deletes all objects that match.
    pub async fn delete_collection(
        &self,
        options: &DeleteOptions,
        which: &ListOptions,
    ) -> Result<(), Error> {
        let uri = self.path() + which.query().as_str();
        let body = serde_json::to_vec(options)
            .map_err(|source| Error::Encode { request: describe(&Method::DELETE, &uri), source })?;
        // Whatever form objects are wanted in: a server has no list of metadata alone for this.
        let body = Some((JSON, Bytes::from(body)));
        self.client.call_unread(&Method::DELETE, &uri, JSON, body).await
    }

    /// Reads a subresource that has a shape of its own, such as `scale`.
    pub async fn get_subresource<R: DeserializeOwned>(
        &self,
        name: &str,
        subresource: &str,
    ) -> Result<R, Error> {
        let uri = self.object_path(name, Some(subresource));
        self.client.call(Method::GET, &uri, K::ACCEPT, None).await
    }

    /// Reads what lies beneath the collection and is no object of it, such as what is measured of
    /// its objects.
    pub async fn get_under<R: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<R, Error> {
        let mut uri = self.path();
        path.iter().for_each(|segment| path::push(&mut uri, segment));
        let mut parameters = path::Query::default();
        query.iter().for_each(|(name, value)| parameters.add(name, value));
        self.client.call(Method::GET, &(uri + parameters.as_str()), K::ACCEPT, None).await
    }

    /// Posts to a subresource, such as a pod's `binding` or a service account's `token`.
    pub async fn create_subresource<B: Serialize, R: DeserializeOwned>(
        &self,
        name: &str,
        subresource: &str,
        body: &B,
    ) -> Result<R, Error> {
        self.write(Method::POST, &self.object_path(name, Some(subresource)), JSON, body).await
    }

    /// Writes what is answered with the object as it is then.
    async fn write_object<B: Serialize + ?Sized>(
        &self,
        method: Method,
        uri: &str,
        content_type: &'static str,
        body: &B,
    ) -> Result<Tenanted<K>, Error> {
        let body = encode(&method, uri, content_type, body)?;
        let answer = self.client.fetch(&method, uri, K::ACCEPT, Some(body)).await?;
        self.object_in(&answer, &method, uri)
    }

    async fn write<B: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        content_type: &'static str,
        body: &B,
    ) -> Result<R, Error> {
        let body = encode(&method, uri, content_type, body)?;
        self.client.call(method, uri, K::ACCEPT, Some(body)).await
    }

    /// Reads the object that a request was answered with.
    fn object_in(&self, answer: &[u8], method: &Method, uri: &str) -> Result<Tenanted<K>, Error> {
        str::from_utf8(answer)
            .map_err(serde::de::Error::custom)
            .and_then(|text| self.read(text))
            .map_err(|source| Error::Decode { request: describe(method, uri), source })
    }

    fn object_path(&self, name: &str, subresource: Option<&str>) -> String {
        let mut path = self.path();
        path::push(&mut path, name);
        if let Some(subresource) = subresource {
            path::push(&mut path, subresource);
        }
        path
    }
}

/// A body of a request, as JSON, with what it is called.
fn encode<B: Serialize + ?Sized>(
    method: &Method,
    uri: &str,
    content_type: &'static str,
    body: &B,
) -> Result<(&'static str, Bytes), Error> {
    let body = serde_json::to_vec(body)
        .map_err(|source| Error::Encode { request: describe(method, uri), source })?;
    Ok((content_type, Bytes::from(body)))
}

/// Turns "not found" into `None`.
pub(crate) fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
