//! Where pods of one shape can go, kept from one decision to the next.
//!
//! Verdicts and scores that are made of single rows are kept, in a [table](crate::tables) that
//! shapes share. If that is all there is to know, the best row is at the top of a tree; what is
//! made of several rows (affinity, spread, scores that are scaled) is found out for every decision,
//! of one row of each [kind](crate::kinds) if kinds are known, or else (volumes, devices) of all
//! rows that are left. Here is kept what is the shape's own: what filters and scores prepared for
//! it, and why it found nothing.

use std::sync::Arc;

use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::{
    alike::Alike,
    framework::{Depends, Rate, Room, Verdict, add_scores},
    kinds::Choice,
    passes::Passes,
    pod::{Shape, Shapes},
    profile::Profile,
    storage::Work,
    tables::{Ground, Table, Tables},
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
    /// What the table of single rows is made of.
    ground: Option<Ground>,
    /// What rows are told apart by beside that, if it is known.
    alike: Option<Alike>,
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
            ground: None,
            alike: None,
            failure: None,
        }
    }

    /// What its tables are made of.
    pub(crate) fn ground(&self) -> Option<(&Ground, Option<&Alike>)> {
        Some((self.ground.as_ref()?, self.alike.as_ref()))
    }

    fn stamp(&self, world: &World) -> Stamp {
        let (nominations, budgets) = (world.nominations.version(), world.budgets.version());
        (world.nodes.changes.end(), world.version(&self.shape), nominations, budgets)
    }

    /// What was found last, if nothing has changed since.
    fn known_failure(&self, world: &World, key: &ObjectKey) -> Option<&Failure> {
        let (stamp, failure) = self.failure.as_ref()?;
        let holds = world.nominations.of(key).is_none() && *stamp == self.stamp(world);
        holds.then_some(failure)
    }

    /// Decides for one pod of this shape. Of equally good nodes `tie` chooses.
    pub(crate) fn decide(
        &mut self,
        profile: &Profile,
        (world, shapes): (&mut World, &mut Shapes),
        tables: &mut Tables,
        key: &ObjectKey,
        tie: usize,
    ) -> Decision {
        if let Some(failure) = self.known_failure(world, key) {
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
        self.prepare(profile, world, shapes);
        if let Some((place, reason)) = self.passes.refusal().cloned() {
            let message = format!("0/{} nodes are available: {reason}.", world.nodes.len());
            return self.fail(profile, world, key, message, 1 << place, &[], tie);
        }
        let mut blocked: Vec<(usize, Verdict)> = Vec::new();
        let mut verdicts = Vec::new();
        let found = if let Some(ground) = self.ground.as_ref()
            && self.passes.is_of_rows()
            && self.of_all.is_empty()
        {
            let table = tables.get(ground, world, &self.passes, &self.of_rows);
            let found = self.top(profile, world, key, tie, table, &mut blocked);
            if found.is_none() {
                verdicts.extend_from_slice(table.verdicts());
            }
            found
        } else {
            let found = self.among_kinds(profile, world, tables, key, tie);
            found.or_else(|| self.go_over(profile, world, tables, key, tie, &mut verdicts))
        };
        if let Some(row) = found {
            let work = self.passes.work(world, row);
            return Decision::Take { row, work };
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
        // What they alone ask for has its reasons only if it was known of.
        self.prepare(profile, world, shapes);
        let (told, refused_by) = self.passes.told(verdicts.iter().copied());
        let message = format!("0/{} nodes are available: {told}.", world.nodes.len());
        self.fail(profile, world, key, message, refused_by, &verdicts, tie)
    }

    /// Has filters and scores prepare again, if what they prepared is void.
    fn prepare(&mut self, profile: &Profile, world: &mut World, shapes: &mut Shapes) {
        if self.version == Some(world.version(&self.shape)) {
            return;
        }
        self.passes = Passes::prepare(profile, world, &self.shape);
        self.of_rows.clear();
        self.of_all.clear();
        let mut part = Shape::blank(&profile.name);
        let filters = self.passes.kept(&self.shape, &mut part);
        let mut scores = Vec::new();
        for (place, (weight, score)) in (0..).zip(&profile.scores) {
            match score.prepare(world, &self.shape) {
                Some(rate) if rate.depends() == Depends::World => self.of_all.push((*weight, rate)),
                Some(rate) => {
                    rate.reads(&self.shape, &mut part);
                    self.of_rows.push((*weight, rate));
                    scores.push(place);
                }
                None => (),
            }
        }
        let ground = || Ground { part: shapes.shared(part), filters, scores };
        self.ground = (!self.passes.is_named()).then(ground);
        let of_scores = self.of_all.iter().map(|(_, rate)| rate.alike(world));
        let marks: Option<Vec<_>> = of_scores.chain([self.passes.alike(world)]).collect();
        self.alike = marks.map(|it| Alike::new(world, &self.shape.tenant, it.concat()));
        self.version = Some(world.version(&self.shape));
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

    /// The best row, if all there is to know is in the table.
    fn top(
        &self,
        profile: &Profile,
        world: &mut World,
        key: &ObjectKey,
        tie: usize,
        table: &mut Table,
        blocked: &mut Vec<(usize, Verdict)>,
    ) -> Option<usize> {
        let best = &mut table.best;
        let mut found = best.pick(tie);
        if world.nominations.is_empty() {
            return found;
        }
        let mut aside = Vec::new();
        while let Some(row) = found
            && let Some(verdict) = self.with_nominated(profile, world, key, row)
        {
            blocked.push((row, verdict));
            aside.push((row, best.score(row)));
            best.set(row, None);
            found = best.pick(tie);
        }
        for (row, score) in aside {
            best.set(row, score);
        }
        found
    }

    /// The rows that pods nominated for them keep this one from, of those that are left.
    fn kept_by_nominated(
        &self,
        profile: &Profile,
        world: &mut World,
        tables: &mut Tables,
        ground: &Ground,
        key: &ObjectKey,
    ) -> Vec<usize> {
        if world.nominations.is_empty() {
            return Vec::new();
        }
        let table = tables.get(ground, world, &self.passes, &self.of_rows);
        let nominated = world.nominations.rows();
        let mut rows: Vec<usize> =
            nominated.filter(|row| table.best.score(*row).is_some()).collect();
        rows.sort_unstable();
        rows.retain(|row| self.with_nominated(profile, world, key, *row).is_some());
        rows
    }

    /// The best row, by going over one of each kind. `None` also if kinds are not known.
    fn among_kinds(
        &mut self,
        profile: &Profile,
        world: &mut World,
        tables: &mut Tables,
        key: &ObjectKey,
        tie: usize,
    ) -> Option<usize> {
        let (ground, alike) = (self.ground.as_ref()?, self.alike.as_ref()?);
        let kept = self.kept_by_nominated(profile, world, tables, ground, key);
        self.passes.begin(world);
        let mut choice = tables.kinds((ground, alike), world, &self.passes, &self.of_rows);
        kept.iter().for_each(|row| choice.leave_out(*row));
        let found = self.best_of(&choice, tie);
        kept.iter().for_each(|row| choice.put_back(*row));
        found
    }

    fn best_of(&self, choice: &Choice<'_>, tie: usize) -> Option<usize> {
        let world = choice.world;
        let mut all = choice.candidates();
        all.retain(|it| self.passes.has(world, it.nth(0)));
        let rows: Vec<usize> = all.iter().map(|it| it.nth(0)).collect();
        let n_alike: Vec<usize> = all.iter().map(|it| it.n_rows).collect();
        let mut totals: Vec<i64> = all.iter().map(|it| it.score).collect();
        // As where all rows are gone over: one that is alone is not scored.
        if 1 < n_alike.iter().sum::<usize>() {
            add_scores(&self.of_all, world, &rows, &n_alike, &mut totals);
        }
        let highest = *totals.iter().max()?;
        let best = || all.iter().zip(&totals).filter(|(_, it)| **it == highest).map(|(it, _)| it);
        let mut n = tie % best().map(|it| it.n_best).sum::<usize>().max(1);
        for it in best() {
            if n < it.n_best {
                return Some(it.nth(n));
            }
            n -= it.n_best;
        }
        None
    }

    /// The best row, by going over all that are left.
    fn go_over(
        &mut self,
        profile: &Profile,
        world: &mut World,
        tables: &mut Tables,
        key: &ObjectKey,
        tie: usize,
        verdicts: &mut Vec<Verdict>,
    ) -> Option<usize> {
        let (rows, totals) = self.rate(profile, world, tables, key, verdicts);
        let highest = totals.iter().copied().max()?;
        let n_best = totals.iter().filter(|it| **it == highest).count();
        let mut best = rows.iter().zip(&totals).filter(|(_, total)| **total == highest);
        best.nth(tie % n_best).map(|(row, _)| *row)
    }

    /// The rows that single rows say nothing against, with what these make of their scores.
    fn left(
        &self,
        world: &World,
        tables: &mut Tables,
        verdicts: &mut Vec<Verdict>,
    ) -> Vec<(usize, i64)> {
        let Some(ground) = &self.ground else {
            let rows = self.passes.named(world, verdicts).unwrap_or_default();
            let rated = rows.into_iter().map(|row| {
                let rated = self.of_rows.iter().map(|(weight, it)| weight * it.rate(world, row));
                (row, rated.sum::<i64>() + world.nodes.head_start(row))
            });
            return rated.collect();
        };
        let table = tables.get(ground, world, &self.passes, &self.of_rows);
        verdicts.clear();
        verdicts.extend_from_slice(table.verdicts());
        table.best.rows().collect()
    }

    /// The rows that are left when all has been gone over, with their scores.
    fn rate(
        &mut self,
        profile: &Profile,
        world: &mut World,
        tables: &mut Tables,
        key: &ObjectKey,
        verdicts: &mut Vec<Verdict>,
    ) -> (Vec<usize>, Vec<i64>) {
        let mut left = self.left(world, tables, verdicts);
        if !world.nominations.is_empty() {
            let rows: Vec<usize> = world.nominations.rows().collect();
            for row in rows {
                if verdicts.get(row).is_some_and(|it| it.is_feasible())
                    && let Some(verdict) = self.with_nominated(profile, world, key, row)
                {
                    verdicts[row] = verdict;
                }
            }
            left.retain(|(row, _)| verdicts[*row].is_feasible());
        }
        self.passes.begin(world);
        let mut rows: Vec<usize> = left.iter().map(|(row, _)| *row).collect();
        self.passes.go_over(world, &mut rows, verdicts);
        left.retain(|(row, _)| verdicts[*row].is_feasible());
        let mut totals: Vec<i64> = left.into_iter().map(|(_, score)| score).collect();
        if 1 < rows.len() {
            add_scores(&self.of_all, world, &rows, &vec![1; rows.len()], &mut totals);
        }
        (rows, totals)
    }

    /// The scores of all nodes that will do, after a decision.
    #[cfg(test)]
    pub(crate) fn totals(
        &mut self,
        profile: &Profile,
        world: &mut World,
        tables: &mut Tables,
        key: &ObjectKey,
    ) -> Vec<(String, i64)> {
        let (rows, totals) = self.rate(profile, world, tables, key, &mut Vec::new());
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
