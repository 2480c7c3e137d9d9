//! How long a daemon set leaves a pod that failed where it is, before it makes another.
//!
//! A node may refuse each pod that it is given; as upstream, the first is replaced at once, the
//! next after a second, and each after twice as long as the one before, a quarter of an hour at
//! most. What did not fail for half an hour is forgotten, and so is what was of another generation
//! of the set.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Of one set.
#[derive(Debug, Default)]
struct OfSet {
    generation: i64,
    nodes: HashMap<String, Failure>,
}

/// Of one node.
#[derive(Debug, Clone, Copy)]
struct Failure {
    replaced: Instant,
    wait: Duration,
}

impl Failure {
    fn left(&self, now: Instant) -> Option<Duration> {
        self.wait.checked_sub(now.duration_since(self.replaced)).filter(|it| !it.is_zero())
    }

    fn is_over(&self, now: Instant) -> bool {
        2 * LONGEST < now.duration_since(self.replaced)
    }
}

/// Of all sets, by uid.
#[derive(Debug, Default)]
pub(super) struct Failing(HashMap<String, OfSet>);

/// Nodes whose failed pods stay for now, and for how long at least.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Held {
    pub(super) nodes: BTreeSet<String>,
    pub(super) least: Option<Duration>,
}

impl Failing {
    /// Of `nodes`, each with a pod of a set that failed, those that are to wait. Of the others the
    /// pods are replaced now.
    pub(super) fn replace<'a>(
        &mut self,
        set: &str,
        generation: i64,
        nodes: impl Iterator<Item = &'a str>,
    ) -> Held {
        let now = Instant::now();
        let mut held = Held::default();
        let mut nodes = nodes.peekable();
        if nodes.peek().is_none() {
            return held;
        }
        let known = self.0.entry(set.to_owned()).or_default();
        if known.generation != generation {
            *known = OfSet { generation, nodes: HashMap::new() };
        }
        known.nodes.retain(|_, it| !it.is_over(now));
        for node in nodes {
            let before = known.nodes.get(node);
            if let Some(left) = before.and_then(|it| it.left(now)) {
                held.nodes.insert(node.to_owned());
                held.least = Some(held.least.map_or(left, |least| least.min(left)));
                continue;
            }
            let wait = before.map_or(FIRST, |it| (2 * it.wait).min(LONGEST));
            known.nodes.insert(node.to_owned(), Failure { replaced: now, wait });
        }
        held
    }

    /// A set is gone.
    pub(super) fn forget(&mut self, set: &str) {
        self.0.remove(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_waits_twice_as_long_as_the_one_before() {
        let mut failing = Failing::default();
        let held = |failing: &mut Failing, generation: i64| {
            failing.replace("set", generation, ["a"].into_iter()).least
        };
        let mut waited = Vec::new();
        for _ in 0..13 {
            assert_eq!(held(&mut failing, 1), None);
            let left = held(&mut failing, 1).unwrap();
            waited.push(left.as_secs());
            tokio::time::advance(left - Duration::from_millis(1)).await;
            assert!(held(&mut failing, 1).is_some());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(waited, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        // Another template has another chance, and so has a node that was well for long.
        assert_eq!(held(&mut failing, 2), None);
        assert_eq!(held(&mut failing, 2), Some(FIRST));
        tokio::time::advance(2 * LONGEST + FIRST).await;
        assert_eq!((held(&mut failing, 2), held(&mut failing, 2)), (None, Some(FIRST)));
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_and_sets_wait_by_themselves() {
        let mut failing = Failing::default();
        failing.replace("set", 1, ["a"].into_iter());
        let held = failing.replace("set", 1, ["a", "b"].into_iter());
        assert_eq!(held, Held { nodes: ["a".into()].into(), least: Some(FIRST) });
        assert_eq!(failing.replace("other", 1, ["a"].into_iter()), Held::default());
        failing.forget("set");
        failing.replace("other", 1, [].into_iter());
        assert_eq!(failing.0.len(), 1);
    }
}
