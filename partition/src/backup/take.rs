//! Reading all partitions while they are written to.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::try_join_all;

use super::archive::{Header, Packer, PartitionHead};
use crate::{
    fences::check_together,
    partitions::Partitions,
    snapshot::Snapshot,
    store::{Collection, ReadAt, Revision, Store, StoreError},
};

/// Collections that say how partitions work, not what they hold.
pub(super) const OWN: &str = "insula/";

/// How often it is tried to see all partitions on the same side of every move.
const ATTEMPTS: usize = 50;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    #[error("partition {0} is not there")]
    Gone(String),
    #[error("partition {partition} cannot be read")]
    Store {
        partition: String,
        #[source]
        source: StoreError,
    },
    #[error("something kept moving between partitions; try again when no move is under way")]
    Moving,
    #[error("the backup cannot be written")]
    Write(#[from] io::Error),
}

/// One partition at one revision.
struct Cut {
    name: String,
    revision: Revision,
    collections: Vec<(Collection, Snapshot)>,
}

/// Hands the pieces of an archive of all partitions to `write`, one after the other.
///
/// Views of everything are taken first, which costs next to nothing; writers are not held up.
pub async fn take<F>(
    partitions: &Partitions,
    mut write: impl FnMut(Bytes) -> F,
) -> Result<u64, BackupError>
where
    F: Future<Output = io::Result<()>>,
{
    let cuts = cut_all(partitions).await?;
    let map = partitions.map();
    let header = Header { cluster: map.cluster().to_owned(), map: (*map).clone() };
    let (mut packer, first) = Packer::begin(&header)?;
    write(first).await?;
    let mut objects = 0;
    for cut in cuts {
        let head = PartitionHead { name: cut.name, revision: cut.revision };
        write(packer.partition(&head)?).await?;
        for (collection, snapshot) in cut.collections {
            for (key, entry) in snapshot.range("", None) {
                objects += 1;
                if let Some(block) = packer.row(&collection, key, entry)? {
                    write(block).await?;
                }
            }
        }
    }
    write(packer.end()?).await?;
    Ok(objects)
}

/// All partitions, each at one revision, and all on the same side of every move.
async fn cut_all(partitions: &Partitions) -> Result<Vec<Cut>, BackupError> {
    for _ in 0..ATTEMPTS {
        let names = partitions.names();
        let cuts = names.into_iter().map(async |name| {
            let store = partitions.store(&name).ok_or_else(|| BackupError::Gone(name.clone()))?;
            cut(&name, &store).await
        });
        let cuts = try_join_all(cuts).await?;
        let one_of_each =
            cuts.iter().filter_map(|cut| Some((cut.name.as_str(), &cut.collections.first()?.1)));
        match check_together(one_of_each) {
            Ok(()) => return Ok(cuts),
            Err(StoreError::Moving { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(source) => return Err(BackupError::Store { partition: String::new(), source }),
        }
    }
    Err(BackupError::Moving)
}

async fn cut(name: &str, store: &Arc<dyn Store>) -> Result<Cut, BackupError> {
    let failed = |source| BackupError::Store { partition: name.to_owned(), source };
    // Asked before and after, so that what was made or emptied meanwhile is not overlooked.
    let before = store.collections().await.map_err(failed)?;
    let fences = crate::fences::collection();
    let revision = store.read(&fences, ReadAt::Latest).await.map_err(failed)?.revision();
    let after = store.collections().await.map_err(failed)?;
    let known: BTreeSet<_> = before.into_iter().chain(after).collect();
    // The fences first: they say which part of the others counts.
    let mut collections = vec![];
    for collection in std::iter::once(fences).chain(known) {
        let own = collection.as_str().starts_with(OWN);
        if own && !collections.is_empty() {
            continue;
        }
        let snapshot = store.read(&collection, ReadAt::Exactly(revision)).await.map_err(failed)?;
        collections.push((collection, snapshot));
    }
    // Only what the fences say is wanted of them.
    if let Some((_, fences)) = collections.first_mut() {
        fences.entries = imbl::OrdMap::new();
    }
    Ok(Cut { name: name.to_owned(), revision, collections })
}
