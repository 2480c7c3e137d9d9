//! What an object looks like in the form that its reader asked for.
//!
//! Objects are kept as the JSON that most readers want; for the others they are made anew. What a
//! watch makes is kept for a while, because its neighbours want the same.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use bytes::Bytes;
use insula_api::{
    proto,
    schema::{Gvk, Schema, TypeId},
};
use insula_partition::{store::Revision, text::Text};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    accept::{Accept, Form},
    error::{ApiError, Result},
    fair::Pieces,
    registry::{Nature, Served},
    request::Encoding,
    table::{self, IncludeObject},
};

/// How a reader wants the objects of a resource.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub served: Arc<Served>,
    pub accept: Accept,
    pub include: IncludeObject,
}

/// A list's metadata, as JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ListMeta(pub Value);

/// The type of `PartialObjectMetadata`.
fn partial_type() -> Result<TypeId> {
    let kind = Gvk::new("meta.k8s.io", "v1", "PartialObjectMetadata");
    Schema::built_in().by_kind(&kind).ok_or_else(|| ApiError::internal("no partial metadata"))
}

fn encoding_failed(error: proto::EncodeError) -> ApiError {
    tracing::error!(error = crate::error::chain(&error), "an object does not fit its type");
    ApiError::internal(error)
}

/// `json` of the named kind, with its envelope.
pub(crate) fn message(id: TypeId, kind: (&str, &str), json: &[u8]) -> Result<Bytes> {
    let made = proto::enveloped(Schema::built_in(), id, kind, json).map_err(encoding_failed)?;
    Ok(made.into())
}

/// What was made here and says its own kind, as a message; `None` if it has none.
pub(crate) fn message_of(it: &Value) -> Result<Option<Bytes>> {
    let schema = Schema::built_in();
    let text = |field: &str| it.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let id = schema.by_kind(&Gvk::new(group, version, kind)).filter(|id| schema.has_proto(*id));
    let made = id.map(|id| message(id, (api_version, kind), it.to_string().as_bytes()));
    made.transpose()
}

/// An object's metadata alone.
fn partial(meta: &str, json: &[u8]) -> Result<Bytes> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        metadata: Option<&'a RawValue>,
    }
    let head: Head<'_> = serde_json::from_slice(json).map_err(ApiError::internal)?;
    let metadata = head.metadata.map_or("{}", RawValue::get);
    let text = format!(
        "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"{meta}\",\"metadata\":{metadata}}}"
    );
    Ok(text.into())
}

impl Shown {
    /// Whether stored bytes are what is sent.
    pub(crate) fn is_stored_form(&self) -> bool {
        self.accept.form == Form::Object && self.accept.encoding != Encoding::Protobuf
    }

    /// What the message of an object is, if there is one.
    fn message_type(&self) -> Result<TypeId> {
        match (self.accept.form, &self.served.nature) {
            (Form::Object, Nature::BuiltIn(id)) => Ok(*id),
            (Form::Object, Nature::Custom(_)) => Err(ApiError::not_acceptable(false)),
            _ => partial_type(),
        }
    }

    /// One object, in protobuf or JSON.
    pub(crate) fn object(&self, json: &Bytes) -> Result<Bytes> {
        let resource = &self.served.resource;
        match (self.accept.form, self.accept.encoding) {
            (Form::PartialMetadataList, _) => Err(ApiError::unfit_form(&format!(
                "you requested PartialObjectMetadataList, but the requested object is not a list ({})",
                resource.kind
            ))),
            (Form::Object, Encoding::Protobuf) => {
                let kind = (&*resource.api_version(), &*resource.kind);
                message(self.message_type()?, kind, json)
            }
            (Form::PartialMetadata, Encoding::Protobuf) => {
                message(self.message_type()?, (self.accept.meta, "PartialObjectMetadata"), json)
            }
            (Form::Object, _) => Ok(json.clone()),
            (Form::PartialMetadata, _) => partial(self.accept.meta, json),
            (Form::Table, _) => {
                let it: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
                let revision = insula_api::object::meta_str(&it, "resourceVersion");
                let metadata = json!({ "resourceVersion": revision });
                Ok(self.table(&[it], &metadata, true).to_string().into())
            }
        }
    }

