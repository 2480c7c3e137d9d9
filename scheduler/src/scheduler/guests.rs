//! Pods that one replica decides on, and another one binds.
//!
//! A pod that is decided to go to a node of another replica is nominated for it, and taken back if
//! nobody binds it for too long. A pod of others that is nominated for a node of this replica is
//! bound as soon as it fits there, by all that this replica knows.

use std::{ops::Bound, time::Duration};

use insula_client::ObjectKey;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::{Scheduler, orders::InFlight};
use crate::{
    binding::{Order, Way},
    informers::Source,
    ledger::Held,
    pod::{Candidate, node_of},
    reservations::Mark,
    storage::Work,
};

/// Pods of others that are looked at between two looks at what else there is to do.
const GUESTS: usize = 64;

impl Scheduler {
    /// A pod that another replica decides on: it may be one for a node of this one.
    pub(super) fn look_at_guest(&mut self, key: &ObjectKey, pod: &Pod, candidate: Candidate) {
        self.queue.remove(key);
        self.core.world.gangs.forget(key);
        let told = pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref());
        let row = told.and_then(|name| self.core.world.nodes.row(name));
        self.nominate(key, row.map(|row| (row, candidate.shape.clone())));
        let mark = told.and_then(|node| Mark::of(pod, node));
        if let (Some(row), Some(mark @ (Mark::Reserved | Mark::Confirmed))) = (row, mark) {
            return self.keep_room(key, &candidate, mark, row);
        }
        if row.is_some() && !candidate.is_gated {
            self.guests.insert(key.clone(), candidate);
        } else {
            self.guests.remove(key);
        }
    }

    /// Binds pods that other replicas decided to have on nodes of this one, as far as they fit.
    pub(super) fn bind_guests(&mut self) {
        if self.guests.is_empty() {
            return;
        }
        let is_first = self.last_guest.is_none();
        if is_first {
            self.guests_since = self.core.world.nodes.changes.end();
        }
        let after = match self.last_guest.take() {
            Some(last) => (Bound::Excluded(last), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let some: Vec<_> =
            self.guests.range(after).take(GUESTS).map(|(key, _)| key.clone()).collect();
        if some.len() == GUESTS {
            self.last_guest = some.last().cloned();
        }
        for key in some {
            self.bind_guest(&key);
        }
        // There are more, or nodes changed after the first of them were looked at.
        let has_changed = self.guests_since != self.core.world.nodes.changes.end();
        if self.last_guest.is_some() || (!is_first && has_changed) {
            self.changed.notify_one();
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
        if let Some(mark) = Mark::of(&pod, &node) {
            drop(permit);
            let candidate = candidate.clone();
            return self.keep_room(key, &candidate, mark, row);
        }
        let (shape, uid) = (candidate.shape.clone(), candidate.uid.clone());
        // Whoever decided has bound its volumes before; this replica may have yet to hear of it.
        let work = self.core.will_do(&shape, row).filter(Work::has_no_volumes);
        let Some(mut work) = work else { return };
        self.guests.remove(key);
        let reserve = self.core.profile(&shape.scheduler).and_then(|it| it.reserve.clone());
        let assumed = reserve.map(|it| it.reserve(&mut self.core.world, &work, row));
        let assumed = assumed.unwrap_or_default();
        self.assume(key, &uid, &shape, row);
        self.permit_shared(&mut work);
        let waiting = None;
        let (handed_over, room) = (None, None);
        let in_flight = InFlight { number: 0, uid, shape, waiting, assumed, handed_over, room };
        let number = self.begin(key.clone(), in_flight);
        let (timeout, way) = (Duration::ZERO, Way::Bind(permit));
        self.binder.bind(Order { number, pod, node, work, timeout, way });
    }

    /// A pod has its node. If another replica was to bind it, that was what was waited for.
    pub(super) fn arrived(&mut self, key: &ObjectKey) {
        self.kept.remove(key);
        let is_awaited = |it: &InFlight| it.handed_over.is_some() || it.room.is_some();
        if !self.in_flight.get(key).is_some_and(is_awaited) {
            return;
        }
        if let Some(in_flight) = self.in_flight.remove(key) {
            self.leave_round(key, &in_flight);
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
            if self.in_flight.get(&key).is_some_and(|it| it.room.is_some()) {
                self.handed_over.remove(&(until, key.clone()));
                self.give_back(&key);
                continue;
            }
            let Some(in_flight) = self.give_up(until, &key) else { continue };
            let known = self.informers.pods.get(&key).filter(|pod| pod.uid() == in_flight.uid);
            let waits = known.filter(|pod| node_of(pod).is_none() && !pod.is_deleting());
            let (Some(pod), Some(waiting)) = (waits, in_flight.waiting) else { continue };
            let Some(permit) = self.shares.begin_for(&key.tenant) else {
                self.informers.dirty.add((Source::Pod, key));
                continue;
            };
            tracing::info!(pod = %key, "was not bound by the replica whose node it was given");
            self.binder.take_back(pod, permit);
            self.retry(&key, waiting, now);
        }
    }

    /// What others have or give away has changed: waits no longer for pods of tenants that others
    /// decide for now, and for none to be bound on a node that is this replica's own now. All pods
    /// have to be looked at again.
    pub(super) fn give_up_what_moved(&mut self) {
        let (shares, world) = (&self.shares, &self.core.world);
        let moved = |key: &ObjectKey| {
            let is_here = |held: &Held| shares.has_node(world.nodes.name(held.row));
            !shares.decides_for(&key.tenant) || world.held(key).is_some_and(is_here)
        };
        let all = self.handed_over.iter().filter(|(_, key)| moved(key));
        for (until, key) in all.cloned().collect::<Vec<_>>() {
            self.give_up(until, &key);
        }
        let has_room = self.in_flight.iter().filter(|(_, it)| it.room.is_some());
        let idle = has_room.filter(|(_, it)| it.room.as_ref().is_some_and(|it| !it.is_binding));
        let moved = idle.filter(|(key, _)| !self.shares.decides_for(&key.tenant));
        for key in moved.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.hand_on_room(&key);
        }
    }

    /// Does not wait any longer for a pod that was handed over.
    fn give_up(&mut self, until: Instant, key: &ObjectKey) -> Option<InFlight> {
        self.handed_over.remove(&(until, key.clone()));
        let in_flight = self.in_flight.remove(key)?;
        self.leave_round(key, &in_flight);
        self.unreserve(&in_flight);
        self.let_go(key, &in_flight.uid);
        Some(in_flight)
    }
}
