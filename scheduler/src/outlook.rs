//! Where pods of one shape can go, kept from one decision to the next.
//!
//! A decision changes one row. So verdicts and scores that are made of single rows are kept, and
//! only those of rows that changed are made again; the best row is at the top of a tree. What is
//! made of several rows (affinity, spread, volumes, scores that are scaled) is gone over for every
//! decision, but only on rows that are left.

use std::sync::Arc;

use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::{
    best::Best,
    framework::{Depends, Rate, Room, Verdict},
    passes::Passes,
    pod::Shape,
    profile::Profile,
    storage::Work,
    world::World,
};

/// Nodes of which it is said why they refuse a pod with those that were promised room there; with
/// more, it is said without.
const MAX_PROMISES: usize = 64;

/// What came of looking for a node.
#[derive(Debug, Clone)]
pub(crate) enum Decision {
    Take { row: usize, work: Work },
    None(Failure),
}

/// No node will do.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) message: Arc<str>,
    /// The filters that refused some node, as a set of their places.
    pub(crate) refused_by: u128,
    /// What the pod is promised from now on; `None` if that does not change.
    pub(crate) promise: Option<Promise>,
    /// A claim that would better have other devices, and that nobody uses.
    pub(crate) to_free: Option<Arc<Tenanted<ResourceClaim>>>,
}

/// A node on which there will be room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Promise {
    Nothing,
    Here { row: usize, victims: Vec<ObjectKey> },
}

/// What a failure was found in: while this is the same, so is the failure.
type Stamp = (u64, [u64; 6], u64, u64);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Outlook {
    pub(crate) shape: Arc<Shape>,
    version: Option<[u64; 6]>,
    passes: Passes,
    /// Scores of single rows, with their weights, and the others.
    of_rows: Vec<(i64, Box<dyn Rate>)>,
    of_all: Vec<(i64, Box<dyn Rate>)>,
    /// Changes of rows that are read, of those there have been.
    n_read: Option<u64>,
    verdicts: Vec<Verdict>,
    scores: Vec<i64>,
    best: Option<Best>,
    failure: Option<(Stamp, Failure)>,
}

impl Outlook {
    pub(crate) fn new(shape: Arc<Shape>) -> Self {
        Self {
            shape,
            version: None,
            passes: Passes::default(),
            of_rows: Vec::new(),
            of_all: Vec::new(),
            n_read: None,
            verdicts: Vec::new(),
            scores: Vec::new(),
            best: None,
            failure: None,
        }
    }

    /// Bytes that this takes, about.
    pub(crate) fn size(&self) -> usize {
        self.verdicts.len() * 80 + 1024
    }

    fn stamp(&self, world: &World) -> Stamp {
        let (nominations, budgets) = (world.nominations.version(), world.budgets.version());
        (world.nodes.changes.end(), world.version(&self.shape), nominations, budgets)
    }

    /// Decides for one pod of this shape. Of equally good nodes `tie` chooses.
    pub(crate) fn decide(
        &mut self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
        tie: usize,
    ) -> Decision {
        let is_nominated = world.nominations.of(key).is_some();
        if !is_nominated
            && let Some((stamp, failure)) = &self.failure
            && *stamp == self.stamp(world)
        {
            return Decision::None(failure.clone());
        }
        self.failure = None;
        if world.nodes.len() == 0 {
            return Decision::None(Failure {
                message: "no nodes available to schedule pods".into(),
                refused_by: u128::MAX,
                promise: None,
                to_free: None,
            });
        }
        self.prepare(profile, world);
        if let Some((place, reason)) = self.passes.refusal().cloned() {
            let message = format!("0/{} nodes are available: {reason}.", world.nodes.len());
            return self.fail(profile, world, key, message, 1 << place, &[], tie);
        }
        self.catch_up(world);
        let mut blocked: Vec<(usize, Verdict)> = Vec::new();
        let mut verdicts = Vec::new();
        let found = if self.passes.is_of_rows() && self.of_all.is_empty() {
            self.top(profile, world, key, tie, &mut blocked)
        } else {
            self.best = None;
            self.go_over(profile, world, key, tie, &mut blocked, &mut verdicts)
        };
        if let Some(row) = found {
            let work = self.passes.work(world, row);
            return Decision::Take { row, work };
        }
        if verdicts.is_empty() {
            verdicts.clone_from(&self.verdicts);
        }
        for (row, verdict) in blocked {
            verdicts[row] = verdict;
        }
        // What is said of a node takes into account who was promised room there.
        let promised: Vec<usize> = world.nominations.rows().take(MAX_PROMISES).collect();
        for row in promised {
            if verdicts.get(row).is_some_and(|it| it.refusal().is_some())
                && let Some(verdict) = self.with_nominated(profile, world, key, row)
            {
                verdicts[row] = verdict;
            }
        }
        let (told, refused_by) = self.passes.told(verdicts.iter().copied());
        let message = format!("0/{} nodes are available: {told}.", world.nodes.len());
        self.fail(profile, world, key, message, refused_by, &verdicts, tie)
    }

