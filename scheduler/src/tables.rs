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
    best::Best,
    framework::{Rate, Verdict},
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
    used: u64,
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
        let mut scores = vec![0; rows.len()];
        for (weight, rate) in rates {
            rate.go_over(world, &rows, &mut scores);
            totals.iter_mut().zip(&scores).for_each(|(total, score)| *total += weight * score);
        }
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

/// The tables of all shapes.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    all: HashMap<Key, Table>,
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
        let table = self.all.entry(ground.key()).or_insert_with(|| {
            let table = Table { _part: Some(ground.part.clone()), ..Table::default() };
            self.size += table.size();
            table
        });
        table.used = self.n_uses;
        let before = table.size();
        table.catch_up(world, passes, rates);
        self.size = self.size + table.size() - before;
        table
    }

    /// Drops the half of the tables that was not used lately.
    fn drop_half(&mut self) {
        let mut used: Vec<u64> = self.all.values().map(|it| it.used).collect();
        used.sort_unstable();
        let limit = used.get(used.len() / 2).copied().unwrap_or(u64::MAX);
        self.all.retain(|_, it| limit < it.used);
        self.size = self.all.values().map(Table::size).sum();
    }

    /// Drops the tables that none of these go by.
    pub(crate) fn sweep<'a>(&mut self, grounds: impl Iterator<Item = &'a Ground>) {
        let parts: HashSet<u64> = grounds.map(|it| it.part.id).collect();
        self.all.retain(|(part, ..), _| parts.contains(part));
        self.size = self.all.values().map(Table::size).sum();
    }

    /// How many tables there are, and how often a row of one was looked at.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.all.len(), self.all.values().map(|it| it.n_looks).sum())
    }
}
