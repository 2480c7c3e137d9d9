//! What tests of pods stand on: a containerd of their own, and an API server in memory.

mod lab;
mod memory;

pub(crate) use self::{
    lab::{Lab, PATIENCE, container_id, container_status, is_ready, phase_of, shell_container},
    memory::MemoryCluster,
};
