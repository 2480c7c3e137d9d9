//! Decides when a partition's state is written down, and has it done in the background.
//!
//! A checkpoint writes the whole state. It is made once the log behind the last one has grown as
//! large as the state itself, so that writing costs at most as much again as logging, and a
//! restart replays at most about as much as it loads.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};

use super::{
    checkpoint::{self, Description},
    directory::Directory,
};
use crate::{
    error::chain,
    state::Image,
    store::StoreError,
    wal::{Wal, frame::GroupId},
};

/// How long to leave it after a checkpoint failed.
const RETRY: Duration = Duration::from_secs(30);

/// What makes a checkpoint due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckpointOptions {
    /// Not before this much was logged.
    pub(crate) min_log_bytes: u64,
    /// At the latest when the log behind the last checkpoint, other partitions' records
    /// included, has grown to this, or to four times the state.
    pub(crate) max_log_bytes: u64,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self { min_log_bytes: 128 << 20, max_log_bytes: 512 << 20 }
    }
}

/// A checkpoint to be written.
#[derive(Debug)]
struct Job {
    image: Image,
    description: Description,
    plan: Arc<Plan>,
    done: Option<oneshot::Sender<Result<(), StoreError>>>,
}

/// One partition's checkpoints.
#[derive(Debug)]
pub(crate) struct Plan {
    group: GroupId,
    dir: PathBuf,
    /// The log has nothing of the group before this segment.
    since: u64,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    newest: Option<Description>,
    running: usize,
    not_before: Option<Instant>,
    /// The group was let go: nothing is written any more.
    retired: bool,
}

impl Plan {
    pub(crate) fn new(
        group: GroupId,
        dir: PathBuf,
        since: u64,
        newest: Option<Description>,
    ) -> Arc<Self> {
        let progress = Progress { newest, running: 0, not_before: None, retired: false };
        Arc::new(Self { group, dir, since, progress: Mutex::new(progress) })
    }

    /// Returns once nothing is written any more, nor ever will be.
    pub(crate) fn retire(&self) {
        self.progress.lock().retired = true;
        while 0 < self.progress.lock().running {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it is time, with `logged` bytes of this partition since the last one and the
    /// whole log now at `segment`.
    pub(crate) fn is_due(
        &self,
        options: &CheckpointOptions,
        logged: u64,
        state: u64,
        segment: u64,
        segment_bytes: u64,
    ) -> bool {
        if logged < options.min_log_bytes.max(state) && segment < 2 {
            return false;
        }
        let progress = self.progress.lock();
        let since = progress.newest.as_ref().map_or(self.since, |newest| newest.segment);
        let pinned = segment.saturating_sub(since) * segment_bytes;
        let due = options.min_log_bytes.max(state) <= logged
            || options.max_log_bytes.max(4 * state) <= pinned;
        let waits = progress.not_before.is_some_and(|instant| Instant::now() < instant);
        due && progress.running == 0 && !waits
    }
}

/// The thread that writes checkpoints, one at a time.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpointer {
    /// The directory stays locked for as long as the thread may write to it.
    pub(crate) fn start(wal: Arc<Wal>, directory: Arc<Mutex<Directory>>) -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        let work = move || {
            run(&wal, &inbox);
            drop(directory);
        };
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(work)?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    /// Has `image` written. Says whether it was taken on.
    pub(crate) fn begin(
        &self,
        plan: &Arc<Plan>,
        image: Image,
        description: Description,
        done: Option<oneshot::Sender<Result<(), StoreError>>>,
    ) -> bool {
        plan.progress.lock().running += 1;
        let job = Job { image, description, plan: plan.clone(), done };
        let refused = match &*self.jobs.lock() {
            Some(jobs) if !plan.progress.lock().retired => {
                jobs.send(job).err().map(|refused| refused.0)
            }
            _ => Some(job),
        };
        if let Some(job) = refused {
            plan.progress.lock().running -= 1;
            answer(job.done, Err(super::shut_down()));
            return false;
        }
        true
    }

    /// Finishes what was begun and ends the thread.
    pub(crate) fn stop(&self) {
        drop(self.jobs.lock().take());
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("writing checkpoints ended in a panic");
        }
    }
}

fn run(wal: &Wal, inbox: &Receiver<Job>) {
    while let Ok(job) = inbox.recv() {
        let Job { image, description, plan, done } = job;
        let outcome = write(wal, &plan, &image, description);
        let mut progress = plan.progress.lock();
        progress.running -= 1;
        match outcome {
            Ok(newest) => {
                progress.not_before = None;
                // The one before is kept to fall back on, and so is the log behind it.
                let previous = progress.newest.replace(newest);
                drop(progress);
                if let Some(previous) = previous {
                    wal.release(plan.group, previous.segment);
                }
                answer(done, Ok(()));
            }
            Err(error) => {
                progress.not_before = Some(Instant::now() + RETRY);
                drop(progress);
                let text = chain(&*error);
                tracing::warn!(dir = %plan.dir.display(), error = text, "could not write a checkpoint");
                let reason = "a checkpoint could not be written".into();
                answer(done, Err(StoreError::Unavailable { reason, source: Some(error) }));
            }
        }
    }
}

fn write(
    wal: &Wal,
    plan: &Plan,
    image: &Image,
    description: Description,
) -> Result<Description, crate::store::Source> {
    // A checkpoint must never know of changes that the log could still lose.
    wal.flush()?;
    let begun = Instant::now();
    let written = checkpoint::write(&plan.dir, image, description)?;
    tracing::info!(
        dir = %plan.dir.display(),
        index = written.index,
        revision = %image.revision,
        milliseconds = begun.elapsed().as_millis() as u64,
        "wrote a checkpoint"
    );
    Ok(written)
}

/// Whoever stopped waiting need not be told.
fn answer(to: Option<oneshot::Sender<Result<(), StoreError>>>, outcome: Result<(), StoreError>) {
    if let Some(to) = to {
        drop(to.send(outcome));
    }
}
