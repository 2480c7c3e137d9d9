//! Why a node agent cannot run.

use std::{io, net::SocketAddr, path::PathBuf};

/// Why the agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    #[error("cannot look at this machine")]
    Machine(#[source] io::Error),
    #[error("cannot make {}", .path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot reach a container runtime")]
    Runtime(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot listen at {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot use {}", .path.display())]
    Credential {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}
