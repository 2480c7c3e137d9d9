//! A partition whose values are sealed before any backend sees them.
//!
//! What comes back is opened by whoever looks at it ([`crate::text::Text`]); of reads and watches
//! nothing passes through here.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use parking_lot::Mutex;

use super::{
    SealError, Vault,
    bunch::{DataKeys, document_key, documents, tenant_of},
    form::{self, is_sealed},
    key::DataKey,
};
use crate::{
    store::{Change, Committed, Expect, ReadAt, Revision, Store, StoreError, Write},
    value,
};

/// How often somebody else may be faster.
const ATTEMPTS: usize = 16;

/// Tenants whose keys are remembered; then all are forgotten.
const REMEMBERED: usize = 4096;

/// See the module.
pub(crate) struct SealingStore {
    inner: Arc<dyn Store>,
    vault: Arc<Vault>,
    /// By tenant, as the document of that revision says.
    known: Mutex<HashMap<Box<str>, (Revision, DataKeys)>>,
}

impl SealingStore {
    pub(crate) fn new(inner: Arc<dyn Store>, vault: Arc<Vault>) -> Self {
        Self { inner, vault, known: Mutex::default() }
    }

    async fn sealed(&self, mut write: Write, text: Bytes) -> Result<Committed, StoreError> {
        let failed = |source| StoreError::Sealed {
            collection: write.collection.clone(),
            key: write.key.clone(),
            source,
        };
        let data_key = match self.data_key(&write.key).await? {
            Ok(key) => key,
            Err(source) => return Err(failed(source)),
        };
        let settings = self.vault.settings();
        let sealed = form::seal(&data_key, &settings, &write.collection, &write.key, &text);
        let sealed = sealed.map_err(failed)?;
        // Not held while others are waited for.
        drop(settings);
        write.change = Change::Put(sealed);
        let mut committed = self.inner.write(write).await?;
        committed.entry.value = value::with_revision(&text, committed.revision).into();
        Ok(committed)
    }

    /// The key that seals what the tenant of `key` writes now; made if there is none yet, or if it
    /// has sealed enough.
    async fn data_key(&self, key: &str) -> Result<Result<Arc<DataKey>, SealError>, StoreError> {
        let tenant = tenant_of(key);
        let place = document_key(tenant);
        for _ in 0..ATTEMPTS {
            let snapshot = self.inner.read(&documents(), ReadAt::Any).await?;
            let found = snapshot.get(&place);
            let (expect, keys) = match found {
                Some(entry) => {
                    let keys = match self.keys(tenant, entry.modified, &entry.value.stored()) {
                        Ok(keys) => keys,
                        Err(error) => return Ok(Err(error)),
                    };
                    match keys.0.first().filter(|it| !it.is_worn()) {
                        Some(first) => return Ok(Ok(first.clone())),
                        None => (Expect::At(entry.modified), keys.0),
                    }
                }
                None => (Expect::Absent, Vec::new()),
            };
            let text = match with_another(tenant, keys, &self.vault) {
                Ok(text) => text,
                Err(error) => return Ok(Err(error)),
            };
            let write = Write::durable(documents(), place.as_str(), expect, Change::Put(text));
            match self.inner.write(write).await {
                // Read again: whoever was faster made one.
                Ok(_) | Err(StoreError::Conflict { .. }) => (),
                Err(error) => return Err(error),
            }
        }
        let reason = format!("the data keys of tenant {tenant} change all the time");
        Err(StoreError::Unavailable { reason, source: None })
    }

    fn keys(&self, tenant: &str, at: Revision, text: &[u8]) -> Result<DataKeys, SealError> {
        let mut known = self.known.lock();
        let before = known.get(tenant);
        if let Some((_, keys)) = before.filter(|(revision, _)| *revision == at) {
            return Ok(keys.clone());
        }
        let mut keys = DataKeys::parse(tenant, text)?;
        if let Some((_, before)) = before {
            keys = keys.carried_over(before);
        }
        if REMEMBERED <= known.len() {
            known.clear();
        }
        known.insert(tenant.into(), (at, keys.clone()));
        Ok(keys)
    }
}

/// The document of a tenant's keys with a new one in front.
pub(super) fn with_another(
    tenant: &str,
    mut keys: Vec<Arc<DataKey>>,
    vault: &Vault,
) -> Result<Bytes, SealError> {
    keys.insert(0, Arc::new(DataKey::make(tenant, now(), &vault.settings())?));
    DataKeys(keys).text()
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

impl crate::layer::Layer for SealingStore {
    fn below(&self) -> &dyn Store {
        &*self.inner
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        match &write.change {
            // What moves, and what comes from a backup or another server, is sealed already or
            // stays as it is.
            Change::Put(text)
                if write.by_move.is_none()
                    && self.vault.settings().seals(&write.collection)
                    && !is_sealed(text) =>
            {
                let text = text.clone();
                self.sealed(write, text).boxed()
            }
            _ => self.inner.write(write),
        }
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Committed, StoreError>>> {
        let settings = self.vault.settings();
        match writes.iter().any(|write| settings.seals(&write.collection)) {
            true => join_all(writes.into_iter().map(|write| Store::write(self, write))).boxed(),
            false => self.inner.write_all(writes),
        }
    }
}
