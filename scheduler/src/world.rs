//! All that decisions are made of: nodes, the pods on them, counts of pods, volumes, budgets.
//!
//! # Invariants
//!
//! * The table of nodes and the counts of every tenant show exactly what the ledger says.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use insula_api::{names::TenantName, slots::Block};
use insula_client::ObjectKey;
use insula_membership::Holders;
use k8s_openapi::api::core::v1::Node;

use crate::{
    budgets::Budgets,
    devices::Devices,
    gangs::Gangs,
    ledger::{Held, Holder, Ledger},
    nodes::{Changed, Nodes},
    nominations::Nominations,
    pod::Shape,
    queue::TURN,
    storage::Storage,
    tally::Tallies,
    usage::Usage,
    workloads::Workloads,
};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) nodes: Nodes,
    ledger: Ledger,
    tallies: HashMap<TenantName, Tallies>,
    pub(crate) storage: Storage,
    pub(crate) devices: Devices,
    /// Whose nodes are whose, if they are shared among replicas.
    holders: Option<Arc<Holders>>,
    pub(crate) budgets: Budgets,
    pub(crate) nominations: Nominations,
    pub(crate) workloads: Workloads,
    pub(crate) gangs: Gangs,
    /// Of tenants that have anything.
    usage: HashMap<TenantName, Usage>,
    none: Tallies,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            nodes: Nodes::new(),
            ledger: Ledger::default(),
            tallies: HashMap::new(),
            storage: Storage::default(),
            devices: Devices::default(),
            holders: None,
            budgets: Budgets::default(),
            nominations: Nominations::default(),
            workloads: Workloads::default(),
            gangs: Gangs::default(),
            usage: HashMap::new(),
            none: Tallies::default(),
        }
    }

    /// The counts of a tenant.
    pub(crate) fn tallies(&self, tenant: &TenantName) -> &Tallies {
        self.tallies.get(tenant).unwrap_or(&self.none)
    }

    /// The same, to ask for counts that are not there yet.
    pub(crate) fn tallies_mut(&mut self, tenant: &TenantName) -> (&mut Tallies, &Nodes) {
        (entry(&mut self.tallies, tenant), &self.nodes)
    }

    /// Notes a node as it is now.
    pub(crate) fn put_node(&mut self, name: &str, node: &Node) -> (usize, Changed) {
        let row = self.nodes.row_for(name);
        // Nodes tell that they are alive all the time, and that moves no pod to another domain.
        let moves = self.nodes.is_another(row, node);
        if moves {
            self.tallies.values_mut().for_each(|it| it.lift(&self.nodes, row));
        }
        let (row, changed) = self.nodes.put(name, node);
        if moves {
            self.tallies.values_mut().for_each(|it| it.lower(&self.nodes, row));
        }
        if changed.has_new_column {
            self.count_resources_anew();
        }
        (row, changed)
    }

    fn count_resources_anew(&mut self) {
        for row in 0..self.nodes.n_rows() {
            self.nodes.clear_held(row);
            for Holder { held, .. } in self.ledger.on_row(row) {
                self.nodes.hold(row, &held.shape.requests, &held.shape.ports);
            }
        }
    }

    /// Notes that a node is gone.
    pub(crate) fn remove_node(&mut self, name: &str) {
        let Some(row) = self.nodes.row(name) else { return };
        self.tallies.values_mut().for_each(|it| it.lift(&self.nodes, row));
        self.nodes.remove(row);
        self.tallies.values_mut().for_each(|it| it.lower(&self.nodes, row));
        self.forget_row(row);
    }

    fn forget_row(&mut self, row: usize) {
        if self.ledger.on_row(row).next().is_none() {
            self.nodes.forget(row);
        }
    }

    /// The labels of a namespace, or that it is gone.
    pub(crate) fn set_namespace(
        &mut self,
        tenant: &TenantName,
        name: &Arc<str>,
        labels: Option<BTreeMap<String, String>>,
    ) {
        entry(&mut self.tallies, tenant).set_namespace(&self.nodes, name, labels);
    }

    pub(crate) fn held(&self, key: &ObjectKey) -> Option<&Held> {
        self.ledger.get(key)
    }

    /// The pods that hold something on a row.
    pub(crate) fn pods_on(&self, row: usize) -> impl Iterator<Item = &Holder> {
        self.ledger.on_row(row)
    }

    /// Notes what a pod holds, in place of what it held. Returns the shape that it had, if it was
    /// another or elsewhere and so gave something back.
    pub(crate) fn hold(&mut self, key: &ObjectKey, held: Held) -> Option<Held> {
        if let Some(old) = self.ledger.get_mut(key)
            && old.row == held.row
            && Arc::ptr_eq(&old.shape, &held.shape)
        {
            *old = held;
            return None;
        }
        let before = self.release(key);
        self.add(held.row, &held.shape, 1);
        self.gangs.place(&held.shape, 1);
        self.gangs.forget(key);
        let usage = entry(&mut self.usage, &held.shape.tenant);
        *usage.priorities.entry(held.shape.priority).or_default() += 1;
        usage.add(&held.shape.requests, 1);
        self.ledger.put(key, held);
        before
    }

    /// Notes that a pod holds nothing any more.
    pub(crate) fn release(&mut self, key: &ObjectKey) -> Option<Held> {
        let held = self.ledger.take(key)?;
        self.add(held.row, &held.shape, -1);
        self.gangs.place(&held.shape, -1);
        if let Some(usage) = self.usage.get_mut(&held.shape.tenant) {
            usage.add(&held.shape.requests, -1);
            if let Some(n_pods) = usage.priorities.get_mut(&held.shape.priority) {
                *n_pods -= 1;
                if *n_pods == 0 {
                    usage.priorities.remove(&held.shape.priority);
                }
            }
            if usage.priorities.is_empty() {
                self.usage.remove(&held.shape.tenant);
            }
        }
        self.forget_row(held.row);
        Some(held)
    }

    /// Shows a pod on a row, or takes it away again, without its being held there: to try what
    /// would be.
    pub(crate) fn add(&mut self, row: usize, shape: &Arc<Shape>, n_pods: i64) {
        if 0 < n_pods {
            self.nodes.hold(row, &shape.requests, &shape.ports);
        } else {
            self.nodes.release(row, &shape.requests, &shape.ports);
        }
        entry(&mut self.tallies, &shape.tenant).add(&self.nodes, row, shape, n_pods);
        self.storage.add(shape, row, n_pods);
    }

    /// Notes who holds what among several replicas. Returns whether that is news.
    pub(crate) fn share(&mut self, holders: Option<Arc<Holders>>) -> bool {
        let is_news = self.holders.as_ref().map(Arc::as_ptr) != holders.as_ref().map(Arc::as_ptr);
        if is_news {
            self.holders = holders;
            self.devices.note_change();
        }
        is_news
    }

    /// Whether nodes are shared among replicas.
    pub(crate) fn is_shared(&self) -> bool {
        self.holders.is_some()
    }

    /// Whether a pod on this row can be given devices that several nodes reach: whoever binds it
    /// must be who gives them away, which is the replica of tenant `system`.
    pub(crate) fn gives_shared_on(&self, row: usize) -> bool {
        let of_all = Block::of_tenant(TenantName::system().as_str());
        let node = || Block::of_node(self.nodes.name(row));
        self.holders.as_ref().is_none_or(|it| it.are_same(node(), of_all))
    }

    /// Whether any node has a pod that `shape` may have ended.
    pub(crate) fn has_victims_for(&self, shape: &Shape) -> bool {
        let lower = |usage: &Usage| {
            usage.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < shape.priority)
        };
        if shape.tenant == TenantName::system() {
            return self.usage.values().any(lower);
        }
        self.usage.get(&shape.tenant).is_some_and(lower)
    }

    /// What a tenant's turn costs it, for what it has.
    pub(crate) fn cost_of_turn(&self, tenant: &TenantName) -> u64 {
        self.usage.get(tenant).map_or(TURN, |usage| usage.cost_of_turn(&self.nodes))
    }

    /// Forgets what nobody needs any more.
    pub(crate) fn sweep(&mut self) {
        self.tallies.retain(|_, it| {
            it.sweep();
            !it.is_empty()
        });
    }

    /// What filters and scores have prepared for a shape is void if this changed.
    pub(crate) fn version(&self, shape: &Shape) -> [u64; 6] {
        let (columns, labels) = self.nodes.version();
        let of_volumes = if shape.claims.is_empty() { 0 } else { self.storage.version() };
        let of_devices = if shape.devices.is_none() { 0 } else { self.devices.version() };
        // Both only grow, so the sum is the same only if both are.
        let storage = of_volumes + of_devices;
        [
            columns,
            labels,
            self.tallies(&shape.tenant).generation(),
            storage,
            self.nodes.images.version(),
            self.workloads.version(),
        ]
    }
}

fn entry<'a, K: Clone + Eq + std::hash::Hash, V: Default>(
    map: &'a mut HashMap<K, V>,
    key: &K,
) -> &'a mut V {
    map.entry(key.clone()).or_default()
}
