//! The file of a backup.
//!
//! ```text
//! file:   INSULABK | version u32 | block..
//! block:  length of body u32 | kind u8 | number u64 | checksum u64 | body
//! kinds:  1 header     JSON: cluster, the partition map
//!         2 partition  JSON: name, revision
//!         3 rows       zlib of rows, see `embedded::image`
//!         4 end        JSON: number of objects in all
//! ```
//!
//! Integers are little-endian. Blocks are numbered from 0; the checksum, xxh3, is of kind, number
//! and body, so that no block can be damaged, missing, or in another's place unseen.

use std::io::{self, Read, Write as _};

use bytes::Bytes;
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    codec::Reader,
    embedded::put_row,
    map::PartitionMap,
    snapshot::Entry,
    store::{Collection, Revision},
};

const MAGIC: &[u8; 8] = b"INSULABK";
const VERSION: u32 = 1;

const HEADER: u8 = 1;
const PARTITION: u8 = 2;
const ROWS: u8 = 3;
const END: u8 = 4;

/// Before each body: its length, kind, number and checksum.
const HEAD: usize = 4 + 1 + 8 + 8;

/// No block is longer; a length that says so is damaged.
const LONGEST: u32 = 64 << 20;

/// Rows are packed into a block once they have this many bytes.
const PACK: usize = 1 << 20;

/// Where an archive is not as it was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    #[error("this is no backup")]
    NotOne,
    #[error("this backup has format {0}; this version reads {VERSION}")]
    Version(u32),
    #[error("the backup ends at byte {at}, in the middle of block {block}")]
    Short { at: u64, block: u64 },
    #[error("block {block}, at byte {at}, is damaged{place}: {what}")]
    Damaged { at: u64, block: u64, place: String, what: &'static str },
    #[error("the backup cannot be read at byte {at}")]
    Io {
        at: u64,
        #[source]
        source: io::Error,
    },
}

/// What stands at the front.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) cluster: String,
    pub(super) map: PartitionMap,
}

/// What stands before a partition's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartitionHead {
    pub(super) name: String,
    pub(super) revision: Revision,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Tail {
    objects: u64,
}

/// What an archive holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Id of the cluster that it is of.
    pub cluster: String,
    /// Names, with the revision and the number of objects of each.
    pub partitions: Vec<(String, Revision, u64)>,
    /// The highest revision in any of them.
    pub newest: Revision,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Summary {
    /// Objects in all partitions.
    pub fn objects(&self) -> u64 {
        self.partitions.iter().map(|(.., objects)| objects).sum()
    }
}

/// Makes an archive, piece by piece.
pub(super) struct Packer {
    number: u64,
    objects: u64,
    rows: Vec<u8>,
}

fn json<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}

fn checksum(kind: u8, number: u64, body: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&[kind]);
    hasher.update(&number.to_le_bytes());
    hasher.update(body);
    hasher.digest()
}

impl Packer {
    /// Begins one; gives its first bytes.
    pub(super) fn begin(header: &Header) -> io::Result<(Self, Bytes)> {
        let mut packer = Self { number: 0, objects: 0, rows: Vec::new() };
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&packer.block(HEADER, &json(header)?));
        Ok((packer, out.into()))
    }

    fn block(&mut self, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + body.len());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&checksum(kind, self.number, body).to_le_bytes());
        out.extend_from_slice(body);
        self.number += 1;
        out
    }

    pub(super) fn partition(&mut self, head: &PartitionHead) -> io::Result<Bytes> {
        let mut out = self.flush()?.unwrap_or_default().to_vec();
        out.extend_from_slice(&self.block(PARTITION, &json(head)?));
        Ok(out.into())
    }

    /// Adds an object; gives a block once there is enough for one.
    pub(super) fn row(
        &mut self,
        collection: &Collection,
        key: &str,
        entry: &Entry,
    ) -> io::Result<Option<Bytes>> {
        put_row(&mut self.rows, collection, key, entry);
        self.objects += 1;
        if self.rows.len() < PACK { Ok(None) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<Option<Bytes>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&self.rows)?;
        self.rows.clear();
        let packed = packed.finish()?;
        Ok(Some(self.block(ROWS, &packed).into()))
    }

    /// The last bytes.
    pub(super) fn end(&mut self) -> io::Result<Bytes> {
        let mut out = self.flush()?.unwrap_or_default().to_vec();
        let objects = self.objects;
        out.extend_from_slice(&self.block(END, &json(&Tail { objects })?));
        Ok(out.into())
    }
}

/// What an archive says, part by part.
pub(super) enum Part {
    Header(Box<Header>),
    Partition(PartitionHead),
    Rows(Vec<(Collection, String, Entry)>),
    End,
}

