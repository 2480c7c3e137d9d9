//! Whether a history is linearizable.
//!
//! The search is that of Wing and Gong (1993) with the memory of Lowe (2017): operations are
//! tried in the order in which they could have taken effect; a set of operations and the state
//! it leads to is never tried twice. Calls without an answer may be left out.
//!
//! Beyond the plain register, revisions are part of the model: a key's versions have growing
//! revisions in the order in which they took effect, and a reader is told the right one. Where
//! values move between stores they get new, higher revisions on the way, see [`Revisions`].

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use crate::op::{Action, Expect, Id, Op, Outcome};

/// A key's history that no correct store could have given.
#[derive(Debug, Clone)]
pub struct Violation {
    pub key: u32,
    /// All operations of the key by their begin.
    pub ops: Vec<Op>,
    /// The longest part that has an order, in that order: indices into `ops`.
    pub best: Vec<usize>,
    /// The search was given up: there may be an order after all.
    pub undecided: bool,
}

/// Sets of operations that are tried before the search for an order is given up. Unanswered
/// writes double the work each; a history with hundreds of them cannot be decided.
const LIMIT: usize = 2_000_000;

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.undecided { "may not be" } else { "is not" };
        writeln!(f, "key {} {what} linearizable; an order of a part of it:", self.key)?;
        for &index in &self.best {
            writeln!(f, "  {}", self.ops[index])?;
        }
        writeln!(f, "and these have no place in it:")?;
        for (index, op) in self.ops.iter().enumerate() {
            if !self.best.contains(&index) {
                writeln!(f, "  {op}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}

/// What can happen to the revision of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revisions {
    /// It stays that of the write.
    Stay,
    /// It may grow at any time, when the value moves: whoever demanded the old one is refused.
    Grow,
}

/// What a key is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Register {
    live: Option<Live>,
    /// No later version has a revision up to this one.
    newest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Live {
    id: Id,
    /// Unknown until somebody reads what an unanswered write left.
    revision: Option<u64>,
}

impl Register {
    /// The state after `op`, if `op` may have had its answer here.
    fn step(self, op: &Op, revisions: Revisions) -> Option<Self> {
        match (op.action, op.outcome) {
            (Action::Get, Outcome::Found(None)) => self.live.is_none().then_some(self),
            (Action::Get, Outcome::Found(Some(seen))) => {
                self.learn(seen.id, seen.revision, revisions)
            }
            (Action::Get, _) => Some(self),
            (Action::Put { id, expect }, outcome) => {
                self.write(expect, outcome, Some(id), revisions)
            }
            (Action::Delete { expect }, outcome) => self.write(expect, outcome, None, revisions),
        }
    }

    /// The live value is `id`, of `revision`.
    fn learn(self, id: Id, revision: u64, revisions: Revisions) -> Option<Self> {
        let live = self.live.filter(|live| live.id == id)?;
        match live.revision {
            Some(known) if known == revision => Some(self),
            Some(_) if revisions == Revisions::Stay => None,
            Some(_) | None => {
                let live = Some(Live { id, revision: Some(revision) });
                (self.newest < revision).then_some(Self { live, newest: revision })
            }
        }
    }

    fn write(
        self,
        expect: Expect,
        outcome: Outcome,
        id: Option<Id>,
        revisions: Revisions,
    ) -> Option<Self> {
        // What is demanded may say more than was known here.
        let (met, known) = match expect {
            Expect::Absent => (self.live.is_none(), self),
            Expect::Present => (self.live.is_some(), self),
            Expect::Anything => (true, self),
            Expect::Version(seen) => match self.learn(seen.id, seen.revision, revisions) {
                Some(known) => (true, known),
                None => (false, self),
            },
        };
        // A delete of nothing is refused whatever it demands.
        let met = met && (id.is_some() || self.live.is_some());
        match outcome {
            Outcome::Done(revision)
                if met && revision.is_none_or(|revision| known.newest < revision) =>
            {
                let live = id.map(|id| Live { id, revision });
                Some(Self { live, newest: revision.unwrap_or(known.newest) })
            }
            Outcome::Unknown if met => {
                let live = id.map(|id| Live { id, revision: None });
                Some(Self { live, ..known })
            }
            Outcome::Conflict if !met => Some(self),
            // It moved, and nobody was told its new revision yet.
            Outcome::Conflict
                if revisions == Revisions::Grow && matches!(expect, Expect::Version(_)) =>
            {
                let live = self.live.map(|live| Live { revision: None, ..live });
                Some(Self { live, newest: known.newest })
            }
            _ => None,
        }
    }
}

/// Checks every key on its own. The first key that has no order is the answer.
pub fn check(ops: &[Op], revisions: Revisions) -> Result<(), Box<Violation>> {
    let mut keys: BTreeMap<u32, Vec<Op>> = BTreeMap::new();
    for op in ops {
        // A get without an answer says nothing.
        if (op.action, op.outcome) != (Action::Get, Outcome::Unknown) {
            keys.entry(op.key).or_default().push(op.clone());
        }
    }
    for (key, mut ops) in keys {
        ops.sort_by_key(|op| op.begin);
        if let Err((best, undecided)) = check_key(&ops, revisions) {
            return Err(Box::new(Violation { key, ops, best, undecided }));
        }
    }
    Ok(())
}

/// A moment in a key's history: a call, or the answer to one.
#[derive(Debug, Clone, Copy)]
struct Moment {
    op: usize,
    is_answer: bool,
}

/// A list of moments out of which any can be taken and put back, in O(1).
struct Moments {
    moments: Vec<Moment>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// Where each operation's call and answer are; an unanswered one has no answer.
    of_op: Vec<(usize, Option<usize>)>,
}

/// The list's two ends are one extra place.
const END: usize = 0;

impl Moments {
    fn new(ops: &[Op]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            times.push((op.begin, false, index));
            if op.outcome != Outcome::Unknown {
                times.push((op.end, true, index));
            }
        }
        // Of a call and an answer at the same time, the call comes first: they overlap.
        times.sort_unstable();
        let mut moments = vec![Moment { op: usize::MAX, is_answer: false }];
        let mut of_op = vec![(END, None); ops.len()];
        for (_, is_answer, op) in times {
            match is_answer {
                true => of_op[op].1 = Some(moments.len()),
                false => of_op[op].0 = moments.len(),
            }
            moments.push(Moment { op, is_answer });
        }
        let count = moments.len();
        let next = (0..count).map(|at| (at + 1) % count).collect();
        let before = (0..count).map(|at| (at + count - 1) % count).collect();
        Self { moments, next, before, of_op }
    }

    /// The operations that began before the first answer that is still to come: one of them is
    /// next. Answered ones come first, since most of the others never happened.
    fn candidates(&self, ops: &[Op], twins: &Twins) -> Vec<usize> {
        let (mut found, mut unanswered) = (Vec::new(), Vec::new());
        let mut classes = HashSet::new();
        let mut at = self.next[END];
        while at != END && !self.moments[at].is_answer {
            let op = self.moments[at].op;
            match twins.class[op] {
                _ if ops[op].outcome != Outcome::Unknown => found.push(op),
                Some(class) if !classes.insert(class) => {}
                _ => unanswered.push(op),
            }
            at = self.next[at];
        }
        found.append(&mut unanswered);
        found
    }

    fn unlink(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = next;
        self.before[next] = before;
    }

    fn relink(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = at;
        self.before[next] = at;
    }

    fn take(&mut self, op: usize) {
        let (call, answer) = self.of_op[op];
        self.unlink(call);
        if let Some(answer) = answer {
            self.unlink(answer);
        }
    }

    fn put_back(&mut self, op: usize) {
        let (call, answer) = self.of_op[op];
        if let Some(answer) = answer {
            self.relink(answer);
        }
        self.relink(call);
    }
}

/// Unanswered writes of values that nobody ever saw: those that demand the same are as good as each
/// other, so that only the first of them is tried at any time.
struct Twins {
    /// For each operation: its class, if it is such a write.
    class: Vec<Option<usize>>,
}

/// In the place of every value that nobody ever saw.
const UNSEEN: Id = Id::MAX;

impl Twins {
    /// Finds them, and makes their values the same.
    fn find(ops: &mut [Op]) -> Self {
        let seen: HashSet<Id> = ops
            .iter()
            .flat_map(|op| {
                let demanded = match op.action {
                    Action::Put { expect: Expect::Version(seen), .. }
                    | Action::Delete { expect: Expect::Version(seen) } => Some(seen.id),
                    _ => None,
                };
                let found = match op.outcome {
                    Outcome::Found(Some(seen)) => Some(seen.id),
                    _ => None,
                };
                [demanded, found]
            })
            .flatten()
            .collect();
        let mut classes: Vec<Action> = Vec::new();
        let class = ops.iter_mut().map(|op| {
            if op.outcome != Outcome::Unknown {
                return None;
            }
            if let Action::Put { id, .. } = &mut op.action {
                if seen.contains(id) {
                    return None;
                }
                *id = UNSEEN;
            }
            let known = classes.iter().position(|action| *action == op.action);
            Some(known.unwrap_or_else(|| {
                classes.push(op.action);
                classes.len() - 1
            }))
        });
        Self { class: class.collect() }
    }
}

/// A choice of the search: the operations that can be next, and how many of them were tried.
struct Choice {
    candidates: Vec<usize>,
    tried: usize,
    state: Register,
}

/// Finds an order of all answered operations of one key, or the longest part that has one and
/// whether the search was given up.
fn check_key(ops: &[Op], revisions: Revisions) -> Result<(), (Vec<usize>, bool)> {
    let mut ops = ops.to_vec();
    let twins = Twins::find(&mut ops);
    let ops = ops.as_slice();
    let mut moments = Moments::new(ops);
    let answered = |op: usize| ops[op].outcome != Outcome::Unknown;
    let mut missing = (0..ops.len()).filter(|op| answered(*op)).count();
    let mut taken = vec![0_u64; ops.len().div_ceil(64)];
    let mut tried: HashSet<(Vec<u64>, Register)> = HashSet::new();
    let mut order: Vec<usize> = Vec::new();
    let mut best: Vec<usize> = Vec::new();
    let first = Register::default();
    let mut choices =
        vec![Choice { candidates: moments.candidates(ops, &twins), tried: 0, state: first }];
    while missing != 0 {
        if LIMIT < tried.len() {
            return Err((best, true));
        }
        let Some(choice) = choices.last_mut() else { return Err((best, false)) };
        let Some(&op) = choice.candidates.get(choice.tried) else {
            // Nothing can be next: an earlier choice was wrong.
            if best.len() < order.len() {
                best.clone_from(&order);
            }
            choices.pop();
            if let Some(op) = order.pop() {
                taken[op / 64] &= !(1 << (op % 64));
                missing += usize::from(answered(op));
                moments.put_back(op);
            }
            continue;
        };
        choice.tried += 1;
        let Some(state) = choice.state.step(&ops[op], revisions) else { continue };
        taken[op / 64] |= 1 << (op % 64);
        if !tried.insert((taken.clone(), state)) {
            taken[op / 64] &= !(1 << (op % 64));
            continue;
        }
        missing -= usize::from(answered(op));
        moments.take(op);
        order.push(op);
        choices.push(Choice { candidates: moments.candidates(ops, &twins), tried: 0, state });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::op::Seen;

    fn op(begin: u64, end: u64, action: Action, outcome: Outcome) -> Op {
        Op { client: 0, key: 0, begin, end, action, outcome }
    }

    fn put(begin: u64, end: u64, id: Id, expect: Expect, outcome: Outcome) -> Op {
        op(begin, end, Action::Put { id, expect }, outcome)
    }

    fn get(begin: u64, end: u64, seen: Option<(Id, u64)>) -> Op {
        let seen = seen.map(|(id, revision)| Seen { id, revision });
        op(begin, end, Action::Get, Outcome::Found(seen))
    }

    fn seen(id: Id, revision: u64) -> Expect {
        Expect::Version(Seen { id, revision })
    }

    #[track_caller]
    fn good(ops: &[Op]) {
        if let Err(violation) = check(ops, Revisions::Stay) {
            panic!("{violation}");
        }
    }

    #[track_caller]
    fn bad(ops: &[Op]) {
        assert!(check(ops, Revisions::Stay).is_err(), "this has no order");
    }

    #[test]
    fn what_one_client_does_is_in_order() {
        good(&[
            get(0, 1, None),
            put(2, 3, 1, Expect::Absent, Outcome::Done(Some(5))),
            put(4, 5, 2, Expect::Absent, Outcome::Conflict),
            put(6, 7, 3, seen(1, 5), Outcome::Done(Some(6))),
            put(8, 9, 4, seen(1, 5), Outcome::Conflict),
            get(10, 11, Some((3, 6))),
            op(12, 13, Action::Delete { expect: seen(3, 6) }, Outcome::Done(Some(9))),
            op(14, 15, Action::Delete { expect: Expect::Anything }, Outcome::Conflict),
            get(16, 17, None),
        ]);
    }

    #[test]
    fn a_lost_write_is_found() {
        bad(&[put(0, 1, 1, Expect::Absent, Outcome::Done(Some(5))), get(2, 3, None)]);
    }

    #[test]
    fn a_stale_read_is_found() {
        let first = put(0, 1, 1, Expect::Anything, Outcome::Done(Some(1)));
        let second = put(2, 3, 2, Expect::Anything, Outcome::Done(Some(2)));
        bad(&[first.clone(), second.clone(), get(4, 5, Some((1, 1)))]);
        // While the second was on its way, either is right.
        good(&[first, second, get(2, 5, Some((1, 1)))]);
    }

    #[test]
    fn a_read_that_goes_back_is_found() {
        let first = put(0, 1, 1, Expect::Anything, Outcome::Done(Some(1)));
        let second = put(2, 9, 2, Expect::Anything, Outcome::Done(Some(2)));
        bad(&[first, second, get(3, 4, Some((2, 2))), get(5, 6, Some((1, 1)))]);
    }

    #[test]
    fn a_write_that_was_accepted_twice_is_found() {
        let both = |first, second| {
            [
                put(0, 1, 1, Expect::Absent, Outcome::Done(Some(1))),
                put(2, 5, 2, seen(1, 1), first),
                put(3, 6, 3, seen(1, 1), second),
            ]
        };
        bad(&both(Outcome::Done(Some(2)), Outcome::Done(Some(3))));
        good(&both(Outcome::Conflict, Outcome::Done(Some(3))));
    }

    #[test]
    fn no_answer_means_maybe_and_any_time_later() {
        let unknown = |begin| put(begin, 0, 7, Expect::Anything, Outcome::Unknown);
        good(&[unknown(0), get(1, 2, None), get(3, 4, Some((7, 8))), get(5, 6, Some((7, 8)))]);
        good(&[unknown(0), get(1, 2, None), get(3, 4, None)]);
        bad(&[get(1, 2, Some((7, 8))), unknown(3)]);
        // It took effect once, not twice.
        let other = put(3, 4, 1, Expect::Anything, Outcome::Done(Some(9)));
        bad(&[unknown(0), get(1, 2, Some((7, 8))), other, get(5, 6, Some((7, 8)))]);
    }

    #[test]
    fn revisions_are_part_of_it() {
        let first = put(0, 1, 1, Expect::Anything, Outcome::Done(Some(5)));
        bad(&[first.clone(), get(2, 3, Some((1, 6)))]);
        bad(&[first.clone(), put(2, 3, 2, Expect::Anything, Outcome::Done(Some(5)))]);
        bad(&[first.clone(), put(2, 3, 2, Expect::Anything, Outcome::Done(Some(4)))]);
        let gone = op(2, 3, Action::Delete { expect: Expect::Anything }, Outcome::Done(Some(8)));
        bad(&[first, gone, put(4, 5, 2, Expect::Absent, Outcome::Done(Some(7)))]);
    }

    #[test]
    fn values_that_move_get_higher_revisions() {
        let first = put(0, 1, 1, Expect::Absent, Outcome::Done(Some(5)));
        let moved = [first.clone(), get(2, 3, Some((1, 5))), get(4, 5, Some((1, 9)))];
        assert!(check(&moved, Revisions::Grow).is_ok());
        assert!(check(&moved, Revisions::Stay).is_err());
        let back = [first.clone(), get(2, 3, Some((1, 9))), get(4, 5, Some((1, 5)))];
        assert!(check(&back, Revisions::Grow).is_err());
        let refused = put(2, 3, 2, seen(1, 5), Outcome::Conflict);
        let again = put(4, 5, 3, seen(1, 5), Outcome::Done(Some(12)));
        let once = [first.clone(), refused.clone(), get(4, 5, Some((1, 9)))];
        assert!(check(&once, Revisions::Grow).is_ok());
        assert!(check(&once, Revisions::Stay).is_err());
        // It cannot have moved and not have moved.
        assert!(check(&[first, refused, again], Revisions::Grow).is_err());
    }

    #[test]
    fn many_clients_on_one_key_are_checked_in_time() {
        // All at once: only the memory of what was tried makes this end.
        let mut ops: Vec<Op> = (1..=12)
            .map(|id| put(0, 1000, id, Expect::Anything, Outcome::Done(Some(id))))
            .collect();
        ops.push(get(1001, 1002, Some((12, 12))));
        good(&ops);
        ops.push(get(1003, 1004, Some((11, 11))));
        bad(&ops);
    }

    #[test]
    fn an_outage_with_many_unanswered_writes_is_decided() {
        let mut ops = vec![put(0, 1, 1, Expect::Absent, Outcome::Done(Some(1)))];
        for id in 2..80 {
            let expect = match id % 4 {
                0 => seen(1, 1),
                1 => Expect::Absent,
                2 => Expect::Present,
                _ => Expect::Anything,
            };
            ops.push(put(10 + id, 0, id, expect, Outcome::Unknown));
        }
        ops.push(get(200, 201, Some((1, 1))));
        good(&ops);
        ops.push(get(202, 203, Some((40, 50))));
        ops.push(get(204, 205, Some((40, 50))));
        good(&ops);
        ops.push(get(206, 207, Some((1, 1))));
        bad(&ops);
    }

    /// A store that is right by construction, and clients whose calls overlap at random.
    fn simulate(choices: &[(u8, u8, u8)]) -> Vec<Op> {
        let (mut live, mut revision): (Option<Seen>, u64) = (None, 0);
        let mut known: Vec<Option<Seen>> = vec![None; 4];
        let mut ops = Vec::new();
        for (at, (client, what, slack)) in choices.iter().enumerate() {
            let client = usize::from(*client % 4);
            // It takes effect at `now`; begin and end lie around.
            let now = 100 * (at as u64 + 1);
            let (begin, end) = (now - u64::from(slack % 90), now + u64::from(slack / 2));
            let id = at as u64 + 1;
            let expect = match what % 4 {
                0 => Expect::Absent,
                1 => Expect::Anything,
                2 => Expect::Present,
                _ => known[client].map_or(Expect::Absent, Expect::Version),
            };
            let met = match expect {
                Expect::Absent => live.is_none(),
                Expect::Anything => true,
                Expect::Present => live.is_some(),
                Expect::Version(seen) => live == Some(seen),
            };
            let (action, outcome) = match what / 4 % 4 {
                0 => {
                    known[client] = live;
                    (Action::Get, Outcome::Found(live))
                }
                1 | 2 if met => {
                    revision += 1;
                    live = Some(Seen { id, revision });
                    (Action::Put { id, expect }, Outcome::Done(Some(revision)))
                }
                1 | 2 => (Action::Put { id, expect }, Outcome::Conflict),
                _ if met && live.is_some() => {
                    revision += 1;
                    live = None;
                    (
                        Action::Delete { expect },
                        Outcome::Done(what.is_multiple_of(3).then_some(revision)),
                    )
                }
                _ => (Action::Delete { expect }, Outcome::Conflict),
            };
            let lost = what / 16 % 8 == 0 && action != Action::Get;
            let outcome =
                if lost && outcome != Outcome::Conflict { Outcome::Unknown } else { outcome };
            ops.push(Op { client: client as u32, key: 0, begin, end, action, outcome });
        }
        ops
    }

    proptest! {
        #[test]
        fn right_histories_are_accepted(choices in prop::collection::vec(any::<(u8, u8, u8)>(), 1..60)) {
            if let Err(violation) = check(&simulate(&choices), Revisions::Stay) {
                prop_assert!(false, "{violation}");
            }
        }

        /// A read that is turned into one of a value that was gone before it began.
        #[test]
        fn wrong_reads_are_found(choices in prop::collection::vec(any::<(u8, u8, u8)>(), 4..60)) {
            let mut ops = simulate(&choices);
            let done: Vec<(u64, Seen)> = ops.iter().filter_map(|op| match (op.action, op.outcome) {
                (Action::Put { id, .. }, Outcome::Done(Some(revision))) => Some((op.end, Seen { id, revision })),
                _ => None,
            }).collect();
            // The value before the last: whatever came after it ended before the end of time.
            prop_assume!(2 <= done.len());
            let end = ops.iter().map(|op| op.end).max().unwrap_or(0);
            let stale = done[done.len() - 2].1;
            ops.push(Op { client: 9, key: 0, begin: end + 1, end: end + 2, action: Action::Get, outcome: Outcome::Found(Some(stale)) });
            prop_assert!(check(&ops, Revisions::Stay).is_err());
        }
    }
}
