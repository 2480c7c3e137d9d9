//! The devices that there are, as drivers tell of them in slices.
//!
//! A pool is all slices of one driver and name. While a driver writes it anew there are slices of
//! two generations, and not all of the newer one: nothing is taken from such a pool.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use insula_api::quantity::Quantity;
use k8s_openapi::api::{
    core::v1::{NodeSelector, NodeSelectorTerm},
    resource::v1::{Counter, Device, DeviceCounterConsumption, ResourceSlice},
};
use parking_lot::Mutex;

use super::selectors::{Answer, Selectors};

/// Expressions whose answers are kept for one slice.
const MAX_ANSWERED: usize = 32;

/// Driver and name of a pool.
pub(crate) type PoolId = (Arc<str>, Arc<str>);

/// Driver, pool and name of a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DeviceId {
    pub(crate) driver: Arc<str>,
    pub(crate) pool: Arc<str>,
    pub(crate) device: Arc<str>,
}

/// From which nodes a device can be used.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reach {
    Nowhere,
    Node(String),
    Selected(NodeSelector),
    Everywhere,
}

impl Reach {
    fn of(node: Option<&String>, selector: Option<&NodeSelector>, all: Option<bool>) -> Self {
        match (node.filter(|it| !it.is_empty()), selector, all) {
            (Some(node), ..) => Self::Node(node.clone()),
            (None, Some(selector), _) => Self::Selected(selector.clone()),
            (None, None, Some(true)) => Self::Everywhere,
            (None, None, _) => Self::Nowhere,
        }
    }

    /// Whether it can be used from several nodes.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Selected(_) | Self::Everywhere)
    }
}

/// Whether nodes match the terms of a selector; what a [`Reach`] is asked with.
pub(crate) trait Place {
    fn name(&self) -> &str;
    fn matches(&self, terms: &[NodeSelectorTerm]) -> bool;
}

/// A device of a slice.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) id: DeviceId,
    pub(crate) reach: Reach,
    pub(crate) device: Device,
}

/// What a driver tells of some devices of a pool. Never changes: a new one takes its place.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) pool: PoolId,
    generation: i64,
    n_slices: i64,
    pub(crate) offers: Vec<Offer>,
    /// What devices of the pool have together, by set and name (KEP-4815).
    counters: BTreeMap<String, BTreeMap<String, Quantity>>,
    /// What was found out of its devices, by expression.
    answers: Mutex<HashMap<Arc<str>, Vec<Option<Answer>>>>,
}

impl Slice {
    fn of(slice: &ResourceSlice) -> Self {
        let spec = &slice.spec;
        let pool: PoolId = (spec.driver.as_str().into(), spec.pool.name.as_str().into());
        let reach = Reach::of(spec.node_name.as_ref(), spec.node_selector.as_ref(), spec.all_nodes);
        let offer = |it: &Device| Offer {
            id: DeviceId {
                driver: pool.0.clone(),
                pool: pool.1.clone(),
                device: it.name.as_str().into(),
            },
            reach: match spec.per_device_node_selection {
                Some(true) => {
                    Reach::of(it.node_name.as_ref(), it.node_selector.as_ref(), it.all_nodes)
                }
                _ => reach.clone(),
            },
            device: it.clone(),
        };
        let counters = spec.shared_counters.iter().flatten();
        Self {
            generation: spec.pool.generation,
            n_slices: spec.pool.resource_slice_count,
            offers: spec.devices.iter().flatten().map(offer).collect(),
            counters: counters.map(|it| (it.name.clone(), amounts(&it.counters))).collect(),
            pool,
            answers: Mutex::default(),
        }
    }

