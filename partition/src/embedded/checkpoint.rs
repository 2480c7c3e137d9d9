//! Checkpoints: a partition's applied state in a sled database of its own.
//!
//! sled never asks the disk to make anything durable, and it may be surprised by a crash in the
//! middle of its work. So a checkpoint is written anew each time into a directory of its own,
//! flushed by us, and only then given the name under which it counts; the one before is kept,
//! and so is the log from there on. Nothing is ever served from sled that the digest in the
//! checkpoint's own description does not confirm.
//!
//! ```text
//! checkpoints/<partition>/<index>-<segment>/CHECKPOINT   a line of JSON, then its checksum
//! checkpoints/<partition>/<index>-<segment>/<part>/...   a sled database
//! ```
//!
//! There are several parts, because sled takes about as much memory as what it reads or writes:
//! that of one part is given back, or used again, before the next one.
//!
//! The segment is in the name because a partition that nobody writes to must be written down
//! anew, too, for the log to let go of the segment that its last entry is in.
//!
//! A record of the database is a page of rows, not one row: sled pays tens of microseconds for
//! each record, which thousands of rows then share. Its key is the page's number, big-endian;
//! its value is `row..` as in [`super::image`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use raft::eraftpb::ConfState;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{directory::sync, image, raft_log::Position};
use crate::{
    error::{OpenError, chain},
    state::Image,
    store::Revision,
};

/// What counts of the memory that sled may use while it reads or writes a checkpoint.
const CACHE: u64 = 16 << 20;

/// A page is finished once it has this many bytes. Larger ones than a few hundred KiB sled would
/// put into files of their own.
const PAGE: usize = 64 << 10;

/// Pages that are read before they are needed.
const READ_AHEAD: usize = 32;

/// A part is finished once its pages have this many bytes.
const PART: usize = 64 << 20;

const DESCRIPTION: &str = "CHECKPOINT";
const PARTIAL: &str = "partial";
const DAMAGED: &str = "damaged";

/// What a checkpoint stands for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) revision: u64,
    /// The log segment from which on the entries after `index` are found.
    pub(crate) segment: u64,
    voters: Vec<u64>,
    learners: Vec<u64>,
    /// While the voters change: those before, who of them learns afterwards, and whether the
    /// change ends by itself.
    voters_outgoing: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
    parts: u64,
    pages: u64,
    /// Of all pages in their order.
    digest: u64,
}

impl Description {
    pub(crate) fn new(at: Position, conf: &ConfState, segment: u64) -> Self {
        let conf = conf.clone();
        Self {
            index: at.index,
            term: at.term,
            segment,
            voters: conf.voters,
            learners: conf.learners,
            voters_outgoing: conf.voters_outgoing,
            learners_next: conf.learners_next,
            auto_leave: conf.auto_leave,
            ..Self::default()
        }
    }

    pub(crate) fn position(&self) -> Position {
        Position { index: self.index, term: self.term }
    }

    pub(crate) fn conf(&self) -> ConfState {
        let description = self.clone();
        ConfState {
            voters: description.voters,
            learners: description.learners,
            voters_outgoing: description.voters_outgoing,
            learners_next: description.learners_next,
            auto_leave: description.auto_leave,
        }
    }
}

