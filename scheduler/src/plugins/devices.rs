//! Claims of devices: those that have some must be reachable, for the others there must be some.

use std::{borrow::Cow, sync::Arc};

use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::{
    core::v1::NodeSelectorTerm,
    resource::v1::{AllocationResult, ResourceClaim},
};
use parking_lot::Mutex;

use crate::{
    devices::{
        ClaimWork, Devices, allocation_of,
        allocator::{Ground, Stop, allocate},
        asked::{Asked, Choice},
        can_be_reserved, devices_of,
        inventory::{DeviceId, Offer, Place},
        is_reserved_for,
    },
    framework::{Depends, Event, Filter, Hint, MAX_SCORE, Pass, Prepared, Rate, Score, normalize},
    gangs::GroupName,
    labels::Term,
    pod::{DeviceClaims, Shape},
    storage::Work,
    world::World,
};

/// Choices that a request may have; upstream's `FirstAvailableDeviceRequestMaxSize`.
const MAX_CHOICES: usize = 8;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct DynamicResources;

impl DynamicResources {
    pub(crate) const NAME: &str = "DynamicResources";
}

/// The claims of a pod, or why it cannot have them yet.
fn claims(
    devices: &Devices,
    pod: &Shape,
    wanted: &DeviceClaims,
) -> Result<Vec<Arc<Tenanted<ResourceClaim>>>, String> {
    let (namespace, name) = (&pod.namespace, &wanted.pod);
    let mut found = Vec::new();
    for it in &wanted.claims {
        let Some(claim) = &it.claim else {
            if it.is_unneeded {
                continue;
            }
            return Err(format!("pod \"{namespace}/{name}\": ResourceClaim not created yet"));
        };
        let key = ObjectKey {
            tenant: pod.tenant.clone(),
            namespace: pod.namespace.clone(),
            name: claim.clone(),
        };
        let known = devices.claim(&key);
        let known =
            known.ok_or_else(|| format!("resourceclaim.resource.k8s.io \"{claim}\" not found"))?;
        if known.is_deleting() {
            return Err(format!("resourceclaim \"{claim}\" is being deleted"));
        }
        let owners = known.metadata.owner_references.iter().flatten();
        let mut controllers = owners.filter(|it| it.controller == Some(true));
        if it.is_of_pod && !controllers.any(|it| it.uid == wanted.uid) {
            return Err(format!(
                "ResourceClaim {namespace}/{claim} was not created for Pod {namespace}/{name} \
                 (Pod is not owner)"
            ));
        }
        found.push(known.clone());
    }
    Ok(found)
}

fn prepare(world: &mut World, pod: &Shape) -> Result<Option<Claims>, String> {
    let Some(wanted) = &pod.devices else { return Ok(None) };
    let devices = &world.devices;
    let found = claims(devices, pod, wanted)?;
    if found.is_empty() {
        return Ok(None);
    }
    let mut it = Claims { group: pod.group.clone(), ..Claims::default() };
    for claim in found {
        let (namespace, name) = (claim.namespace(), claim.name());
        let is_reserved = is_reserved_for(&claim, &wanted.uid);
        let others = claim.status.as_ref().and_then(|it| it.reserved_for.as_ref());
        if others.into_iter().flatten().all(|it| it.uid == wanted.uid) {
            it.unused.push(claim.clone());
        }
        let Some(allocation) = allocation_of(&claim) else {
            if let Some(pending) = devices.pending(&claim.key()) {
                if pod.group.is_none() || pod.group != pending.group {
                    return Err(format!(
                        "resource claim {namespace}/{name} is in the process of being allocated"
                    ));
                }
                it.reach(world, &pending.allocation);
                it.pending.push((claim.clone(), pending.allocation.clone()));
                continue;
            }
            it.asked.push(Asked::of(&claim, |name| devices.class(&pod.tenant, name))?);
            continue;
        };
        if !is_reserved && !can_be_reserved(&claim) {
            return Err("resourceclaim in use".to_owned());
        }
        it.reach(world, allocation);
        if !is_reserved {
            it.unreserved.push(claim);
        }
    }
    let has_work = !it.asked.is_empty() || !it.unreserved.is_empty();
    if world.is_shared() && pod.group.is_some() && has_work {
        // Room is reserved before it is bound to, and devices are not.
        return Err("device claims of groups are given devices by a single scheduler only".into());
    }
    Ok(Some(it))
}

