//! Acting for moves: one task per server looks for moves that need somebody, and one task per
//! move takes its steps.
//!
//! The server that acts has the target's data in its own memory while it copies, and the
//! source's while it cleans up: what a move hides can be read only there.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Move, MoveError, Phase, PlannedMove, copy, plan, plan_filling,
    record::{self, Stored},
    tables, wall_clock,
};
use crate::{
    error::chain,
    fences::{Fence, FenceError, FenceState},
    map::{MapError, Moving, PartitionMap, Scope},
    partitions::{ChangeError, Shared},
    store::{Collection, ReadAt, Revision, Store, StoreError},
};

/// A move whose record does not change for so long has nobody who acts for it.
const SILENCE: Duration = Duration::from_secs(5);

/// How often one who acts says so, while a step takes long.
const BEAT: Duration = Duration::from_secs(1);

/// How often to look for work if nothing says that there is some.
const LOOK: Duration = Duration::from_millis(500);

/// Moves that one server acts for at once.
const AT_ONCE: usize = 4;

/// A pass that changes at most so many objects is followed by freezing.
const SHORT: usize = 64;

/// Passes before freezing, however much each still finds to copy.
const PASSES: usize = 12;

/// Longest that writers wait. If it is not done by then they go on, and it is tried again.
const FREEZE: Duration = Duration::from_secs(3);

/// Moves that are over and still shown.
const SHOWN: usize = 100;

/// Says whether to stop dead before a step, as a crash would, or waits.
pub(crate) type Hook = Arc<dyn Fn(&'static str) -> BoxFuture<'static, bool> + Send + Sync>;

/// One server's part in moves.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    /// Of this process alone.
    name: String,
    running: Mutex<HashSet<String>>,
    /// For tests.
    crash: Option<Hook>,
}

