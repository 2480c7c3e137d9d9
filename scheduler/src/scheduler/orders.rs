//! What is written for pods that were given a node, and what came of it.
//!
//! From its order on a pod counts as being on its node, until the server tells of it or it is
//! certain that it was not bound. There is one order for a pod at a time; what comes of one that
//! was given up says nothing of the one after it.

use std::{sync::Arc, time::Duration};

use insula_api::names::TenantName;
use insula_client::{ObjectKey, Tenanted, chain};
use tokio::time::Instant;

use super::{Scheduler, rooms::Room};
use crate::{
    binding::{Done, NotBound, Order, Permit, Way},
    framework::Event,
    informers::Source,
    ledger::Held,
    pod::{Pod, Shape, node_of},
    queue::Waiting,
    reporting::{Nominated, Report},
    storage::{Assumed, Work},
};

/// For so long a pod waits for the replica whose node it was given to.
const HANDED_OVER: Duration = Duration::from_secs(5);

/// A pod whose binding is being written.
#[derive(Debug)]
pub(super) struct InFlight {
    /// Its order's.
    pub(super) number: u64,
    pub(super) uid: String,
    pub(super) shape: Arc<Shape>,
    /// As it was in the queue; none of a pod that another replica decided on.
    pub(super) waiting: Option<Waiting>,
    pub(super) assumed: Assumed,
    /// Until when another replica may take to bind it.
    pub(super) handed_over: Option<Instant>,
    /// What it was asked to be reserved first, for a pod of a group.
    pub(super) room: Option<Room>,
}

impl Scheduler {
    pub(super) fn take(
        &mut self,
        key: ObjectKey,
        waiting: Waiting,
        pod: Arc<Tenanted<Pod>>,
        (row, mut work): (usize, Work),
        permit: Permit,
    ) {
        let shape = waiting.candidate.shape.clone();
        let uid = waiting.candidate.uid.clone();
        let node = self.core.world.nodes.name_of(row);
        let profile = self.core.profile(&shape.scheduler).cloned();
        let reserve = profile.as_ref().and_then(|it| it.reserve.as_ref());
        let assumed = reserve.map(|it| it.reserve(&mut self.core.world, &work, row));
        let timeout = profile.as_ref().map_or(Duration::ZERO, |it| it.bind_timeout);
        self.assume(&key, &uid, &shape, row);
        let assumed = assumed.unwrap_or_default();
        let (way, handed_over) = match self.shares.begin_on(&node) {
            Some(permit) => (Way::Bind(permit), None),
            None => {
                // Only what has to be done before takes that long.
                let before = if work.has_no_volumes() { Duration::ZERO } else { timeout };
                (Way::HandOver(permit), Some(Instant::now() + before + HANDED_OVER))
            }
        };
        self.permit_shared(&mut work);
        if let Some(until) = handed_over {
            self.handed_over.insert((until, key.clone()));
        }
        let waiting = Some(waiting);
        let in_flight =
            InFlight { number: 0, uid, shape, waiting, assumed, handed_over, room: None };
        let number = self.begin(key, in_flight);
        self.binder.bind(Order { number, pod, node, work, timeout, way });
    }

    /// Has devices that several nodes reach written only as long as it is this replica that gives
    /// them away. If it is not any more, nothing can be written.
    pub(super) fn permit_shared(&self, work: &mut Work) {
        let shared = work.devices.iter_mut().filter(|it| it.is_shared && self.shares.is_shared());
        for it in shared {
            it.permit = self.shares.begin_for(&TenantName::system()).map(Arc::new);
        }
    }

    /// The number of another order.
    pub(super) fn next_order(&mut self) -> u64 {
        self.n_orders += 1;
        self.n_orders
    }

    /// Notes what is written for a pod; returns the number of its order.
    pub(super) fn begin(&mut self, key: ObjectKey, in_flight: InFlight) -> u64 {
        let number = self.next_order();
        // One of the same name that is gone may still have had something.
        if let Some(gone) = self.in_flight.insert(key.clone(), InFlight { number, ..in_flight }) {
            if let Some(until) = gone.handed_over {
                self.handed_over.remove(&(until, key));
            }
            self.unreserve(&gone);
        }
        number
    }

