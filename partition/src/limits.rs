//! How much a partition takes, whichever backend it has.

use crate::store::{Change, StoreError, Write};

/// Longest key, in bytes. A tenant, a namespace and a name fit thrice.
pub(crate) const MAX_KEY: usize = 2048;

/// Longest collection name, in bytes.
pub(crate) const MAX_COLLECTION: usize = 512;

/// Largest value, in bytes: what etcd takes in one request by default.
pub(crate) const MAX_VALUE: usize = 3 << 19;

/// Refuses what is larger than a partition takes.
pub(crate) fn check_limits(write: &Write) -> Result<(), StoreError> {
    let value = match &write.change {
        Change::Put(value) => value.len(),
        Change::Delete => 0,
    };
    let sizes = [
        (write.collection.as_str().len(), MAX_COLLECTION),
        (write.key.len(), MAX_KEY),
        (write.epoch.as_ref().map_or(0, |epoch| epoch.task.len()), MAX_KEY),
        (value, MAX_VALUE),
    ];
    match sizes.into_iter().find(|(size, limit)| limit < size) {
        Some((size, limit)) => Err(StoreError::TooLarge { size, limit }),
        None => Ok(()),
    }
}