/// Looks for moves to act for, until the task is ended.
pub(crate) async fn run(shared: Arc<Shared>) {
    Arc::new(Driver::new(shared, None)).run().await;
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, crash: Option<Hook>) -> Self {
        let process = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("{}/{}", shared.config.server, &process[..8]);
        Self { shared, name, running: Mutex::default(), crash }
    }

    fn meta(&self) -> Arc<dyn Store> {
        self.shared.meta()
    }

    pub(crate) async fn run(self: Arc<Self>) {
        // When each record was last seen to change, by this server's clock.
        let mut seen: HashMap<String, (Revision, Instant)> = HashMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let known = self.shared.meta().progress();
            if let Err(error) = self.look(&mut seen, &mut tasks).await {
                tracing::debug!(error = chain(&error), "could not look for moves");
            }
            while tasks.try_join_next().is_some() {}
            let wait = async {
                match self.shared.meta().watch(&record::collection(), known) {
                    Ok(mut watcher) => drop(watcher.next().await),
                    Err(_) => std::future::pending().await,
                }
            };
            let _ = tokio::time::timeout(LOOK, wait).await;
        }
    }

    async fn look(
        self: &Arc<Self>,
        seen: &mut HashMap<String, (Revision, Instant)>,
        tasks: &mut tokio::task::JoinSet<()>,
    ) -> Result<(), StoreError> {
        let all = record::all(&*self.meta(), ReadAt::Any).await?;
        seen.retain(|id, _| all.iter().any(|stored| stored.it.id == *id));
        let server = self.shared.config.server.as_str();
        let mut waiting: Vec<&Stored> = Vec::new();
        for stored in &all {
            let it = &stored.it;
            let last = seen.entry(it.id.clone()).or_insert_with(|| (stored.at, Instant::now()));
            if last.0 != stored.at {
                *last = (stored.at, Instant::now());
            }
            // A former process of this server does not come back: its directory is locked.
            let ours =
                self.shared.embedded.is_some() && it.driver.split('/').next() == Some(server);
            let nobody = it.driver.is_empty()
                || ours
                || it.driver == self.name
                || SILENCE < last.1.elapsed();
            if !it.phase.is_over() && nobody && self.can_act(it) {
                waiting.push(stored);
            }
        }
        // First come, first served; what has begun before what has not.
        waiting.sort_by_key(|stored| (stored.it.phase == Phase::Pending, stored.it.started));
        for stored in waiting {
            let mut running = self.running.lock();
            if running.len() < AT_ONCE && running.insert(stored.it.id.clone()) {
                let (driver, stored) = (self.clone(), stored.clone());
                tasks.spawn(async move {
                    driver.act(&stored).await;
                    driver.running.lock().remove(&stored.it.id);
                });
            }
        }
        self.tidy_map(&all).await?;
        self.plan_slots(&all).await?;
        self.forget_old(&all).await
    }

    /// Looks once, and starts nothing.
    #[cfg(test)]
    pub(crate) async fn look_once(&self) -> Result<(), StoreError> {
        let all = record::all(&*self.meta(), ReadAt::Latest).await?;
        self.tidy_map(&all).await
    }

    /// Whether the data that the next step needs is in this server's memory.
    fn can_act(&self, it: &Move) -> bool {
        let needed = match it.phase {
            Phase::Cleaning => &it.from,
            _ => &it.to,
        };
        // A move that cannot even begin is for everybody to refuse.
        self.shared.is_local(needed) || it.phase == Phase::Pending
    }

    /// A move that was given up while it was late in being admitted must not block others.
    async fn tidy_map(&self, all: &[Stored]) -> Result<(), StoreError> {
        for id in self.shared.map().moves().keys() {
            let goes_on = |stored: &Stored| stored.it.id == *id && !stored.it.phase.is_over();
            if all.iter().any(goes_on) {
                continue;
            }
            // What is at hand may be older than the map.
            let over =
                record::read(&*self.meta(), id).await?.is_none_or(|it| it.it.phase.is_over());
            if over {
                match self.shared.change_map(|map| map.without_move(id)).await {
                    Ok(_) => {}
                    Err(ChangeError::Store(error)) => return Err(error),
                    Err(error) => tracing::warn!(id, error = chain(&error), "left in the map"),
                }
            }
        }
        Ok(())
    }

    /// Partitions that are drained are emptied, and those that are filled get their share, without
    /// being asked for each move.
    async fn plan_slots(&self, all: &[Stored]) -> Result<(), StoreError> {
        let map = self.shared.map();
        let busy = all.iter().any(|stored| !stored.it.phase.is_over());
        if busy || !map.infos().iter().any(|info| info.draining || info.filling) {
            return Ok(());
        }
        let epoch = map.epoch();
        let drained = plan(&map, true);
        if !drained.is_empty() {
            let id = |it: &PlannedMove, at| format!("drain-{}-{epoch}-{at}", it.from);
            return self.begin_all(drained, id).await;
        }
        let filled = plan_filling(&map);
        for info in map.infos().iter().filter(|info| info.filling) {
            if filled.iter().any(|planned| planned.to == info.name) {
                continue;
            }
            // Decided on this very map: a later one may have given others more.
            let enough = |now: &PartitionMap| match now.epoch() == epoch {
                true => now.with_filling(&info.name, false),
                false => Ok(now.clone()),
            };
            match self.shared.change_map(enough).await {
                Ok(_) => {}
                Err(ChangeError::Store(error)) => return Err(error),
                Err(error) => tracing::warn!(error = chain(&error), "filling does not end"),
            }
        }
        self.begin_all(filled, |it, at| format!("fill-{}-{epoch}-{at}", it.to)).await
    }

    async fn begin_all(
        &self,
        planned: Vec<PlannedMove>,
        id: impl Fn(&PlannedMove, usize) -> String,
    ) -> Result<(), StoreError> {
        for (at, planned) in planned.into_iter().enumerate() {
            let id = id(&planned, at);
            match record::create(&*self.meta(), &new(id, planned)).await {
                Ok(()) | Err(MoveError::Exists(_)) => {}
                Err(MoveError::Store(error)) => return Err(error),
                Err(error) => tracing::warn!(error = chain(&error), "a move does not begin"),
            }
        }
        Ok(())
    }

    async fn forget_old(&self, all: &[Stored]) -> Result<(), StoreError> {
        let mut over: Vec<_> = all.iter().filter(|stored| stored.it.phase.is_over()).collect();
        over.sort_by_key(|stored| stored.at);
        let surplus = over.len().saturating_sub(SHOWN);
        for stored in &over[..surplus] {
            record::forget(&*self.meta(), stored).await?;
        }
        Ok(())
    }

    /// Acts for a move until it is over, fails for now, or somebody else takes it.
    pub(crate) async fn act(&self, stored: &Stored) {
        let id = stored.it.id.as_str();
        match record::claim(&*self.meta(), stored, &self.name).await {
            Ok(Some(mut claimed)) => {
                let outcome = self.steps(&mut claimed).await;
                match outcome {
                    Ok(()) => {}
                    Err(MoveError::Fence(error)) => {
                        tracing::info!(id, %error, "left the move to another server");
                    }
                    Err(error @ MoveError::Map(MapError::Busy { .. })) => {
                        let text = error.to_string();
                        let said = claimed.update(self.meta(), |it| it.message.clone_from(&text));
                        drop(said.await);
                        tokio::time::sleep(LOOK).await;
                    }
                    Err(error) => {
                        tracing::warn!(id, error = chain(&error), "a move does not go on for now");
                        let text = chain(&error);
                        let said = claimed.update(self.meta(), |it| it.message.clone_from(&text));
                        drop(said.await);
                        tokio::time::sleep(BEAT).await;
                    }
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(id, error = chain(&error), "could not claim a move"),
        }
    }

    /// Stands still before a step if a test says so.
    async fn step(&self, name: &'static str) -> Result<(), MoveError> {
        match &self.crash {
            Some(crash) if crash(name).await => {
                Err(FenceError { move_id: format!("(crashed before {name})") }.into())
            }
            _ => Ok(()),
        }
    }

    async fn steps(&self, stored: &mut Stored) -> Result<(), MoveError> {
        loop {
            let phase = stored.it.phase;
            if stored.it.cancel && phase.can_be_undone() {
                self.enter(stored, Phase::Undoing, "it was cancelled").await?;
                continue;
            }
            let outcome = match phase {
                Phase::Pending => self.admit(stored).await,
                Phase::Copying => self.copy(stored).await,
                Phase::Draining => self.drain(stored).await,
                Phase::Flipping => self.flip(stored).await,
                Phase::Cleaning if !self.can_act(&stored.it) => {
                    // Whoever has the source's data goes on.
                    return stored.update(self.meta(), |it| it.driver.clear()).await;
                }
                Phase::Cleaning => self.clean(stored).await,
                Phase::Undoing => self.undo(stored).await,
                Phase::Done | Phase::Failed => return Ok(()),
            };
            match outcome {
                Ok(()) => {}
                Err(MoveError::Impossible(why)) if phase.can_be_undone() => {
                    self.enter(stored, Phase::Undoing, &why).await?;
                }
                Err(MoveError::Map(why)) if phase == Phase::Copying || phase == Phase::Draining => {
                    self.enter(stored, Phase::Undoing, &why.to_string()).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn enter(
        &self,
        stored: &mut Stored,
        phase: Phase,
        message: &str,
    ) -> Result<(), MoveError> {
        tracing::info!(
            id = stored.it.id,
            scope = %stored.it.scope,
            from = stored.it.from,
            to = stored.it.to,
            phase = ?phase,
            message,
            "move"
        );
        let update = stored.update(self.meta(), |it| {
            it.phase = phase;
            it.message = message.into();
        });
        update.await
    }

    fn store(&self, name: &str) -> Result<Arc<dyn Store>, MoveError> {
        let held = self.shared.store(name);
        held.ok_or_else(|| MapError::Unknown(name.into()).into())
    }

    fn fence(&self, it: &Move, state: FenceState, other: &str) -> Fence {
        Fence {
            move_id: it.id.clone(),
            scope: it.scope.clone(),
            state,
            token: it.token,
            since: Revision(0),
            other: other.into(),
            other_at: None,
            moved: false,
        }
    }

    /// Puts up, or takes over, the fences at both ends.
    async fn claim_fences(&self, it: &Move) -> Result<(), MoveError> {
        let ends = [
            (&it.from, self.fence(it, FenceState::Leaving, &it.to)),
            (&it.to, self.fence(it, FenceState::Importing, &it.from)),
        ];
        for (name, fence) in ends {
            self.step("claim fence").await?;
            let store = self.store(name)?;
            tables::change(&*store, |table| table.claim(fence.clone())).await?;
        }
        Ok(())
    }

    async fn set(
        &self,
        it: &Move,
        partition: &str,
        change: impl Fn(&mut Fence),
    ) -> Result<Revision, MoveError> {
        let store = self.store(partition)?;
        tables::change(&*store, |table| table.change(&it.id, it.token, &change)).await
    }

    async fn admit(&self, stored: &mut Stored) -> Result<(), MoveError> {
        if let Scope::Slots(slots) = &stored.it.scope {
            // Tenants may have been pinned since it was asked for.
            let scope = self.shared.map().slots_scope(slots.first, slots.last);
            stored.update(self.meta(), |it| it.scope = scope.clone()).await?;
        }
        let it = stored.it.clone();
        self.step("admit").await?;
        let admitted = self.shared.change_map(|map| match map.moves().get(&it.id) {
            Some(_) => Ok(map.clone()),
            None => {
                let moving = Moving::new(it.scope.clone(), it.from.clone(), it.to.clone());
                map.with_move(&it.id, moving)
            }
        });
        match admitted.await.map_err(MoveError::from) {
            Ok(_) => self.enter(stored, Phase::Copying, "").await,
            Err(error @ MoveError::Map(MapError::Busy { .. })) => Err(error),
            // Nothing has been done that would have to be undone.
            Err(MoveError::Map(error)) => {
                self.enter(stored, Phase::Failed, &error.to_string()).await
            }
            Err(error) => Err(error),
        }
    }

    async fn copy(&self, stored: &mut Stored) -> Result<(), MoveError> {
        self.claim_fences(&stored.it).await?;
        // With the copy's own memory the last pass is short.
        self.copy_and_drain(stored, true).await
    }

    async fn drain(&self, stored: &mut Stored) -> Result<(), MoveError> {
        self.claim_fences(&stored.it).await?;
        self.copy_and_drain(stored, false).await
    }

    /// Copies until little is left, freezes, copies the rest, and closes the source.
    async fn copy_and_drain(&self, stored: &mut Stored, passes: bool) -> Result<(), MoveError> {
        let it = stored.it.clone();
        let (source, target) = (self.store(&it.from)?, self.store(&it.to)?);
        let mut copy = copy::Copy::new(&it.scope, &*source, &*target, it.token);
        if passes {
            for _ in 0..PASSES {
                self.step("copy").await?;
                let pass = self.pass(&mut copy, stored).await?;
                if stored.it.cancel {
                    return Ok(());
                }
                if pass.changed <= SHORT {
                    break;
                }
            }
            self.enter(stored, Phase::Draining, "").await?;
            if stored.it.cancel {
                return Ok(());
            }
        }
        stored.frozen = Some(Instant::now());
        let drained = tokio::time::timeout(FREEZE, self.freeze_and_close(&it, &mut copy)).await;
        let drained = drained.unwrap_or_else(|_| {
            let reason = "copying the last changes took too long".into();
            Err(StoreError::Unavailable { reason, source: None }.into())
        });
        match drained {
            Ok((closed_at, objects)) => {
                self.step("record the flip").await?;
                let update = stored.update(self.meta(), |it| {
                    it.phase = Phase::Flipping;
                    it.closed_at = Some(closed_at);
                    it.total = objects as u64;
                    it.copied = objects as u64;
                });
                update.await
            }
            Err(error @ MoveError::Fence(_)) => Err(error),
            Err(error) => {
                // Writers go on while it is found out what is wrong.
                let leaving = |fence: &mut Fence| fence.state = FenceState::Leaving;
                self.set(&it, &it.from, leaving).await?;
                self.enter(stored, Phase::Copying, &chain(&error)).await?;
                Err(error)
            }
        }
    }

    /// One pass, with beats while it takes long.
    async fn pass(
        &self,
        copy: &mut copy::Copy<'_>,
        stored: &mut Stored,
    ) -> Result<copy::Pass, MoveError> {
        let copied = AtomicUsize::new(0);
        let before = stored.it.copied;
        let progress = |done: usize| {
            copied.fetch_max(done, Ordering::Relaxed);
        };
        let working = copy.pass(&progress);
        tokio::pin!(working);
        let pass = loop {
            tokio::select! {
                pass = &mut working => break pass?,
                () = tokio::time::sleep(BEAT) => {
                    let done = before + copied.load(Ordering::Relaxed) as u64;
                    stored.update(self.meta(), |it| it.copied = done).await?;
                }
            }
        };
        let update = stored.update(self.meta(), |it| {
            it.total = pass.objects as u64;
            it.copied = pass.objects as u64;
            it.message.clear();
        });
        update.await?;
        Ok(pass)
    }

    async fn freeze_and_close(
        &self,
        it: &Move,
        copy: &mut copy::Copy<'_>,
    ) -> Result<(Revision, usize), MoveError> {
        self.step("freeze").await?;
        self.set(it, &it.from, |fence| {
            // Whoever took over may find it closed, and could not read it.
            fence.state = FenceState::Frozen;
        })
        .await?;
        self.step("copy the rest").await?;
        let pass = copy.pass(&|_| {}).await?;
        self.step("close").await?;
        let moved = 0 < pass.objects;
        let closed_at = self
            .set(it, &it.from, |fence| {
                fence.state = FenceState::Closed;
                fence.moved = moved;
            })
            .await?;
        self.step("raise").await?;
        // Events may have revisions of their own.
        let mut newest = closed_at;
        for name in crate::etcd::RELAXED {
            let events = copy.source.read(&Collection::of(name), ReadAt::Latest).await?;
            newest = newest.max(events.revision());
        }
        copy.target.raise(newest).await?;
        Ok((closed_at, pass.objects))
    }

    async fn flip(&self, stored: &mut Stored) -> Result<(), MoveError> {
        let id = stored.it.id.clone();
        // Who is no longer in the map has opened, and others may have moved the same since: the
        // fences are theirs.
        let map = self.shared.change_map(|map| Ok(map.clone())).await?;
        if map.moves().contains_key(&id) {
            // Whoever took over has no hold of them yet.
            self.claim_fences(&stored.it).await?;
            self.step("flip").await?;
            let flip = |map: &PartitionMap| match map.moves().get(&id) {
                Some(moving) if !moving.flipped => map.with_flip(&id),
                _ => Ok(map.clone()),
            };
            self.shared.change_map(flip).await?;
            self.open(&stored.it).await?;
        }
        let pause = stored.frozen.map(|frozen| frozen.elapsed().as_millis() as u64);
        self.step("let others move it").await?;
        self.shared.change_map(|map| map.without_move(&id)).await?;
        self.step("record that it is open").await?;
        let update = stored.update(self.meta(), |it| {
            it.phase = Phase::Cleaning;
            it.pause = pause;
        });
        update.await
    }

    async fn open(&self, it: &Move) -> Result<(), MoveError> {
        let (moved, closed_at) = (0 < it.total, it.closed_at);
        self.step("open").await?;
        let opened_at = self
            .set(it, &it.to, |fence| {
                if fence.state != FenceState::Open {
                    fence.state = FenceState::Open;
                    fence.moved = moved;
                    fence.other_at = closed_at;
                }
            })
            .await?;
        self.step("tell the source").await?;
        self.set(it, &it.from, |fence| {
            fence.other_at.get_or_insert(opened_at);
        })
        .await?;
        Ok(())
    }

    async fn clean(&self, stored: &mut Stored) -> Result<(), MoveError> {
        let it = stored.it.clone();
        self.step("claim the fences to clean up").await?;
        for end in [&it.from, &it.to] {
            let store = self.store(end)?;
            let claim = |table: &mut crate::fences::Table| match table.of(&it.id).cloned() {
                Some(fence) => table.claim(Fence { token: it.token, ..fence }),
                None => Ok(()),
            };
            tables::change(&*store, claim).await?;
        }
        self.step("clean up").await?;
        let source = self.store(&it.from)?;
        copy::delete_all(&*source, &it.scope, it.token).await?;
        for end in [&it.from, &it.to] {
            self.step("finish").await?;
            let store = self.store(end)?;
            let compacted = store.stats().compacted;
            let finish = |table: &mut crate::fences::Table| {
                if table.of(&it.id).is_some() {
                    table.finish(&it.id, it.token)?;
                }
                table.tidy(compacted);
                Ok(())
            };
            tables::change(&*store, finish).await?;
        }
        self.step("record that it is done").await?;
        self.enter(stored, Phase::Done, "").await
    }

    async fn undo(&self, stored: &mut Stored) -> Result<(), MoveError> {
        let it = stored.it.clone();
        let map = self.shared.change_map(|map| Ok(map.clone())).await?;
        // If it was never admitted, nothing was done.
        if map.moves().contains_key(&it.id) {
            self.claim_fences(&it).await?;
            self.step("let go of the source").await?;
            let source = self.store(&it.from)?;
            tables::change(&*source, |table| table.abandon(&it.id, it.token)).await?;
            self.step("delete the copy").await?;
            let target = self.store(&it.to)?;
            copy::delete_all(&*target, &it.scope, it.token).await?;
            self.step("let go of the target").await?;
            tables::change(&*target, |table| table.abandon(&it.id, it.token)).await?;
        }
        self.step("let go of the map").await?;
        self.shared.change_map(|map| map.without_move(&it.id)).await?;
        let message = it.message.clone();
        self.step("record that it failed").await?;
        self.enter(stored, Phase::Failed, &message).await
    }
}

/// A move as it is asked for.
pub(crate) fn new(id: String, planned: PlannedMove) -> Move {
    let PlannedMove { scope, from, to } = planned;
    let now = wall_clock();
    Move {
        id,
        scope,
        from,
        to,
        phase: Phase::Pending,
        cancel: false,
        driver: String::new(),
        token: 0,
        beat: 0,
        copied: 0,
        total: 0,
        started: now,
        transition: now,
        pause: None,
        message: String::new(),
        closed_at: None,
    }
}