    /// A binding, or the ending of others for a pod, came to an end.
    pub(super) fn done(&mut self, done: Done) {
        let Done { number, key, uid, result } = done;
        if let Err(NotBound::NoRoom) = result {
            // Looks again, and perhaps elsewhere; unless it found room all the same.
            if self.queue.get(&key).is_some_and(|it| it.candidate.uid == uid) {
                self.nominate(&key, None);
                self.queue.back_off(&key, Instant::now());
            }
            return;
        }
        if self.done_for_kept((number, &key), &result) {
            return;
        }
        // What came of an order that was given up says nothing of the one after it.
        if self.in_flight.get(&key).is_none_or(|it| it.number != number) {
            return;
        }
        if let Err(error) = &result
            && self.in_flight.get(&key).is_some_and(|it| it.room.is_some())
        {
            return self.not_written(&key, error);
        }
        let Some(in_flight) = self.in_flight.remove(&key) else { return };
        if let Some(until) = in_flight.handed_over {
            self.handed_over.remove(&(until, key.clone()));
        }
        self.unreserve(&in_flight);
        let claims = &in_flight.assumed.devices;
        let is_others = |it: &NotBound| matches!(it, NotBound::Api(it) if it.is_superseded());
        if result.as_ref().is_err_and(|it| !is_others(it)) && !claims.is_empty() {
            self.binder.give_back_devices(claims.clone(), uid.clone());
        }
        let error = match result {
            Ok(()) => {
                if let Some(waiting) = in_flight.waiting {
                    self.observer.scheduled(waiting.since.elapsed());
                }
                return;
            }
            Err(error) => error,
        };
        let known = self.informers.pods.get(&key).filter(|pod| pod.uid() == uid);
        match &error {
            NotBound::Api(error) if error.is_not_found() => {
                tracing::debug!(pod = %key, error = chain(error), "gone before it was bound");
            }
            NotBound::Api(error) if error.is_superseded() => {
                tracing::info!(pod = %key, "somebody else's to bind by now");
                self.shares.refused();
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
            NotBound::Devices(why) => {
                tracing::info!(pod = %key, why, "claims not given devices");
                if let Some(pod) = known.clone() {
                    let message = format!("running PreBind plugin \"DynamicResources\": {why}");
                    let (message, nominated) = (message.into(), Nominated::AsItIs);
                    let reason = crate::reporting::SCHEDULER_ERROR;
                    self.reporter.report(Report { pod, reason, message, nominated });
                }
            }
            other => tracing::warn!(pod = %key, error = chain(other), "not bound"),
        }
        self.let_go(&key, &uid);
        let is_guest = in_flight.waiting.is_none();
        let decides = self.shares.decides_for(&key.tenant);
        let Some(waiting) = in_flight.waiting.filter(|_| decides) else {
            // Whoever decides on it now decides again, and says so; if that is this replica, now.
            // One that was bound for others is not asked for again before they say so.
            if decides || !is_guest {
                self.informers.dirty.add((Source::Pod, key));
            }
            return;
        };
        let waits = |pod: &Arc<Tenanted<Pod>>| node_of(pod).is_none() && !pod.is_deleting();
        if known.is_some_and(|pod| waits(&pod)) && self.queue.get(&key).is_none() {
            self.retry(&key, waiting, Instant::now());
        }
    }

    /// Takes for granted that a pod is on a row, until it is known.
    pub(super) fn assume(&mut self, key: &ObjectKey, uid: &str, shape: &Arc<Shape>, row: usize) {
        let held = Held {
            uid: uid.into(),
            shape: shape.clone(),
            row,
            started: i64::MAX,
            is_assumed: true,
        };
        self.core.world.hold(key, held);
        self.fulfil(key, row);
        self.note(Event::PodHere { pod: shape.clone() });
    }

    /// Counts no longer on what was taken for a pod; what is free by that gives hope to others.
    pub(super) fn unreserve(&mut self, InFlight { shape, assumed, .. }: &InFlight) {
        let profile = self.core.profile(&shape.scheduler).cloned();
        if let Some(reserve) = profile.and_then(|it| it.reserve) {
            let events = reserve.unreserve(&mut self.core.world, shape, assumed);
            self.events.extend(events);
        }
    }

    /// Takes back an assumption. What the server told meanwhile stands.
    pub(super) fn let_go(&mut self, key: &ObjectKey, uid: &str) {
        if self.core.world.held(key).is_some_and(|it| it.is_assumed && it.uid == *uid) {
            self.release(key);
        }
    }
}
