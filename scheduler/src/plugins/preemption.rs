//! Ending less important pods to make room.
//!
//! A tenant's priorities order its own pods only, so a pod makes room at the expense of its own
//! tenant; those of the platform's tenant come before everybody's.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, sync::Arc};

use insula_api::names::TenantName;
use insula_client::ObjectKey;

use crate::{
    framework::{PostFilter, Room, Verdict},
    passes::{Passes, listed},
    pod::Shape,
    qos::Qos,
    world::World,
};

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DefaultPreemption {
    /// So many candidates are looked for, at least, before the best is taken: of the nodes that
    /// come into question a share in percent, and a number.
    pub(crate) min_candidates_percentage: usize,
    pub(crate) min_candidates: usize,
    /// Of pods that matter the same those of a lower class of service end first. Upstream does not
    /// look at it.
    pub(crate) honors_qos: bool,
}

impl Default for DefaultPreemption {
    fn default() -> Self {
        Self { min_candidates_percentage: 10, min_candidates: 100, honors_qos: false }
    }
}

/// A pod that may be ended.
#[derive(Debug, Clone)]
struct Victim {
    key: ObjectKey,
    shape: Arc<Shape>,
    started: i64,
}

/// Pods of one node that would have to end.
#[derive(Debug)]
struct Candidate {
    row: usize,
    /// The most important first.
    victims: Vec<Victim>,
    n_violations: usize,
    /// The highest class among them, if that counts.
    qos: Option<Qos>,
}

impl Candidate {
    /// Less is better.
    fn cost(&self) -> impl Ord + use<> {
        let highest = self.victims.first().map_or(i32::MIN, |it| it.shape.priority);
        let offset = |it: &Victim| i64::from(it.shape.priority) + i64::from(i32::MAX) + 1;
        let most_important = self.victims.iter().filter(|it| it.shape.priority == highest);
        let earliest = most_important.map(|it| it.started).min().unwrap_or(i64::MAX);
        (
            self.n_violations,
            highest,
            self.victims.iter().map(offset).sum::<i64>(),
            self.qos,
            self.victims.len(),
            // The one that has run the shortest time.
            Reverse(earliest),
        )
    }
}

/// Whether `pod` may have `other` ended.
fn may_end(pod: &Shape, other: &Shape) -> bool {
    other.priority < pod.priority
        && (other.tenant == pod.tenant || pod.tenant == TenantName::system())
}

/// Whether one is still there that was asked to end for a pod: before the server tells that it
/// ends, nothing else shows it.
fn has_asked(world: &World, key: &ObjectKey) -> bool {
    let mut asked = world.nominations.asked(key).iter();
    asked.any(|victim| world.held(&victim.key).is_some_and(|it| it.uid == victim.uid))
}

