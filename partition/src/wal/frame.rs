//! How the log looks on disk: segments of batches of records.
//!
//! ```text
//! segment header (64): magic 8 | segment u64 | first batch u64 | previous end u64 | size u64 | zero | check u64
//! batch header   (40): magic 4 | body length u32 | number u64 | durable u64 | flags u32 | tag u32 | check u64
//! body:                records, padded with zeros to a multiple of 8
//! record:              group u32 | kind u8 | length u32 | payload
//! ```
//!
//! Integers are little-endian. A batch is what one write and one flush made durable together.
//!
//! # Invariants
//!
//! * Checksums are seeded with the segment's number, so nothing that a recycled file held before
//!   can pass for a batch of its new life. The tag, the number's lower half, tells a torn batch
//!   from the remains of a former life.
//! * A segment begins with a batch that is flushed together with its header before any other is
//!   written. So a batch further on proves that the header was once there.
//! * Batches are numbered without gaps through all segments.
//! * `durable` names the newest batch that was known to be on stable storage when this one was
//!   written. A bad batch that a later one calls durable was damaged; any other bad batch at the
//!   end is a write that was under way when the power went.

use xxhash_rust::xxh3::Xxh3;

const SEGMENT_MAGIC: [u8; 8] = *b"INSULOG1";
const BATCH_MAGIC: [u8; 4] = *b"iBat";

/// Size of a segment's header; its first batch begins here.
pub(crate) const SEGMENT_HEADER: usize = 64;
pub(crate) const BATCH_HEADER: usize = 40;
const RECORD_HEADER: usize = 9;
const ALIGNMENT: usize = 8;

/// The batch says that the log was closed in good order.
pub(crate) const CLEAN: u32 = 1;

/// Which partition of the process a record belongs to.
pub(crate) type GroupId = u32;

/// What a record's payload is to the log. Its content is the owner's affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Replaces the group's former standing record. Repeated at the start of each segment, so
    /// that dropping old segments never loses it.
    Standing,
    /// Stands for itself, in its place in the order.
    Entry,
    /// The group's entries before it no longer count: its state came whole from another member.
    Restored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) group: GroupId,
    pub(crate) kind: Kind,
    pub(crate) payload: &'a [u8],
}

/// Appends a record to a batch's body.
pub(crate) fn put_record(body: &mut Vec<u8>, record: Record<'_>) {
    let start = begin_record(body, record.group, record.kind);
    body.extend_from_slice(record.payload);
    finish_record(body, start);
}

/// Begins a record: its payload is appended to `body`, then [`finish_record`] completes it.
pub(crate) fn begin_record(body: &mut Vec<u8>, group: GroupId, kind: Kind) -> usize {
    let kind: u8 = match kind {
        Kind::Standing => 1,
        Kind::Entry => 2,
        Kind::Restored => 3,
    };
    let start = body.len();
    body.extend_from_slice(&group.to_le_bytes());
    body.push(kind);
    body.extend_from_slice(&[0; 4]);
    start
}

/// Completes the record that begins at `start`.
pub(crate) fn finish_record(body: &mut [u8], start: usize) {
    let len = (body.len() - start - RECORD_HEADER) as u32;
    body[start + 5..start + RECORD_HEADER].copy_from_slice(&len.to_le_bytes());
}

/// The records of a body whose checksum is right; an error is a bug or another version's work.
pub(crate) fn records(body: &[u8]) -> impl Iterator<Item = Option<Record<'_>>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        // Less than a record's header is padding.
        if rest.len() < RECORD_HEADER && rest.iter().all(|byte| *byte == 0) {
            return None;
        }
        let record = split_record(&mut rest);
        if record.is_none() {
            rest = &[];
        }
        Some(record)
    })
}

