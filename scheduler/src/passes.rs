//! The filters of a profile, prepared for one shape.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use insula_client::Tenanted;
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::{
    alike::Mark,
    framework::{Depends, Pass, Prepared, Verdict},
    pod::Shape,
    profile::Profile,
    storage::Work,
    world::World,
};

/// Added to a filter's place when its verdict is that it was not asked: it had named others.
const NOT_NAMED: u8 = 128;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Passes {
    /// Why no node will do, whichever it is, and the place of the filter that says so.
    refusal: Option<(u8, String)>,
    /// The only nodes that come into question, if there are few, and who says so.
    named: Option<(u8, BTreeSet<String>)>,
    /// With the places of their filters in the profile.
    passes: Vec<(u8, Box<dyn Pass>)>,
    /// The first so many depend on nodes alone,
    n_of_nodes: usize,
    /// and the first so many on nothing but one row: their verdicts are worth keeping.
    n_of_rows: usize,
}

impl Passes {
    pub(crate) fn prepare(profile: &Profile, world: &mut World, pod: &Shape) -> Self {
        let mut it = Self::default();
        for (place, filter) in profile.filters() {
            if let Some(names) = filter.only_on(pod) {
                let place = place + NOT_NAMED;
                it.named.get_or_insert_with(|| (place, names.clone()));
                it.passes.push((place, Box::new(Named { names, by: filter.name() })));
            }
        }
        for (place, filter) in profile.filters() {
            match filter.prepare(world, pod) {
                Prepared::Skip => (),
                Prepared::Refused(reason) => {
                    it.refusal = Some((place, reason));
                    break;
                }
                Prepared::Pass(pass) => it.passes.push((place, pass)),
            }
        }
        let leading = |worst: &[Depends]| {
            it.passes.iter().take_while(|(_, pass)| worst.contains(&pass.depends())).count()
        };
        it.n_of_nodes = leading(&[Depends::Node]);
        it.n_of_rows = leading(&[Depends::Node, Depends::Row]);
        let mut of_rows = it.passes[it.n_of_nodes..it.n_of_rows].iter();
        if of_rows.any(|(_, pass)| pass.depends() == Depends::Node) {
            it.n_of_nodes = 0;
        }
        it
    }

    /// The reason for which no node will do, if there is one.
    pub(crate) fn refusal(&self) -> Option<&(u8, String)> {
        self.refusal.as_ref()
    }

    /// The passes whose verdicts are kept.
    fn of_rows(&self) -> &[(u8, Box<dyn Pass>)] {
        &self.passes[..self.n_of_rows]
    }

    /// Names the passes whose verdicts are kept, and writes into `part` what these are made of.
    pub(crate) fn kept(&self, pod: &Shape, part: &mut Shape) -> Vec<u8> {
        self.of_rows().iter().for_each(|(_, pass)| pass.reads(pod, part));
        self.of_rows().iter().map(|(place, _)| *place).collect()
    }

    /// The rows of the only nodes that come into question, if there are few. The others' verdicts
    /// are noted.
    pub(crate) fn named(&self, world: &World, verdicts: &mut Vec<Verdict>) -> Option<Vec<usize>> {
        let (place, names) = self.named.as_ref()?;
        verdicts.clear();
        verdicts.resize(world.nodes.n_rows(), Verdict::NO_NODE);
        world.nodes.rows().for_each(|row| verdicts[row] = Verdict::refused(*place, NOT_IN_NAMES));
        let mut rows: Vec<usize> = names.iter().filter_map(|it| world.nodes.row(it)).collect();
        rows.sort_unstable();
        rows.iter().for_each(|row| verdicts[*row] = Verdict::FEASIBLE);
        self.keep(world, &mut rows, verdicts);
        Some(rows)
    }

    /// Whether all there is to know of a row is in its kept verdict.
    pub(crate) fn is_of_rows(&self) -> bool {
        self.n_of_rows == self.passes.len()
    }

    /// Whether few nodes come into question, and no others are looked at.
    pub(crate) fn is_named(&self) -> bool {
        self.named.is_some()
    }

    /// Must be called before [`Passes::check`] and [`Passes::go_over`] when anything changed.
    pub(crate) fn begin(&mut self, world: &World) {
        self.passes.iter_mut().for_each(|(_, pass)| pass.begin(world));
    }

    fn ask(passes: &[(u8, Box<dyn Pass>)], world: &World, row: usize) -> Verdict {
        for (place, pass) in passes {
            let why = pass.check(world, row);
            if why != 0 {
                return Verdict::refused(*place, why);
            }
        }
        Verdict::FEASIBLE
    }

    /// All verdicts on one row.
    pub(crate) fn check(&mut self, world: &World, row: usize) -> Verdict {
        self.begin(world);
        Self::ask(&self.passes, world, row)
    }

    /// The verdict on a row that is worth keeping. `before` is the last one, if since then only
    /// the pods on the row changed.
    pub(crate) fn check_row(&self, world: &World, row: usize, before: Option<Verdict>) -> Verdict {
        let Some(before) = before else {
            return Self::ask(self.of_rows(), world, row);
        };
        let of_nodes = &self.passes[..self.n_of_nodes];
        match before.refusal() {
            Some((by, _)) if of_nodes.iter().any(|(place, _)| *place == by) => before,
            _ => Self::ask(&self.passes[self.n_of_nodes..self.n_of_rows], world, row),
        }
    }

