//! What is said between a [`super::RemoteStore`] and the service of a server that has the
//! partition: requests, outcomes and the pieces of a followed collection, as bytes.
//!
//! Both ends are servers of one cluster, but nothing that is read is believed: lengths are
//! checked, and what cannot be read is an error of the call.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    codec::{Reader, put_bytes, put_text},
    snapshot::Entry,
    store::{Collection, Committed, Revision, StoreError, StoreStats, Write},
    watch::Event,
    wire::{
        put_committed, put_entry, put_error, put_u64, put_write, read_committed, read_entry,
        read_error, read_long, read_write,
    },
};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message between servers cannot be read; do both run the same version?")]
pub(crate) struct Garbled;

/// What is asked of a partition.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Write(Write),
    /// How far the partition is now, and whether the collection changed after `have`.
    Progress {
        collection: Collection,
        have: Revision,
    },
    Compact(Revision),
    Raise(Revision),
    Collections,
    Follow {
        collection: Collection,
        from: Start,
    },
}

/// Where following a collection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// The asker has everything up to here.
    After(Revision),
    /// With all that is live; as of this revision if that is still known, or of now.
    Image(Option<Revision>),
}

/// The answer to [`Request::Progress`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Everything that was acknowledged before the question is at or below.
    pub(crate) revision: Revision,
    /// Nothing in the collection changed after `have` up to `revision`.
    pub(crate) unchanged: bool,
    pub(crate) stats: StoreStats,
}

/// A part of a followed collection, in the order in which they are sent.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Everything at `revision` follows, then [`Piece::Complete`]. History at or below `oldest`
    /// is known to nobody.
    Image {
        revision: Revision,
        oldest: Revision,
    },
    Entries {
        collection: Collection,
        entries: Vec<(Arc<str>, Entry)>,
    },
    Complete,
    /// All changes up to `complete` that were not sent yet.
    Changes {
        events: Vec<(Collection, Arc<Event>)>,
        complete: Revision,
    },
    /// The last piece.
    Failed(StoreError),
}

/// Every request begins with this byte, to tell it from those of other parts.
pub(crate) const TAG: u8 = b'R';

/// Bytes after which a piece is sent: enough to be worth it, little enough to wait for.
pub(crate) const PIECE: usize = 256 << 10;

impl Request {
    /// The request, addressed to `partition`.
    pub(crate) fn encode(&self, partition: &str) -> Bytes {
        let mut out = vec![TAG];
        put_text(&mut out, partition);
        match self {
            Self::Write(write) => {
                out.push(1);
                put_write(&mut out, write);
            }
            Self::Progress { collection, have } => {
                out.push(2);
                put_text(&mut out, collection.as_str());
                put_u64(&mut out, have.0);
            }
            Self::Compact(revision) => {
                out.push(3);
                put_u64(&mut out, revision.0);
            }
            Self::Raise(revision) => {
                out.push(6);
                put_u64(&mut out, revision.0);
            }
            Self::Collections => out.push(4),
            Self::Follow { collection, from } => {
                out.push(5);
                put_text(&mut out, collection.as_str());
                let (tag, at) = match from {
                    Start::After(revision) => (0, revision.0),
                    Start::Image(Some(revision)) => (1, revision.0),
                    Start::Image(None) => (2, 0),
                };
                out.push(tag);
                put_u64(&mut out, at);
            }
        }
        out.into()
    }

    /// Reads back what [`Request::encode`] wrote, with the partition it is for.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(&str, Self), Garbled> {
        Self::read(&mut Reader::new(bytes)).ok_or(Garbled)
    }

    fn read<'a>(reader: &mut Reader<'a>) -> Option<(&'a str, Self)> {
        if reader.byte()? != TAG {
            return None;
        }
        let partition = reader.text()?;
        let request = match reader.byte()? {
            1 => Self::Write(read_write(reader)?),
            2 => Self::Progress {
                collection: Collection::parse(reader.text()?)?,
                have: Revision(reader.u64()?),
            },
            3 => Self::Compact(Revision(reader.u64()?)),
            6 => Self::Raise(Revision(reader.u64()?)),
            4 => Self::Collections,
            5 => {
                let collection = Collection::parse(reader.text()?)?;
                let from = match (reader.byte()?, Revision(reader.u64()?)) {
                    (0, revision) => Start::After(revision),
                    (1, revision) => Start::Image(Some(revision)),
                    (2, _) => Start::Image(None),
                    _ => return None,
                };
                Self::Follow { collection, from }
            }
            _ => return None,
        };
        reader.is_empty().then_some((partition, request))
    }
}

