//! Finds devices for claims on one node: a pure search.
//!
//! All requests are tried against all devices, in the order of their names, until all have what
//! they want; the first solution is taken, as upstream does. The search has an end: what asks for
//! more than [`MAX_STEPS`] looks is given up on that node.

use std::collections::BTreeMap;

use insula_api::quantity::Quantity;
use k8s_openapi::api::{
    core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm},
    resource::v1::{
        AllocationResult, Device, DeviceAllocationConfiguration, DeviceAllocationResult,
        DeviceAttribute, DeviceRequestAllocationResult, DeviceTaint, DeviceToleration,
    },
};

use super::{
    asked::{Asked, Choice, Constraint, Request, Wanted},
    inventory::{DeviceId, Offer, Pool, Problem, Reach},
    selectors::Selectors,
};

/// Devices that one claim can get; upstream's `AllocationResultsMaxSize`.
const MAX_RESULTS: usize = 32;
/// Devices that are looked at for one pod on one node.
const MAX_STEPS: usize = 20_000;

/// Why a search ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    #[error("timed out trying to allocate devices")]
    TooLong,
    /// No node will do before something is written otherwise.
    #[error("{0}")]
    Bad(String),
}

/// Where it is looked for devices.
pub(crate) struct Ground<'a> {
    pub(crate) pools: &'a [Pool],
    pub(crate) selectors: &'a Selectors,
    /// Devices that others have.
    pub(crate) is_taken: &'a dyn Fn(&DeviceId) -> bool,
    /// Devices that are given away here.
    pub(crate) is_ours: &'a dyn Fn(&Offer) -> bool,
}

/// A device: its pool, and the place in it.
type At = (usize, (usize, usize));

struct Search<'a> {
    claims: &'a [Asked],
    ground: &'a Ground<'a>,
    /// For each claim its devices so far, with the number of the request and of the choice.
    found: Vec<Vec<(usize, usize, At)>>,
    /// For each constraint of a claim the values that devices so far have.
    values: Vec<Vec<Vec<&'a DeviceAttribute>>>,
    n_steps: usize,
}

/// Devices for all claims, in their order; `None` if the node has not enough.
pub(crate) fn allocate(
    claims: &[Asked],
    ground: &Ground<'_>,
) -> Result<Option<Vec<AllocationResult>>, Stop> {
    let mut search = Search {
        claims,
        ground,
        found: vec![Vec::new(); claims.len()],
        values: claims.iter().map(|it| vec![Vec::new(); it.constraints.len()]).collect(),
        n_steps: 0,
    };
    if search.requests(0, 0)? {
        let all = claims.iter().zip(&search.found);
        return Ok(Some(all.map(|(claim, found)| search.result(claim, found)).collect()));
    }
    if ground.pools.iter().any(|it| it.problem == Some(Problem::Invalid)) {
        return Err(Stop::Bad("invalid resource pools were encountered".to_owned()));
    }
    Ok(None)
}

