//! All pods of a group, or none.

use std::borrow::Cow;

use crate::{
    framework::{Permit, Permitted, PreEnqueue},
    gangs::{Policy, TIMEOUT},
    pod::Shape,
    world::World,
};

/// See the [module](self).
#[derive(Debug, Clone, Copy)]
pub(crate) struct GangScheduling;

impl PreEnqueue for GangScheduling {
    fn why_not(&self, world: &World, pod: &Shape) -> Option<Cow<'static, str>> {
        match world.gangs.policy(pod) {
            None => {
                let name = pod.group.as_ref().map_or("", |it| &*it.name);
                let why =
                    format!("waiting for pods's pod group {name:?} to appear in scheduling queue");
                Some(Cow::Owned(why))
            }
            Some(Policy::Gang { min_count }) if world.gangs.counts(pod).1 < min_count => {
                Some(Cow::Borrowed(
                    "waiting for minCount pods from a gang to appear in scheduling queue",
                ))
            }
            Some(Policy::Gang { .. } | Policy::Basic) => None,
        }
    }
}

impl Permit for GangScheduling {
    fn permit(&self, world: &World, pod: &Shape) -> Permitted {
        match world.gangs.n_missing(pod) {
            0 => Permitted::Yes,
            n_missing => Permitted::Wait {
                why: "waiting for minCount pods from a gang to be scheduled",
                n_missing,
                timeout: TIMEOUT,
            },
        }
    }
}
