//! All nodes, as columns: one packed array per property, one row per node.
//!
//! A filter is a pass over such arrays. Rows are reused when nodes go. A row may hold pods of a
//! node that is not there, or not there any more; it is never handed to a filter.
//!
//! # Invariants
//!
//! * `held` is exactly the sum over the pods that were noted by [`Nodes::hold`] and not
//!   [`Nodes::release`]d since a resource has its column.
//! * Only resources that some node offers have a column: what pods ask for cannot make the table
//!   grow.
//! * Whatever changes a row is in [`Nodes::changes`].

mod load;
mod preferred;
mod runtimes;
mod taints;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Taint};

pub(crate) use self::runtimes::{CONDITIONS, Runtimes};
use self::{load::Measured, taints::taints_of};
use crate::{
    changes::Changes,
    images::Images,
    labels::Labels,
    pod::HostPort,
    requests::{CPU, EPHEMERAL_STORAGE, MEMORY, PODS, Requests, amount},
};

/// One resource of all nodes.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: Arc<str>,
    pub(crate) allocatable: Vec<i64>,
    pub(crate) held: Vec<i64>,
    /// What all nodes that are there offer.
    pub(crate) total: i64,
}

impl Column {
    pub(crate) fn free(&self, row: usize) -> i64 {
        self.allocatable[row].saturating_sub(self.held[row])
    }
}

/// Resources that always have a column, in the order of their columns.
const ALWAYS: [&str; 4] = [CPU, MEMORY, EPHEMERAL_STORAGE, PODS];

/// The table of nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    names: Vec<Option<Arc<str>>>,
    is_there: Vec<bool>,
    rows: HashMap<Arc<str>, usize>,
    free: Vec<usize>,
    n_there: usize,
    columns: Vec<Column>,
    resources: HashMap<Arc<str>, usize>,
    /// CPU and memory as scores see them: with guesses for pods that do not say.
    pub(crate) supposed_cpu: Vec<i64>,
    pub(crate) supposed_memory: Vec<i64>,
    measured: Vec<Option<Measured>>,
    pub(crate) unschedulable: Vec<bool>,
    pub(crate) runtimes: Vec<Runtimes>,
    /// Which of `taint_sets` a row has. Many nodes share few sets.
    pub(crate) taints: Vec<usize>,
    pub(crate) taint_sets: Vec<Vec<Taint>>,
    pub(crate) ports: Vec<Vec<HostPort>>,
    /// Nodes of this replica's own share, if there are others.
    preferred: Vec<bool>,
    pub(crate) labels: Labels,
    pub(crate) images: Images,
    pub(crate) changes: Changes,
    version: u64,
}

