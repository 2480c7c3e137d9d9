//! What keeps a pod off a node.
//!
//! A filter goes over the rows that are still possible, keeps those it accepts and counts why it
//! does not accept the others, in upstream's words.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::{candidate::Candidate, nodes::Nodes, queue::Happenings, requests::PODS};

/// How many nodes were refused for what reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reasons(BTreeMap<String, usize>);

impl Reasons {
    fn add(&mut self, reason: &str, n_nodes: usize) {
        if n_nodes != 0 {
            *self.0.entry(reason.to_owned()).or_default() += n_nodes;
        }
    }

    /// The reasons as users read them, each with its number of nodes.
    pub(crate) fn listed(&self) -> String {
        let mut list: Vec<String> =
            self.0.iter().map(|(reason, n_nodes)| format!("{n_nodes} {reason}")).collect();
        list.sort();
        list.join(", ")
    }
}

/// One of the things that keep a pod off a node.
pub(crate) trait Filter: std::fmt::Debug + Sync {
    /// Keeps the rows on which the pod could run.
    fn keep(&self, nodes: &Nodes, pod: &Candidate, rows: &mut Vec<usize>, reasons: &mut Reasons);

    /// After what a pod that was refused could be accepted.
    fn helped_by(&self) -> Happenings;
}

/// All filters, in the order in which they are asked.
pub(crate) const FILTERS: [&dyn Filter; 5] = [&Unschedulable, &Taints, &Affinity, &Ports, &Fit];

/// Keeps rows for which `test` holds; the others are refused for one reason.
fn keep_if(
    rows: &mut Vec<usize>,
    reasons: &mut Reasons,
    reason: &str,
    mut test: impl FnMut(usize) -> bool,
) {
    let before = rows.len();
    rows.retain(|row| test(*row));
    reasons.add(reason, before - rows.len());
}

/// Nodes that are cordoned.
#[derive(Debug)]
struct Unschedulable;

impl Filter for Unschedulable {
    fn keep(&self, nodes: &Nodes, pod: &Candidate, rows: &mut Vec<usize>, reasons: &mut Reasons) {
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if pod.tolerations.iter().any(|it| tolerates(it, &cordon)) {
            return;
        }
        keep_if(rows, reasons, "node(s) were unschedulable", |row| !nodes.unschedulable[row]);
    }

    fn helped_by(&self) -> Happenings {
        Happenings::NODE_ADDED | Happenings::NODE_TAINTS
    }
}

/// Taints that the pod does not tolerate.
#[derive(Debug)]
struct Taints;

impl Filter for Taints {
    fn keep(&self, nodes: &Nodes, pod: &Candidate, rows: &mut Vec<usize>, reasons: &mut Reasons) {
        // Nodes share few sets of taints: judge each set once.
        let keeps_away = |taint: &Taint| {
            matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                && !pod.tolerations.iter().any(|it| tolerates(it, taint))
        };
        let tolerated: Vec<bool> =
            nodes.taint_sets.iter().map(|set| !set.iter().any(keeps_away)).collect();
        keep_if(rows, reasons, "node(s) had untolerated taint(s)", |row| {
            tolerated[nodes.taints[row]]
        });
    }

    fn helped_by(&self) -> Happenings {
        Happenings::NODE_ADDED | Happenings::NODE_TAINTS
    }
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let (wanted, present) = (text(&toleration.value), text(&taint.value));
    let numbers = || Some((wanted.parse::<i64>().ok()?, present.parse::<i64>().ok()?));
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && wanted == present,
        "Gt" => numbers().is_some_and(|(wanted, present)| wanted < present),
        "Lt" => numbers().is_some_and(|(wanted, present)| present < wanted),
        _ => false,
    }
}

/// The pod's node selector and required node affinity.
#[derive(Debug)]
struct Affinity;

impl Filter for Affinity {
    fn keep(&self, nodes: &Nodes, pod: &Candidate, rows: &mut Vec<usize>, reasons: &mut Reasons) {
        let labels: Vec<_> =
            pod.labels.iter().map(|(key, value)| nodes.labels.equals(key, value)).collect();
        let terms: Option<Vec<_>> = pod
            .required
            .as_ref()
            .map(|terms| terms.iter().map(|term| nodes.labels.term(term)).collect());
        if labels.is_empty() && terms.is_none() {
            return;
        }
        keep_if(rows, reasons, "node(s) didn't match Pod's node affinity/selector", |row| {
            labels.iter().all(|it| it.holds(row))
                && terms
                    .as_ref()
                    .is_none_or(|terms| terms.iter().any(|term| term.matches(row, nodes.name(row))))
        });
    }

