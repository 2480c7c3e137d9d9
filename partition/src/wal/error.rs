//! Why the log did not take or keep a record.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// See the module.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WalError {
    /// No space. The records stay queued; the same call succeeds once there is space again.
    #[error("no space is left for the log")]
    Full(#[source] Arc<io::Error>),

    /// The disk failed. Nothing is accepted until the process is started again.
    #[error("the log can no longer be written; the process must be restarted")]
    Broken(#[source] Arc<io::Error>),

    #[error("the log was closed")]
    Closed,

    #[error("could not {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },

    #[error("stored data is damaged: {what}")]
    Damaged { what: String },
}

impl WalError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.into(), source: Arc::new(source) }
    }
}