/// Why a checkpoint was not written or cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("could not read or write the checkpoint")]
    Io(#[from] io::Error),
    #[error("sled failed")]
    Sled(#[from] sled::Error),
    #[error("sled gave up in a panic")]
    Panic,
    #[error("the checkpoint is damaged: {0}")]
    Damaged(&'static str),
}

/// The newest checkpoint, and the segment from which on the log must be kept so that the one
/// before it can still take its place.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) newest: Option<(Description, Image)>,
    pub(crate) previous: Option<Description>,
}

/// Reads the newest checkpoint in `dir` that is whole. What is not is set aside.
pub(crate) fn load(dir: &Path) -> Result<Found, OpenError> {
    let failed = |source| OpenError::io("read checkpoints in", dir, source);
    remove_partial(dir).map_err(failed)?;
    let mut found = Found::default();
    let mut damaged = Vec::new();
    for path in list(dir).map_err(failed)?.into_iter().rev() {
        if found.newest.is_some() {
            found.previous = describe(&path).ok();
            break;
        }
        match read(&path) {
            Ok(whole) => found.newest = Some(whole),
            Err(error) => damaged.push((path, error)),
        }
    }
    if let (None, Some((path, error))) = (&found.newest, damaged.first()) {
        let what = format!("checkpoint {}: {}", path.display(), chain(error));
        return Err(OpenError::Damaged { what });
    }
    for (path, error) in damaged {
        let error = chain(&error);
        tracing::error!(checkpoint = %path.display(), error, "set aside a damaged checkpoint");
        fs::rename(&path, path.with_extension(DAMAGED)).map_err(failed)?;
    }
    Ok(found)
}

/// Writes `image` as the newest checkpoint in `dir` and removes all but the one before.
pub(crate) fn write(
    dir: &Path,
    image: &Image,
    mut description: Description,
) -> Result<Description, CheckpointError> {
    let target = path(dir, &description);
    if target.exists() {
        // Nothing was applied since.
        return describe(&target);
    }
    let partial = target.with_extension(PARTIAL);
    remove(&partial)?;
    description.revision = image.revision.0;
    let outcome = fill(&partial, image, &mut description).and_then(|()| {
        sync_all(&partial)?;
        fs::rename(&partial, &target)?;
        Ok(sync(dir)?)
    });
    if let Err(error) = outcome {
        // Whoever is short of space should not also find this in the way.
        remove(&partial)?;
        return Err(error);
    }
    for old in list(dir)?.iter().rev().skip(2) {
        remove(old)?;
    }
    Ok(description)
}

fn fill(dir: &Path, image: &Image, description: &mut Description) -> Result<(), CheckpointError> {
    let mut digest = Digest::default();
    let mut part = Part::new(dir, 0)?;
    let mut page = Vec::with_capacity(2 * PAGE);
    for (collection, entries) in &image.collections {
        for (key, entry) in entries {
            image::put_row(&mut page, collection, key, entry);
            if PAGE <= page.len() {
                part.put(digest.add(&page), &page)?;
                page.clear();
                if PART <= part.bytes {
                    let next = part.number + 1;
                    part.finish()?;
                    part = Part::new(dir, next)?;
                }
            }
        }
    }
    part.put(digest.add(&page), &page)?;
    description.parts = part.number + 1;
    part.finish()?;
    (description.pages, description.digest) = digest.finish();
    let text = serde_json::to_string(&*description).map_err(io::Error::from)?;
    let check = xxh3_64(text.as_bytes());
    Ok(fs::write(dir.join(DESCRIPTION), format!("{text}\n{check:016x}\n"))?)
}

/// One of the databases of a checkpoint that is being written.
struct Part {
    path: PathBuf,
    number: u64,
    db: sled::Db,
    bytes: usize,
}

impl Part {
    fn new(dir: &Path, number: u64) -> Result<Self, CheckpointError> {
        let path = part_path(dir, number);
        fs::create_dir_all(dir)?;
        Ok(Self { db: open(&path)?, path, number, bytes: 0 })
    }

    fn put(&mut self, key: [u8; 8], page: &[u8]) -> Result<(), CheckpointError> {
        self.bytes += page.len();
        self.db.insert(key, page)?;
        Ok(())
    }

    /// Has it all in its files, and these on disk: bit by bit, so that nobody's flush waits long.
    fn finish(self) -> Result<(), CheckpointError> {
        self.db.flush()?;
        drop(self.db);
        Ok(sync_all(&self.path)?)
    }
}

fn part_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:04}"))
}