    /// Rows for `objects`.
    pub(crate) fn table(&self, objects: &[Value], metadata: &Value, columns: bool) -> Value {
        let mut table = table::table(&self.served, objects, self.include, metadata);
        table["apiVersion"] = self.accept.meta.into();
        if !columns {
            table["columnDefinitions"] = Value::Null;
        }
        table
    }

    /// A list, in protobuf or JSON: one object after the other, and in pieces.
    pub(crate) async fn list<'a>(
        &self,
        metadata: &ListMeta,
        items: impl Iterator<Item = &'a Text> + Clone + Send,
    ) -> Result<Bytes> {
        let resource = &self.served.resource;
        let (api_version, kind) = match self.accept.form {
            Form::Object => (resource.api_version(), self.served.list_kind()),
            _ => (self.accept.meta.to_owned(), "PartialObjectMetadataList".to_owned()),
        };
        let head = || {
            let head = format!(
                "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{},\"items\":[]}}",
                metadata.0
            );
            Open::new(head)
        };
        let size = || items.clone().map(|it| it.len() + 1).sum();
        let mut pieces = Pieces::default();
        match (self.accept.form, self.accept.encoding) {
            (Form::PartialMetadata, _) => Err(ApiError::unfit_form(&format!(
                "you requested PartialObjectMetadata, but the requested object is a list ({}List)",
                resource.kind
            ))),
            (Form::Table, _) => {
                let mut open = Open::new(self.table(&[], &metadata.0, true).to_string());
                for item in items {
                    let it: Value =
                        serde_json::from_slice(&item.bytes()).map_err(ApiError::internal)?;
                    let row = table::row(&self.served, &it, self.include);
                    open.push(row.to_string().as_bytes());
                    pieces.read(item.len()).await;
                }
                Ok(open.closed())
            }
            (_, Encoding::Protobuf) => {
                let (schema, head) = (Schema::built_in(), metadata.0.to_string());
                let kind = (&*api_version, &*kind);
                // Messages are about half as long as their JSON.
                let (id, half) = (self.message_type()?, size() / 2);
                let list = proto::List::begin(schema, id, kind, head.as_bytes(), half);
                let mut list = list.map_err(encoding_failed)?;
                for item in items {
                    list.push(schema, &item.bytes()).map_err(encoding_failed)?;
                    pieces.read(item.len()).await;
                }
                Ok(list.finish().into())
            }
            (Form::Object, _) => {
                let mut open = head();
                open.reserve(size());
                for item in items {
                    open.push(&item.bytes());
                    pieces.copied(item.len()).await;
                }
                Ok(open.closed())
            }
            (Form::PartialMetadataList, _) => {
                let mut open = head();
                for item in items {
                    open.push(&partial(self.accept.meta, &item.bytes())?);
                    pieces.read(item.len()).await;
                }
                Ok(open.closed())
            }
        }
    }
}

/// The JSON of something that ends with a list, to which items are added.
struct Open {
    text: Vec<u8>,
    begun: usize,
}

impl Open {
    /// From what it is without any.
    fn new(empty: String) -> Self {
        let mut text = empty.into_bytes();
        debug_assert!(text.ends_with(b"[]}"), "its list is not at the end");
        text.truncate(text.len().saturating_sub(2));
        Self { begun: text.len(), text }
    }

    fn reserve(&mut self, bytes: usize) {
        self.text.reserve_exact(bytes + 2);
    }

    fn push(&mut self, item: &[u8]) {
        if self.begun < self.text.len() {
            self.text.push(b',');
        }
        self.text.extend_from_slice(item);
    }

    fn closed(mut self) -> Bytes {
        self.text.extend_from_slice(b"]}");
        self.text.into()
    }
}

