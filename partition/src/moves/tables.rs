//! Changing the table of fences of a partition.

use bytes::Bytes;

use super::MoveError;
use crate::{
    fences::{self, FenceError, Fences, TABLE, Table},
    store::{Change, Durability, Expect, ReadAt, Revision, Store, StoreError, Write},
};

/// Changes a partition's table, again from its newest version if somebody else was faster.
/// Gives the revision of the table that has the change.
pub(super) async fn change(
    store: &dyn Store,
    change: impl Fn(&mut Table) -> Result<(), FenceError>,
) -> Result<Revision, MoveError> {
    loop {
        let snapshot = store.read(&fences::collection(), ReadAt::Latest).await?;
        let found = snapshot.get(TABLE);
        let (known, expect) = match found {
            Some(entry) => {
                let known = Fences::parse(&entry.value.bytes(), entry.modified);
                known.check_history(Revision(u64::MAX))?;
                (known, Expect::At(entry.modified))
            }
            None => (Fences::default(), Expect::Absent),
        };
        let mut table = known.table().clone();
        change(&mut table)?;
        if found.is_some() && table == *known.table() {
            return Ok(known.written());
        }
        let value = serde_json::to_vec(&table).map_err(|error| StoreError::Unavailable {
            reason: "the table of fences cannot be written down".into(),
            source: Some(error.into()),
        })?;
        let write = Write {
            collection: fences::collection(),
            key: TABLE.into(),
            expect,
            change: Change::Put(Bytes::from(value)),
            durability: Durability::Durable,
            by_move: None,
            within: None,
            epoch: None,
        };
        match store.write(write).await {
            Ok(committed) => return Ok(committed.revision),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