impl Filter for DynamicResources {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        match prepare(world, pod) {
            Ok(Some(claims)) => Prepared::Pass(Box::new(claims)),
            Ok(None) => Prepared::Skip,
            Err(why) => Prepared::Refused(why),
        }
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::Node { changed, .. } => {
                Hint::node_if(changed.is_new || changed.labels || changed.grew)
            }
            Event::Devices { claim: None } => Hint::LookAgain,
            Event::Devices { claim: Some(key) } => {
                let names = pod.devices.iter().flat_map(|it| &it.claims);
                let mut names = names.filter_map(|it| it.claim.as_ref());
                Hint::look_again_if(
                    key.tenant == pod.tenant
                        && key.namespace == pod.namespace
                        && names.any(|it| *it == key.name),
                )
            }
            _ => Hint::Nothing,
        }
    }
}

/// The claims of pods of a shape.
#[derive(Debug, Default)]
struct Claims {
    asked: Vec<Asked>,
    /// Those that another pod of the group is given devices for at the moment.
    pending: Vec<(Arc<Tenanted<ResourceClaim>>, AllocationResult)>,
    group: Option<GroupName>,
    /// Terms of which the node must match one, for each of those that say from where they can be
    /// used.
    reached: Vec<Vec<Term>>,
    /// Those of them that are to be noted as the pod's.
    unreserved: Vec<Arc<Tenanted<ResourceClaim>>>,
    /// Claims that no other pod uses.
    unused: Vec<Arc<Tenanted<ResourceClaim>>>,
    /// Why a search ended early. What [`Pass::check`] gives is one more than the place here.
    stops: Mutex<Vec<String>>,
}

const ELSEWHERE: u32 = 1;
const NOT_ENOUGH: u32 = 2;
const STOPPED: u32 = 3;

/// A row, to those who ask whether a device can be used there.
struct Row<'a> {
    world: &'a World,
    row: usize,
}

impl Place for Row<'_> {
    fn name(&self) -> &str {
        self.world.nodes.name(self.row)
    }

    fn matches(&self, terms: &[NodeSelectorTerm]) -> bool {
        let nodes = &self.world.nodes;
        let mut terms = terms.iter().map(|it| nodes.labels.term(it));
        terms.any(|it| it.matches(&nodes.labels, self.row, nodes.name(self.row)))
    }
}

impl Claims {
    /// A claim has something that can be used from some nodes only.
    fn reach(&mut self, world: &World, allocation: &AllocationResult) {
        if let Some(selector) = &allocation.node_selector {
            let labels = &world.nodes.labels;
            let terms = selector.node_selector_terms.iter().map(|it| labels.term(it));
            self.reached.push(terms.collect());
        }
    }

    fn find(&self, world: &World, row: usize) -> Result<Option<Vec<AllocationResult>>, Stop> {
        let devices = &world.devices;
        let pools = devices.inventory.pools(&Row { world, row });
        let is_taken = |id: &DeviceId| devices.is_taken(id);
        let is_ours = |offer: &Offer| !offer.reach.is_shared() || world.gives_shared_on(row);
        let ground = Ground {
            pools: &pools,
            selectors: &devices.selectors,
            is_taken: &is_taken,
            is_ours: &is_ours,
        };
        let found = allocate(&self.asked, &ground)?;
        // What is written once is fenced by one thing.
        let is_mixed = |it: &AllocationResult| is_mixed(devices, it);
        Ok(found.filter(|all| !world.is_shared() || !all.iter().any(is_mixed)))
    }
}

