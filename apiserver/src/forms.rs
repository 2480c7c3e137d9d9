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

    /// A list, in protobuf or JSON. What is packed is unpacked one after the other.
    pub(crate) fn list<'a>(
        &self,
        metadata: &ListMeta,
        items: impl Iterator<Item = &'a Text> + Clone,
    ) -> Result<Bytes> {
        let resource = &self.served.resource;
        let (api_version, kind) = match self.accept.form {
            Form::Object => (resource.api_version(), self.served.list_kind()),
            _ => (self.accept.meta.to_owned(), "PartialObjectMetadataList".to_owned()),
        };
        match (self.accept.form, self.accept.encoding) {
            (Form::PartialMetadata, _) => Err(ApiError::unfit_form(&format!(
                "you requested PartialObjectMetadata, but the requested object is a list ({}List)",
                resource.kind
            ))),
            (Form::Table, _) => {
                let objects = items.map(|it| serde_json::from_slice(&it.bytes()));
                let objects: std::result::Result<Vec<Value>, _> = objects.collect();
                let objects = objects.map_err(ApiError::internal)?;
                Ok(self.table(&objects, &metadata.0, true).to_string().into())
            }
            (_, Encoding::Protobuf) => {
                let (id, head) = (self.message_type()?, metadata.0.to_string());
                let kind = (&*api_version, &*kind);
                let texts: Vec<_> = items.map(Text::bytes).collect();
                let texts = texts.iter().map(|it| &***it);
                let made = proto::list(Schema::built_in(), id, kind, head.as_bytes(), texts);
                Ok(made.map_err(encoding_failed)?.into())
            }
            (Form::Object, _) => Ok(join(&kind, &api_version, metadata, items)),
            (Form::PartialMetadataList, _) => {
                let partial = |it: &Text| partial(self.accept.meta, &it.bytes()).map(Text::from);
                let items = items.map(partial).collect::<Result<Vec<Text>>>()?;
                Ok(join(&kind, &api_version, metadata, items.iter()))
            }
        }
    }
}

/// So much of a list is joined before threads that wait for the processor have it, in bytes.
const PIECE: usize = 64 * 1024;

/// The JSON of a list, from that of its items.
fn join<'a>(
    kind: &str,
    api_version: &str,
    metadata: &ListMeta,
    items: impl Iterator<Item = &'a Text> + Clone,
) -> Bytes {
    let size: usize = items.clone().map(|it| it.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 512);
    let head = format!(
        "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{},\"items\":[",
        metadata.0
    );
    out.extend_from_slice(head.as_bytes());
    let mut rested = 0;
    for (index, item) in items.enumerate() {
        if index != 0 {
            out.push(b',');
        }
        out.extend_from_slice(&item.bytes());
        if PIECE <= out.len() - rested {
            rested = out.len();
            std::thread::yield_now();
        }
    }
    out.extend_from_slice(b"]}");
    out.into()
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

    #[test]
    fn lists_of_metadata_are_not_asked_for_of_one() {
        let json: Bytes = "{}".into();
        let error = pods(Form::PartialMetadataList, Encoding::Json).object(&json).unwrap_err();
        assert_eq!(error.code, 406);
        let meta = ListMeta(json!({"resourceVersion": "1"}));
        let shown = pods(Form::PartialMetadata, Encoding::Json);
        assert_eq!(shown.list(&meta, [json.clone().into()].iter()).unwrap_err().code, 406);
        let shown = pods(Form::PartialMetadataList, Encoding::Json);
        assert_eq!(
            shown.list(&meta, [json.into()].iter()).unwrap(),
            r#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{}}]}"#
        );
    }
}