    /// Goes over rows with the passes whose verdicts are kept.
    pub(crate) fn keep(&self, world: &World, rows: &mut Vec<usize>, verdicts: &mut [Verdict]) {
        for (place, pass) in self.of_rows() {
            pass.go_over(world, *place, rows, verdicts);
        }
    }

    /// Goes over rows whose kept verdict is good with the passes whose verdicts are not kept.
    pub(crate) fn go_over(&self, world: &World, rows: &mut Vec<usize>, verdicts: &mut [Verdict]) {
        for (place, pass) in &self.passes[self.n_of_rows..] {
            pass.go_over(world, *place, rows, verdicts);
        }
    }

    /// Whether rows whose kept verdict is good can be had, by the passes whose verdicts are not kept.
    pub(crate) fn has(&self, world: &World, row: usize) -> bool {
        Self::ask(&self.passes[self.n_of_rows..], world, row).is_feasible()
    }

    /// What the passes whose verdicts are not kept tell rows apart by; `None` if that is not known.
    pub(crate) fn alike(&self, world: &World) -> Option<Vec<Mark>> {
        let passes = self.passes[self.n_of_rows..].iter();
        let marks: Option<Vec<_>> = passes.map(|(_, pass)| pass.alike(world)).collect();
        marks.map(|it| it.concat())
    }

    fn by(&self, place: u8) -> Option<&dyn Pass> {
        self.passes.iter().find(|(it, _)| *it == place).map(|(_, pass)| &**pass)
    }

    /// The reasons of a verdict, in upstream's words.
    pub(crate) fn reasons(&self, verdict: Verdict) -> Vec<Cow<'static, str>> {
        let Some((place, why)) = verdict.refusal() else { return Vec::new() };
        self.by(place).map(|pass| pass.reasons(why)).unwrap_or_default()
    }

    /// Whether no ending of pods could change a verdict.
    pub(crate) fn is_final(&self, verdict: Verdict) -> bool {
        let Some((place, why)) = verdict.refusal() else { return true };
        self.by(place).is_none_or(|pass| pass.is_final(why))
    }

    /// A claim that is better given other devices, going by these verdicts.
    pub(crate) fn to_free(&self, verdicts: &[Verdict]) -> Option<Arc<Tenanted<ResourceClaim>>> {
        self.passes.iter().find_map(|(place, pass)| {
            let is_it = |it: &Verdict, why: u32| *it == Verdict::refused(*place, why);
            pass.to_free(&|why| verdicts.iter().any(|it| is_it(it, why)))
        })
    }

    /// What has to be written before a pod is bound to a feasible row.
    pub(crate) fn work(&self, world: &World, row: usize) -> Work {
        let mut all = Work::default();
        for (_, pass) in &self.passes {
            let work = pass.work(world, row);
            all.bind.extend(work.bind);
            all.provision.extend(work.provision);
            all.devices.extend(work.devices);
        }
        all
    }

    /// How many of these rows were refused for what reason, as users read it; and by which
    /// filters, as a set of their places.
    pub(crate) fn told(&self, verdicts: impl Iterator<Item = Verdict>) -> (String, u128) {
        let mut counts: HashMap<Verdict, usize> = HashMap::new();
        for verdict in verdicts {
            *counts.entry(verdict).or_default() += 1;
        }
        let mut reasons: BTreeMap<Cow<'static, str>, usize> = BTreeMap::new();
        let mut refused_by = 0;
        for (verdict, n_rows) in counts {
            let Some((place, _)) = verdict.refusal() else { continue };
            refused_by |= 1 << (place % NOT_NAMED);
            for reason in self.reasons(verdict) {
                *reasons.entry(reason).or_default() += n_rows;
            }
        }
        (listed(reasons), refused_by)
    }
}

/// Reasons, each with its number of nodes, in the order of the text.
pub(crate) fn listed(reasons: BTreeMap<Cow<'static, str>, usize>) -> String {
    let mut list: Vec<String> =
        reasons.iter().map(|(reason, n_nodes)| format!("{n_nodes} {reason}")).collect();
    list.sort();
    list.join(", ")
}

const NOT_IN_NAMES: u32 = 1;

/// The only nodes that a filter lets be looked at.
#[derive(Debug)]
struct Named {
    names: BTreeSet<String>,
    by: &'static str,
}

impl Pass for Named {
    fn depends(&self) -> Depends {
        Depends::Node
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        if self.names.contains(world.nodes.name(row)) { 0 } else { NOT_IN_NAMES }
    }

    fn reasons(&self, _why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Owned(format!("node(s) didn't satisfy plugin(s) [{}]", self.by))]
    }

    fn is_final(&self, _why: u32) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_upstreams() {
        let reasons = [
            ("Insufficient memory", 1),
            ("Insufficient cpu", 12),
            ("node(s) were unschedulable", 2),
        ];
        let reasons = reasons.map(|(reason, n_nodes)| (Cow::Borrowed(reason), n_nodes));
        assert_eq!(
            listed(reasons.into()),
            "1 Insufficient memory, 12 Insufficient cpu, 2 node(s) were unschedulable"
        );
    }
}
