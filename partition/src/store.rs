//! The `Store` contract: what an API server needs from one partition.
//!
//! A partition is one ordered history of changes with a revision counter of its own.
//! It is etcd's contract reduced to guarded single-key writes, ordered reads, and watches,
//! and it is the same for every backend; `contract` holds the suite that each must pass.
//!
//! # Invariants
//!
//! * Every change has one revision; revisions only grow, also across restarts.
//! * A write is acknowledged only when it is as durable as its [`Durability`] promises.
//! * [`Store::read`] with [`ReadAt::Latest`] sees every write acknowledged before it was called.
//! * A watch delivers each change of its collection once, in revision order, or ends with
//!   [`StoreError::Compacted`]; it never skips.
//!
//! # What is deliberately absent
//!
//! No knowledge of HTTP, of Kubernetes kinds or of tenants: keys are opaque ordered strings.
//! The one thing the store knows about a value is where its revision is written, see
//! [`crate::value`].

use std::{borrow::Borrow, collections::BTreeSet, fmt, sync::Arc};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use insula_api::quota::amounts::Amounts;

use crate::{
    epochs::Epoch,
    quota::{Excess, Limit},
    seal::SealError,
    snapshot::{Entry, Snapshot},
    watch::Watcher,
};

/// A partition's store-wide change counter, shown to clients as `resourceVersion`.
///
/// Revision 0 is the empty store before its first change.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// All objects of one resource within one partition, such as `core/pods` or `apps/deployments`.
///
/// Cheap to clone. Contains exactly one `/`; never empty on either side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Collection(Arc<str>);

impl Collection {
    /// Names the collection of `resource` in API group `group`; the core group is `""`.
    pub fn new(group: &str, resource: &str) -> Self {
        let group = if group.is_empty() { "core" } else { group };
        Self(format!("{group}/{resource}").into())
    }

    /// Reads back what [`Collection::as_str`] printed.
    pub fn parse(text: &str) -> Option<Self> {
        let (group, resource) = text.split_once('/')?;
        let valid = !group.is_empty() && !resource.is_empty() && !resource.contains('/');
        valid.then(|| Self(text.into()))
    }

    /// Takes over a name that [`Collection::as_str`] printed before it was stored.
    pub(crate) fn of(name: &str) -> Self {
        Self(name.into())
    }

    /// The group, `""` for the core group, and the resource.
    pub(crate) fn split(&self) -> (&str, &str) {
        match self.0.split_once('/') {
            Some(("core", resource)) => ("", resource),
            Some((group, resource)) => (group, resource),
            None => ("", &self.0),
        }
    }

    /// The name as it appears in keys and logs.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Equal names hash and order alike, so maps of collections can be asked with a plain string.
impl Borrow<str> for Collection {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How much a write must survive before it is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// On stable storage of a majority of the partition's members.
    #[default]
    Durable,
    /// Applied in memory; on stable storage within a second. For events and node heartbeats.
    Relaxed,
}

/// What must be true of the key for the write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key has no live value (create).
    Absent,
    /// The key's live value was written at exactly this revision (update, delete).
    At(Revision),
    /// The key has some live value.
    Present,
    /// Nothing is asked.
    Anything,
}

/// The change of one key.
#[derive(Debug, Clone)]
pub enum Change {
    /// The new value, with an empty revision placeholder, see [`crate::value`].
    Put(Bytes),
    /// The key's value ends. The watch event carries the last value with the delete's revision.
    Delete,
}

/// One guarded write.
#[derive(Debug, Clone)]
pub struct Write {
    pub collection: Collection,
    pub key: Arc<str>,
    pub expect: Expect,
    pub change: Change,
    pub durability: Durability,
    /// The token of the move that writes, if one does; see [`crate::fences`]. Such a write is
    /// taken only while the move's fence lets it in, and no watcher hears of it.
    pub by_move: Option<u64>,
    /// How much the key's tenant may have with it. Deletes and writes of a move are never limited.
    pub within: Option<Arc<[Limit]>>,
    /// For what task it is done and in which epoch, if for any; see [`crate::epochs`]. Such a write
    /// is done only while the partition keeps exactly this epoch.
    pub epoch: Option<Epoch>,
}

impl Write {
    /// A write of no move, acknowledged when it is on disk.
    pub fn durable(
        collection: Collection,
        key: impl Into<Arc<str>>,
        expect: Expect,
        change: Change,
    ) -> Self {
        let durability = Durability::Durable;
        Self {
            collection,
            key: key.into(),
            expect,
            change,
            durability,
            by_move: None,
            within: None,
            epoch: None,
        }
    }
}

/// An acknowledged write.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The revision of this change.
    pub revision: Revision,
    /// The entry as stored; for a delete: the last value, with the delete's revision in it.
    pub entry: Entry,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    /// Linearizable: sees every write acknowledged before the call.
    Latest,
    /// Whatever is at hand, never older than what this process has served before.
    Any,
    /// At least this revision. Waits a bounded time for it, else [`StoreError::Future`].
    NotOlderThan(Revision),
    /// Exactly this revision, else [`StoreError::Compacted`] or [`StoreError::Future`].
    Exactly(Revision),
}

