//! Where the pods of a group go together.
//!
//! Each is decided on as if it were alone, and stays where it was put while the next one is; and
//! so do those that would be ended for it. In the end all is as it was before: what is decided is
//! taken, or not, as a whole.

use std::{borrow::Cow, sync::Arc};

use insula_client::ObjectKey;

use super::Core;
use crate::{
    framework::Permitted,
    gangs::GroupKey,
    ledger::{Held, Uid},
    outlook::{Decision, Failure, Promise},
    pod::Shape,
    storage::{Assumed, Work},
};

/// A pod of a group that looks for a node.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Uid,
    pub(crate) shape: Arc<Shape>,
}

/// What was found for one of them.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    Place {
        row: usize,
        work: Work,
    },
    /// A place when these have ended; or have ended at last, if there are none.
    PlaceAfter {
        row: usize,
        victims: Vec<ObjectKey>,
        failure: Failure,
    },
    None(Failure),
    /// It was not looked for: the others are too few.
    Unasked,
}

/// What comes of it for the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Enough have places.
    Fits,
    /// Enough have places when others have ended.
    FitsAfterPreemption,
    /// Too few have places, and this is what the others would wait for.
    TooFew(&'static str),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct GroupDecision {
    /// For each pod, in the order in which they were given.
    pub(crate) found: Vec<Found>,
    pub(crate) outcome: Outcome,
}

impl Core {
    /// Why pods of a shape may not look for a node yet, if they may not.
    pub(crate) fn why_not_yet(&self, shape: &Shape) -> Option<Cow<'static, str>> {
        let profile = self.profile(&shape.scheduler)?;
        profile.gates.iter().find_map(|gate| gate.why_not(&self.world, shape))
    }

    /// Whether a pod of a shape that has a place may be bound.
    pub(crate) fn permit(&self, shape: &Shape) -> Permitted {
        let permits = self.profile(&shape.scheduler).map(|it| &it.permits);
        let mut answers = permits.into_iter().flatten().map(|it| it.permit(&self.world, shape));
        answers.find(|it| *it != Permitted::Yes).unwrap_or(Permitted::Yes)
    }

    /// The group with which pods of a shape have to be decided on, if not each by itself.
    pub(crate) fn group_to_decide(&self, shape: &Shape) -> Option<GroupKey> {
        let group = GroupKey::of(shape)?;
        matches!(self.permit(shape), Permitted::Wait { .. }).then_some(group)
    }

    /// Decides where the pods of a group go. Nothing is changed by that.
    pub(crate) fn decide_group(&mut self, members: &[Member]) -> GroupDecision {
        let mut found = Vec::new();
        let mut outcome = match members.first().map(|it| self.permit(&it.shape)) {
            Some(Permitted::Wait { why, .. }) => Outcome::TooFew(why),
            Some(Permitted::Yes) | None => Outcome::Fits,
        };
        let mut to_undo = Vec::new();
        let mut takes_victims = false;
        for (n, member) in members.iter().enumerate() {
            let n_left = members.len() - n;
            if let Permitted::Wait { n_missing, why, .. } = self.permit(&member.shape)
                && n_left < n_missing
            {
                outcome = Outcome::TooFew(why);
                found.resize(members.len(), Found::Unasked);
                break;
            }
            let it = self.find_for(member);
            let row = match &it {
                Found::Place { row, work } => {
                    to_undo.push(self.try_out(member, *row, work, &[]));
                    Some(*row)
                }
                Found::PlaceAfter { row, victims, .. } => {
                    takes_victims = true;
                    to_undo.push(self.try_out(member, *row, &Work::default(), victims));
                    Some(*row)
                }
                Found::None(_) | Found::Unasked => None,
            };
            found.push(it);
            if row.is_some() && self.permit(&member.shape) == Permitted::Yes {
                outcome = Outcome::Fits;
            }
        }
        while let Some(it) = to_undo.pop() {
            self.undo(it);
        }
        if outcome == Outcome::Fits && takes_victims {
            outcome = Outcome::FitsAfterPreemption;
        }
        GroupDecision { found, outcome }
    }

    fn find_for(&mut self, member: &Member) -> Found {
        let failure = match self.decide(&member.key, &member.shape) {
            Decision::Take { row, work } => return Found::Place { row, work },
            Decision::None(failure) => failure,
        };
        match &failure.promise {
            Some(Promise::Here { row, victims }) => {
                Found::PlaceAfter { row: *row, victims: victims.clone(), failure }
            }
            // Those that were asked to end for it have not ended yet.
            None => match self.world.nominations.of(&member.key) {
                Some(row) if member.shape.preempts => {
                    Found::PlaceAfter { row, victims: Vec::new(), failure }
                }
                _ => Found::None(failure),
            },
            Some(Promise::Nothing) => Found::None(failure),
        }
    }

    fn try_out(
        &mut self,
        member: &Member,
        row: usize,
        work: &Work,
        victims: &[ObjectKey],
    ) -> Tried {
        let ended = victims.iter().filter_map(|it| Some((it.clone(), self.world.release(it)?)));
        let ended = ended.collect();
        let reserve = self.profile(&member.shape.scheduler).and_then(|it| it.reserve.clone());
        let assumed = reserve.map(|it| it.reserve(&mut self.world, work, row));
        let held = Held {
            uid: member.uid.clone(),
            shape: member.shape.clone(),
            row,
            started: i64::MAX,
            is_assumed: true,
        };
        self.world.hold(&member.key, held);
        Tried { member: member.clone(), assumed: assumed.unwrap_or_default(), ended }
    }

    fn undo(&mut self, tried: Tried) {
        let Tried { member, assumed, ended } = tried;
        self.world.release(&member.key);
        self.world.gangs.wait(&member.key, &member.shape);
        let reserve = self.profile(&member.shape.scheduler).and_then(|it| it.reserve.clone());
        if let Some(reserve) = reserve {
            // Nobody else has looked since it was taken.
            reserve.unreserve(&mut self.world, &member.shape, &assumed);
        }
        for (key, held) in ended {
            self.world.hold(&key, held);
        }
    }
}

/// What one pod's place has changed for the time of deciding.
#[derive(Debug)]
struct Tried {
    member: Member,
    assumed: Assumed,
    ended: Vec<(ObjectKey, Held)>,
}
