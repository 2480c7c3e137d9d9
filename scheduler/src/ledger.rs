//! What each pod holds on which node: known from the server, or assumed because this scheduler
//! has decided so.
//!
//! The assumption makes the next decision see the last one, long before the server has told of
//! it; so a burst of pods cannot be put onto the same last CPU.
//!
//! # Invariants
//!
//! * A pod holds on one node at most.
//! * The table of nodes shows exactly what the ledger says, for the nodes that it has.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use insula_client::ObjectKey;

use crate::{candidate::HostPort, nodes::Nodes, requests::Requests};

/// What one pod holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Holding {
    pub(crate) uid: String,
    pub(crate) node: Arc<str>,
    pub(crate) requests: Requests,
    pub(crate) ports: Vec<HostPort>,
    /// Decided here, and not yet told by the server.
    pub(crate) is_assumed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    holdings: HashMap<ObjectKey, Holding>,
    by_node: HashMap<Arc<str>, BTreeSet<ObjectKey>>,
}

impl Ledger {
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Holding> {
        self.holdings.get(key)
    }

    /// Notes what a pod holds, in place of what it held. Returns whether it held something else
    /// before, and so gave something back.
    pub(crate) fn hold(&mut self, nodes: &mut Nodes, key: &ObjectKey, holding: Holding) -> bool {
        let is_same = |old: &Holding| {
            old.node == holding.node
                && old.requests == holding.requests
                && old.ports == holding.ports
        };
        if let Some(old) = self.holdings.get_mut(key)
            && is_same(old)
        {
            old.uid = holding.uid;
            old.is_assumed = holding.is_assumed;
            return false;
        }
        let held_before = self.release(nodes, key).is_some();
        if let Some(row) = nodes.row(&holding.node) {
            nodes.hold(row, &holding.requests, &holding.ports);
        }
        self.by_node.entry(holding.node.clone()).or_default().insert(key.clone());
        self.holdings.insert(key.clone(), holding);
        held_before
    }

    /// Notes that a pod holds nothing any more.
    pub(crate) fn release(&mut self, nodes: &mut Nodes, key: &ObjectKey) -> Option<Holding> {
        let holding = self.holdings.remove(key)?;
        if let Some(keys) = self.by_node.get_mut(&holding.node) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_node.remove(&holding.node);
            }
        }
        if let Some(row) = nodes.row(&holding.node) {
            nodes.release(row, &holding.requests, &holding.ports);
        }
        Some(holding)
    }

    /// Shows in the table all that is held on a node: when it comes, or counts more than before.
    pub(crate) fn show(&self, nodes: &mut Nodes, node: &str) {
        let Some(row) = nodes.row(node) else { return };
        nodes.clear_held(row);
        let keys = self.by_node.get(node).into_iter().flatten();
        for holding in keys.filter_map(|key| self.holdings.get(key)) {
            nodes.hold(row, &holding.requests, &holding.ports);
        }
    }

    /// Shows all nodes anew.
    pub(crate) fn show_all(&self, nodes: &mut Nodes) {
        let names: Vec<Arc<str>> = nodes.rows().map(|row| nodes.name(row).into()).collect();
        for name in names {
            self.show(nodes, &name);
        }
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;
    use crate::requests::CPU;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(&TenantName::parse("acme").unwrap(), "ns", name)
    }

    fn node() -> Node {
        serde_json::from_value(json!({"status": {"allocatable": {"cpu": "2"}}})).unwrap()
    }

    fn holding(node: &str, cpu: i64) -> Holding {
        let requests = Requests { amounts: vec![(CPU.into(), cpu)], ..Requests::default() };
        Holding {
            uid: "u".into(),
            node: node.into(),
            requests,
            ports: Vec::new(),
            is_assumed: true,
        }
    }

    fn free(nodes: &Nodes, node: &str) -> i64 {
        nodes.resource(CPU).unwrap().free(nodes.row(node).unwrap())
    }

    #[test]
    fn a_pod_holds_on_one_node_only() {
        let (mut nodes, mut ledger) = (Nodes::new(), Ledger::default());
        nodes.put("a", &node());
        nodes.put("b", &node());
        assert!(!ledger.hold(&mut nodes, &key("p"), holding("a", 500)));
        assert!(!ledger.hold(
            &mut nodes,
            &key("p"),
            Holding { is_assumed: false, ..holding("a", 500) }
        ));
        assert_eq!((free(&nodes, "a"), free(&nodes, "b")), (1500, 2000));
        assert!(!ledger.get(&key("p")).unwrap().is_assumed);
        assert!(ledger.hold(&mut nodes, &key("p"), holding("b", 700)));
        assert_eq!((free(&nodes, "a"), free(&nodes, "b")), (2000, 1300));
        assert!(ledger.release(&mut nodes, &key("p")).is_some());
        assert!(ledger.release(&mut nodes, &key("p")).is_none());
        assert_eq!(free(&nodes, "b"), 2000);
    }

    #[test]
    fn a_node_that_comes_late_shows_what_is_held_on_it() {
        let (mut nodes, mut ledger) = (Nodes::new(), Ledger::default());
        ledger.hold(&mut nodes, &key("p"), holding("a", 500));
        nodes.put("a", &node());
        ledger.show(&mut nodes, "a");
        assert_eq!(free(&nodes, "a"), 1500);
        nodes.remove("a");
        nodes.put("a", &node());
        ledger.show_all(&mut nodes);
        assert_eq!(free(&nodes, "a"), 1500);
        ledger.release(&mut nodes, &key("p"));
        assert_eq!(free(&nodes, "a"), 2000);
    }
}