    /// Whether an expression holds for the device at a place.
    pub(crate) fn matches(
        &self,
        selectors: &Selectors,
        expression: &Arc<str>,
        at: usize,
    ) -> Answer {
        let Some(offer) = self.offers.get(at) else { return Ok(false) };
        let mut answers = self.answers.lock();
        if MAX_ANSWERED <= answers.len() && !answers.contains_key(expression) {
            answers.clear();
        }
        let known =
            answers.entry(expression.clone()).or_insert_with(|| vec![None; self.offers.len()]);
        let ask = || selectors.matches(expression, &self.pool.0, &offer.device);
        known.get_mut(at).map_or(Ok(false), |it| it.get_or_insert_with(ask).clone())
    }
}

fn amount(counter: &Counter) -> Quantity {
    Quantity::parse(&counter.value.0).unwrap_or(Quantity::ZERO)
}

fn amounts(counters: &BTreeMap<String, Counter>) -> BTreeMap<String, Quantity> {
    counters.iter().map(|(name, it)| (name.clone(), amount(it))).collect()
}

/// What one pool has for one node.
#[derive(Debug)]
pub(crate) struct Pool {
    /// All of its slices, of the newest generation.
    slices: Vec<Arc<Slice>>,
    /// The slices and places in them of the devices that the node can use.
    pub(crate) offers: Vec<(usize, usize)>,
    /// Why nothing is to be taken from it.
    pub(crate) problem: Option<Problem>,
}

/// Why nothing is taken from a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It is being written.
    Incomplete,
    /// It contradicts itself.
    Invalid,
}

impl Pool {
    fn of(slices: Vec<Arc<Slice>>, place: &impl Place) -> Option<Self> {
        let newest = slices.iter().map(|it| it.generation).max()?;
        let slices: Vec<_> = slices.into_iter().filter(|it| it.generation == newest).collect();
        let reaches = |reach: &Reach| match reach {
            Reach::Nowhere => false,
            Reach::Node(node) => node == place.name(),
            Reach::Selected(selector) => place.matches(&selector.node_selector_terms),
            Reach::Everywhere => true,
        };
        let mut offers = Vec::new();
        for (n, slice) in slices.iter().enumerate() {
            let here = slice.offers.iter().enumerate().filter(|(_, it)| reaches(&it.reach));
            offers.extend(here.map(|(at, _)| (n, at)));
        }
        if offers.is_empty() {
            return None;
        }
        let mut it = Self { slices, offers, problem: None };
        it.problem = it.find_problem();
        Some(it)
    }

    fn find_problem(&self) -> Option<Problem> {
        let n_expected = self.slices.first().map_or(0, |it| it.n_slices);
        if i64::try_from(self.slices.len()) != Ok(n_expected) {
            return Some(Problem::Incomplete);
        }
        let mut names = BTreeSet::new();
        let is_twice = self.offers.iter().any(|at| !names.insert(&self.offer(*at).id.device));
        let mut sets = BTreeSet::new();
        let sets_twice =
            self.slices.iter().flat_map(|it| it.counters.keys()).any(|it| !sets.insert(it));
        let is_known = |it: &DeviceCounterConsumption| {
            let set = self.slices.iter().find_map(|slice| slice.counters.get(&it.counter_set));
            set.is_some_and(|set| it.counters.keys().all(|name| set.contains_key(name)))
        };
        let mut all = self.slices.iter().flat_map(|it| &it.offers);
        let is_unknown = all.any(|it| !it.device.consumes_counters.iter().flatten().all(is_known));
        (is_twice || sets_twice || is_unknown).then_some(Problem::Invalid)
    }

    pub(crate) fn slice(&self, at: (usize, usize)) -> &Slice {
        &self.slices[at.0]
    }

    pub(crate) fn offer(&self, at: (usize, usize)) -> &Offer {
        &self.slices[at.0].offers[at.1]
    }

    pub(crate) fn has_counters(&self) -> bool {
        self.slices.iter().any(|it| !it.counters.is_empty())
    }