impl<'a> Search<'a> {
    fn offer(&self, at: At) -> &'a Offer {
        self.ground.pools[at.0].offer(at.1)
    }

    /// Finds devices from this request on.
    fn requests(&mut self, claim: usize, request: usize) -> Result<bool, Stop> {
        let Some(asked) = self.claims.get(claim) else { return Ok(true) };
        let Some(Request { choices, .. }) = asked.requests.get(request) else {
            return self.requests(claim + 1, 0);
        };
        for (n, choice) in choices.iter().enumerate() {
            let all = match choice.wanted {
                Wanted::Exactly(_) => Vec::new(),
                Wanted::All => self.all(asked, choice)?,
            };
            let n_wanted = match choice.wanted {
                Wanted::Exactly(count) => count,
                // There has to be one at least.
                Wanted::All if all.is_empty() => continue,
                Wanted::All => all.len(),
            };
            if MAX_RESULTS < self.found[claim].len().saturating_add(n_wanted) {
                continue;
            }
            let done = match choice.wanted {
                Wanted::Exactly(_) => self.some((claim, request, n), n_wanted, (0, 0))?,
                Wanted::All => self.each((claim, request, n), &all)?,
            };
            if done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// All devices that a choice is about.
    fn all(&mut self, asked: &Asked, choice: &Choice) -> Result<Vec<At>, Stop> {
        let mut all = Vec::new();
        for (n, pool) in self.ground.pools.iter().enumerate() {
            if let Some(problem) = pool.problem {
                let state = match problem {
                    Problem::Incomplete => "being updated",
                    Problem::Invalid => "invalid",
                };
                let (driver, name) = &pool.slice(pool.offers[0]).pool;
                let claim = format!("{}/{}", asked.key.namespace, asked.key.name);
                return Err(Stop::Bad(format!(
                    "claim {claim}, request {}: asks for all devices, but resource pool \
                     {driver}/{name} is currently {state}",
                    choice.name
                )));
            }
            for at in &pool.offers {
                if self.is_selected(choice, (n, *at))? {
                    all.push((n, *at));
                }
            }
        }
        Ok(all)
    }

    /// Takes all of these devices, or none, and goes on.
    fn each(&mut self, which: (usize, usize, usize), all: &[At]) -> Result<bool, Stop> {
        let n_before = self.found[which.0].len();
        let mut is_possible = true;
        for at in all {
            self.step()?;
            if !self.take(which, *at) {
                is_possible = false;
                break;
            }
        }
        if is_possible && self.requests(which.0, which.1 + 1)? {
            return Ok(true);
        }
        while n_before < self.found[which.0].len() {
            self.give_back(which.0);
        }
        Ok(false)
    }

    /// Takes so many more devices from this one on, and goes on.
    fn some(
        &mut self,
        which: (usize, usize, usize),
        n_wanted: usize,
        from: (usize, usize),
    ) -> Result<bool, Stop> {
        if n_wanted == 0 {
            return self.requests(which.0, which.1 + 1);
        }
        let choice = &self.claims[which.0].requests[which.1].choices[which.2];
        let pools = self.ground.pools;
        for (n, pool) in pools.iter().enumerate().skip(from.0) {
            if pool.problem.is_some() {
                continue;
            }
            let first = if n == from.0 { from.1 } else { 0 };
            for (m, at) in pool.offers.iter().enumerate().skip(first) {
                self.step()?;
                if !self.is_selected(choice, (n, *at))? || !self.take(which, (n, *at)) {
                    continue;
                }
                // In which order devices are taken makes no difference: only later ones follow.
                if self.some(which, n_wanted - 1, (n, m + 1))? {
                    return Ok(true);
                }
                self.give_back(which.0);
            }
        }
        Ok(false)
    }

    fn step(&mut self) -> Result<(), Stop> {
        self.n_steps += 1;
        if self.n_steps <= MAX_STEPS { Ok(()) } else { Err(Stop::TooLong) }
    }

    fn is_selected(&self, choice: &Choice, (pool, at): At) -> Result<bool, Stop> {
        let slice = self.ground.pools[pool].slice(at);
        let offer = &slice.offers[at.1];
        // Whoever has such a device has it only when its driver says so later, and several may
        // have one device together: neither is done here.
        let is_special = offer.device.allow_multiple_allocations == Some(true)
            || offer.device.binding_conditions.as_ref().is_some_and(|it| !it.is_empty());
        if is_special {
            return Ok(false);
        }
        for selector in &choice.selectors {
            let answer = slice.matches(self.ground.selectors, &selector.expression, at.1);
            match answer {
                Ok(true) => (),
                Ok(false) => return Ok(false),
                Err(why) => return Err(Stop::Bad(format!("{}: {why}", selector.origin))),
            }
        }
        Ok(has_capacity(&offer.device, &choice.capacity))
    }

    /// Takes a device, if nobody has it and it goes with the others.
    fn take(&mut self, (claim, request, choice): (usize, usize, usize), at: At) -> bool {
        let asked = &self.claims[claim];
        let chosen = &asked.requests[request].choices[choice];
        let offer = self.offer(at);
        let has = |found: &[(usize, usize, At)]| found.iter().any(|(_, _, it)| *it == at);
        let is_in_use = if chosen.is_admin {
            has(&self.found[claim])
        } else {
            (self.ground.is_taken)(&offer.id) || self.found.iter().any(|it| has(it))
        };
        let tolerations = chosen.tolerations.as_deref().unwrap_or_default();
        let mut taints = offer.device.taints.iter().flatten();
        if is_in_use
            || !(self.ground.is_ours)(offer)
            || taints.any(|it| keeps_away(it, tolerations))
            || !self.has_counters_for(at)
        {
            return false;
        }
        let about = |it: &&Constraint| it.is_about(&chosen.name);
        for (n, constraint) in asked.constraints.iter().enumerate().filter(|(_, it)| about(it)) {
            let value = attribute(&offer.device, &offer.id.driver, &constraint.attribute);
            let others = &self.values[claim][n];
            let agrees = value.is_some_and(|value| match constraint.is_distinct {
                true => !others.contains(&value),
                false => others.first().is_none_or(|it| *it == value),
            });
            if !agrees {
                return false;
            }
        }
        for (n, constraint) in asked.constraints.iter().enumerate().filter(|(_, it)| about(it)) {
            let value = attribute(&offer.device, &offer.id.driver, &constraint.attribute);
            self.values[claim][n].extend(value);
        }
        self.found[claim].push((request, choice, at));
        true
    }

    fn give_back(&mut self, claim: usize) {
        let Some((request, choice, _)) = self.found[claim].pop() else { return };
        let asked = &self.claims[claim];
        let name = &asked.requests[request].choices[choice].name;
        for (n, constraint) in asked.constraints.iter().enumerate() {
            if constraint.is_about(name) {
                self.values[claim][n].pop();
            }
        }
    }

    fn has_counters_for(&self, at: At) -> bool {
        let pool = &self.ground.pools[at.0];
        let offer = pool.offer(at.1);
        if offer.device.consumes_counters.as_ref().is_none_or(Vec::is_empty) {
            return true;
        }
        let chosen = self.found.iter().flatten().filter(|(_, _, it)| it.0 == at.0);
        let mut more: Vec<&Offer> = chosen.map(|(_, _, it)| pool.offer(it.1)).collect();
        more.push(offer);
        !pool.has_counters() || pool.bears(self.ground.is_taken, &more)
    }

    /// What is written into the claim.
    fn result(&self, asked: &Asked, found: &[(usize, usize, At)]) -> AllocationResult {
        let choice =
            |(request, choice, _): &(usize, usize, At)| &asked.requests[*request].choices[*choice];
        let results = found.iter().map(|it| {
            let id = &self.offer(it.2).id;
            DeviceRequestAllocationResult {
                request: choice(it).name.clone(),
                driver: id.driver.to_string(),
                pool: id.pool.to_string(),
                device: id.device.to_string(),
                admin_access: choice(it).is_admin.then_some(true),
                tolerations: choice(it).tolerations.clone(),
                ..DeviceRequestAllocationResult::default()
            }
        });
        let mut chosen: Vec<&Choice> = Vec::new();
        for it in found {
            if !chosen.iter().any(|known| std::ptr::eq(*known, choice(it))) {
                chosen.push(choice(it));
            }
        }
        AllocationResult {
            allocation_timestamp: None,
            devices: Some(DeviceAllocationResult {
                results: Some(results.collect()),
                config: Some(config(asked, &chosen)).filter(|it| !it.is_empty()),
            }),
            node_selector: selector(found.iter().map(|it| &self.offer(it.2).reach)),
        }
    }
}

/// The configuration of the classes that were chosen, each once, and of the claim.
fn config(asked: &Asked, chosen: &[&Choice]) -> Vec<DeviceAllocationConfiguration> {
    let mut classes: Vec<(&str, Vec<String>)> = Vec::new();
    for choice in chosen {
        match classes.iter_mut().find(|(class, _)| *class == choice.class) {
            Some((_, requests)) => requests.push(choice.name.clone()),
            None => classes.push((&choice.class, vec![choice.name.clone()])),
        }
    }
    let mut all = Vec::new();
    for (class, requests) in classes {
        let choice = chosen.iter().find(|it| it.class == class);
        all.extend(choice.into_iter().flat_map(|it| &it.class_config).map(|it| {
            DeviceAllocationConfiguration {
                source: "FromClass".to_owned(),
                requests: Some(requests.clone()),
                opaque: it.opaque.clone(),
            }
        }));
    }
    for it in &asked.config {
        let about = it.requests.as_deref().unwrap_or_default();
        let is_chosen = |name: &String| {
            asked.requests.iter().any(|it| it.name == *name)
                || chosen.iter().any(|it| it.name == *name)
        };
        if about.is_empty() || about.iter().any(is_chosen) {
            all.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: it.requests.clone(),
                opaque: it.opaque.clone(),
            });
        }
    }
    all
}

