//! Which pods would be better off elsewhere, and why.
//!
//! Nodes are looked at one after the other, in rounds: those that have room to spare are found when
//! a round begins, and what is meant to go to them counts until it ends. A pod is named only if
//! another node would take it now.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use insula_client::ObjectKey;

use super::Core;
use crate::{
    framework::{Filter, Pass, Prepared},
    ledger::Uid,
    measured::Usage,
    outlook::Decision,
    plugins::{DeschedulingHints, keeps_away},
    pod::Shape,
    profile::Profile,
    requests::CPU,
};

/// Nodes with room that are asked for each pod, those with most of it.
const MAX_IDLE: usize = 64;
/// Pods of one node that are to leave it because it has too much to do, in one round.
const MAX_LEAVING: usize = 16;
/// Pods of this priority and above belong to the system, as upstream.
const SYSTEM: i32 = 2_000_000_000;
/// Taints of nodes by what is wrong with them, or by cordons: these are looked after by others.
const OF_NODES: &str = "node.kubernetes.io/";

/// A pod that would be better off elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodHint {
    pub(crate) key: ObjectKey,
    pub(crate) uid: Uid,
    /// In one word.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// One look at all nodes.
#[derive(Debug, Default)]
pub(crate) struct Review {
    /// Nodes with room, the idlest first, and what they use with what is meant to go to them.
    idle: Vec<(usize, Usage)>,
    /// Pods of these shapes can be nowhere else.
    stuck: HashSet<u64>,
    /// Whether pods of a shape match a row's node.
    affinities: HashMap<u64, Option<Box<dyn Pass>>>,
}

/// A pod that may be asked to leave.
struct Movable {
    key: ObjectKey,
    uid: Uid,
    shape: Arc<Shape>,
}

impl Core {
    /// What is looked for, if anything is.
    pub(crate) fn hints(&self) -> Option<DeschedulingHints> {
        self.profiles.iter().find_map(|it| it.hints)
    }

    /// Begins to look at all nodes.
    pub(crate) fn begin_review(&self, hints: &DeschedulingHints) -> Review {
        let nodes = &self.world.nodes;
        let mut idle: Vec<(usize, Usage)> = nodes
            .rows()
            .map(|row| (row, nodes.load(row)))
            .filter(|(row, used)| hints.is_idle(nodes, *row, *used))
            .collect();
        idle.sort_unstable_by_key(|(row, used)| (used.cpu, used.memory, *row));
        idle.truncate(MAX_IDLE);
        Review { idle, ..Review::default() }
    }

    /// Pods on a row that would be better off elsewhere.
    pub(crate) fn review(&mut self, review: &mut Review, row: usize) -> Vec<PodHint> {
        if !self.world.nodes.is_there(row) {
            return Vec::new();
        }
        let pods: Vec<Movable> = self.movable(row);
        let mut hints = Vec::new();
        let mut named: Vec<(ObjectKey, Arc<Shape>)> = Vec::new();
        let mut staying = Vec::new();
        for pod in pods {
            let Some((reason, why)) = self.misplaced(review, &pod.shape, row) else {
                staying.push(pod);
                continue;
            };
            if let Some(other) = self.elsewhere(review, &pod, row)
                && self.may_leave(&mut named, &pod)
            {
                hints.push(self.hint(pod, reason, &why, other));
            }
        }
        self.relieve(review, row, staying, &mut named, &mut hints);
        hints
    }

    /// Pods that something makes anew when they end, and that nothing holds where they are.
    fn movable(&self, row: usize) -> Vec<Movable> {
        let is_movable = |shape: &Shape| {
            let is_made_anew = shape
                .controller
                .as_ref()
                .is_some_and(|(kind, _)| !["DaemonSet", "Node"].contains(&&**kind));
            let has_hints = self.profile(&shape.scheduler).is_some_and(|it| it.hints.is_some());
            // To take one from a group would be to stop all of it.
            is_made_anew
                && has_hints
                && !shape.is_ending
                && shape.group.is_none()
                && shape.priority < SYSTEM
        };
        let pods =
            self.world.pods_on(row).filter(|it| !it.held.is_assumed && is_movable(&it.held.shape));
        let pod = |it: &crate::ledger::Holder| Movable {
            key: it.key(),
            uid: it.held.uid.clone(),
            shape: it.held.shape.clone(),
        };
        pods.map(pod).collect()
    }

