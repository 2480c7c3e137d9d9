//! How many of a tenant's pods, of those that a rule speaks of, are in each domain.
//!
//! Pod affinity and topology spread are rules over counts: so many pods of this kind in this zone.
//! Each count that some rule asks for is kept here and follows every pod that comes and goes, so
//! that a decision reads it. Pods are counted by their shape: whether a rule speaks of a pod is
//! found out once per shape.
//!
//! # Invariants
//!
//! * A tenant's counts are made of its own pods only.
//! * A count is what one would get by going over all pods of the tenant.

mod numbers;
mod rule;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use self::rule::{added_by, hash_of};
pub(crate) use self::{
    numbers::{NumberHasher, RowMap},
    rule::{Counted, Eligible, Rule},
};
use crate::{
    labels::{ABSENT, KeyId},
    nodes::Nodes,
    pod::{PodTerm, Shape},
};

/// Counts that nobody owns are dropped, the least used first, when a tenant has more than this.
const KEPT: usize = 2048;

/// A number that no tenant's counts have had.
fn new_number() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Namespaces' labels, of one tenant.
pub(crate) type Namespaces = HashMap<Arc<str>, BTreeMap<String, String>>;

/// One domain of a count that has [`Rule::on`].
#[derive(Debug, Default, Clone, Copy)]
struct Domain {
    n_pods: i64,
    n_nodes: u32,
}

/// One count, by row and by domain.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Never used twice.
    number: u64,
    rule: Rule,
    key: Option<KeyId>,
    rows: RowMap<i64>,
    domains: RowMap<Domain>,
    /// How many domains have so many pods, of those that have eligible nodes.
    by_count: BTreeMap<i64, u32>,
    /// Whether pods on a row count. Kept only if there is a rule.
    eligible: Vec<bool>,
    /// What is counted in all domains.
    total: i64,
    /// Shapes whose pods are counted because of a term of their own.
    n_owners: u32,
    used: u64,
}

impl Tally {
    fn domain(&self, nodes: &Nodes, row: usize) -> u32 {
        nodes.labels.value(self.key, row)
    }

    fn counts_on(&self, row: usize) -> bool {
        self.rule.on.is_none() || self.eligible.get(row).copied().unwrap_or(false)
    }

    /// Pods come to a row, or leave it.
    fn add(&mut self, nodes: &Nodes, row: usize, n_pods: i64) {
        let key = row_key(row);
        let on_row = self.rows.entry(key).or_default();
        *on_row += n_pods;
        if *on_row == 0 {
            self.rows.remove(&key);
        }
        if self.counts_on(row) {
            self.add_to_domain(self.domain(nodes, row), n_pods, 0);
        }
    }

    fn add_to_domain(&mut self, value: u32, n_pods: i64, n_nodes: i32) {
        if value == ABSENT {
            return;
        }
        self.total += n_pods;
        let domain = self.domains.entry(value).or_default();
        let before = *domain;
        domain.n_pods += n_pods;
        domain.n_nodes = domain.n_nodes.saturating_add_signed(n_nodes);
        let after = *domain;
        if after.n_pods == 0 && after.n_nodes == 0 {
            self.domains.remove(&value);
        }
        if self.rule.on.is_none() {
            return;
        }
        if before.n_nodes != 0
            && let Some(n_domains) = self.by_count.get_mut(&before.n_pods)
        {
            *n_domains -= 1;
            if *n_domains == 0 {
                self.by_count.remove(&before.n_pods);
            }
        }
        if after.n_nodes != 0 {
            *self.by_count.entry(after.n_pods).or_default() += 1;
        }
    }

    /// Takes a row out, before its node changes.
    fn lift(&mut self, nodes: &Nodes, row: usize) {
        if self.counts_on(row) {
            let n_pods = self.rows.get(&row_key(row)).copied().unwrap_or(0);
            let n_nodes = if self.rule.on.is_some() { -1 } else { 0 };
            self.add_to_domain(self.domain(nodes, row), -n_pods, n_nodes);
        }
        if let Some(eligible) = self.eligible.get_mut(row) {
            *eligible = false;
        }
    }

    /// Puts a row back, after its node changed.
    fn lower(&mut self, nodes: &Nodes, row: usize) {
        self.key = nodes.labels.key(&self.rule.topology_key);
        let mut n_nodes = 0;
        if let Some(on) = &self.rule.on {
            let is_eligible = on.is_met(nodes, row);
            if self.eligible.len() <= row {
                self.eligible.resize(row + 1, false);
            }
            self.eligible[row] = is_eligible;
            n_nodes = 1;
        }
        if self.counts_on(row) {
            let n_pods = self.rows.get(&row_key(row)).copied().unwrap_or(0);
            self.add_to_domain(self.domain(nodes, row), n_pods, n_nodes);
        }
    }

    /// That of this count, and of no other there has been.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The label whose values are the domains, if any node has or had it.
    pub(crate) fn key(&self) -> Option<KeyId> {
        self.key
    }

