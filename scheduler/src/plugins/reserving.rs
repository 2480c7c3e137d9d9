//! Takes volumes and devices for pods that are being bound.

use crate::{
    framework::Reserve,
    storage::{Assumed, Work},
    world::World,
};

/// What filters said is to be done for a pod, volumes and devices alike. Filters that take no part
/// say nothing, so nothing is taken for them.
#[derive(Debug)]
pub(crate) struct Reserving;

impl Reserve for Reserving {
    fn reserve(&self, world: &mut World, work: &Work, row: usize) -> Assumed {
        let node = world.nodes.name_of(row);
        let mut assumed = world.storage.assume(work, &node);
        assumed.devices = world.devices.assume(&work.devices);
        assumed
    }

    fn unreserve(&self, world: &mut World, assumed: &Assumed) {
        world.storage.settle(assumed);
        world.devices.settle(&assumed.devices);
    }
}
