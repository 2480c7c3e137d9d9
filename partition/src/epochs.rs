//! Who may write on behalf of a lasting task, such as the controllers' care for some tenants.
//!
//! Such a task has one holder at a time, and every change of holder begins a new epoch. A
//! partition keeps the newest epoch of each task that it was told of, as an ordinary value of its
//! own: collection `insula/epochs`, the task's name, the epoch in decimal. A write that names a
//! task and an epoch ([`crate::store::Write::epoch`]) is done only while the partition keeps
//! exactly that epoch, which is decided together with the write: in a raft group when it is
//! applied, in an etcd by the write's own transaction.
//!
//! So a holder that slept through its own replacement can change nothing any more: whoever
//! replaces it first raises the epoch in every partition, and what was written before that can be
//! read by whoever reads after it.
//!
//! # Invariants
//!
//! * A task's epoch in a partition only grows.
//! * Where no epoch was raised nobody writes for the task.
//! * Writes that name no task cost nothing, and see nothing of this.

use futures::future::try_join_all;

use crate::{
    snapshot::Entry,
    store::{Change, Collection, Expect, ReadAt, Store, StoreError, Write},
};

/// The collection that holds a partition's epochs.
pub(crate) const EPOCHS: &str = "insula/epochs";

/// A task, and the epoch of whoever writes for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// The task's name; a key of the collection.
    pub task: std::sync::Arc<str>,
    pub number: u64,
}

/// The collection that holds a partition's epochs.
pub fn collection() -> Collection {
    Collection::of(EPOCHS)
}

/// The value that a partition keeps.
pub(crate) fn value(number: u64) -> String {
    number.to_string()
}

/// The epoch that `entry` keeps; 0, which nobody has, if there is none or it cannot be read.
fn kept(entry: Option<&Entry>) -> u64 {
    let read = |entry: &Entry| std::str::from_utf8(&entry.value.bytes()).ok()?.parse().ok();
    entry.and_then(read).unwrap_or(0)
}

/// Refuses a write unless the partition keeps its epoch. `entry` is what it keeps.
pub(crate) fn check(entry: Option<&Entry>, task: &str, number: u64) -> Result<(), StoreError> {
    let newest = kept(entry);
    match newest == number {
        true => Ok(()),
        false => Err(StoreError::Superseded { task: task.into(), epoch: number, newest }),
    }
}

/// Raises epochs to `wanted`. Those that are newer already stay, and are returned.
pub async fn raise(store: &dyn Store, wanted: &[Epoch]) -> Result<Vec<Epoch>, StoreError> {
    let snapshot = store.read(&collection(), ReadAt::Latest).await?;
    let raised = wanted.iter().map(|epoch| raise_one(store, epoch, snapshot.get(&epoch.task)));
    Ok(try_join_all(raised).await?.into_iter().flatten().collect())
}

async fn raise_one(
    store: &dyn Store,
    wanted: &Epoch,
    found: Option<&Entry>,
) -> Result<Option<Epoch>, StoreError> {
    let mut found = found.cloned();
    loop {
        let newest = kept(found.as_ref());
        if wanted.number <= newest {
            let newer = Epoch { task: wanted.task.clone(), number: newest };
            return Ok((wanted.number < newest).then_some(newer));
        }
        let expect = found.map_or(Expect::Absent, |entry| Expect::At(entry.modified));
        let change = Change::Put(value(wanted.number).into());
        match store.write(Write::durable(collection(), wanted.task.clone(), expect, change)).await {
            Ok(_) => return Ok(None),
            Err(StoreError::Conflict { found: newer, .. }) => found = newer,
            Err(error) => return Err(error),
        }
    }
}
