//! What a deployment does to its ReplicaSets in one pass.
//!
//! A pass takes one step and leaves the next to the pass that its effect leads to; so each step
//! is decided on what the last one really did.

use std::{collections::BTreeMap, sync::Arc};

use insula_client::Tenanted;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{
    limits::Limits,
    revision::{
        desired_then, is_of_template, missing_annotations, most_then, next_revision, revision,
        scale_annotations,
    },
    status::is_complete,
};

pub(super) type Set = Arc<Tenanted<ReplicaSet>>;

/// What one pass sees.
#[derive(Debug)]
pub(super) struct Observed<'a> {
    pub(super) deployment: &'a Tenanted<Deployment>,
    /// The set of the present template.
    pub(super) new: Option<Set>,
    /// All others, oldest first.
    pub(super) old: Vec<Set>,
    /// Whether pods of older templates have not all ended.
    pub(super) old_pods_run: bool,
}

/// One change to one ReplicaSet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Make the set of the present template.
    Create {
        replicas: i32,
        revision: i64,
    },
    Change {
        set: Set,
        replicas: Option<i32>,
        min_ready_seconds: Option<i32>,
        annotations: BTreeMap<String, String>,
    },
    Delete {
        set: Set,
    },
}

/// What a pass comes to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    /// Whether this pass is part of a rollout, whose progress the status then shows.
    pub(super) is_rollout: bool,
}

impl<'a> Observed<'a> {
    pub(super) fn new(
        deployment: &'a Tenanted<Deployment>,
        mut sets: Vec<Set>,
        old_pods_run: impl Fn(&[Set]) -> bool,
    ) -> Self {
        sets.sort_by(|a, b| age(a).cmp(&age(b)));
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        // Should there be two of one template, the older is the one that counts.
        let position = sets
            .iter()
            .position(|set| template.is_some_and(|template| is_of_template(set, template)));
        let new = position.map(|at| sets.remove(at));
        let old_pods_run = old_pods_run(&sets);
        Self { deployment, new, old: sets, old_pods_run }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(|set| replicas(set)).fold(0, i32::saturating_add)
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true)
    }
}

fn age(set: &Set) -> (Option<jiff::Timestamp>, &str) {
    (set.metadata.creation_timestamp.as_ref().map(|time| time.0), set.name())
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The pods of a set that are available and stay: those that it is to lose may still be counted
/// in its status. (Upstream counts them, and so may go below what has to be available.)
fn available(set: &ReplicaSet) -> i32 {
    let told = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    told.min(replicas(set))
}

/// Whether a set's status is of what is asked of it now.
fn is_observed(set: &ReplicaSet) -> bool {
    let seen = set.status.as_ref().and_then(|status| status.observed_generation);
    set.metadata.generation <= seen
}

/// Decides.
pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let limits = Limits::of(observed.deployment);
    if observed.deployment.is_deleting() {
        return Plan::default();
    }
    let was_scaled = observed
        .all()
        .filter(|set| 0 < replicas(set))
        .any(|set| desired_then(set).is_some_and(|then| then != limits.desired));
    if observed.is_paused() {
        let mut actions = scale(observed, limits);
        if actions.is_empty() {
            actions = clean_up(observed);
        }
        return Plan { actions, is_rollout: false };
    }
    if was_scaled {
        let actions = scale(observed, limits);
        if !actions.is_empty() {
            return Plan { actions, is_rollout: false };
        }
    }
    let rolled = if limits.recreates { recreate(observed, limits) } else { roll(observed, limits) };
    let actions =
        if rolled.is_empty() && is_complete(observed) { clean_up(observed) } else { rolled };
    Plan { actions, is_rollout: true }
}

