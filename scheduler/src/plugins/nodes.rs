//! What nodes are: whether they take pods, their taints, their labels and names.

use std::{borrow::Cow, collections::BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, PreferredSchedulingTerm, Taint, Toleration};

use crate::{
    alike::{Mark, by_label},
    framework::{Depends, Event, Filter, Hint, MAX_SCORE, Pass, Prepared, Rate, Score, normalize},
    labels::{Condition, Term},
    nodes::{Changed, Nodes},
    pod::Shape,
    world::World,
};

/// A pass with one reason that is final.
macro_rules! one_final_reason {
    ($text:expr) => {
        fn depends(&self) -> Depends {
            Depends::Node
        }

        fn reasons(&self, _why: u32) -> Vec<Cow<'static, str>> {
            vec![Cow::Borrowed($text)]
        }

        fn is_final(&self, _why: u32) -> bool {
            true
        }
    };
}

/// Whether a toleration covers a taint.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    fn text(text: &Option<String>) -> &str {
        text.as_deref().unwrap_or_default()
    }
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let (wanted, present) = (text(&toleration.value), text(&taint.value));
    let numbers = || Some((wanted.parse::<i64>().ok()?, present.parse::<i64>().ok()?));
    match text(&toleration.operator) {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && wanted == present,
        "Gt" => numbers().is_some_and(|(wanted, present)| wanted < present),
        "Lt" => numbers().is_some_and(|(wanted, present)| present < wanted),
        _ => false,
    }
}

/// Whether a taint keeps pods with these tolerations off its node.
pub(crate) fn keeps_away(taint: &Taint, tolerations: &[Toleration]) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
        && !tolerations.iter().any(|it| tolerates(it, taint))
}

/// Nodes that are cordoned.
#[derive(Debug)]
pub(crate) struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn prepare(&self, _world: &mut World, pod: &Shape) -> Prepared {
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if pod.tolerations.iter().any(|it| tolerates(it, &cordon)) {
            return Prepared::Skip;
        }
        Prepared::Pass(Box::new(Cordons))
    }

    fn may_help(&self, _pod: &Shape, event: &Event) -> Hint {
        let matters = |it: &Changed| it.is_new || it.taints;
        Hint::node_if(matches!(event, Event::Node { changed, .. } if matters(changed)))
    }
}

#[derive(Debug)]
struct Cordons;

impl Pass for Cordons {
    one_final_reason!("node(s) were unschedulable");

    fn reads(&self, _pod: &Shape, _part: &mut Shape) {}

    fn check(&self, world: &World, row: usize) -> u32 {
        u32::from(world.nodes.unschedulable[row])
    }
}

/// Nodes whose runtime for what a pod is, containers or a virtual machine, is not ready.
#[derive(Debug)]
pub(crate) struct RuntimeReady;

impl RuntimeReady {
    pub(crate) const NAME: &str = "RuntimeReady";
}

impl Filter for RuntimeReady {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn prepare(&self, _world: &mut World, pod: &Shape) -> Prepared {
        if pod.is_machine {
            Prepared::Pass(Box::new(RunsMachines))
        } else {
            Prepared::Pass(Box::new(RunsContainers))
        }
    }

    fn may_help(&self, _pod: &Shape, event: &Event) -> Hint {
        let matters = |it: &Changed| it.is_new || it.taints;
        Hint::node_if(matches!(event, Event::Node { changed, .. } if matters(changed)))
    }
}

#[derive(Debug)]
struct RunsContainers;

impl Pass for RunsContainers {
    one_final_reason!("node(s) had no ready container runtime");

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.is_machine = pod.is_machine;
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        u32::from(!world.nodes.runtimes[row].containers)
    }
}

#[derive(Debug)]
struct RunsMachines;

impl Pass for RunsMachines {
    one_final_reason!("node(s) had no ready VM runtime");

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.is_machine = pod.is_machine;
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        u32::from(!world.nodes.runtimes[row].machines)
    }
}

/// Taints that pods do not tolerate; and, as a score, those that only ask them to stay away.
#[derive(Debug)]
pub(crate) struct TaintToleration;

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        // Nodes share few sets of taints: judge each set once.
        let is_refused = |set: &Vec<Taint>| set.iter().any(|it| keeps_away(it, &pod.tolerations));
        Prepared::Pass(Box::new(Taints(world.nodes.taint_sets.iter().map(is_refused).collect())))
    }

    fn may_help(&self, _pod: &Shape, event: &Event) -> Hint {
        let matters = |it: &Changed| it.is_new || it.taints;
        Hint::node_if(matches!(event, Event::Node { changed, .. } if matters(changed)))
    }
}