/// Reads an archive and checks everything that it reads.
pub(super) struct Unpacker<R> {
    from: R,
    at: u64,
    number: u64,
    objects: u64,
    partition: String,
}

impl<R: Read> Unpacker<R> {
    /// Begins with the first bytes of an archive.
    pub(super) fn begin(from: R) -> Result<Self, ArchiveError> {
        let mut unpacker = Self { from, at: 0, number: 0, objects: 0, partition: String::new() };
        let mut front = [0; 12];
        match unpacker.fill(&mut front) {
            Ok(()) => {}
            Err(ArchiveError::Short { .. }) => return Err(ArchiveError::NotOne),
            Err(error) => return Err(error),
        }
        let (magic, version) = front.split_at(8);
        if magic != MAGIC {
            return Err(ArchiveError::NotOne);
        }
        match Reader::new(version).u32() {
            Some(VERSION) => Ok(unpacker),
            found => Err(ArchiveError::Version(found.unwrap_or_default())),
        }
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), ArchiveError> {
        let mut done = 0;
        while done < out.len() {
            match self.from.read(&mut out[done..]) {
                Ok(0) => return Err(ArchiveError::Short { at: self.at, block: self.number }),
                Ok(read) => {
                    done += read;
                    self.at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Io { at: self.at, source }),
            }
        }
        Ok(())
    }

    /// The next part. Nothing comes after [`Part::End`].
    pub(super) fn next(&mut self) -> Result<Part, ArchiveError> {
        let (begin, block) = (self.at, self.number);
        let place = match self.partition.as_str() {
            "" => String::new(),
            name => format!(" (partition {name})"),
        };
        let damaged = |what| ArchiveError::Damaged { at: begin, block, place: place.clone(), what };
        let mut head = [0; HEAD];
        self.fill(&mut head)?;
        let mut reader = Reader::new(&head);
        let fields = (reader.u32(), reader.byte(), reader.u64(), reader.u64());
        let (Some(length), Some(kind), Some(number), Some(sum)) = fields else {
            return Err(damaged("its head is short"));
        };
        if LONGEST < length {
            return Err(damaged("its length makes no sense"));
        }
        if number != block {
            return Err(damaged("it is not the one that belongs here"));
        }
        let mut body = vec![0; length as usize];
        self.fill(&mut body)?;
        if sum != checksum(kind, number, &body) {
            return Err(damaged("its checksum is wrong"));
        }
        self.number += 1;
        let unreadable = || damaged("its content cannot be read");
        match kind {
            HEADER if block == 0 => {
                let header = serde_json::from_slice(&body).map_err(|_| unreadable())?;
                Ok(Part::Header(Box::new(header)))
            }
            PARTITION => {
                let head: PartitionHead =
                    serde_json::from_slice(&body).map_err(|_| unreadable())?;
                self.partition.clone_from(&head.name);
                Ok(Part::Partition(head))
            }
            ROWS => {
                let rows = unpack(&body).ok_or_else(unreadable)?;
                self.objects += rows.len() as u64;
                Ok(Part::Rows(rows))
            }
            END => {
                let tail: Tail = serde_json::from_slice(&body).map_err(|_| unreadable())?;
                if tail.objects != self.objects {
                    return Err(damaged("objects are missing before it"));
                }
                Ok(Part::End)
            }
            _ => Err(damaged("it is of an unknown kind")),
        }
    }
}

fn unpack(body: &[u8]) -> Option<Vec<(Collection, String, Entry)>> {
    let mut data = Vec::new();
    // Packed from little more than one block's worth of rows.
    ZlibDecoder::new(body).take(u64::from(LONGEST)).read_to_end(&mut data).ok()?;
    let mut reader = Reader::new(&data);
    let mut rows = Vec::new();
    while !reader.is_empty() {
        let (collection, key) = (Collection::parse(reader.text()?)?, reader.text()?.to_owned());
        let modified = Revision(reader.u64()?);
        let value = Bytes::copy_from_slice(reader.bytes()?);
        rows.push((collection, key, Entry { value: value.into(), modified }));
    }
    Some(rows)
}

/// Reads a whole archive and checks all of it.
pub fn check(from: impl Read) -> Result<Summary, ArchiveError> {
    let mut unpacker = Unpacker::begin(from)?;
    let mut summary = Summary::default();
    loop {
        match unpacker.next()? {
            Part::Header(header) => summary.cluster = header.cluster,
            Part::Partition(head) => {
                summary.newest = summary.newest.max(head.revision);
                summary.partitions.push((head.name, head.revision, 0));
            }
            Part::Rows(rows) => {
                if let Some((.., objects)) = summary.partitions.last_mut() {
                    *objects += rows.len() as u64;
                }
            }
            Part::End => {
                summary.bytes = unpacker.at;
                return Ok(summary);
            }
        }
    }
}
