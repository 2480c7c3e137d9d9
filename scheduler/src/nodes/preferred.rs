//! Nodes of this replica's own share are a little better than others: nobody has to be asked.

use super::Nodes;

/// So much better is a node that others need not be asked about: a tenth of what one score can
/// say of it.
const HEAD_START: i64 = 10;

impl Nodes {
    /// Whether a node is one of those that others need not be asked about.
    pub(crate) fn prefer(&mut self, row: usize, is_preferred: bool) {
        if self.preferred[row] != is_preferred {
            self.preferred[row] = is_preferred;
            self.changes.node(row);
        }
    }

    /// What a row's score begins with.
    pub(crate) fn head_start(&self, row: usize) -> i64 {
        if self.preferred[row] { HEAD_START } else { 0 }
    }
}
