//! Rows sorted by kind, the best of each kind at hand.
//!
//! Rows of one [kind](crate::alike) are the same to all that is made of several rows, so the best
//! of them by what is made of single rows is the best of them at all; and a decision is one among
//! kinds, of which there are few. Kinds by what nodes are ([`Sorted`]) are shared by all tenants.
//! Rows on which something is counted, which are few for most, are kept [`Apart`].
//!
//! # Invariants
//!
//! * What is apart is sorted too, with the same score.

use std::{
    collections::{BTreeMap, HashMap},
    hash::BuildHasherDefault,
};

use crate::{
    alike::Alike,
    tables::Table,
    tally::{NumberHasher, RowMap},
    world::World,
};

/// Rows apart of one score whose places are looked up; with more, they are passed by where met.
const FEW_APART: usize = 64;

/// Where a row is.
#[derive(Debug, Clone, Copy)]
struct Place {
    kind: u32,
    at: u32,
    score: i64,
}

/// Rows that are alike.
#[derive(Debug, Default)]
struct Kind {
    key: Box<[i64]>,
    n_rows: usize,
    by_score: BTreeMap<i64, Vec<u32>>,
}

/// Rows by kind.
#[derive(Debug, Default)]
struct Kinds {
    numbers: HashMap<Box<[i64]>, u32, BuildHasherDefault<NumberHasher>>,
    all: Vec<Kind>,
    unused: Vec<u32>,
    places: RowMap<Place>,
}

impl Kinds {
    fn put(&mut self, row: u32, key: &[i64], score: i64) {
        let kind = match self.numbers.get(key) {
            Some(kind) => *kind,
            None => self.add(key),
        };
        let it = &mut self.all[kind as usize];
        it.n_rows += 1;
        let rows = it.by_score.entry(score).or_default();
        let at = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        rows.push(row);
        self.places.insert(row, Place { kind, at, score });
    }

    fn add(&mut self, key: &[i64]) -> u32 {
        let kind = self.unused.pop().unwrap_or_else(|| {
            self.all.push(Kind::default());
            u32::try_from(self.all.len() - 1).unwrap_or(u32::MAX)
        });
        self.all[kind as usize].key = key.into();
        self.numbers.insert(key.into(), kind);
        kind
    }

    /// Takes a row out, if it is there.
    fn take(&mut self, row: u32) {
        let Some(place) = self.places.remove(&row) else { return };
        let kind = &mut self.all[place.kind as usize];
        if let Some(rows) = kind.by_score.get_mut(&place.score) {
            rows.swap_remove(place.at as usize);
            match rows.get(place.at as usize) {
                Some(moved) => {
                    self.places.insert(*moved, place);
                }
                None if rows.is_empty() => {
                    kind.by_score.remove(&place.score);
                }
                None => (),
            }
        }
        kind.n_rows -= 1;
        if kind.n_rows == 0 {
            self.numbers.remove(&kind.key);
            self.unused.push(place.kind);
        }
    }

    fn get(&self, key: &[i64]) -> Option<&Kind> {
        self.numbers.get(key).map(|kind| &self.all[*kind as usize])
    }

    fn present(&self) -> impl Iterator<Item = &Kind> {
        self.all.iter().filter(|it| it.n_rows != 0)
    }

    /// Bytes that this takes, about.
    fn size(&self) -> usize {
        40 * self.places.len() + 256 * self.all.len()
    }
}

fn number(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(u32::MAX)
}

/// The rows of a table, by what their nodes are.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    n_read: Option<u64>,
    kinds: Kinds,
    /// How often a row was looked at; for tests.
    #[cfg(test)]
    pub(crate) n_looks: usize,
}

impl Sorted {
    pub(crate) fn size(&self) -> usize {
        self.kinds.size() + 256
    }

    /// Sorts rows again that changed since the last decision; the table knows of all changes.
    pub(crate) fn catch_up(&mut self, world: &World, alike: &Alike, table: &Table) {
        let changes = &world.nodes.changes;
        let n_read = self.n_read.replace(changes.end());
        let few = |n_read: &u64| changes.end() - n_read < 1 + world.nodes.len() as u64 / 4;
        if let Some(new) = n_read.filter(few).and_then(|it| changes.since(it)) {
            new.for_each(|it| self.look_at(world, alike, table, it.row));
            return;
        }
        self.kinds = Kinds::default();
        let mut key = Vec::new();
        #[cfg(test)]
        {
            self.n_looks += world.nodes.len();
        }
        for (row, score) in table.best.rows() {
            alike.read_node(world, row, &mut key);
            self.kinds.put(number(row), &key, score);
        }
    }

    fn look_at(&mut self, world: &World, alike: &Alike, table: &Table, row: usize) {
        #[cfg(test)]
        {
            self.n_looks += 1;
        }
        self.kinds.take(number(row));
        if let Some(score) = table.best.score(row) {
            let mut key = Vec::new();
            alike.read_node(world, row, &mut key);
            self.kinds.put(number(row), &key, score);
        }
    }
}

/// Rows on which something is counted.
#[derive(Debug, Default)]
pub(crate) struct Apart {
    n_read: Option<u64>,
    /// By all their marks.
    own: Kinds,
    /// By what their nodes are.
    by_node: Kinds,
    #[cfg(test)]
    pub(crate) n_looks: usize,
}

impl Apart {
    pub(crate) fn size(&self) -> usize {
        self.own.size() + self.by_node.size() + 512
    }

