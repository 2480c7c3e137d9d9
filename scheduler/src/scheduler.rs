//! The loop that ties the parts together.
//!
//! One task owns all that decisions are made of, and the queue; nothing in it waits for the
//! network. Informers tell it which keys are worth a look, bindings run beside it and tell it
//! their results.

mod groups;
mod guests;
mod hints;
mod kept;
mod orders;
mod rooms;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use insula_client::{ObjectKey, Tenanted};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{hints::Hints, kept::Kept, orders::InFlight, rooms::Round};
use crate::{
    Observer,
    binding::{Binder, Done, Permit},
    core::{Core, started},
    framework::Event,
    gangs::GroupKey,
    grouping::Grouping,
    hinting::Hinter,
    informers::{Informers, Source},
    ledger::Held,
    outlook::{Decision, Failure, Promise},
    pod::{Candidate, Pod, Shape, is_finished, node_of, scheduler_of},
    preempting::{Evictor, Victim},
    queue::{Queue, Waiting},
    reporting::{GATED, Nominated, Report, Reporter, UNSCHEDULABLE},
    shares::Shares,
};

/// Decisions between two looks at what else there is to do.
const BATCH: usize = 64;
/// How often what nobody needs any more is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// All that the loop owns.
#[derive(Debug)]
pub(crate) struct Scheduler {
    core: Core,
    informers: Informers,
    changed: Arc<Notify>,
    queue: Queue,
    shares: Shares,
    events: Vec<Event>,
    in_flight: HashMap<ObjectKey, InFlight>,
    n_orders: u64,
    /// When pods that were handed over are taken back.
    handed_over: BTreeSet<(Instant, ObjectKey)>,
    /// Groups that room is asked for.
    rounds: HashMap<GroupKey, Round>,
    /// Those of them of which a pod has changed.
    unsettled: BTreeSet<GroupKey>,
    /// Groups of which pods hold room that is given back, and how many.
    returning: HashMap<GroupKey, usize>,
    /// Room on nodes of this replica, for pods of groups that others decide on.
    kept: HashMap<ObjectKey, Kept>,
    /// Pods that ask for room on nodes of this replica. What others say is theirs already counts
    /// before them, so they are answered only when all that copies show has been looked at.
    asking: Vec<ObjectKey>,
    /// Pods that other replicas decided to have here.
    guests: BTreeMap<ObjectKey, Candidate>,
    /// The one that was looked at last.
    last_guest: Option<ObjectKey>,
    /// How many changes of nodes there had been when the first one was.
    guests_since: u64,
    binder: Binder,
    evictor: Evictor,
    reporter: Reporter,
    grouping: Grouping,
    hints: Option<Hints>,
    observer: Arc<dyn Observer>,
    swept: Instant,
}

impl Scheduler {
    #[expect(clippy::too_many_arguments, reason = "it owns all of them")]
    pub(crate) fn new(
        core: Core,
        queue: Queue,
        shares: Shares,
        informers: Informers,
        changed: Arc<Notify>,
        binder: Binder,
        evictor: Evictor,
        reporter: Reporter,
        grouping: Grouping,
        hinter: Hinter,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let hints = core.hints().map(|settings| Hints::new(settings, hinter));
        Self {
            core,
            informers,
            changed,
            queue,
            shares,
            events: Vec::new(),
            in_flight: HashMap::new(),
            n_orders: 0,
            handed_over: BTreeSet::new(),
            rounds: HashMap::new(),
            unsettled: BTreeSet::new(),
            returning: HashMap::new(),
            kept: HashMap::new(),
            asking: Vec::new(),
            guests: BTreeMap::new(),
            last_guest: None,
            guests_since: 0,
            binder,
            evictor,
            reporter,
            grouping,
            hints,
            observer,
            swept: Instant::now(),
        }
    }

