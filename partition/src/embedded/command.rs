//! What a raft entry says: the commands of one batch, in the order in which they are applied.
//!
//! The layout is on disk and on the wire between members:
//!
//! ```text
//! batch:   format u8 | class u8 | command..
//! command: 1 put     expect | collection | key | value
//!          2 delete  expect | collection | key
//!          3 skip    count u64
//!          4 compact revision u64
//!          5 by move token u64 | put or delete
//!          6 raise   revision u64
//!          7 within  limits | put
//!          8 in an epoch number u64 | task | 1, 2, 5 or 7
//! expect:  0 absent | 1 anything | 2 present | 3 at, revision u64
//! limits:  see [`crate::quota`]
//! collection, key, task: length u16, bytes          value: length u32, bytes
//! ```
//!
//! Integers are little-endian. The class is that of the batch's most demanding command, so that
//! whoever logs the entry knows whether to wait for the disk.

use crate::{
    codec::{Reader, put_bytes, put_text},
    quota::{Limit, put_limits, read_limits, size_of_limits},
    store::{Change, Durability, Expect, Revision, Write},
    wire::{put_expect, read_expect},
};

/// Changes with the layout above.
const FORMAT: u8 = 1;

const RELAXED: u8 = 0;
const DURABLE: u8 = 1;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const SKIP: u8 = 3;
const COMPACT: u8 = 4;
const BY_MOVE: u8 = 5;
const RAISE: u8 = 6;
const WITHIN: u8 = 7;
const IN_EPOCH: u8 = 8;

/// One command, borrowed from the entry that holds it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command<'a> {
    Put {
        expect: Expect,
        collection: &'a str,
        key: &'a str,
        value: &'a [u8],
        by_move: Option<u64>,
        within: Vec<Limit>,
        epoch: Option<InEpoch<'a>>,
    },
    Delete {
        expect: Expect,
        collection: &'a str,
        key: &'a str,
        by_move: Option<u64>,
        epoch: Option<InEpoch<'a>>,
    },
    Skip {
        count: u64,
    },
    Compact {
        revision: Revision,
    },
    Raise {
        revision: Revision,
    },
}

/// A task and its epoch, borrowed.
pub(crate) type InEpoch<'a> = (&'a str, u64);

/// Collects commands into the data of one raft entry.
#[derive(Debug)]
pub(crate) struct Batch {
    data: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { data: vec![FORMAT, RELAXED] }
    }
}

impl Batch {
    /// A batch that will take about so many bytes: growing means copying.
    pub(crate) fn with_room(bytes: usize) -> Self {
        let mut data = Vec::with_capacity(bytes + 2);
        data.extend_from_slice(&[FORMAT, RELAXED]);
        Self { data }
    }

    /// Bytes that `write` takes.
    pub(crate) fn size_of(write: &Write) -> usize {
        let value = match &write.change {
            Change::Put(value) => value.len(),
            Change::Delete => 0,
        };
        // Kinds, lengths, numbers.
        const AROUND: usize = 32;
        let epoch = write.epoch.as_ref().map_or(0, |it| it.task.len() + 11);
        let within = write.within.as_ref().map_or(0, |it| size_of_limits(it));
        AROUND + write.collection.as_str().len() + write.key.len() + epoch + within + value
    }

    /// Size of the entry so far.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Whether it may be acknowledged before it is on disk.
    pub(crate) fn is_relaxed(&self) -> bool {
        is_relaxed(&self.data)
    }

    /// Adds a write that passed [`crate::limits::check_limits`].
    pub(crate) fn write(&mut self, write: &Write) {
        let (kind, value) = match &write.change {
            Change::Put(value) => (PUT, Some(value)),
            Change::Delete => (DELETE, None),
        };
        if let Some(epoch) = &write.epoch {
            self.begin(IN_EPOCH, write.durability);
            self.data.extend_from_slice(&epoch.number.to_le_bytes());
            put_text(&mut self.data, &epoch.task);
        }
        match (write.by_move, &write.within) {
            (Some(token), _) => {
                self.begin(BY_MOVE, write.durability);
                self.data.extend_from_slice(&token.to_le_bytes());
                self.data.push(kind);
            }
            (None, Some(limits)) if kind == PUT => {
                self.begin(WITHIN, write.durability);
                put_limits(&mut self.data, limits);
            }
            (None, _) => self.begin(kind, write.durability),
        }
        put_expect(&mut self.data, write.expect);
        put_text(&mut self.data, write.collection.as_str());
        put_text(&mut self.data, &write.key);
        if let Some(value) = value {
            put_bytes(&mut self.data, value);
        }
    }