/// Which sets of taints refuse a pod.
#[derive(Debug)]
struct Taints(Vec<bool>);

impl Pass for Taints {
    one_final_reason!("node(s) had untolerated taint(s)");

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.tolerations.clone_from(&pod.tolerations);
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        u32::from(self.0.get(world.nodes.taints[row]).copied().unwrap_or(true))
    }
}

impl Score for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let asks_away = |taint: &&Taint| {
            let speaks_of_it = |it: &&Toleration| {
                matches!(it.effect.as_deref(), None | Some("" | "PreferNoSchedule"))
            };
            taint.effect == "PreferNoSchedule"
                && !pod.tolerations.iter().filter(speaks_of_it).any(|it| tolerates(it, taint))
        };
        let count = |set: &Vec<Taint>| {
            i64::try_from(set.iter().filter(asks_away).count()).unwrap_or(i64::MAX)
        };
        let counts: Vec<i64> = world.nodes.taint_sets.iter().map(count).collect();
        counts.iter().any(|it| *it != 0).then(|| Box::new(AskedAway(counts)) as _)
    }
}

/// How many taints of each set ask a pod to stay away.
#[derive(Debug)]
struct AskedAway(Vec<i64>);

impl Rate for AskedAway {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn alike(&self, _world: &World) -> Option<Vec<Mark>> {
        Some(vec![Mark::Taints])
    }

    fn rate(&self, world: &World, row: usize) -> i64 {
        self.0.get(world.nodes.taints[row]).copied().unwrap_or(0)
    }

    fn go_over(&self, world: &World, rows: &[usize], _n_alike: &[usize], scores: &mut [i64]) {
        for (row, score) in rows.iter().zip(&mut *scores) {
            *score = self.rate(world, *row);
        }
        normalize(scores, true);
    }
}

/// A node selector and required affinity, ready to be matched.
#[derive(Debug)]
pub(crate) struct NodeSelection {
    labels: Vec<Condition>,
    terms: Option<Vec<Term>>,
}

impl NodeSelection {
    pub(crate) fn new(
        nodes: &Nodes,
        labels: &[(String, String)],
        required: Option<&[NodeSelectorTerm]>,
    ) -> Self {
        Self {
            labels: labels.iter().map(|(key, value)| nodes.labels.equals(key, value)).collect(),
            terms: required.map(|terms| terms.iter().map(|term| nodes.labels.term(term)).collect()),
        }
    }

    pub(crate) fn has(&self, nodes: &Nodes, row: usize) -> bool {
        self.labels.iter().all(|it| it.holds(&nodes.labels, row))
            && self.terms.as_ref().is_none_or(|terms| {
                terms.iter().any(|term| term.matches(&nodes.labels, row, nodes.name(row)))
            })
    }
}

/// The pod's node selector and node affinity, and what the profile adds to them.
#[derive(Debug, Default)]
pub(crate) struct NodeAffinity {
    pub(crate) added_required: Option<Vec<NodeSelectorTerm>>,
    pub(crate) added_preferred: Vec<PreferredSchedulingTerm>,
}

const NOT_THIS_PODS: u32 = 1;
const NOT_ENFORCED: u32 = 2;

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn only_on(&self, pod: &Shape) -> Option<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for term in pod.required.as_ref()? {
            let mut names: Option<BTreeSet<String>> = None;
            for field in term.match_fields.iter().flatten() {
                if field.key != "metadata.name" || field.operator != "In" {
                    continue;
                }
                let these: BTreeSet<String> = field.values.iter().flatten().cloned().collect();
                names = Some(match names {
                    Some(names) => names.intersection(&these).cloned().collect(),
                    None => these,
                });
            }
            all.extend(names?);
        }
        Some(all).filter(|_| pod.required.as_ref().is_some_and(|it| !it.is_empty()))
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        if self.only_on(pod).is_some_and(|it| it.is_empty()) {
            return Prepared::Refused("pod affinity terms conflict".to_owned());
        }
        let added = self.added_required.as_deref();
        if pod.node_labels.is_empty() && pod.required.is_none() && added.is_none() {
            return Prepared::Skip;
        }
        Prepared::Pass(Box::new(Selections {
            own: NodeSelection::new(&world.nodes, &pod.node_labels, pod.required.as_deref()),
            added: NodeSelection::new(&world.nodes, &[], added),
        }))
    }

    fn may_help(&self, _pod: &Shape, event: &Event) -> Hint {
        let matters = |it: &Changed| it.is_new || it.labels;
        Hint::node_if(matches!(event, Event::Node { changed, .. } if matters(changed)))
    }
}

