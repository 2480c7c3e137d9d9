//! Having what lies in a partition follow the keys and the configuration, and telling how it
//! stands.
//!
//! A pass may be made by any server at any time, by several at once, and be cut off anywhere: each
//! of its writes expects what it saw.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde::Serialize;

use super::{
    SealError, Vault,
    bunch::{DataKeys, documents, tenant_of},
    form::parts,
    key::{DataKey, DataKeyId},
    store::{now, with_another},
};
use crate::{
    snapshot::Snapshot,
    store::{Change, Collection, Expect, ReadAt, Store, StoreError, Write},
};

/// A data key that seals no longer is kept for so long at least, in seconds: for writers that have
/// not heard of the next one, and for readers of history.
const KEPT: u64 = 3600;

/// How what is sealed stands, of one partition or several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Number of data keys by the cluster key that wraps them.
    pub data_keys: BTreeMap<String, u64>,
    /// Values that the newest data key of their tenant seals.
    pub sealed: u64,
    /// Values that an older one seals.
    pub older: u64,
    /// Values that are to be sealed and are not yet.
    pub unsealed: u64,
    /// Values and data keys that cannot be opened here, and the first reason.
    pub lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Standing {
    fn lose(&mut self, error: &SealError) {
        self.lost += 1;
        self.reason.get_or_insert_with(|| error.to_string());
    }

    /// Adds what another partition has.
    pub fn add(&mut self, other: Self) {
        for (key, count) in other.data_keys {
            *self.data_keys.entry(key).or_default() += count;
        }
        self.sealed += other.sealed;
        self.older += other.older;
        self.unsealed += other.unsealed;
        self.lost += other.lost;
        self.reason = self.reason.take().or(other.reason);
    }
}

/// The cluster keys that `vault` lacks and that data keys of a partition are wrapped with, each with
/// the number of those; as far as this process knows the partition.
pub async fn lacking(
    store: &dyn Store,
    vault: &Vault,
) -> Result<BTreeMap<String, u64>, StoreError> {
    let documents = store.read(&documents(), ReadAt::Any).await?;
    let settings = vault.settings();
    let mut lacking = BTreeMap::new();
    for (key, entry) in documents.range("", None) {
        let Ok(keys) = DataKeys::parse(tenant_of(key), &entry.value.stored()) else { continue };
        for data_key in keys.0.iter().filter(|it| settings.by_id(&it.by).is_none()) {
            *lacking.entry(data_key.by.clone()).or_default() += 1;
        }
    }
    Ok(lacking)
}

/// What is to be done with a value.
enum Value {
    /// It is as it should be.
    Good,
    Older,
    Unsealed,
    Lost(SealError),
}

/// What a partition holds of keys and sealed values.
struct Seen {
    documents: Snapshot,
    collections: Vec<(Collection, Snapshot)>,
}

impl Seen {
    async fn read(store: &dyn Store, vault: &Vault) -> Result<Self, StoreError> {
        let documents = store.read(&documents(), ReadAt::Latest).await?;
        let mut collections = Vec::new();
        for collection in store.collections().await? {
            if vault.settings().seals(&collection) {
                let snapshot = store.read(&collection, ReadAt::Latest).await?;
                collections.push((collection, snapshot));
            }
        }
        Ok(Self { documents, collections })
    }

    /// The keys of each tenant.
    fn keys(&self) -> impl Iterator<Item = (&Arc<str>, Result<DataKeys, SealError>)> {
        self.documents
            .range("", None)
            .map(|(key, entry)| (key, DataKeys::parse(tenant_of(key), &entry.value.stored())))
    }
}

fn judge(stored: &[u8], keys: Option<&DataKeys>) -> Value {
    if !super::is_sealed(stored) {
        return Value::Unsealed;
    }
    let id = match parts(stored) {
        Ok(parts) => parts.id,
        Err(error) => return Value::Lost(error),
    };
    match keys.map(|keys| (keys.by_id(id).is_some(), keys.0.first())) {
        Some((true, Some(first))) if first.id == id => Value::Good,
        Some((true, _)) => Value::Older,
        _ => Value::Lost(SealError::NoDataKey(id.to_string())),
    }
}

/// How a partition stands. Reads all that is to be sealed.
pub async fn standing(store: &dyn Store, vault: &Vault) -> Result<Standing, StoreError> {
    let seen = Seen::read(store, vault).await?;
    let mut standing = Standing::default();
    let mut tenants: BTreeMap<&str, DataKeys> = BTreeMap::new();
    for (key, keys) in seen.keys() {
        match keys {
            Ok(keys) => {
                for key in &keys.0 {
                    *standing.data_keys.entry(key.by.clone()).or_default() += 1;
                    if vault.settings().by_id(&key.by).is_none() {
                        let (wanted, known) = (key.by.clone(), vault.settings().known());
                        standing.lose(&SealError::NoClusterKey { wanted, known });
                    }
                }
                tenants.insert(tenant_of(key), keys);
            }
            Err(error) => standing.lose(&error),
        }
    }
    for (_, snapshot) in &seen.collections {
        for (key, entry) in snapshot.range("", None) {
            match judge(&entry.value.stored(), tenants.get(tenant_of(key))) {
                Value::Good => standing.sealed += 1,
                Value::Older => standing.older += 1,
                Value::Unsealed => standing.unsealed += 1,
                Value::Lost(error) => standing.lose(&error),
            }
        }
    }
    Ok(standing)
}

