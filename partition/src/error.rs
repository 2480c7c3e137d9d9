//! Why partitions could not be opened.

pub(crate) use insula_api::error::chain;
use std::path::{Path, PathBuf};

use crate::{store::StoreError, wal::WalError};

/// See the module. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has the directory open.
    #[error("{} is in use by process {holder}", dir.display())]
    Locked { dir: PathBuf, holder: String },

    /// The directory's layout is not the one that this version reads and writes.
    #[error(
        "{} was written by another version of insula (format {found}, this one reads {ours}); \
         start that version, or restore a backup into an empty directory with this one",
        dir.display()
    )]
    Format { dir: PathBuf, found: String, ours: u32 },

    /// The directory belongs to another server, or to another cluster.
    #[error(
        "{} belongs to server {found}, this is {ours}; a directory is never copied or handed on: \
         start this server on a directory of its own and let it join",
        dir.display()
    )]
    Foreign { dir: PathBuf, found: String, ours: String },

    /// An etcd holds something that is not this partition.
    #[error(
        "the etcd given for partition {partition} holds {found} under {at}; \
         give it another etcd or another prefix"
    )]
    ForeignEtcd { partition: String, at: String, found: String },

    /// The etcd that had the partition map has lost it, or is another one.
    #[error(
        "the etcd given first holds no partition map, but this server's directory knows cluster \
         {cluster}; bring that etcd's data back, or restore a backup with an empty directory"
    )]
    EmptyEtcd { cluster: String },

    /// The partitions that were asked for are not the ones that the data is spread over.
    #[error(
        "the data is spread over partitions {}, but only {} were asked for; \
         start with the former, and drain what is to go before it is removed",
        found.join(","), asked.join(",")
    )]
    Partitions { found: Vec<String>, asked: Vec<String> },

    /// The configuration makes no sense.
    #[error("invalid configuration: {what}")]
    Config { what: String },

    /// What is on disk is not what was written. Nothing is served from it.
    #[error(
        "stored data is damaged: {what}; restore this directory from a backup, \
         or from another member of the partition"
    )]
    Damaged { what: String },

    #[error("could not {doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    /// The log failed while it was opened.
    #[error("the write-ahead log could not be opened")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A partition did not come up.
    #[error("partition {partition} did not come up")]
    Partition {
        partition: String,
        #[source]
        source: StoreError,
    },
}

impl OpenError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { doing, path: path.into(), source }
    }
}

impl From<WalError> for OpenError {
    fn from(error: WalError) -> Self {
        match error {
            WalError::Damaged { what } => Self::Damaged { what },
            error => Self::Log(error.into()),
        }
    }
}
