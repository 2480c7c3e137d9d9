//! Reading the log back: what is whole is handed over, what was being written when the process
//! or the machine went down is cut off, and what was damaged since is reported.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{
    WalError,
    append::encode_beginning,
    disk::Disk,
    frame::{self, Record, SegmentHeader},
    segment,
};

/// Where the log goes on after it was read.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) file: File,
    pub(crate) segment: u64,
    pub(crate) size: u64,
    pub(crate) offset: u64,
    /// Number of the newest batch.
    pub(crate) batch: u64,
    /// The log was closed in good order: nothing that was handed out can be missing.
    pub(crate) clean: bool,
    /// The segment after the last used one, prepared but without content.
    pub(crate) spare: Option<File>,
    pub(crate) retired: Vec<PathBuf>,
    /// The oldest segment on disk.
    pub(crate) oldest: u64,
}

/// A segment with a valid header.
struct Segment {
    header: SegmentHeader,
    data: Vec<u8>,
}

/// Reads all batches from segment `from`, or the first one, on in order. If the log `may_be_new`,
/// there may be none.
///
/// `visit` sees each record once, in the order of the log.
pub(crate) fn recover<E: From<WalError>>(
    disk: &dyn Disk,
    dir: &Path,
    from: Option<u64>,
    may_be_new: bool,
    segment_bytes: u64,
    mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
) -> Result<Tail, E> {
    let listing = segment::list(dir).map_err(|source| WalError::io("read the log", dir, source))?;
    let from = from.or_else(|| listing.segments.first().copied()).unwrap_or(1);
    let segments: Vec<_> = listing.segments.iter().copied().filter(|n| from <= *n).collect();
    let oldest = listing.segments.first().copied().unwrap_or(from);
    if listing.segments.is_empty() && may_be_new {
        return Ok(create(disk, dir, segment_bytes, listing.retired)?);
    }
    if segments.first() != Some(&from) {
        let what = format!("log segment {} is missing", segment::path(dir, from).display());
        return Err(WalError::Damaged { what }.into());
    }

    let mut current = match open(dir, from)? {
        Some(segment) => segment,
        // The log's very first moments.
        None if may_be_new && segments == [1] => {
            return Ok(create(disk, dir, segment_bytes, listing.retired)?);
        }
        None => return Err(damage(dir, from, 0).into()),
    };
    let mut batch = current.header.first_batch.wrapping_sub(1);
    let mut clean = false;
    let mut numbers = segments.iter().copied().skip(1).peekable();
    loop {
        let number = current.header.segment;
        let next = match numbers.peek().copied() {
            Some(next) if next != number + 1 => {
                let what =
                    format!("log segment {} is missing", segment::path(dir, number + 1).display());
                return Err(WalError::Damaged { what }.into());
            }
            Some(next) => open(dir, next)?,
            None => None,
        };
        let data = match &next {
            Some(next) => end_at(dir, &current, next.header.previous_end)?,
            None => &current.data,
        };
        let mut offset = frame::SEGMENT_HEADER;
        while let Some(found) = frame::batch_at(data, offset, number) {
            if found.number != batch.wrapping_add(1) {
                return Err(damage(dir, number, offset).into());
            }
            batch = found.number;
            clean = found.flags & frame::CLEAN != 0;
            for record in frame::records(found.body) {
                visit(record.ok_or_else(|| damage(dir, number, offset))?)?;
            }
            offset += frame::Batch::size(found.body.len());
        }
        match next {
            Some(next) => {
                let whole = offset as u64 == next.header.previous_end
                    && next.header.first_batch == batch.wrapping_add(1);
                if !whole {
                    return Err(damage(dir, number, offset).into());
                }
                current = next;
                numbers.next();
            }
            None => {
                let spare = numbers.next();
                if let Some(unknown) = numbers.next() {
                    return Err(damage(dir, unknown - 1, 0).into());
                }
                let torn = cut(disk, dir, &current, offset, batch)?;
                let spare = spare.map(|spare| writable(dir, spare)).transpose()?;
                let file = writable(dir, number)?;
                // What a killed process left in the page cache counts only once it is on disk.
                disk.sync_data(&file)
                    .map_err(|source| WalError::io("flush", &segment::path(dir, number), source))?;
                return Ok(Tail {
                    file,
                    segment: number,
                    size: current.data.len() as u64,
                    offset: offset as u64,
                    batch,
                    clean: clean && !torn,
                    spare,
                    retired: listing.retired,
                    oldest,
                });
            }
        }
    }
}