fn read(dir: &Path) -> Result<(Description, Image), CheckpointError> {
    let description = describe(dir)?;
    let (at, parts) = (dir.to_owned(), description.parts);
    let (sender, pages) = sync_channel(READ_AHEAD);
    // sled may panic over files that it did not expect to find so. And all that it takes of
    // memory is that thread's, not in between what stays.
    let reader = std::thread::Builder::new().name("checkpoint reader".into());
    let reader = reader.spawn(move || read_pages(&at, parts, &sender))?;
    let image = build(&description, &pages);
    // It ends early if nobody takes its pages.
    drop(pages);
    reader.join().map_err(|_| CheckpointError::Panic)??;
    // sled tidies up when it opens a database.
    sync_all(dir)?;
    Ok((description, image?))
}

/// Hands over all pages in their order, with their keys.
fn read_pages(
    dir: &Path,
    parts: u64,
    pages: &SyncSender<(sled::IVec, sled::IVec)>,
) -> Result<(), CheckpointError> {
    for number in 0..parts {
        let path = part_path(dir, number);
        // sled would make what is missing, and call it empty.
        if !path.is_dir() {
            return Err(CheckpointError::Damaged("a part is missing"));
        }
        for page in open(&path)?.iter() {
            if pages.send(page?).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn build(
    description: &Description,
    pages: &Receiver<(sled::IVec, sled::IVec)>,
) -> Result<Image, CheckpointError> {
    let mut builder = image::Builder::new(Revision(description.revision));
    let mut digest = Digest::default();
    for (number, rows) in pages {
        if digest.add(&rows) != *number {
            return Err(CheckpointError::Damaged("a page is missing"));
        }
        builder.add_rows(&rows).ok_or(CheckpointError::Damaged("a page is malformed"))?;
    }
    if digest.finish() != (description.pages, description.digest) {
        return Err(CheckpointError::Damaged("its pages are not the ones that were written"));
    }
    Ok(builder.finish())
}

fn open(dir: &Path) -> Result<sled::Db, CheckpointError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(None);
    Ok(config.open()?)
}

fn describe(dir: &Path) -> Result<Description, CheckpointError> {
    let text = fs::read_to_string(dir.join(DESCRIPTION))?;
    let (line, check) =
        text.split_once('\n').ok_or(CheckpointError::Damaged("its description is cut off"))?;
    if check.trim_end() != format!("{:016x}", xxh3_64(line.as_bytes())) {
        return Err(CheckpointError::Damaged("its description is not what was written"));
    }
    serde_json::from_str(line)
        .map_err(|_| CheckpointError::Damaged("its description is another version's"))
}

/// Numbers and digests pages in the order in which they are added.
#[derive(Default)]
struct Digest {
    pages: u64,
    hasher: Xxh3,
}

impl Digest {
    /// The key under which the page belongs.
    fn add(&mut self, page: &[u8]) -> [u8; 8] {
        let number = self.pages;
        self.pages += 1;
        self.hasher.update(&(page.len() as u64).to_le_bytes());
        self.hasher.update(page);
        number.to_be_bytes()
    }

    fn finish(self) -> (u64, u64) {
        (self.pages, self.hasher.digest())
    }
}

fn path(dir: &Path, description: &Description) -> PathBuf {
    dir.join(format!("{:020}-{:016x}", description.index, description.segment))
}

/// The checkpoints in `dir`, oldest first.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let parts = name.and_then(|name| name.split_once('-'));
        if parts.is_some_and(|(index, segment)| {
            index.parse::<u64>().is_ok() && u64::from_str_radix(segment, 16).is_ok()
        }) {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes what a crash left half-written.
fn remove_partial(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == PARTIAL) {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Makes a directory with everything in it durable.
fn sync_all(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        } else {
            sync(&entry.path())?;
        }
    }
    sync(dir)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::snapshot::Entry;

    fn image(revision: u64, rows: u64) -> Image {
        let mut builder = image::Builder::new(Revision(revision));
        for (collection, n) in
            ["core/nodes", "core/pods"].iter().flat_map(|c| (0..rows).map(move |n| (c, n)))
        {
            let value = Bytes::from(format!("{{\"n\":{n}}}"));
            builder.add(
                collection,
                &format!("t/ns/{n}"),
                Entry { value: value.into(), modified: Revision(n + 1) },
            );
        }
        builder.finish()
    }

    fn description(index: u64) -> Description {
        let conf = ConfState { voters: vec![1], ..ConfState::default() };
        Description::new(Position { index, term: 3 }, &conf, index / 10)
    }

    #[track_caller]
    fn check(dir: &Path, index: u64, rows: usize) -> Found {
        let found = load(dir).unwrap();
        let (description, image) = found.newest.as_ref().unwrap();
        assert_eq!((description.index, description.term), (index, 3));
        assert_eq!(image.revision, Revision(description.revision));
        assert!(image.collections.iter().all(|(_, entries)| entries.len() == rows));
        assert_eq!(image.collections.len(), 2);
        found
    }

    #[test]
    fn reads_back_and_keeps_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().newest.is_none());
        for (index, rows) in [(10, 3), (20, 2_000), (30, 5)] {
            write(dir.path(), &image(index * 2, rows), description(index)).unwrap();
        }
        let found = check(dir.path(), 30, 5);
        assert_eq!(found.previous.unwrap().index, 20);
        let expected = [20, 30].map(|index| path(dir.path(), &description(index)));
        assert_eq!(list(dir.path()).unwrap(), expected);
        // Reading leaves it readable.
        check(dir.path(), 30, 5);
    }

    #[test]
    fn falls_back_when_the_newest_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        for index in [10, 20] {
            write(dir.path(), &image(index, 500), description(index)).unwrap();
        }
        let data = path(dir.path(), &description(20)).join("0000/db");
        let mut bytes = fs::read(&data).unwrap();
        let middle = bytes.windows(8).position(|window| window == b"{\"n\":250").unwrap();
        bytes[middle + 5] ^= 1;
        fs::write(&data, bytes).unwrap();
        check(dir.path(), 10, 500);
    }

    #[test]
    fn a_large_state_has_several_parts_and_needs_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut builder = image::Builder::new(Revision(1));
        let value = Bytes::from(vec![b'x'; 1 << 20]);
        for n in 0..(5 * PART / 2) >> 20 {
            let entry = Entry { value: value.clone().into(), modified: Revision(1) };
            builder.add("a/b", &format!("k{n:05}"), entry);
        }
        write(dir.path(), &builder.finish(), description(10)).unwrap();
        let found = load(dir.path()).unwrap().newest.unwrap();
        assert_eq!((found.0.parts, found.1.collections[0].1.len()), (3, 160));
        fs::remove_dir_all(part_path(&path(dir.path(), &description(10)), 1)).unwrap();
        assert!(matches!(load(dir.path()), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn nothing_whole_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &image(1, 10), description(10)).unwrap();
        fs::write(path(dir.path(), &description(10)).join(DESCRIPTION), "{}\n0000000000000000\n")
            .unwrap();
        // It stays damaged: an attempt to read it must not make it look like nothing.
        for _ in 0..2 {
            assert!(matches!(load(dir.path()), Err(OpenError::Damaged { .. })));
        }
    }

    #[test]
    fn half_written_ones_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &image(1, 10), description(10)).unwrap();
        fs::create_dir(path(dir.path(), &description(20)).with_extension(PARTIAL)).unwrap();
        check(dir.path(), 10, 10);
        write(dir.path(), &image(2, 11), description(20)).unwrap();
        check(dir.path(), 20, 11);
    }

    #[test]
    fn an_empty_partition_has_a_checkpoint_too() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &Image::default(), description(1)).unwrap();
        assert!(load(dir.path()).unwrap().newest.unwrap().1.collections.is_empty());
    }

    /// What is kept of the image is the image's: nothing is shared with the database.
    #[test]
    fn values_are_kept_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let value = Bytes::from((0..=255).cycle().take(1 << 20).collect::<Vec<u8>>());
        let mut builder = image::Builder::new(Revision(1));
        builder.add("a/b", "k", Entry { value: value.clone().into(), modified: Revision(1) });
        write(dir.path(), &builder.finish(), description(1)).unwrap();
        let (_, image) = load(dir.path()).unwrap().newest.unwrap();
        assert_eq!(image.collections[0].1.get("k").unwrap().value, value);
    }
}
