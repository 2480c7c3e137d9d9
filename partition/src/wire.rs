//! Writes, what became of them, and errors, as servers send them to each other.
//!
//! ```text
//! write:      collection text | key text | expect | durability u8
//!             | 0, or 1 and the move's token u64 | 0, or 1 and limits
//!             | 0, or 1 and a task's epoch u64 and name text | 0 delete, or 1 and value bytes
//! expect:     0 absent | 1 anything | 2 present | 3 at, revision u64
//! committed:  revision u64 | entry
//! entry:      modified u64 | value bytes
//! limits:     see [`crate::quota`]
//! error:      kind u8 | what the kind has
//! ```
//!
//! `text` has a length of u16 before it, `bytes` one of u32; integers are little-endian.

use bytes::Bytes;

use crate::{
    codec::{Reader, put_bytes, put_text},
    epochs::Epoch,
    quota::{put_excess, put_limits, read_excess, read_limits},
    snapshot::Entry,
    store::{Change, Collection, Committed, Durability, Expect, Revision, StoreError, Write},
};

pub(crate) fn put_write(out: &mut Vec<u8>, write: &Write) {
    put_text(out, write.collection.as_str());
    put_text(out, &write.key);
    put_expect(out, write.expect);
    out.push(u8::from(write.durability == Durability::Durable));
    out.push(u8::from(write.by_move.is_some()));
    if let Some(token) = write.by_move {
        put_u64(out, token);
    }
    out.push(u8::from(write.within.is_some()));
    if let Some(limits) = &write.within {
        put_limits(out, limits);
    }
    out.push(u8::from(write.epoch.is_some()));
    if let Some(epoch) = &write.epoch {
        put_u64(out, epoch.number);
        put_text(out, &epoch.task);
    }
    match &write.change {
        Change::Delete => out.push(0),
        Change::Put(value) => {
            out.push(1);
            put_bytes(out, value);
        }
    }
}

pub(crate) fn read_write(reader: &mut Reader<'_>) -> Option<Write> {
    let collection = Collection::parse(reader.text()?)?;
    let key = reader.text()?.into();
    let expect = read_expect(reader)?;
    let durability = match reader.byte()? {
        0 => Durability::Relaxed,
        1 => Durability::Durable,
        _ => return None,
    };
    let by_move = match reader.byte()? {
        0 => None,
        1 => Some(reader.u64()?),
        _ => return None,
    };
    let within = match reader.byte()? {
        0 => None,
        1 => Some(read_limits(reader)?.into()),
        _ => return None,
    };
    let epoch = match reader.byte()? {
        0 => None,
        1 => Some(Epoch { number: reader.u64()?, task: reader.text()?.into() }),
        _ => return None,
    };
    let change = match reader.byte()? {
        0 => Change::Delete,
        1 => Change::Put(Bytes::copy_from_slice(reader.bytes()?)),
        _ => return None,
    };
    Some(Write { collection, key, expect, change, durability, by_move, within, epoch })
}

pub(crate) fn put_expect(out: &mut Vec<u8>, expect: Expect) {
    match expect {
        Expect::Absent => out.push(0),
        Expect::Anything => out.push(1),
        Expect::Present => out.push(2),
        Expect::At(revision) => {
            out.push(3);
            put_u64(out, revision.0);
        }
    }
}

pub(crate) fn read_expect(reader: &mut Reader<'_>) -> Option<Expect> {
    Some(match reader.byte()? {
        0 => Expect::Absent,
        1 => Expect::Anything,
        2 => Expect::Present,
        3 => Expect::At(Revision(reader.u64()?)),
        _ => return None,
    })
}

pub(crate) fn put_committed(out: &mut Vec<u8>, committed: &Committed) {
    put_u64(out, committed.revision.0);
    put_entry(out, &committed.entry);
}

pub(crate) fn read_committed(reader: &mut Reader<'_>) -> Option<Committed> {
    Some(Committed { revision: Revision(reader.u64()?), entry: read_entry(reader)? })
}

pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_u64(out, entry.modified.0);
    put_bytes(out, &entry.value.stored());
}

pub(crate) fn read_entry(reader: &mut Reader<'_>) -> Option<Entry> {
    let modified = Revision(reader.u64()?);
    Some(Entry { modified, value: Bytes::copy_from_slice(reader.bytes()?).into() })
}

const CONFLICT: u8 = 1;
const COMPACTED: u8 = 2;
const FUTURE: u8 = 3;
const TOO_LARGE: u8 = 4;
const UNAVAILABLE: u8 = 5;
const DAMAGED: u8 = 6;
const MOVING: u8 = 7;
const EXCEEDED: u8 = 8;
const SUPERSEDED: u8 = 9;

/// An error's causes are told in its text: they cannot travel.
pub(crate) fn put_error(out: &mut Vec<u8>, error: &StoreError) {
    match error {
        StoreError::Conflict { collection, key, found } => {
            out.push(CONFLICT);
            put_text(out, collection.as_str());
            put_text(out, key);
            out.push(u8::from(found.is_some()));
            if let Some(found) = found {
                put_entry(out, found);
            }
        }
        StoreError::Compacted { requested, oldest } => {
            put_numbers(out, COMPACTED, [requested.0, oldest.0]);
        }
        StoreError::Future { requested, newest } => {
            put_numbers(out, FUTURE, [requested.0, newest.0]);
        }
        StoreError::TooLarge { size, limit } => {
            put_numbers(out, TOO_LARGE, [*size as u64, *limit as u64]);
        }
        StoreError::Unavailable { reason, source } => {
            out.push(UNAVAILABLE);
            let cause = source.as_ref().map(|source| crate::error::chain(&**source));
            let parts = [Some(reason.clone()), cause];
            let told: Vec<_> = parts.into_iter().flatten().collect();
            put_bytes(out, told.join(": ").as_bytes());
        }
        // Whoever asks from elsewhere opens what it gets itself.
        StoreError::Sealed { source, .. } => {
            out.push(DAMAGED);
            put_bytes(out, format!("{error}: {source}").as_bytes());
        }
        StoreError::Damaged { what } => {
            out.push(DAMAGED);
            put_bytes(out, what.as_bytes());
        }
        StoreError::Exceeded(excess) => {
            out.push(EXCEEDED);
            put_excess(out, excess);
        }
        StoreError::Moving { what } => {
            out.push(MOVING);
            put_bytes(out, what.as_bytes());
        }
        StoreError::Superseded { task, epoch, newest } => {
            put_numbers(out, SUPERSEDED, [*epoch, *newest]);
            put_text(out, task);
        }
    }
}

pub(crate) fn read_error(reader: &mut Reader<'_>) -> Option<StoreError> {
    Some(match reader.byte()? {
        CONFLICT => StoreError::Conflict {
            collection: Collection::parse(reader.text()?)?,
            key: reader.text()?.into(),
            found: match reader.byte()? {
                0 => None,
                1 => Some(read_entry(reader)?),
                _ => return None,
            },
        },
        COMPACTED => StoreError::Compacted {
            requested: Revision(reader.u64()?),
            oldest: Revision(reader.u64()?),
        },
        FUTURE => StoreError::Future {
            requested: Revision(reader.u64()?),
            newest: Revision(reader.u64()?),
        },
        TOO_LARGE => StoreError::TooLarge {
            size: usize::try_from(reader.u64()?).ok()?,
            limit: usize::try_from(reader.u64()?).ok()?,
        },
        UNAVAILABLE => StoreError::Unavailable { reason: read_long(reader)?, source: None },
        DAMAGED => StoreError::Damaged { what: read_long(reader)? },
        EXCEEDED => StoreError::Exceeded(Box::new(read_excess(reader)?)),
        MOVING => StoreError::Moving { what: read_long(reader)? },
        SUPERSEDED => StoreError::Superseded {
            epoch: reader.u64()?,
            newest: reader.u64()?,
            task: reader.text()?.into(),
        },
        _ => return None,
    })
}

