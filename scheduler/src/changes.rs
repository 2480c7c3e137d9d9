//! Which rows of the table of nodes changed, in order.
//!
//! Whoever keeps something that is made of rows remembers how far it has read, and makes anew what
//! changed since.

use std::collections::VecDeque;

/// Changes that are kept for each row there is, and at least. Who is further behind reads all.
const KEPT_PER_ROW: usize = 2;
const KEPT: usize = 4096;

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) row: usize,
    /// Whether the node itself changed, and not only what is held on it.
    pub(crate) is_node: bool,
}

/// The latest changes.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Row times two, plus one if the node itself changed.
    latest: VecDeque<u32>,
    end: u64,
    n_rows: usize,
}

impl Changes {
    /// The node of a row changed, came or went.
    pub(crate) fn node(&mut self, row: usize) {
        self.note(row, 1);
    }

    /// What is held on a row changed.
    pub(crate) fn pods(&mut self, row: usize) {
        self.note(row, 0);
    }

    fn note(&mut self, row: usize, is_node: u32) {
        self.n_rows = self.n_rows.max(row + 1);
        let entry = u32::try_from(row).unwrap_or(u32::MAX >> 1) << 1 | is_node;
        if KEPT.max(KEPT_PER_ROW * self.n_rows) <= self.latest.len() {
            self.latest.pop_front();
        }
        self.latest.push_back(entry);
        self.end += 1;
    }

    /// How many changes there have been.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The changes after the first `n_read`; `None` if some of them are not kept any more.
    pub(crate) fn since(&self, n_read: u64) -> Option<impl Iterator<Item = Change> + '_> {
        let n_new = usize::try_from(self.end.checked_sub(n_read)?).ok()?;
        let first = self.latest.len().checked_sub(n_new)?;
        let decoded = |entry: &u32| Change { row: (entry >> 1) as usize, is_node: entry & 1 == 1 };
        Some(self.latest.range(first..).map(decoded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_read_once_and_what_is_too_old_is_said() {
        let mut changes = Changes::default();
        changes.node(3);
        let read = changes.end();
        changes.pods(4);
        let new: Vec<_> = changes.since(read).unwrap().collect();
        assert_eq!(new, [Change { row: 4, is_node: false }]);
        assert_eq!(changes.since(changes.end()).unwrap().count(), 0);
        for _ in 0..KEPT {
            changes.pods(1);
        }
        assert!(changes.since(read).is_none());
    }
}
