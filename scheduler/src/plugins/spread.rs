//! Pods that want to be spread evenly over domains.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use insula_api::{names::TenantName, selector::Selector};

use crate::{
    alike::{Mark, by_domain, by_label},
    framework::{Depends, Event, Filter, Hint, MAX_SCORE, Pass, Prepared, Rate, Score},
    pod::{Group, Shape, Spread},
    tally::{Counted, Eligible, Rule, TallyId},
    world::World,
};

const HOSTNAME: &str = "kubernetes.io/hostname";

/// A constraint for pods that have none of their own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DefaultSpread {
    pub(crate) topology_key: Arc<str>,
    pub(crate) max_skew: i64,
    pub(crate) is_required: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct PodTopologySpread {
    pub(crate) defaults: Vec<DefaultSpread>,
    /// The defaults are upstream's: nodes without such labels are scored all the same.
    pub(crate) are_the_systems: bool,
}

impl Default for PodTopologySpread {
    fn default() -> Self {
        let softly = |key: &str, max_skew| DefaultSpread {
            topology_key: key.into(),
            max_skew,
            is_required: false,
        };
        Self {
            defaults: vec![softly(HOSTNAME, 3), softly("topology.kubernetes.io/zone", 5)],
            are_the_systems: true,
        }
    }
}

/// A constraint, ready to be counted.
#[derive(Debug)]
struct Constraint {
    tally: TallyId,
    topology_key: Arc<str>,
    max_skew: i64,
    min_domains: usize,
    /// 1 if a pod of this shape is counted itself.
    own: i64,
    /// Read when rows are gone over.
    least: i64,
}

impl PodTopologySpread {
    fn spreads(&self, world: &World, pod: &Shape, required: bool) -> Vec<Spread> {
        if !pod.spread.is_empty() {
            let own = pod.spread.iter().filter(|it| it.is_required == required);
            return own.cloned().collect();
        }
        let mut defaults = self.defaults.iter().filter(|it| it.is_required == required).peekable();
        if defaults.peek().is_none() {
            return Vec::new();
        }
        let Some(selector) = world.workloads.selector_of(pod) else { return Vec::new() };
        let spread = |it: &DefaultSpread| Spread {
            topology_key: it.topology_key.clone(),
            selector: Some(selector.clone()),
            max_skew: it.max_skew,
            min_domains: 1,
            is_required: required,
            honors_affinity: true,
            honors_taints: false,
        };
        defaults.map(spread).collect()
    }

    fn constraints(
        world: &mut World,
        pod: &Shape,
        spreads: &[Spread],
        needs_all_keys: bool,
    ) -> Vec<Constraint> {
        let keys: BTreeSet<Arc<str>> = spreads.iter().map(|it| it.topology_key.clone()).collect();
        let keys: Vec<Arc<str>> = if needs_all_keys { keys.into_iter().collect() } else { vec![] };
        let (tallies, nodes) = world.tallies_mut(&pod.tenant);
        let constraint = |it: &Spread| {
            // As upstream: a selector of everything counts nothing.
            let counted = it.selector.clone().filter(|it| !it.requirements().is_empty());
            let group = Group::in_namespace(&pod.namespace, counted);
            let own = it.selector.as_ref().is_some_and(|it: &Selector| it.matches(&pod.labels));
            let on = Eligible {
                keys: keys.clone(),
                labels: if it.honors_affinity { pod.node_labels.clone() } else { vec![] },
                required: if it.honors_affinity { pod.required.clone() } else { None },
                tolerations: it.honors_taints.then(|| pod.tolerations.clone()),
            };
            // Scores need not know of domains without pods, and of hosts nothing but their pods.
            let is_of_all = !it.is_required && (&*it.topology_key == HOSTNAME || on.has_all());
            let rule = Rule {
                topology_key: it.topology_key.clone(),
                counted: Counted::In { groups: vec![group], also_ending: false },
                on: (!is_of_all).then_some(on),
            };
            Constraint {
                tally: tallies.count(nodes, &rule),
                topology_key: it.topology_key.clone(),
                max_skew: it.max_skew,
                min_domains: it.min_domains,
                own: i64::from(own),
                least: 0,
            }
        };
        spreads.iter().map(constraint).collect()
    }
}

const NO_LABEL: u32 = 1;
const SKEWED: u32 = 2;

impl Filter for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        let spreads = self.spreads(world, pod, true);
        if spreads.is_empty() {
            return Prepared::Skip;
        }
        let constraints = Self::constraints(world, pod, &spreads, true);
        Prepared::Pass(Box::new(Skew { tenant: pod.tenant.clone(), constraints }))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        Hint::look_again_if(match event {
            // Also a node that will not do itself may change what is the least.
            Event::Node { changed, .. } => changed.is_new || changed.labels || changed.taints,
            Event::PodGone { pod: other }
            | Event::PodEnds { pod: other }
            | Event::PodHere { pod: other } => {
                other.tenant == pod.tenant && other.namespace == pod.namespace
            }
            Event::Selection { tenant } => *tenant == pod.tenant,
            Event::Storage { .. } | Event::Devices { .. } => false,
        })
    }
}

