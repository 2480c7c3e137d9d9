//! The log's housekeeping thread: prepares the next segment before it is needed, flushes what
//! relaxed writers left, and recycles old segments.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{Arc, Weak, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{Wal, WalError};

/// How long to wait before trying again to prepare a segment.
const RETRY: Duration = Duration::from_secs(1);

/// Old segments kept to be written again; more are removed. As many as are let go of at once where
/// partitions that write little hold the log until it has 512 MB: what it needs again, and had. To
/// make one is to write 16 MB of zeros, while others' flushes take several times as long.
const KEPT: usize = 32;

/// What the writers and the housekeeping thread tell each other.
#[derive(Debug)]
pub(super) struct Keeper {
    inbox: Mutex<Inbox>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    stopped: bool,
    dirty: bool,
    wanted: Option<u64>,
    spare: Option<(u64, File)>,
    old: Vec<PathBuf>,
}

impl Keeper {
    pub(super) fn new(old: Vec<PathBuf>) -> Self {
        let inbox = Mutex::new(Inbox { old, ..Inbox::default() });
        Self { inbox, called: Condvar::new() }
    }

    /// Something was written that nobody flushes.
    pub(super) fn wake(&self) {
        self.inbox.lock().dirty = true;
        self.called.notify_one();
    }

    /// Asks for `segment` to be prepared.
    pub(super) fn want(&self, segment: u64) {
        self.inbox.lock().wanted = Some(segment);
        self.called.notify_one();
    }

    /// Puts a prepared segment at the writer's disposal.
    pub(super) fn offer(&self, segment: u64, file: File) {
        let mut inbox = self.inbox.lock();
        inbox.wanted.take_if(|wanted| *wanted <= segment);
        inbox.spare = Some((segment, file));
    }

    /// Takes the prepared segment, if it is `segment`. Nobody prepares it any more after this.
    pub(super) fn take(&self, segment: u64) -> Option<File> {
        let mut inbox = self.inbox.lock();
        inbox.wanted.take_if(|wanted| *wanted <= segment);
        inbox.spare.take_if(|(number, _)| *number == segment).map(|(_, file)| file)
    }

    /// Takes over a segment that nobody needs.
    pub(super) fn recycle(&self, path: PathBuf) {
        self.inbox.lock().old.push(path);
        self.called.notify_one();
    }

    /// An old segment to write again.
    pub(super) fn recycled(&self) -> Option<PathBuf> {
        self.inbox.lock().old.pop()
    }

    pub(super) fn stop(&self) {
        self.inbox.lock().stopped = true;
        self.called.notify_one();
    }
}

/// Starts the thread. It ends with [`Keeper::stop`].
pub(super) fn start(wal: &Arc<Wal>) -> io::Result<JoinHandle<()>> {
    let (keeper, wal) = (wal.keeper.clone(), Arc::downgrade(wal));
    std::thread::Builder::new().name("log keeper".into()).spawn(move || run(&keeper, &wal))
}

/// What failed last time, so that it is said once and not every second.
#[derive(Debug, Default)]
struct Failing {
    prepare: bool,
    flush: bool,
}

fn run(keeper: &Keeper, wal: &Weak<Wal>) {
    let mut failing = Failing::default();
    loop {
        let mut inbox = keeper.inbox.lock();
        while !inbox.stopped && !inbox.dirty && inbox.wanted.is_none() && inbox.old.len() <= KEPT {
            keeper.called.wait(&mut inbox);
        }
        if inbox.stopped {
            return;
        }
        let dirty = std::mem::take(&mut inbox.dirty);
        let surplus = inbox.old.len().saturating_sub(KEPT);
        let surplus: Vec<_> = inbox.old.drain(..surplus).collect();
        let wanted = inbox.wanted;
        drop(inbox);

        for path in surplus {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "could not remove an old log segment");
            }
        }
        if let Some(segment) = wanted
            && let Some(wal) = wal.upgrade()
        {
            prepare(&wal, segment, &mut failing);
        }
        if dirty {
            flush(keeper, wal, &mut failing);
        } else if failing.prepare {
            let mut inbox = keeper.inbox.lock();
            keeper.called.wait_for(&mut inbox, RETRY);
        }
    }
}

fn prepare(wal: &Wal, segment: u64, failing: &mut Failing) {
    // A writer that cannot wait makes the segment itself; only one of the two may.
    let _alone = wal.preparing.lock();
    if wal.keeper.inbox.lock().wanted != Some(segment) {
        return;
    }
    match wal.prepare(segment) {
        Ok(file) => {
            wal.keeper.offer(segment, file);
            failing.prepare = false;
        }
        Err(error) => {
            if !std::mem::replace(&mut failing.prepare, true) {
                tracing::warn!(segment, %error, "could not prepare the next log segment; trying again");
            }
        }
    }
}

/// Lets relaxed records gather for a while, then flushes them.
fn flush(keeper: &Keeper, wal: &Weak<Wal>, failing: &mut Failing) {
    let Some(every) = wal.upgrade().map(|wal| wal.options.flush_every) else { return };
    let mut inbox = keeper.inbox.lock();
    if !inbox.stopped {
        keeper.called.wait_for(&mut inbox, every);
    }
    drop(inbox);
    let Some(wal) = wal.upgrade() else { return };
    wal.dirty.store(false, Ordering::Release);
    match wal.flush() {
        Ok(()) => failing.flush = false,
        Err(error @ WalError::Full(_)) => {
            if !std::mem::replace(&mut failing.flush, true) {
                tracing::warn!(%error, "could not flush relaxed writes; trying again");
            }
            wal.mark_dirty();
        }
        // Nothing will ever be flushed again, and whoever found that out has said so.
        Err(_) => {}
    }
}
