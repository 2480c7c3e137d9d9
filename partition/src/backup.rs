//! Everything that the partitions hold, in one file, and back.
//!
//! ```text
//! archive  the file: checksummed blocks, and where one is damaged
//! take     reads all partitions, each at one revision, while they are written to
//! restore  checks an archive whole, then writes it to partitions that hold nothing
//! ```
//!
//! # Invariants
//!
//! * Each partition is in the archive as it was at one revision, and what moves between two of
//!   them is in exactly one.
//! * Nothing is written from an archive that is damaged anywhere.
//! * What is restored has higher revisions than it ever had: whoever kept an old one lists anew.
//!
//! # What is deliberately absent
//!
//! Keys and certificates: an archive is for whoever has those of the cluster, or takes new ones.

mod archive;
mod restore;
mod take;
#[cfg(test)]
mod tests;

pub use self::{
    archive::{ArchiveError, Summary, check},
    restore::{RestoreError, restore},
    take::{BackupError, take},
};