fn create(
    disk: &dyn Disk,
    dir: &Path,
    segment_bytes: u64,
    retired: Vec<PathBuf>,
) -> Result<Tail, WalError> {
    let failed = |source| WalError::io("create", &segment::path(dir, 1), source);
    let file = segment::prepare(disk, dir, 1, segment_bytes, None).map_err(failed)?;
    let header = SegmentHeader { segment: 1, first_batch: 1, previous_end: 0, size: segment_bytes };
    let mut beginning = Vec::new();
    encode_beginning(&mut beginning, &header, 0, &BTreeMap::new());
    disk.write_at(&file, &beginning, 0).map_err(failed)?;
    disk.sync_data(&file).map_err(failed)?;
    Ok(Tail {
        file,
        segment: 1,
        size: segment_bytes,
        offset: beginning.len() as u64,
        batch: 1,
        clean: true,
        spare: None,
        retired,
        oldest: 1,
    })
}

/// Reads a segment. `None` if it never got a header and holds nothing: it waits to be used.
fn open(dir: &Path, number: u64) -> Result<Option<Segment>, WalError> {
    let path = segment::path(dir, number);
    let data = fs::read(&path).map_err(|source| WalError::io("read", &path, source))?;
    if let Some(header) = SegmentHeader::decode(&data, number) {
        if (data.len() as u64) < header.size {
            return Err(damage(dir, number, data.len()));
        }
        return Ok(Some(Segment { header, data }));
    }
    // The first batch is flushed together with the header, so it proves nothing.
    match frame::find_batches(&data, frame::SEGMENT_HEADER + 1, number).next() {
        Some(_) => Err(damage(dir, number, 0)),
        None => Ok(None),
    }
}

/// The part of a full segment that holds batches. What lies behind was never acknowledged.
fn end_at<'a>(dir: &Path, segment: &'a Segment, end: u64) -> Result<&'a [u8], WalError> {
    let end = usize::try_from(end).ok();
    end.and_then(|end| segment.data.get(..end))
        .ok_or_else(|| damage(dir, segment.header.segment, segment.data.len()))
}

/// Decides what the bytes behind the last whole batch are, and clears them if they are the rest
/// of a write that was never acknowledged. Says whether there was such a rest.
fn cut(
    disk: &dyn Disk,
    dir: &Path,
    segment: &Segment,
    offset: usize,
    batch: u64,
) -> Result<bool, WalError> {
    let number = segment.header.segment;
    let path = segment::path(dir, number);
    let lost = batch.wrapping_add(1);
    let damaged =
        frame::find_batches(&segment.data, offset, number).any(|(_, later)| lost <= later.durable);
    if damaged {
        return Err(damage(dir, number, offset));
    }
    let torn = frame::is_begun(&segment.data, offset, number)
        || frame::find_batches(&segment.data, offset, number).next().is_some();
    if !torn {
        return Ok(false);
    }
    tracing::warn!(
        segment = %path.display(),
        offset,
        batch = lost,
        "cut off a write that was under way when the log ended"
    );
    // Cleared rather than left: a whole batch behind the torn one must never come back to life
    // when the space before it is written again.
    let file = writable(dir, number)?;
    let zeros = vec![0; segment.data.len() - offset];
    disk.write_at(&file, &zeros, offset as u64)
        .and_then(|()| disk.sync_data(&file))
        .map_err(|source| WalError::io("clear the tail of", &path, source))?;
    Ok(true)
}

fn writable(dir: &Path, number: u64) -> Result<File, WalError> {
    let path = segment::path(dir, number);
    segment::writable(&path).map_err(|source| WalError::io("open", &path, source))
}

fn damage(dir: &Path, number: u64, offset: usize) -> WalError {
    let path = segment::path(dir, number);
    WalError::Damaged { what: format!("log segment {} at offset {offset}", path.display()) }
}