    /// Has filters and scores prepare again, if what they prepared is void.
    fn prepare(&mut self, profile: &Profile, world: &mut World) {
        if self.version == Some(world.version(&self.shape)) {
            return;
        }
        let kept = self.passes.kept();
        self.passes = Passes::prepare(profile, world, &self.shape);
        let n_of_rows = self.of_rows.len();
        self.of_rows.clear();
        self.of_all.clear();
        for (weight, score) in &profile.scores {
            match score.prepare(world, &self.shape) {
                Some(rate) if rate.depends() == Depends::World => self.of_all.push((*weight, rate)),
                Some(rate) => self.of_rows.push((*weight, rate)),
                None => (),
            }
        }
        if kept != self.passes.kept() || n_of_rows != self.of_rows.len() {
            self.n_read = None;
        }
        self.version = Some(world.version(&self.shape));
    }

    /// Makes verdicts and scores of rows again that changed since the last decision.
    fn catch_up(&mut self, world: &World) {
        let n_rows = world.nodes.n_rows();
        let changes = &world.nodes.changes;
        let new = self.n_read.and_then(|n_read| changes.since(n_read));
        self.n_read = Some(changes.end());
        let Some(new) = new else {
            self.best = None;
            self.verdicts.clear();
            self.verdicts.resize(n_rows, Verdict::NO_NODE);
            self.scores.clear();
            self.scores.resize(n_rows, 0);
            for row in world.nodes.rows() {
                self.look_at(world, row, true);
            }
            return;
        };
        self.verdicts.resize(n_rows, Verdict::NO_NODE);
        self.scores.resize(n_rows, 0);
        if self.best.as_ref().is_some_and(|it| it.n_rows() < n_rows) {
            self.best = None;
        }
        for change in new {
            self.look_at(world, change.row, change.is_node);
        }
    }

    fn look_at(&mut self, world: &World, row: usize, is_node: bool) {
        let verdict = if world.nodes.is_there(row) {
            let before = self.verdicts[row];
            let before = (!is_node && before != Verdict::NO_NODE).then_some(before);
            self.passes.check_row(world, row, before)
        } else {
            Verdict::NO_NODE
        };
        self.verdicts[row] = verdict;
        if verdict.is_feasible() {
            let rated = self.of_rows.iter().map(|(weight, it)| weight * it.rate(world, row));
            self.scores[row] = rated.sum::<i64>() + world.nodes.head_start(row);
        }
        if let Some(best) = &mut self.best {
            best.set(row, verdict.is_feasible().then_some(self.scores[row]));
        }
    }

    /// The verdict on a row if the pods nominated for it were there, if there are any that count.
    fn with_nominated(
        &self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
        row: usize,
    ) -> Option<Verdict> {
        let nominated = world.nominations.before(row, key, &self.shape);
        if nominated.is_empty() {
            return None;
        }
        nominated.iter().for_each(|it| world.add(row, it, 1));
        let verdict = Passes::prepare(profile, world, &self.shape).check(world, row);
        nominated.iter().for_each(|it| world.add(row, it, -1));
        Some(verdict).filter(|it| !it.is_feasible())
    }

    /// The best row, if all there is to know is kept.
    fn top(
        &mut self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
        tie: usize,
        blocked: &mut Vec<(usize, Verdict)>,
    ) -> Option<usize> {
        let mut best = match self.best.take() {
            Some(best) => best,
            None => {
                let scores = self.verdicts.iter().zip(&self.scores);
                Best::of(scores.map(|(verdict, score)| verdict.is_feasible().then_some(*score)))
            }
        };
        let mut found = best.pick(tie);
        if !world.nominations.is_empty() {
            while let Some(row) = found
                && let Some(verdict) = self.with_nominated(profile, world, key, row)
            {
                blocked.push((row, verdict));
                best.set(row, None);
                found = best.pick(tie);
            }
            for (row, _) in blocked {
                best.set(*row, Some(self.scores[*row]));
            }
        }
        self.best = Some(best);
        found
    }

