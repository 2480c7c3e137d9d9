//! Volumes: where those that there are can be reached, where others can be made, and how many a
//! node can attach.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use insula_client::ObjectKey;
use k8s_openapi::{
    api::core::v1::NodeSelectorRequirement, apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use crate::{
    framework::{Depends, Event, Filter, Hint, Pass, Prepared},
    labels::{ABSENT, Condition, KeyId, Labels, Term},
    pod::Shape,
    storage::{Storage, Work, claim_key},
    world::World,
};

/// Volumes that change may be those of a pod.
fn storage_hint(pod: &Shape, event: &Event) -> Hint {
    let Event::Storage { tenant } = event else { return Hint::Nothing };
    Hint::look_again_if(tenant.as_ref().is_none_or(|it| *it == pod.tenant))
}

fn keys(pod: &Shape) -> impl Iterator<Item = ObjectKey> + '_ {
    pod.claims.iter().map(|claim| claim_key(pod, &claim.name))
}

/// Claims that only one pod may use at a time.
#[derive(Debug)]
pub(crate) struct VolumeRestrictions;

impl Filter for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        let storage = &world.storage;
        let is_alone = |key: &ObjectKey| storage.claim(key).is_some_and(|it| it.for_one_pod);
        let claims: Vec<ObjectKey> = keys(pod).filter(is_alone).collect();
        if claims.is_empty() {
            return Prepared::Skip;
        }
        Prepared::Pass(Box::new(Alone { claims, is_in_use: false }))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::PodGone { pod: gone } => Hint::look_again_if(
                gone.tenant == pod.tenant
                    && gone.namespace == pod.namespace
                    && gone.claims.iter().any(|it| pod.claims.contains(it)),
            ),
            _ => storage_hint(pod, event),
        }
    }
}

#[derive(Debug)]
struct Alone {
    claims: Vec<ObjectKey>,
    is_in_use: bool,
}

impl Pass for Alone {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn begin(&mut self, world: &World) {
        self.is_in_use = self.claims.iter().any(|it| 0 < world.storage.n_users(it));
    }

    fn check(&self, _world: &World, _row: usize) -> u32 {
        u32::from(self.is_in_use)
    }

    fn reasons(&self, _why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Borrowed(
            "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode \
             already in-use by another pod",
        )]
    }

    fn is_final(&self, _why: u32) -> bool {
        false
    }
}

/// How many volumes nodes can attach.
#[derive(Debug)]
pub(crate) struct NodeVolumeLimits;

impl Filter for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        let wanted: HashSet<_> =
            keys(pod).filter_map(|key| world.storage.attached_as(&key)).collect();
        if wanted.is_empty() {
            return Prepared::Skip;
        }
        Prepared::Pass(Box::new(Limits(wanted)))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::Node { changed, .. } => Hint::node_if(changed.is_new),
            Event::PodGone { pod: gone } => Hint::look_again_if(!gone.claims.is_empty()),
            _ => storage_hint(pod, event),
        }
    }
}

#[derive(Debug)]
struct Limits(HashSet<(Arc<str>, String)>);

impl Pass for Limits {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let node = world.nodes.name(row);
        let drivers: HashSet<&Arc<str>> = self.0.iter().map(|(driver, _)| driver).collect();
        let mut attached = None;
        for driver in drivers {
            let Some(limit) = world.storage.limit(node, driver) else { continue };
            let attached = attached.get_or_insert_with(|| world.storage.attached_to(row));
            let of_driver = |it: &&(Arc<str>, String)| it.0 == *driver;
            let n_wanted =
                self.0.iter().filter(of_driver).filter(|it| !attached.contains(it)).count();
            if n_wanted != 0 && limit < attached.iter().filter(of_driver).count() + n_wanted {
                return 1;
            }
        }
        0
    }

    fn reasons(&self, _why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Borrowed("node(s) exceed max volume count")]
    }

    fn is_final(&self, _why: u32) -> bool {
        false
    }
}

/// Labels that say in which zone a volume is, old and new.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// Volumes that say by labels in which zones they are.
#[derive(Debug)]
pub(crate) struct VolumeZone;

