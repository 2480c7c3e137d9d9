//! What a group's records in the log hold.
//!
//! ```text
//! standing:  term u64 | vote u64 | commit u64 | reserved u64
//! entry:     type u8 | term u64 | index u64 | data
//! restored:  index u64 | term u64
//! ```

use raft::eraftpb::{Entry, EntryType, HardState};

use super::raft_log::Position;
use crate::codec::Reader;

pub(crate) fn encode_standing(hard: &HardState, reserved: u64) -> [u8; 32] {
    let mut out = [0; 32];
    for (at, number) in [hard.term, hard.vote, hard.commit, reserved].into_iter().enumerate() {
        out[8 * at..8 * (at + 1)].copy_from_slice(&number.to_le_bytes());
    }
    out
}

pub(crate) fn decode_standing(payload: &[u8]) -> Option<(HardState, u64)> {
    let mut reader = Reader::new(payload);
    let hard = HardState { term: reader.u64()?, vote: reader.u64()?, commit: reader.u64()? };
    let reserved = reader.u64()?;
    reader.is_empty().then_some((hard, reserved))
}

pub(crate) fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    out.push(entry.entry_type as u8);
    out.extend_from_slice(&entry.term.to_le_bytes());
    out.extend_from_slice(&entry.index.to_le_bytes());
    out.extend_from_slice(&entry.data);
}

pub(crate) fn decode_entry(payload: &[u8]) -> Option<Entry> {
    let mut reader = Reader::new(payload);
    let entry_type = EntryType::from_i32(i32::from(reader.byte()?))? as i32;
    let (term, index) = (reader.u64()?, reader.u64()?);
    Some(Entry { entry_type, term, index, data: reader.rest().to_vec(), ..Entry::default() })
}

pub(crate) fn encode_position(at: Position) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&at.index.to_le_bytes());
    out[8..].copy_from_slice(&at.term.to_le_bytes());
    out
}

pub(crate) fn decode_position(payload: &[u8]) -> Option<Position> {
    let mut reader = Reader::new(payload);
    let at = Position { index: reader.u64()?, term: reader.u64()? };
    reader.is_empty().then_some(at)
}
