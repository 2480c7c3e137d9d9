//! Tells which pods would be better off elsewhere. Not a plugin of upstream's, and off unless it is
//! enabled; what it looks for, and its thresholds, are those of Kubernetes' descheduler.

use std::time::Duration;

use crate::{
    measured::Usage,
    nodes::Nodes,
    requests::{CPU, MEMORY},
};

/// See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeschedulingHints {
    /// A node has room for others' pods below all of these, in percent of what it offers.
    pub(crate) thresholds: Usage,
    /// A node has too much to do above any of these; or up to any of them has room.
    pub(crate) target_thresholds: Usage,
    /// From one look at all nodes to the next.
    pub(crate) every: Duration,
}

impl DeschedulingHints {
    pub(crate) const NAME: &str = "DeschedulingHints";

    /// Of which resource a node uses more than it should, and how many percent.
    pub(crate) fn overused(
        &self,
        nodes: &Nodes,
        row: usize,
        used: Usage,
    ) -> Option<(&'static str, i64)> {
        let offered = offered(nodes, row);
        let all = [
            (CPU, used.cpu, offered.cpu, self.target_thresholds.cpu),
            (MEMORY, used.memory, offered.memory, self.target_thresholds.memory),
        ];
        all.into_iter()
            .map(|(name, used, offered, most)| (name, percent(used, offered), most))
            .find(|(_, used, most)| most < used)
            .map(|(name, used, _)| (name, used))
    }

    /// Whether a node has room to spare.
    pub(crate) fn is_idle(&self, nodes: &Nodes, row: usize, used: Usage) -> bool {
        let offered = offered(nodes, row);
        percent(used.cpu, offered.cpu) < self.thresholds.cpu
            && percent(used.memory, offered.memory) < self.thresholds.memory
    }
}

impl Default for DeschedulingHints {
    fn default() -> Self {
        Self {
            thresholds: Usage { cpu: 50, memory: 50 },
            target_thresholds: Usage { cpu: 80, memory: 80 },
            every: Duration::from_secs(60),
        }
    }
}

fn offered(nodes: &Nodes, row: usize) -> Usage {
    let of = |name| nodes.resource_at(name).map_or(0, |at| nodes.column(at).allocatable[row]);
    Usage { cpu: of(CPU), memory: of(MEMORY) }
}

/// Of a node that offers nothing all is used.
fn percent(used: i64, offered: i64) -> i64 {
    let share = i128::from(used.max(0)) * 100 / i128::from(offered.max(1));
    i64::try_from(share).unwrap_or(i64::MAX)
}