fn split_record<'a>(rest: &mut &'a [u8]) -> Option<Record<'a>> {
    let (group, after) = rest.split_first_chunk::<4>()?;
    let ([kind], after) = after.split_first_chunk::<1>()?;
    let (len, after) = after.split_first_chunk::<4>()?;
    let (payload, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let kind = match kind {
        1 => Kind::Standing,
        2 => Kind::Entry,
        3 => Kind::Restored,
        _ => return None,
    };
    *rest = after;
    Some(Record { group: u32::from_le_bytes(*group), kind, payload })
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) segment: u64,
    /// Number of the segment's first batch.
    pub(crate) first_batch: u64,
    /// Where the previous segment's batches end.
    pub(crate) previous_end: u64,
    /// Bytes that the file has. It never shrinks.
    pub(crate) size: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..16].copy_from_slice(&self.segment.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_batch.to_le_bytes());
        out[24..32].copy_from_slice(&self.previous_end.to_le_bytes());
        out[32..40].copy_from_slice(&self.size.to_le_bytes());
        let check = checksum(self.segment, &[&out[..SEGMENT_HEADER - 8]]);
        out[SEGMENT_HEADER - 8..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// The header of `segment`, if that is what `data` begins with.
    pub(crate) fn decode(data: &[u8], segment: u64) -> Option<Self> {
        let header = data.get(..SEGMENT_HEADER)?;
        let check = checksum(segment, &[&header[..SEGMENT_HEADER - 8]]);
        let valid = header[..8] == SEGMENT_MAGIC
            && number(header, 8)? == segment
            && number(header, SEGMENT_HEADER - 8)? == check;
        valid.then_some(Self {
            segment,
            first_batch: number(header, 16)?,
            previous_end: number(header, 24)?,
            size: number(header, 32)?,
        })
    }
}

/// A batch as read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch<'a> {
    pub(crate) number: u64,
    pub(crate) durable: u64,
    pub(crate) flags: u32,
    pub(crate) body: &'a [u8],
}

impl Batch<'_> {
    /// Bytes that a batch with a body of `body` bytes takes.
    pub(crate) fn size(body: usize) -> usize {
        BATCH_HEADER + body.next_multiple_of(ALIGNMENT)
    }
}

/// Begins a batch in `out`: records are appended to it, then [`finish_batch`] completes it.
pub(crate) fn begin_batch(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + BATCH_HEADER, 0);
    start
}

/// Completes the batch that begins at `start`.
pub(crate) fn finish_batch(
    out: &mut Vec<u8>,
    start: usize,
    segment: u64,
    number: u64,
    durable: u64,
    flags: u32,
) {
    let body = (out.len() - start - BATCH_HEADER).next_multiple_of(ALIGNMENT);
    out.resize(start + BATCH_HEADER + body, 0);
    let batch = &mut out[start..];
    batch[..4].copy_from_slice(&BATCH_MAGIC);
    batch[4..8].copy_from_slice(&(body as u32).to_le_bytes());
    batch[8..16].copy_from_slice(&number.to_le_bytes());
    batch[16..24].copy_from_slice(&durable.to_le_bytes());
    batch[24..28].copy_from_slice(&flags.to_le_bytes());
    batch[28..32].copy_from_slice(&tag(segment));
    let check = checksum(segment, &[&batch[..32], &batch[BATCH_HEADER..]]);
    batch[32..40].copy_from_slice(&check.to_le_bytes());
}

/// The batch of `segment` at `offset`, if there is a whole one.
pub(crate) fn batch_at(data: &[u8], offset: usize, segment: u64) -> Option<Batch<'_>> {
    let batch = data.get(offset..)?;
    if !batch.starts_with(&BATCH_MAGIC) {
        return None;
    }
    let (len, _) = batch.get(4..)?.split_first_chunk::<4>()?;
    let end = BATCH_HEADER.checked_add(u32::from_le_bytes(*len) as usize)?;
    let batch = batch.get(..end)?;
    if number(batch, 32)? != checksum(segment, &[&batch[..32], &batch[BATCH_HEADER..]]) {
        return None;
    }
    let (flags, _) = batch[24..].split_first_chunk::<4>()?;
    Some(Batch {
        number: number(batch, 8)?,
        durable: number(batch, 16)?,
        flags: u32::from_le_bytes(*flags),
        body: &batch[BATCH_HEADER..],
    })
}

