//! What nodes really use, of what is measured now and then.
//!
//! Pods that came since the last measurement are not in it; they are taken to use what they ask
//! for, so that a burst does not go to the node that was idle.

use super::Nodes;
use crate::measured::Usage;

/// What a node used, and what its pods were taken to use then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    usage: Usage,
    supposed: Usage,
}

impl Nodes {
    fn supposed(&self, row: usize) -> Usage {
        Usage { cpu: self.supposed_cpu[row], memory: self.supposed_memory[row] }
    }

    /// Notes what a node uses now, or that nobody knows.
    pub(crate) fn measure(&mut self, row: usize, usage: Option<Usage>) {
        let supposed = self.supposed(row);
        let measured = usage.map(|usage| Measured { usage, supposed });
        if self.measured[row] != measured {
            self.measured[row] = measured;
            self.changes.pods(row);
        }
    }

    /// What a node uses, with what its newest pods are taken to use; if it is not measured, what
    /// all of them are.
    pub(crate) fn load(&self, row: usize) -> Usage {
        let now = self.supposed(row);
        match self.measured[row] {
            Some(Measured { usage, supposed }) => Usage {
                cpu: usage.cpu.saturating_add((now.cpu - supposed.cpu).max(0)),
                memory: usage.memory.saturating_add((now.memory - supposed.memory).max(0)),
            },
            None => now,
        }
    }
}