    fn helped_by(&self) -> Happenings {
        Happenings::NODE_ADDED | Happenings::NODE_LABELS
    }
}

/// Ports of the host that others have.
#[derive(Debug)]
struct Ports;

impl Filter for Ports {
    fn keep(&self, nodes: &Nodes, pod: &Candidate, rows: &mut Vec<usize>, reasons: &mut Reasons) {
        if pod.ports.is_empty() {
            return;
        }
        let reason = "node(s) didn't have free ports for the requested pod ports";
        keep_if(rows, reasons, reason, |row| {
            let taken = &nodes.ports[row];
            !pod.ports.iter().any(|wanted| taken.iter().any(|it| it.clashes(wanted)))
        });
    }

    fn helped_by(&self) -> Happenings {
        Happenings::NODE_ADDED | Happenings::POD_GONE
    }
}

/// Resources that are not left.
#[derive(Debug)]
struct Fit;

impl Filter for Fit {
    fn keep(&self, nodes: &Nodes, pod: &Candidate, rows: &mut Vec<usize>, reasons: &mut Reasons) {
        // A node may lack several resources; each is told. So first mark, then drop.
        let mut lacks = vec![false; rows.len()];
        for (name, amount) in &pod.requests.amounts {
            let column = nodes.resource(name);
            let mut n_lacking = 0;
            for (row, lacks) in rows.iter().zip(&mut lacks) {
                if column.is_none_or(|column| column.free(*row) < *amount) {
                    *lacks = true;
                    n_lacking += 1;
                }
            }
            if &**name == PODS {
                reasons.add("Too many pods", n_lacking);
            } else {
                reasons.add(&format!("Insufficient {name}"), n_lacking);
            }
        }
        let mut lacks = lacks.into_iter();
        rows.retain(|_| !lacks.next().unwrap_or(true));
    }

    fn helped_by(&self) -> Happenings {
        Happenings::NODE_ADDED | Happenings::NODE_GREW | Happenings::POD_GONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(toleration: [&str; 4], taint: [&str; 3], expected: bool) {
        let some = |text: &str| Some(text.to_owned()).filter(|it| !it.is_empty());
        let [key, operator, value, effect] = toleration;
        let it = Toleration {
            key: some(key),
            operator: some(operator),
            value: some(value),
            effect: some(effect),
            toleration_seconds: None,
        };
        let [key, value, effect] = taint;
        let taint =
            Taint { key: key.into(), value: some(value), effect: effect.into(), time_added: None };
        assert_eq!(tolerates(&it, &taint), expected, "{it:?} on {taint:?}");
    }

    #[test]
    fn tolerations() {
        let taint = ["k", "v", "NoSchedule"];
        check(["k", "", "v", ""], taint, true);
        check(["k", "Equal", "v", "NoSchedule"], taint, true);
        check(["k", "Equal", "w", ""], taint, false);
        check(["k", "Exists", "", ""], taint, true);
        check(["k", "Exists", "", "NoExecute"], taint, false);
        check(["", "Exists", "", ""], taint, true);
        check(["", "Equal", "v", ""], taint, false);
        check(["j", "Exists", "", ""], taint, false);
        check(["k", "Gt", "5", ""], ["k", "6", "NoSchedule"], true);
        check(["k", "Lt", "5", ""], ["k", "6", "NoSchedule"], false);
        check(["k", "Gt", "5", ""], taint, false);
    }

    #[test]
    fn reasons_read_as_upstreams() {
        let mut reasons = Reasons::default();
        reasons.add("Insufficient memory", 1);
        reasons.add("Insufficient cpu", 12);
        reasons.add("node(s) were unschedulable", 2);
        reasons.add("nothing", 0);
        assert_eq!(
            reasons.listed(),
            "1 Insufficient memory, 12 Insufficient cpu, 2 node(s) were unschedulable"
        );
    }
}