    /// Why pods of a shape would not be put on the row any more, if they would not.
    fn misplaced(
        &mut self,
        review: &mut Review,
        shape: &Arc<Shape>,
        row: usize,
    ) -> Option<(&'static str, String)> {
        let nodes = &self.world.nodes;
        let mut taints = nodes.taint_sets[nodes.taints[row]].iter();
        let taint =
            taints.find(|it| !it.key.starts_with(OF_NODES) && keeps_away(it, &shape.tolerations));
        if let Some(taint) = taint {
            let why = format!("has taint {:?}, which the pod does not tolerate", taint.key);
            return Some(("NodeTaintViolated", why));
        }
        let profile = self.profiles.iter().find(|it| it.name == shape.scheduler)?;
        let world = &mut self.world;
        let affinity = review.affinities.entry(shape.id).or_insert_with(|| {
            match filter(profile, "NodeAffinity")?.prepare(world, shape) {
                Prepared::Pass(pass) => Some(pass),
                Prepared::Skip | Prepared::Refused(_) => None,
            }
        });
        if affinity.as_ref().is_some_and(|it| it.check(world, row) != 0) {
            let why = "does not match the pod's node affinity or selector any more".into();
            return Some(("NodeAffinityViolated", why));
        }
        let among_others = [
            (
                !shape.anti_affinity.is_empty() || !shape.affinity.is_empty(),
                ("InterPodAffinity", "InterPodAffinityViolated"),
                "has not the other pods any more that the pod's affinity asks for",
            ),
            (
                shape.spread.iter().any(|it| it.is_required),
                ("PodTopologySpread", "TopologySpreadConstraintViolated"),
                "is where too many of the pods are that the pod is to be spread with",
            ),
        ];
        for (is_asked, (name, reason), why) in among_others {
            let Some(filter) = filter(profile, name).filter(|_| is_asked) else { continue };
            // It does not keep itself away.
            self.world.add(row, shape, -1);
            let refuses = match filter.prepare(&mut self.world, shape) {
                Prepared::Pass(mut pass) => {
                    pass.begin(&self.world);
                    pass.check(&self.world, row) != 0
                }
                Prepared::Refused(_) => true,
                Prepared::Skip => false,
            };
            self.world.add(row, shape, 1);
            if refuses {
                return Some((reason, why.into()));
            }
        }
        None
    }

    /// The row of another node that would take a pod now.
    fn elsewhere(&mut self, review: &mut Review, pod: &Movable, row: usize) -> Option<usize> {
        if review.stuck.contains(&pod.shape.id) {
            return None;
        }
        match self.decide(&pod.key, &pod.shape) {
            Decision::Take { row: other, .. } => Some(other).filter(|other| *other != row),
            Decision::None(_) => {
                review.stuck.insert(pod.shape.id);
                None
            }
        }
    }

    /// Notes a pod among those that are to leave a row, if disruption budgets let it go with them.
    fn may_leave(&self, named: &mut Vec<(ObjectKey, Arc<Shape>)>, pod: &Movable) -> bool {
        named.push((pod.key.clone(), pod.shape.clone()));
        let is_too_many = self.world.budgets.violated(named).last().copied().unwrap_or(false);
        if is_too_many {
            named.pop();
        }
        !is_too_many
    }

    /// Names pods of a node that has too much to do until it would have no more than it should: those
    /// that matter least first.
    fn relieve(
        &mut self,
        review: &mut Review,
        row: usize,
        mut pods: Vec<Movable>,
        named: &mut Vec<(ObjectKey, Arc<Shape>)>,
        hints: &mut Vec<PodHint>,
    ) {
        let Some(settings) = self.hints() else { return };
        let mut used = self.world.nodes.load(row);
        // What leaves for another reason leaves all the same.
        for (_, shape) in named.iter() {
            used = used.less(of_shape(shape));
        }
        if settings.overused(&self.world.nodes, row, used).is_none() {
            return;
        }
        pods.sort_by_key(|it| (it.shape.priority, it.shape.qos, it.key.clone()));
        let mut n_leaving = 0;
        for pod in pods {
            let Some((resource, percent)) = settings.overused(&self.world.nodes, row, used) else {
                return;
            };
            if n_leaving == MAX_LEAVING {
                return;
            }
            let own = of_shape(&pod.shape);
            let helps = if resource == CPU { 0 < own.cpu } else { 0 < own.memory };
            let other = if helps { self.idle_for(review, &settings, &pod, row) } else { None };
            let Some(at) = other else { continue };
            if !self.may_leave(named, &pod) {
                continue;
            }
            let (other, load) = &mut review.idle[at];
            *load = load.more(own);
            let other = *other;
            used = used.less(own);
            n_leaving += 1;
            let why = format!("uses {percent}% of its {resource}");
            hints.push(self.hint(pod, "NodeOverutilized", &why, other));
        }
    }

    /// An idle node, by its place among those, that would take a pod and not have too much to do then.
    fn idle_for(
        &mut self,
        review: &Review,
        settings: &DeschedulingHints,
        pod: &Movable,
        row: usize,
    ) -> Option<usize> {
        let own = of_shape(&pod.shape);
        (0..review.idle.len()).find(|at| {
            let (other, load) = review.idle[*at];
            other != row
                && settings.overused(&self.world.nodes, other, load.more(own)).is_none()
                && self.will_do(&pod.shape, other).is_some()
        })
    }

    fn hint(&self, pod: Movable, reason: &'static str, why: &str, other: usize) -> PodHint {
        let nodes = &self.world.nodes;
        let here = self.world.held(&pod.key).map_or("", |it| nodes.name(it.row));
        let message = format!("node {here} {why}; node {} has room for it", nodes.name(other));
        PodHint { key: pod.key, uid: pod.uid, reason, message }
    }
}

fn filter<'a>(profile: &'a Profile, name: &str) -> Option<&'a Arc<dyn Filter>> {
    profile.filters.iter().find(|it| it.name() == name)
}

/// What a pod is taken to use: what it asks for.
fn of_shape(shape: &Shape) -> Usage {
    Usage { cpu: shape.requests.supposed_cpu, memory: shape.requests.supposed_memory }
}