/// What a server says to a request.
pub(crate) enum Outcome<T> {
    /// The partition's answer.
    Done(Result<T, StoreError>),
    /// The partition is not on this server. Nothing was done.
    NotHere,
}

/// An answer's own encoding.
pub(crate) trait Answer: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'_>) -> Option<Self>;
}

impl<T: Answer> Outcome<T> {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Done(Ok(answer)) => {
                out.push(0);
                answer.put(&mut out);
            }
            Self::Done(Err(error)) => {
                out.push(1);
                put_error(&mut out, error);
            }
            Self::NotHere => out.push(2),
        }
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Garbled> {
        let mut reader = Reader::new(bytes);
        let outcome = match reader.byte() {
            Some(0) => T::take(&mut reader).map(|answer| Self::Done(Ok(answer))),
            Some(1) => read_error(&mut reader).map(|error| Self::Done(Err(error))),
            Some(2) => Some(Self::NotHere),
            _ => None,
        };
        outcome.filter(|_| reader.is_empty()).ok_or(Garbled)
    }
}

impl Answer for () {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut Reader<'_>) -> Option<Self> {
        Some(())
    }
}

impl Answer for Committed {
    fn put(&self, out: &mut Vec<u8>) {
        put_committed(out, self);
    }

    fn take(reader: &mut Reader<'_>) -> Option<Self> {
        read_committed(reader)
    }
}

impl Answer for Vec<Collection> {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len() as u32).to_le_bytes());
        self.iter().for_each(|collection| put_text(out, collection.as_str()));
    }

    fn take(reader: &mut Reader<'_>) -> Option<Self> {
        let count = reader.u32()?;
        (0..count).map(|_| Collection::parse(reader.text()?)).collect()
    }
}

impl Answer for Progress {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.revision.0);
        out.push(u8::from(self.unchanged));
        let stats = &self.stats;
        for number in [stats.objects, stats.bytes, stats.revision.0, stats.compacted.0] {
            put_u64(out, number);
        }
        out.push(u8::from(stats.unhealthy.is_some()));
        put_bytes(out, stats.unhealthy.as_deref().unwrap_or_default().as_bytes());
        put_bytes(out, stats.leader.as_bytes());
        put_text(out, stats.backend);
    }

    fn take(reader: &mut Reader<'_>) -> Option<Self> {
        let revision = Revision(reader.u64()?);
        let unchanged = reader.byte()? == 1;
        let objects = reader.u64()?;
        let bytes = reader.u64()?;
        let (newest, compacted) = (Revision(reader.u64()?), Revision(reader.u64()?));
        let is_unhealthy = reader.byte()? == 1;
        let reason = read_long(reader)?;
        let leader = read_long(reader)?;
        let backend = match reader.text()? {
            "embedded" => "embedded",
            "etcd" => "etcd",
            _ => "unknown",
        };
        let stats = StoreStats {
            objects,
            bytes,
            revision: newest,
            compacted,
            unhealthy: is_unhealthy.then_some(reason),
            leader,
            backend,
            ..StoreStats::default()
        };
        Some(Self { revision, unchanged, stats })
    }
}

impl Piece {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        match self {
            Self::Image { revision, oldest } => {
                out.push(1);
                put_u64(&mut out, revision.0);
                put_u64(&mut out, oldest.0);
            }
            Self::Entries { collection, entries } => {
                out.push(2);
                put_text(&mut out, collection.as_str());
                for (key, entry) in entries {
                    put_text(&mut out, key);
                    put_entry(&mut out, entry);
                }
            }
            Self::Complete => out.push(3),
            Self::Changes { events, complete } => {
                out.push(4);
                put_u64(&mut out, complete.0);
                for (collection, event) in events {
                    put_text(&mut out, collection.as_str());
                    put_text(&mut out, &event.key);
                    out.push(u8::from(event.deleted));
                    put_u64(&mut out, event.revision.0);
                    // A delete's value is the last one, which the other end has.
                    let value: &[u8] =
                        if event.deleted { &[] } else { &event.entry.value.stored() };
                    put_bytes(&mut out, value);
                }
            }
            Self::Failed(error) => {
                out.push(5);
                put_error(&mut out, error);
            }
        }
        out.into()
    }
}

/// A piece as the receiver reads it, borrowing from the bytes that arrived.
pub(crate) enum Arrived<'a> {
    Image { revision: Revision, oldest: Revision },
    Entries { collection: Collection, entries: Vec<(Arc<str>, Entry)> },
    Complete,
    Changes { changes: Vec<ArrivedChange<'a>>, complete: Revision },
    Failed(StoreError),
}

