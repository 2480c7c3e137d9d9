//! Verdicts and scores of single rows, kept from one decision to the next.
//!
//! A decision changes one row, so only rows that changed are looked at again. What passes and
//! rates read of a shape is a part of it, and often the same part of many: pods of one template
//! in many tenants, or pods whose labels have their own names. All shapes with this part in common
//! have one table.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    alike::{Alike, Mark},
    best::Best,
    framework::{Rate, Verdict, add_scores},
    kinds::{Apart, Choice, Sorted},
    passes::Passes,
    pod::Shape,
    world::World,
};

/// Bytes that tables may take, about.
const MAX_BYTES: usize = 256 << 20;

/// What all verdicts and scores of a table are made of.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    /// All that is read of a shape, and nothing else.
    pub(crate) part: Arc<Shape>,
    /// The places of the filters that are asked, and of the scores.
    pub(crate) filters: Vec<u8>,
    pub(crate) scores: Vec<u8>,
}

type Key = (u64, Vec<u8>, Vec<u8>);

impl Ground {
    fn key(&self) -> Key {
        (self.part.id, self.filters.clone(), self.scores.clone())
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// A shape's number means the same for as long as somebody has the shape.
    _part: Option<Arc<Shape>>,
    /// Changes of rows that are read, of those there have been.
    n_read: Option<u64>,
    verdicts: Vec<Verdict>,
    pub(crate) best: Best,
    /// How often a row was looked at.
    #[cfg(test)]
    n_looks: usize,
}

impl Table {
    pub(crate) fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// Bytes that this takes, about: of a tree that is full only in half, too.
    fn size(&self) -> usize {
        self.verdicts.len() * 18 + 1024
    }

    /// Makes verdicts and scores of rows again that changed since the last decision.
    pub(crate) fn catch_up(
        &mut self,
        world: &World,
        passes: &Passes,
        rates: &[(i64, Box<dyn Rate>)],
    ) {
        let changes = &world.nodes.changes;
        let n_read = self.n_read.replace(changes.end());
        // Row by row costs more for each than all at once.
        let few = |n_read: &u64| changes.end() - n_read < 1 + world.nodes.len() as u64 / 4;
        let Some(new) = n_read.filter(few).and_then(|it| changes.since(it)) else {
            return self.make(world, passes, rates);
        };
        self.verdicts.resize(world.nodes.n_rows(), Verdict::NO_NODE);
        self.best.resize(world.nodes.n_rows());
        for change in new {
            self.look_at(world, passes, rates, change.row, change.is_node);
        }
    }

    /// Makes all verdicts and scores.
    fn make(&mut self, world: &World, passes: &Passes, rates: &[(i64, Box<dyn Rate>)]) {
        let nodes = &world.nodes;
        self.verdicts.clear();
        self.verdicts.resize(nodes.n_rows(), Verdict::NO_NODE);
        let mut rows: Vec<usize> = nodes.rows().collect();
        #[cfg(test)]
        {
            self.n_looks += rows.len();
        }
        rows.iter().for_each(|row| self.verdicts[*row] = Verdict::FEASIBLE);
        passes.keep(world, &mut rows, &mut self.verdicts);
        let mut totals: Vec<i64> = rows.iter().map(|row| nodes.head_start(*row)).collect();
        add_scores(rates, world, &rows, &vec![1; rows.len()], &mut totals);
        // Those that are left are in the order of the rows.
        let mut totals = totals.into_iter();
        let scores = self.verdicts.iter().map(|it| it.is_feasible().then(|| totals.next()));
        self.best = Best::of(scores.map(Option::flatten));
    }

    fn look_at(
        &mut self,
        world: &World,
        passes: &Passes,
        rates: &[(i64, Box<dyn Rate>)],
        row: usize,
        is_node: bool,
    ) {
        #[cfg(test)]
        {
            self.n_looks += 1;
        }
        let verdict = if world.nodes.is_there(row) {
            let before = self.verdicts[row];
            let before = (!is_node && before != Verdict::NO_NODE).then_some(before);
            passes.check_row(world, row, before)
        } else {
            Verdict::NO_NODE
        };
        self.verdicts[row] = verdict;
        let score = || {
            let rated = rates.iter().map(|(weight, it)| weight * it.rate(world, row));
            rated.sum::<i64>() + world.nodes.head_start(row)
        };
        self.best.set(row, verdict.is_feasible().then(score));
    }
}

/// Something that is kept, and when it was used last.
#[derive(Debug, Default)]
struct Kept<T> {
    used: u64,
    size: usize,
    it: T,
}

/// The tables of all shapes, and their rows by kind.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    all: HashMap<Key, Kept<Table>>,
    sorted: HashMap<(Key, Vec<Mark>), Kept<Sorted>>,
    apart: HashMap<(Key, Alike), Kept<Apart>>,
    size: usize,
    n_uses: u64,
}

