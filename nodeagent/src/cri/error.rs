//! What can go wrong between the agent and a runtime.

use std::time::Duration;

use tonic::Code;

/// Why a call to the runtime has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RuntimeError {
    /// Nothing serves the socket.
    #[error(
        "containerd is not running at {endpoint}; \
         start it with `make deps` or `systemctl start containerd`"
    )]
    Absent {
        endpoint: String,
        #[source]
        source: ConnectionError,
    },

    /// The runtime took the call and did not answer in time. It may still act on it.
    #[error("the runtime did not answer {call} within {} s", .limit.as_secs())]
    Timeout { call: &'static str, limit: Duration },

    /// The runtime refused or failed. The message is its own.
    #[error("{message}")]
    Failed { call: &'static str, code: Code, message: String },

    /// Whoever waited for the runtime's answer went away.
    #[error("{call} was interrupted")]
    Interrupted { call: &'static str },

    /// The configured endpoint is not one.
    #[error("runtime endpoint {endpoint:?} is not of the form unix:///path/of/a.sock")]
    Endpoint { endpoint: String },
}

/// What became of the connection, in the words of whoever noticed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConnectionError(pub(super) String);

impl RuntimeError {
    /// The sandbox, container or image is not known to the runtime.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed { code: Code::NotFound, .. })
    }

    /// The runtime does not have this call.
    pub(crate) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Failed { code: Code::Unimplemented, .. })
    }

    /// The runtime is away or not answering, which says nothing about the pod.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Timeout { .. })
    }

    /// The call's own deadline passed, on whichever side noticed it first.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Failed { code: Code::DeadlineExceeded, .. })
    }
}
