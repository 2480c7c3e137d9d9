//! One followed collection: a state in memory that a task keeps equal to the partition's.
//!
//! The partition's fences are followed with every collection, in one stream, so that whoever sees
//! a change sees the fences that were in force when it was made.
//!
//! # Invariants
//!
//! * The state's revision is never ahead of what was delivered, or proven not to exist.
//! * After a lost connection the stream goes on where it was, with whichever server answers. Only
//!   when that server no longer knows what was missed is everything loaded again, and watchers
//!   are sent back to their lists.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use imbl::OrdMap;
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle, time::Instant};

use super::{
    Shared,
    targets::Repeat,
    wire::{Arrived, Garbled, Progress, Request, Start},
};
use crate::{
    error::chain,
    ring::RingLimits,
    seal::Bunch,
    state::{FUTURE_WAIT, Image, State},
    store::{Collection, Revision, StoreError},
};

/// How long to wait before asking again, at first and at most.
const BACKOFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// How long the first load may take before readers give up. The task goes on.
const LOAD: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Followed {
    collection: Collection,
    state: Arc<State>,
    /// The oldest revision that the first load was to know of; `None`: whatever is easiest.
    history: Option<Revision>,
    /// How the first load stands.
    loaded: watch::Receiver<Loaded>,
    /// A watch cannot begin before this, here or anywhere.
    oldest: Arc<AtomicU64>,
    questions: watch::Sender<u64>,
    answers: watch::Receiver<Told>,
    used: Mutex<Instant>,
    tasks: [AbortHandle; 2],
}

#[derive(Debug, Clone)]
enum Loaded {
    NotYet,
    /// The last try failed; the next one is under way.
    Failed(Arc<str>),
    Yes,
}

/// The answer to a question of how far the partition is, and the last caller that it is for.
#[derive(Debug, Clone)]
struct Told {
    caller: u64,
    revision: Result<Revision, Arc<str>>,
}

/// What the state's owner and the following task hold when nobody else does.
const OWN_HANDLES: usize = 3;

impl Followed {
    /// Begins to follow.
    pub(super) fn start(
        shared: &Arc<Shared>,
        collection: &Collection,
        history: Option<Revision>,
        limits: RingLimits,
        bunch: &Arc<Bunch>,
    ) -> Arc<Self> {
        let state = State::with_keys(Image::default(), limits, bunch.clone());
        let (load, loaded) = watch::channel(Loaded::NotYet);
        let (questions, asked) = watch::channel(0);
        let (tell, answers) = watch::channel(Told { caller: 0, revision: Ok(Revision(0)) });
        let oldest = Arc::new(AtomicU64::new(0));
        let follower = Follower {
            shared: shared.clone(),
            collection: collection.clone(),
            state: state.clone(),
            history,
            load,
            oldest: oldest.clone(),
        };
        let asker =
            Asker { shared: shared.clone(), collection: collection.clone(), state: state.clone() };
        let tasks = [
            shared.runtime.spawn(follower.run()).abort_handle(),
            shared.runtime.spawn(asker.run(asked, tell)).abort_handle(),
        ];
        Arc::new(Self {
            collection: collection.clone(),
            state,
            history,
            loaded,
            oldest,
            questions,
            answers,
            used: Mutex::new(Instant::now()),
            tasks,
        })
    }

    pub(super) fn state(&self) -> &Arc<State> {
        *self.used.lock() = Instant::now();
        &self.state
    }

    /// The newest revision that was heard of here.
    pub(super) fn revision(&self) -> Revision {
        self.state.revision()
    }

    /// Whether what happened after `after` is known here, or nowhere else either.
    pub(super) fn reaches(&self, after: Revision) -> bool {
        match &*self.loaded.borrow() {
            Loaded::Yes => {
                self.state.totals().floor <= after
                    || after < Revision(self.oldest.load(Ordering::Acquire))
            }
            Loaded::NotYet | Loaded::Failed(_) => {
                self.history.is_some_and(|history| history <= after)
            }
        }
    }