    /// Schedules until `shutdown`.
    pub(crate) async fn run(
        mut self,
        mut results: mpsc::UnboundedReceiver<Done>,
        shutdown: CancellationToken,
    ) {
        if shutdown.run_until_cancelled(self.informers.synced()).await != Some(true) {
            return;
        }
        for profile in self.core.profiles() {
            let filters: Vec<_> = profile.filters.iter().map(|it| it.name()).collect();
            let scores: Vec<_> =
                profile.scores.iter().map(|(weight, it)| (it.name(), *weight)).collect();
            tracing::info!(scheduler = %profile.name, ?filters, ?scores, "running");
        }
        loop {
            self.adopt();
            // Claims that a binding waited for are known before its result is.
            self.look();
            self.measure();
            while let Ok(done) = results.try_recv() {
                self.done(done);
            }
            self.wake_hopeful();
            self.take_back_late();
            self.settle();
            self.bind_guests();
            self.answer_asking();
            let n_decided = self.decide_some();
            let has_more_hints = self.give_hints();
            self.observer.waiting(self.queue.len());
            if shutdown.is_cancelled() {
                return;
            }
            // What was decided may have given hope to those who were stuck by then.
            let has_hope = !self.events.is_empty() && !self.queue.hopes_for_nothing();
            let has_more = has_hope || has_more_hints || self.queue.is_anyone_early();
            if BATCH <= n_decided || has_more {
                tokio::task::yield_now().await;
                continue;
            }
            if SWEEP_EVERY < self.swept.elapsed() {
                self.core.sweep();
                self.queue.sweep();
                self.swept = Instant::now();
            }
            let late = self.handed_over.first().map(|(at, _)| *at);
            let others = late.into_iter().chain(self.next_timeout());
            let others = others.chain(self.hints.as_ref().map(Hints::next));
            let alarm = self.queue.next_alarm().into_iter().chain(others).min();
            let alarm = async {
                match alarm {
                    Some(alarm) => tokio::time::sleep_until(alarm).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => (),
                () = alarm => (),
                done = results.recv() => {
                    if let Some(done) = done {
                        self.look();
                        self.done(done);
                    }
                }
            }
        }
    }

    /// Goes by what this replica has now. What it has more is looked at before the next decision.
    fn adopt(&mut self) {
        if self.core.world.share(self.shares.holders()) {
            self.events.push(Event::Devices { claim: None });
        }
        if self.shares.adopt() {
            let shares = &self.shares;
            self.queue.retain(|key| shares.decides_for(&key.tenant));
            self.give_up_what_moved();
            self.informers.look_at_all();
        }
    }

    /// Looks at all that changed.
    fn look(&mut self) {
        let mut dirty = self.informers.dirty.take();
        dirty.sort_by_key(|(source, _)| *source);
        for (source, key) in dirty {
            match source {
                Source::Node => self.look_at_node(&key),
                Source::Pod => self.look_at_pod(&key),
                Source::PodGroup => {
                    let event = self.informers.show(&mut self.core.world, source, &key);
                    self.events.extend(event);
                    self.admit(&GroupKey { key, has_object: true });
                }
                other => {
                    let event = self.informers.show(&mut self.core.world, other, &key);
                    self.events.extend(event);
                }
            }
        }
    }

    /// Notes what nodes use, if that was measured again. Nobody is refused for it, so nobody who
    /// waits has to hear of it.
    fn measure(&mut self) {
        let Some(usages) = self.informers.measurements.take() else { return };
        let nodes = &mut self.core.world.nodes;
        let usages: HashMap<String, _> = usages.into_iter().collect();
        for row in nodes.rows().collect::<Vec<_>>() {
            let usage = usages.get(nodes.name(row)).copied();
            nodes.measure(row, usage);
        }
    }

    /// Has stuck pods look again that may hope for something from what happened.
    fn wake_hopeful(&mut self) {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() || self.queue.hopes_for_nothing() {
            return;
        }
        let core = &mut self.core;
        self.queue.happened(Instant::now(), |shape, refused_by| {
            core.may_help(shape, refused_by, &events)
        });
    }

    /// Notes an event, unless the same was just noted.
    fn note(&mut self, event: Event) {
        let is_same = match (&event, self.events.last()) {
            (Event::PodGone { pod }, Some(Event::PodGone { pod: last }))
            | (Event::PodHere { pod }, Some(Event::PodHere { pod: last })) => {
                Arc::ptr_eq(pod, last)
            }
            _ => false,
        };
        if !is_same {
            self.events.push(event);
        }
    }

    fn look_at_node(&mut self, key: &ObjectKey) {
        match self.informers.nodes.get(key) {
            Some(node) => {
                let (row, changed) = self.core.world.put_node(&key.name, &node);
                if self.shares.is_shared() {
                    let has_it = self.shares.has_node(&key.name);
                    self.core.world.nodes.prefer(row, has_it);
                }
                self.events.push(Event::Node { row, changed });
            }
            None => self.core.world.remove_node(&key.name),
        }
    }

    fn look_at_pod(&mut self, key: &ObjectKey) {
        let pod = self.informers.pods.get(key).filter(|pod| !is_finished(pod));
        if let Some(hints) = &mut self.hints {
            hints.note(key, pod.as_deref().map(|it| &**it));
        }
        let Some(pod) = pod else {
            self.looks_no_more(key);
            self.drop_room(key);
            self.nominate(key, None);
            self.release(key);
            return;
        };
        if let Some(node) = node_of(&pod) {
            self.looks_no_more(key);
            self.arrived(key);
            let shape = self.core.shapes.of(&pod);
            let row = self.core.world.nodes.row_for(node);
            self.fulfil(key, row);
            let held = Held {
                uid: pod.uid().into(),
                shape: shape.clone(),
                row,
                started: started(&pod),
                is_assumed: false,
            };
            let is_known = self
                .core
                .world
                .held(key)
                .is_some_and(|it| it.row == row && Arc::ptr_eq(&it.shape, &shape));
            if let Some(before) = self.core.world.hold(key, held) {
                let ends = before.row == row && shape.is_end_of(&before.shape);
                let pod = before.shape;
                self.note(if ends { Event::PodEnds { pod } } else { Event::PodGone { pod } });
            }
            if !is_known {
                self.note(Event::PodHere { pod: shape });
            }
            return;
        }
        if self.look_at_kept(key, &pod) {
            return;
        }
        if let Some(held) = self.core.world.held(key) {
            let has_room = self.in_flight.get(key).is_some_and(|it| it.room.is_some());
            let is_left = has_room && (pod.is_deleting() || self.has_room_elsewhere(key, &pod));
            if held.uid == *pod.uid() && !is_left {
                // Being bound: the server has not told yet. Or room is asked for.
                return self.look_at_room(key, &pod);
            }
            self.drop_room(key);
            self.release(key);
        }
        if self.core.profile(scheduler_of(&pod)).is_none() || pod.is_deleting() {
            self.looks_no_more(key);
            self.nominate(key, None);
            return;
        }
        let candidate = Candidate::of(&pod, &mut self.core.shapes);
        if !self.shares.decides_for(&key.tenant) {
            return self.look_at_guest(key, &pod, candidate);
        }
        self.guests.remove(key);
        let is_known = self.queue.get(key).is_some_and(|known| *known.candidate == candidate);
        if !is_known {
            self.nominate_as_told(key, &pod, &candidate);
        }
        if candidate.is_gated {
            let message = "Scheduling is blocked due to non-empty scheduling gates".into();
            let nominated = Nominated::AsItIs;
            let pod = pod.clone();
            self.reporter.report(Report { pod, reason: GATED, message, nominated });
        }
        if !is_known && !self.take_over_room(key, &pod, &candidate) {
            self.enqueue(key, candidate, &pod);
        }
    }

    /// A pod looks for no node any more, for now or for ever.
    fn looks_no_more(&mut self, key: &ObjectKey) {
        self.queue.remove(key);
        self.guests.remove(key);
        self.core.world.gangs.forget(key);
    }

    /// Has a pod look again whose node could not be written down.
    fn retry(&mut self, key: &ObjectKey, waiting: Waiting, now: Instant) {
        self.core.world.gangs.wait(key, &waiting.candidate.shape);
        self.queue.retry(key, waiting, now);
    }

    /// Promises a pod room on a row, or none. Others may hope for what it was promised before.
    fn nominate(&mut self, key: &ObjectKey, promised: Option<(usize, Arc<Shape>)>) {
        let row = promised.as_ref().map(|(row, _)| *row);
        if let Some((before, shape)) = self.core.world.nominations.set(key, promised)
            && row != Some(before)
        {
            self.note(Event::PodGone { pod: shape });
        }
    }

    /// A pod is on a row. If it was promised room elsewhere, others may hope for that.
    fn fulfil(&mut self, key: &ObjectKey, row: usize) {
        if let Some((promised, shape)) = self.core.world.nominations.set(key, None)
            && promised != row
        {
            self.note(Event::PodGone { pod: shape });
        }
    }

    /// Takes over what an earlier scheduler promised a pod, or what is known under another shape.
    fn nominate_as_told(&mut self, key: &ObjectKey, pod: &Pod, candidate: &Candidate) {
        let world = &mut self.core.world;
        let told = pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref());
        let told = told.and_then(|name| world.nodes.row(name));
        let row = world.nominations.of(key).or(told);
        self.nominate(key, row.map(|row| (row, candidate.shape.clone())));
    }

