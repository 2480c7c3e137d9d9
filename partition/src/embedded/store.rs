//! One partition as its callers see it, wherever its leader is.
//!
//! A write goes to the leader, here or on another server, and is seen here before it is
//! acknowledged. Reads and watches are served from this member's own state; a read of the latest
//! first asks the group up to where that is.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    post::{Answer, COMPACT, Post, RAISE, WRITE},
    reply::{Refusal, ReplyTo},
    shut_down,
    writer::{Control, Health, Request, Standing},
};
use crate::{
    codec::Reader,
    limits::check_limits,
    peers::PeerError,
    snapshot::Snapshot,
    state::{State, settle::Settler},
    store::{
        Change, Collection, Committed, ReadAt, Revision, Store, StoreError, StoreStats, Tenants,
        Write,
    },
    watch::Watcher,
    wire,
};

/// Requests that may wait for a partition's writer; more callers wait their turn.
pub(super) const QUEUE: usize = 1024;

/// KiB of writes that may be under way at once; more callers wait their turn.
pub(super) const QUEUE_KIB: usize = 64 << 10;

/// How long a write waits for somebody to lead the group.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long another server may take to do a write.
const CALL: Duration = Duration::from_secs(5);

/// How long to wait before looking again whether somebody leads.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a leader that shuts down waits for another one to take over.
const HAND_OVER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct EmbeddedStore {
    pub(super) name: String,
    pub(super) state: Arc<State>,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) control: mpsc::UnboundedSender<Control>,
    pub(super) room: Semaphore,
    pub(super) health: Health,
    pub(super) standing: watch::Receiver<Arc<Standing>>,
    pub(super) post: Arc<Post>,
    pub(super) _settler: Settler,
}

