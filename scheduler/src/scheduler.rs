//! The loop that ties the parts together.
//!
//! One task owns all that decisions are made of, and the queue; nothing in it waits for the
//! network. Informers tell it which keys are worth a look, bindings run beside it and tell it
//! their results.

use std::{collections::HashMap, sync::Arc, time::Duration};

use insula_client::{ObjectKey, Tenanted, chain};
use k8s_openapi::api::core::v1::Pod;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Observer,
    binding::{Binder, Done, NotBound, Order},
    core::{Core, started},
    framework::Event,
    informers::{Informers, Source},
    ledger::Held,
    outlook::{Decision, Failure, Promise},
    pod::{Candidate, is_finished, node_of, scheduler_of},
    preempting::{Evictor, Victim},
    queue::{Queue, Waiting},
    reporting::{GATED, Nominated, Report, Reporter, UNSCHEDULABLE},
    storage::Assumed,
};

/// Decisions between two looks at what else there is to do.
const BATCH: usize = 64;
/// How often what nobody needs any more is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// A pod whose binding is being written.
#[derive(Debug)]
struct InFlight {
    /// As it was in the queue.
    waiting: Waiting,
    assumed: Assumed,
}

/// All that the loop owns.
#[derive(Debug)]
pub(crate) struct Scheduler {
    core: Core,
    informers: Informers,
    changed: Arc<Notify>,
    queue: Queue,
    events: Vec<Event>,
    in_flight: HashMap<ObjectKey, InFlight>,
    binder: Binder,
    evictor: Evictor,
    reporter: Reporter,
    observer: Arc<dyn Observer>,
    swept: Instant,
}

impl Scheduler {
    #[expect(clippy::too_many_arguments, reason = "it owns all of them")]
    pub(crate) fn new(
        core: Core,
        queue: Queue,
        informers: Informers,
        changed: Arc<Notify>,
        binder: Binder,
        evictor: Evictor,
        reporter: Reporter,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self {
            core,
            informers,
            changed,
            queue,
            events: Vec::new(),
            in_flight: HashMap::new(),
            binder,
            evictor,
            reporter,
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
            // Claims that a binding waited for are known before its result is.
            self.look();
            while let Ok(done) = results.try_recv() {
                self.done(done);
            }
            self.wake_hopeful();
            let n_decided = self.decide_some();
            self.observer.waiting(self.queue.len());
            if shutdown.is_cancelled() {
                return;
            }
            if n_decided == BATCH {
                tokio::task::yield_now().await;
                continue;
            }
            if SWEEP_EVERY < self.swept.elapsed() {
                self.core.sweep();
                self.queue.sweep();
                self.swept = Instant::now();
            }
            let alarm = self.queue.next_alarm();
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

    /// Looks at all that changed.
    fn look(&mut self) {
        let mut dirty = self.informers.dirty.take();
        dirty.sort_by_key(|(source, _)| *source);
        for (source, key) in dirty {
            match source {
                Source::Node => self.look_at_node(&key),
                Source::Pod => self.look_at_pod(&key),
                other => {
                    let event = self.informers.show(&mut self.core.world, other, &key);
                    self.events.extend(event);
                }
            }
        }
    }

    /// Has stuck pods look again that may hope for something from what happened.
    fn wake_hopeful(&mut self) {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() || self.queue.has_no_stuck() {
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
                self.events.push(Event::Node { row, changed });
            }
            None => self.core.world.remove_node(&key.name),
        }
    }

    fn look_at_pod(&mut self, key: &ObjectKey) {
        let Some(pod) = self.informers.pods.get(key).filter(|pod| !is_finished(pod)) else {
            self.queue.remove(key);
            self.core.world.nominations.set(key, None);
            self.release(key);
            return;
        };
        if let Some(node) = node_of(&pod) {
            self.queue.remove(key);
            self.core.world.nominations.set(key, None);
            let shape = self.core.shapes.of(&pod);
            let row = self.core.world.nodes.row_for(node);
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
                self.note(Event::PodGone { pod: before.shape });
            }
            if !is_known {
                self.note(Event::PodHere { pod: shape });
            }
            return;
        }
        if let Some(held) = self.core.world.held(key) {
            if *held.uid == *pod.uid() {
                // Being bound: the server has not told yet.
                return;
            }
            self.release(key);
        }
        if self.core.profile(scheduler_of(&pod)).is_none() || pod.is_deleting() {
            self.queue.remove(key);
            self.core.world.nominations.set(key, None);
            return;
        }
        let candidate = Candidate::of(&pod, &mut self.core.shapes);
        let is_known = self.queue.get(key).is_some_and(|known| *known.candidate == candidate);
        if !is_known {
            self.nominate_as_told(key, &pod, &candidate);
        }
        if candidate.is_gated {
            let message = "Scheduling is blocked due to non-empty scheduling gates".into();
            let nominated = Nominated::AsItIs;
            self.reporter.report(Report { pod, reason: GATED, message, nominated });
        }
        if !is_known {
            self.queue.put(key, candidate, Instant::now());
        }
    }

