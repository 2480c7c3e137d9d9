//! Pods of a group of which all are scheduled, or none.
//!
//! When it is the turn of one of them, all that have no place yet are decided on together. What
//! keeps one of them from a place is told of it; the others are told what they wait for.

use std::sync::Arc;

use insula_client::{ObjectKey, Tenanted};
use tokio::time::Instant;

use super::Scheduler;
use crate::{
    binding::Permit,
    core::{Found, GroupDecision, Member, Outcome},
    gangs::GroupKey,
    grouping::{TOO_FEW, Verdict},
    outlook::{Failure, Promise},
    pod::{Candidate, Pod, Shape},
    queue::Waiting,
    reporting::{Nominated, Report, UNSCHEDULABLE},
};

/// What it says of one that fits when others have ended.
const WAITS_FOR_VICTIMS: &str =
    "pod group is unschedulable, pod group is waiting for preemption to complete";

/// A pod that is decided on with others.
struct Asked {
    waiting: Waiting,
    pod: Arc<Tenanted<Pod>>,
    permit: Permit,
}

impl Scheduler {
    /// Notes a pod that looks for a node, and keeps it from looking as long as something else has
    /// to come first.
    pub(super) fn enqueue(
        &mut self,
        key: &ObjectKey,
        candidate: Candidate,
        pod: &Arc<Tenanted<Pod>>,
    ) {
        let shape = candidate.shape.clone();
        let waited = self.core.why_not_yet(&shape).is_some();
        self.core.world.gangs.wait(key, &shape);
        let now = Instant::now();
        match self.core.why_not_yet(&shape) {
            Some(why) if !candidate.is_gated => {
                self.queue.hold_back(key, candidate, now);
                let (pod, nominated) = (pod.clone(), Nominated::AsItIs);
                let message = (*why).into();
                self.reporter.report(Report { pod, reason: UNSCHEDULABLE, message, nominated });
            }
            Some(_) => self.queue.hold_back(key, candidate, now),
            None => {
                self.queue.put(key, candidate, now);
                if waited && let Some(group) = GroupKey::of(&shape) {
                    self.admit(&group);
                }
            }
        }
    }

    /// Lets the pods of a group look that were held back, if nothing has to come first any more.
    pub(super) fn admit(&mut self, group: &GroupKey) {
        for key in self.core.world.gangs.waiting(group) {
            let Some(waiting) = self.queue.get(&key) else { continue };
            if self.core.why_not_yet(&waiting.candidate.shape).is_none() {
                self.queue.admit(&key);
            }
        }
    }

    /// The group with which a pod has to be decided on, if not by itself.
    pub(super) fn group_to_decide(&self, shape: &Shape) -> Option<GroupKey> {
        let is_asking =
            || GroupKey::of(shape).filter(|it| self.is_asking_for(it) || self.is_giving_back(it));
        self.core.group_to_decide(shape).or_else(is_asking)
    }

    /// Decides on a pod together with all others of its group that have no place.
    pub(super) fn decide_together(
        &mut self,
        first: (ObjectKey, Waiting),
        group: &GroupKey,
        now: Instant,
    ) -> usize {
        if self.is_giving_back(group) {
            let (key, waiting) = first;
            self.retry(&key, waiting, now);
            return 1;
        }
        let mut all = vec![first];
        for key in self.core.world.gangs.waiting(group) {
            if let Some(waiting) = self.queue.pull(&key) {
                all.push((key, waiting));
            }
        }
        all.sort_by_key(|(key, it)| {
            (-i64::from(it.candidate.shape.priority), it.since, key.clone())
        });
        let mut members = Vec::new();
        let mut asked = Vec::new();
        for (key, waiting) in all {
            let Some(permit) = self.shares.begin_for(&key.tenant) else {
                self.informers.dirty.add((crate::informers::Source::Pod, key));
                continue;
            };
            let known = self.informers.pods.get(&key);
            let Some(pod) = known.filter(|pod| pod.uid() == waiting.candidate.uid) else {
                // Gone since; its key is dirty, and will be looked at.
                continue;
            };
            let uid = waiting.candidate.uid.as_str().into();
            members.push(Member { key, uid, shape: waiting.candidate.shape.clone() });
            asked.push(Asked { waiting, pod, permit });
        }
        let decision = self.core.decide_group(&members);
        self.observer.decided(decision.outcome == Outcome::Fits, now.elapsed());
        match decision.outcome {
            // That is certain when room is reserved, wherever it is.
            Outcome::Fits if self.shares.is_shared() => (),
            Outcome::Fits => self.tell_of(group, Verdict::scheduled()),
            Outcome::FitsAfterPreemption => {
                self.tell_of(group, Verdict::unschedulable(WAITS_FOR_VICTIMS));
            }
            Outcome::TooFew(_) => self.tell_of(group, Verdict::unschedulable(TOO_FEW)),
        }
        let n_members = members.len();
        self.go_by(group, decision, members, asked, now);
        n_members
    }

    /// Does what was decided.
    fn go_by(
        &mut self,
        group: &GroupKey,
        decision: GroupDecision,
        members: Vec<Member>,
        asked: Vec<Asked>,
        now: Instant,
    ) {
        let GroupDecision { found, outcome } = decision;
        // Whatever helps one of them helps all.
        let refused_by = found.iter().fold(0, |all, it| match it {
            Found::None(it) | Found::PlaceAfter { failure: it, .. } => all | it.refused_by,
            Found::Place { .. } | Found::Unasked => all,
        });
        let without = |message: &str, promise: Option<Promise>| {
            let message = message.into();
            Failure { message, refused_by, promise, to_free: None }
        };
        for ((member, asked), found) in members.into_iter().zip(asked).zip(found) {
            let Asked { waiting, pod, permit } = asked;
            let key = member.key;
            let failure = match (found, outcome) {
                (Found::Place { row, work }, Outcome::Fits) => {
                    let place = (row, work);
                    if self.shares.is_shared() {
                        self.ask_for_room((key, waiting), pod, place, permit, group.clone());
                    } else {
                        self.take(key, waiting, pod, place, permit);
                    }
                    continue;
                }
                (Found::None(failure), _) => Failure { refused_by, ..failure },
                (Found::PlaceAfter { row, victims, failure }, Outcome::FitsAfterPreemption) => {
                    let promise = Some(Promise::Here { row, victims });
                    Failure { refused_by, promise, ..failure }
                }
                (Found::Place { row, .. }, Outcome::FitsAfterPreemption) => {
                    let promise = Promise::Here { row, victims: Vec::new() };
                    without(WAITS_FOR_VICTIMS, Some(promise))
                }
                (_, Outcome::TooFew(why)) => {
                    without(&format!("{TOO_FEW}, {why}"), Some(Promise::Nothing))
                }
                (_, Outcome::Fits | Outcome::FitsAfterPreemption) => {
                    without(TOO_FEW, Some(Promise::Nothing))
                }
            };
            self.fail(&key, waiting, pod, failure, (now, permit));
        }
    }

    /// Writes down what came of a group, if it has an object to write that on.
    pub(super) fn tell_of(&self, group: &GroupKey, verdict: Verdict) {
        let groups = self.informers.groups.as_ref().filter(|_| group.has_object);
        let Some(object) = groups.and_then(|it| it.get(&group.key)) else { return };
        self.grouping.tell(object, verdict);
    }
}