    /// The rows on which anything is counted.
    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.rows.keys().map(|row| *row as usize)
    }

    /// What is counted in the domain of a row; 0 if it is in none.
    pub(crate) fn in_domain_of(&self, nodes: &Nodes, row: usize) -> i64 {
        self.domains.get(&self.domain(nodes, row)).map_or(0, |it| it.n_pods)
    }

    /// What is counted on a row alone.
    pub(crate) fn on_row(&self, row: usize) -> i64 {
        self.rows.get(&row_key(row)).copied().unwrap_or(0)
    }

    /// The domain of a row; `None` if its node has no such label.
    pub(crate) fn domain_of(&self, nodes: &Nodes, row: usize) -> Option<u32> {
        Some(self.domain(nodes, row)).filter(|value| *value != ABSENT)
    }

    /// Whether nothing is counted in any domain.
    pub(crate) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// How many domains there are, of nodes that are eligible.
    pub(crate) fn n_domains(&self) -> usize {
        self.by_count.values().map(|it| *it as usize).sum()
    }

    /// The least that is counted in any such domain; 0 if there is none.
    pub(crate) fn least(&self) -> i64 {
        self.by_count.first_key_value().map_or(0, |(n_pods, _)| *n_pods)
    }
}

fn row_key(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(u32::MAX)
}

/// Names a count of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TallyId(usize);

/// Where the pods of one shape are.
#[derive(Debug)]
struct Placed {
    shape: Arc<Shape>,
    rows: RowMap<i64>,
    n_pods: i64,
    /// Counts that its pods are in, and how much each adds.
    counted: Vec<(TallyId, i64)>,
    owned: Vec<TallyId>,
}

/// All counts of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    placed: HashMap<u64, Placed>,
    tallies: Vec<Option<Tally>>,
    by_rule: HashMap<u64, Vec<TallyId>>,
    namespaces: Namespaces,
    /// Shapes without pods, to be forgotten.
    idle: Vec<u64>,
    n_kept: usize,
    clock: u64,
    generation: u64,
}

