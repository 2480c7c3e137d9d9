//! What tenants have of all nodes, and what a turn costs them for it.
//!
//! A tenant's share is that of the resource of which it has the largest part (dominant resource
//! fairness, Ghodsi et al. 2011). Who has twice as much of it as another has half as many turns;
//! so under contention shares approach one another, and whoever is alone has all.

use std::{collections::BTreeMap, sync::Arc};

use crate::{nodes::Nodes, queue::TURN, requests::Requests};

/// A turn of who has everything costs so many times [`TURN`] more.
const STEEPNESS: i128 = 64;

/// What one tenant has on nodes.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// How many pods of each priority.
    pub(crate) priorities: BTreeMap<i32, usize>,
    /// By resource, in the resource's unit. Few: as many as its pods ask for.
    held: Vec<(Arc<str>, i64)>,
}

impl Usage {
    /// Notes a pod that came (`1`) or went (`-1`).
    pub(crate) fn add(&mut self, requests: &Requests, sign: i64) {
        for (name, amount) in &requests.amounts {
            match self.held.iter_mut().find(|(it, _)| it == name) {
                Some((_, held)) => *held = held.saturating_add(sign * amount),
                None => self.held.push((name.clone(), sign * amount)),
            }
        }
    }

    /// What a turn costs.
    pub(crate) fn cost_of_turn(&self, nodes: &Nodes) -> u64 {
        let share = |(name, held): &(Arc<str>, i64)| {
            let total = nodes.column(nodes.resource_at(name)?).total;
            (0 < total).then(|| i128::from(TURN) * i128::from((*held).max(0)) / i128::from(total))
        };
        let dominant = self.held.iter().filter_map(share).max().unwrap_or(0);
        let more = (dominant * STEEPNESS).min(i128::from(TURN) * STEEPNESS);
        TURN + u64::try_from(more).unwrap_or(0)
    }
}