#[derive(Debug)]
struct Selections {
    own: NodeSelection,
    added: NodeSelection,
}

impl Pass for Selections {
    fn depends(&self) -> Depends {
        Depends::Node
    }

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.node_labels.clone_from(&pod.node_labels);
        part.required.clone_from(&pod.required);
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        if !self.added.has(&world.nodes, row) {
            NOT_ENFORCED
        } else if !self.own.has(&world.nodes, row) {
            NOT_THIS_PODS
        } else {
            0
        }
    }

    fn reasons(&self, why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Borrowed(if why == NOT_ENFORCED {
            "node(s) didn't match scheduler-enforced node affinity"
        } else {
            "node(s) didn't match Pod's node affinity/selector"
        })]
    }

    fn is_final(&self, _why: u32) -> bool {
        true
    }
}

impl Score for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let labels = &world.nodes.labels;
        let preferred = pod.preferred.iter().chain(&self.added_preferred);
        let preferred: Vec<(Term, i64)> =
            preferred.map(|it| (labels.term(&it.preference), i64::from(it.weight))).collect();
        (!preferred.is_empty()).then(|| Box::new(Preferred(preferred)) as _)
    }
}

#[derive(Debug)]
struct Preferred(Vec<(Term, i64)>);

impl Rate for Preferred {
    fn depends(&self) -> Depends {
        Depends::World
    }

    fn alike(&self, world: &World) -> Option<Vec<Mark>> {
        let mut marks = Vec::new();
        for key in self.0.iter().flat_map(|(term, _)| term.keys()) {
            marks.extend(by_label(world, key?)?);
        }
        Some(marks)
    }

    fn rate(&self, world: &World, row: usize) -> i64 {
        let nodes = &world.nodes;
        let matching =
            self.0.iter().filter(|(term, _)| term.matches(&nodes.labels, row, nodes.name(row)));
        matching.map(|(_, weight)| weight).sum()
    }

    fn go_over(&self, world: &World, rows: &[usize], _n_alike: &[usize], scores: &mut [i64]) {
        for (row, score) in rows.iter().zip(&mut *scores) {
            *score = self.rate(world, *row);
        }
        normalize(scores, false);
    }
}

/// The node that a pod names. A pod with a node is not scheduled, so this never refuses one.
#[derive(Debug)]
pub(crate) struct NodeName;

impl Filter for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn prepare(&self, _world: &mut World, _pod: &Shape) -> Prepared {
        Prepared::Skip
    }

    fn may_help(&self, _pod: &Shape, _event: &Event) -> Hint {
        Hint::Nothing
    }
}

/// Nodes that have the pod's images, by how much is saved and how many nodes have them.
#[derive(Debug)]
pub(crate) struct ImageLocality;

const MEBIBYTE: i64 = 1 << 20;
/// Less than this is not worth a thought, and more than this per container no more of one.
const SMALL_IMAGE: i64 = 23 * MEBIBYTE;
const LARGE_IMAGE: i64 = 1000 * MEBIBYTE;

impl Score for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let images = &world.nodes.images;
        let images: Vec<u32> = pod.images.iter().filter_map(|it| images.number_of(it)).collect();
        let most = LARGE_IMAGE * i64::try_from(pod.n_containers).unwrap_or(1).max(1);
        (!images.is_empty()).then(|| Box::new(Saved { images, most }) as _)
    }
}

/// What is saved where these images are.
#[derive(Debug)]
struct Saved {
    images: Vec<u32>,
    /// More than this counts for no more.
    most: i64,
}

impl Rate for Saved {
    fn depends(&self) -> Depends {
        // Another node's images change what this one's are worth.
        Depends::World
    }

    fn alike(&self, _world: &World) -> Option<Vec<Mark>> {
        Some(self.images.iter().map(|it| Mark::Image(*it)).collect())
    }

    fn rate(&self, world: &World, row: usize) -> i64 {
        let n_nodes = world.nodes.len().max(1) as f64;
        let images = &world.nodes.images;
        let saved = self.images.iter().map(|it| {
            let share = images.n_rows_with(*it) as f64 / n_nodes;
            (images.size_on(*it, row) as f64 * share) as i64
        });
        let counted = saved.sum::<i64>().clamp(SMALL_IMAGE, self.most) - SMALL_IMAGE;
        MAX_SCORE * counted / (self.most - SMALL_IMAGE)
    }
}
