//! Which row is best, kept while single rows change.
//!
//! A tree over blocks of rows: each node of it knows the highest score below, and how many rows
//! have it. A change costs a look at its block and as many steps as the tree is high, and so does
//! choosing; and the tree is small beside the scores.

/// The score of a row that does not come into question.
const NONE: i64 = i64::MIN;
/// Rows of a block.
const BLOCK: usize = 32;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Best {
    scores: Vec<i64>,
    /// Leaves, one for each block, begin at half of the length. The root is at 1.
    tree: Vec<(i64, u32)>,
}

impl Best {
    /// Makes the tree of all rows at once.
    pub(crate) fn of(scores: impl Iterator<Item = Option<i64>>) -> Self {
        let scores = scores.map(|it| it.unwrap_or(NONE)).collect();
        let mut it = Self { scores, tree: Vec::new() };
        it.grow();
        it
    }

    /// Makes the tree anew, with place for all rows.
    fn grow(&mut self) {
        let n_leaves = self.scores.len().div_ceil(BLOCK).max(1).next_power_of_two();
        self.tree = vec![(NONE, 0); 2 * n_leaves];
        for (leaf, block) in self.tree[n_leaves..].iter_mut().zip(self.scores.chunks(BLOCK)) {
            *leaf = highest(block);
        }
        for at in (1..n_leaves).rev() {
            self.tree[at] = higher(self.tree[2 * at], self.tree[2 * at + 1]);
        }
    }

    /// Has place for so many rows; new ones do not come into question.
    pub(crate) fn resize(&mut self, n_rows: usize) {
        self.scores.resize(n_rows.max(self.scores.len()), NONE);
        if self.tree.len() / 2 * BLOCK < self.scores.len() {
            self.grow();
        }
    }

    /// The score of a row that comes into question.
    pub(crate) fn score(&self, row: usize) -> Option<i64> {
        self.scores.get(row).copied().filter(|it| *it != NONE)
    }

    /// The rows that come into question, with their scores.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (usize, i64)> + '_ {
        self.scores.iter().copied().enumerate().filter(|(_, score)| *score != NONE)
    }

    /// Sets the score of a row; `None` if it does not come into question.
    pub(crate) fn set(&mut self, row: usize, score: Option<i64>) {
        let score = score.unwrap_or(NONE);
        if self.scores[row] == score {
            return;
        }
        self.scores[row] = score;
        let first = row / BLOCK * BLOCK;
        let block = &self.scores[first..self.scores.len().min(first + BLOCK)];
        let mut at = self.tree.len() / 2 + row / BLOCK;
        let mut it = highest(block);
        while self.tree[at] != it {
            self.tree[at] = it;
            if at == 1 {
                return;
            }
            at /= 2;
            it = higher(self.tree[2 * at], self.tree[2 * at + 1]);
        }
    }

    /// One of the best rows; `tie` chooses.
    pub(crate) fn pick(&self, tie: usize) -> Option<usize> {
        let (best, n_best) = self.tree.get(1).copied().filter(|(_, n)| *n != 0)?;
        let mut left = u32::try_from(tie % n_best as usize).unwrap_or(0);
        let mut at = 1;
        let mut pass_by = |(score, n_rows): (i64, u32)| {
            let passes = score != best || n_rows <= left;
            if passes && score == best {
                left -= n_rows;
            }
            passes
        };
        while at < self.tree.len() / 2 {
            at *= 2;
            if pass_by(self.tree[at]) {
                at += 1;
            }
        }
        let first = (at - self.tree.len() / 2) * BLOCK;
        let rows = first..self.scores.len().min(first + BLOCK);
        rows.into_iter().find(|row| !pass_by((self.scores[*row], 1)))
    }
}

/// The highest score of a block, and how many rows have it.
fn highest(block: &[i64]) -> (i64, u32) {
    let best = block.iter().copied().max().unwrap_or(NONE);
    let n_best = block.iter().map(|it| u32::from(*it == best)).sum();
    if best == NONE { (NONE, 0) } else { (best, n_best) }
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
            mut scores in proptest::collection::vec(proptest::option::of(0..4_i64), 1..200),
            changes in proptest::collection::vec((0..200_usize, proptest::option::of(0..4_i64)), 0..60),
            n_more in 0..100_usize,
        ) {
            let mut tree = Best::of(scores.iter().copied());
            tree.resize(scores.len() + n_more);
            scores.resize(scores.len() + n_more, None);
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