impl PostFilter for DefaultPreemption {
    fn make_room(
        &self,
        world: &mut World,
        (key, pod): (&ObjectKey, &Arc<Shape>),
        verdicts: &[Verdict],
        passes: &mut Passes,
        tie: usize,
    ) -> Room {
        if !pod.preempts {
            return Room::Wait("not eligible due to preemptionPolicy=Never.".to_owned());
        }
        let could_help = |verdict: Verdict| !passes.is_final(verdict) && passes.refusal().is_none();
        if let Some(row) = world.nominations.of(key)
            && verdicts.get(row).is_some_and(|it| could_help(*it))
            && (has_asked(world, key)
                || world
                    .pods_on(row)
                    .any(|it| it.held.shape.is_ending && may_end(pod, &it.held.shape)))
        {
            let why = "not eligible due to a terminating pod on the nominated node.";
            return Room::Wait(why.to_owned());
        }
        let rows: Vec<usize> = world
            .nodes
            .rows()
            .filter(|row| verdicts.get(*row).is_some_and(|it| could_help(*it)))
            .collect();
        let n_nodes = world.nodes.len();
        let mut reasons: BTreeMap<Cow<'static, str>, usize> = BTreeMap::new();
        if rows.len() < n_nodes {
            reasons.insert(Cow::Borrowed(NOT_HELPFUL), n_nodes - rows.len());
        }
        let mut candidates = Vec::new();
        if rows.is_empty() || world.has_victims_for(pod) {
            let n_wanted = (rows.len() * self.min_candidates_percentage / 100)
                .max(self.min_candidates)
                .min(rows.len());
            let first = tie % rows.len().max(1);
            for row in rows[first..].iter().chain(&rows[..first]) {
                match self.candidate(world, (key, pod), *row, passes) {
                    Ok(it) => candidates.push(it),
                    Err(why) => {
                        for reason in why {
                            *reasons.entry(reason).or_default() += 1;
                        }
                    }
                }
                let has_harmless = candidates.iter().any(|it| it.n_violations == 0);
                if has_harmless && n_wanted <= candidates.len() {
                    break;
                }
            }
        } else {
            reasons.insert(Cow::Borrowed(NO_VICTIMS), rows.len());
        }
        match candidates.into_iter().min_by_key(Candidate::cost) {
            Some(best) => Room::Here {
                row: best.row,
                victims: best.victims.into_iter().map(|it| it.key).collect(),
            },
            None => Room::None(format!("0/{n_nodes} nodes are available: {}.", listed(reasons))),
        }
    }
}

impl DefaultPreemption {
    /// The fewest and least important pods of a row that have to end for `pod` to be there; or why
    /// their ending would not help.
    fn candidate(
        &self,
        world: &mut World,
        (key, pod): (&ObjectKey, &Arc<Shape>),
        row: usize,
        passes: &mut Passes,
    ) -> Result<Candidate, Vec<Cow<'static, str>>> {
        let lower = world.pods_on(row).filter(|it| may_end(pod, &it.held.shape));
        let mut lower: Vec<Victim> = lower
            .map(|it| Victim {
                key: it.key(),
                shape: it.held.shape.clone(),
                started: it.held.started,
            })
            .collect();
        if lower.is_empty() {
            return Err(vec![Cow::Borrowed(NO_VICTIMS)]);
        }
        let qos = |it: &Victim| self.honors_qos.then_some(it.shape.qos);
        let by_importance =
            |it: &Victim| (Reverse((it.shape.priority, qos(it))), it.started, it.key.clone());
        lower.sort_by_cached_key(by_importance);
        let nominated = world.nominations.before(row, key, pod);
        nominated.iter().for_each(|it| world.add(row, it, 1));
        lower.iter().for_each(|it| world.add(row, &it.shape, -1));
        let verdict = passes.check(world, row);
        let mut victims = Vec::new();
        let mut n_violations = 0;
        if verdict.is_feasible() {
            let named: Vec<_> = lower.iter().map(|it| (it.key.clone(), it.shape.clone())).collect();
            let is_violation = world.budgets.violated(&named);
            let (protected, others): (Vec<usize>, Vec<usize>) =
                (0..lower.len()).partition(|n| is_violation[*n]);
            // Those that a budget protects are spared first.
            for n in protected.into_iter().chain(others) {
                let it = &lower[n];
                world.add(row, &it.shape, 1);
                if !passes.check(world, row).is_feasible() {
                    world.add(row, &it.shape, -1);
                    n_violations += usize::from(is_violation[n]);
                    victims.push(it.clone());
                }
            }
            victims.iter().for_each(|it| world.add(row, &it.shape, 1));
            victims.sort_by_cached_key(by_importance);
        } else {
            lower.iter().for_each(|it| world.add(row, &it.shape, 1));
        }
        nominated.iter().for_each(|it| world.add(row, it, -1));
        if !verdict.is_feasible() {
            return Err(passes.reasons(verdict));
        }
        let qos = victims.iter().filter_map(qos).max();
        Ok(Candidate { row, victims, n_violations, qos })
    }
}
