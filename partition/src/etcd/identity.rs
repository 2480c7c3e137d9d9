//! Whose partition an etcd holds: written into it at its first use, and checked ever after.

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};
use serde::{Deserialize, Serialize};

use super::{
    follow::{ANSWER, FollowError},
    keys::Keys,
};
use crate::{error::OpenError, store::StoreError};

/// What lies at `<prefix>.identity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    /// The cluster that made the partition.
    cluster: String,
    partition: String,
}

/// Why an etcd is not this partition's.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error(transparent)]
    Foreign(#[from] OpenError),
}

impl IdentityError {
    /// What it means for the one who opens `partition`.
    pub(super) fn of(self, partition: &str) -> OpenError {
        match self {
            Self::Foreign(error) => error,
            Self::Follow(error) => OpenError::Partition {
                partition: partition.into(),
                source: StoreError::Unavailable {
                    reason: "the etcd did not say whose it is".into(),
                    source: Some(error.into()),
                },
            },
        }
    }
}

impl From<etcd_client::Error> for IdentityError {
    fn from(error: etcd_client::Error) -> Self {
        Self::Follow(error.into())
    }
}

impl From<tokio::time::error::Elapsed> for IdentityError {
    fn from(late: tokio::time::error::Elapsed) -> Self {
        Self::Follow(late.into())
    }
}

/// The cluster whose partition this is, `None` if the etcd holds nothing yet. Fails if it holds
/// something else, or is not of `cluster`. Writes nothing.
pub(super) async fn look(
    client: &Client,
    keys: &Keys,
    partition: &str,
    cluster: Option<&str>,
) -> Result<Option<String>, IdentityError> {
    let foreign = |found: String| {
        let at = keys.prefix().to_owned();
        IdentityError::Foreign(OpenError::ForeignEtcd { partition: partition.into(), at, found })
    };
    let mut kv = client.kv_client();
    let found = tokio::time::timeout(ANSWER, kv.get(keys.identity(), None)).await??;
    if let Some(stored) = found.kvs().first() {
        let found: Identity = serde_json::from_slice(stored.value())
            .map_err(|_| foreign("data of something else".into()))?;
        if found.partition != partition {
            let what = format!("partition {} of cluster {}", found.partition, found.cluster);
            return Err(foreign(what));
        }
        if cluster.is_some_and(|cluster| cluster != found.cluster) {
            return Err(foreign(format!("this partition of cluster {}", found.cluster)));
        }
        return Ok(Some(found.cluster));
    }
    let all = GetOptions::new().with_prefix().with_count_only();
    let count = tokio::time::timeout(ANSWER, kv.get(keys.prefix(), Some(all))).await??.count();
    let own = GetOptions::new().with_range(keys.own_end()).with_count_only();
    let own = tokio::time::timeout(ANSWER, kv.get(keys.own(), Some(own))).await??.count();
    match own < count {
        true => Err(foreign(format!("{} keys of something else", count - own))),
        false => Ok(None),
    }
}

/// Makes sure that the etcd is this partition's of `cluster`, or of any cluster if `None`. Takes
/// an empty one. Gives the cluster's id, which is `fresh` if nobody had given it one.
pub(super) async fn identify(
    client: &Client,
    keys: &Keys,
    partition: &str,
    cluster: Option<&str>,
    fresh: &str,
) -> Result<String, IdentityError> {
    let ours = Identity { cluster: cluster.unwrap_or(fresh).into(), partition: partition.into() };
    loop {
        if let Some(found) = look(client, keys, partition, cluster).await? {
            return Ok(found);
        }
        let mut kv = client.kv_client();
        // A text of texts always has a JSON form.
        let value = serde_json::to_vec(&ours).unwrap_or_default();
        let take = Txn::new()
            .when([Compare::version(keys.identity(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(keys.identity(), value, None)]);
        if tokio::time::timeout(ANSWER, kv.txn(take)).await??.succeeded() {
            return Ok(ours.cluster);
        }
    }
}
