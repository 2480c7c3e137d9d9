//! Groups of pods of which all are scheduled, or none.
//!
//! A pod names its group by `spec.schedulingGroup`, and an object `PodGroup` of
//! `scheduling.k8s.io` says how many of its pods have to have places before any is bound (KEP-4671);
//! or by the two labels of the older coscheduling convention, which say both.
//!
//! # Invariants
//!
//! * The number of pods of a group that have places is what the ledger says.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;

use crate::pod::{Pod, Shape};

/// For so long places are kept for a group whose other places are not certain yet. They were all
/// found at once, so what is waited for is only the word of other replicas.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// Names the group of a pod that has no object for it.
const NAME_LABEL: &str = "pod-group.scheduling.sigs.k8s.io/name";
/// Says how many pods of such a group have to have places.
const COUNT_LABEL: &str = "pod-group.scheduling.sigs.k8s.io/min-available";

/// What a pod says of the group that it is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct GroupName {
    pub(crate) name: Arc<str>,
    /// How many pods have to have places, if the pod says so itself; else the group's object does.
    min_count: Option<usize>,
}

impl GroupName {
    /// The group of a pod. Labels that do not say how many make none.
    pub(crate) fn of(pod: &Tenanted<Pod>) -> Option<Self> {
        let group = pod.spec.as_ref().and_then(|spec| spec.scheduling_group.as_ref());
        if let Some(name) = group.and_then(|it| it.pod_group_name.as_deref()) {
            return Some(Self { name: name.into(), min_count: None });
        }
        let labels = pod.metadata.labels.as_ref()?;
        let name = labels.get(NAME_LABEL).filter(|it| !it.is_empty())?;
        let min_count = labels.get(COUNT_LABEL)?.parse().ok().filter(|it| 0 < *it)?;
        Some(Self { name: name.as_str().into(), min_count: Some(min_count) })
    }

    /// Whether an object says what holds of the group.
    pub(crate) fn has_object(&self) -> bool {
        self.min_count.is_none()
    }
}

/// A group among all: those with an object and those without do not meet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GroupKey {
    pub(crate) key: ObjectKey,
    pub(crate) has_object: bool,
}

impl GroupKey {
    /// The group that pods of a shape are of.
    pub(crate) fn of(shape: &Shape) -> Option<Self> {
        let group = shape.group.as_ref()?;
        let key = ObjectKey {
            tenant: shape.tenant.clone(),
            namespace: shape.namespace.clone(),
            name: group.name.clone(),
        };
        Some(Self { key, has_object: group.has_object() })
    }
}

/// How a group is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Each pod by itself.
    Basic,
    /// Only if so many have places.
    Gang { min_count: usize },
}

impl Policy {
    /// What an object says.
    pub(crate) fn of(group: &PodGroup) -> Self {
        match &group.spec.scheduling_policy.gang {
            // The API server lets no other number pass.
            Some(gang) => Self::Gang { min_count: usize::try_from(gang.min_count).unwrap_or(1) },
            None => Self::Basic,
        }
    }
}

#[derive(Debug, Default)]
struct Group {
    policy: Option<Policy>,
    /// Pods that have no place yet, and whether they may look for one is another matter.
    waiting: BTreeSet<ObjectKey>,
    n_placed: usize,
}

impl Group {
    fn is_unused(&self) -> bool {
        self.policy.is_none() && self.waiting.is_empty() && self.n_placed == 0
    }
}

/// All groups that have pods, or an object.
#[derive(Debug, Default)]
pub(crate) struct Gangs {
    groups: HashMap<GroupKey, Group>,
    /// The groups of pods that wait.
    of_waiting: HashMap<ObjectKey, GroupKey>,
}

impl Gangs {
    fn change(&mut self, group: GroupKey, change: impl FnOnce(&mut Group)) {
        let entry = self.groups.entry(group.clone()).or_default();
        change(entry);
        if entry.is_unused() {
            self.groups.remove(&group);
        }
    }

    /// Notes what an object says of its group, or that it is gone.
    pub(crate) fn set_policy(&mut self, key: &ObjectKey, policy: Option<Policy>) {
        let group = GroupKey { key: key.clone(), has_object: true };
        self.change(group, |it| it.policy = policy);
    }

    /// Notes that a pod has no place yet.
    pub(crate) fn wait(&mut self, key: &ObjectKey, shape: &Shape) {
        let group = GroupKey::of(shape);
        if group.is_none() && self.of_waiting.is_empty() {
            return;
        }
        if self.of_waiting.get(key) == group.as_ref() {
            return;
        }
        self.forget(key);
        if let Some(group) = group {
            self.of_waiting.insert(key.clone(), group.clone());
            self.change(group, |it| {
                it.waiting.insert(key.clone());
            });
        }
    }