    fn release(&mut self, key: &ObjectKey) {
        if let Some(held) = self.core.world.release(key) {
            self.note(Event::PodGone { pod: held.shape });
        }
    }

    fn decide_some(&mut self) -> usize {
        let mut n_decided = 0;
        while n_decided < BATCH {
            let now = Instant::now();
            let world = &self.core.world;
            let next = self.queue.take(now, |tenant| world.cost_of_turn(tenant));
            // Who looks early does so when nobody else does, which is looked at between any two.
            let next = next.or_else(|| if n_decided == 0 { self.queue.take_early() } else { None });
            let Some((key, waiting)) = next else { break };
            if let Some(group) = self.group_to_decide(&waiting.candidate.shape) {
                n_decided += self.decide_together((key, waiting), &group, now).max(1);
                continue;
            }
            n_decided += 1;
            let Some(permit) = self.shares.begin_for(&key.tenant) else {
                // Somebody else's by now, and perhaps one to be bound here all the same.
                self.informers.dirty.add((Source::Pod, key));
                continue;
            };
            // Gone since; its key is dirty, and will be looked at.
            let known = self.informers.pods.get(&key);
            let Some(pod) = known.filter(|pod| pod.uid() == waiting.candidate.uid) else {
                continue;
            };
            let decision = self.core.decide(&key, &waiting.candidate.shape);
            self.observer.decided(matches!(decision, Decision::Take { .. }), now.elapsed());
            match decision {
                Decision::Take { row, work } => self.take(key, waiting, pod, (row, work), permit),
                Decision::None(failure) => {
                    self.fail(&key, waiting, pod, failure, (now, permit));
                }
            }
        }
        n_decided
    }

