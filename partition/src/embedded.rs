//! The embedded backend: every partition that this server is a member of is a raft group's
//! member here, and all share one log.
//!
//! ```text
//! write -> queue -> writer thread -> raft entry -> log (one flush for all) -> state -> answer
//!                        |  ^                                                  |
//!                        v  | (other members)              read, watch <-------'
//! ```
//!
//! A group of one decides alone. Its reads need no agreement: what is applied is the latest,
//! because the directory's lock keeps every other process from deciding on writes. In a larger
//! group a majority of the members must have an entry on disk before it counts, and a read of the
//! latest asks a majority whether the leader still leads.

mod apply;
mod checkpoint;
mod checkpointer;
mod command;
mod directory;
mod image;
mod member;
mod membership;
mod post;
mod pull;
mod raft_log;
mod reads;
mod record;
mod replay;
mod reply;
mod reserve;
mod serve;
#[cfg(test)]
mod sim;
mod store;
#[cfg(test)]
pub(crate) mod tests;
mod trace;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hasher, RandomState},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};

pub(crate) use self::{
    checkpointer::CheckpointOptions,
    directory::{Identity, write_atomically},
    image::put_row,
    post::TAG,
    store::EmbeddedStore,
    writer::Standing,
};
use self::{
    checkpointer::{Checkpointer, Plan},
    directory::{Directory, KnownGroup},
    member::Member,
    post::Post,
    pull::Puller,
    reads::Reads,
    replay::Replay,
    reply::Refusal,
    store::{QUEUE, QUEUE_KIB},
    writer::{Health, LogProgress, MembersProgress, Overlap, Writer, WriterOptions},
};
use crate::{
    error::{OpenError, chain},
    peers::Peers,
    ring::RingLimits,
    seal::Vault,
    state::settle::Settler,
    store::{Store, StoreError},
    wal::{LogCounts, Wal, WalOptions},
};

/// How often a change of members is looked after.
const MEMBERS_PAUSE: Duration = Duration::from_millis(50);

/// How long a change of members may go on before whoever asked is told.
const MEMBERS_PATIENCE: Duration = Duration::from_secs(120);

/// Everything that tests set otherwise.
#[derive(Debug, Clone, Default)]
pub(crate) struct EmbeddedOptions {
    pub(crate) wal: WalOptions,
    pub(crate) ring: RingLimits,
    pub(crate) vault: Arc<Vault>,
    pub(crate) checkpoint: CheckpointOptions,
}

/// All partitions that this server is a member of.
pub(crate) struct Embedded {
    options: EmbeddedOptions,
    post: Arc<Post>,
    wal: Arc<Wal>,
    checkpointer: Arc<Checkpointer>,
    groups: RwLock<BTreeMap<String, Group>>,
    /// Locked while a group comes or goes.
    directory: Arc<Mutex<Directory>>,
    /// No group comes any more. Set while the directory is locked.
    closing: AtomicBool,
    heartbeats: Mutex<Option<JoinHandle<()>>>,
    /// Where states of other members are fetched; none in a process without a runtime.
    runtime: Option<tokio::runtime::Handle>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("groups", &self.groups()).finish_non_exhaustive()
    }
}

/// A group with a member here.
#[derive(Debug)]
struct Group {
    known: KnownGroup,
    store: Arc<EmbeddedStore>,
    plan: Arc<Plan>,
    thread: JoinHandle<()>,
}

/// What a group's member is started from.
struct Start {
    known: KnownGroup,
    replay: Replay,
    plan: Arc<Plan>,
    /// The segment from which on its entries are.
    segment: u64,
}

