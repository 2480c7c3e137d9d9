//! Watches of one thing among many: an agent's of the pods on its node, a kubelet's of a secret.
//!
//! A thousand agents each watch their own pods, and nearly every change is about none of theirs.
//! For watches whose selector wants a field to have a value, the changes of a collection are read
//! once (mostly by a task of the [`Board`], which lives as long as there are such watches) and filed by
//! what that field was and is: by topic. Whoever watches a topic is woken for it alone, and looks
//! at nothing else. Upstream's watch cache does so for the same fields.
//!
//! # Invariants
//!
//! * A topic never leaves out what a watch of it would be told: where its notes do not reach back
//!   to, or what they are of is gone, all changes are read, as by a watch without a topic.
//! * Notes keep nothing alive: they name changes that the store has.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
};

use insula_partition::{
    fences::Fences,
    store::{Collection, Revision, StoreError},
    watch::{Event, Feed, Watcher},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{feed::names::Bound, registry::Whose};

/// Changes filed in one go.
const BATCH: usize = 256;
/// Notes of one topic, at most. Whoever is further behind reads all changes.
const NOTES: usize = 256;
/// Boards before they are counted.
const SWEEP_FROM: usize = 64;

/// What a watch is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Topic {
    pub(crate) field: Field,
    pub(crate) value: Box<str>,
}

/// A field that changes are filed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    /// `metadata.name`.
    Name,
    /// `spec.nodeName` of pods.
    Node,
}

impl Field {
    /// What a change is about: as it was, and as it is. Nothing twice.
    fn topics(self, event: &Event) -> [Option<Box<str>>; 2] {
        match self {
            Self::Name => [event.key.rsplit('/').next().map(Into::into), None],
            Self::Node => {
                let Bound { was, is } = Bound::new(event);
                [was.filter(|was| is.as_ref() != Some(was)), is]
            }
        }
    }
}

/// Which changes a board has: those of a partition that are of these tenants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) partition: Arc<str>,
    /// Nothing for all.
    tenant: Option<Box<str>>,
    collection: Collection,
}

impl Scope {
    pub(crate) fn new(partition: &Arc<str>, whose: &Whose, collection: &Collection) -> Self {
        let tenant = match whose {
            Whose::One(tenant) => Some(tenant.as_str().into()),
            Whose::All => None,
        };
        Self { partition: partition.clone(), tenant, collection: collection.clone() }
    }
}

/// All boards of a server.
#[derive(Debug)]
pub(crate) struct Topics {
    boards: Mutex<Boards>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Debug, Default)]
struct Boards {
    all: HashMap<(Scope, Field), Weak<Board>>,
    /// From so many on, those that nobody reads any more are looked for.
    sweep_from: usize,
}

impl Topics {
    /// Boards are followed by tasks of `tasks`, until `shutdown`.
    pub(crate) fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { boards: Mutex::default(), tasks, shutdown }
    }

    /// Has `watcher` of the changes in `scope` after `after`, which has told nothing yet, wait for
    /// those of a topic. Others may still come: it is the caller who leaves them out.
    pub(crate) fn narrow(
        &self,
        watcher: Watcher,
        after: Revision,
        scope: Scope,
        topic: &Topic,
    ) -> Watcher {
        // Of those the feed alone does not say when there is something new.
        if watcher.is_of_two() {
            return watcher;
        }
        watcher.through(|all| {
            let board = self.board((scope, topic.field), after, &all);
            Arc::new(Reader::new(board, all, &topic.value))
        })
    }

    fn board(&self, key: (Scope, Field), after: Revision, all: &Arc<dyn Feed>) -> Arc<Board> {
        let mut boards = self.boards.lock();
        let found = boards.all.get(&key).and_then(Weak::upgrade);
        // One whose partition was closed has been left by its task; a new one may be open.
        if let Some(board) = found.filter(|board| board.notes.lock().is_open) {
            return board;
        }
        if boards.sweep_from <= boards.all.len() {
            boards.all.retain(|_, board| 0 < board.strong_count());
            boards.sweep_from = SWEEP_FROM.max(2 * boards.all.len());
        }
        let board = Board::new(all.clone(), key.1, after);
        boards.all.insert(key, Arc::downgrade(&board));
        let (shutdown, following) =
            (self.shutdown.clone(), follow(Arc::downgrade(&board), all.wakeups()));
        self.tasks.spawn(async move { shutdown.run_until_cancelled(following).await });
        board
    }
}

/// See the module.
struct Board {
    field: Field,
    all: Arc<dyn Feed>,
    filing: Mutex<()>,
    notes: Mutex<Notes>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("field", &self.field).finish_non_exhaustive()
    }
}

struct Notes {
    topics: HashMap<Box<str>, Filed>,
    /// All changes up to here are filed.
    reached: Revision,
    fences: Arc<Fences>,
    /// Somebody files what comes.
    is_open: bool,
}

/// What there is of one topic.
struct Filed {
    changes: VecDeque<(Revision, Weak<Event>)>,
    /// Of changes at or below nothing is known here.
    floor: Revision,
    n_readers: usize,
    changed: watch::Sender<u64>,
}