/// What a change of a node means to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) is_new: bool,
    /// It offers more of something.
    pub(crate) grew: bool,
    /// Its taints or readiness changed, or whether it is cordoned.
    pub(crate) taints: bool,
    pub(crate) labels: bool,
    /// Amounts held must be noted anew: a resource is counted that was not before.
    pub(crate) has_new_column: bool,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        let mut nodes = Self {
            names: Vec::new(),
            is_there: Vec::new(),
            rows: HashMap::new(),
            free: Vec::new(),
            n_there: 0,
            columns: Vec::new(),
            resources: HashMap::new(),
            supposed_cpu: Vec::new(),
            supposed_memory: Vec::new(),
            measured: Vec::new(),
            unschedulable: Vec::new(),
            runtimes: Vec::new(),
            taints: Vec::new(),
            taint_sets: vec![Vec::new()],
            ports: Vec::new(),
            preferred: Vec::new(),
            labels: Labels::default(),
            images: Images::default(),
            changes: Changes::default(),
            version: 0,
        };
        for name in ALWAYS {
            nodes.add_column(name);
        }
        nodes
    }

    fn add_column(&mut self, name: &str) {
        let name: Arc<str> = name.into();
        let empty = vec![0; self.names.len()];
        self.resources.insert(name.clone(), self.columns.len());
        self.columns.push(Column { name, allocatable: empty.clone(), held: empty, total: 0 });
        self.version += 1;
    }

    /// Grows whenever columns, sets of taints or numbers of labels come to mean something else:
    /// what filters and scores have prepared is void then.
    pub(crate) fn version(&self) -> (u64, u64) {
        (self.version, self.labels.version())
    }

    /// The rows of nodes that are there.
    pub(crate) fn rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.is_there.iter().enumerate().filter(|(_, is_there)| **is_there).map(|(row, _)| row)
    }

    /// How many nodes are there.
    pub(crate) fn len(&self) -> usize {
        self.n_there
    }

    /// Rows are numbered below this.
    pub(crate) fn n_rows(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn is_there(&self, row: usize) -> bool {
        self.is_there.get(row).copied().unwrap_or(false)
    }

    /// The row of a node that is there.
    pub(crate) fn row(&self, name: &str) -> Option<usize> {
        self.rows.get(name).copied().filter(|row| self.is_there(*row))
    }

    /// A row's node; empty for a free row.
    pub(crate) fn name(&self, row: usize) -> &str {
        self.names.get(row).and_then(Option::as_deref).unwrap_or_default()
    }

    pub(crate) fn name_of(&self, row: usize) -> Arc<str> {
        self.names.get(row).cloned().flatten().unwrap_or_else(|| "".into())
    }

    /// The column of a resource, if any node offers it.
    #[cfg(test)]
    pub(crate) fn resource(&self, name: &str) -> Option<&Column> {
        self.resource_at(name).map(|at| &self.columns[at])
    }

    /// The place of a resource's column, which it keeps.
    pub(crate) fn resource_at(&self, name: &str) -> Option<usize> {
        // Those of nearly every pod need no look into the map.
        ALWAYS.iter().position(|it| *it == name).or_else(|| self.resources.get(name).copied())
    }

    pub(crate) fn column(&self, at: usize) -> &Column {
        &self.columns[at]
    }

    #[cfg(test)]
    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Whether a node has come, or its labels or taints are others than before.
    pub(crate) fn is_another(&self, row: usize, node: &Node) -> bool {
        let no_labels = BTreeMap::new();
        !self.is_there(row)
            || self.labels.differ(row, node.metadata.labels.as_ref().unwrap_or(&no_labels))
            || self.taint_sets[self.taints[row]] != taints_of(node)
    }

    /// Notes a node as it is now.
    pub(crate) fn put(&mut self, name: &str, node: &Node) -> (usize, Changed) {
        let row = self.row_for(name);
        let mut changed = Changed { is_new: !self.is_there[row], ..Changed::default() };
        let status = node.status.as_ref();
        let offered = status.and_then(|it| it.allocatable.as_ref().or(it.capacity.as_ref()));
        for resource in offered.into_iter().flat_map(BTreeMap::keys) {
            if self.resource_at(resource).is_none() {
                self.add_column(resource);
                changed.has_new_column = true;
            }
        }
        let mut shrank = false;
        for column in &mut self.columns {
            let offer = offered
                .and_then(|offered| offered.get(&*column.name))
                .map_or(0, |quantity| amount(&column.name, quantity));
            changed.grew |= column.allocatable[row] < offer;
            shrank |= offer < column.allocatable[row];
            column.total = column.total.saturating_add(offer - column.allocatable[row]);
            column.allocatable[row] = offer;
        }
        let no_labels = BTreeMap::new();
        changed.labels = self.labels.set(row, node.metadata.labels.as_ref().unwrap_or(&no_labels));
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        let taints = self.taint_set(taints_of(node));
        let runtimes = Runtimes::of(node);
        changed.taints = self.unschedulable[row] != unschedulable
            || self.taints[row] != taints
            || self.runtimes[row] != runtimes;
        self.runtimes[row] = runtimes;
        self.unschedulable[row] = unschedulable;
        self.taints[row] = taints;
        let images = status.and_then(|it| it.images.as_deref()).unwrap_or_default();
        let has_other_images = self.images.set(row, images);
        if changed.is_new {
            self.is_there[row] = true;
            self.n_there += 1;
        }
        if changed.is_new
            || changed.grew
            || shrank
            || changed.taints
            || changed.labels
            || has_other_images
        {
            self.changes.node(row);
        }
        (row, changed)
    }

    /// The row of a node that may not be there.
    pub(crate) fn row_for(&mut self, name: &str) -> usize {
        if let Some(row) = self.rows.get(name) {
            return *row;
        }
        let name: Arc<str> = name.into();
        let row = self.free.pop().unwrap_or_else(|| {
            self.names.push(None);
            self.is_there.push(false);
            self.supposed_cpu.push(0);
            self.supposed_memory.push(0);
            self.measured.push(None);
            self.unschedulable.push(false);
            self.runtimes.push(Runtimes::default());
            self.taints.push(0);
            self.ports.push(Vec::new());
            self.preferred.push(false);
            for column in &mut self.columns {
                column.allocatable.push(0);
                column.held.push(0);
            }
            self.names.len() - 1
        });
        self.names[row] = Some(name.clone());
        self.rows.insert(name, row);
        row
    }

    /// Notes that a node is gone. What is held on it stays.
    pub(crate) fn remove(&mut self, row: usize) {
        if !self.is_there(row) {
            return;
        }
        self.is_there[row] = false;
        self.n_there -= 1;
        for column in &mut self.columns {
            column.total -= column.allocatable[row];
            column.allocatable[row] = 0;
        }
        self.labels.set(row, &BTreeMap::new());
        self.images.set(row, &[]);
        self.unschedulable[row] = false;
        self.runtimes[row] = Runtimes::default();
        self.measured[row] = None;
        self.taints[row] = 0;
        self.changes.node(row);
    }

    /// Gives a row free whose node is gone and on which nothing is held any more.
    pub(crate) fn forget(&mut self, row: usize) {
        if self.is_there(row) {
            return;
        }
        if let Some(name) = self.names.get_mut(row).and_then(Option::take) {
            self.rows.remove(&name);
            self.free.push(row);
        }
    }

    /// Forgets what is held on a row, to note it anew.
    pub(crate) fn clear_held(&mut self, row: usize) {
        for column in &mut self.columns {
            column.held[row] = 0;
        }
        self.supposed_cpu[row] = 0;
        self.supposed_memory[row] = 0;
        self.ports[row].clear();
        self.changes.pods(row);
    }

    /// Notes that a pod takes this from a row.
    pub(crate) fn hold(&mut self, row: usize, requests: &Requests, ports: &[HostPort]) {
        self.add(row, requests, 1);
        self.ports[row].extend_from_slice(ports);
    }

    /// Notes that a pod takes this no longer.
    pub(crate) fn release(&mut self, row: usize, requests: &Requests, ports: &[HostPort]) {
        self.add(row, requests, -1);
        for port in ports {
            if let Some(at) = self.ports[row].iter().position(|it| it == port) {
                self.ports[row].swap_remove(at);
            }
        }
    }

    fn add(&mut self, row: usize, requests: &Requests, sign: i64) {
        for (name, amount) in &requests.amounts {
            if let Some(at) = self.resource_at(name) {
                let held = &mut self.columns[at].held[row];
                *held = held.saturating_add(sign * amount);
            }
        }
        self.supposed_cpu[row] += sign * requests.supposed_cpu;
        self.supposed_memory[row] += sign * requests.supposed_memory;
        self.changes.pods(row);
    }

    fn taint_set(&mut self, taints: Vec<Taint>) -> usize {
        if let Some(at) = self.taint_sets.iter().position(|set| *set == taints) {
            return at;
        }
        self.version += 1;
        // Sets that no row has any more are reused before the list grows.
        let unused = (1..self.taint_sets.len()).find(|at| !self.taints.contains(at));
        match unused {
            Some(at) => {
                self.taint_sets[at] = taints;
                at
            }
            None => {
                self.taint_sets.push(taints);
                self.taint_sets.len() - 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn plain(cpu: &str) -> Node {
        node(json!({"status": {
            "allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }}))
    }

    fn requests(cpu: i64) -> Requests {
        Requests {
            amounts: vec![(CPU.into(), cpu), (PODS.into(), 1), ("example.com/gpu".into(), 1)],
            supposed_cpu: cpu,
            supposed_memory: 5,
        }
    }

    #[test]
    fn what_changed_is_told() {
        let mut nodes = Nodes::new();
        let happened = |nodes: &mut Nodes, it: &Node| nodes.put("n", it).1;
        let none = Changed::default();
        assert!(happened(&mut nodes, &plain("2")).is_new);
        assert_eq!(happened(&mut nodes, &plain("2")), none);
        assert_eq!(happened(&mut nodes, &plain("3")), Changed { grew: true, ..none });
        assert_eq!(happened(&mut nodes, &plain("1")), none);
        let mut it = plain("1");
        it.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(happened(&mut nodes, &it), Changed { taints: true, ..none });
        it.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        assert_eq!(happened(&mut nodes, &it), Changed { labels: true, ..none });
    }

    #[test]
    fn held_amounts_come_and_go_and_rows_are_reused_empty() {
        let mut nodes = Nodes::new();
        nodes.put("n", &plain("2"));
        let row = nodes.row("n").unwrap();
        let port = HostPort { address: String::new(), protocol: "TCP".into(), port: 80 };
        nodes.hold(row, &requests(500), std::slice::from_ref(&port));
        nodes.hold(row, &requests(700), &[]);
        nodes.release(row, &requests(700), &[]);
        assert_eq!(nodes.resource(CPU).unwrap().free(row), 1500);
        assert_eq!(nodes.ports[row], std::slice::from_ref(&port));
        nodes.remove(row);
        assert_eq!((nodes.len(), nodes.rows().count()), (0, 0));
        nodes.release(row, &requests(500), std::slice::from_ref(&port));
        nodes.forget(row);
        nodes.put("m", &plain("1"));
        assert_eq!(nodes.row("m"), Some(row));
        assert_eq!(nodes.resource(CPU).unwrap().free(row), 1000);
        assert!(nodes.ports[row].is_empty() && nodes.row("n").is_none());
    }

    #[test]
    fn only_offered_resources_are_counted() {
        let mut nodes = Nodes::new();
        nodes.put("n", &plain("2"));
        let row = nodes.row("n").unwrap();
        nodes.hold(row, &requests(1), &[]);
        assert!(nodes.resource("example.com/gpu").is_none());
        let mut it = plain("2");
        let offered = it.status.as_mut().unwrap().allocatable.as_mut().unwrap();
        offered.insert(
            "example.com/gpu".into(),
            k8s_openapi::apimachinery::pkg::api::resource::Quantity("2".into()),
        );
        let (_, changed) = nodes.put("n", &it);
        assert!(changed.has_new_column && changed.grew);
        nodes.clear_held(row);
        nodes.hold(row, &requests(1), &[]);
        assert_eq!(nodes.resource("example.com/gpu").unwrap().free(row), 1);
    }

    #[test]
    fn taint_sets_are_shared_and_reused() {
        let mut nodes = Nodes::new();
        let tainted = |key: &str| {
            let mut it = plain("1");
            let taint = Taint { key: key.into(), effect: "NoSchedule".into(), ..Taint::default() };
            it.spec.get_or_insert_default().taints = Some(vec![taint]);
            it
        };
        for round in 0..10 {
            for name in ["a", "b", "c"] {
                nodes.put(name, &tainted(&format!("round-{round}")));
            }
        }
        assert!(nodes.taint_sets.len() <= 4, "{:?}", nodes.taint_sets);
        let sets: Vec<_> = nodes.rows().map(|row| nodes.taints[row]).collect();
        assert!(sets.windows(2).all(|it| it[0] == it[1]));
        assert_eq!(nodes.taint_sets[sets[0]][0].key, "round-9");
    }
}
