//! The partition map as an object of partition `meta`.

use bytes::Bytes;

use super::META;
use crate::{
    error::OpenError,
    map::PartitionMap,
    store::{Change, Collection, Durability, Expect, ReadAt, Revision, Store, StoreError, Write},
};

pub(super) fn map_collection() -> Collection {
    Collection::new("insula", "partitionmaps")
}

const MAP_KEY: &str = "current";

/// The stored map; the first start makes it.
pub(super) async fn load_map(
    meta: &dyn Store,
    first: &PartitionMap,
) -> Result<PartitionMap, OpenError> {
    let failed = |source| OpenError::Partition { partition: META.into(), source };
    loop {
        if let Some((map, _)) = read_map(meta).await.map_err(failed)? {
            let mut found = map.partitions().to_vec();
            let mut asked = first.partitions().to_vec();
            found.sort();
            asked.sort();
            return if found == asked {
                Ok(map)
            } else {
                Err(OpenError::Partitions { found, asked })
            };
        }
        match write_map(meta, first, Expect::Absent).await {
            // Conflict: another server starts for the first time too, and was first.
            Ok(()) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

pub(super) async fn read_map(
    meta: &dyn Store,
) -> Result<Option<(PartitionMap, Revision)>, StoreError> {
    let snapshot = meta.read(&map_collection(), ReadAt::Latest).await?;
    let Some(entry) = snapshot.get(MAP_KEY) else { return Ok(None) };
    let map = serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Damaged { what: format!("partition map: {error}") })?;
    Ok(Some((map, entry.modified)))
}

pub(super) async fn write_map(
    meta: &dyn Store,
    map: &PartitionMap,
    expect: Expect,
) -> Result<(), StoreError> {
    let value = serde_json::to_vec(map).map_err(|error| StoreError::Unavailable {
        reason: "the partition map cannot be written down".into(),
        source: Some(error.into()),
    })?;
    let write = Write {
        collection: map_collection(),
        key: MAP_KEY.into(),
        expect,
        change: Change::Put(Bytes::from(value)),
        durability: Durability::Durable,
        by_move: None,
    };
    meta.write(write).await.map(drop)
}
