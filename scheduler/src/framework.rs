//! The points at which plugins take part in a decision.
//!
//! They are those of upstream's framework, turned by a quarter: a plugin does not see a pod on a
//! node, it *prepares* once for all pods of a shape, and then goes over the columns of the table
//! of nodes.
//!
//! | upstream | here |
//! |---|---|
//! | PreEnqueue | [`PreEnqueue::why_not`] |
//! | PreFilter | [`Filter::only_on`], [`Filter::prepare`] |
//! | Filter | [`Pass::check`], [`Pass::go_over`] |
//! | PostFilter | [`PostFilter::make_room`] |
//! | PreScore | [`Score::prepare`] |
//! | Score, NormalizeScore | [`Rate::rate`], [`Rate::go_over`] |
//! | Reserve, Unreserve | [`Reserve::reserve`], [`Reserve::unreserve`] |
//! | Permit | [`Permit::permit`] |
//! | PreBind | [`Pass::work`]: what is to be written before the pod is bound |
//! | EventsToRegister, QueueingHintFn | [`Filter::may_help`] |
//!
//! What a plugin prepared is kept and used again for other pods of the shape, until
//! [`World::version`] says that it is void; so it must not remember anything that can change
//! without that.

use std::{borrow::Cow, collections::BTreeSet, fmt::Debug, sync::Arc, time::Duration};

use insula_client::{ObjectKey, Tenanted};
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::{
    alike::Mark,
    nodes::Changed,
    pod::Shape,
    storage::{Assumed, Work},
    world::World,
};

/// The highest score that a plugin gives a node.
pub(crate) const MAX_SCORE: i64 = 100;

/// What a verdict, or a score, is made of; and so when it has to be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depends {
    /// Of the node alone.
    Node,
    /// Of the node and what is held on it.
    Row,
    /// Of anything.
    World,
}

/// What came of preparing a filter.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// It has nothing to say on pods of this shape.
    Skip,
    /// No node will do, for this reason.
    Refused(String),
    Pass(Box<dyn Pass>),
}

/// Something that keeps pods off nodes.
pub(crate) trait Filter: Debug + Send + Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// The only nodes that can come into question, if there are few; the others are not asked.
    fn only_on(&self, _pod: &Shape) -> Option<BTreeSet<String>> {
        None
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared;

    /// Whether a pod that this filter refused may be accepted because of an event.
    fn may_help(&self, pod: &Shape, event: &Event) -> Hint;
}

/// A filter, ready for one shape.
pub(crate) trait Pass: Debug + Send {
    fn depends(&self) -> Depends;

    /// Writes into `part` what verdicts are made of that the pod says, if they are of single rows:
    /// pods that say the same share them, whatever else they are. Everything, unless a filter
    /// knows better.
    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.clone_from(pod);
    }

    /// What rows have to have in common to be all the same to this, if it is made of more than one
    /// row; `None` if that cannot be said. Then it need not look at each.
    fn alike(&self, _world: &World) -> Option<Vec<Mark>> {
        None
    }

    /// Called before rows are checked, whenever anything may have changed.
    fn begin(&mut self, _world: &World) {}

    /// Why pods cannot be on a row: 0 if they can, else a number that only this pass understands.
    fn check(&self, world: &World, row: usize) -> u32;

    /// The reasons behind such a number, in upstream's words.
    fn reasons(&self, why: u32) -> Vec<Cow<'static, str>>;

    /// Whether no ending of other pods could change this.
    fn is_final(&self, why: u32) -> bool;

    /// A claim of devices that is better given others, as no node will do. `has` says whether
    /// `check` gave something for any.
    fn to_free(&self, _has: &dyn Fn(u32) -> bool) -> Option<Arc<Tenanted<ResourceClaim>>> {
        None
    }

    /// What has to be written before a pod can be bound to a row for which `check` gave 0.
    fn work(&self, _world: &World, _row: usize) -> Work {
        Work::default()
    }

    /// Keeps the rows on which pods can be; for the others notes why not.
    fn go_over(&self, world: &World, plugin: u8, rows: &mut Vec<usize>, verdicts: &mut [Verdict]) {
        rows.retain(|row| {
            let why = self.check(world, *row);
            if why != 0 {
                verdicts[*row] = Verdict::refused(plugin, why);
            }
            why == 0
        });
    }
}

/// What filters say of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Verdict(u64);

impl Verdict {
    pub(crate) const FEASIBLE: Self = Self(0);
    /// There is no node.
    pub(crate) const NO_NODE: Self = Self(u64::MAX);

    pub(crate) fn refused(plugin: u8, why: u32) -> Self {
        Self((u64::from(plugin) + 1) << 32 | u64::from(why))
    }

    pub(crate) fn is_feasible(self) -> bool {
        self == Self::FEASIBLE
    }

    /// The filter that refused the row, by its place, and why.
    pub(crate) fn refusal(self) -> Option<(u8, u32)> {
        if self.is_feasible() || self == Self::NO_NODE {
            return None;
        }
        let plugin = u8::try_from((self.0 >> 32) - 1).unwrap_or(u8::MAX);
        Some((plugin, (self.0 & u64::from(u32::MAX)) as u32))
    }
}