    fn fail(
        &mut self,
        key: &ObjectKey,
        waiting: Waiting,
        pod: Arc<Tenanted<Pod>>,
        failure: Failure,
        (now, permit): (Instant, Permit),
    ) {
        tracing::debug!(pod = %key, message = %failure.message, "no node");
        let shape = waiting.candidate.shape.clone();
        self.queue.stuck(key, waiting, failure.refused_by, now);
        let mut nominated = Nominated::AsItIs;
        if let Some(claim) = failure.to_free
            && let Some(permit) = self.shares.begin_for(&key.tenant)
        {
            self.binder.free_devices(claim, permit);
        }
        match failure.promise {
            None => (),
            Some(Promise::Nothing) => {
                self.nominate(key, None);
                nominated = Nominated::Nowhere;
            }
            Some(Promise::Here { row, victims }) => {
                // Who was promised this room before and matters less has to look again.
                for other in self.core.world.nominations.behind(row, &shape) {
                    self.nominate(&other, None);
                    self.queue.hurry(&other, now);
                }
                self.nominate(key, Some((row, shape)));
                let node = self.core.world.nodes.name_of(row);
                let world = &mut self.core.world;
                let victims = victims.into_iter().filter_map(|key| {
                    let uid = world.held(&key)?.uid.clone();
                    Some(Victim { key, uid })
                });
                let victims: Vec<_> = victims.collect();
                world.nominations.ask(key, victims.clone());
                self.evictor.evict(&pod, &node, victims, permit);
                nominated = Nominated::On(node);
            }
        }
        let message = failure.message;
        self.reporter.report(Report { pod, reason: UNSCHEDULABLE, message, nominated });
    }
}

/// How long bindings that have begun may take to end after shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