    /// Takes over what an earlier scheduler promised a pod, or what is known under another shape.
    fn nominate_as_told(&mut self, key: &ObjectKey, pod: &Pod, candidate: &Candidate) {
        let world = &mut self.core.world;
        let told = pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref());
        let told = told.and_then(|name| world.nodes.row(name));
        let row = world.nominations.of(key).or(told);
        world.nominations.set(key, row.map(|row| (row, candidate.shape.clone())));
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
            let Some((key, waiting)) = next else { break };
            n_decided += 1;
            // Gone since; its key is dirty, and will be looked at.
            let known = self.informers.pods.get(&key);
            let Some(pod) = known.filter(|pod| pod.uid() == waiting.candidate.uid) else {
                continue;
            };
            let decision = self.core.decide(&key, &waiting.candidate.shape);
            self.observer.decided(matches!(decision, Decision::Take { .. }), now.elapsed());
            match decision {
                Decision::Take { row, work } => self.take(key, waiting, pod, row, work),
                Decision::None(failure) => self.fail(&key, waiting, pod, failure, now),
            }
        }
        n_decided
    }

    fn take(
        &mut self,
        key: ObjectKey,
        waiting: Waiting,
        pod: Arc<Tenanted<Pod>>,
        row: usize,
        work: crate::storage::Work,
    ) {
        let shape = waiting.candidate.shape.clone();
        let node = self.core.world.nodes.name_of(row);
        let profile = self.core.profile(&shape.scheduler).cloned();
        let reserve = profile.as_ref().and_then(|it| it.reserve.as_ref());
        let assumed = reserve.map(|it| it.reserve(&mut self.core.world, &work, row));
        let timeout = profile.as_ref().map_or(Duration::ZERO, |it| it.bind_timeout);
        let held = Held {
            uid: waiting.candidate.uid.as_str().into(),
            shape: shape.clone(),
            row,
            started: i64::MAX,
            is_assumed: true,
        };
        self.core.world.hold(&key, held);
        self.core.world.nominations.set(&key, None);
        self.note(Event::PodHere { pod: shape });
        let assumed = assumed.unwrap_or_default();
        self.in_flight.insert(key, InFlight { waiting, assumed });
        self.binder.bind(Order { pod, node, work, timeout });
    }

    fn fail(
        &mut self,
        key: &ObjectKey,
        waiting: Waiting,
        pod: Arc<Tenanted<Pod>>,
        failure: Failure,
        now: Instant,
    ) {
        tracing::debug!(pod = %key, message = %failure.message, "no node");
        let shape = waiting.candidate.shape.clone();
        self.queue.stuck(key, waiting, failure.refused_by, now);
        let mut nominated = Nominated::AsItIs;
        match failure.promise {
            None => (),
            Some(Promise::Nothing) => {
                self.core.world.nominations.set(key, None);
                nominated = Nominated::Nowhere;
            }
            Some(Promise::Here { row, victims }) => {
                // Who was promised this room before and matters less has to look again.
                for other in self.core.world.nominations.behind(row, &shape) {
                    self.core.world.nominations.set(&other, None);
                    self.queue.hurry(&other, now);
                }
                self.core.world.nominations.set(key, Some((row, shape)));
                let node = self.core.world.nodes.name_of(row);
                let victims = victims.iter().filter_map(|key| {
                    let held = self.core.world.held(key)?;
                    Some(Victim { key: key.clone(), uid: held.uid.clone() })
                });
                self.evictor.evict(&pod, &node, victims.collect());
                nominated = Nominated::On(node);
            }
        }
        let message = failure.message;
        self.reporter.report(Report { pod, reason: UNSCHEDULABLE, message, nominated });
    }

    /// A binding, or the ending of others for a pod, came to an end.
    fn done(&mut self, done: Done) {
        let Done { key, uid, result } = done;
        if let Err(NotBound::NoRoom) = result {
            // Looks again, and perhaps elsewhere; unless it found room all the same.
            if self.queue.get(&key).is_some_and(|it| it.candidate.uid == uid) {
                self.core.world.nominations.set(&key, None);
                self.queue.hurry(&key, Instant::now());
            }
            return;
        }
        let is_same = |it: &InFlight| it.waiting.candidate.uid == uid;
        if !self.in_flight.get(&key).is_some_and(is_same) {
            return;
        }
        let Some(InFlight { waiting, assumed }) = self.in_flight.remove(&key) else { return };
        let profile = self.core.profile(&waiting.candidate.shape.scheduler).cloned();
        if let Some(reserve) = profile.and_then(|it| it.reserve) {
            reserve.unreserve(&mut self.core.world, &assumed);
        }
        let error = match result {
            Ok(()) => {
                self.observer.scheduled(waiting.since.elapsed());
                return;
            }
            Err(error) => error,
        };
        let known = self.informers.pods.get(&key).filter(|pod| pod.uid() == uid);
        match &error {
            NotBound::Api(error) if error.is_not_found() => {
                tracing::debug!(pod = %key, error = chain(error), "gone before it was bound");
            }
            NotBound::Volumes(why) => {
                tracing::info!(pod = %key, why, "volumes not bound");
                if let Some(pod) = known.clone() {
                    let message =
                        format!("running PreBind plugin \"VolumeBinding\": binding volumes: {why}");
                    let (message, nominated) = (message.into(), Nominated::AsItIs);
                    let reason = crate::reporting::SCHEDULER_ERROR;
                    self.reporter.report(Report { pod, reason, message, nominated });
                }
            }
            other => tracing::warn!(pod = %key, error = chain(other), "not bound"),
        }
        // What the server told meanwhile stands; only an assumption is taken back.
        if self.core.world.held(&key).is_some_and(|it| it.is_assumed && *it.uid == *uid) {
            self.release(&key);
        }
        let waits = |pod: &Arc<Tenanted<Pod>>| node_of(pod).is_none() && !pod.is_deleting();
        if known.is_some_and(|pod| waits(&pod)) && self.queue.get(&key).is_none() {
            self.queue.retry(&key, waiting, Instant::now());
        }
    }
}

/// How long bindings that have begun may take to end after shutdown.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
