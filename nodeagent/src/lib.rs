//! Pods on this node: CRI runtimes, volumes, logs, exec.
//!
//! ```text
//! API ── node feed ─> Pods ──> Worker (one per pod) ──> plan ──> runtime (CRI)
//!                       ^            │                              │
//!                       └── relist <─┼──────────────────────────────┘
//!                                    └──> status, events ──> API
//! ```
//!
//! # Invariants
//!
//! * The runtime and the API are the only memory. Whatever this process knows it can lose: started
//!   anew it finds its pods again by the labels of their sandboxes, and disturbs none.
//! * A pod is its uid. Tenant, namespace and name may come again, and never stand alone.
//! * Nothing of a pod is removed before the API has been heard in full.

mod agent;
mod assigned;
mod cgroup;
mod cluster;
mod config;
mod cri;
mod error;
pub mod feed;
pub mod hollow;
mod leftovers;
mod logs;
mod machine;
mod meter;
mod node;
mod pod;
mod pods;
mod registration;
mod relist;
mod rotation;
mod server;
pub mod spdy;
pub mod streams;
#[cfg(test)]
mod testing;
mod volume;

pub use self::{
    agent::{NodeAgent, run},
    config::NodeConfig,
    error::NodeError,
    registration::{ThresholdError, Thresholds},
};
