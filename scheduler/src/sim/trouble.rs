//! What happens to replicas, nodes and pods in virtual time.

use super::*;

impl Sim {
    /// Something that nobody expects.
    pub(super) fn disturb(&mut self) {
        let at = self.rng.random_range(0..N_REPLICAS);
        match self.rng.random_range(0..1000) {
            0..3 => {
                let life = self.replicas[at].life + 1;
                self.replicas[at] = Replica::new(life, self.rng.random());
            }
            3..20 => self.replicas[at].sleeps_until = self.now + self.rng.random_range(10..200),
            20..60 => {
                // Whoever is thought to be gone is replaced, rightly or not, and learns of it late.
                let block = self.rng.random_range(0..N_BLOCKS);
                self.claim(at, block);
            }
            60..400 if self.pods.len() < MAX_PODS => {
                let pod = self.n_pods;
                self.n_pods += 1;
                let cpu = 100 * self.rng.random_range(1..9);
                let tenant = self.rng.random_range(0..9);
                self.keep(pod, Some(Kept::new(tenant, cpu, None)));
            }
            610..640 if self.pods.len() < MAX_PODS => {
                let (gang, tenant) = (self.n_gangs, self.rng.random_range(0..9));
                self.n_gangs += 1;
                for _ in 0..PER_GANG {
                    let cpu = 100 * self.rng.random_range(1..9);
                    let pod = self.n_pods;
                    self.n_pods += 1;
                    self.keep(pod, Some(Kept::new(tenant, cpu, Some(gang))));
                }
            }
            400..600 => {
                let nth = self.rng.random_range(0..self.pods.len().max(1));
                if let Some(pod) = self.pods.keys().nth(nth).copied() {
                    self.keep(pod, None);
                }
            }
            600..610 => {
                let node = self.rng.random_range(0..N_NODES);
                let comes = !self.nodes.remove(&node);
                if comes {
                    self.nodes.insert(node);
                }
                self.log.push(Change::Node(node, comes));
                self.mourn();
            }
            _ => (),
        }
    }
}
