//! Which row is best, kept while single rows change.
//!
//! A tree over all rows: each node of it knows the highest score below, and how many rows have
//! it. A change costs as many steps as the tree is high, and so does choosing.

/// The score of a row that does not come into question.
const NONE: i64 = i64::MIN;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Best {
    /// Leaves begin at half of the length. The root is at 1.
    tree: Vec<(i64, u32)>,
}

impl Best {
    /// Makes the tree of all rows at once.
    pub(crate) fn of(scores: impl ExactSizeIterator<Item = Option<i64>>) -> Self {
        let n_leaves = scores.len().max(1).next_power_of_two();
        let mut tree = vec![(NONE, 0); 2 * n_leaves];
        for (leaf, score) in tree[n_leaves..].iter_mut().zip(scores) {
            *leaf = score.map_or((NONE, 0), |score| (score, 1));
        }
        for at in (1..n_leaves).rev() {
            tree[at] = higher(tree[2 * at], tree[2 * at + 1]);
        }
        Self { tree }
    }

    /// Rows that there is place for.
    pub(crate) fn n_rows(&self) -> usize {
        self.tree.len() / 2
    }

    /// Sets the score of a row; `None` if it does not come into question.
    pub(crate) fn set(&mut self, row: usize, score: Option<i64>) {
        let mut at = self.n_rows() + row;
        let leaf = score.map_or((NONE, 0), |score| (score, 1));
        if self.tree[at] == leaf {
            return;
        }
        self.tree[at] = leaf;
        while 1 < at {
            at /= 2;
            let it = higher(self.tree[2 * at], self.tree[2 * at + 1]);
            if self.tree[at] == it {
                return;
            }
            self.tree[at] = it;
        }
    }

    /// One of the best rows; `tie` chooses.
    pub(crate) fn pick(&self, tie: usize) -> Option<usize> {
        let (best, n_best) = self.tree.get(1).copied().filter(|(_, n)| *n != 0)?;
        let mut left = u32::try_from(tie % n_best as usize).unwrap_or(0);
        let mut at = 1;
        while at < self.n_rows() {
            at *= 2;
            let (score, n_rows) = self.tree[at];
            if score == best && left < n_rows {
                continue;
            }
            if score == best {
                left -= n_rows;
            }
            at += 1;
        }
        Some(at - self.n_rows())
    }
}

fn higher(left: (i64, u32), right: (i64, u32)) -> (i64, u32) {
    match left.0.cmp(&right.0) {
        std::cmp::Ordering::Greater => left,
        std::cmp::Ordering::Less => right,
        std::cmp::Ordering::Equal => (left.0, left.1 + right.1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn picks_every_best_row_in_turn(
            mut scores in proptest::collection::vec(proptest::option::of(0..4_i64), 1..40),
            changes in proptest::collection::vec((0..40_usize, proptest::option::of(0..4_i64)), 0..20),
        ) {
            let mut tree = Best::of(scores.iter().copied());
            for (row, score) in changes {
                if row < scores.len() {
                    scores[row] = score;
                    tree.set(row, score);
                }
            }
            let best = scores.iter().flatten().max();
            let expected: Vec<usize> = (0..scores.len())
                .filter(|row| scores[*row].is_some() && scores[*row].as_ref() == best)
                .collect();
            let picked: Vec<usize> =
                (0..expected.len().max(1)).filter_map(|tie| tree.pick(tie)).collect();
            prop_assert_eq!(picked, expected);
        }
    }
}
