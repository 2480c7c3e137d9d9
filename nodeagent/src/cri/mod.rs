//! The Container Runtime Interface: what the agent asks of containerd and its like.

mod client;
mod error;
mod events;
mod images;

pub(crate) use self::{client::RuntimeClient, error::RuntimeError, images::ImageRef};

/// The interface's messages, generated from `proto/runtime_v1.proto`.
#[allow(clippy::all, missing_debug_implementations, unreachable_pub, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

#[allow(clippy::all, missing_debug_implementations, unreachable_pub, reason = "generated code")]
mod containerd {
    tonic::include_proto!("containerd.services.events.v1");
}
