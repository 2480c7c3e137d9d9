//! What a sealed value looks like.
//!
//! ```text
//! {"sealed":"ID","apiVersion":..,"kind":..,"metadata":{"resourceVersion":"42",..}} 0 nonce 12 | text | tag 16
//! ```
//!
//! In front is a husk: JSON with the place for the revision where every value has it
//! ([`crate::value`]), and of the metadata what is no secret, so that an object whose key is gone
//! can still be told, found by its labels and deleted. What is sealed is the whole text as it was
//! written, annotations and all, byte for byte. No object begins as a husk does: those of the API
//! begin with their `apiVersion`.
//!
//! The collection and the key are bound to what is sealed, the husk is not: nothing is believed of
//! it that the text says, too.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    SealError,
    bunch::Bunch,
    key::{DataKey, DataKeyId, ID_TEXT},
    vault::Settings,
};
use crate::{
    store::{Collection, StoreError},
    value,
};

const BEGIN: &[u8] = br#"{"sealed":""#;
/// Behind the id.
const NEXT: &[u8] = br#"","#;
/// Where the husk ends. No JSON has this byte.
const END: u8 = 0;

/// Whether a stored value is sealed.
pub(crate) fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(BEGIN)
}

/// What a sealed value is made of, as it lies there.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    pub(super) id: DataKeyId,
    /// The husk behind the id.
    rest: &'a [u8],
    body: &'a [u8],
}

impl<'a> Parts<'a> {
    /// The husk as an object.
    pub fn husk(&self) -> Bytes {
        [b"{", self.rest].concat().into()
    }

    /// What is sealed.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// Takes a sealed value apart. Total: what is no sealed value is an error.
pub fn parts(value: &[u8]) -> Result<Parts<'_>, SealError> {
    let read = || {
        let (id, rest) = value.strip_prefix(BEGIN)?.split_at_checked(ID_TEXT)?;
        let rest = rest.strip_prefix(NEXT)?;
        let end = rest.iter().position(|byte| *byte == END)?;
        let (rest, body) = rest.split_at_checked(end)?;
        Some(Parts { id: DataKeyId::parse(id)?, rest, body: body.get(1..)? })
    };
    read().ok_or(SealError::Malformed)
}

/// What of an object's text is left readable.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, rename = "apiVersion")]
    api_version: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: BTreeMap<String, &'a RawValue>,
}

/// Fields of metadata that may say what the object holds: appliers keep all they sent in an
/// annotation, and managers name its fields.
const HIDDEN: [&str; 3] = ["resourceVersion", "annotations", "managedFields"];

/// Seals `text`, which is to lie at `key` of `collection`.
pub(super) fn seal(
    data_key: &DataKey,
    settings: &Settings,
    collection: &Collection,
    key: &str,
    text: &[u8],
) -> Result<Bytes, SealError> {
    let body = data_key.seal(settings, &place(collection, key), text)?;
    let head: Option<Head<'_>> = serde_json::from_slice(text).ok();
    let mut out = Vec::with_capacity(512 + body.len());
    out.extend_from_slice(BEGIN);
    out.extend_from_slice(data_key.id.to_string().as_bytes());
    out.extend_from_slice(NEXT);
    let named = head.as_ref().map(|it| [("apiVersion", it.api_version), ("kind", it.kind)]);
    for (name, value) in named.into_iter().flatten() {
        if let Some(value) = value {
            out.extend_from_slice(format!("\"{name}\":{},", value.get()).as_bytes());
        }
    }
    out.extend_from_slice(br#""metadata":{"resourceVersion":"""#);
    for (name, value) in head.iter().flat_map(|it| &it.metadata) {
        if !HIDDEN.contains(&name.as_str()) {
            let name = serde_json::Value::from(name.as_str());
            out.extend_from_slice(format!(",{name}:{}", value.get()).as_bytes());
        }
    }
    out.extend_from_slice(b"}}");
    out.push(END);
    out.extend_from_slice(&body);
    Ok(out.into())
}

/// What a sealed value is bound to. Neither part has the byte that is between them.
fn place(collection: &Collection, key: &str) -> Vec<u8> {
    [b"insula value\0", collection.as_str().as_bytes(), b"\0", key.as_bytes()].concat()
}

/// A sealed value where it lies, with what it takes to open it.
pub(crate) struct Shut {
    bytes: Bytes,
    collection: Collection,
    key: Arc<str>,
    bunch: Arc<Bunch>,
    /// Found when it was put here, or first looked at; good for as long as the value is around,
    /// also if its tenant ends meanwhile.
    data_key: RwLock<Option<Arc<DataKey>>>,
}

impl std::fmt::Debug for Shut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shut({} {})", self.collection, self.key)
    }
}

impl Shut {
    pub(super) fn new(
        bytes: Bytes,
        collection: Collection,
        key: Arc<str>,
        bunch: Arc<Bunch>,
        data_key: Option<Arc<DataKey>>,
    ) -> Self {
        Self { bytes, collection, key, bunch, data_key: RwLock::new(data_key) }
    }

    /// As it is stored.
    pub(crate) fn stored(&self) -> &Bytes {
        &self.bytes
    }

    /// The text that was sealed, with the revision in it.
    pub(crate) fn open(&self) -> Result<Bytes, StoreError> {
        self.opened().map_err(|source| {
            self.bunch.lack();
            let (collection, key) = (self.collection.clone(), self.key.clone());
            StoreError::Sealed { collection, key, source }
        })
    }

    fn opened(&self) -> Result<Bytes, SealError> {
        let parts = parts(&self.bytes)?;
        let settings = self.bunch.vault().settings();
        let known = self.data_key.read().clone();
        let data_key = match known.filter(|it| it.is_unwrapped()) {
            Some(known) => known,
            // It may have been wrapped anew.
            None => {
                let found = self.bunch.find(&self.key, parts.id)?;
                *self.data_key.write() = Some(found.clone());
                found
            }
        };
        let text = data_key.open(&settings, &place(&self.collection, &self.key), parts.body)?;
        Ok(value::with_revision_of(&text, &self.bytes))
    }

    /// What is readable without any key.
    pub(crate) fn husk(&self) -> Bytes {
        parts(&self.bytes).map(|it| it.husk()).unwrap_or_default()
    }
}