/// Text with a length of u32 before it.
pub(crate) fn read_long(reader: &mut Reader<'_>) -> Option<String> {
    std::str::from_utf8(reader.bytes()?).ok().map(str::to_owned)
}

fn put_numbers(out: &mut Vec<u8>, kind: u8, numbers: [u64; 2]) {
    out.push(kind);
    put_u64s(out, numbers);
}

pub(crate) fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

pub(crate) fn put_u64s<const N: usize>(out: &mut Vec<u8>, numbers: [u64; N]) {
    numbers.into_iter().for_each(|number| put_u64(out, number));
}

#[cfg(test)]
mod tests {
    use insula_api::quota::amounts::Amounts;
    use proptest::prelude::*;

    use super::*;
    use crate::quota::{Excess, Limit};

    fn entry() -> Entry {
        Entry { value: Bytes::from_static(b"{}").into(), modified: Revision(7) }
    }

    #[test]
    fn a_write_reads_back() {
        for (expect, change, durability) in [
            (Expect::Absent, Change::Put(Bytes::from_static(b"v")), Durability::Durable),
            (Expect::At(Revision(9)), Change::Delete, Durability::Relaxed),
            (Expect::Present, Change::Put(Bytes::new()), Durability::Durable),
            (Expect::Anything, Change::Delete, Durability::Durable),
        ] {
            let collection = Collection::new("apps", "deployments");
            let by_move = matches!(change, Change::Delete).then_some(7);
            let key = "t/n/é".into();
            let limit = Limit { quota: "q".into(), namespaces: None, hard: Amounts::new() };
            let within = by_move.is_none().then(|| [limit].into());
            let epoch = by_move.map(|number| Epoch { task: "t.1".into(), number });
            let write =
                Write { collection, key, expect, change, durability, by_move, within, epoch };
            let mut out = Vec::new();
            put_write(&mut out, &write);
            let mut reader = Reader::new(&out);
            let read = read_write(&mut reader).unwrap();
            assert!(reader.is_empty());
            assert_eq!(format!("{read:?}"), format!("{write:?}"));
        }
    }

    #[test]
    fn an_error_reads_back() {
        let (collection, key) = (Collection::new("", "pods"), "k".into());
        let reason = "no quorum".to_owned();
        for error in [
            StoreError::Conflict { collection: collection.clone(), key, found: Some(entry()) },
            StoreError::Conflict { collection, key: "k".into(), found: None },
            StoreError::Compacted { requested: Revision(1), oldest: Revision(2) },
            StoreError::Future { requested: Revision(3), newest: Revision(4) },
            StoreError::TooLarge { size: 5, limit: 6 },
            StoreError::Unavailable { reason, source: None },
            StoreError::Damaged { what: "x".into() },
            StoreError::Moving { what: "y".into() },
            StoreError::Exceeded(Box::new(Excess {
                quota: "q".into(),
                requested: Amounts::new(),
                used: Amounts::new(),
                limited: Amounts::new(),
            })),
            StoreError::Superseded { task: "z".into(), epoch: 7, newest: 8 },
        ] {
            let mut out = Vec::new();
            put_error(&mut out, &error);
            let read = read_error(&mut Reader::new(&out)).unwrap();
            assert_eq!(format!("{read:?}"), format!("{error:?}"));
        }
        let source = Some(std::io::Error::other("cable cut").into());
        let mut out = Vec::new();
        put_error(&mut out, &StoreError::Unavailable { reason: "lost".into(), source });
        let read = read_error(&mut Reader::new(&out)).unwrap();
        assert!(read.to_string().ends_with("lost: cable cut"), "{read}");
    }

    proptest! {
        #[test]
        fn noise_never_panics(data in prop::collection::vec(any::<u8>(), 0..200)) {
            read_write(&mut Reader::new(&data));
            read_error(&mut Reader::new(&data));
            read_committed(&mut Reader::new(&data));
        }
    }
}
