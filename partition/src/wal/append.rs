//! Writing batches to the segment in use, and going on to the next one.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Piece, Wal, WalError,
    frame::{self, CLEAN, GroupId, Kind, Record, SegmentHeader},
};

/// The segment in use and where its next batch goes.
#[derive(Debug)]
pub(super) struct Active {
    file: Arc<File>,
    segment: u64,
    size: u64,
    offset: u64,
    /// Number of the newest batch.
    batch: u64,
    standing: BTreeMap<GroupId, Vec<u8>>,
    /// Kept for its capacity.
    buffer: Vec<u8>,
}

/// What is written by now.
pub(super) struct Written {
    /// Where the newest of it is.
    pub(super) file: Arc<File>,
    /// Number of the newest batch.
    pub(super) batch: u64,
}

impl Active {
    pub(super) fn new(
        file: File,
        segment: u64,
        size: u64,
        offset: u64,
        batch: u64,
        standing: BTreeMap<GroupId, Vec<u8>>,
    ) -> Self {
        let file = Arc::new(file);
        Self { file, segment, size, offset, batch, standing, buffer: Vec::new() }
    }

    /// Writes `pieces` as one batch.
    pub(super) fn append(&mut self, wal: &Wal, pieces: &[Piece]) -> Result<(), WalError> {
        self.put(wal, pieces, 0)?;
        let standing = pieces.iter().filter_map(|piece| piece.standing.clone());
        self.standing.extend(standing);
        Ok(())
    }

    pub(super) fn written(&self) -> Written {
        Written { file: self.file.clone(), batch: self.batch }
    }

    /// What stands for `group` is not repeated any more.
    pub(super) fn forget(&mut self, group: GroupId) {
        self.standing.remove(&group);
    }

    /// Writes the mark of a log that was closed in good order.
    pub(super) fn seal(&mut self, wal: &Wal) -> io::Result<()> {
        self.put(wal, &[], CLEAN).map_err(io::Error::other)?;
        self.flush(wal)
    }

    fn put(&mut self, wal: &Wal, pieces: &[Piece], flags: u32) -> Result<(), WalError> {
        let body = pieces.iter().map(|piece| piece.body.len()).sum();
        let size = frame::Batch::size(body) as u64;
        if self.size < self.offset + size {
            self.next_segment(wal)?;
        }
        if self.size < self.offset + size {
            // Not the disk's fault and never right again: the options do not fit each other.
            let what = format!("a batch of {size} bytes does not fit a segment of {}", self.size);
            return Err(WalError::Broken(Arc::new(io::Error::other(what))));
        }
        self.buffer.clear();
        let start = frame::begin_batch(&mut self.buffer);
        pieces.iter().for_each(|piece| self.buffer.extend_from_slice(&piece.body));
        let (segment, number) = (self.segment, self.batch + 1);
        let durable = wal.durable.load(Ordering::Acquire);
        frame::finish_batch(&mut self.buffer, start, segment, number, durable, flags);
        wal.options.disk.write_at(&self.file, &self.buffer, self.offset).map_err(classify)?;
        self.offset += self.buffer.len() as u64;
        self.batch += 1;
        wal.batches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn flush(&self, wal: &Wal) -> io::Result<()> {
        if wal.durable.load(Ordering::Acquire) < self.batch {
            wal.options.disk.sync_data(&self.file)?;
            wal.durable.fetch_max(self.batch, Ordering::AcqRel);
            wal.flushes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Goes on in the next segment. All that is left behind is made durable first, so that only
    /// the last segment can have a torn end.
    fn next_segment(&mut self, wal: &Wal) -> Result<(), WalError> {
        self.flush(wal).map_err(|error| WalError::Broken(Arc::new(error)))?;
        let segment = self.segment + 1;
        let file = wal.next_segment(segment).map_err(classify)?;
        let size = file.metadata().map_err(classify)?.len();
        let (first_batch, previous_end) = (self.batch + 1, self.offset);
        let header = SegmentHeader { segment, first_batch, previous_end, size };
        let durable = wal.durable.load(Ordering::Acquire);
        encode_beginning(&mut self.buffer, &header, durable, &self.standing);
        if let Err(error) = wal.options.disk.write_at(&file, &self.buffer, 0) {
            wal.keeper.offer(segment, file);
            return Err(classify(error));
        }
        self.file = Arc::new(file);
        self.segment = segment;
        self.size = size;
        self.offset = self.buffer.len() as u64;
        self.batch = first_batch;
        wal.batches.fetch_add(1, Ordering::Relaxed);
        wal.segment.store(segment, Ordering::Release);
        wal.keeper.want(segment + 1);
        self.flush(wal).map_err(|error| WalError::Broken(Arc::new(error)))
    }
}

/// A segment's header and its first batch, which holds what stands.
pub(super) fn encode_beginning(
    out: &mut Vec<u8>,
    header: &SegmentHeader,
    durable: u64,
    standing: &BTreeMap<GroupId, Vec<u8>>,
) {
    out.clear();
    out.extend_from_slice(&header.encode());
    let start = frame::begin_batch(out);
    for (&group, payload) in standing {
        frame::put_record(out, Record { group, kind: Kind::Standing, payload });
    }
    frame::finish_batch(out, start, header.segment, header.first_batch, durable, 0);
}

/// Space comes back; whatever else a disk says does not.
fn classify(error: io::Error) -> WalError {
    let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    let error = Arc::new(error);
    let no_space = full.contains(&error.kind());
    if no_space { WalError::Full(error) } else { WalError::Broken(error) }
}