    pub(crate) fn skip(&mut self, count: u64) {
        self.begin(SKIP, Durability::Durable);
        self.data.extend_from_slice(&count.to_le_bytes());
    }

    pub(crate) fn compact(&mut self, revision: Revision) {
        self.begin(COMPACT, Durability::Relaxed);
        self.data.extend_from_slice(&revision.0.to_le_bytes());
    }

    pub(crate) fn raise(&mut self, revision: Revision) {
        self.begin(RAISE, Durability::Durable);
        self.data.extend_from_slice(&revision.0.to_le_bytes());
    }

    /// The entry's data.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.data
    }

    fn begin(&mut self, kind: u8, durability: Durability) {
        if durability == Durability::Durable {
            self.data[1] = DURABLE;
        }
        self.data.push(kind);
    }
}

/// Whether an entry may be acknowledged before it is on disk. Raft's own entries are empty.
pub(crate) fn is_relaxed(data: &[u8]) -> bool {
    matches!(data, [FORMAT, RELAXED, ..])
}

/// Reads the commands of an entry. Ends after the first error.
pub(crate) fn commands(data: &[u8]) -> Commands<'_> {
    let mut reader = Reader::new(data);
    // Raft's own entries are empty.
    let known = data.is_empty()
        || reader.byte() == Some(FORMAT) && matches!(reader.byte(), Some(RELAXED | DURABLE));
    Commands { reader, malformed: !known }
}

/// See [`commands`].
#[derive(Debug)]
pub(crate) struct Commands<'a> {
    reader: Reader<'a>,
    malformed: bool,
}

/// An entry whose checksum is right but whose content makes no sense: written by other code.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a log entry holds a command that this version does not know")]
pub(crate) struct UnknownCommand;

impl<'a> Iterator for Commands<'a> {
    type Item = Result<Command<'a>, UnknownCommand>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.malformed && self.reader.is_empty() {
            return None;
        }
        let command = if self.malformed { None } else { command(&mut self.reader) };
        if command.is_none() {
            *self = Commands { reader: Reader::new(&[]), malformed: false };
        }
        Some(command.ok_or(UnknownCommand))
    }
}

fn command<'a>(reader: &mut Reader<'a>) -> Option<Command<'a>> {
    Some(match reader.byte()? {
        IN_EPOCH => {
            let number = reader.u64()?;
            let epoch = Some((reader.text()?, number));
            let kind = reader.byte()?;
            guarded(kind, epoch, reader)?
        }
        kind @ (PUT | DELETE | BY_MOVE | WITHIN) => guarded(kind, None, reader)?,
        SKIP => Command::Skip { count: reader.u64()? },
        COMPACT => Command::Compact { revision: Revision(reader.u64()?) },
        RAISE => Command::Raise { revision: Revision(reader.u64()?) },
        _ => return None,
    })
}

/// A write, of a move or within limits or neither.
fn guarded<'a>(
    kind: u8,
    epoch: Option<InEpoch<'a>>,
    reader: &mut Reader<'a>,
) -> Option<Command<'a>> {
    match kind {
        BY_MOVE => {
            let token = Some(reader.u64()?);
            let kind = reader.byte()?;
            write(kind, token, epoch, Vec::new(), reader)
        }
        WITHIN => {
            let within = read_limits(reader)?;
            write(PUT, None, epoch, within, reader)
        }
        kind => write(kind, None, epoch, Vec::new(), reader),
    }
}

