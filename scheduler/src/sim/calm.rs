//! What is left when all goes well again in virtual time.

use super::*;

/// By then all has come to an end.
const LATEST: u64 = 10_000;

impl Sim {
    /// Has everything go well from now on: all blocks are somebody's, nobody thinks to have
    /// another's, and all messages arrive.
    pub(super) fn calm_down(&mut self) {
        for block in 0..N_BLOCKS {
            for replica in &mut self.replicas {
                replica.adopted.remove(&block);
                replica.claimed.remove(&block);
            }
            self.claim(usize::from(block) % N_REPLICAS, block);
        }
        // What is on its way for long arrives, and who waited for that looks again.
        let mut is_calm = false;
        while !is_calm && self.now < LATEST {
            is_calm = self.stranded().is_empty();
            for _ in 0..1000 {
                self.go_on();
            }
            is_calm &= self.stranded().is_empty();
        }
    }

    /// Pods of groups that hold room which nobody gives back or binds to, with what they say. What
    /// is said of a node that is gone means nothing.
    pub(super) fn stranded(&self) -> Vec<(usize, Option<Mark>)> {
        let has_room = |it: &Kept| it.nominated.is_some_and(|it| self.nodes.contains(&it));
        let waits = |it: &Kept| it.node.is_none() && it.mark.is_some() && has_room(it);
        self.pods.iter().filter(|(_, it)| waits(it)).map(|(pod, it)| (*pod, it.mark)).collect()
    }

    /// Pods that have no node though some node has room for them.
    pub(super) fn forgotten(&self) -> Vec<usize> {
        let mut free: BTreeMap<usize, i64> = self.nodes.iter().map(|node| (*node, OFFER)).collect();
        for it in self.pods.values() {
            if let Some(free) = it.node.and_then(|node| free.get_mut(&node)) {
                *free -= it.cpu;
            }
        }
        let most = free.values().max().copied().unwrap_or(0);
        let waits = |it: &Kept| it.node.is_none() && it.gang.is_none() && it.cpu <= most;
        self.pods.iter().filter(|(_, it)| waits(it)).map(|(pod, _)| *pod).collect()
    }
}
