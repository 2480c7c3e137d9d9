//! The write-ahead log: one per process, shared by all its partitions.
//!
//! Whoever appends first while nobody writes becomes the writer: it takes what all groups have
//! queued by then and writes it in one go. Then it flushes, and wakes those whose records that
//! made durable. One partition alone thus pays one flush and no hand-over to another thread; many
//! share a flush. A second flush may begin before the first one has ended: disks, and those behind
//! a network above all, take as long for two as for one.
//!
//! # Invariants
//!
//! * Records of one group reach the disk in the order in which they were submitted, and what is
//!   read back is a prefix of that order.
//! * [`Wal::settle`] with [`Durability::Durable`] returns only after a flush that began when that
//!   record was written, and after all flushes that began before it: one that fails may be the
//!   only one that is told so.
//! * A failed flush breaks the log for good: what the disk holds is unknown until it is read
//!   again, so the process must be restarted. A full disk does not: nothing was half-accepted,
//!   the queue waits, and [`Wal::settle`] may be tried again.

mod append;
pub(crate) mod disk;
mod error;
#[cfg(test)]
pub(crate) mod faults;
pub(crate) mod frame;
mod keeper;
mod recover;
mod segment;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

pub(crate) use self::error::WalError;
use self::{
    append::Active,
    disk::Disk,
    frame::{GroupId, Kind, Record},
    keeper::Keeper,
};
use crate::store::Durability;

/// How a log is laid out and when it is flushed.
#[derive(Debug, Clone)]
pub(crate) struct WalOptions {
    /// Size of a segment file. Holds at least the largest piece.
    pub(crate) segment_bytes: u64,
    /// A write takes no more pieces once it has this many bytes.
    pub(crate) batch_bytes: usize,
    /// Relaxed records are flushed at least this often.
    pub(crate) flush_every: Duration,
    pub(crate) disk: Arc<dyn Disk>,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            batch_bytes: 4 << 20,
            flush_every: Duration::from_millis(500),
            disk: Arc::new(disk::RealDisk),
        }
    }
}

/// Flushes that may be under way at once.
pub(crate) const MAX_FLUSHES: usize = 2;

/// Relaxed records may wait in memory while the disk is busy, up to this many bytes.
const MAX_UNWRITTEN: usize = 64 << 20;

/// What the process's write-ahead log did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogCounts {
    /// Batches written.
    pub batches: u64,
    /// Flushes for batches: fdatasync calls on a segment in use.
    pub flushes: u64,
}

/// What one group appends at once, indivisibly.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    body: Vec<u8>,
    /// The newest standing record in it.
    standing: Option<(GroupId, Vec<u8>)>,
}

impl Piece {
    /// A piece that will take about so many bytes: growing means copying.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self { body: Vec::with_capacity(bytes), standing: None }
    }

    /// Adds the record that from now on stands for `group`.
    pub(crate) fn standing(&mut self, group: GroupId, payload: &[u8]) {
        frame::put_record(&mut self.body, Record { group, kind: Kind::Standing, payload });
        self.standing = Some((group, payload.to_vec()));
    }

    /// Adds an entry, whose payload `write` appends.
    pub(crate) fn entry(&mut self, group: GroupId, write: impl FnOnce(&mut Vec<u8>)) {
        let start = frame::begin_record(&mut self.body, group, Kind::Entry);
        write(&mut self.body);
        frame::finish_record(&mut self.body, start);
    }

    /// Adds the record that makes the group's entries before it count no longer.
    pub(crate) fn restored(&mut self, group: GroupId, payload: &[u8]) {
        frame::put_record(&mut self.body, Record { group, kind: Kind::Restored, payload });
    }

    /// Its records, for disks that are made up.
    #[cfg(test)]
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Bytes that it takes in the log.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len()
    }
}

