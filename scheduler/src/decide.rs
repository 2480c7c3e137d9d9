//! Where a pod goes: a pure function of the table of nodes and the pod.

use crate::{
    candidate::Candidate,
    filters::{FILTERS, Reasons},
    nodes::Nodes,
    queue::Happenings,
    scores::SCORES,
};

/// What came of looking for a node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Take { row: usize },
    None { message: String, helped_by: Happenings },
}

/// Decides. Of equally good nodes `tie` chooses.
pub(crate) fn decide(nodes: &Nodes, pod: &Candidate, tie: usize) -> Decision {
    if nodes.len() == 0 {
        let message = "no nodes available to schedule pods".to_owned();
        return Decision::None { message, helped_by: Happenings::NODE_ADDED };
    }
    let mut rows: Vec<usize> = nodes.rows().collect();
    let mut reasons = Reasons::default();
    let mut helped_by = Happenings::NONE;
    for filter in FILTERS {
        let before = rows.len();
        filter.keep(nodes, pod, &mut rows, &mut reasons);
        if rows.len() != before {
            helped_by |= filter.helped_by();
        }
        if rows.is_empty() {
            let message = format!("0/{} nodes are available: {}.", nodes.len(), reasons.listed());
            return Decision::None { message, helped_by };
        }
    }
    Decision::Take { row: best(nodes, pod, &rows, tie) }
}

fn best(nodes: &Nodes, pod: &Candidate, rows: &[usize], tie: usize) -> usize {
    let mut totals = vec![0_i64; rows.len()];
    let mut scores = vec![0_i64; rows.len()];
    for score in SCORES {
        scores.fill(0);
        score.rate(nodes, pod, rows, &mut scores);
        for (total, rated) in totals.iter_mut().zip(&scores) {
            *total += score.weight() * rated;
        }
    }
    let highest = totals.iter().copied().max().unwrap_or(0);
    let best: Vec<usize> = rows
        .iter()
        .zip(&totals)
        .filter(|(_, total)| **total == highest)
        .map(|(row, _)| *row)
        .collect();
    // Never empty: `rows` is not, and the highest total is one of theirs.
    best.get(tie % best.len().max(1)).or_else(|| rows.first()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
