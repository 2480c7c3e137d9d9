//! Pods that look for a node, and when each may look again.
//!
//! A pod is *active* when it may look now; *stuck* when it found nothing and nothing happened since
//! that could help; *resting* when something did, but it looked too recently; *backing off* when
//! what was found for it went wrong; *gated* when it asked not to be looked at.
//!
//! Resting is for the sake of others: while nobody is active, those that rest look early, one of
//! each shape after the other for as long as they find something. What one does not find, those
//! that are like it do not look for before something else happens, or their rest is over.
//!
//! # Invariants
//!
//! * Tenants take turns, the more the less they have ([`line`]); within a tenant higher priority
//!   goes first, then whoever came first.
//! * A stuck pod becomes active, or rests, on the first happening that could help it, and in any
//!   case after [`STUCK_LIMIT`].
//! * Of pods that are alike one looks early and in vain for each happening, at most.

mod line;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::ObjectKey;
use tokio::time::Instant;

use self::line::Line;
pub(crate) use self::line::TURN;
use crate::pod::{Candidate, Shape};

/// How long pods wait after they found nothing: after the first time, and at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(10) }
    }
}

impl Backoff {
    fn after(&self, n_attempts: u32) -> Duration {
        let factor = 1_u32.checked_shl(n_attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// A pod that nothing seemed to help looks again after this.
const STUCK_LIMIT: Duration = Duration::from_secs(300);

/// A pod that looks for a node.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) candidate: Arc<Candidate>,
    /// How often it looked in vain.
    pub(crate) n_attempts: u32,
    /// When it came; kept through failures.
    pub(crate) since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active(Rank),
    BackingOff { until: Instant },
    Resting { until: Instant },
    Stuck { looked: Instant, until: Instant },
    Gated,
}

/// Smaller is sooner: higher priority, then earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    descending_priority: i64,
    number: u64,
}

/// Pods that found nothing and are alike. What helps one of them helps all.
#[derive(Debug)]
struct Group {
    shape: Arc<Shape>,
    /// The filters that refused nodes to any of them.
    refused_by: u128,
    stuck: BTreeSet<ObjectKey>,
    resting: BTreeSet<(Instant, ObjectKey)>,
}

/// All pods that look for a node.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    backoff: Backoff,
    /// By shape.
    groups: HashMap<u64, Group>,
    /// Groups to which something happened since one of them looked in vain.
    hopeful: BTreeSet<u64>,
    /// The one of them of which one looked early last.
    looked_early: u64,
    pods: HashMap<ObjectKey, (Waiting, Place)>,
    active: HashMap<TenantName, BTreeSet<(Rank, ObjectKey)>>,
    line: Line,
    /// Pods that are to look again by then: those that rest or back off, and stuck ones at their
    /// limit.
    alarms: BTreeSet<(Instant, ObjectKey)>,
    n_ranked: u64,
}