/// The place of a piece in the queue. Tickets grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// See the module.
pub(crate) struct Wal {
    dir: PathBuf,
    options: WalOptions,
    queue: Mutex<Queue>,
    /// Signalled whenever somebody stopped writing or flushing.
    done: Condvar,
    /// Locked only by the one who writes, and for a moment by those who flush.
    active: Mutex<Active>,
    /// Held while a segment is prepared.
    preparing: Mutex<()>,
    /// Number of the segment being written.
    segment: AtomicU64,
    /// Number of the newest batch on stable storage.
    durable: AtomicU64,
    /// Something was written but not flushed.
    dirty: AtomicBool,
    batches: AtomicU64,
    flushes: AtomicU64,
    /// What a flush takes, in microseconds: the newest counts for an eighth.
    flush_micros: AtomicU64,
    keeper: Arc<Keeper>,
    keeper_thread: Mutex<Option<JoinHandle<()>>>,
    /// The oldest segment that each group needs, and the oldest on disk.
    needs: Mutex<Needs>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Needs {
    groups: BTreeMap<GroupId, u64>,
    oldest: u64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Piece>,
    bytes: usize,
    /// The ticket that the next piece gets.
    next: u64,
    /// All tickets before are written.
    written: u64,
    /// All tickets before are durable.
    synced: u64,
    writing: bool,
    /// Flushes under way, oldest first.
    flushes: VecDeque<Flush>,
    /// Number of attempts that failed for want of space, and the last one's error.
    full: (u64, Option<Arc<io::Error>>),
    broken: Option<WalError>,
}

#[derive(Debug)]
struct Flush {
    /// All tickets before are written, and durable when it has ended.
    covers: u64,
    /// It has ended, and what it made durable: the newest batch.
    ended: Option<u64>,
}

impl Wal {
    /// Reads the log in `dir` from segment `from` on, handing every record to `visit`, and makes
    /// it ready to go on. Says also whether the log had been closed in good order.
    ///
    /// An empty directory is an error unless the log `may_be_new`.
    /// `needs` has the oldest segment that each group still needs; what is older goes, and so
    /// does what stands for groups that are not in it. Without any group there is no `from`:
    /// what is there is read to find the end.
    pub(crate) fn open<E: From<WalError>>(
        dir: &Path,
        options: WalOptions,
        needs: BTreeMap<GroupId, u64>,
        from: Option<u64>,
        may_be_new: bool,
        mut visit: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(Arc<Self>, bool), E> {
        let disk = &*options.disk;
        let mut standing = BTreeMap::new();
        let tail =
            recover::recover(disk, dir, from, may_be_new, options.segment_bytes, |record| {
                if record.kind == frame::Kind::Standing {
                    standing.insert(record.group, record.payload.to_vec());
                }
                visit(record)
            })?;
        let clean = tail.clean;
        standing.retain(|group, _| needs.contains_key(group));
        let keeper = Arc::new(Keeper::new(tail.retired));
        let has_spare = tail.spare.is_some();
        if let Some(spare) = tail.spare {
            keeper.offer(tail.segment + 1, spare);
        }
        let wal = Arc::new(Self {
            dir: dir.into(),
            queue: Mutex::default(),
            done: Condvar::new(),
            segment: AtomicU64::new(tail.segment),
            durable: AtomicU64::new(tail.batch),
            dirty: AtomicBool::new(false),
            batches: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            flush_micros: AtomicU64::new(0),
            needs: Mutex::new(Needs { groups: needs, oldest: tail.oldest }),
            active: Mutex::new(Active::new(
                tail.file,
                tail.segment,
                tail.size,
                tail.offset,
                tail.batch,
                standing,
            )),
            preparing: Mutex::new(()),
            keeper,
            keeper_thread: Mutex::new(None),
            options,
        });
        wal.drop_old_segments();
        let thread = keeper::start(&wal).map_err(|source| WalError::io("start", dir, source))?;
        *wal.keeper_thread.lock() = Some(thread);
        if !has_spare {
            wal.keeper.want(tail.segment + 1);
        }
        Ok((wal, clean))
    }

    /// Queues a piece. It is neither written nor durable before [`Wal::settle`] says so.
    pub(crate) fn submit(&self, piece: Piece) -> Ticket {
        let mut queue = self.queue.lock();
        let ticket = Ticket(queue.next);
        queue.next += 1;
        queue.bytes += piece.body.len();
        queue.waiting.push_back(piece);
        ticket
    }

    /// Brings the piece of `ticket`, and all before it, as far as `durability` asks.
    ///
    /// Relaxed pieces may still be on their way when this returns: if somebody else is writing,
    /// it is not waited for.
    pub(crate) fn settle(&self, ticket: Ticket, durability: Durability) -> Result<(), WalError> {
        let durable = durability == Durability::Durable;
        let mut queue = self.queue.lock();
        let attempts = queue.full.0;
        loop {
            let reached = if durable { queue.synced } else { queue.written };
            if ticket.0 < reached {
                if queue.synced <= ticket.0 {
                    self.mark_dirty();
                }
                return Ok(());
            }
            if let Some(broken) = &queue.broken {
                return Err(broken.clone());
            }
            if ticket.0 < queue.written {
                let comes = queue.flushes.back().is_some_and(|flush| ticket.0 < flush.covers);
                if comes || MAX_FLUSHES <= queue.flushes.len() {
                    self.done.wait(&mut queue);
                } else {
                    self.sync(&mut queue);
                }
                continue;
            }
            // Someone else has just tried for all of us.
            if attempts < queue.full.0
                && let Some(error) = &queue.full.1
            {
                return Err(WalError::Full(error.clone()));
            }
            if !queue.writing {
                self.write(&mut queue);
            } else if durable || MAX_UNWRITTEN < queue.bytes {
                self.done.wait(&mut queue);
            } else {
                self.mark_dirty();
                return Ok(());
            }
        }
    }

    /// Makes everything submitted so far durable.
    pub(crate) fn flush(&self) -> Result<(), WalError> {
        let next = self.queue.lock().next;
        match next.checked_sub(1) {
            Some(last) => self.settle(Ticket(last), Durability::Durable),
            None => Ok(()),
        }
    }

    /// The segment that the next submitted piece goes to, or one before it.
    pub(crate) fn segment(&self) -> u64 {
        self.segment.load(Ordering::Acquire)
    }

    /// What a flush has taken of late.
    pub(crate) fn flush_time(&self) -> Duration {
        Duration::from_micros(self.flush_micros.load(Ordering::Relaxed))
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes
    }

    pub(crate) fn counts(&self) -> LogCounts {
        LogCounts {
            batches: self.batches.load(Ordering::Relaxed),
            flushes: self.flushes.load(Ordering::Relaxed),
        }
    }

    /// `group` no longer needs what lies before `segment`.
    pub(crate) fn release(&self, group: GroupId, segment: u64) {
        self.needs.lock().groups.insert(group, segment);
        self.drop_old_segments();
    }

    /// A new group, none of whose records are before the segment in use.
    pub(crate) fn welcome(&self, group: GroupId) -> u64 {
        let mut needs = self.needs.lock();
        let segment = self.segment();
        needs.groups.insert(group, segment);
        segment
    }

    /// Nothing of `group` is needed any more. Nobody may submit anything for it after this.
    pub(crate) fn forget(&self, group: GroupId) {
        self.needs.lock().groups.remove(&group);
        self.active.lock().forget(group);
        self.drop_old_segments();
    }

    /// Flushes, marks the log as closed in good order, and refuses everything from then on.
    pub(crate) fn close(&self) -> Result<(), WalError> {
        let flushed = self.flush();
        let mut queue = self.queue.lock();
        while queue.writing || !queue.flushes.is_empty() {
            self.done.wait(&mut queue);
        }
        let first = queue.broken.is_none();
        let ended = if first && flushed.is_ok() && queue.waiting.is_empty() {
            self.active.lock().seal(self).map_err(|error| WalError::Broken(Arc::new(error)))
        } else {
            Ok(())
        };
        queue.broken.get_or_insert(WalError::Closed);
        self.done.notify_all();
        drop(queue);
        self.keeper.stop();
        let thread = self.keeper_thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the log's housekeeping ended in a panic");
        }
        if first { flushed.and(ended) } else { Ok(()) }
    }