impl Tables {
    /// The table of shapes with this in common, as things are now.
    pub(crate) fn get(
        &mut self,
        ground: &Ground,
        world: &World,
        passes: &Passes,
        rates: &[(i64, Box<dyn Rate>)],
    ) -> &mut Table {
        if MAX_BYTES < self.size {
            self.drop_half();
        }
        self.n_uses += 1;
        let kept = self.all.entry(ground.key()).or_default();
        kept.it._part.get_or_insert_with(|| ground.part.clone());
        kept.it.catch_up(world, passes, rates);
        kept.note(self.n_uses, Table::size, &mut self.size)
    }

    /// The same, with its rows by kind.
    pub(crate) fn kinds<'a>(
        &'a mut self,
        (ground, alike): (&Ground, &'a Alike),
        world: &'a World,
        passes: &Passes,
        rates: &[(i64, Box<dyn Rate>)],
    ) -> Choice<'a> {
        self.get(ground, world, passes, rates);
        let table = &self.all.entry(ground.key()).or_default().it;
        let kept = self.sorted.entry((ground.key(), alike.nodes.clone())).or_default();
        kept.it.catch_up(world, alike, table);
        let sorted = kept.note(self.n_uses, Sorted::size, &mut self.size);
        let mut apart = None;
        if alike.has_counts() {
            let kept = self.apart.entry((ground.key(), alike.clone())).or_default();
            kept.it.catch_up(world, alike, table);
            apart = Some(kept.note(self.n_uses, Apart::size, &mut self.size));
        }
        Choice { world, alike, table, sorted, apart }
    }

    /// Drops the half that was not used lately.
    fn drop_half(&mut self) {
        let tables = self.all.values().map(|it| it.used);
        let kinds = self.sorted.values().map(|it| it.used);
        let mut used: Vec<u64> =
            tables.chain(kinds).chain(self.apart.values().map(|it| it.used)).collect();
        used.sort_unstable();
        let limit = used.get(used.len() / 2).copied().unwrap_or(u64::MAX);
        self.all.retain(|_, it| limit < it.used);
        self.sorted.retain(|_, it| limit < it.used);
        self.apart.retain(|_, it| limit < it.used);
        self.count_sizes();
    }

    /// Drops the tables that none of these go by.
    pub(crate) fn sweep<'a>(
        &mut self,
        grounds: impl Iterator<Item = (&'a Ground, Option<&'a Alike>)>,
    ) {
        let (mut parts, mut kinds) = (HashSet::new(), HashSet::new());
        for (ground, alike) in grounds {
            parts.insert(ground.part.id);
            kinds.extend(alike.map(|it| (ground.part.id, it)));
        }
        let nodes: HashSet<_> = kinds.iter().map(|(part, it)| (*part, &it.nodes)).collect();
        self.all.retain(|(part, ..), _| parts.contains(part));
        self.sorted.retain(|((part, ..), marks), _| nodes.contains(&(*part, marks)));
        self.apart.retain(|((part, ..), alike), _| kinds.contains(&(*part, alike)));
        self.count_sizes();
    }

    fn count_sizes(&mut self) {
        let tables = self.all.values().map(|it| it.size);
        let kinds = self.sorted.values().map(|it| it.size);
        self.size = tables.chain(kinds).chain(self.apart.values().map(|it| it.size)).sum();
    }

    /// How many tables there are, and how often a row of one was looked at.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.all.len(), self.all.values().map(|it| it.it.n_looks).sum())
    }

    /// How often rows were looked at to sort them by kind.
    #[cfg(test)]
    pub(crate) fn n_sorted(&self) -> usize {
        let sorted = self.sorted.values().map(|it| it.it.n_looks);
        sorted.chain(self.apart.values().map(|it| it.it.n_looks)).sum()
    }
}

impl<T> Kept<T> {
    /// It has been used, and may take more or less than before.
    fn note(&mut self, used: u64, size: impl Fn(&T) -> usize, all: &mut usize) -> &mut T {
        self.used = used;
        let size = size(&self.it);
        *all = *all + size - self.size;
        self.size = size;
        &mut self.it
    }
}
