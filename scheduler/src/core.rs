//! The part that decides, without clock or network.

mod groups;
mod hints;

use std::{collections::HashMap, sync::Arc};

use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Node};

pub(crate) use self::{
    groups::{Found, GroupDecision, Member, Outcome},
    hints::{PodHint, Review},
};
use crate::{
    framework::{Event, Hint, Prepared},
    ledger::Held,
    outlook::{Decision, Outlook},
    passes::Passes,
    pod::{Pod, Shape, Shapes, node_of},
    profile::Profile,
    storage::Work,
    tables::Tables,
    world::World,
};

/// Outlooks that are kept. One takes a few kilobytes.
const MAX_OUTLOOKS: usize = 1 << 15;
/// Nodes that are looked at to find out whether an event helps a shape; with more, it may.
const MAX_LOOKS: usize = 64;

/// What is known, and what was found out of it.
///
/// Made of nodes and pods only, it decides like the scheduler does; that is what benches and
/// comparisons with other schedulers are made of.
#[derive(Debug)]
pub struct Core {
    pub(crate) world: World,
    pub(crate) shapes: Shapes,
    profiles: Vec<Profile>,
    /// With when each was used last.
    outlooks: HashMap<u64, (u64, Outlook)>,
    tables: Tables,
    n_decisions: u64,
}

impl Core {
    /// Knows nothing yet.
    pub fn new(profiles: Vec<Profile>) -> Self {
        Self {
            world: World::new(),
            shapes: Shapes::default(),
            profiles,
            outlooks: HashMap::new(),
            tables: Tables::default(),
            n_decisions: u64::from(rand::random::<u32>()),
        }
    }

    /// Which of equal nodes are chosen follows from this; it is random otherwise.
    #[cfg(test)]
    pub(crate) fn set_ties(&mut self, ties: u32) {
        self.n_decisions = ties.into();
    }