/// Adds to each row's total what `rates` give it, by their weights. `n_alike` is as of
/// [`Rate::go_over`].
pub(crate) fn add_scores(
    rates: &[(i64, Box<dyn Rate>)],
    world: &World,
    rows: &[usize],
    n_alike: &[usize],
    totals: &mut [i64],
) {
    let mut scores = vec![0; rows.len()];
    for (weight, rate) in rates {
        rate.go_over(world, rows, n_alike, &mut scores);
        totals.iter_mut().zip(&scores).for_each(|(total, score)| *total += weight * score);
    }
}

/// A way to tell better nodes from worse.
pub(crate) trait Score: Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// `None` if all nodes are equal to pods of this shape.
    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>>;
}

/// A score, ready for one shape.
pub(crate) trait Rate: Debug + Send {
    /// [`Depends::World`] also if what one row is given depends on the others.
    fn depends(&self) -> Depends;

    /// As [`Pass::reads`].
    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.clone_from(pod);
    }

    /// Rates one row. From 0 to [`MAX_SCORE`], unless [`Rate::go_over`] makes that of it.
    fn rate(&self, world: &World, row: usize) -> i64;

    /// As [`Pass::alike`].
    fn alike(&self, _world: &World) -> Option<Vec<Mark>> {
        None
    }

    /// Rates rows, each from 0 to [`MAX_SCORE`]; `scores` has as many places. Each row stands for
    /// as many that are alike as `n_alike` says.
    fn go_over(&self, world: &World, rows: &[usize], _n_alike: &[usize], scores: &mut [i64]) {
        for (row, score) in rows.iter().zip(scores) {
            *score = self.rate(world, *row);
        }
    }
}

/// Scales scores so that the highest becomes [`MAX_SCORE`]; or, in reverse, 0.
pub(crate) fn normalize(scores: &mut [i64], is_reversed: bool) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if most == 0 { 0 } else { MAX_SCORE * *score / most };
        *score = if is_reversed { MAX_SCORE - scaled } else { scaled };
    }
}

/// What is done for a pod that no node will do for.
pub(crate) trait PostFilter: Debug + Send + Sync {
    /// `verdicts` are those of all rows; `passes` are the filters that gave them.
    fn make_room(
        &self,
        world: &mut World,
        pod: (&ObjectKey, &Arc<Shape>),
        verdicts: &[Verdict],
        passes: &mut crate::passes::Passes,
        tie: usize,
    ) -> Room;
}

/// What came of [`PostFilter::make_room`].
#[derive(Debug)]
pub(crate) enum Room {
    /// None can be made, for this reason.
    None(String),
    /// Nothing is to be done now, for this reason; what the pod was promised stands.
    Wait(String),
    /// There will be room on this row when these pods have ended.
    Here { row: usize, victims: Vec<ObjectKey> },
}

/// Something that is to be had for a pod beside what the node table knows of.
pub(crate) trait Reserve: Debug + Send + Sync {
    /// Takes what [`Pass::work`] said, so that no other pod gets it.
    fn reserve(&self, world: &mut World, work: &Work, row: usize) -> Assumed;

    /// Counts on it no longer: the pod was not bound, or all is known by now that was written for
    /// it. Returns what happened to others who may have waited for it.
    fn unreserve(&self, world: &mut World, pod: &Shape, assumed: &Assumed) -> Vec<Event>;
}

/// Something that keeps pods from looking for a node at all.
pub(crate) trait PreEnqueue: Debug + Send + Sync {
    /// Why pods of this shape are not to look yet, if they are not.
    fn why_not(&self, world: &World, pod: &Shape) -> Option<Cow<'static, str>>;
}

/// Something that has a say after a pod has its place, and before it is bound.
pub(crate) trait Permit: Debug + Send + Sync {
    /// Whether a pod that has a place in the ledger may be bound.
    fn permit(&self, world: &World, pod: &Shape) -> Permitted;
}

/// What came of [`Permit::permit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permitted {
    Yes,
    /// Not before at least so many more pods have places.
    Wait {
        why: &'static str,
        n_missing: usize,
        /// When places that were found are given back all the same.
        timeout: Duration,
    },
}

/// What an event means to pods that a filter refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    Nothing,
    /// They may look again if the filter accepts the node that the event is about now.
    IfNodeWillDo,
    LookAgain,
}

impl Hint {
    pub(crate) fn look_again_if(condition: bool) -> Self {
        if condition { Self::LookAgain } else { Self::Nothing }
    }

    pub(crate) fn node_if(condition: bool) -> Self {
        if condition { Self::IfNodeWillDo } else { Self::Nothing }
    }
}

/// Something happened that pods without a node may have waited for.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Node {
        row: usize,
        changed: Changed,
    },
    /// A pod gave back what it held.
    PodGone {
        pod: Arc<Shape>,
    },
    /// A pod has been asked to end. It holds what it held, and is spread with others no more.
    PodEnds {
        pod: Arc<Shape>,
    },
    /// A pod is on a node now, or is another than before.
    PodHere {
        pod: Arc<Shape>,
    },
    /// A volume, claim or class of a tenant, or a node's drivers. Of all tenants if `None`.
    Storage {
        tenant: Option<insula_api::names::TenantName>,
    },
    /// A claim of devices is another than before; or, if `None`, devices are free that were not,
    /// or classes or devices are others.
    Devices {
        claim: Option<ObjectKey>,
    },
    /// Something that selects pods, or labels of a namespace.
    Selection {
        tenant: insula_api::names::TenantName,
    },
}
