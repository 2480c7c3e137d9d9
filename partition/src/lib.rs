//! Slots, the partition map, and the Store contract with its backends.

pub mod snapshot;
pub mod store;
pub mod value;
pub mod watch;
