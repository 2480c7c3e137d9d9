//! What is left when all goes well again in virtual time.

use super::*;

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
        for _ in 0..1000 {
            self.go_on();
        }
    }

    /// Pods that have no node though some node has room for them; nothing if some room is kept for
    /// a group that waits. Replicas hear of that by nominations, which are not modelled for pods
    /// of others.
    pub(super) fn forgotten(&self) -> Option<Vec<usize>> {
        if self.pods.values().any(|it| it.node.is_none() && it.mark.is_some()) {
            return None;
        }
        let mut free: BTreeMap<usize, i64> = self.nodes.iter().map(|node| (*node, OFFER)).collect();
        for it in self.pods.values() {
            if let Some(free) = it.node.and_then(|node| free.get_mut(&node)) {
                *free -= it.cpu;
            }
        }
        let most = free.values().max().copied().unwrap_or(0);
        let waits = |it: &Kept| it.node.is_none() && it.gang.is_none() && it.cpu <= most;
        Some(self.pods.iter().filter(|(_, it)| waits(it)).map(|(pod, _)| *pod).collect())
    }
}
