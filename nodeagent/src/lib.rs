//! Pods on this node: CRI runtimes, volumes, logs, exec.

mod cgroup;
mod cluster;
mod config;
mod cri;
mod logs;
mod machine;
mod node;
mod pod;
mod pods;
mod relist;
mod spdy;
#[cfg(test)]
mod testing;
mod volume;

pub use config::NodeConfig;
