//! Room on nodes of this replica that is kept for pods of groups that others decide on
//! ([`crate::reservations`]).

use std::sync::Arc;

use insula_client::{ObjectKey, Tenanted, chain};

use super::Scheduler;
use crate::{
    binding::{NotBound, Way},
    informers::Source,
    pod::{Candidate, Pod},
    reservations::Mark,
    storage::Work,
};

/// Room on a node of this replica, for a pod that another one decides on.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) uid: String,
    /// The orders by which it is written down that it is reserved, and by which the pod is bound.
    pub(super) reserving: Option<u64>,
    pub(super) binding: Option<u64>,
}

impl Scheduler {
    /// Whether room is kept for a pod of others, on a node that is still this replica's. Does what
    /// the pod says about it.
    pub(super) fn look_at_kept(&mut self, key: &ObjectKey, pod: &Tenanted<Pod>) -> bool {
        let Some(kept) = self.kept.get(key) else { return false };
        if kept.binding.is_some() && pod.uid() == kept.uid {
            return true;
        }
        let row = self.core.world.held(key).filter(|it| it.uid == *kept.uid).map(|it| it.row);
        let node = row.map(|row| self.core.world.nodes.name_of(row));
        let mark = node.as_ref().and_then(|node| Mark::of(pod, node));
        let (Some(node), Some(mark)) = (node, mark) else {
            self.keep_no_longer(key);
            return false;
        };
        let is_ours = self.shares.has_node(&node) && !self.shares.decides_for(&key.tenant);
        if !is_ours || pod.uid() != kept.uid || pod.is_deleting() {
            self.keep_no_longer(key);
            return false;
        }
        match mark {
            Mark::Asked if kept.reserving.is_none() => self.asking.push(key.clone()),
            Mark::Confirmed => self.bind_kept(key, pod, node),
            Mark::Asked | Mark::Reserved => (),
        }
        true
    }

    /// Reserves room that a pod of others asks for, if it still does and there is any.
    pub(super) fn reserve_kept(&mut self, key: &ObjectKey, pod: Arc<Tenanted<Pod>>) {
        let is_idle = |it: &&Kept| it.uid == pod.uid() && it.reserving.or(it.binding).is_none();
        if self.kept.get(key).filter(is_idle).is_none() {
            return;
        }
        let Some(row) = self.core.world.held(key).map(|it| it.row) else { return };
        let node = self.core.world.nodes.name_of(row);
        if Mark::of(&pod, &node) != Some(Mark::Asked) {
            return;
        }
        let Some(permit) = self.shares.begin_on(&node) else { return };
        if !self.core.fits_where_it_is(key) {
            return self.keep_no_longer(key);
        }
        let number = self.next_order();
        if let Some(kept) = self.kept.get_mut(key) {
            kept.reserving = Some(number);
        }
        self.order(number, pod, node, Work::default(), Way::Reserve(permit));
    }

    fn bind_kept(&mut self, key: &ObjectKey, pod: &Tenanted<Pod>, node: Arc<str>) {
        let Some(held) = self.core.world.held(key).cloned() else { return };
        // Whoever decided has bound its volumes before; this replica may have yet to hear of it.
        if !self.core.work_on(&held.shape, held.row).is_empty() {
            self.changed.notify_one();
            self.informers.dirty.add((Source::Pod, key.clone()));
            return;
        }
        let Some(permit) = self.shares.begin_on(&node) else { return };
        let number = self.next_order();
        if let Some(kept) = self.kept.get_mut(key) {
            kept.binding = Some(number);
        }
        self.order(number, Arc::new(pod.clone()), node, Work::default(), Way::Bind(permit));
    }

    /// Keeps room for a pod of others as it asks, if there is any; or as it says that there is.
    pub(super) fn keep_room(
        &mut self,
        key: &ObjectKey,
        candidate: &Candidate,
        mark: Mark,
        row: usize,
    ) {
        let Some(pod) = self.informers.pods.get(key).filter(|it| it.uid() == candidate.uid) else {
            return;
        };
        if mark == Mark::Asked && self.core.will_do(&candidate.shape, row).is_none() {
            return;
        }
        self.guests.remove(key);
        self.assume(key, &candidate.uid, &candidate.shape, row);
        let uid = candidate.uid.clone();
        self.kept.insert(key.clone(), Kept { uid, reserving: None, binding: None });
        self.look_at_kept(key, &pod);
    }

    /// Gives the room of a pod of others to whoever needs it.
    pub(super) fn keep_no_longer(&mut self, key: &ObjectKey) {
        if let Some(kept) = self.kept.remove(key) {
            self.let_go(key, &kept.uid);
        }
    }

    /// What came of an order for a pod whose room is kept; `false` if it is of none.
    pub(super) fn done_for_kept(
        &mut self,
        (number, key): (u64, &ObjectKey),
        result: &Result<(), NotBound>,
    ) -> bool {
        let is_its = |it: &&mut Kept| [it.reserving, it.binding].contains(&Some(number));
        let Some(kept) = self.kept.get_mut(key).filter(is_its) else { return false };
        if kept.binding == Some(number) && result.is_err() {
            kept.binding = None;
        }
        if kept.reserving == Some(number) {
            kept.reserving = None;
        }
        let Err(error) = result else { return true };
        tracing::info!(pod = %key, error = chain(error), "room not reserved, or not bound to");
        if let NotBound::Api(error) = error
            && error.is_superseded()
        {
            self.shares.refused();
        }
        // It is certain that nothing was written: what the pod says counts.
        let node = self.core.world.held(key).map(|it| self.core.world.nodes.name_of(it.row));
        let pod = self.informers.pods.get(key);
        let mark = node.zip(pod).and_then(|(node, pod)| Mark::of(&pod, &node));
        if mark < Some(Mark::Reserved) {
            self.keep_no_longer(key);
        }
        self.informers.dirty.add((Source::Pod, key.clone()));
        true
    }
}
