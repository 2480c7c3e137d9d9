//! Which of the possible nodes is best.
//!
//! Each score rates rows from 0 to 100; the weighted sum decides.

use k8s_openapi::api::core::v1::Taint;

use crate::{
    candidate::Candidate,
    filters::tolerates,
    nodes::Nodes,
    requests::{CPU, MEMORY},
};

const MAX: i64 = 100;

/// One way to rate nodes.
pub(crate) trait Score: std::fmt::Debug + Sync {
    fn weight(&self) -> i64;

    /// Rates each of `rows`; `scores` has as many places.
    fn rate(&self, nodes: &Nodes, pod: &Candidate, rows: &[usize], scores: &mut [i64]);
}

/// All scores.
pub(crate) const SCORES: [&dyn Score; 4] =
    [&LeastAllocated, &Balanced, &PreferredAffinity, &PreferredTaints];

/// CPU and memory of a row in use if the pod ran there, and what the row offers.
fn usage(nodes: &Nodes, pod: &Candidate, row: usize) -> [(i64, i64); 2] {
    let offer = |name| nodes.resource(name).map_or(0, |column| column.allocatable[row]);
    [
        (nodes.supposed_cpu[row].saturating_add(pod.requests.supposed_cpu), offer(CPU)),
        (nodes.supposed_memory[row].saturating_add(pod.requests.supposed_memory), offer(MEMORY)),
    ]
}

/// Prefers nodes with much left.
#[derive(Debug)]
struct LeastAllocated;

impl Score for LeastAllocated {
    fn weight(&self) -> i64 {
        1
    }

    fn rate(&self, nodes: &Nodes, pod: &Candidate, rows: &[usize], scores: &mut [i64]) {
        let left = |(used, offered): (i64, i64)| {
            if offered <= used { 0 } else { percent(offered - used, offered) }
        };
        for (row, score) in rows.iter().zip(scores) {
            let [cpu, memory] = usage(nodes, pod, *row);
            *score = (left(cpu) + left(memory)) / 2;
        }
    }
}

/// Prefers nodes on which no resource runs out before the other.
#[derive(Debug)]
struct Balanced;

impl Score for Balanced {
    fn weight(&self) -> i64 {
        1
    }

    fn rate(&self, nodes: &Nodes, pod: &Candidate, rows: &[usize], scores: &mut [i64]) {
        let share = |(used, offered): (i64, i64)| {
            if offered <= used { MAX } else { percent(used, offered) }
        };
        for (row, score) in rows.iter().zip(scores) {
            let [cpu, memory] = usage(nodes, pod, *row);
            // Of two shares, half their distance is their deviation.
            *score = MAX - (share(cpu) - share(memory)).abs() / 2;
        }
    }
}

/// Prefers nodes that match more of the pod's preferences.
#[derive(Debug)]
struct PreferredAffinity;

impl Score for PreferredAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn rate(&self, nodes: &Nodes, pod: &Candidate, rows: &[usize], scores: &mut [i64]) {
        for preferred in &pod.preferred {
            let term = nodes.labels.term(&preferred.preference);
            for (row, score) in rows.iter().zip(scores.iter_mut()) {
                if term.matches(*row, nodes.name(*row)) {
                    *score += i64::from(preferred.weight);
                }
            }
        }
        let most = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            *score = if most == 0 { 0 } else { percent(*score, most) };
        }
    }
}

/// Prefers nodes without taints that ask pods to stay away.
#[derive(Debug)]
struct PreferredTaints;

impl Score for PreferredTaints {
    fn weight(&self) -> i64 {
        3
    }

    fn rate(&self, nodes: &Nodes, pod: &Candidate, rows: &[usize], scores: &mut [i64]) {
        let asks_away = |taint: &&Taint| {
            taint.effect == "PreferNoSchedule"
                && !pod.tolerations.iter().any(|it| tolerates(it, taint))
        };
        let n_taints: Vec<i64> = nodes
            .taint_sets
            .iter()
            .map(|set| i64::try_from(set.iter().filter(asks_away).count()).unwrap_or(i64::MAX))
            .collect();
        let of_row = |row: &usize| n_taints[nodes.taints[*row]];
        let most = rows.iter().map(of_row).max().unwrap_or(0);
        for (row, score) in rows.iter().zip(scores) {
            *score = if most == 0 { MAX } else { MAX - percent(of_row(row), most) };
        }
    }
}

fn percent(part: i64, whole: i64) -> i64 {
    let share = i128::from(part) * i128::from(MAX) / i128::from(whole.max(1));
    i64::try_from(share).unwrap_or(MAX)
}
