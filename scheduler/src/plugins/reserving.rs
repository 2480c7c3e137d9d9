//! Takes volumes and devices for pods that are being bound.

use crate::{
    framework::{Event, Reserve},
    pod::Shape,
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

    fn unreserve(&self, world: &mut World, pod: &Shape, assumed: &Assumed) -> Vec<Event> {
        let mut events = Vec::new();
        if world.storage.settle(assumed) {
            events.push(Event::Storage { tenant: Some(pod.tenant.clone()) });
        }
        if world.devices.settle(&assumed.devices) {
            events.push(Event::Devices { claim: None });
        }
        events
    }
}