/// One partition. See the module's invariants.
pub trait Store: Send + Sync + 'static {
    /// An immutable view of one collection.
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>>;

    /// Does one guarded write and waits until it is as durable as asked.
    ///
    /// On [`StoreError::Unavailable`] the write may or may not have happened.
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>>;

    /// Does several guarded writes, each judged by itself and in this order as far as they go
    /// together: one that is refused does not keep the others from being done. Where the backend
    /// can, they are one step of the partition; the outcomes are in the order of the writes.
    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Committed, StoreError>>> {
        Box::pin(join_all(writes.into_iter().map(|write| self.write(write))))
    }

    /// Follows a collection: all changes with a revision strictly above `after`.
    ///
    /// A future `after` is no error: the watcher waits. Fails with [`StoreError::Compacted`]
    /// if changes after `after` are no longer kept.
    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError>;

    /// The newest revision this process knows of, of all collections. Never goes back.
    fn progress(&self) -> Revision;

    /// Forgets history at or below `revision`; live values are untouched.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Makes every later change's revision higher than `revision`. What moves here then keeps
    /// growing revisions.
    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Names of all collections that hold a live value.
    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>>;

    /// What tenants have here, as far as this process has the partition itself: see
    /// [`Tenants`]. `None` where it is kept by others.
    fn tenants(&self) -> Option<&dyn Tenants> {
        None
    }

    /// Sizes and health, for status pages and metrics. Never blocks.
    fn stats(&self) -> StoreStats;

    /// Flushes what is relaxed and stops the background work. Later calls fail `Unavailable`.
    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// What a tenant has in a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of its live values.
    pub objects: u64,
    /// Bytes of their keys and values, without the digits of revisions.
    pub bytes: u64,
    /// Grows with every change of what the tenant has, while this process runs.
    pub changes: u64,
}

/// What tenants have in a partition, as of what this process has applied.
pub trait Tenants: Send + Sync {
    /// All of a tenant.
    fn usage(&self, tenant: &str) -> Usage;

    /// Every tenant that has something, in no order.
    fn all(&self) -> Vec<(String, Usage)>;

    /// What a tenant has of the named resources of quotas, in all or in some namespaces. The first
    /// time that something else than [`Usage`] is asked of a tenant, all that it has is counted.
    fn amounts(
        &self,
        tenant: &str,
        namespaces: Option<&BTreeSet<String>>,
        names: &[&str],
    ) -> Amounts;
}

/// What a partition says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Number of live values.
    pub objects: u64,
    /// Bytes of live keys and values.
    pub bytes: u64,
    pub revision: Revision,
    /// Oldest revision after which a watch can start.
    pub compacted: Revision,
    /// Why writes fail now, if they do: a full or failing disk, a lost quorum, an etcd down.
    pub unhealthy: Option<String>,
    /// The server, or the etcd member, that decides the order of writes; empty while there is
    /// none.
    pub leader: String,
    /// The servers that vote on writes; empty where that is not this process's affair.
    pub members: Vec<String>,
    /// Members that the leader, if it is this one, hears nothing of.
    pub silent: Vec<String>,
    /// Changes that the slowest member lacks, if this one leads.
    pub lag: u64,
    /// Bytes of the database's file, where somebody else keeps it.
    pub disk: Option<u64>,
    /// `embedded` or `etcd`.
    pub backend: &'static str,
}

/// What went wrong between this process and the cause below it.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a read or write of one partition did not happen.
///
/// `Display` never repeats the source: whoever handles the error prints the chain once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The key is not in the state that the write expected. The caller decides again from
    /// `found`, the live entry at the time of the refusal.
    #[error("{collection} {key} is not as the write expected")]
    Conflict { collection: Collection, key: Arc<str>, found: Option<Entry> },

    /// The watch or read asked for history that is gone. The client must relist.
    #[error("revision {requested} was compacted; the oldest readable one is {oldest}")]
    Compacted { requested: Revision, oldest: Revision },

    /// The read asked for a revision that was not reached within the wait.
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future { requested: Revision, newest: Revision },

    /// The value, or the key, is larger than a partition takes.
    #[error("{size} bytes exceed the limit of {limit}")]
    TooLarge { size: usize, limit: usize },

    /// The tenant would have more than the write's limits allow.
    #[error("{0}")]
    Exceeded(Box<Excess>),

    /// It is on its way to another partition, or was moved there. Ask the map again, and whoever
    /// owns it then.
    #[error("{what} is moving between partitions")]
    Moving { what: String },

    /// It was to be done for a task in an epoch that the partition does not keep: somebody else
    /// has taken over, or `newest` is lower and the partition was not told of it yet.
    #[error("epoch {epoch} of {task} does not count here: the newest is {newest}")]
    Superseded { task: String, epoch: u64, newest: u64 },

    /// The call may or may not have taken effect. Safe to repeat for guarded writes.
    #[error("partition is unavailable: {reason}")]
    Unavailable {
        reason: String,
        #[source]
        source: Option<Source>,
    },

    /// It lies there sealed and cannot be opened, or sealed, now. Only what needs its text fails.
    #[error("{collection} {key} cannot be opened")]
    Sealed {
        collection: Collection,
        key: Arc<str>,
        #[source]
        source: SealError,
    },

    /// What is on disk is not what was written. Never served, never repaired silently.
    #[error("stored data is damaged: {what}")]
    Damaged { what: String },
}
