//! The few calls by which the log reaches the disk, so that tests can make them fail.

use std::{fs::File, io, os::unix::fs::FileExt};

/// See the module.
pub(crate) trait Disk: Send + Sync + std::fmt::Debug {
    /// Writes all of `data` at `offset`.
    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()>;

    /// Returns once all that was written to `file` is on stable storage.
    fn sync_data(&self, file: &File) -> io::Result<()>;

    /// Fills a new file with `size` zeros and makes it durable together with its size.
    ///
    /// Written zeros, not just reserved blocks: a flush of a block that is overwritten needs no
    /// change of the file system's own records, which is what makes the log fast at one writer.
    fn fill(&self, file: &File, size: u64) -> io::Result<()>;
}

/// The machine's file system.
#[derive(Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(data, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn fill(&self, file: &File, size: u64) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        let mut offset = 0;
        while offset < size {
            let step = (size - offset).min(ZEROS.len() as u64);
            file.write_all_at(&ZEROS[..step as usize], offset)?;
            offset += step;
        }
        file.sync_all()
    }
}
