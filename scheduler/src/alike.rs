//! What rows have in common.
//!
//! Affinity, spread and scores that are scaled are made of more than one row; but they do not tell
//! apart rows that have the same zone, as many pods of a kind, and so on. Filters and scores name
//! these marks of a row, and rows with equal marks are judged once.

use insula_api::names::TenantName;

use crate::{
    labels::KeyId,
    tally::{Tallies, TallyId},
    world::World,
};

/// A label with more values than this, or than an eighth of the rows, tells too many apart.
const FEW_VALUES: usize = 64;

/// Something of a row that a number can be put to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Mark {
    /// The value of a label.
    Label(KeyId),
    /// Whether there is such a label.
    HasLabel(KeyId),
    /// The set of taints.
    Taints,
    /// The size of an image, by its number.
    Image(u32),
    /// What is counted on the row.
    OnRow(TallyId),
    /// What is counted in the row's domain, which has no other row.
    InDomain(TallyId),
}

impl Mark {
    fn tally(self) -> Option<TallyId> {
        match self {
            Self::OnRow(id) | Self::InDomain(id) => Some(id),
            Self::Label(_) | Self::HasLabel(_) | Self::Taints | Self::Image(_) => None,
        }
    }

    fn number(self, world: &World, tallies: &Tallies, row: usize) -> i64 {
        let labels = &world.nodes.labels;
        match self {
            Self::Label(key) => labels.value(Some(key), row).into(),
            Self::HasLabel(key) => i64::from(labels.has(key, row)),
            Self::Taints => i64::try_from(world.nodes.taints[row]).unwrap_or(i64::MAX),
            Self::Image(number) => world.nodes.images.size_on(number, row),
            Self::OnRow(id) => tallies.get(id).map_or(0, |it| it.on_row(row)),
            Self::InDomain(id) => {
                tallies.get(id).map_or(0, |it| it.in_domain_of(&world.nodes, row))
            }
        }
    }
}

/// The marks of whoever reads one label; `None` if it tells too many rows apart.
pub(crate) fn by_label(world: &World, key: Option<KeyId>) -> Option<Vec<Mark>> {
    let Some(key) = key else { return Some(Vec::new()) };
    let limit = FEW_VALUES.max(world.nodes.n_rows() / 8);
    (world.nodes.labels.n_values(key) <= limit).then(|| vec![Mark::Label(key)])
}

/// The marks of whoever reads what is counted in domains.
pub(crate) fn by_domain(world: &World, tenant: &TenantName, id: TallyId) -> Option<Vec<Mark>> {
    let Some(tally) = world.tallies(tenant).get(id) else { return Some(Vec::new()) };
    match tally.key() {
        Some(key) if world.nodes.labels.is_of_one_row(key) => {
            Some(vec![Mark::HasLabel(key), Mark::InDomain(id)])
        }
        key => by_label(world, key),
    }
}

/// All that somebody tells rows apart by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Alike {
    /// Marks of nodes.
    pub(crate) nodes: Vec<Mark>,
    tenant: TenantName,
    /// Counts of the tenant's pods, with the numbers that they alone have. Most rows have none.
    counts: Vec<(Mark, u64)>,
}

impl Alike {
    pub(crate) fn new(world: &World, tenant: &TenantName, mut marks: Vec<Mark>) -> Self {
        marks.sort_unstable();
        marks.dedup();
        let tallies = world.tallies(tenant);
        let number = |mark: &Mark| {
            let tally = tallies.get(mark.tally()?)?;
            Some((*mark, tally.number()))
        };
        let counts = marks.iter().filter_map(number).collect();
        marks.retain(|it| it.tally().is_none());
        Self { nodes: marks, tenant: tenant.clone(), counts }
    }

    /// Whether pods are counted at all.
    pub(crate) fn has_counts(&self) -> bool {
        !self.counts.is_empty()
    }

    /// Sets `key` to what a row has of nodes' marks.
    pub(crate) fn read_node(&self, world: &World, row: usize, key: &mut Vec<i64>) {
        key.clear();
        let tallies = world.tallies(&self.tenant);
        key.extend(self.nodes.iter().map(|it| it.number(world, tallies, row)));
    }

    /// Adds what is counted on it.
    pub(crate) fn read_counts(&self, world: &World, row: usize, key: &mut Vec<i64>) {
        let tallies = world.tallies(&self.tenant);
        key.extend(self.counts.iter().map(|(it, _)| it.number(world, tallies, row)));
    }

    /// Whether anything is counted on it.
    pub(crate) fn is_counted(&self, world: &World, row: usize) -> bool {
        let tallies = world.tallies(&self.tenant);
        self.counts.iter().any(|(it, _)| it.number(world, tallies, row) != 0)
    }

    /// All rows on which anything is counted; some more than once.
    pub(crate) fn counted<'a>(&'a self, world: &'a World) -> impl Iterator<Item = usize> + 'a {
        let tallies = world.tallies(&self.tenant);
        let tallies = self.counts.iter().filter_map(|(it, _)| tallies.get(it.tally()?));
        tallies.flat_map(|it| it.rows())
    }

    /// How many those are.
    pub(crate) fn n_counted(&self, world: &World) -> usize {
        let tallies = world.tallies(&self.tenant);
        let tallies = self.counts.iter().filter_map(|(it, _)| tallies.get(it.tally()?));
        tallies.map(|it| it.rows().len()).sum()
    }
}