    /// Nobody has looked at it for `idle`, and nobody watches it.
    pub(super) fn is_unused(&self, idle: Duration) -> bool {
        idle < self.used.lock().elapsed() && Arc::strong_count(&self.state) <= OWN_HANDLES
    }

    /// Waits for the first load.
    pub(super) async fn wait_loaded(&self) -> Result<(), StoreError> {
        let mut loaded = self.loaded.clone();
        let decided = loaded.wait_for(|loaded| !matches!(loaded, Loaded::NotYet));
        let reason = match tokio::time::timeout(LOAD, decided).await {
            Ok(Ok(loaded)) => match &*loaded {
                Loaded::Failed(reason) => reason.to_string(),
                _ => return Ok(()),
            },
            Ok(Err(_)) => {
                self.state.check_open()?;
                "following it ended".into()
            }
            Err(_) => "it took too long to be loaded".into(),
        };
        Err(StoreError::Unavailable { reason, source: None })
    }

    /// Waits until the state has everything that was acknowledged before the call.
    pub(super) async fn catch_up(&self) -> Result<(), StoreError> {
        self.wait_loaded().await?;
        let begun = Instant::now();
        let mut wanted = None;
        loop {
            let have = self.state.revision();
            let newest = self.ask().await?;
            let wanted = *wanted.get_or_insert(newest);
            if wanted <= self.state.revision() {
                return Ok(());
            }
            // Something changed that is on its way. When it is here, the rest may be proven to
            // be of other collections.
            let left = FUTURE_WAIT.saturating_sub(begun.elapsed());
            self.state.reach(Revision(have.0 + 1), left).await.map_err(|error| {
                StoreError::Unavailable {
                    reason: "what another server has is not here yet".into(),
                    source: Some(error.into()),
                }
            })?;
            if wanted <= self.state.revision() {
                return Ok(());
            }
        }
    }

    /// How far the partition is, not older than the call. One question is under way at a time; it
    /// answers those who came before it was asked.
    async fn ask(&self) -> Result<Revision, StoreError> {
        let mut caller = 0;
        self.questions.send_modify(|callers| {
            *callers += 1;
            caller = *callers;
        });
        let mut answers = self.answers.clone();
        let told = answers.wait_for(|told| caller <= told.caller).await;
        let revision = match told {
            Ok(told) => told.revision.clone(),
            Err(_) => Err("the partition was shut down".into()),
        };
        revision
            .map_err(|reason| StoreError::Unavailable { reason: reason.to_string(), source: None })
    }

    /// Forgets history that the partition has forgotten.
    pub(super) async fn compact(&self, revision: Revision) {
        self.oldest.fetch_max(revision.0, Ordering::AcqRel);
        if self.state.reach(revision, FUTURE_WAIT).await.is_ok()
            && let Err(error) = self.state.apply(|contents| contents.compact(revision))
        {
            tracing::debug!(collection = %self.collection, %error, "history is kept longer");
        }
    }

    /// Stops following. Watchers end with `reason`.
    pub(super) fn close(&self, reason: &'static str) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.state.close(reason);
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Watchers may have taken their part of the state with them.
        self.close("the collection is no longer followed");
    }
}

/// The task that asks how far the partition is.
struct Asker {
    shared: Arc<Shared>,
    collection: Collection,
    state: Arc<State>,
}

impl Asker {
    async fn run(self, mut asked: watch::Receiver<u64>, tell: watch::Sender<Told>) {
        while asked.changed().await.is_ok() {
            let caller = *asked.borrow_and_update();
            let have = self.state.revision();
            let request = Request::Progress { collection: self.collection.clone(), have };
            let request = request.encode(self.shared.targets.partition());
            let answer = self.shared.targets.call::<Progress>(request, Repeat::Safe).await;
            let revision = match answer {
                Ok(progress) => {
                    if progress.unchanged {
                        self.state.apply(|contents| contents.advance(progress.revision));
                    }
                    self.shared.told(progress.revision);
                    self.shared.set_stats(Ok(progress.stats));
                    Ok(progress.revision)
                }
                Err(error) => {
                    let reason = chain(&error);
                    self.shared.set_stats(Err(reason.clone()));
                    Err(reason.into())
                }
            };
            tell.send_replace(Told { caller, revision });
        }
    }
}

