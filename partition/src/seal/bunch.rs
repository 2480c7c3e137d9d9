//! The data keys of the tenants of one partition.
//!
//! They lie in a collection of their own, one document per tenant at `TENANT//keys`, the one that
//! seals first:
//!
//! ```text
//! {"keys":[{"id":"..","by":"..","wrapped":"..","made":1767225600},..]}
//! ```
//!
//! No client can make objects in that collection: no group has such a name.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::{
    SealError, Vault,
    form::{self, Shut},
    key::{DataKey, DataKeyId},
};
use crate::{store::Collection, text::Text};

/// Where the documents lie.
pub(crate) const DOCUMENTS: &str = "_sealing/datakeys";

/// The collection of the documents.
pub(crate) fn documents() -> Collection {
    Collection::of(DOCUMENTS)
}

/// Whether a collection is the one of the documents.
pub(crate) fn is_document(collection: &str) -> bool {
    collection == DOCUMENTS
}

/// The tenant that a key belongs to.
pub(super) fn tenant_of(key: &str) -> &str {
    key.split_once('/').map_or(key, |(tenant, _)| tenant)
}

/// Where the document of a tenant lies.
pub(super) fn document_key(tenant: &str) -> String {
    format!("{tenant}//keys")
}

/// A document as it is stored.
#[derive(Serialize, Deserialize)]
struct Document {
    keys: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    id: String,
    by: String,
    wrapped: String,
    made: u64,
}

/// The data keys of one tenant, the one that seals first.
#[derive(Debug, Clone)]
pub(super) struct DataKeys(pub(super) Vec<Arc<DataKey>>);

impl DataKeys {
    pub(super) fn parse(tenant: &str, text: &[u8]) -> Result<Self, SealError> {
        let read: Document = serde_json::from_slice(text).map_err(|_| SealError::Document)?;
        let key = |row: Row| {
            let id = DataKeyId::parse(row.id.as_bytes()).ok_or(SealError::Document)?;
            let wrapped = STANDARD.decode(row.wrapped).map_err(|_| SealError::Document)?;
            Ok(Arc::new(DataKey::known(tenant, id, row.by, wrapped, row.made)))
        };
        read.keys.into_iter().map(key).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn text(&self) -> Result<Bytes, SealError> {
        let row = |key: &Arc<DataKey>| Row {
            id: key.id.to_string(),
            by: key.by.clone(),
            wrapped: STANDARD.encode(&key.wrapped),
            made: key.made,
        };
        let document = Document { keys: self.0.iter().map(row).collect() };
        serde_json::to_vec(&document).map(Bytes::from).map_err(|_| SealError::Document)
    }

    pub(super) fn by_id(&self, id: DataKeyId) -> Option<&Arc<DataKey>> {
        self.0.iter().find(|it| it.id == id)
    }

    /// What has been unwrapped stays so.
    pub(super) fn carried_over(mut self, before: &Self) -> Self {
        for key in &mut self.0 {
            if let Some(known) = before.by_id(key.id)
                && known.by == key.by
            {
                *key = known.clone();
            }
        }
        self
    }
}

/// See the module. What was applied to the partition's state teaches it.
pub(crate) struct Bunch {
    vault: Arc<Vault>,
    tenants: RwLock<HashMap<Box<str>, DataKeys>>,
    /// A key was missed: of a partition elsewhere, keys and values come on different ways.
    lacks: AtomicBool,
}

impl std::fmt::Debug for Bunch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bunch").field("tenants", &self.tenants.read().len()).finish_non_exhaustive()
    }
}

impl Bunch {
    pub(crate) fn new(vault: Arc<Vault>) -> Arc<Self> {
        Arc::new(Self { vault, tenants: RwLock::default(), lacks: AtomicBool::new(false) })
    }

    pub(super) fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// A document as it is now; `None` if it is gone.
    pub(crate) fn learn(&self, key: &str, text: Option<&[u8]>) {
        let tenant = tenant_of(key);
        let Some(text) = text else {
            self.tenants.write().remove(tenant);
            return;
        };
        match DataKeys::parse(tenant, text) {
            Ok(keys) => {
                let mut tenants = self.tenants.write();
                let keys = match tenants.get(tenant) {
                    Some(before) => keys.carried_over(before),
                    None => keys,
                };
                tenants.insert(tenant.into(), keys);
            }
            // What was known stays: those who look are told of what is missing.
            Err(error) => tracing::error!(tenant, %error, "data keys of a tenant are lost"),
        }
    }

    /// What a sealed value is kept as.
    pub(crate) fn keep(self: &Arc<Self>, collection: &Collection, key: &str, value: Bytes) -> Text {
        let id = form::parts(&value).ok().map(|it| it.id);
        let found = id.and_then(|id| self.find(key, id).ok());
        if found.is_none() {
            self.lack();
        }
        Text::shut(Shut::new(value, collection.clone(), key.into(), self.clone(), found))
    }

    /// A key is not known here, or no longer good.
    pub(crate) fn lack(&self) {
        self.lacks.store(true, Ordering::Release);
    }

    /// Whether a key was missed since the last call.
    pub(crate) fn take_lack(&self) -> bool {
        self.lacks.swap(false, Ordering::AcqRel)
    }

    /// A data key of the tenant that `key` belongs to.
    pub(super) fn find(&self, key: &str, id: DataKeyId) -> Result<Arc<DataKey>, SealError> {
        let tenants = self.tenants.read();
        let found = tenants.get(tenant_of(key)).and_then(|it| it.by_id(id)).cloned();
        found.ok_or_else(|| SealError::NoDataKey(id.to_string()))
    }
}
