//! Slots, the partition map, and the Store contract with its backends.

mod codec;
#[cfg(test)]
mod contract;
mod embedded;
pub mod error;
pub mod etcd;
mod limits;
pub mod map;
pub mod partitions;
mod ring;
pub mod snapshot;
mod state;
pub mod store;
pub mod value;
mod wal;
pub mod watch;
