//! Prefers nodes that really use less. Not a plugin of upstream's, and off unless it is enabled.

use crate::{
    framework::{Depends, MAX_SCORE, Rate, Score},
    measured::Usage,
    pod::Shape,
    requests::{CPU, MEMORY},
    world::World,
};

/// See the [module](self).
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadAware;

impl LoadAware {
    pub(crate) const NAME: &str = "LoadAware";
}

impl Score for LoadAware {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let (cpu, memory) = (world.nodes.resource_at(CPU)?, world.nodes.resource_at(MEMORY)?);
        let asked = Usage { cpu: pod.requests.supposed_cpu, memory: pod.requests.supposed_memory };
        Some(Box::new(Load { cpu, memory, asked }))
    }
}

#[derive(Debug)]
struct Load {
    /// Their columns.
    cpu: usize,
    memory: usize,
    asked: Usage,
}

impl Rate for Load {
    fn depends(&self) -> Depends {
        Depends::Row
    }

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.requests.clone_from(&pod.requests);
    }

    /// The part that would be left of what there is least left of.
    fn rate(&self, world: &World, row: usize) -> i64 {
        let load = world.nodes.load(row);
        let left = |column: usize, used: i64| {
            let offered = world.nodes.column(column).allocatable[row];
            let left = i128::from(offered.saturating_sub(used).max(0));
            let share = i128::from(MAX_SCORE) * left / i128::from(offered.max(1));
            i64::try_from(share).unwrap_or(0)
        };
        left(self.cpu, load.cpu.saturating_add(self.asked.cpu))
            .min(left(self.memory, load.memory.saturating_add(self.asked.memory)))
    }
}