/// Whether a batch of `segment` was at least begun at `offset`.
pub(crate) fn is_begun(data: &[u8], offset: usize, segment: u64) -> bool {
    let Some(batch) = data.get(offset..) else { return false };
    batch.starts_with(&BATCH_MAGIC) && batch.get(28..32) == Some(&tag(segment)[..])
}

fn tag(segment: u64) -> [u8; 4] {
    (segment as u32).to_le_bytes()
}

/// Offsets from `from` on where a whole batch of `segment` lies, wherever the ones before end.
pub(crate) fn find_batches(
    data: &[u8],
    from: usize,
    segment: u64,
) -> impl Iterator<Item = (usize, Batch<'_>)> {
    (from.next_multiple_of(ALIGNMENT)..data.len())
        .step_by(ALIGNMENT)
        .filter_map(move |offset| Some((offset, batch_at(data, offset, segment)?)))
}

fn number(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..)?.split_first_chunk::<8>().map(|(bytes, _)| u64::from_le_bytes(*bytes))
}

fn checksum(seed: u64, parts: &[&[u8]]) -> u64 {
    let mut hasher = Xxh3::with_seed(seed);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(segment: u64, number: u64, records: &[(u32, bool, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin_batch(&mut out);
        for (group, standing, payload) in records {
            let kind = if *standing { Kind::Standing } else { Kind::Entry };
            put_record(&mut out, Record { group: *group, kind, payload });
        }
        finish_batch(&mut out, start, segment, number, number.saturating_sub(1), 0);
        out
    }

    fn record() -> impl Strategy<Value = (u32, bool, Vec<u8>)> {
        (any::<u32>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..60))
    }

    proptest! {
        #[test]
        fn a_batch_reads_back(written in prop::collection::vec(record(), 0..6), number in any::<u64>()) {
            let data = encode(3, number, &written);
            prop_assert_eq!(data.len() % ALIGNMENT, 0);
            let batch = batch_at(&data, 0, 3).unwrap();
            prop_assert_eq!(batch.number, number);
            let read: Vec<_> = records(batch.body)
                .map(|record| record.unwrap())
                .map(|record| (record.group, record.kind == Kind::Standing, record.payload.to_vec()))
                .collect();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn a_changed_byte_is_noticed(
            written in prop::collection::vec(record(), 0..6),
            at in any::<prop::sample::Index>(),
            change in 1_u8..,
        ) {
            let mut data = encode(3, 9, &written);
            let at = at.index(data.len());
            data[at] ^= change;
            // Neither a bit of the header nor one of the body nor the padding may go unseen.
            prop_assert_eq!(batch_at(&data, 0, 3), None);
        }

        #[test]
        fn a_segment_header_reads_back(numbers in any::<[u64; 4]>()) {
            let [segment, first_batch, previous_end, size] = numbers;
            let header = SegmentHeader { segment, first_batch, previous_end, size };
            prop_assert_eq!(SegmentHeader::decode(&header.encode(), segment), Some(header));
            prop_assert_eq!(SegmentHeader::decode(&header.encode(), segment.wrapping_add(1)), None);
        }

        #[test]
        fn noise_is_no_batch(data in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert_eq!(batch_at(&data, 0, 1), None);
            prop_assert!(records(&data).count() <= data.len() + 1);
        }
    }

    #[test]
    fn a_former_life_does_not_count() {
        let data = encode(3, 9, &[(1, false, b"x".to_vec())]);
        assert!(batch_at(&data, 0, 3).is_some());
        assert_eq!(batch_at(&data, 0, 4), None);
    }

    #[test]
    fn batches_are_found_behind_a_bad_one() {
        let mut data = encode(3, 9, &[(1, false, vec![7; 100])]);
        let second = data.len();
        data.extend(encode(3, 10, &[(1, false, vec![8; 10])]));
        data[50] ^= 1;
        let found: Vec<_> =
            find_batches(&data, 0, 3).map(|(at, batch)| (at, batch.number)).collect();
        assert_eq!(found, [(second, 10)]);
    }
}