impl Queue {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, ..Self::default() }
    }

    /// Notes a pod, new or changed. A change makes it look at once.
    pub(crate) fn put(&mut self, key: &ObjectKey, candidate: Candidate, now: Instant) {
        self.hold_back(key, candidate, now);
        self.admit(key);
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Waiting> {
        self.pods.get(key).map(|(waiting, _)| waiting)
    }

    /// Notes a pod that is not to look before [`Queue::admit`].
    pub(crate) fn hold_back(&mut self, key: &ObjectKey, candidate: Candidate, now: Instant) {
        let since = self.remove(key).map_or(now, |it| it.since);
        let waiting = Waiting { candidate: Arc::new(candidate), n_attempts: 0, since };
        self.pods.insert(key.clone(), (waiting, Place::Gated));
    }

    /// Lets a pod look that was held back, unless it asked for it itself.
    pub(crate) fn admit(&mut self, key: &ObjectKey) {
        if let Some((waiting, Place::Gated)) = self.pods.get(key)
            && !waiting.candidate.is_gated
            && let Some((waiting, _)) = self.pods.remove(key)
        {
            self.activate(key, waiting);
        }
    }

    /// Takes a pod out of the queue before its turn, unless it is not to look.
    pub(crate) fn pull(&mut self, key: &ObjectKey) -> Option<Waiting> {
        match self.pods.get(key)? {
            (_, Place::Gated) => None,
            _ => self.remove(key),
        }
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Option<Waiting> {
        let (waiting, place) = self.pods.remove(key)?;
        match place {
            Place::Active(rank) => {
                if let Some(pods) = self.active.get_mut(&key.tenant) {
                    pods.remove(&(rank, key.clone()));
                    if pods.is_empty() {
                        self.active.remove(&key.tenant);
                        self.line.leave(&key.tenant);
                    }
                }
            }
            Place::BackingOff { until } => {
                self.alarms.remove(&(until, key.clone()));
            }
            Place::Resting { until } | Place::Stuck { until, .. } => {
                let alarm = (until, key.clone());
                self.alarms.remove(&alarm);
                let id = waiting.candidate.shape.id;
                if let Some(group) = self.groups.get_mut(&id) {
                    group.stuck.remove(key);
                    group.resting.remove(&alarm);
                    if group.stuck.is_empty() && group.resting.is_empty() {
                        self.groups.remove(&id);
                        self.hopeful.remove(&id);
                    }
                }
            }
            Place::Gated => (),
        }
        Some(waiting)
    }

    fn activate(&mut self, key: &ObjectKey, waiting: Waiting) {
        let rank = Rank {
            descending_priority: -i64::from(waiting.candidate.shape.priority),
            number: self.n_ranked,
        };
        self.n_ranked += 1;
        self.pods.insert(key.clone(), (waiting, Place::Active(rank)));
        let pods = self.active.entry(key.tenant.clone()).or_default();
        if pods.is_empty() {
            self.line.enter(&key.tenant);
        }
        pods.insert((rank, key.clone()));
    }

    /// Takes the pod whose turn it is out of the queue. `cost` is what a turn of a tenant costs:
    /// [`TURN`] if it has nothing, more if it has much.
    pub(crate) fn take(
        &mut self,
        now: Instant,
        cost: impl FnOnce(&TenantName) -> u64,
    ) -> Option<(ObjectKey, Waiting)> {
        self.wake(now);
        let tenant = self.line.next(cost)?;
        let pods = self.active.get_mut(&tenant)?;
        let (_, key) = pods.pop_first()?;
        if pods.is_empty() {
            self.active.remove(&tenant);
            self.line.leave(&tenant);
        }
        let (waiting, _) = self.pods.remove(&key)?;
        Some((key, waiting))
    }

    /// Takes a pod out of the queue that may look before its rest is over.
    pub(crate) fn take_early(&mut self) -> Option<(ObjectKey, Waiting)> {
        loop {
            let mut next = self.hopeful.range(self.looked_early.saturating_add(1)..);
            let id = *next.next().or_else(|| self.hopeful.first())?;
            let group = self.groups.get(&id);
            let Some((_, key)) = group.and_then(|it| it.resting.first()).cloned() else {
                self.hopeful.remove(&id);
                continue;
            };
            self.looked_early = id;
            return Some((key.clone(), self.remove(&key)?));
        }
    }

    /// Whether some pod may look before its rest is over.
    pub(crate) fn is_anyone_early(&self) -> bool {
        !self.hopeful.is_empty()
    }

    /// Forgets the pods that `stays` does not choose.
    pub(crate) fn retain(&mut self, stays: impl Fn(&ObjectKey) -> bool) {
        let gone: Vec<_> = self.pods.keys().filter(|key| !stays(key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// Puts back a pod that found no node, because these filters refused all.
    pub(crate) fn stuck(
        &mut self,
        key: &ObjectKey,
        mut waiting: Waiting,
        refused_by: u128,
        now: Instant,
    ) {
        waiting.n_attempts = waiting.n_attempts.saturating_add(1);
        let until = now + STUCK_LIMIT;
        self.alarms.insert((until, key.clone()));
        let shape = &waiting.candidate.shape;
        self.hopeful.remove(&shape.id);
        let group = self.groups.entry(shape.id).or_insert_with(|| Group {
            shape: shape.clone(),
            refused_by: 0,
            stuck: BTreeSet::new(),
            resting: BTreeSet::new(),
        });
        group.refused_by |= refused_by;
        group.stuck.insert(key.clone());
        self.pods.insert(key.clone(), (waiting, Place::Stuck { looked: now, until }));
    }

    /// Puts back a pod whose node could not be written down.
    pub(crate) fn retry(&mut self, key: &ObjectKey, mut waiting: Waiting, now: Instant) {
        waiting.n_attempts = waiting.n_attempts.saturating_add(1);
        let until = now + self.backoff.after(waiting.n_attempts);
        self.wait(key, waiting, until);
    }

    /// What a stuck pod hopes for went wrong: it looks again when its wait is over, not before.
    pub(crate) fn back_off(&mut self, key: &ObjectKey, now: Instant) {
        let Some((waiting, Place::Stuck { looked, .. })) = self.pods.get(key) else { return };
        let until = (*looked + self.backoff.after(waiting.n_attempts)).max(now);
        if let Some(waiting) = self.remove(key) {
            self.wait(key, waiting, until);
        }
    }

    fn wait(&mut self, key: &ObjectKey, waiting: Waiting, until: Instant) {
        self.alarms.insert((until, key.clone()));
        self.pods.insert(key.clone(), (waiting, Place::BackingOff { until }));
    }

    /// Something happened: pods that found nothing may look again if `helps` says so of their
    /// shape and the filters that refused them.
    pub(crate) fn happened(
        &mut self,
        now: Instant,
        mut helps: impl FnMut(&Arc<Shape>, u128) -> bool,
    ) {
        let mut hopeful: Vec<(Instant, Instant, ObjectKey)> = Vec::new();
        for (id, group) in &self.groups {
            if !helps(&group.shape, group.refused_by) {
                continue;
            }
            self.hopeful.insert(*id);
            for key in &group.stuck {
                if let Some((waiting, Place::Stuck { looked, .. })) = self.pods.get(key) {
                    let until = *looked + self.backoff.after(waiting.n_attempts);
                    hopeful.push((until, waiting.since, key.clone()));
                }
            }
        }
        // In the order in which they would have looked, not in that of the map.
        hopeful.sort();
        for (until, _, key) in hopeful {
            self.let_rest(&key, until, now);
        }
    }

    /// A stuck pod has lost what it hoped for: it may look again, as after a happening.
    pub(crate) fn hurry(&mut self, key: &ObjectKey, now: Instant) {
        let Some((waiting, Place::Stuck { looked, .. })) = self.pods.get(key) else { return };
        let until = *looked + self.backoff.after(waiting.n_attempts);
        let id = waiting.candidate.shape.id;
        self.hopeful.insert(id);
        self.let_rest(key, until, now);
    }

    /// A stuck pod is to look again by then.
    fn let_rest(&mut self, key: &ObjectKey, until: Instant, now: Instant) {
        let Some((waiting, place)) = self.pods.get_mut(key) else { return };
        if until <= now {
            if let Some(waiting) = self.remove(key) {
                self.activate(key, waiting);
            }
            return;
        }
        let Place::Stuck { until: limit, .. } = *place else { return };
        *place = Place::Resting { until };
        self.alarms.remove(&(limit, key.clone()));
        self.alarms.insert((until, key.clone()));
        if let Some(group) = self.groups.get_mut(&waiting.candidate.shape.id) {
            group.stuck.remove(key);
            group.resting.insert((until, key.clone()));
        }
    }

    fn wake(&mut self, now: Instant) {
        while let Some((until, key)) = self.alarms.first().cloned() {
            if now < until {
                return;
            }
            match self.remove(&key) {
                Some(waiting) => self.activate(&key, waiting),
                None => {
                    self.alarms.remove(&(until, key));
                }
            }
        }
    }

    /// When the next pod becomes active by itself.
    pub(crate) fn next_alarm(&self) -> Option<Instant> {
        self.alarms.first().map(|(until, _)| *until)
    }

    /// Forgets what nobody needs any more.
    pub(crate) fn sweep(&mut self) {
        self.line.sweep();
    }

    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether no pod waits for something to happen.
    pub(crate) fn hopes_for_nothing(&self) -> bool {
        self.groups.is_empty()
    }
}

#[cfg(test)]
mod tests;