    /// One write of what is queued now.
    fn write(&self, queue: &mut MutexGuard<'_, Queue>) {
        queue.writing = true;
        let mut pieces = Vec::new();
        let mut bytes = 0;
        while let Some(piece) = queue.waiting.front()
            && (pieces.is_empty() || bytes + piece.body.len() <= self.options.batch_bytes)
        {
            bytes += piece.body.len();
            pieces.extend(queue.waiting.pop_front());
        }
        queue.bytes -= bytes;
        let outcome = MutexGuard::unlocked(queue, || self.active.lock().append(self, &pieces));
        match outcome {
            Ok(()) => {
                queue.written += pieces.len() as u64;
                queue.full.1 = None;
            }
            Err(error) => {
                queue.bytes += bytes;
                pieces.into_iter().rev().for_each(|piece| queue.waiting.push_front(piece));
                match error {
                    WalError::Full(error) => queue.full = (queue.full.0 + 1, Some(error)),
                    error => broken(queue, error),
                }
            }
        }
        queue.writing = false;
        self.done.notify_all();
    }

    /// One flush of what is written now.
    fn sync(&self, queue: &mut MutexGuard<'_, Queue>) {
        let covers = queue.written;
        queue.flushes.push_back(Flush { covers, ended: None });
        let outcome = MutexGuard::unlocked(queue, || {
            // What is in earlier segments is durable since they were left.
            let written = self.active.lock().written();
            let begun = Instant::now();
            self.options.disk.sync_data(&written.file)?;
            let took = begun.elapsed().as_micros() as u64;
            let known = self.flush_micros.load(Ordering::Relaxed);
            self.flush_micros.store(known - known / 8 + took / 8, Ordering::Relaxed);
            self.flushes.fetch_add(1, Ordering::Relaxed);
            Ok(written)
        });
        match outcome {
            // One before it failed, and may have been the only one that is told.
            Ok(_) if queue.broken.is_some() => {
                queue.flushes.retain(|flush| flush.covers != covers);
            }
            Ok(written) => {
                let mine = queue.flushes.iter_mut().find(|flush| flush.covers == covers);
                if let Some(flush) = mine {
                    flush.ended = Some(written.batch);
                }
                while let Some(flush) = queue.flushes.front()
                    && let (covers, Some(batch)) = (flush.covers, flush.ended)
                {
                    queue.flushes.pop_front();
                    queue.synced = covers;
                    self.durable.fetch_max(batch, Ordering::AcqRel);
                }
            }
            Err(error) => {
                queue.flushes.retain(|flush| flush.covers != covers);
                broken(queue, WalError::Broken(Arc::new(error)));
            }
        }
        self.done.notify_all();
    }

