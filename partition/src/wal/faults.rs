//! A disk for tests: it can be full, fail, be slow, or lose power.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::disk::{Disk, RealDisk};

/// What a disk writes at once, whole or not at all.
const SECTOR: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FaultyDisk {
    faults: Mutex<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    full: bool,
    fail_sync: bool,
    slow_sync: Option<Duration>,
    off: bool,
    /// By inode: what was overwritten since the last flush, oldest first.
    unflushed: HashMap<u64, (File, Vec<Overwritten>)>,
    /// Number of the next write.
    next: u64,
}

#[derive(Debug)]
struct Overwritten {
    number: u64,
    offset: u64,
    before: Vec<u8>,
}

impl FaultyDisk {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether there is space for new files.
    pub(crate) fn set_full(&self, full: bool) {
        self.faults.lock().full = full;
    }

    pub(crate) fn fail_syncs(&self) {
        self.faults.lock().fail_sync = true;
    }

    pub(crate) fn slow_down(&self, sync: Duration) {
        self.faults.lock().slow_sync = Some(sync);
    }

    /// Cuts the power. Of what was not flushed, each sector is written or not as `choose` says,
    /// in any order; nothing reaches the disk any more.
    pub(crate) fn cut_power(&self, mut choose: impl FnMut() -> bool) {
        let mut faults = self.faults.lock();
        faults.off = true;
        for (file, writes) in std::mem::take(&mut faults.unflushed).into_values() {
            for write in writes.iter().rev() {
                // Sectors are aligned in the file, not in the write.
                let mut at = 0;
                while at < write.before.len() {
                    let begun = (write.offset as usize + at) % SECTOR;
                    let end = write.before.len().min(at + SECTOR - begun);
                    if choose() {
                        let offset = write.offset + at as u64;
                        file.write_all_at(&write.before[at..end], offset).unwrap();
                    }
                    at = end;
                }
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the power is off")
}

impl Disk for FaultyDisk {
    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        let mut faults = self.faults.lock();
        if faults.off {
            return Err(gone());
        }
        let mut before = vec![0; data.len()];
        file.read_exact_at(&mut before, offset)?;
        let number = faults.next;
        faults.next += 1;
        let (_, writes) = match faults.unflushed.entry(file.metadata()?.ino()) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert((file.try_clone()?, Vec::new()))
            }
        };
        writes.push(Overwritten { number, offset, before });
        RealDisk.write_at(file, data, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let faults = self.faults.lock();
        let (begun, slow) = (faults.next, faults.slow_sync);
        drop(faults);
        if let Some(delay) = slow {
            std::thread::sleep(delay);
        }
        let mut faults = self.faults.lock();
        if faults.off {
            return Err(gone());
        }
        if faults.fail_sync {
            return Err(io::Error::from_raw_os_error(5));
        }
        // What was written after it began is not in it.
        if let Some((_, writes)) = faults.unflushed.get_mut(&file.metadata()?.ino()) {
            writes.retain(|write| begun <= write.number);
        }
        RealDisk.sync_data(file)
    }

    fn fill(&self, file: &File, size: u64) -> io::Result<()> {
        let faults = self.faults.lock();
        if faults.off {
            return Err(gone());
        }
        if faults.full {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        drop(faults);
        RealDisk.fill(file, size)
    }
}