/// What was made of objects lately, for others who want the same of them.
#[derive(Debug, Default)]
pub(crate) struct Forms(Mutex<Kept>);

/// Two halves: when the new one is full, the old one goes.
#[derive(Debug, Default)]
struct Kept {
    new: HashMap<Id, Bytes>,
    old: HashMap<Id, Bytes>,
    size: usize,
}

/// A key, its revision, and a hash of what it is and how it is shown.
type Id = (Arc<str>, u64, u64);

/// How much one half of what is kept may hold, in bytes.
const HALF: usize = 8 << 20;
/// What an entry costs beyond its bytes.
const ENTRY: usize = 128;

impl Forms {
    /// The text of `key` as `revision` made it: what is packed is unpacked, and what is sealed
    /// opened, once for all who watch.
    pub(crate) fn text<'t>(
        &self,
        served: &Served,
        key: &Arc<str>,
        revision: Revision,
        text: &'t Text,
    ) -> Result<Cow<'t, Bytes>> {
        if !text.is_packed() {
            return Ok(text.bytes());
        }
        let id = (key.clone(), revision.0, xxh3_64(served.collection.as_str().as_bytes()));
        let made = || Ok(text.clone().opened()?.into_bytes());
        self.known_or(id, made).map(Cow::Owned)
    }

    /// What `key`, as `revision` made it, looks like to `shown`.
    pub(crate) fn of(
        &self,
        shown: &Shown,
        key: &Arc<str>,
        revision: Revision,
        json: &Bytes,
    ) -> Result<Bytes> {
        // What a tenant defines may look different tomorrow at the same revision.
        if shown.is_stored_form() || shown.served.custom().is_some() {
            return shown.object(json);
        }
        let resource = &shown.served.resource;
        let (group, version) = (&resource.group, &resource.version);
        let what = format!("{group}/{version}/{}/{:?}", resource.name, shown.accept);
        let id = (key.clone(), revision.0, xxh3_64(what.as_bytes()));
        self.known_or(id, || shown.object(json))
    }

    fn known_or(&self, id: Id, make: impl FnOnce() -> Result<Bytes>) -> Result<Bytes> {
        {
            let mut kept = self.0.lock();
            if let Some(known) = kept.new.get(&id) {
                return Ok(known.clone());
            }
            if let Some(known) = kept.old.remove(&id) {
                kept.keep(id, known.clone());
                return Ok(known);
            }
        }
        let made = make()?;
        self.0.lock().keep(id, made.clone());
        Ok(made)
    }
}