impl Tallies {
    /// Another whenever names of counts come to mean something else, or a count comes that was not
    /// there.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn get(&self, id: TallyId) -> Option<&Tally> {
        self.tallies.get(id.0).and_then(Option::as_ref)
    }

    /// Pods of a shape come to a row, or leave it.
    pub(crate) fn add(&mut self, nodes: &Nodes, row: usize, shape: &Arc<Shape>, n_pods: i64) {
        if !self.placed.contains_key(&shape.id) {
            self.meet(nodes, shape);
        }
        let Some(placed) = self.placed.get_mut(&shape.id) else { return };
        let key = row_key(row);
        let on_row = placed.rows.entry(key).or_default();
        *on_row += n_pods;
        if *on_row == 0 {
            placed.rows.remove(&key);
        }
        placed.n_pods += n_pods;
        if placed.n_pods == 0 {
            self.idle.push(shape.id);
        }
        for (id, each) in &placed.counted {
            if let Some(tally) = self.tallies.get_mut(id.0).and_then(Option::as_mut) {
                tally.add(nodes, row, n_pods * each);
            }
        }
    }

    /// Finds out which counts the pods of a shape are in.
    fn meet(&mut self, nodes: &Nodes, shape: &Arc<Shape>) {
        let mut owned = Vec::new();
        let mut own = |it: &mut Self, term: &PodTerm, counted: Counted| {
            let rule = Rule { topology_key: term.topology_key.clone(), counted, on: None };
            let id = it.count(nodes, &rule);
            if let Some(tally) = it.tallies[id.0].as_mut() {
                tally.n_owners += 1;
            }
            owned.push(id);
        };
        for term in &shape.anti_affinity {
            own(self, term, Counted::Avoiding(term.group.clone()));
        }
        for term in &shape.affinity {
            own(self, term, Counted::Following(term.group.clone()));
        }
        for (term, weight) in &shape.preferred_pods {
            own(self, term, Counted::Preferring(term.group.clone(), *weight));
        }
        let mut counted = Vec::new();
        for (n, tally) in self.tallies.iter().enumerate() {
            let Some(tally) = tally else { continue };
            let each = added_by(&tally.rule, shape, &self.namespaces);
            if each != 0 {
                counted.push((TallyId(n), each));
            }
        }
        let placed =
            Placed { shape: shape.clone(), rows: RowMap::default(), n_pods: 0, counted, owned };
        self.placed.insert(shape.id, placed);
    }

    /// The count of what a rule says; made if nobody has asked for it yet.
    pub(crate) fn count(&mut self, nodes: &Nodes, rule: &Rule) -> TallyId {
        self.clock += 1;
        let hash = hash_of(rule);
        let known = self.by_rule.get(&hash).into_iter().flatten();
        for id in known.copied().collect::<Vec<_>>() {
            if let Some(tally) = self.tallies[id.0].as_mut()
                && tally.rule == *rule
            {
                tally.used = self.clock;
                return id;
            }
        }
        self.drop_unused();
        let mut tally = Tally {
            number: new_number(),
            key: nodes.labels.key(&rule.topology_key),
            rows: RowMap::default(),
            domains: RowMap::default(),
            by_count: BTreeMap::new(),
            eligible: Vec::new(),
            total: 0,
            n_owners: 0,
            used: self.clock,
            rule: rule.clone(),
        };
        if rule.on.is_some() {
            for row in nodes.rows() {
                tally.lower(nodes, row);
            }
        }
        let free = self.tallies.iter().position(Option::is_none);
        let id = TallyId(free.unwrap_or(self.tallies.len()));
        for placed in self.placed.values_mut() {
            let each = added_by(rule, &placed.shape, &self.namespaces);
            if each == 0 {
                continue;
            }
            placed.counted.push((id, each));
            for (row, n_pods) in &placed.rows {
                tally.add(nodes, *row as usize, n_pods * each);
            }
        }
        match free {
            Some(at) => self.tallies[at] = Some(tally),
            None => self.tallies.push(Some(tally)),
        }
        self.by_rule.entry(hash).or_default().push(id);
        self.n_kept += 1;
        self.generation = new_number();
        id
    }

    /// Drops the half of the counts that was not asked for lately, if there are too many.
    fn drop_unused(&mut self) {
        if self.n_kept < KEPT {
            return;
        }
        let free = |it: &Option<Tally>| it.as_ref().filter(|it| it.n_owners == 0).map(|it| it.used);
        let mut used: Vec<u64> = self.tallies.iter().filter_map(free).collect();
        used.sort_unstable();
        let Some(limit) = used.get(used.len() / 2).copied() else { return };
        for n in 0..self.tallies.len() {
            if free(&self.tallies[n]).is_some_and(|used| used < limit) {
                self.drop_tally(TallyId(n));
            }
        }
    }

    fn drop_tally(&mut self, id: TallyId) {
        let Some(tally) = self.tallies[id.0].take() else { return };
        let hash = hash_of(&tally.rule);
        if let Some(ids) = self.by_rule.get_mut(&hash) {
            ids.retain(|it| *it != id);
            if ids.is_empty() {
                self.by_rule.remove(&hash);
            }
        }
        for placed in self.placed.values_mut() {
            placed.counted.retain(|(it, _)| *it != id);
        }
        self.n_kept -= 1;
        self.generation = new_number();
    }

    /// Forgets shapes that have no pods any more, and what was counted for their sake.
    pub(crate) fn sweep(&mut self) {
        for id in std::mem::take(&mut self.idle) {
            if self.placed.get(&id).is_none_or(|it| it.n_pods != 0) {
                continue;
            }
            let Some(placed) = self.placed.remove(&id) else { continue };
            for id in placed.owned {
                let Some(tally) = self.tallies[id.0].as_mut() else { continue };
                tally.n_owners -= 1;
                if tally.n_owners == 0 {
                    self.drop_tally(id);
                }
            }
        }
    }

    /// Whether there is nothing to know of this tenant.
    pub(crate) fn is_empty(&self) -> bool {
        self.placed.is_empty() && self.namespaces.is_empty()
    }

    /// Counts that pods have caused by terms of their own which speak of `shape`, and how each
    /// is meant.
    pub(crate) fn speaking_of<'a>(
        &'a self,
        shape: &'a Shape,
    ) -> impl Iterator<Item = (TallyId, &'a Counted)> + 'a {
        let labels = self.namespaces.get(&shape.namespace);
        self.tallies.iter().enumerate().filter_map(move |(n, tally)| {
            let counted = &tally.as_ref()?.rule.counted;
            let group = match counted {
                Counted::In { .. } => return None,
                Counted::Avoiding(group)
                | Counted::Following(group)
                | Counted::Preferring(group, _) => group,
            };
            group.has(shape, labels).then_some((TallyId(n), counted))
        })
    }

    /// Takes a row out of all counts, before its node changes.
    pub(crate) fn lift(&mut self, nodes: &Nodes, row: usize) {
        self.tallies.iter_mut().flatten().for_each(|it| it.lift(nodes, row));
    }

    /// Puts it back, after its node changed.
    pub(crate) fn lower(&mut self, nodes: &Nodes, row: usize) {
        self.tallies.iter_mut().flatten().for_each(|it| it.lower(nodes, row));
    }

    /// The labels of a namespace changed. Returns whether that matters to any count.
    pub(crate) fn set_namespace(
        &mut self,
        nodes: &Nodes,
        name: &Arc<str>,
        labels: Option<BTreeMap<String, String>>,
    ) {
        let is_same = self.namespaces.get(name) == labels.as_ref();
        match labels {
            Some(labels) => self.namespaces.insert(name.clone(), labels),
            None => self.namespaces.remove(name),
        };
        if is_same {
            return;
        }
        // Rare, and it may change anything: all is counted anew.
        let placed = std::mem::take(&mut self.placed);
        self.tallies.clear();
        self.by_rule.clear();
        self.n_kept = 0;
        self.generation = new_number();
        for placed in placed.into_values() {
            for (row, n_pods) in placed.rows {
                self.add(nodes, row as usize, &placed.shape, n_pods);
            }
        }
    }

    pub(crate) fn namespace_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(name)
    }
}
