//! How a group comes from the members it has to the ones it should have: a pure function that
//! names the next step. Whoever wants the change asks again until it is done, so it does not
//! matter who asks, nor how often, nor whether the leader changes in between.
//!
//! Who is new learns first and votes only once it has caught up; all voters change at once, by
//! joint consensus. Nothing is done after which no majority would answer.

use std::collections::{BTreeMap, BTreeSet};

/// Entries that a learner may be behind when it becomes a voter.
const CAUGHT_UP: u64 = 256;

/// The group as its leader sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) me: u64,
    pub(crate) voters: BTreeSet<u64>,
    pub(crate) learners: BTreeSet<u64>,
    /// A change is under way: proposed and not applied, or two sets of voters at once.
    pub(crate) changing: bool,
    /// All other members.
    pub(crate) others: BTreeMap<u64, Other>,
}

/// Another member as the leader sees it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Other {
    /// It was heard of lately.
    pub(crate) alive: bool,
    /// Entries that it does not have yet.
    pub(crate) behind: u64,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    /// Nothing but to ask again in a moment, and what is waited for.
    Wait(String),
    /// It must not be done now, and why.
    Refuse(String),
    /// Take these in as learners.
    Learn(BTreeSet<u64>),
    /// Make these the voters, and let go of everybody else.
    Vote(BTreeSet<u64>),
    /// Have this member lead.
    Transfer(u64),
}

/// The next step to a group whose voters are `target`.
pub(crate) fn next(view: &View, target: &BTreeSet<u64>) -> Step {
    if target.is_empty() {
        return Step::Refuse("a partition needs at least one member".into());
    }
    if view.changing {
        return Step::Wait("an earlier change of members is under way".into());
    }
    if view.voters == *target && view.learners.is_empty() {
        return Step::Done;
    }
    let other = |id: &u64| view.others.get(id).copied().unwrap_or_default();
    let alive = |id: &u64| *id == view.me || other(id).alive;
    let n_alive = target.iter().filter(|id| alive(id)).count();
    // A new member is not heard of before it has been taken in.
    let is_new = |id: &&u64| !view.voters.contains(id) && !view.learners.contains(id);
    let new: BTreeSet<u64> = target.iter().filter(is_new).copied().collect();
    if n_alive + new.len() <= target.len() / 2 {
        let dead: Vec<_> = target.iter().filter(|id| !alive(id) && !is_new(id)).collect();
        return Step::Refuse(format!("too few would answer: nothing is heard of members {dead:?}"));
    }
    if !new.is_empty() {
        return Step::Learn(new);
    }
    for id in target.intersection(&view.learners) {
        let Other { alive, behind } = other(id);
        if !alive {
            return Step::Wait(format!("nothing is heard of new member {id} yet"));
        }
        if CAUGHT_UP < behind {
            return Step::Wait(format!("new member {id} is {behind} entries behind"));
        }
    }
    if n_alive <= target.len() / 2 {
        return Step::Wait("too few of the new members are heard of".into());
    }
    if target.contains(&view.me) {
        return Step::Vote(target.clone());
    }
    // Who leads is not thrown out: it hands over first, to one who stays.
    let heirs = target.intersection(&view.voters).filter(|id| alive(id));
    match heirs.min_by_key(|id| other(id).behind) {
        Some(heir) => Step::Transfer(*heir),
        None => Step::Vote(target.iter().copied().chain([view.me]).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    /// A view of member 1, with `behind` and aliveness of the others.
    fn view(voters: &[u64], learners: &[u64], others: &[(u64, bool, u64)]) -> View {
        let others =
            others.iter().map(|&(id, alive, behind)| (id, Other { alive, behind })).collect();
        let (voters, learners) = (set(voters), set(learners));
        View { me: 1, voters, learners, changing: false, others }
    }

    #[track_caller]
    fn check(view: &View, target: &[u64], expected: Step) {
        assert_eq!(next(view, &set(target)), expected);
    }

    #[test]
    fn new_members_learn_before_they_vote() {
        check(&view(&[1], &[], &[]), &[1, 2, 3], Step::Learn(set(&[2, 3])));
        let waits = view(&[1], &[2, 3], &[(2, true, 0), (3, true, 9_000)]);
        let behind = "new member 3 is 9000 entries behind".to_owned();
        check(&waits, &[1, 2, 3], Step::Wait(behind));
        let ready = view(&[1], &[2, 3], &[(2, true, 0), (3, true, 10)]);
        check(&ready, &[1, 2, 3], Step::Vote(set(&[1, 2, 3])));
        check(&view(&[1, 2, 3], &[], &[]), &[1, 2, 3], Step::Done);
    }

    #[test]
    fn who_leads_hands_over_before_it_goes() {
        let all = [(2, true, 5), (3, true, 0)];
        check(&view(&[1, 2, 3], &[], &all), &[2, 3], Step::Transfer(3));
        // Nobody who stays votes yet.
        check(&view(&[1], &[2], &[(2, true, 0)]), &[2], Step::Vote(set(&[1, 2])));
    }

    #[test]
    fn a_majority_must_answer_afterwards() {
        let others = [(2, false, 0), (3, true, 0)];
        assert!(matches!(next(&view(&[1, 2, 3], &[], &others), &set(&[1, 2])), Step::Refuse(_)));
        check(&view(&[1, 2, 3], &[], &others), &[1, 3], Step::Vote(set(&[1, 3])));
        assert!(matches!(next(&view(&[1, 2], &[], &others), &set(&[])), Step::Refuse(_)));
    }

    #[test]
    fn a_learner_that_is_no_longer_wanted_goes() {
        check(&view(&[1], &[2], &[(2, false, 0)]), &[1], Step::Vote(set(&[1])));
    }

    #[test]
    fn one_change_at_a_time() {
        let changing = View { changing: true, ..view(&[1], &[], &[]) };
        assert!(matches!(next(&changing, &set(&[1, 2])), Step::Wait(_)));
    }
}