    /// The best row, by going over all that are left.
    fn go_over(
        &mut self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
        tie: usize,
        blocked: &mut Vec<(usize, Verdict)>,
        verdicts: &mut Vec<Verdict>,
    ) -> Option<usize> {
        let (rows, totals) = self.rate(profile, world, key, blocked, verdicts);
        let highest = totals.iter().copied().max()?;
        let n_best = totals.iter().filter(|it| **it == highest).count();
        let mut best = rows.iter().zip(&totals).filter(|(_, total)| **total == highest);
        best.nth(tie % n_best).map(|(row, _)| *row)
    }

    /// The rows that are left when all has been gone over, with their scores.
    fn rate(
        &mut self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
        blocked: &mut Vec<(usize, Verdict)>,
        verdicts: &mut Vec<Verdict>,
    ) -> (Vec<usize>, Vec<i64>) {
        verdicts.clone_from(&self.verdicts);
        if !world.nominations.is_empty() {
            let rows: Vec<usize> = world.nominations.rows().collect();
            for row in rows {
                if verdicts.get(row).is_some_and(|it| it.is_feasible())
                    && let Some(verdict) = self.with_nominated(profile, world, key, row)
                {
                    blocked.push((row, verdict));
                    verdicts[row] = verdict;
                }
            }
        }
        self.passes.begin(world);
        let mut rows: Vec<usize> =
            (0..verdicts.len()).filter(|row| verdicts[*row].is_feasible()).collect();
        self.passes.go_over(world, &mut rows, verdicts);
        let mut totals: Vec<i64> = rows.iter().map(|row| self.scores[*row]).collect();
        let mut scores = vec![0_i64; rows.len()];
        if 1 < rows.len() {
            for (weight, rate) in &self.of_all {
                rate.go_over(world, &rows, &mut scores);
                for (total, score) in totals.iter_mut().zip(&scores) {
                    *total += weight * score;
                }
            }
        }
        (rows, totals)
    }

    /// The scores of all nodes that will do, after a decision.
    #[cfg(test)]
    pub(crate) fn totals(
        &mut self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
    ) -> Vec<(String, i64)> {
        let (rows, totals) = self.rate(profile, world, key, &mut Vec::new(), &mut Vec::new());
        let names = rows.iter().map(|row| world.nodes.name(*row).to_owned());
        names.zip(totals).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "all of them are what was found")]
    fn fail(
        &mut self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
        message: String,
        refused_by: u128,
        verdicts: &[Verdict],
        tie: usize,
    ) -> Decision {
        let to_free = self.passes.to_free(verdicts);
        let of_claims = match (&to_free, profile.gives_devices()) {
            (Some(_), _) => "deallocation of ResourceClaim completed, ",
            (None, true) => "no new claims to deallocate, ",
            (None, false) => "",
        };
        let Some(post_filter) = &profile.post_filter else {
            let of_claims = of_claims.trim_end_matches(", ");
            let message = format!("{message} {of_claims}").trim_end().to_owned();
            let promise = None;
            let failure = Failure { message: message.into(), refused_by, promise, to_free };
            self.failure = Some((self.stamp(world), failure.clone()));
            return Decision::None(failure);
        };
        let pod = (key, &self.shape);
        let (message, promise) =
            match post_filter.make_room(world, pod, verdicts, &mut self.passes, tie) {
                Room::None(why) => {
                    (format!("{message} {of_claims}preemption: {why}"), Some(Promise::Nothing))
                }
                Room::Wait(why) => (format!("{message} {of_claims}preemption: {why}"), None),
                Room::Here { row, victims } => (message, Some(Promise::Here { row, victims })),
            };
        let failure = Failure { message: message.into(), refused_by, promise, to_free };
        if !matches!(failure.promise, Some(Promise::Here { .. }))
            && world.nominations.of(key).is_none()
        {
            self.failure = Some((self.stamp(world), failure.clone()));
        }
        Decision::None(failure)
    }
}