impl Embedded {
    /// Opens the directory at `path` as that of the server `identity`, with all groups that have
    /// a member in it. Blocks while the data is read.
    ///
    /// Called within a runtime, that one is where states are fetched from other members.
    pub(crate) fn open(
        path: &Path,
        identity: &Identity,
        peers: Arc<dyn Peers>,
        options: &EmbeddedOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let mut directory = Directory::open(path, identity)?;
        let mut starts = BTreeMap::new();
        let mut needs = BTreeMap::new();
        for known in directory.groups() {
            let dir = directory.checkpoints(known);
            let found = checkpoint::load(&dir)?;
            let newest = found.newest.as_ref().map(|(description, _)| description.clone());
            let segment = newest.as_ref().map_or(known.segment, |newest| newest.segment);
            needs.insert(known.number, found.previous.map_or(known.segment, |it| it.segment));
            let start = Start {
                known: known.clone(),
                replay: Replay::new(
                    &known.name,
                    &known.voters,
                    found.newest,
                    options.ring,
                    options.vault.clone(),
                ),
                plan: Plan::new(known.number, dir, known.segment, newest),
                segment,
            };
            starts.insert(known.number, start);
        }
        let from = starts.values().map(|start| start.segment).min();
        let (may_be_new, wal_options) = (directory.is_new(), options.wal.clone());
        let visit = |record: crate::wal::frame::Record<'_>| match starts.get_mut(&record.group) {
            Some(start) => start.replay.visit(record),
            // What is left of a group that was let go.
            None if directory.was_known(record.group) => Ok(()),
            None => Err(OpenError::Damaged {
                what: format!("the log has records of an unknown partition {}", record.group),
            }),
        };
        let (wal, clean) =
            Wal::open(&directory.log(), wal_options, needs, from, may_be_new, visit)?;
        directory.complete()?;