impl Pass for Claims {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let nodes = &world.nodes;
        let is_reached = |terms: &Vec<Term>| {
            terms.iter().any(|it| it.matches(&nodes.labels, row, nodes.name(row)))
        };
        if !self.reached.iter().all(is_reached) {
            return ELSEWHERE;
        }
        if self.asked.is_empty() {
            return 0;
        }
        let why = match self.find(world, row) {
            Ok(Some(_)) => return 0,
            Ok(None) => return NOT_ENOUGH,
            Err(stop @ Stop::TooLong) => format!("node {}: {stop}", nodes.name(row)),
            Err(Stop::Bad(why)) => why,
        };
        let mut stops = self.stops.lock();
        let place = stops.iter().position(|it| *it == why).unwrap_or_else(|| {
            stops.push(why);
            stops.len() - 1
        });
        STOPPED.saturating_add(u32::try_from(place).unwrap_or(u32::MAX))
    }

    fn reasons(&self, why: u32) -> Vec<Cow<'static, str>> {
        let text = match why {
            ELSEWHERE => Cow::Borrowed("resourceclaim not available on the node"),
            NOT_ENOUGH => Cow::Borrowed("cannot allocate all claims"),
            _ => {
                let place = usize::try_from(why - STOPPED).unwrap_or(usize::MAX);
                let stops = self.stops.lock();
                Cow::Owned(stops.get(place).cloned().unwrap_or_default())
            }
        };
        vec![text]
    }

    fn is_final(&self, _why: u32) -> bool {
        true
    }

    fn to_free(&self, has: &dyn Fn(u32) -> bool) -> Option<Arc<Tenanted<ResourceClaim>>> {
        let has_devices = |it: &&Arc<Tenanted<ResourceClaim>>| {
            allocation_of(it).is_some_and(|it| it.node_selector.is_some())
        };
        self.unused.iter().find(has_devices).filter(|_| has(ELSEWHERE)).cloned()
    }

    fn work(&self, world: &World, row: usize) -> Work {
        let found = match self.asked.is_empty() {
            true => Vec::new(),
            false => self.find(world, row).ok().flatten().unwrap_or_default(),
        };
        let work = |key: ObjectKey, uid: &str, allocation: Option<AllocationResult>| ClaimWork {
            key,
            uid: uid.to_owned(),
            is_shared: allocation.as_ref().is_some_and(|it| is_shared(&world.devices, it)),
            allocation,
            group: self.group.clone(),
            permit: None,
        };
        let given = self.asked.iter().zip(found);
        let given = given.map(|(asked, it)| work(asked.key.clone(), &asked.uid, Some(it)));
        let pending = self.pending.iter();
        let pending = pending.map(|(claim, it)| work(claim.key(), claim.uid(), Some(it.clone())));
        let reserved = self.unreserved.iter().map(|claim| work(claim.key(), claim.uid(), None));
        let devices = given.chain(pending).chain(reserved).collect();
        Work { devices, ..Work::default() }
    }
}

/// Whether some device of an allocation can be used from several nodes.
fn is_shared(devices: &Devices, allocation: &AllocationResult) -> bool {
    devices_of(allocation).iter().any(|it| devices.inventory.is_shared(it))
}

/// Whether some can, and others cannot.
fn is_mixed(devices: &Devices, allocation: &AllocationResult) -> bool {
    let all = devices_of(allocation);
    let n_shared = all.iter().filter(|it| devices.inventory.is_shared(it)).count();
    n_shared != 0 && n_shared != all.len()
}

impl Score for DynamicResources {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let claims = prepare(world, pod).ok().flatten()?;
        let mut all = claims.asked.iter().flat_map(|it| &it.requests);
        // Only who leaves a choice likes one node better than another.
        let has_choice = all.any(|it| 1 < it.choices.len());
        has_choice.then(|| Box::new(claims) as Box<dyn Rate>)
    }
}

impl Claims {
    /// More for choices that come first.
    fn points(&self, world: &World, row: usize) -> i64 {
        let Ok(Some(found)) = self.find(world, row) else { return 0 };
        let mut points = 0;
        for (asked, allocation) in self.asked.iter().zip(&found) {
            let results = allocation.devices.iter().flat_map(|it| it.results.iter().flatten());
            let given: Vec<&str> = results.map(|it| it.request.as_str()).collect();
            for request in asked.requests.iter().filter(|it| it.choices[0].name != it.name) {
                let is_given = |it: &Choice| given.contains(&it.name.as_str());
                if let Some(place) = request.choices.iter().position(is_given) {
                    points += i64::try_from(MAX_CHOICES.saturating_sub(place)).unwrap_or(0);
                }
            }
        }
        points
    }
}

impl Rate for Claims {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn rate(&self, world: &World, row: usize) -> i64 {
        self.points(world, row).min(MAX_SCORE)
    }

    fn go_over(&self, world: &World, rows: &[usize], _n_alike: &[usize], scores: &mut [i64]) {
        for (row, score) in rows.iter().zip(&mut *scores) {
            *score = self.points(world, *row);
        }
        normalize(scores, false);
    }
}