#[derive(Debug)]
struct Skew {
    tenant: TenantName,
    constraints: Vec<Constraint>,
}

impl Pass for Skew {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn alike(&self, world: &World) -> Option<Vec<Mark>> {
        let mut marks = Vec::new();
        for it in &self.constraints {
            marks.extend(by_domain(world, &self.tenant, it.tally)?);
        }
        Some(marks)
    }

    fn begin(&mut self, world: &World) {
        let tallies = world.tallies(&self.tenant);
        for it in &mut self.constraints {
            let tally = tallies.get(it.tally);
            let has_enough = tally.is_some_and(|tally| it.min_domains <= tally.n_domains());
            it.least = if has_enough { tally.map_or(0, |tally| tally.least()) } else { 0 };
        }
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let tallies = world.tallies(&self.tenant);
        for it in &self.constraints {
            let Some(tally) = tallies.get(it.tally) else { continue };
            if tally.domain_of(&world.nodes, row).is_none() {
                return NO_LABEL;
            }
            if it.max_skew < tally.in_domain_of(&world.nodes, row) + it.own - it.least {
                return SKEWED;
            }
        }
        0
    }

    fn reasons(&self, why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Borrowed(if why == NO_LABEL {
            "node(s) didn't match pod topology spread constraints (missing required label)"
        } else {
            "node(s) didn't match pod topology spread constraints"
        })]
    }

    fn is_final(&self, why: u32) -> bool {
        why == NO_LABEL
    }
}

impl Score for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let spreads = self.spreads(world, pod, false);
        if spreads.is_empty() {
            return None;
        }
        let needs_all_keys = !pod.spread.is_empty() || !self.are_the_systems;
        let constraints = Self::constraints(world, pod, &spreads, needs_all_keys);
        Some(Box::new(Crowding { tenant: pod.tenant.clone(), constraints, needs_all_keys }))
    }
}

#[derive(Debug)]
struct Crowding {
    tenant: TenantName,
    constraints: Vec<Constraint>,
    needs_all_keys: bool,
}

impl Rate for Crowding {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn alike(&self, world: &World) -> Option<Vec<Mark>> {
        let mut marks = Vec::new();
        for it in &self.constraints {
            let Some(key) = world.nodes.labels.key(&it.topology_key) else { continue };
            if &*it.topology_key == HOSTNAME {
                marks.extend([Mark::HasLabel(key), Mark::OnRow(it.tally)]);
            } else {
                marks.extend(by_label(world, Some(key))?);
            }
        }
        Some(marks)
    }

    fn rate(&self, _world: &World, _row: usize) -> i64 {
        0
    }

    fn go_over(&self, world: &World, rows: &[usize], n_alike: &[usize], scores: &mut [i64]) {
        let tallies = world.tallies(&self.tenant);
        let labels = &world.nodes.labels;
        let keys: Vec<_> = self.constraints.iter().map(|it| labels.key(&it.topology_key)).collect();
        let has_all = |row: usize| keys.iter().all(|key| labels.value(*key, row) != 0);
        let is_scored: Vec<bool> =
            rows.iter().map(|row| !self.needs_all_keys || has_all(*row)).collect();
        let scored = n_alike.iter().zip(&is_scored).filter(|(_, scored)| **scored);
        let n_scored: usize = scored.map(|(n_alike, _)| n_alike).sum();
        let mut sums = vec![0.0_f64; rows.len()];
        for (it, key) in self.constraints.iter().zip(&keys) {
            let Some(tally) = tallies.get(it.tally) else { continue };
            let is_per_node = &*it.topology_key == HOSTNAME;
            let n_domains = if is_per_node {
                n_scored
            } else {
                let scored = rows.iter().zip(&is_scored).filter(|(_, scored)| **scored);
                let mut values: Vec<u32> =
                    scored.map(|(row, _)| labels.value(*key, *row)).collect();
                values.sort_unstable();
                values.dedup();
                values.len()
            };
            // Counts in few domains are large: so they weigh less.
            let weight = ((n_domains + 2) as f64).ln();
            for ((row, sum), is_scored) in rows.iter().zip(&mut sums).zip(&is_scored) {
                if !is_scored || labels.value(*key, *row) == 0 {
                    continue;
                }
                let n_pods = if is_per_node {
                    tally.on_row(*row)
                } else {
                    tally.in_domain_of(&world.nodes, *row)
                };
                *sum += n_pods as f64 * weight + (it.max_skew - 1) as f64;
            }
        }
        for (sum, score) in sums.iter().zip(&mut *scores) {
            *score = sum.round() as i64;
        }
        let scored = || scores.iter().zip(&is_scored).filter(|(_, it)| **it).map(|(it, _)| *it);
        let (least, most) = (scored().min().unwrap_or(0), scored().max().unwrap_or(0));
        for (score, is_scored) in scores.iter_mut().zip(&is_scored) {
            *score = if !is_scored {
                0
            } else if most == 0 {
                MAX_SCORE
            } else {
                MAX_SCORE * (most + least - *score) / most
            };
        }
    }
}
