//! What can go wrong with a lab.

use std::{io, path::PathBuf};

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    #[error("{path} is no lab file: {why}")]
    File { path: PathBuf, why: String },
    #[error("{0}")]
    Invalid(String),
    #[error("a lab is already up in {0}; `insula lab down` takes it down")]
    AlreadyUp(PathBuf),
    #[error("there is no lab in {0}")]
    NoLab(PathBuf),
    #[error("the lab has no {what} {name:?}; it has {known}")]
    Unknown { what: &'static str, name: String, known: String },
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Installed by `make deps`.
    #[error("{tool} cannot be run; `make deps` installs it")]
    Missing {
        tool: String,
        #[source]
        source: io::Error,
    },
    #[error("`{command}` failed: {output}")]
    Tool { command: String, output: String },
    #[error("{process} did not get ready within {seconds} s; the end of its log:\n{log}")]
    NotReady { process: String, seconds: u64, log: String },
    #[error("{process} ended at once ({status}); the end of its log:\n{log}")]
    Ended { process: String, status: String, log: String },
    #[error("a lab needs root, because it makes network namespaces: try it with sudo")]
    NotRoot,
}

impl LabError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { what, path: path.into(), source }
    }
}

/// A [`Result`](std::result::Result) of this crate.
pub type Result<T> = std::result::Result<T, LabError>;