/// Makes the new set, or brings its annotations up to date.
fn renew(observed: &Observed<'_>, limits: Limits) -> Option<Action> {
    let wanted = next_revision(observed.old.iter().map(|set| &set.object));
    let Some(new) = &observed.new else {
        let replicas = if limits.recreates {
            limits.desired
        } else {
            (limits.most() - observed.total()).clamp(0, limits.desired)
        };
        return Some(Action::Create { replicas, revision: wanted });
    };
    let annotations = missing_annotations(observed.deployment, &new.metadata, wanted);
    let min_ready = |seconds: Option<i32>| seconds.unwrap_or(0);
    let spec = observed.deployment.spec.as_ref();
    let ours = min_ready(spec.and_then(|spec| spec.min_ready_seconds));
    let theirs = min_ready(new.spec.as_ref().and_then(|spec| spec.min_ready_seconds));
    if annotations.is_empty() && ours == theirs {
        return None;
    }
    let min_ready_seconds = (ours != theirs).then_some(ours);
    Some(Action::Change { set: new.clone(), replicas: None, min_ready_seconds, annotations })
}

fn roll(observed: &Observed<'_>, limits: Limits) -> Vec<Action> {
    if let Some(action) = renew(observed, limits) {
        return vec![action];
    }
    let Some(new) = &observed.new else { return Vec::new() };
    let wanted = if limits.desired < replicas(new) {
        limits.desired
    } else {
        let room = (limits.most() - observed.total()).max(0);
        replicas(new) + room.min(limits.desired - replicas(new))
    };
    // What a set was to lose a moment ago, and is to have again, would be counted as if it had
    // never gone.
    if replicas(new) < wanted && !is_observed(new) {
        return Vec::new();
    }
    if wanted != replicas(new) {
        return rescale(new, wanted, limits).into_iter().collect();
    }
    shrink_old(observed, new, limits)
}

/// Takes from the old sets what is not needed to stay available: first pods that are not
/// available anyway, then, oldest first, others.
fn shrink_old(observed: &Observed<'_>, new: &Set, limits: Limits) -> Vec<Action> {
    let new_unavailable = (replicas(new) - available(new)).max(0);
    let fewest = limits.fewest_available();
    let spare = observed.total() - fewest - new_unavailable;
    if spare <= 0 {
        return Vec::new();
    }
    let mut targets: Vec<i32> = observed.old.iter().map(|set| replicas(set)).collect();
    let mut left = spare;
    for (set, target) in observed.old.iter().zip(&mut targets) {
        let unavailable = (*target - available(set)).max(0);
        let cut = unavailable.min(left);
        *target -= cut;
        left -= cut;
    }
    let n_available: i32 = observed.all().map(|set| available(set)).sum();
    let mut excess = (n_available - fewest).max(0);
    for target in &mut targets {
        let cut = (*target).min(excess);
        *target -= cut;
        excess -= cut;
    }
    let changes = observed.old.iter().zip(targets);
    changes
        .filter(|(set, target)| replicas(set) != *target)
        .filter_map(|(set, target)| rescale(set, target, limits))
        .collect()
}

fn recreate(observed: &Observed<'_>, limits: Limits) -> Vec<Action> {
    let running = observed.old.iter().filter(|set| 0 < replicas(set));
    let stops: Vec<Action> = running.filter_map(|set| rescale(set, 0, limits)).collect();
    if !stops.is_empty() || observed.old_pods_run {
        return stops;
    }
    if let Some(action) = renew(observed, limits) {
        return vec![action];
    }
    let new = observed.new.iter().filter(|set| replicas(set) != limits.desired);
    new.filter_map(|set| rescale(set, limits.desired, limits)).collect()
}

