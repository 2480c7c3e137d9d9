//! Slots, the partition map, and the Store contract with its backends.
//!
//! A partition is one ordered history of changes to keyed values, with a revision counter of its
//! own. This crate keeps partitions and says which of them owns what; it knows nothing of HTTP
//! or of Kubernetes.
//!
//! ```text
//! partitions   opens everything, finds the partition of a shard key
//!   moves      tenants and slots to other partitions, while clients read and write
//!   map        slots and pins: which partition owns what
//!   fences     what may not be written or read now, because it moves
//!   epochs     whose writes for a lasting task are those of its newest holder
//!   store      the contract: guarded writes, reads at a revision, watches
//!     snapshot   what a read gives          value   where a value carries its revision
//!     watch      what a watch gives         error   why partitions could not be opened
//!   embedded   raft groups in this process, over
//!     wal        the write-ahead log that all of them share
//!   etcd       one etcd cluster per partition
//!   remote     a partition on other servers, followed and written through them
//!   state      the applied state in memory, under every backend
//!     ring       a collection's recent changes
//!     tally      what each tenant has
//! seal         values that are sealed wherever they lie
//! quota        how much a write may let a tenant have
//! group        one embedded partition without a map, for benches and fault tests
//! peers        how partitions on different servers talk
//! backup       all partitions in one file, and back
//! contract     the suite that every backend passes
//! ```
//!
//! # What survives what
//!
//! | | durable write | relaxed write | writes afterwards |
//! |---|---|---|---|
//! | the process is killed | kept | kept, unless the disk was busy | go on |
//! | power goes | kept | the last second's may be lost | go on |
//! | the disk is full | refused, or tried again later | as durable ones | go on once there is space |
//! | a flush fails | refused; what was acknowledged is kept | may be lost | after a restart |
//! | a byte rots before the log's end | never served: `OpenError::Damaged` | the same | from a backup |
//! | a byte rots in the newest checkpoint | read from the one before and the log | the same | go on |

pub mod backup;
mod codec;
#[cfg(test)]
mod contract;
mod embedded;
pub mod epochs;
pub mod error;
pub mod etcd;
pub mod fences;
pub mod group;
pub mod layer;
mod limits;
pub mod map;
pub mod metrics;
pub mod moves;
pub mod partitions;
pub mod peers;
pub mod quota;
mod remote;
mod ring;
pub mod seal;
pub mod snapshot;
mod state;
pub mod store;
pub mod text;
pub mod value;
mod wal;
pub mod watch;
mod wire;
