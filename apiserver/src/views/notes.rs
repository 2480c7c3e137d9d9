//! What operators and their tools write on objects that are made from the partition map: labels,
//! annotations, and who applied which fields. `kubectl apply` finds there what it applied last.
//!
//! They are values of `meta`, collection `insula/notes`, key `RESOURCE/NAME`. The objects do
//! without them while `meta` cannot be read for the first time, and with the last known ones later.

use insula_api::object;
use insula_partition::{
    partitions::{META, Partitions},
    snapshot::Snapshot,
    store::{Change, Collection, Expect, ReadAt, Store, StoreError, Write},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Kind, Made};
use crate::error::chain;

/// A note on what is not there is forgotten after so many milliseconds: objects of the map go
/// without a word, and others may be made while somebody looks.
const KEPT: u64 = 3_600_000;

/// One object's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Note {
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    labels: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    annotations: Map<String, Value>,
    /// Who applied which fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    managed_fields: Vec<Value>,
    /// When it was written, in milliseconds.
    #[serde(default)]
    written: u64,
}

/// The notes on objects of one view.
pub(super) struct Notes {
    kind: Kind,
    known: Mutex<Option<Snapshot>>,
}

fn collection() -> Option<Collection> {
    Collection::parse("insula/notes")
}

impl Notes {
    pub(super) fn of(kind: Kind) -> Self {
        Self { kind, known: Mutex::default() }
    }

    fn key(&self, name: &str) -> String {
        let resource = match self.kind {
            Kind::Partitions => "partitions",
            Kind::Servers => "servers",
            Kind::Moves => "partitionmoves",
        };
        format!("{resource}/{name}")
    }

    /// Adds to each object what is noted of it.
    pub(super) async fn add(&self, partitions: &Partitions, made: &mut [Made]) {
        if let (Some(meta), Some(collection)) = (partitions.store(META), collection()) {
            match meta.read(&collection, ReadAt::Any).await {
                Ok(snapshot) => *self.known.lock() = Some(snapshot),
                Err(error) => tracing::debug!(error = chain(&error), "labels stay as they were"),
            }
        }
        let known = self.known.lock().clone();
        let Some(known) = known else { return };
        for Made { name, object, .. } in made {
            let Some(entry) = known.get(&self.key(name)) else { continue };
            let Ok(note) = serde_json::from_slice::<Note>(&entry.value.bytes()) else { continue };
            for (field, texts) in [("labels", note.labels), ("annotations", note.annotations)] {
                if !texts.is_empty() {
                    object["metadata"][field] = texts.into();
                }
            }
            if !note.managed_fields.is_empty() {
                object["metadata"]["managedFields"] = note.managed_fields.into();
            }
        }
    }

    /// Notes what `new` says; forgets it if there is no object any more.
    pub(super) async fn write(
        &self,
        partitions: &Partitions,
        name: &str,
        new: Option<&Value>,
    ) -> Result<(), StoreError> {
        let (Some(meta), Some(collection)) = (partitions.store(META), collection()) else {
            return Ok(());
        };
        let texts = |it: &Value, field: &str| {
            object::metadata(it).get(field).and_then(Value::as_object).cloned().unwrap_or_default()
        };
        let note = new.map_or_else(Note::default, |it| Note {
            labels: texts(it, "labels"),
            annotations: texts(it, "annotations"),
            managed_fields: it["metadata"]["managedFields"].as_array().cloned().unwrap_or_default(),
            written: super::now(),
        });
        let known = meta.read(&collection, ReadAt::Latest).await?;
        let key = self.key(name);
        let is_empty = note == Note { written: note.written, ..Note::default() };
        if !is_empty {
            let text = serde_json::to_vec(&note)
                .map_err(|error| StoreError::Damaged { what: format!("a note: {error}") })?;
            put(&*meta, &collection, &key, Expect::Anything, Change::Put(text.into())).await?;
        } else if known.get(&key).is_some() {
            put(&*meta, &collection, &key, Expect::Present, Change::Delete).await?;
        }
        self.forget_old(&*meta, &collection, &known).await
    }

    /// Removes the notes on moves that servers forgot by themselves.
    async fn forget_old(
        &self,
        meta: &dyn Store,
        collection: &Collection,
        known: &Snapshot,
    ) -> Result<(), StoreError> {
        let (Kind::Moves, Some(moves)) =
            (self.kind, Collection::parse(insula_partition::moves::MOVES))
        else {
            return Ok(());
        };
        let (moves, prefix) = (meta.read(&moves, ReadAt::Latest).await?, self.key(""));
        let old = super::now().saturating_sub(KEPT);
        for (key, entry) in known.range(&prefix, None) {
            let Some(name) = key.strip_prefix(&prefix) else { break };
            let written =
                serde_json::from_slice::<Note>(&entry.value.bytes()).map_or(0, |it| it.written);
            if moves.get(name).is_none() && written < old {
                let expect = Expect::At(entry.modified);
                put(meta, collection, key, expect, Change::Delete).await?;
            }
        }
        Ok(())
    }
}

/// Writes; what another server did meanwhile stays.
async fn put(
    meta: &dyn Store,
    collection: &Collection,
    key: &str,
    expect: Expect,
    change: Change,
) -> Result<(), StoreError> {
    let write = Write::durable(collection.clone(), key, expect, change);
    match meta.write(write).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