    pub(crate) fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The profile of this name.
    pub(crate) fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.iter().find(|it| *it.name == *name)
    }

    /// Notes a node as it is now.
    pub fn put_node(&mut self, name: &str, node: &Node) {
        self.world.put_node(name, node);
    }

    /// Notes what a replica set selects.
    pub fn put_replica_set(&mut self, it: &Tenanted<ReplicaSet>) {
        let selector = it.spec.as_ref().and_then(|it| insula_client::compile(&it.selector).ok());
        self.world.workloads.set_controller("ReplicaSet", &it.key(), selector);
    }

    /// Notes a pod that has a node.
    pub fn put_pod(&mut self, pod: &Tenanted<Pod>) {
        if let Some(node) = node_of(pod) {
            let shape = self.shapes.of(pod);
            let row = self.world.nodes.row_for(node);
            let held = Held {
                uid: pod.uid().into(),
                shape,
                row,
                started: started(pod),
                is_assumed: false,
            };
            self.world.hold(&pod.key(), held);
        }
    }

    /// Notes that a pod is gone.
    pub fn remove_pod(&mut self, key: &ObjectKey) {
        self.world.release(key);
    }

    /// Finds a node for a pod and puts it there, or says why there is none.
    pub fn place(&mut self, pod: &Tenanted<Pod>) -> Result<Arc<str>, Arc<str>> {
        let (key, shape) = (pod.key(), self.shapes.of(pod));
        match self.decide(&key, &shape) {
            Decision::Take { row, .. } => {
                let uid = pod.uid().into();
                let held = Held { uid, shape, row, started: i64::MAX, is_assumed: true };
                self.world.hold(&key, held);
                Ok(self.world.nodes.name_of(row))
            }
            Decision::None(failure) => Err(failure.message),
        }
    }

    /// Decides where a pod goes. Changes nothing that another decision is made of.
    pub(crate) fn decide(&mut self, key: &ObjectKey, shape: &Arc<Shape>) -> Decision {
        self.n_decisions = self.n_decisions.wrapping_add(1);
        let Some(profile) = self.profiles.iter().find(|it| it.name == shape.scheduler) else {
            // Pods of other schedulers are never in the queue.
            return Decision::None(crate::outlook::Failure {
                message: "no such scheduler".into(),
                refused_by: 0,
                promise: None,
                to_free: None,
            });
        };
        let tie = usize::try_from(self.n_decisions).unwrap_or(0);
        let (used, outlook) =
            self.outlooks.entry(shape.id).or_insert_with(|| (0, Outlook::new(shape.clone())));
        *used = self.n_decisions;
        let known = (&mut self.world, &mut self.shapes);
        let decision = outlook.decide(profile, known, &mut self.tables, key, tie);
        if MAX_OUTLOOKS < self.outlooks.len() {
            self.drop_outlooks();
        }
        decision
    }

    /// Whether a pod can go to this row now, and what is to be written before that. Others that are
    /// nominated for the row are left no room: two that wait for each other would both wait for
    /// ever, and this is asked where the room is given away.
    pub(crate) fn will_do(&mut self, shape: &Arc<Shape>, row: usize) -> Option<Work> {
        let profile = self.profiles.iter().find(|it| it.name == shape.scheduler)?;
        if !self.world.nodes.is_there(row) {
            return None;
        }
        let mut passes = Passes::prepare(profile, &mut self.world, shape);
        let fits = passes.refusal().is_none() && passes.check(&self.world, row).is_feasible();
        fits.then(|| passes.work(&self.world, row))
    }

    /// Whether a pod would still fit where it is held, if it were not there yet.
    pub(crate) fn fits_where_it_is(&mut self, key: &ObjectKey) -> bool {
        let Some(held) = self.world.release(key) else { return false };
        let fits = self.will_do(&held.shape, held.row).is_some();
        self.world.hold(key, held);
        fits
    }

    /// What is to be written before a pod of a shape is bound to a row.
    pub(crate) fn work_on(&mut self, shape: &Shape, row: usize) -> Work {
        let profile = self.profiles.iter().find(|it| it.name == shape.scheduler);
        let passes = profile.map(|it| Passes::prepare(it, &mut self.world, shape));
        passes.map_or_else(Work::default, |mut passes| {
            passes.begin(&self.world);
            passes.work(&self.world, row)
        })
    }

    /// Drops the half of the outlooks that was not used lately.
    fn drop_outlooks(&mut self) {
        let mut used: Vec<u64> = self.outlooks.values().map(|(used, _)| *used).collect();
        used.sort_unstable();
        let limit = used.get(used.len() / 2).copied().unwrap_or(u64::MAX);
        self.outlooks.retain(|_, (used, _)| limit < *used);
    }

    /// Forgets what nobody needs any more.
    pub(crate) fn sweep(&mut self) {
        self.world.sweep();
        // Only the outlook itself has the shape of pods that are all gone.
        self.outlooks.retain(|_, (_, outlook)| 1 < Arc::strong_count(&outlook.shape));
        self.tables.sweep(self.outlooks.values().filter_map(|(_, outlook)| outlook.ground()));
    }

    /// Whether pods of a shape that these filters refused may look again because of events.
    pub(crate) fn may_help(&mut self, shape: &Shape, refused_by: u128, events: &[Event]) -> bool {
        let Some(profile) = self.profiles.iter().find(|it| it.name == shape.scheduler) else {
            return false;
        };
        let mut n_looks = 0;
        for (place, filter) in profile.filters() {
            if refused_by & (1 << place) == 0 {
                continue;
            }
            let mut prepared = None;
            for event in events {
                match (filter.may_help(shape, event), event) {
                    (Hint::Nothing, _) => (),
                    (Hint::IfNodeWillDo, Event::Node { row, .. }) if n_looks < MAX_LOOKS => {
                        n_looks += 1;
                        let it =
                            prepared.get_or_insert_with(|| filter.prepare(&mut self.world, shape));
                        let will_do = match it {
                            Prepared::Skip => true,
                            Prepared::Refused(_) => false,
                            Prepared::Pass(pass) => {
                                pass.begin(&self.world);
                                self.world.nodes.is_there(*row)
                                    && pass.check(&self.world, *row) == 0
                            }
                        };
                        if will_do {
                            return true;
                        }
                    }
                    (Hint::LookAgain | Hint::IfNodeWillDo, _) => return true,
                }
            }
        }
        false
    }
}

/// When a pod started, in seconds since 1970; far in the future if it has not.
pub(crate) fn started(pod: &Pod) -> i64 {
    let time = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    time.map_or(i64::MAX, |it| it.0.as_second())
}

#[cfg(test)]
mod tests;