        let post = Post::new(identity.clone(), directory.starts(), directory.servers(), peers);
        let directory = Arc::new(Mutex::new(directory));
        let failed = |source| OpenError::io("start on", path, source);
        let checkpointer =
            Arc::new(Checkpointer::start(wal.clone(), directory.clone()).map_err(failed)?);
        let heartbeats = Mutex::new(Some(post.start().map_err(failed)?));
        let embedded = Arc::new(Self {
            options: options.clone(),
            post,
            wal,
            checkpointer,
            groups: RwLock::default(),
            directory,
            closing: AtomicBool::new(false),
            heartbeats,
            runtime: tokio::runtime::Handle::try_current().ok(),
        });
        for start in starts.into_values() {
            embedded.start(start, clean)?;
        }
        Ok(embedded)
    }

    /// Whose directory `path` is; `None` if it is nobody's yet.
    pub(crate) fn identity(path: &Path) -> Result<Option<Identity>, OpenError> {
        Directory::identity(path)
    }

    fn start(&self, start: Start, clean: bool) -> Result<(), OpenError> {
        let Start { known, replay, plan, segment } = start;
        let name = known.name.clone();
        let failed = |reason: String| OpenError::Partition {
            partition: name.clone(),
            source: StoreError::Unavailable { reason, source: None },
        };
        let (state, log, reserved) = replay.finish()?;
        let next = log.applied().index + 1;
        let logger = trace::logger(&name);
        let member = Member::new(known.number, self.post.member(), state.clone(), log, &logger)
            .map_err(|error| failed(chain(&error)))?;
        let health = Health::default();
        let (requests, inbox) = mpsc::channel(QUEUE);
        let (control, calls) = mpsc::unbounded_channel();
        let (standing_sender, standing) = watch::channel(Arc::new(Standing::default()));
        let puller = Puller {
            partition: name.clone(),
            post: self.post.clone(),
            wal: self.wal.clone(),
            plan: plan.clone(),
            checkpointer: self.checkpointer.clone(),
        };
        let mut writer = Writer {
            name: name.clone(),
            life: known.number,
            member,
            state: state.clone(),
            wal: self.wal.clone(),
            plan: plan.clone(),
            checkpointer: self.checkpointer.clone(),
            post: self.post.clone(),
            puller: Arc::new(puller),
            runtime: self.runtime.clone(),
            control: control.downgrade(),
            options: WriterOptions {
                batch_bytes: self.options.wal.batch_bytes,
                checkpoint: self.options.checkpoint,
            },
            health: health.clone(),
            standing: standing_sender,
            reads: Reads::default(),
            pulling: false,
            lot: RandomState::new().build_hasher().finish(),
            progress: LogProgress::new(next, segment),
            overlap: Overlap::default(),
        };
        writer.begin(if clean { 0 } else { reserved }).map_err(failed)?;

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let thread = std::thread::Builder::new()
            .name(format!("writer {name}"))
            .spawn(move || {
                let _guard = writer.guard();
                runtime.block_on(writer.run(inbox, calls));
            })
            .map_err(|error| failed(error.to_string()))?;
        let settler = Settler::start(&name, &state).map_err(|error| failed(error.to_string()))?;
        let store = Arc::new(EmbeddedStore {
            name: name.clone(),
            state,
            requests,
            control,
            room: Semaphore::new(QUEUE_KIB),
            health,
            standing,
            post: self.post.clone(),
            _settler: settler,
        });
        self.groups.write().insert(name, Group { known, store, plan, thread });
        Ok(())
    }

    /// Names of the groups that this server is a member of, or is joining.
    pub(crate) fn groups(&self) -> Vec<String> {
        self.groups.read().keys().cloned().collect()
    }

    /// The group of that name, if it has a member here.
    pub(crate) fn store(&self, name: &str) -> Option<Arc<EmbeddedStore>> {
        self.groups.read().get(name).map(|group| group.store.clone())
    }

    /// Learns what servers are called, so that they can be reached. Kept for the next start.
    pub(crate) async fn know(
        self: &Arc<Self>,
        servers: BTreeMap<u64, String>,
    ) -> Result<(), OpenError> {
        self.post.know(&servers);
        self.blocking(move |embedded| embedded.directory.lock().know(&servers)).await
    }

    /// Begins a new group, of which these servers, and this one among them, are the first voters.
    /// Each of them must be told so once, with the same voters; a group of that name must never
    /// have been there before. Done already if it is there.
    pub(crate) async fn create(
        self: &Arc<Self>,
        name: &str,
        voters: &BTreeMap<u64, String>,
    ) -> Result<(), OpenError> {
        if !voters.contains_key(&self.post.member()) {
            let what = format!("partition {name} is not to have a member on this server");
            return Err(OpenError::Config { what });
        }
        self.know(voters.clone()).await?;
        self.begin(name, voters.keys().copied().collect()).await
    }

    /// Makes a member that knows nothing yet and waits for the group to take it in, see
    /// [`Embedded::change_members`]. Done already if it is there.
    pub(crate) async fn join(self: &Arc<Self>, name: &str) -> Result<(), OpenError> {
        self.begin(name, Vec::new()).await
    }

    async fn begin(self: &Arc<Self>, name: &str, voters: Vec<u64>) -> Result<(), OpenError> {
        let name = name.to_owned();
        self.blocking(move |embedded| {
            let mut directory = embedded.directory.lock();
            if embedded.groups.read().contains_key(&name) {
                return Ok(());
            }
            if embedded.closing.load(Ordering::Acquire) {
                return Err(OpenError::Partition { partition: name, source: shut_down() });
            }
            let known = directory.add(&name, voters, embedded.wal.segment())?;
            let segment = embedded.wal.welcome(known.number);
            let dir = directory.checkpoints(&known);
            let start = Start {
                replay: Replay::new(
                    &name,
                    &known.voters,
                    None,
                    embedded.options.ring,
                    embedded.options.vault.clone(),
                ),
                plan: Plan::new(known.number, dir, known.segment, None),
                known,
                segment,
            };
            embedded.start(start, true)
        })
        .await
    }

    /// Lets a group go, with all that this server has of it. The group must have been told
    /// before that it has no member here any more, unless it ends altogether.
    pub(crate) async fn remove(self: &Arc<Self>, name: &str) -> Result<(), OpenError> {
        let Some(store) = self.store(name) else { return Ok(()) };
        if let Err(error) = store.shutdown().await {
            let error = chain(&error);
            tracing::warn!(partition = name, error, "what was removed could not be flushed");
        }
        let name = name.to_owned();
        self.blocking(move |embedded| {
            let mut directory = embedded.directory.lock();
            let Some(group) = embedded.groups.write().remove(&name) else { return Ok(()) };
            if group.thread.join().is_err() {
                tracing::error!(partition = name, "a partition's writer ended in a panic");
            }
            group.plan.retire();
            embedded.wal.forget(group.known.number);
            directory.remove(&group.known)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, OpenError> + Send + 'static,
    ) -> Result<T, OpenError> {
        let embedded = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&embedded)).await;
        done.map_err(|error| OpenError::Config { what: format!("cut short: {error}") })?
    }

    /// Makes `voters` the voters of a group that has a member here, whoever leads it: who is new
    /// learns first, who goes hands over first. Refused if too few of them would answer. Those
    /// who are new must have been told to [`Embedded::join`]. May be asked again, and by several.
    pub(crate) async fn change_members(
        &self,
        name: &str,
        voters: &BTreeMap<u64, String>,
    ) -> Result<(), StoreError> {
        self.post.know(voters);
        let target: BTreeSet<u64> = voters.keys().copied().collect();
        let unavailable = |reason| StoreError::Unavailable { reason, source: None };
        let Some(store) = self.store(name) else {
            return Err(unavailable(format!("partition {name} has no member here")));
        };
        let deadline = Instant::now() + MEMBERS_PATIENCE;
        loop {
            match store.step_members(&target).await? {
                MembersProgress::Done => return Ok(()),
                MembersProgress::Refused(reason) => return Err(unavailable(reason)),
                MembersProgress::Working(reason) if deadline <= Instant::now() => {
                    return Err(unavailable(format!("the members have not changed yet: {reason}")));
                }
                MembersProgress::Working(_) => tokio::time::sleep(MEMBERS_PAUSE).await,
            }
        }
    }

    /// Name of the server that leads the group, as far as its member here knows.
    pub(crate) fn leader(&self, name: &str) -> Option<String> {
        let leader = self.store(name)?.standing().leader?;
        Some(self.post.call_it(leader))
    }

    /// What the group's member here knows of it; numbers are those of [`Identity::member`].
    pub(crate) fn standing(&self, name: &str) -> Option<Arc<Standing>> {
        Some(self.store(name)?.standing())
    }

    /// Names of the group's voters, as far as its member here knows.
    #[cfg(test)]
    pub(crate) fn members(&self, name: &str) -> Option<Vec<String>> {
        let standing = self.store(name)?.standing();
        Some(standing.voters.iter().map(|id| self.post.call_it(*id)).collect())
    }

    /// What the log did since it was opened.
    pub(crate) fn log_counts(&self) -> LogCounts {
        self.wal.counts()
    }

    /// Ends all partitions in good order: where others can lead, they do before this returns.
    pub(crate) async fn shutdown(self: Arc<Self>) -> Result<(), StoreError> {
        let refuse = |embedded: &Self| {
            let _alone = embedded.directory.lock();
            embedded.closing.store(true, Ordering::Release);
            Ok(())
        };
        if let Err(error) = self.blocking(refuse).await {
            tracing::warn!(error = chain(&error), "groups may still come");
        }
        let stores: Vec<_> = self.groups.read().values().map(|group| group.store.clone()).collect();
        let ended = futures::future::join_all(stores.iter().map(|store| store.shutdown())).await;
        let outcome = ended.into_iter().collect::<Result<(), _>>();
        let closed = match tokio::task::spawn_blocking(move || self.close()).await {
            Ok(closed) => closed,
            Err(error) => {
                let reason = "shutting down was cut short".into();
                Err(StoreError::Unavailable { reason, source: Some(error.into()) })
            }
        };
        outcome.and(closed)
    }

    fn close(&self) -> Result<(), StoreError> {
        // Nothing comes or goes meanwhile.
        let directory = self.directory.lock();
        for (name, group) in std::mem::take(&mut *self.groups.write()) {
            if group.thread.join().is_err() {
                tracing::error!(partition = name, "a partition's writer ended in a panic");
            }
        }
        self.post.stop();
        if let Some(thread) = self.heartbeats.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("sending heartbeats ended in a panic");
        }
        self.checkpointer.stop();
        let closed = self.wal.close().map_err(|error| StoreError::Unavailable {
            reason: "the log could not be closed".into(),
            source: Some(error.into()),
        });
        if let Err(error) = directory.release() {
            tracing::warn!(%error, "could not unlock the data directory; it is when this process ends");
        }
        closed
    }
}

/// What every call gets after the end.
fn shut_down() -> StoreError {
    StoreError::Unavailable { reason: "the partition was shut down".into(), source: None }
}