fn write<'a>(
    kind: u8,
    by_move: Option<u64>,
    epoch: Option<InEpoch<'a>>,
    within: Vec<Limit>,
    reader: &mut Reader<'a>,
) -> Option<Command<'a>> {
    let (expect, collection, key) = (read_expect(reader)?, reader.text()?, reader.text()?);
    Some(match kind {
        PUT => {
            let value = reader.bytes()?;
            Command::Put { expect, collection, key, value, by_move, epoch, within }
        }
        DELETE => Command::Delete { expect, collection, key, by_move, epoch },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{epochs::Epoch, quota::OBJECTS, store::Collection};

    fn expect() -> impl Strategy<Value = Expect> {
        prop_oneof![
            Just(Expect::Absent),
            Just(Expect::Anything),
            Just(Expect::Present),
            any::<u64>().prop_map(|revision| Expect::At(Revision(revision))),
        ]
    }

    fn limits() -> Vec<Limit> {
        let five = insula_api::quantity::Quantity::parse("5").unwrap();
        vec![Limit {
            quota: "q".into(),
            namespaces: None,
            hard: [(OBJECTS.to_owned(), five)].into(),
        }]
    }

    fn write() -> impl Strategy<Value = Write> {
        let change = prop_oneof![
            Just(Change::Delete),
            prop::collection::vec(any::<u8>(), 0..200)
                .prop_map(|value| Change::Put(Bytes::from(value))),
        ];
        let name = ("[a-z]{1,8}", "[a-z]{1,8}");
        let epoch = prop::option::of(
            ("[a-z.0-9]{1,9}", any::<u64>())
                .prop_map(|(task, number)| Epoch { task: task.into(), number }),
        );
        let on_behalf = (any::<Option<u64>>(), epoch);
        (name, ".{0,30}", expect(), change, any::<bool>(), on_behalf).prop_map(
            |((group, resource), key, expect, change, durable, (by_move, epoch))| Write {
                collection: Collection::new(&group, &resource),
                key: key.into(),
                expect,
                change,
                durability: if durable { Durability::Durable } else { Durability::Relaxed },
                by_move,
                within: by_move.is_none_or(|it| it % 2 == 0).then(|| limits().into()),
                epoch,
            },
        )
    }

    proptest! {
        #[test]
        fn a_batch_reads_back(writes in prop::collection::vec(write(), 0..8)) {
            let mut batch = Batch::default();
            writes.iter().for_each(|write| batch.write(write));
            let data = batch.finish();
            let durable = writes.iter().any(|write| write.durability == Durability::Durable);
            prop_assert_eq!(is_relaxed(&data), !durable);
            let read: Vec<_> = commands(&data).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read.len(), writes.len());
            for (read, write) in read.iter().zip(&writes) {
                let (expect, collection, key) = (write.expect, write.collection.as_str(), &*write.key);
                let by_move = write.by_move;
                let epoch = write.epoch.as_ref().map(|it| (&*it.task, it.number));
                let expected = match &write.change {
                    Change::Put(value) => {
                        // A move is never limited.
                        let is_limited = by_move.is_none() && write.within.is_some();
                        let within = if is_limited { limits() } else { Vec::new() };
                        Command::Put { expect, collection, key, value, by_move, epoch, within }
                    }
                    Change::Delete => Command::Delete { expect, collection, key, by_move, epoch },
                };
                prop_assert_eq!(read, &expected);
            }
        }

        #[test]
        fn noise_never_panics_and_ends(data in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(commands(&data).count() <= data.len() + 1);
        }
    }

    #[test]
    fn the_layout_is_pinned() {
        let mut batch = Batch::default();
        batch.write(&Write {
            collection: Collection::new("", "pods"),
            key: "k".into(),
            expect: Expect::At(Revision(7)),
            change: Change::Put(Bytes::from_static(b"v")),
            durability: Durability::Durable,
            by_move: None,
            within: None,
            epoch: Some(Epoch { task: "t".into(), number: 5 }),
        });
        batch.skip(2);
        batch.write(&Write {
            collection: Collection::new("", "pods"),
            key: "k".into(),
            expect: Expect::Present,
            change: Change::Delete,
            durability: Durability::Durable,
            by_move: Some(3),
            within: None,
            epoch: None,
        });
        batch.raise(Revision(4));
        let expected = b"\x01\x01\
            \x08\x05\0\0\0\0\0\0\0\x01\0t\
            \x01\x03\x07\0\0\0\0\0\0\0\x09\0core/pods\x01\0k\x01\0\0\0v\
            \x03\x02\0\0\0\0\0\0\0\
            \x05\x03\0\0\0\0\0\0\0\x02\x02\x09\0core/pods\x01\0k\
            \x06\x04\0\0\0\0\0\0\0";
        assert_eq!(batch.finish(), expected);
    }
}
