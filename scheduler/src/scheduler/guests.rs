//! Pods that one replica decides on, and another one binds.
//!
//! A pod that is decided to go to a node of another replica is nominated for it, and taken back if
//! nobody binds it for too long. A pod of others that is nominated for a node of this replica is
//! bound as soon as it fits there, by all that this replica knows.

use std::{ops::Bound, time::Duration};

use insula_client::ObjectKey;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::{InFlight, Scheduler};
use crate::{
    binding::{Order, Way},
    framework::Event,
    pod::{Candidate, node_of},
    storage::{Assumed, Work},
};

/// Pods of others that are looked at between two looks at what else there is to do.
const GUESTS: usize = 64;

impl Scheduler {
    /// A pod that another replica decides on: it may be one for a node of this one.
    pub(super) fn look_at_guest(&mut self, key: &ObjectKey, pod: &Pod, candidate: Candidate) {
        self.queue.remove(key);
        let world = &mut self.core.world;
        let told = pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref());
        let row = told.and_then(|name| world.nodes.row(name));
        let has_moved = world.nominations.of(key) != row;
        world.nominations.set(key, row.map(|row| (row, candidate.shape.clone())));
        if has_moved {
            self.forget_guest(key);
        }
        if row.is_some() && !candidate.is_gated {
            self.guests.insert(key.clone(), candidate);
        } else {
            self.guests.remove(key);
        }
    }

    /// A pod of others is not to come here any more: the room that was kept for it is free.
    pub(super) fn forget_guest(&mut self, key: &ObjectKey) {
        if let Some(guest) = self.guests.remove(key) {
            self.note(Event::PodGone { pod: guest.shape });
        }
    }

    /// Binds pods that other replicas decided to have on nodes of this one, as far as they fit.
    pub(super) fn bind_guests(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let after = match self.last_guest.take() {
            Some(last) => (Bound::Excluded(last), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let some: Vec<_> =
            self.guests.range(after).take(GUESTS).map(|(key, _)| key.clone()).collect();
        if some.len() == GUESTS {
            self.last_guest = some.last().cloned();
            // There are more.
            self.changed.notify_one();
        }
        for key in some {
            self.bind_guest(&key);
        }
    }

    fn bind_guest(&mut self, key: &ObjectKey) {
        let Some(candidate) = self.guests.get(key) else { return };
        let Some(row) = self.core.world.nominations.of(key) else { return };
        if self.in_flight.contains_key(key) || self.core.world.held(key).is_some() {
            return;
        }
        let node = self.core.world.nodes.name_of(row);
        let pod = self.informers.pods.get(key).filter(|pod| pod.uid() == candidate.uid);
        let (Some(pod), Some(permit)) = (pod, self.shares.begin_on(&node)) else { return };
        let (shape, uid) = (candidate.shape.clone(), candidate.uid.clone());
        // Whoever decided has bound its volumes before; this replica may have yet to hear of it.
        let work = self.core.will_do(&shape, row).filter(Work::is_empty);
        let Some(work) = work else { return };
        self.guests.remove(key);
        self.assume(key, &uid, &shape, row);
        let assumed = Assumed::default();
        let in_flight = InFlight { uid, shape, waiting: None, assumed, handed_over: None };
        self.in_flight.insert(key.clone(), in_flight);
        let (timeout, way) = (Duration::ZERO, Way::Bind(permit));
        self.binder.bind(Order { pod, node, work, timeout, way });
    }

    /// A pod has its node. If another replica was to bind it, that was what was waited for.
    pub(super) fn arrived(&mut self, key: &ObjectKey) {
        let Some(until) = self.in_flight.get(key).and_then(|it| it.handed_over) else { return };
        self.handed_over.remove(&(until, key.clone()));
        if let Some(in_flight) = self.in_flight.remove(key) {
            self.unreserve(&in_flight);
            if let Some(waiting) = in_flight.waiting {
                self.observer.scheduled(waiting.since.elapsed());
            }
        }
    }

    /// Decides anew on pods that nobody has bound for too long.
    pub(super) fn take_back_late(&mut self) {
        let now = Instant::now();
        while let Some((until, key)) = self.handed_over.first().cloned() {
            if now < until {
                return;
            }
            self.handed_over.remove(&(until, key.clone()));
            let Some(in_flight) = self.in_flight.remove(&key) else { continue };
            self.unreserve(&in_flight);
            let known = self.informers.pods.get(&key).filter(|pod| pod.uid() == in_flight.uid);
            self.let_go(&key, &in_flight.uid);
            let waits = known.filter(|pod| node_of(pod).is_none() && !pod.is_deleting());
            if let (Some(pod), Some(waiting)) = (waits, in_flight.waiting) {
                tracing::info!(pod = %key, "was not bound by the replica whose node it was given");
                self.binder.take_back(pod);
                self.queue.retry(&key, waiting, now);
            }
        }
    }
}
