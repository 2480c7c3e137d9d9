//! What is counted, and of which pods that is.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};

use super::Namespaces;
use crate::{
    labels::ABSENT,
    nodes::Nodes,
    plugins::{NodeSelection, keeps_away},
    pod::{Group, PodTerm, Shape},
};

/// What is counted, and where.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(crate) topology_key: Arc<str>,
    pub(crate) counted: Counted,
    /// Nodes on which pods count; `None` for all.
    pub(crate) on: Option<Eligible>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Counted {
    /// Pods that are in all these groups.
    In { groups: Vec<Group>, also_ending: bool },
    /// Pods that have this required term of anti-affinity.
    Avoiding(Group),
    /// Pods that have this required term of affinity.
    Following(Group),
    /// Pods that have this preferred term, with its weight; that of anti-affinity is negative.
    Preferring(Group, i64),
}

/// Nodes that a constraint of topology spread takes into account.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Eligible {
    /// Labels that the node must have, of whatever value.
    pub(crate) keys: Vec<Arc<str>>,
    /// The node selector and required affinity that it must match.
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) required: Option<Vec<NodeSelectorTerm>>,
    /// The tolerations that must cover its taints; `None` if they do not matter.
    pub(crate) tolerations: Option<Vec<Toleration>>,
}

impl Eligible {
    /// Whether all nodes are.
    pub(crate) fn has_all(&self) -> bool {
        let Self { keys, labels, required, tolerations } = self;
        keys.is_empty() && labels.is_empty() && required.is_none() && tolerations.is_none()
    }

    pub(super) fn is_met(&self, nodes: &Nodes, row: usize) -> bool {
        nodes.is_there(row)
            && self.keys.iter().all(|key| nodes.labels.value(nodes.labels.key(key), row) != ABSENT)
            && NodeSelection::new(nodes, &self.labels, self.required.as_deref()).has(nodes, row)
            && self.tolerations.as_ref().is_none_or(|tolerations| {
                !nodes.taint_sets[nodes.taints[row]].iter().any(|it| keeps_away(it, tolerations))
            })
    }
}

/// The same for rules that are the same.
pub(super) fn hash_of(rule: &Rule) -> u64 {
    let mut hasher = DefaultHasher::new();
    rule.topology_key.hash(&mut hasher);
    match &rule.counted {
        Counted::In { groups, also_ending } => (0, groups, also_ending).hash(&mut hasher),
        Counted::Avoiding(group) => (1, group).hash(&mut hasher),
        Counted::Following(group) => (2, group).hash(&mut hasher),
        Counted::Preferring(group, weight) => (3, group, weight).hash(&mut hasher),
    }
    hasher.finish()
}

/// What each pod of a shape adds to a count.
pub(super) fn added_by(rule: &Rule, shape: &Shape, namespaces: &Namespaces) -> i64 {
    let is_own = |term: &PodTerm, group: &Group| {
        term.topology_key == rule.topology_key && term.group == *group
    };
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    match &rule.counted {
        Counted::In { groups, also_ending } => {
            let labels = namespaces.get(&shape.namespace);
            let is_in = (*also_ending || !shape.is_ending)
                && groups.iter().all(|group| group.has(shape, labels));
            i64::from(is_in)
        }
        Counted::Avoiding(group) => {
            number(shape.anti_affinity.iter().filter(|it| is_own(it, group)).count())
        }
        Counted::Following(group) => {
            number(shape.affinity.iter().filter(|it| is_own(it, group)).count())
        }
        Counted::Preferring(group, weight) => shape
            .preferred_pods
            .iter()
            .filter(|(term, own)| own == weight && is_own(term, group))
            .map(|(_, own)| own)
            .sum(),
    }
}