/// The nodes from which all these devices can be used; `None` if from all.
fn selector<'a>(reaches: impl Iterator<Item = &'a Reach>) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for reach in reaches {
        match reach {
            Reach::Node(name) => {
                let requirement = NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![name.clone()]),
                };
                let match_fields = Some(vec![requirement]);
                let term = NodeSelectorTerm { match_fields, match_expressions: None };
                return Some(NodeSelector { node_selector_terms: vec![term] });
            }
            Reach::Selected(selector) => {
                // There is exactly one: validation lets no other pass.
                for it in &selector.node_selector_terms {
                    merge(&mut term.match_fields, it.match_fields.as_deref());
                    merge(&mut term.match_expressions, it.match_expressions.as_deref());
                }
            }
            Reach::Everywhere | Reach::Nowhere => (),
        }
    }
    let is_limited = term.match_fields.is_some() || term.match_expressions.is_some();
    is_limited.then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn merge(to: &mut Option<Vec<NodeSelectorRequirement>>, more: Option<&[NodeSelectorRequirement]>) {
    for it in more.unwrap_or_default() {
        let known = to.get_or_insert_default();
        if !known.contains(it) {
            known.push(it.clone());
        }
    }
}

/// An attribute by its full name. One that a driver names without a domain is its own.
fn attribute<'a>(device: &'a Device, driver: &str, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        attributes.get(id).filter(|_| domain == driver)
    })
}

fn has_capacity(device: &Device, wanted: &BTreeMap<String, Quantity>) -> bool {
    wanted.iter().all(|(name, wanted)| {
        let capacity = device.capacity.as_ref().and_then(|it| it.get(name));
        let amount = capacity.and_then(|it| Quantity::parse(&it.value.0).ok());
        amount.is_some_and(|it| *wanted <= it)
    })
}

fn keeps_away(taint: &DeviceTaint, tolerations: &[DeviceToleration]) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
        && !tolerations.iter().any(|it| tolerates(it, taint))
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref() {
            None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
            Some("Exists") => true,
            Some(_) => false,
        }
}