    /// Notes that a pod waits no longer: it has a place, or is gone.
    pub(crate) fn forget(&mut self, key: &ObjectKey) {
        // Most pods are of no group.
        if self.of_waiting.is_empty() {
            return;
        }
        if let Some(group) = self.of_waiting.remove(key) {
            self.change(group, |it| {
                it.waiting.remove(key);
            });
        }
    }

    /// Notes that so many more pods of a shape have places.
    pub(crate) fn place(&mut self, shape: &Shape, n_more: isize) {
        if let Some(group) = GroupKey::of(shape) {
            self.change(group, |it| it.n_placed = it.n_placed.saturating_add_signed(n_more));
        }
    }

    /// How pods of a shape are scheduled; `None` if nobody has said it yet.
    pub(crate) fn policy(&self, shape: &Shape) -> Option<Policy> {
        let Some(name) = &shape.group else { return Some(Policy::Basic) };
        if let Some(min_count) = name.min_count {
            return Some(Policy::Gang { min_count });
        }
        self.groups.get(&GroupKey::of(shape)?)?.policy
    }

    /// How many pods of the group of a shape have places, and how many there are.
    pub(crate) fn counts(&self, shape: &Shape) -> (usize, usize) {
        let group = GroupKey::of(shape).and_then(|group| self.groups.get(&group));
        group.map_or((0, 0), |it| (it.n_placed, it.n_placed + it.waiting.len()))
    }

    /// How many more pods of the group of a shape need places before any may be bound.
    pub(crate) fn n_missing(&self, shape: &Shape) -> usize {
        match self.policy(shape) {
            Some(Policy::Gang { min_count }) => min_count.saturating_sub(self.counts(shape).0),
            Some(Policy::Basic) | None => 0,
        }
    }

    /// The pods of a group that have no places.
    pub(crate) fn waiting(&self, group: &GroupKey) -> Vec<ObjectKey> {
        let group = self.groups.get(group);
        group.into_iter().flat_map(|it| &it.waiting).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use insula_api::names::TenantName;
    use serde_json::{Value, json};

    use super::*;

    fn shape(pod: Value) -> Shape {
        let object = serde_json::from_value(pod).unwrap();
        Shape::of(&Tenanted { tenant: TenantName::parse("acme").unwrap(), object })
    }

    fn named(group: &str) -> Shape {
        shape(json!({
            "metadata": {"namespace": "ns"}, "spec": {"schedulingGroup": {"podGroupName": group}},
        }))
    }

    fn labelled(group: &str, count: &str) -> Shape {
        shape(json!({
            "metadata": {"namespace": "ns", "labels": {NAME_LABEL: group, COUNT_LABEL: count}},
        }))
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(&TenantName::parse("acme").unwrap(), "ns", name)
    }

    #[test]
    fn an_object_or_labels_say_how_many() {
        let mut gangs = Gangs::default();
        assert_eq!(gangs.policy(&named("g")), None);
        assert_eq!(gangs.policy(&shape(json!({}))), Some(Policy::Basic));
        gangs.set_policy(&key("g"), Some(Policy::Gang { min_count: 3 }));
        assert_eq!(gangs.policy(&named("g")), Some(Policy::Gang { min_count: 3 }));
        assert_eq!(gangs.policy(&labelled("g", "2")), Some(Policy::Gang { min_count: 2 }));
        for nonsense in ["0", "-1", "many", ""] {
            assert_eq!(labelled("g", nonsense).group, None, "{nonsense}");
        }
    }

    #[test]
    fn counts_follow_pods_and_leave_nothing_behind() {
        let mut gangs = Gangs::default();
        gangs.set_policy(&key("g"), Some(Policy::Gang { min_count: 3 }));
        let (it, other) = (named("g"), labelled("g", "9"));
        gangs.wait(&key("a"), &it);
        gangs.wait(&key("a"), &it);
        gangs.wait(&key("b"), &it);
        gangs.wait(&key("c"), &other);
        gangs.place(&it, 1);
        assert_eq!((gangs.counts(&it), gangs.n_missing(&it)), ((1, 3), 2));
        assert_eq!((gangs.counts(&other), gangs.n_missing(&other)), ((0, 1), 9));
        assert_eq!(gangs.waiting(&GroupKey::of(&it).unwrap()), [key("a"), key("b")]);
        // A pod of the same name that is of another group now.
        gangs.wait(&key("b"), &other);
        assert_eq!((gangs.counts(&it), gangs.counts(&other)), ((1, 2), (0, 2)));
        for name in ["a", "b", "c"] {
            gangs.forget(&key(name));
        }
        gangs.place(&it, -1);
        gangs.set_policy(&key("g"), None);
        assert!(gangs.groups.is_empty() && gangs.of_waiting.is_empty());
    }
}
