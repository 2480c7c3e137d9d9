//! The partition map as an object of partition `meta`.

use std::{io, path::Path};

use bytes::Bytes;

use super::{ChangeError, META};
use crate::{
    embedded::write_atomically,
    error::OpenError,
    map::{MapError, PartitionMap},
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
            return Ok(map);
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
    let map = serde_json::from_slice(&entry.value.bytes())
        .map_err(|error| StoreError::Damaged { what: format!("partition map: {error}") })?;
    Ok(Some((map, entry.modified)))
}

/// Changes the stored map: `change` makes the next one from the newest, again if another server
/// was faster.
pub(super) async fn change_map(
    meta: &dyn Store,
    change: impl Fn(&PartitionMap) -> Result<PartitionMap, MapError>,
) -> Result<PartitionMap, ChangeError> {
    loop {
        let Some((current, revision)) = read_map(meta).await? else {
            let what = "the partition map is gone".into();
            return Err(StoreError::Damaged { what }.into());
        };
        let next = change(&current)?;
        if next.epoch() == current.epoch() {
            return Ok(current);
        }
        // A change may be made of several.
        match write_map(meta, &next, Expect::At(revision)).await {
            Ok(()) => return Ok(next),
            // Another server changed the map: decide again from its version.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

const COPY: &str = "map.json";

/// This server's own copy of the last map that it knew, to find the others at a restart.
pub(super) fn read_copy(dir: &Path) -> Result<Option<PartitionMap>, OpenError> {
    if dir.as_os_str().is_empty() {
        return Ok(None);
    }
    let path = dir.join(COPY);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::io("read", &path, source)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| OpenError::Damaged { what: format!("{}: {error}", path.display()) })
}

/// Keeps `map` for [`read_copy`].
pub(super) fn write_copy(dir: &Path, map: &PartitionMap) -> Result<(), OpenError> {
    if dir.as_os_str().is_empty() {
        return Ok(());
    }
    let path = dir.join(COPY);
    let failed = |source| OpenError::io("write", &path, source);
    let text = serde_json::to_vec(map).map_err(|error| failed(error.into()))?;
    std::fs::create_dir_all(dir).map_err(failed)?;
    write_atomically(&path, &text).map_err(failed)
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
        within: None,
        epoch: None,
    };
    meta.write(write).await.map(drop)
}