    /// Whether no counter of the pool is overdrawn if these devices are taken, beside those that
    /// are by `is_taken`.
    pub(crate) fn bears(&self, is_taken: impl Fn(&DeviceId) -> bool, more: &[&Offer]) -> bool {
        let mut left: BTreeMap<(&str, &str), Quantity> = BTreeMap::new();
        for slice in &self.slices {
            for (set, counters) in &slice.counters {
                left.extend(counters.iter().map(|(name, it)| ((&**set, &**name), *it)));
            }
        }
        let all = self.slices.iter().flat_map(|it| &it.offers);
        for offer in all.filter(|it| is_taken(&it.id)).chain(more.iter().copied()) {
            for consumed in offer.device.consumes_counters.iter().flatten() {
                for (name, it) in &consumed.counters {
                    if let Some(left) = left.get_mut(&(&*consumed.counter_set, &**name)) {
                        *left = left.exact_sub(amount(it));
                    }
                }
            }
        }
        left.values().all(|it| !it.is_negative())
    }
}

/// All slices, so that those of a node are found.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    slices: HashMap<Arc<str>, Arc<Slice>>,
    by_pool: BTreeMap<PoolId, BTreeMap<Arc<str>, Arc<Slice>>>,
    /// Pools with devices for one node alone, by node, with the number of their slices.
    local: HashMap<String, BTreeMap<PoolId, usize>>,
    /// Pools with devices for several.
    shared: BTreeMap<PoolId, usize>,
}

impl Inventory {
    /// Notes a slice, or that it is gone.
    pub(crate) fn put(&mut self, name: &Arc<str>, slice: Option<&ResourceSlice>) {
        if let Some(old) = self.slices.remove(name) {
            if let Some(pool) = self.by_pool.get_mut(&old.pool) {
                pool.remove(name);
                if pool.is_empty() {
                    self.by_pool.remove(&old.pool);
                }
            }
            self.index(&old, false);
        }
        if let Some(slice) = slice {
            let slice = Arc::new(Slice::of(slice));
            self.index(&slice, true);
            let pool = self.by_pool.entry(slice.pool.clone()).or_default();
            pool.insert(name.clone(), slice.clone());
            self.slices.insert(name.clone(), slice);
        }
    }

    fn index(&mut self, slice: &Slice, is_there: bool) {
        let nodes: BTreeSet<&String> = slice
            .offers
            .iter()
            .filter_map(|it| match &it.reach {
                Reach::Node(node) => Some(node),
                _ => None,
            })
            .collect();
        for node in nodes {
            let pools = self.local.entry(node.clone()).or_default();
            count(pools, &slice.pool, is_there);
            if pools.is_empty() {
                self.local.remove(node);
            }
        }
        if slice.offers.iter().any(|it| it.reach.is_shared()) {
            count(&mut self.shared, &slice.pool, is_there);
        }
    }

    /// The pools that have devices for a node, in the order of their names.
    pub(crate) fn pools(&self, place: &impl Place) -> Vec<Pool> {
        let local = self.local.get(place.name()).into_iter().flat_map(BTreeMap::keys);
        let ids: BTreeSet<&PoolId> = local.chain(self.shared.keys()).collect();
        let slices = ids.into_iter().filter_map(|id| self.by_pool.get(id));
        slices.filter_map(|it| Pool::of(it.values().cloned().collect(), place)).collect()
    }

    /// Whether a device can be used from several nodes, as far as it is known.
    pub(crate) fn is_shared(&self, id: &DeviceId) -> bool {
        let pool = self.by_pool.get(&(id.driver.clone(), id.pool.clone()));
        let mut all = pool.into_iter().flat_map(BTreeMap::values).flat_map(|it| &it.offers);
        all.find(|it| it.id == *id).is_some_and(|it| it.reach.is_shared())
    }
}

fn count(pools: &mut BTreeMap<PoolId, usize>, pool: &PoolId, is_there: bool) {
    let n = pools.entry(pool.clone()).or_default();
    *n = if is_there { *n + 1 } else { n.saturating_sub(1) };
    if *n == 0 {
        pools.remove(pool);
    }
}