impl Filter for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        let labels = &world.nodes.labels;
        let mut zones = Vec::new();
        for key in keys(pod) {
            let volume = world.storage.claim(&key).and_then(|it| it.volume.as_ref());
            let Some(volume) = volume.and_then(|it| world.storage.volume(&key.tenant, it)) else {
                continue;
            };
            for zone in ZONES {
                let Some(value) = volume.labels.get(zone) else { continue };
                let values = value.split("__").map(|it| it.trim().to_owned()).collect();
                let requirement = NodeSelectorRequirement {
                    key: zone.to_owned(),
                    operator: "In".to_owned(),
                    values: Some(values),
                };
                zones.push(labels.requirement(&requirement));
            }
        }
        if zones.is_empty() {
            return Prepared::Skip;
        }
        let keys = ZONES.iter().filter_map(|it| labels.key(it)).collect();
        Prepared::Pass(Box::new(Zones { zones, keys }))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::Node { changed, .. } => Hint::node_if(changed.is_new || changed.labels),
            _ => storage_hint(pod, event),
        }
    }
}

#[derive(Debug)]
struct Zones {
    zones: Vec<Condition>,
    keys: Vec<KeyId>,
}

impl Pass for Zones {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let labels = &world.nodes.labels;
        // A node that is in no zone is taken to reach all of them.
        let has_any = self.keys.iter().any(|key| labels.value(Some(*key), row) != ABSENT);
        u32::from(has_any && !self.zones.iter().all(|it| it.holds(labels, row)))
    }

    fn reasons(&self, _why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Borrowed("node(s) had no available volume zone")]
    }

    fn is_final(&self, _why: u32) -> bool {
        true
    }
}

/// Claims: those that are bound must be reachable, for the others there must be a volume, or one
/// must be made.
#[derive(Debug)]
pub(crate) struct VolumeBinding;

const ELSEWHERE: u32 = 1;
const NONE_FREE: u32 = 2;
const NOT_THERE: u32 = 4;
const NO_ROOM: u32 = 8;

impl VolumeBinding {
    /// Why no node will do, whichever it is.
    fn refusal(storage: &Storage, pod: &Shape) -> Option<String> {
        for claim in &pod.claims {
            let key = claim_key(pod, &claim.name);
            let name = &claim.name;
            let Some(claimed) = storage.claim(&key) else {
                return Some(if claim.is_ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the \
                         persistentvolumeclaim \"{name}\""
                    )
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                });
            };
            if claimed.is_lost {
                let volume = claimed.volume.as_deref().unwrap_or_default();
                return Some(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \
                     \"{volume}\""
                ));
            }
            if claimed.is_ending {
                return Some(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
        }
        let is_immediate = |key: ObjectKey| {
            storage.claim(&key).is_some_and(|it| {
                let class = it.class.as_ref().and_then(|it| storage.class(&key.tenant, it));
                let waits = class.is_some_and(|it| it.waits_for_consumer);
                !it.is_bound && (it.volume.is_some() || !waits)
            })
        };
        let unbound = "pod has unbound immediate PersistentVolumeClaims";
        keys(pod).any(is_immediate).then(|| unbound.to_owned())
    }
}

impl Filter for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        if pod.claims.is_empty() {
            return Prepared::Skip;
        }
        if let Some(refusal) = Self::refusal(&world.storage, pod) {
            return Prepared::Refused(refusal);
        }
        let labels = &world.nodes.labels;
        let terms = |terms: &Vec<k8s_openapi::api::core::v1::NodeSelectorTerm>| -> Vec<Term> {
            terms.iter().map(|it| labels.term(it)).collect()
        };
        let mut claims = Bindings::default();
        for key in keys(pod) {
            let Some(claimed) = world.storage.claim(&key) else { continue };
            if let Some(volume) = &claimed.volume {
                match world.storage.volume(&key.tenant, volume) {
                    Some(volume) => claims.bound.extend(volume.nodes.as_ref().map(terms)),
                    None => claims.lacks_volume = true,
                }
                continue;
            }
            let class = claimed.class.as_ref().and_then(|it| world.storage.class(&key.tenant, it));
            let makes = class.filter(|it| it.provisions()).map(|class| {
                let topologies = class.topologies.iter().map(|it| {
                    let expressions = it.match_label_expressions.iter().flatten();
                    let requirement =
                        |it: &k8s_openapi::api::core::v1::TopologySelectorLabelRequirement| {
                            labels.requirement(&NodeSelectorRequirement {
                                key: it.key.clone(),
                                operator: "In".to_owned(),
                                values: Some(it.values.clone()),
                            })
                        };
                    expressions.map(requirement).collect()
                });
                topologies.collect()
            });
            let room = world.storage.nodes_with_room(&key);
            let room = room.map(|all| all.into_iter().map(|it| conditions(labels, it)).collect());
            let selected = world.storage.selected_node(&key).map(Into::into);
            let candidates = if selected.is_some() {
                Vec::new()
            } else {
                let found = world.storage.candidates(&key).into_iter();
                found.map(|(key, volume)| (key, volume.nodes.as_ref().map(terms))).collect()
            };
            claims.unbound.push(Unbound { claim: key, selected, candidates, makes, room });
        }
        Prepared::Pass(Box::new(claims))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::Node { changed, .. } => Hint::node_if(changed.is_new || changed.labels),
            _ => storage_hint(pod, event),
        }
    }
}

