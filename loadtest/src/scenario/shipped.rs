//! The scenarios that are in the program.

use super::{Scenario, ScenarioError};

/// A scenario in the program.
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    pub name: &'static str,
    pub text: &'static str,
}

macro_rules! scenarios {
    ($($name:literal),* $(,)?) => {
        &[$(Shipped { name: $name, text: include_str!(concat!("../../scenarios/", $name, ".yaml")) }),*]
    };
}

/// All of them.
pub const SHIPPED: &[Shipped] = scenarios![
    "density",
    "load",
    "watch-fan-out",
    "tenant-scale",
    "noisy-neighbour",
    "controller-rollout",
    "scheduler-throughput",
    "scheduling",
    "node-storm",
    "light-nodes",
    "partition-failover",
    "live-move",
    "soak",
];

/// The one of this name.
pub fn shipped(name: &str) -> Option<Shipped> {
    SHIPPED.iter().find(|it| it.name == name).copied()
}

impl Shipped {
    /// What it is for, in a line.
    pub fn description(&self) -> Result<String, ScenarioError> {
        Ok(Scenario::parse(self.name, self.text, false, &[])?.description)
    }
}
