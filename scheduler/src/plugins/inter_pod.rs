//! Pods that want to be near others of their tenant, or far from them.

use std::borrow::Cow;

use crate::{
    alike::{Mark, by_domain},
    framework::{Depends, Event, Filter, Hint, MAX_SCORE, Pass, Prepared, Rate, Score},
    pod::{PodTerm, Shape},
    tally::{Counted, Rule, Tallies, TallyId},
    world::World,
};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct InterPodAffinity {
    /// What a required term of a pod that is there counts for, in favour of those it speaks of.
    pub(crate) hard_weight: i64,
    /// Whether preferred terms of pods that are there are left out for pods that have none.
    pub(crate) ignores_preferred_of_others: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        Self { hard_weight: 1, ignores_preferred_of_others: false }
    }
}

const NO_FRIENDS: u32 = 1;
const AVOIDED: u32 = 2;
const AVOIDING: u32 = 3;

fn rule(term: &PodTerm, groups: Vec<crate::pod::Group>) -> Rule {
    Rule {
        topology_key: term.topology_key.clone(),
        counted: Counted::In { groups, also_ending: true },
        on: None,
    }
}

impl Filter for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        let (tallies, nodes) = world.tallies_mut(&pod.tenant);
        // A pod is a friend only if all terms speak of it.
        let groups: Vec<_> = pod.affinity.iter().map(|term| term.group.clone()).collect();
        let near: Vec<TallyId> = pod
            .affinity
            .iter()
            .map(|term| tallies.count(nodes, &rule(term, groups.clone())))
            .collect();
        let far: Vec<TallyId> = pod
            .anti_affinity
            .iter()
            .map(|term| tallies.count(nodes, &rule(term, vec![term.group.clone()])))
            .collect();
        let avoiding: Vec<TallyId> = tallies
            .speaking_of(pod)
            .filter(|(_, counted)| matches!(counted, Counted::Avoiding(_)))
            .map(|(id, _)| id)
            .collect();
        if near.is_empty() && far.is_empty() && avoiding.is_empty() {
            return Prepared::Skip;
        }
        let labels = tallies.namespace_labels(&pod.namespace);
        let is_own_friend = groups.iter().all(|group| group.has(pod, labels));
        Prepared::Pass(Box::new(Neighbours {
            tenant: pod.tenant.clone(),
            near,
            far,
            avoiding,
            is_own_friend,
            may_be_first: false,
        }))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::Node { changed, .. } => Hint::look_again_if(changed.is_new || changed.labels),
            // Whoever goes may have been kept away from, or have kept others away.
            Event::PodGone { pod: gone } => Hint::look_again_if(
                gone.tenant == pod.tenant
                    && (!pod.anti_affinity.is_empty() || !gone.anti_affinity.is_empty()),
            ),
            Event::PodHere { pod: here } => {
                Hint::look_again_if(here.tenant == pod.tenant && !pod.affinity.is_empty())
            }
            Event::Selection { tenant } => Hint::look_again_if(*tenant == pod.tenant),
            Event::PodEnds { .. } | Event::Storage { .. } | Event::Devices { .. } => Hint::Nothing,
        }
    }
}

#[derive(Debug)]
struct Neighbours {
    tenant: insula_api::names::TenantName,
    near: Vec<TallyId>,
    far: Vec<TallyId>,
    avoiding: Vec<TallyId>,
    is_own_friend: bool,
    may_be_first: bool,
}

fn counted(tallies: &Tallies, id: TallyId, world: &World, row: usize) -> i64 {
    tallies.get(id).map_or(0, |it| it.in_domain_of(&world.nodes, row))
}

impl Pass for Neighbours {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn alike(&self, world: &World) -> Option<Vec<Mark>> {
        let mut marks = Vec::new();
        for id in self.near.iter().chain(&self.far).chain(&self.avoiding) {
            marks.extend(by_domain(world, &self.tenant, *id)?);
        }
        Some(marks)
    }

    fn begin(&mut self, world: &World) {
        let tallies = world.tallies(&self.tenant);
        let is_empty = |id: &TallyId| tallies.get(*id).is_none_or(|it| it.is_empty());
        self.may_be_first = self.is_own_friend && self.near.iter().all(is_empty);
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let tallies = world.tallies(&self.tenant);
        let has_label = |id: &TallyId| {
            tallies.get(*id).is_some_and(|it| it.domain_of(&world.nodes, row).is_some())
        };
        let has_friends = |id: &TallyId| 0 < counted(tallies, *id, world, row);
        if !self.near.iter().all(has_label)
            || !(self.may_be_first || self.near.iter().all(has_friends))
        {
            return NO_FRIENDS;
        }
        if self.far.iter().any(has_friends) {
            return AVOIDED;
        }
        if self.avoiding.iter().any(has_friends) {
            return AVOIDING;
        }
        0
    }

    fn reasons(&self, why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Borrowed(match why {
            NO_FRIENDS => "node(s) didn't match pod affinity rules",
            AVOIDED => "node(s) didn't match pod anti-affinity rules",
            _ => "node(s) didn't satisfy existing pods anti-affinity rules",
        })]
    }

    fn is_final(&self, why: u32) -> bool {
        why == NO_FRIENDS
    }
}

impl Score for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let (tallies, nodes) = world.tallies_mut(&pod.tenant);
        let mut weighed: Vec<(TallyId, i64)> = pod
            .preferred_pods
            .iter()
            .map(|(term, weight)| {
                (tallies.count(nodes, &rule(term, vec![term.group.clone()])), *weight)
            })
            .collect();
        let leaves_out = self.ignores_preferred_of_others && pod.preferred_pods.is_empty();
        for (id, counted) in tallies.speaking_of(pod) {
            match counted {
                Counted::Following(_) if 0 < self.hard_weight => {
                    weighed.push((id, self.hard_weight));
                }
                // These are counted with their weights.
                Counted::Preferring(..) if !leaves_out => weighed.push((id, 1)),
                _ => (),
            }
        }
        (!weighed.is_empty())
            .then(|| Box::new(Attraction { tenant: pod.tenant.clone(), weighed }) as _)
    }
}

#[derive(Debug)]
struct Attraction {
    tenant: insula_api::names::TenantName,
    weighed: Vec<(TallyId, i64)>,
}

impl Rate for Attraction {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn alike(&self, world: &World) -> Option<Vec<Mark>> {
        let mut marks = Vec::new();
        for (id, _) in &self.weighed {
            marks.extend(by_domain(world, &self.tenant, *id)?);
        }
        Some(marks)
    }

    fn rate(&self, world: &World, row: usize) -> i64 {
        let tallies = world.tallies(&self.tenant);
        self.weighed.iter().map(|(id, each)| each * counted(tallies, *id, world, row)).sum()
    }

    fn go_over(&self, world: &World, rows: &[usize], _n_alike: &[usize], scores: &mut [i64]) {
        let tallies = world.tallies(&self.tenant);
        scores.fill(0);
        for (id, each) in &self.weighed {
            let Some(tally) = tallies.get(*id) else { continue };
            for (row, score) in rows.iter().zip(&mut *scores) {
                *score += each * tally.in_domain_of(&world.nodes, *row);
            }
        }
        let least = scores.iter().copied().min().unwrap_or(0);
        let most = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            let share = if most == least {
                0.0
            } else {
                MAX_SCORE as f64 * ((*score - least) as f64 / (most - least) as f64)
            };
            *score = share as i64;
        }
    }
}