/// Scales outside a rollout, or in the midst of one: then each set keeps its share.
fn scale(observed: &Observed<'_>, limits: Limits) -> Vec<Action> {
    let active: Vec<&Set> = observed.all().filter(|set| 0 < replicas(set)).collect();
    let only = match active.as_slice() {
        [] => observed.new.as_ref().or_else(|| observed.old.last()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(only) = only {
        return rescale(only, limits.desired, limits).into_iter().collect();
    }
    if let Some(new) = &observed.new
        && desired_then(new) == Some(limits.desired)
        && replicas(new) == limits.desired
        && available(new) == limits.desired
    {
        let old = observed.old.iter().filter(|set| 0 < replicas(set));
        return old.filter_map(|set| rescale(set, 0, limits)).collect();
    }
    if limits.recreates {
        return Vec::new();
    }
    share_out(observed.deployment, active, limits)
}

/// Divides what is to be added or taken among the sets, in proportion to their sizes.
fn share_out(deployment: &Deployment, mut active: Vec<&Set>, limits: Limits) -> Vec<Action> {
    let total: i32 = active.iter().map(|set| replicas(set)).fold(0, i32::saturating_add);
    let allowed = if 0 < limits.desired { limits.most() } else { 0 };
    let to_add = allowed - total;
    // The largest gets what rounding leaves; of equals the newest when growing, the oldest when
    // shrinking.
    active.sort_by(|a, b| {
        let by_age = if 0 < to_add { age(b).cmp(&age(a)) } else { age(a).cmp(&age(b)) };
        replicas(b).cmp(&replicas(a)).then(by_age)
    });
    let mut added = 0;
    let mut targets = Vec::with_capacity(active.len());
    for set in &active {
        let share = proportion(deployment, set, limits, to_add - added);
        added += share;
        targets.push(replicas(set) + share);
    }
    if let Some(first) = targets.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    active.iter().zip(targets).filter_map(|(set, target)| rescale(set, target, limits)).collect()
}

/// One set's share of a change of scale, of which `left` is still to be given out.
fn proportion(deployment: &Deployment, set: &Set, limits: Limits, left: i32) -> i32 {
    let size = replicas(set);
    if size == 0 || left == 0 {
        return 0;
    }
    let share = if limits.desired == 0 {
        -size
    } else {
        let then = most_then(set).filter(|then| *then != 0).unwrap_or_else(|| {
            deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(size)
        });
        let scaled = f64::from(size) * f64::from(limits.most()) / f64::from(then.max(1));
        // In range: a quotient of counts, and casts from float saturate.
        #[allow(clippy::cast_possible_truncation, reason = "rounded, and saturating")]
        let scaled = scaled.round() as i32;
        scaled - size
    };
    if 0 < left { share.clamp(0, left) } else { share.clamp(left, 0) }
}

/// A change of scale; `None` if the set is as it should be, annotations included.
fn rescale(set: &Set, target: i32, limits: Limits) -> Option<Action> {
    let wanted = scale_annotations(limits);
    let present = set.metadata.annotations.as_ref();
    let annotations: BTreeMap<_, _> = wanted
        .into_iter()
        .filter(|(name, value)| present.and_then(|present| present.get(name)) != Some(value))
        .collect();
    let replicas = (replicas(set) != target).then_some(target);
    if replicas.is_none() && annotations.is_empty() {
        return None;
    }
    Some(Action::Change { set: set.clone(), replicas, min_ready_seconds: None, annotations })
}

/// Deletes the oldest of the sets that are kept only for going back to.
fn clean_up(observed: &Observed<'_>) -> Vec<Action> {
    let limit = observed.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
    let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return Vec::new() };
    let mut kept: Vec<&Set> = observed.old.iter().filter(|set| !set.is_deleting()).collect();
    let excess = kept.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    kept.sort_by_key(|set| revision(&set.metadata));
    let is_idle = |set: &Set| {
        let status = set.status.as_ref();
        replicas(set) == 0
            && status.map_or(0, |status| status.replicas) == 0
            && set.metadata.generation.unwrap_or(0)
                <= status.and_then(|status| status.observed_generation).unwrap_or(0)
    };
    let excess = kept.into_iter().take(excess).filter(|set| is_idle(set));
    excess.map(|set| Action::Delete { set: set.clone() }).collect()
}

#[cfg(test)]
mod tests;