    fn mark_dirty(&self) {
        if !self.dirty.swap(true, Ordering::AcqRel) {
            self.keeper.wake();
        }
    }

    /// Hands segments that no group needs to the keeper, which recycles or removes them.
    fn drop_old_segments(&self) {
        let mut needs = self.needs.lock();
        let Some(needed) = needs.groups.values().copied().min() else { return };
        while needs.oldest < needed.min(self.segment()) {
            match segment::retire(&self.dir, needs.oldest) {
                Ok(path) => self.keeper.recycle(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(segment = needs.oldest, %error, "could not retire a log segment");
                    return;
                }
            }
            needs.oldest += 1;
        }
    }

    /// The next segment's file: the prepared one, or one made now.
    fn next_segment(&self, segment: u64) -> io::Result<File> {
        if let Some(file) = self.keeper.take(segment) {
            return Ok(file);
        }
        // The housekeeping may be about to have it ready.
        let _alone = self.preparing.lock();
        match self.keeper.take(segment) {
            Some(file) => Ok(file),
            None => self.prepare(segment),
        }
    }

    fn prepare(&self, segment: u64) -> io::Result<File> {
        let recycled = self.keeper.recycled();
        let (disk, size) = (&*self.options.disk, self.options.segment_bytes);
        segment::prepare(disk, &self.dir, segment, size, recycled.as_deref())
    }
}

fn broken(queue: &mut Queue, error: WalError) {
    tracing::error!(%error, "the log is broken");
    queue.broken.get_or_insert(error);
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.keeper.stop();
    }
}