/// A claim that waits for its first consumer.
#[derive(Debug)]
struct Unbound {
    claim: ObjectKey,
    /// A volume is being made for this node.
    selected: Option<Arc<str>>,
    /// Volumes that it could have, with the terms that the node must match, if any.
    candidates: Vec<(ObjectKey, Option<Vec<Term>>)>,
    /// A volume could be made where one of these holds, or anywhere if there are none.
    makes: Option<Vec<Vec<Condition>>>,
    /// It is large enough where one of these holds, if its driver says that.
    room: Option<Vec<Vec<Condition>>>,
}

/// What a selector asks of the labels of a node.
fn conditions(labels: &Labels, selector: &LabelSelector) -> Vec<Condition> {
    let equal = selector.match_labels.iter().flatten();
    let equal = equal.map(|(key, value)| NodeSelectorRequirement {
        key: key.clone(),
        operator: "In".to_owned(),
        values: Some(vec![value.clone()]),
    });
    let expressions = selector.match_expressions.iter().flatten();
    let expressions = expressions.map(|it| NodeSelectorRequirement {
        key: it.key.clone(),
        operator: it.operator.clone(),
        values: it.values.clone(),
    });
    equal.chain(expressions).map(|it| labels.requirement(&it)).collect()
}

#[derive(Debug, Default)]
struct Bindings {
    lacks_volume: bool,
    bound: Vec<Vec<Term>>,
    unbound: Vec<Unbound>,
}

impl Bindings {
    fn is_reached(terms: &[Term], world: &World, row: usize) -> bool {
        let nodes = &world.nodes;
        terms.iter().any(|it| it.matches(&nodes.labels, row, nodes.name(row)))
    }

    /// What to do for the unbound claims if the pod goes to a row; the error is why nothing helps.
    fn plan(&self, world: &World, row: usize) -> Result<Work, u32> {
        let mut work = Work::default();
        let holds = |all: &Vec<Condition>| all.iter().all(|it| it.holds(&world.nodes.labels, row));
        for it in &self.unbound {
            if it.selected.as_ref().is_some_and(|it| **it != *world.nodes.name(row)) {
                return Err(NONE_FREE);
            }
            let is_free = |(key, terms): &&(ObjectKey, Option<Vec<Term>>)| {
                !work.bind.iter().any(|(taken, _)| taken == key)
                    && terms.as_ref().is_none_or(|terms| Self::is_reached(terms, world, row))
            };
            if let Some((volume, _)) = it.candidates.iter().find(is_free) {
                work.bind.push((volume.clone(), it.claim.clone()));
                continue;
            }
            let topologies = it.makes.as_ref().ok_or(NONE_FREE)?;
            if !topologies.is_empty() && !topologies.iter().any(holds) {
                return Err(NONE_FREE);
            }
            if it.room.as_ref().is_some_and(|room| !room.iter().any(holds)) {
                return Err(NO_ROOM);
            }
            work.provision.push(it.claim.clone());
        }
        Ok(work)
    }
}

impl Pass for Bindings {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let mut why = 0;
        if self.lacks_volume {
            why |= NOT_THERE;
        }
        if !self.bound.iter().all(|terms| Self::is_reached(terms, world, row)) {
            why |= ELSEWHERE;
        }
        why | self.plan(world, row).err().unwrap_or(0)
    }

    fn reasons(&self, why: u32) -> Vec<Cow<'static, str>> {
        let all = [
            (ELSEWHERE, "node(s) didn't match PersistentVolume's node affinity"),
            (NONE_FREE, "node(s) didn't find available persistent volumes to bind"),
            (NO_ROOM, "node(s) did not have enough free storage"),
            (
                NOT_THERE,
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
            ),
        ];
        let these = all.into_iter().filter(|(bit, _)| why & bit != 0);
        these.map(|(_, text)| Cow::Borrowed(text)).collect()
    }

    fn is_final(&self, _why: u32) -> bool {
        true
    }

    fn work(&self, world: &World, row: usize) -> Work {
        self.plan(world, row).unwrap_or_default()
    }
}
