//! A cloud of many hosts on one machine: each host a network namespace, real processes on them,
//! and faults on command.
//!
//! ```text
//! file       what a lab looks like, as YAML          template  what stands for what in commands
//! network    namespaces, cables, cuts and loss       process   starting, killing, pausing
//! wire       cables that take time                   clock     processes with another time
//! disk       a host's own small disk                 tool      running ip, nft, tc and mount
//! lab        all of it together, and kept on disk
//! ```
//!
//! # Invariants
//!
//! * A lab touches nothing outside its namespaces, its directory and the processes it started:
//!   no interface, route or rule of the machine itself changes.
//! * Everything a lab made is written down in its directory before it is made, so that
//!   [`lab::Lab::down`] takes it all away, also after a crash half-way.
//! * A process is only ever signalled if its start time is still the one that was noted.

mod clock;
mod disk;
pub mod error;
pub mod file;
pub mod lab;
mod network;
pub mod process;
mod template;
mod tool;
mod wire;