/// Why following stopped for now.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the stream broke off")]
    Broken(#[from] crate::peers::PeerError),
    #[error("the stream ended")]
    Ended,
    #[error(transparent)]
    Garbled(#[from] Garbled),
}

/// The following task.
struct Follower {
    shared: Arc<Shared>,
    collection: Collection,
    state: Arc<State>,
    history: Option<Revision>,
    load: watch::Sender<Loaded>,
    oldest: Arc<AtomicU64>,
}

impl Follower {
    async fn run(self) {
        let mut backoff = BACKOFF[0];
        let mut start = Start::Image(self.history);
        loop {
            let begun = Instant::now();
            let error = match self.follow(start).await {
                Err(error) => error,
                Ok(never) => match never {},
            };
            let is_loaded = matches!(*self.load.borrow(), Loaded::Yes);
            start = match (&error, is_loaded) {
                (FollowError::Store(StoreError::Compacted { .. }), true) => {
                    tracing::debug!(
                        partition = self.shared.targets.partition(),
                        collection = %self.collection,
                        "changes were missed; loading everything"
                    );
                    Start::Image(None)
                }
                (_, true) => Start::After(self.state.revision()),
                (_, false) => {
                    self.load.send_replace(Loaded::Failed(chain(&error).into()));
                    Start::Image(self.history)
                }
            };
            tracing::debug!(
                partition = self.shared.targets.partition(),
                collection = %self.collection,
                error = chain(&error),
                "a followed collection's stream ended"
            );
            if BACKOFF[1] < begun.elapsed() {
                // It went well for long: whoever is next is asked at once.
                backoff = BACKOFF[0];
                continue;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF[1]);
        }
    }

    async fn follow(&self, from: Start) -> Result<std::convert::Infallible, FollowError> {
        let targets = &self.shared.targets;
        let request = Request::Follow { collection: self.collection.clone(), from };
        let (_, mut pieces) = targets.stream(&request.encode(targets.partition())).await?;
        let mut loading: Option<Image> = None;
        loop {
            let bytes = pieces.next().await.ok_or(FollowError::Ended)??;
            match Arrived::decode(&bytes)? {
                Arrived::Image { revision, oldest } => {
                    self.oldest.fetch_max(oldest.0, Ordering::AcqRel);
                    if revision < self.state.revision() {
                        // What readers have seen is not taken back.
                        let reason = "the server is behind what is known here".into();
                        return Err(StoreError::Unavailable { reason, source: None }.into());
                    }
                    loading = Some(Image { revision, collections: Vec::new() });
                }
                Arrived::Entries { collection, entries } => {
                    let image = loading.as_mut().ok_or(Garbled)?;
                    match image.collections.iter_mut().find(|(known, _)| *known == collection) {
                        Some((_, have)) => have.extend(entries),
                        None => {
                            image.collections.push((collection, OrdMap::from_iter(entries)));
                        }
                    }
                }
                Arrived::Complete => {
                    let image = loading.take().ok_or(Garbled)?;
                    self.shared.told(image.revision);
                    self.state.apply(|contents| contents.reset(image));
                    self.load.send_replace(Loaded::Yes);
                }
                Arrived::Changes { changes, complete } => {
                    self.state.apply(|contents| {
                        for change in changes {
                            let (collection, key) = (change.collection, change.key);
                            match change.value {
                                Some(value) => {
                                    contents.put_at(collection, key, value, change.revision);
                                }
                                None => contents.delete_at(collection, key, change.revision),
                            }
                        }
                        contents.advance(complete);
                    });
                    self.shared.told(complete);
                }
                Arrived::Failed(error) => return Err(error.into()),
            }
        }
    }
}