/// One change of [`Arrived::Changes`].
pub(crate) struct ArrivedChange<'a> {
    pub(crate) collection: &'a str,
    pub(crate) key: &'a str,
    pub(crate) revision: Revision,
    /// `None` is a delete.
    pub(crate) value: Option<&'a [u8]>,
}

impl<'a> Arrived<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Garbled> {
        Self::read(&mut Reader::new(bytes)).ok_or(Garbled)
    }

    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let piece = match reader.byte()? {
            1 => Self::Image { revision: Revision(reader.u64()?), oldest: Revision(reader.u64()?) },
            2 => {
                let collection = Collection::parse(reader.text()?)?;
                let mut entries = Vec::new();
                while !reader.is_empty() {
                    entries.push((reader.text()?.into(), read_entry(reader)?));
                }
                Self::Entries { collection, entries }
            }
            3 => Self::Complete,
            4 => {
                let complete = Revision(reader.u64()?);
                let mut changes = Vec::new();
                while !reader.is_empty() {
                    let (collection, key) = (reader.text()?, reader.text()?);
                    let deleted = reader.byte()? == 1;
                    let revision = Revision(reader.u64()?);
                    let value = reader.bytes()?;
                    let value = (!deleted).then_some(value);
                    changes.push(ArrivedChange { collection, key, revision, value });
                }
                Self::Changes { changes, complete }
            }
            5 => Self::Failed(read_error(reader)?),
            _ => return None,
        };
        reader.is_empty().then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::{Change, Durability, Expect};

    fn collection() -> Collection {
        Collection::new("apps", "deployments")
    }

    #[track_caller]
    fn check(request: &Request) {
        let bytes = request.encode("p1");
        let (partition, read) = Request::decode(&bytes).unwrap();
        assert_eq!(partition, "p1");
        assert_eq!(format!("{read:?}"), format!("{request:?}"));
        for end in 0..bytes.len() {
            assert!(Request::decode(&bytes[..end]).is_err(), "cut off at {end}");
        }
    }

    #[test]
    fn requests_read_back() {
        let expects = [Expect::Absent, Expect::At(Revision(7)), Expect::Present, Expect::Anything];
        for expect in expects {
            for change in [Change::Delete, Change::Put(Bytes::from_static(b"v"))] {
                check(&Request::Write(Write {
                    collection: collection(),
                    key: "t/ns/name".into(),
                    expect,
                    change,
                    durability: Durability::Relaxed,
                    by_move: Some(3),
                    within: None,
                    epoch: None,
                }));
            }
        }
        check(&Request::Progress { collection: collection(), have: Revision(3) });
        check(&Request::Compact(Revision(9)));
        check(&Request::Raise(Revision(9)));
        check(&Request::Collections);
        for from in [Start::After(Revision(1)), Start::Image(None), Start::Image(Some(Revision(2)))]
        {
            check(&Request::Follow { collection: collection(), from });
        }
    }

    #[test]
    fn outcomes_read_back() {
        #[track_caller]
        fn check(error: StoreError) {
            let text = format!("{error:?}");
            let bytes = Outcome::<Committed>::Done(Err(error)).encode();
            let Outcome::Done(Err(read)) = Outcome::<Committed>::decode(&bytes).unwrap() else {
                panic!("an error became something else")
            };
            assert_eq!(format!("{read:?}"), text);
        }
        let found = Entry { value: Bytes::from_static(b"v").into(), modified: Revision(4) };
        for found in [None, Some(found)] {
            check(StoreError::Conflict { collection: collection(), key: "k".into(), found });
        }
        check(StoreError::Compacted { requested: Revision(1), oldest: Revision(2) });
        check(StoreError::Future { requested: Revision(3), newest: Revision(2) });
        check(StoreError::TooLarge { size: 2, limit: 1 });
        check(StoreError::Unavailable { reason: "no quorum".into(), source: None });
        check(StoreError::Damaged { what: "x".into() });
        check(StoreError::Moving { what: "tenant acme".into() });
    }

    proptest! {
        #[test]
        fn nothing_is_believed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::decode(&bytes);
            let _ = Arrived::decode(&bytes);
            let _ = Outcome::<Committed>::decode(&bytes);
            let _ = Outcome::<Progress>::decode(&bytes);
            let _ = Outcome::<Vec<Collection>>::decode(&bytes);
        }
    }
}
