//! Writing an archive to partitions that hold nothing.

use std::io::{Read, Seek};

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    archive::{ArchiveError, Part, Summary, Unpacker, check},
    take::OWN,
};
use crate::{
    map::ShardKey,
    moves::MoveError,
    partitions::Partitions,
    store::{Change, Durability, Expect, StoreError, Write},
};

/// Writes under way at once.
const AT_ONCE: usize = 256;

/// Why an archive was not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Nothing was written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Nothing was written.
    #[error("partition {partition} holds {objects} objects; restore to one that holds nothing")]
    NotEmpty { partition: String, objects: u64 },
    #[error("could not go back to the backup's beginning")]
    Rewind(#[source] std::io::Error),
    #[error("partition {partition} failed; begin again with partitions that hold nothing")]
    Store {
        partition: String,
        #[source]
        source: StoreError,
    },
    #[error("tenant {tenant} could not be pinned to where it was")]
    Pin {
        tenant: String,
        #[source]
        source: MoveError,
    },
}

/// Reads an archive once to check all of it, then once more to write what it holds to
/// `partitions`, wherever each object belongs there. `progress` is told how many objects are
/// written.
///
/// Tenants that were pinned to a partition which is there, too, are pinned again.
pub async fn restore(
    mut from: impl Read + Seek,
    partitions: &Partitions,
    mut progress: impl FnMut(u64),
) -> Result<Summary, RestoreError> {
    let summary = check(&mut from)?;
    from.rewind().map_err(RestoreError::Rewind)?;
    for name in partitions.names() {
        let Some(store) = partitions.store(&name) else { continue };
        let failed = |source| RestoreError::Store { partition: name.clone(), source };
        let held = store.collections().await.map_err(failed)?;
        let objects = store.stats().objects;
        if held.iter().any(|collection| !collection.as_str().starts_with(OWN)) {
            return Err(RestoreError::NotEmpty { partition: name, objects });
        }
        // Any object may come here, with a revision of whichever partition it was on.
        store.raise(summary.newest).await.map_err(failed)?;
    }
    let mut unpacker = Unpacker::begin(from)?;
    let mut written = 0;
    loop {
        match unpacker.next()? {
            Part::Header(header) => {
                for (tenant, partition) in header.map.pins() {
                    if partitions.names().contains(partition) {
                        let pinned = partitions.pin(tenant, Some(partition)).await;
                        pinned.map_err(|source| RestoreError::Pin {
                            tenant: tenant.clone(),
                            source,
                        })?;
                    }
                }
            }
            Part::Partition(_) => {}
            Part::Rows(rows) => {
                let count = rows.len() as u64;
                let writes = rows.into_iter().map(async |(collection, key, entry)| {
                    let place = partitions.place(&ShardKey::of(collection.as_str(), &key));
                    let write = Write {
                        collection,
                        key: key.into(),
                        expect: Expect::Absent,
                        change: Change::Put(entry.value.into_bytes()),
                        durability: Durability::Durable,
                        by_move: None,
                        within: None,
                        epoch: None,
                    };
                    match place.store.write(write).await {
                        Ok(_) => Ok(()),
                        Err(source) => {
                            let partition = place.partition.as_ref().to_owned();
                            Err(RestoreError::Store { partition, source })
                        }
                    }
                });
                let all = stream::iter(writes).buffer_unordered(AT_ONCE);
                all.try_collect::<()>().await?;
                written += count;
                progress(written);
            }
            Part::End => return Ok(summary),
        }
    }
}