impl Filed {
    fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Board {
    fn new(all: Arc<dyn Feed>, field: Field, reached: Revision) -> Arc<Self> {
        let notes = Notes { topics: HashMap::new(), reached, fences: all.fences(), is_open: true };
        Arc::new(Self { field, all, filing: Mutex::default(), notes: Mutex::new(notes) })
    }

    /// Files all there is. Returns whether there may be more later.
    fn file(&self) -> bool {
        // Nothing is filed twice.
        let _filing = self.filing.lock();
        loop {
            let after = self.notes.lock().reached;
            let (events, complete) = match self.all.changes(after, BATCH) {
                Ok(found) => found,
                Err(StoreError::Compacted { oldest, .. }) if after < oldest => {
                    self.notes.lock().begin_at(oldest);
                    continue;
                }
                Err(_) => {
                    self.notes.lock().close();
                    return false;
                }
            };
            // Objects are looked at before others are kept waiting.
            let filed: Vec<_> =
                events.iter().map(|event| (event, self.field.topics(event))).collect();
            let mut notes = self.notes.lock();
            for (event, topics) in filed {
                for topic in topics.into_iter().flatten() {
                    notes.note(&topic, event);
                }
            }
            let is_all = events.len() < BATCH;
            let last = events.last().map_or(after, |last| last.revision);
            notes.reached = if is_all { complete.max(last) } else { last };
            if is_all {
                let fences = self.all.fences();
                if !Arc::ptr_eq(&notes.fences, &fences) {
                    notes.fences = fences;
                    notes.topics.values().for_each(Filed::wake);
                }
                return true;
            }
        }
    }
}

impl Notes {
    fn note(&mut self, topic: &str, event: &Arc<Event>) {
        let Some(filed) = self.topics.get_mut(topic) else { return };
        if filed.changes.len() == NOTES
            && let Some((oldest, _)) = filed.changes.pop_front()
        {
            filed.floor = oldest;
        }
        filed.changes.push_back((event.revision, Arc::downgrade(event)));
        filed.wake();
    }

    /// What was until `floor` will not be filed.
    fn begin_at(&mut self, floor: Revision) {
        self.reached = floor;
        for filed in self.topics.values_mut() {
            filed.changes.clear();
            filed.floor = filed.floor.max(floor);
            filed.wake();
        }
    }

    /// Ends all who wait: the partition is closed.
    fn close(&mut self) {
        self.is_open = false;
        self.topics.clear();
    }
}

/// Files the changes of a board for as long as anybody reads it.
async fn follow(board: Weak<Board>, mut wakeups: watch::Receiver<u64>) {
    loop {
        // Before looking: what comes after the look wakes us at once.
        wakeups.mark_unchanged();
        match board.upgrade() {
            Some(board) if board.file() => (),
            _ => return,
        }
        if wakeups.changed().await.is_err() {
            if let Some(board) = board.upgrade() {
                board.notes.lock().close();
            }
            return;
        }
    }
}

/// A topic as what a watcher waits on.
struct Reader {
    board: Arc<Board>,
    all: Arc<dyn Feed>,
    topic: Box<str>,
    wakeups: watch::Receiver<u64>,
}

impl Reader {
    fn new(board: Arc<Board>, all: Arc<dyn Feed>, topic: &str) -> Self {
        let mut notes = board.notes.lock();
        if !notes.is_open {
            drop(notes);
            // Nobody would wake it: its watcher ends as that of a closed partition.
            let (_, wakeups) = watch::channel(0);
            return Self { board, all, topic: topic.into(), wakeups };
        }
        let floor = notes.reached;
        let filed = notes.topics.entry(topic.into()).or_insert_with(|| Filed {
            changes: VecDeque::new(),
            floor,
            n_readers: 0,
            changed: watch::Sender::default(),
        });
        filed.n_readers += 1;
        let wakeups = filed.changed.subscribe();
        drop(notes);
        Self { board, all, topic: topic.into(), wakeups }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut notes = self.board.notes.lock();
        if let Some(filed) = notes.topics.get_mut(&self.topic) {
            filed.n_readers -= 1;
            if filed.n_readers == 0 {
                notes.topics.remove(&self.topic);
            }
        }
    }
}

impl Feed for Reader {
    fn changes(
        &self,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), StoreError> {
        let read = || self.board.notes.lock().read(&self.topic, after, limit);
        let noted = match read() {
            // Others may have changed, of other collections too, and this be up to date with them:
            // whoever resumes from here is not to be sent back to where it was quiet.
            Some((found, _)) if found.is_empty() && self.board.file() => read(),
            noted => noted,
        };
        noted.map_or_else(|| self.all.changes(after, limit), Ok)
    }

    fn fences(&self) -> Arc<Fences> {
        self.all.fences()
    }

    fn wakeups(&self) -> watch::Receiver<u64> {
        self.wakeups.clone()
    }
}

impl Notes {
    /// Changes of a topic, as of [`Feed::changes`]; nothing if they are not all noted.
    fn read(
        &mut self,
        topic: &str,
        after: Revision,
        limit: usize,
    ) -> Option<(Vec<Arc<Event>>, Revision)> {
        let filed = self.topics.get_mut(topic).filter(|filed| filed.floor <= after)?;
        let mut start = filed.changes.partition_point(|(revision, _)| *revision <= after);
        if filed.n_readers == 1 && 0 < start {
            filed.changes.drain(..start);
            filed.floor = after;
            start = 0;
        }
        let mut found: Vec<Arc<Event>> = Vec::new();
        for (revision, event) in filed.changes.range(start..) {
            // What was written together is told together.
            if limit <= found.len() && found.last().is_none_or(|last| last.revision != *revision) {
                break;
            }
            found.push(event.upgrade()?);
        }
        Some((found, self.reached))
    }
}

#[cfg(test)]
mod tests;
