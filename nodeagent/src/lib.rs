//! Pods on this node: CRI runtimes, volumes, logs, exec.

mod config;
pub mod cri;
pub mod pod;
pub mod volume;

pub use config::NodeConfig;