    /// As [`Sorted::catch_up`].
    pub(crate) fn catch_up(&mut self, world: &World, alike: &Alike, table: &Table) {
        let changes = &world.nodes.changes;
        let n_read = self.n_read.replace(changes.end());
        let limit = 8 + alike.n_counted(world) as u64;
        let few = |n_read: &u64| changes.end() - n_read < limit;
        if let Some(new) = n_read.filter(few).and_then(|it| changes.since(it)) {
            new.for_each(|it| self.look_at(world, alike, table, it.row));
            return;
        }
        self.own = Kinds::default();
        self.by_node = Kinds::default();
        alike.counted(world).for_each(|row| self.look_at(world, alike, table, row));
    }

    fn look_at(&mut self, world: &World, alike: &Alike, table: &Table, row: usize) {
        #[cfg(test)]
        {
            self.n_looks += 1;
        }
        self.take(row);
        if let Some(score) = table.best.score(row)
            && alike.is_counted(world, row)
        {
            let mut key = Vec::new();
            alike.read_node(world, row, &mut key);
            self.by_node.put(number(row), &key, score);
            alike.read_counts(world, row, &mut key);
            self.own.put(number(row), &key, score);
        }
    }

    fn take(&mut self, row: usize) {
        self.own.take(number(row));
        self.by_node.take(number(row));
    }
}

/// The best rows of one kind.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    /// How many rows of this kind there are, and how many of them are the best.
    pub(crate) n_rows: usize,
    pub(crate) n_best: usize,
    /// What the best have by what is made of single rows.
    pub(crate) score: i64,
    /// The best, and some of another kind among them.
    rows: &'a [u32],
    others: Others<'a>,
}

#[derive(Debug)]
enum Others<'a> {
    /// At these places, in order.
    At(Vec<u32>),
    /// All that are here.
    Many(&'a Kinds),
}

impl Candidates<'_> {
    /// One of the best, for each number below `n_best`; not all of them if there are many others.
    pub(crate) fn nth(&self, n: usize) -> usize {
        let mut at = n;
        match &self.others {
            Others::At(places) => {
                places.iter().for_each(|it| at += usize::from(*it as usize <= at));
            }
            Others::Many(apart) => {
                at = n * self.rows.len() / self.n_best.max(1);
                let is_other = |at: usize| apart.places.contains_key(&self.rows[at]);
                at = (at..self.rows.len()).chain(0..at).find(|at| !is_other(*at)).unwrap_or(0);
            }
        }
        self.rows.get(at).map_or(0, |row| *row as usize)
    }
}

/// What is kept of rows for one decision.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    pub(crate) world: &'a World,
    pub(crate) alike: &'a Alike,
    pub(crate) table: &'a Table,
    pub(crate) sorted: &'a mut Sorted,
    pub(crate) apart: Option<&'a mut Apart>,
}

impl Choice<'_> {
    /// Takes a row out for now.
    pub(crate) fn leave_out(&mut self, row: usize) {
        self.sorted.kinds.take(number(row));
        if let Some(apart) = &mut self.apart {
            apart.take(row);
        }
    }

    /// Puts it back.
    pub(crate) fn put_back(&mut self, row: usize) {
        self.sorted.look_at(self.world, self.alike, self.table, row);
        if let Some(apart) = &mut self.apart {
            apart.look_at(self.world, self.alike, self.table, row);
        }
    }

    /// The best of each kind.
    pub(crate) fn candidates(&self) -> Vec<Candidates<'_>> {
        let apart = self.apart.as_deref();
        let beside = self.sorted.kinds.present().filter_map(|kind| {
            let of_it = apart.and_then(|it| Some((&it.by_node, it.by_node.get(&kind.key)?)));
            self.beside(kind, of_it)
        });
        let own = apart.into_iter().flat_map(|it| it.own.present()).filter_map(|kind| {
            let (score, best) = kind.by_score.last_key_value()?;
            let (n_rows, n_best) = (kind.n_rows, best.len());
            let others = Others::At(Vec::new());
            Some(Candidates { n_rows, n_best, score: *score, rows: best, others })
        });
        beside.chain(own).collect()
    }

    /// The best of a kind beside those that are apart.
    fn beside<'a>(
        &'a self,
        kind: &'a Kind,
        apart: Option<(&'a Kinds, &'a Kind)>,
    ) -> Option<Candidates<'a>> {
        let n_rows = kind.n_rows - apart.map_or(0, |(_, it)| it.n_rows);
        if n_rows == 0 {
            return None;
        }
        let apart_with = |score: &i64| {
            let (all, it) = apart?;
            Some((all, it.by_score.get(score)?))
        };
        let n_apart = |score: &i64| apart_with(score).map_or(0, |(_, rows)| rows.len());
        let mut by_score = kind.by_score.iter().rev();
        let (score, rows) = by_score.find(|(score, rows)| n_apart(score) < rows.len())?;
        let n_best = rows.len() - n_apart(score);
        let others = match apart_with(score) {
            Some((all, apart)) if FEW_APART < apart.len() => Others::Many(all),
            apart => {
                let rows = apart.into_iter().flat_map(|(_, rows)| rows);
                let place = |row: &u32| self.sorted.kinds.places.get(row).map(|it| it.at);
                let mut places: Vec<u32> = rows.filter_map(place).collect();
                places.sort_unstable();
                Others::At(places)
            }
        };
        Some(Candidates { n_rows, n_best, score: *score, rows, others })
    }
}