impl Kept {
    fn keep(&mut self, id: Id, made: Bytes) {
        self.size += made.len() + id.0.len() + ENTRY;
        self.new.insert(id, made);
        if HALF < self.size {
            self.old = std::mem::take(&mut self.new);
            self.size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use insula_partition::store::{Change, Expect, ReadAt, Write};

    use super::*;
    use crate::registry::Registry;

    fn pods(form: Form, encoding: Encoding) -> Shown {
        let served = Registry::built_in().get("", "v1", "pods").unwrap().clone();
        let accept = Accept { form, encoding, ..Accept::JSON };
        Shown { served, accept, include: IncludeObject::Metadata }
    }

    #[test]
    fn a_form_is_made_once_for_all() {
        let forms = Forms::default();
        let shown = pods(Form::Object, Encoding::Protobuf);
        let json: Bytes = r#"{"metadata":{"name":"a"},"spec":{"nodeName":"n"}}"#.into();
        let key: Arc<str> = "acme/ns/a".into();
        let first = forms.of(&shown, &key, Revision(1), &json).unwrap();
        let again = forms.of(&shown, &"acme/ns/a".into(), Revision(1), &json).unwrap();
        assert_eq!(first.as_ptr(), again.as_ptr());
        let other = pods(Form::PartialMetadata, Encoding::Protobuf);
        assert_ne!(forms.of(&other, &key, Revision(1), &json).unwrap(), first);
        let changed: Bytes = r#"{"metadata":{"name":"a"}}"#.into();
        assert_ne!(forms.of(&shown, &key, Revision(2), &changed).unwrap(), first);
    }

    #[tokio::test]
    async fn what_is_packed_is_unpacked_once_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let server = crate::Server::alone(dir.path()).await.unwrap();
        let served = server.registry.get("", "v1", "configmaps").unwrap();
        let long = "what repeats itself ".repeat(2000);
        for (name, text) in [("long", long.as_str()), ("short", "")] {
            let key: Arc<str> = format!("acme/ns/{name}").into();
            let value = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","data":"{text}"}}"#);
            let change = Change::Put(value.clone().into());
            let write =
                Write::durable(served.collection.clone(), key.clone(), Expect::Absent, change);
            let (_, store) = served.place(&server.partitions, &TenantName::system(), "ns", name);
            let revision = store.write(write).await.unwrap().revision;
            let snapshot = store.read(&served.collection, ReadAt::Latest).await.unwrap();
            let kept = &snapshot.get(&key).unwrap().value;
            assert_eq!(kept.is_packed(), name == "long");
            let first = server.forms.text(served, &key, revision, kept).unwrap();
            assert_eq!(*first, value);
            let again = server.forms.text(served, &key, revision, kept).unwrap();
            assert_eq!(first.as_ptr(), again.as_ptr());
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let forms = Forms::default();
        let shown = pods(Form::Object, Encoding::Protobuf);
        let json: Bytes = format!(r#"{{"metadata":{{"name":"{}"}}}}"#, "x".repeat(100_000)).into();
        for revision in 0..300 {
            forms.of(&shown, &"acme/ns/a".into(), Revision(revision), &json).unwrap();
        }
        let kept = forms.0.lock();
        let all = kept.new.values().chain(kept.old.values());
        assert!(all.map(Bytes::len).sum::<usize>() <= 2 * (HALF + 200_000));
    }

    #[tokio::test]
    async fn long_lists_are_made_in_pieces() {
        use std::{pin::pin, task::Poll};

        let item = |n: usize| {
            let text = json!({"metadata": {"name": format!("n{n}")}, "x": "x".repeat(1000)});
            Text::from(Bytes::from(text.to_string()))
        };
        let items: Vec<Text> = (0..3000).map(item).collect();
        let meta = ListMeta(json!({"resourceVersion": "1"}));
        for (form, encoding, least) in [
            (Form::Object, Encoding::Json, 10),
            (Form::Object, Encoding::Protobuf, 100),
            (Form::Table, Encoding::Json, 100),
            (Form::PartialMetadataList, Encoding::Json, 100),
        ] {
            let shown = pods(form, encoding);
            let mut turns = 1;
            let mut list = pin!(shown.list(&meta, items.iter()));
            let made = loop {
                match futures::poll!(&mut list) {
                    Poll::Ready(made) => break made.unwrap(),
                    Poll::Pending => turns += 1,
                }
            };
            assert!(least < turns, "{form:?} {encoding:?}: {turns} turns");
            if encoding == Encoding::Json {
                let list: Value = serde_json::from_slice(&made).unwrap();
                let all = list.get("items").or_else(|| list.get("rows")).unwrap();
                assert_eq!(all.as_array().unwrap().len(), items.len());
            }
        }
    }

    #[tokio::test]
    async fn lists_of_metadata_are_not_asked_for_of_one() {
        let json: Bytes = "{}".into();
        let error = pods(Form::PartialMetadataList, Encoding::Json).object(&json).unwrap_err();
        assert_eq!(error.code, 406);
        let meta = ListMeta(json!({"resourceVersion": "1"}));
        let shown = pods(Form::PartialMetadata, Encoding::Json);
        let error = shown.list(&meta, [json.clone().into()].iter()).await.unwrap_err();
        assert_eq!(error.code, 406);
        let shown = pods(Form::PartialMetadataList, Encoding::Json);
        assert_eq!(
            shown.list(&meta, [json.into()].iter()).await.unwrap(),
            r#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{}}]}"#
        );
    }
}