/// Wraps data keys anew that the first cluster key does not wrap yet, seals what is not sealed or
/// is sealed with an older data key, and drops data keys that nothing needs. `renew` gives every
/// tenant a new data key first. `store` seals what is written to it.
///
/// What cannot be opened stays as it is, and is told by [`standing`]. So does what is moving.
pub async fn pass(store: &dyn Store, vault: &Vault, renew: bool) -> Result<(), StoreError> {
    let seen = Seen::read(store, vault).await?;
    for (place, keys) in seen.keys() {
        let Ok(keys) = keys else { continue };
        let text = match wrapped_anew(tenant_of(place), keys, vault, renew) {
            Ok(Some(text)) => text,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(tenant = tenant_of(place), %error, "data keys stay as they are");
                continue;
            }
        };
        put(store, &documents(), place, &seen.documents, text).await?;
    }
    let seen = Seen::read(store, vault).await?;
    let keys: BTreeMap<&str, DataKeys> =
        seen.keys().filter_map(|(place, keys)| Some((tenant_of(place), keys.ok()?))).collect();
    for (collection, snapshot) in &seen.collections {
        for (key, entry) in snapshot.range("", None) {
            if let Value::Good | Value::Lost(_) =
                judge(&entry.value.stored(), keys.get(tenant_of(key)))
            {
                continue;
            }
            match entry.value.clone().opened() {
                Ok(text) => put(store, collection, key, snapshot, text.into_bytes()).await?,
                Err(error) => tracing::warn!(%error, "a value stays as it is"),
            }
        }
    }
    let is_old = |keys: &DataKeys| {
        1 < keys.0.len() && keys.0.first().is_some_and(|it| it.made.saturating_add(KEPT) < now())
    };
    match keys.values().any(is_old) {
        true => drop_unused(store, &seen.documents, is_old).await,
        false => Ok(()),
    }
}

/// Drops data keys that nothing is sealed with, of tenants whose keys `is_old`. Looks at all
/// collections: some may have been sealed once.
async fn drop_unused(
    store: &dyn Store,
    documents: &Snapshot,
    is_old: impl Fn(&DataKeys) -> bool,
) -> Result<(), StoreError> {
    let mut used: HashSet<DataKeyId> = HashSet::new();
    for collection in store.collections().await? {
        let snapshot = store.read(&collection, ReadAt::Latest).await?;
        let sealed = snapshot.range("", None).filter(|(_, entry)| entry.value.is_sealed());
        used.extend(sealed.filter_map(|(_, it)| parts(&it.value.stored()).ok().map(|it| it.id)));
    }
    for (place, entry) in documents.range("", None) {
        let Ok(mut keys) = DataKeys::parse(tenant_of(place), &entry.value.stored()) else {
            continue;
        };
        let (before, first) = (keys.0.len(), keys.0.first().map(|it| it.id));
        let is_due = is_old(&keys);
        keys.0.retain(|it| Some(it.id) == first || used.contains(&it.id));
        if is_due
            && keys.0.len() < before
            && let Ok(text) = keys.text()
        {
            put(store, &super::documents(), place, documents, text).await?;
        }
    }
    Ok(())
}

/// Writes what takes the place of what `seen` has. Others may be faster, and it may be moving.
async fn put(
    store: &dyn Store,
    collection: &Collection,
    key: &Arc<str>,
    seen: &Snapshot,
    text: bytes::Bytes,
) -> Result<(), StoreError> {
    let Some(entry) = seen.get(key) else { return Ok(()) };
    let expect = Expect::At(entry.modified);
    let write = Write::durable(collection.clone(), key.clone(), expect, Change::Put(text));
    match store.write(write).await {
        Ok(_) | Err(StoreError::Conflict { .. } | StoreError::Moving { .. }) => Ok(()),
        Err(StoreError::Sealed { key, source, .. }) => {
            tracing::warn!(%key, error = %source, "a value is not sealed anew");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The document of a tenant's keys under the first cluster key; `None` if it is so already.
fn wrapped_anew(
    tenant: &str,
    keys: DataKeys,
    vault: &Vault,
    renew: bool,
) -> Result<Option<bytes::Bytes>, SealError> {
    let settings = vault.settings();
    let first = settings.first()?.id();
    let is_good = |key: &Arc<DataKey>| key.by == first;
    if keys.0.iter().all(is_good) && !renew {
        return Ok(None);
    }
    let anew = |key: Arc<DataKey>| match is_good(&key) {
        true => Ok(key),
        false => key.wrapped_anew(&settings).map(Arc::new),
    };
    let keys = keys.0.into_iter().map(anew).collect::<Result<Vec<_>, _>>()?;
    match renew {
        true => with_another(tenant, keys, vault).map(Some),
        false => DataKeys(keys).text().map(Some),
    }
}