impl EmbeddedStore {
    /// Has the partition's thread do something, if this member leads.
    async fn ask<T>(&self, request: impl FnOnce(ReplyTo<T>) -> Request) -> Result<T, Refusal> {
        let (reply, outcome) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| self.ended())?;
        outcome.await.unwrap_or_else(|_| Err(self.ended().into()))
    }

    /// Why the writer no longer answers.
    fn ended(&self) -> StoreError {
        match self.health.lock().clone() {
            Some(reason) => StoreError::Unavailable { reason, source: None },
            None => shut_down(),
        }
    }

    /// Where the group stands, as far as this member knows.
    pub(crate) fn standing(&self) -> Arc<Standing> {
        self.standing.borrow().clone()
    }

    /// Writes the state down now, so that a restart has less to replay.
    pub(crate) async fn checkpoint(&self) -> Result<(), StoreError> {
        let (reply, outcome) = oneshot::channel();
        self.requests.send(Request::Checkpoint(reply)).await.map_err(|_| self.ended())?;
        outcome.await.unwrap_or_else(|_| Err(self.ended()))
    }

    /// A write that another server hands over because this one leads.
    pub(super) async fn write_here(&self, write: Write) -> Result<Committed, Refusal> {
        check_limits(&write)?;
        let _room = self.room.acquire_many(kib(&write)).await.map_err(|_| shut_down())?;
        self.ask(|reply| Request::Write(write, reply)).await
    }

    /// As [`EmbeddedStore::write_here`], for several that passed [`check_limits`], as one request.
    async fn write_all_here(&self, writes: &[Write]) -> Vec<Result<Committed, Refusal>> {
        let kib = writes.iter().map(kib).fold(0, u32::saturating_add).min(QUEUE_KIB as u32);
        let Ok(_room) = self.room.acquire_many(kib).await else {
            return writes.iter().map(|_| Err(shut_down().into())).collect();
        };
        let (asked, outcomes): (Vec<_>, Vec<_>) = writes
            .iter()
            .map(|write| {
                let (reply, outcome) = oneshot::channel();
                ((write.clone(), reply), outcome)
            })
            .unzip();
        // If it cannot be sent, nobody is left to reply.
        drop(self.requests.send(Request::WriteAll(asked)).await);
        let heard = |it: Result<_, _>| it.unwrap_or_else(|_| Err(self.ended().into()));
        join_all(outcomes).await.into_iter().map(heard).collect()
    }

    pub(super) async fn compact_here(&self, revision: Revision) -> Result<(), Refusal> {
        self.ask(move |reply| Request::Compact(revision, reply)).await
    }

    pub(super) async fn raise_here(&self, revision: Revision) -> Result<(), Refusal> {
        self.ask(move |reply| Request::Raise(revision, reply)).await
    }

    fn about(&self, kind: u8, revision: Revision) -> Bytes {
        let mut out = self.post.request(kind, &self.name);
        wire::put_u64(&mut out, revision.0);
        out.into()
    }

    /// Has it done by whoever leads: `here` if this member does, else what `request` says.
    pub(super) async fn decide<'a, T>(
        &self,
        here: impl Fn() -> BoxFuture<'a, Result<T, Refusal>>,
        request: impl Fn() -> Bytes,
        read: impl Fn(&mut Reader<'_>) -> Option<T>,
    ) -> Result<T, StoreError> {
        let mut standing = self.standing.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (leads, leader) = {
                let now = standing.borrow_and_update();
                (now.leads, now.leader)
            };
            // A member that cannot say who leads may still know why nothing goes on.
            if leads || (leader.is_none() && self.is_alone()) {
                match here().await {
                    Err(Refusal::NotLeader) => {}
                    Err(Refusal::Failed(error)) => return Err(error),
                    Ok(done) => return Ok(done),
                }
            } else if let Some(leader) = leader.filter(|id| *id != self.post.member())
                && let Some(answer) = self.call(leader, request(), &read).await?
            {
                return answer;
            }
            self.state.check_open()?;
            if deadline <= Instant::now() {
                return Err(self.no_leader());
            }
            // Whether it changes or not, it is looked at again.
            drop(timeout(PAUSE, standing.changed()).await);
        }
    }

    /// Whether the group tells this server what was decided. It was let go if not, or is joining.
    fn is_member(&self) -> bool {
        let (standing, me) = (self.standing.borrow(), self.post.member());
        standing.voters.contains(&me) || standing.learners.contains(&me)
    }

    fn is_alone(&self) -> bool {
        let standing = self.standing.borrow();
        standing.voters == [self.post.member()] && standing.learners.is_empty()
    }

    /// Asks the leader. `None` if nothing was done there.
    async fn call<T>(
        &self,
        leader: u64,
        request: Bytes,
        read: impl Fn(&mut Reader<'_>) -> Option<T>,
    ) -> Result<Option<Result<T, StoreError>>, StoreError> {
        let Some(server) = self.post.name(leader) else { return Ok(None) };
        let unknown = |reason: String| StoreError::Unavailable { reason, source: None };
        let mut standing = self.standing.clone();
        let deposed = async {
            // Whoever is no longer heard of will not answer either, but it may just have done so.
            let elsewhere = standing.wait_for(|now| now.leader != Some(leader)).await.is_ok();
            if elsewhere {
                tokio::time::sleep(10 * PAUSE).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let answer = tokio::select! {
            biased;
            answer = timeout(CALL, self.post.peers.call(&server, request)) => answer,
            () = deposed => return Err(unknown(format!(
                "server {server} lost the lead before it answered; the write may have happened"
            ))),
        };
        match answer {
            Ok(Ok(answer)) => match Answer::decode(&answer, read) {
                Some(Answer::Done(outcome)) => Ok(Some(outcome)),
                Some(Answer::NotLeader) => Ok(None),
                None => Err(unknown(format!("the answer of server {server} cannot be read"))),
            },
            Ok(Err(PeerError::Unreachable { .. })) => Ok(None),
            // It answered that it did not do anything.
            Ok(Err(PeerError::Refused { server, reason })) => {
                tracing::debug!(partition = self.name, server, reason, "a write was refused");
                Ok(None)
            }
            Ok(Err(error)) => Err(StoreError::Unavailable {
                reason: "the leader did not answer; the write may have happened".into(),
                source: Some(error.into()),
            }),
            Err(_) => Err(unknown(format!(
                "server {server} did not answer in time; the write may have happened"
            ))),
        }
    }

    fn no_leader(&self) -> StoreError {
        let standing = self.standing.borrow();
        let names: Vec<_> = standing.voters.iter().map(|id| self.post.call_it(*id)).collect();
        let reason = match names.as_slice() {
            [] => "this server is joining it and knows no other member yet".to_owned(),
            names => format!(
                "nobody leads it; more than half of its members ({}) must be up and in reach",
                names.join(", ")
            ),
        };
        let health = self.health.lock().clone();
        StoreError::Unavailable { reason: health.unwrap_or(reason), source: None }
    }

    /// Waits until everything is applied here that was acknowledged anywhere.
    async fn catch_up(&self) -> Result<(), StoreError> {
        if self.standing.borrow().knows_latest {
            return Ok(());
        }
        let (reply, outcome) = oneshot::channel();
        self.control.send(Control::Read(reply)).map_err(|_| self.ended())?;
        // The thread gives up sooner, unless its disk keeps it.
        match timeout_at(Instant::now() + 2 * PATIENCE, outcome).await {
            Ok(Ok(Err(_))) if self.standing.borrow().leader.is_none() => Err(self.no_leader()),
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(self.ended()),
            Err(_) => Err(StoreError::Unavailable {
                reason: "this member's disk is too slow to read the latest".into(),
                source: None,
            }),
        }
    }

    /// Lets another member lead before this one goes.
    async fn hand_over(&self) {
        let mut standing = self.standing.clone();
        let leads_others = {
            let now = standing.borrow();
            now.leads && 1 < now.voters.len()
        };
        if leads_others && self.control.send(Control::HandOver).is_ok() {
            let taken = standing.wait_for(|now| !now.leads && now.leader.is_some());
            if timeout(HAND_OVER, taken).await.is_err() {
                tracing::warn!(partition = self.name, "nobody took over the lead in time");
            }
        }
    }
}

/// What a write takes of the room for those under way.
fn kib(write: &Write) -> u32 {
    let size = match &write.change {
        Change::Put(value) => value.len(),
        Change::Delete => 0,
    };
    1 + size.div_ceil(1024).min(QUEUE_KIB - 1) as u32
}

impl Store for EmbeddedStore {
    fn read<'a>(
        &'a self,
        collection: &'a Collection,
        at: ReadAt,
    ) -> BoxFuture<'a, Result<Snapshot, StoreError>> {
        async move {
            if at == ReadAt::Latest {
                self.catch_up().await?;
            }
            self.state.read(collection, at).await
        }
        .boxed()
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Committed, StoreError>> {
        async move {
            check_limits(&write)?;
            let leads = self.standing.borrow().leads;
            if leads {
                match self.write_here(write.clone()).await {
                    Err(Refusal::NotLeader) => {}
                    Err(Refusal::Failed(error)) => return Err(error),
                    Ok(committed) => return Ok(committed),
                }
            }
            let here = || self.write_here(write.clone()).boxed();
            let request = || {
                let mut out = self.post.request(WRITE, &self.name);
                wire::put_write(&mut out, &write);
                out.into()
            };
            let committed = self.decide(here, request, wire::read_committed).await?;
            // Who writes here reads here, and must find it.
            if self.is_member() {
                drop(self.state.reach(committed.revision, PATIENCE).await);
            }
            Ok(committed)
        }
        .boxed()
    }

    fn write_all(&self, writes: Vec<Write>) -> BoxFuture<'_, Vec<Result<Committed, StoreError>>> {
        async move {
            let fit = writes.iter().all(|write| check_limits(write).is_ok());
            if !fit || !self.standing.borrow().leads {
                // Each is refused, or handed over, for itself; who leads puts them together.
                return join_all(writes.into_iter().map(|write| self.write(write))).await;
            }
            let done = self.write_all_here(&writes).await;
            let done = writes.into_iter().zip(done).map(|(write, done)| async move {
                match done {
                    Ok(committed) => Ok(committed),
                    Err(Refusal::Failed(error)) => Err(error),
                    Err(Refusal::NotLeader) => self.write(write).await,
                }
            });
            join_all(done).await
        }
        .boxed()
    }

    fn watch(&self, collection: &Collection, after: Revision) -> Result<Watcher, StoreError> {
        self.state.watch(collection, after)
    }

    fn progress(&self) -> Revision {
        self.state.revision()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let here = || self.compact_here(revision).boxed();
            self.decide(here, || self.about(COMPACT, revision), |_| Some(())).await?;
            // Done where the group is led from; here it should be seen, too.
            self.catch_up().await
        }
        .boxed()
    }

    fn raise(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let here = || self.raise_here(revision).boxed();
            self.decide(here, || self.about(RAISE, revision), |_| Some(())).await?;
            self.catch_up().await
        }
        .boxed()
    }

    fn collections(&self) -> BoxFuture<'_, Result<Vec<Collection>, StoreError>> {
        std::future::ready(self.state.collections()).boxed()
    }

    fn tenants(&self) -> Option<&dyn Tenants> {
        self.is_member().then_some(&*self.state as &dyn Tenants)
    }

    fn stats(&self) -> StoreStats {
        let totals = self.state.totals();
        let standing = self.standing.borrow();
        let name = |id: &u64| self.post.call_it(*id);
        let lost = || "nobody leads the partition: too few of its members are in reach".to_owned();
        let unhealthy = self.health.lock().clone();
        StoreStats {
            objects: totals.objects,
            bytes: totals.bytes,
            revision: totals.revision,
            compacted: totals.floor,
            unhealthy: unhealthy.or_else(|| standing.leader.is_none().then(lost)),
            leader: standing.leader.as_ref().map(name).unwrap_or_default(),
            members: standing.voters.iter().map(name).collect(),
            silent: standing.silent.iter().map(name).collect(),
            lag: standing.behind.values().copied().max().unwrap_or_default(),
            disk: None,
            backend: "embedded",
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.hand_over().await;
            let (reply, outcome) = oneshot::channel();
            // Whoever comes second finds it done.
            if self.requests.send(Request::Shutdown(reply)).await.is_err() {
                return Ok(());
            }
            outcome.await.unwrap_or(Ok(()))
        }
        .boxed()
    }
}
