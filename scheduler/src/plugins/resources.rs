//! What pods take from nodes: resources and ports.

use std::{borrow::Cow, sync::Arc};

use crate::{
    framework::{Depends, Event, Filter, Hint, MAX_SCORE, Pass, Prepared, Rate, Score},
    nodes::Nodes,
    pod::{HostPort, Shape},
    requests::{CPU, MEMORY, PODS},
    world::World,
};

/// Ports of the host that others have.
#[derive(Debug)]
pub(crate) struct NodePorts;

impl Filter for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn prepare(&self, _world: &mut World, pod: &Shape) -> Prepared {
        if pod.ports.is_empty() {
            return Prepared::Skip;
        }
        Prepared::Pass(Box::new(Ports(pod.ports.clone())))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::Node { changed, .. } => Hint::node_if(changed.is_new),
            Event::PodGone { pod: gone } => {
                let is_wanted = |it: &HostPort| pod.ports.iter().any(|own| it.clashes(own));
                Hint::look_again_if(gone.ports.iter().any(is_wanted))
            }
            _ => Hint::Nothing,
        }
    }
}

#[derive(Debug)]
struct Ports(Vec<HostPort>);

impl Pass for Ports {
    fn depends(&self) -> Depends {
        Depends::Row
    }

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.ports.clone_from(&pod.ports);
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let taken = &world.nodes.ports[row];
        u32::from(self.0.iter().any(|wanted| taken.iter().any(|it| it.clashes(wanted))))
    }

    fn reasons(&self, _why: u32) -> Vec<Cow<'static, str>> {
        vec![Cow::Borrowed("node(s) didn't have free ports for the requested pod ports")]
    }

    fn is_final(&self, _why: u32) -> bool {
        false
    }
}

/// How the share of a node that is in use makes a score.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Points of utilisation in percent, and the score there, from 0 to 100; in between a line.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// A resource that a score looks at, and how much it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weighed {
    pub(crate) name: String,
    pub(crate) weight: i64,
}

/// CPU and memory, which count the same.
pub(crate) fn cpu_and_memory() -> Vec<Weighed> {
    [CPU, MEMORY].map(|name| Weighed { name: name.to_owned(), weight: 1 }).to_vec()
}

/// Resources that are not left; and, as a score, how much of them is.
#[derive(Debug)]
pub(crate) struct NodeResourcesFit {
    pub(crate) strategy: Strategy,
    pub(crate) weighed: Vec<Weighed>,
    /// Extended resources that somebody else looks after.
    pub(crate) ignored: Vec<String>,
    /// The same for all of a group: what is before the slash.
    pub(crate) ignored_groups: Vec<String>,
}

impl Default for NodeResourcesFit {
    fn default() -> Self {
        Self {
            strategy: Strategy::LeastAllocated,
            weighed: cpu_and_memory(),
            ignored: Vec::new(),
            ignored_groups: Vec::new(),
        }
    }
}

impl NodeResourcesFit {
    fn is_ignored(&self, resource: &str) -> bool {
        let Some((group, _)) = resource.split_once('/') else { return false };
        self.ignored.iter().any(|it| it == resource)
            || self.ignored_groups.iter().any(|it| it == group)
    }
}

/// The bit of a reason that says that the node would be too small if it were empty.
const TOO_SMALL: u32 = 1 << 31;
/// Reasons that have a bit of their own.
const N_REASONS: usize = 31;

impl Filter for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Prepared {
        let asked = pod.requests.amounts.iter().filter(|(name, _)| !self.is_ignored(name));
        let asked = asked.map(|(name, amount)| Asked {
            name: name.to_string(),
            column: world.nodes.resource_at(name),
            amount: *amount,
        });
        Prepared::Pass(Box::new(Fits(asked.collect())))
    }

    fn may_help(&self, pod: &Shape, event: &Event) -> Hint {
        match event {
            Event::Node { changed, .. } => Hint::node_if(changed.is_new || changed.grew),
            // Every pod takes a place, so there is always something to be had.
            Event::PodGone { pod: gone } => {
                let amounts = &pod.requests.amounts;
                let is_wanted =
                    |(it, _): &(Arc<str>, i64)| amounts.iter().any(|(own, _)| own == it);
                Hint::look_again_if(gone.requests.amounts.iter().any(is_wanted))
            }
            _ => Hint::Nothing,
        }
    }
}

#[derive(Debug)]
struct Asked {
    name: String,
    /// `None` if no node offers it.
    column: Option<usize>,
    amount: i64,
}

#[derive(Debug)]
struct Fits(Vec<Asked>);

impl Pass for Fits {
    fn depends(&self) -> Depends {
        Depends::Row
    }

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.requests.clone_from(&pod.requests);
    }

    fn check(&self, world: &World, row: usize) -> u32 {
        let mut why = 0;
        for (n, asked) in self.0.iter().enumerate() {
            let (free, offered) = match asked.column {
                Some(at) => {
                    let column = world.nodes.column(at);
                    (column.free(row), column.allocatable[row])
                }
                None => (0, 0),
            };
            if free < asked.amount {
                why |= 1 << n.min(N_REASONS - 1);
                // As upstream, where a node that takes no pods at all is not told apart.
                if offered < asked.amount && asked.name != PODS {
                    why |= TOO_SMALL;
                }
            }
        }
        why
    }

    fn reasons(&self, why: u32) -> Vec<Cow<'static, str>> {
        let lacking = self.0.iter().enumerate();
        let lacking = lacking.filter(|(n, _)| why & (1 << n.min(&(N_REASONS - 1))) != 0);
        lacking
            .map(|(_, asked)| {
                if asked.name == PODS {
                    Cow::Borrowed("Too many pods")
                } else {
                    Cow::Owned(format!("Insufficient {}", asked.name))
                }
            })
            .collect()
    }

    fn is_final(&self, why: u32) -> bool {
        why & TOO_SMALL != 0
    }
}

impl Score for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let usages = Usage::of_all(&self.weighed, &world.nodes, pod, true);
        (!usages.is_empty())
            .then(|| Box::new(Allocated { strategy: self.strategy.clone(), usages }) as _)
    }
}

/// How much of one resource would be used if a pod were there.
#[derive(Debug)]
struct Usage {
    kind: Kind,
    column: usize,
    asked: i64,
    weight: i64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    SupposedCpu,
    SupposedMemory,
    Held,
}

impl Usage {
    fn of_all(weighed: &[Weighed], nodes: &Nodes, pod: &Shape, supposes: bool) -> Vec<Self> {
        let usage = |it: &Weighed| {
            let asked = pod.requests.amounts.iter().find(|(name, _)| **name == *it.name);
            let asked = asked.map_or(0, |(_, amount)| *amount);
            // Of resources that few nodes have, those that a pod does not ask for say nothing.
            if it.name.contains('/') && asked == 0 {
                return None;
            }
            let (kind, asked) = match it.name.as_str() {
                CPU if supposes => (Kind::SupposedCpu, pod.requests.supposed_cpu),
                MEMORY if supposes => (Kind::SupposedMemory, pod.requests.supposed_memory),
                _ => (Kind::Held, asked),
            };
            let column = nodes.resource_at(&it.name)?;
            Some(Self { kind, column, asked, weight: it.weight })
        };
        weighed.iter().filter_map(usage).collect()
    }

    /// What is used, and what there is.
    fn held(&self, nodes: &Nodes, row: usize) -> (i64, i64) {
        let column = nodes.column(self.column);
        let held = match self.kind {
            Kind::SupposedCpu => nodes.supposed_cpu[row],
            Kind::SupposedMemory => nodes.supposed_memory[row],
            Kind::Held => column.held[row],
        };
        (held, column.allocatable[row])
    }

    /// What would be used, and what there is.
    fn on(&self, nodes: &Nodes, row: usize) -> (i64, i64) {
        let (held, offered) = self.held(nodes, row);
        (held.saturating_add(self.asked), offered)
    }
}

#[derive(Debug)]
struct Allocated {
    strategy: Strategy,
    usages: Vec<Usage>,
}

impl Rate for Allocated {
    fn depends(&self) -> Depends {
        Depends::Row
    }

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.requests.clone_from(&pod.requests);
    }

    fn rate(&self, world: &World, row: usize) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for usage in &self.usages {
            let (used, offered) = usage.on(&world.nodes, row);
            if offered == 0 {
                continue;
            }
            let score = match &self.strategy {
                Strategy::LeastAllocated if offered < used => 0,
                Strategy::LeastAllocated => percent(offered - used, offered),
                Strategy::MostAllocated => percent(used.min(offered), offered),
                Strategy::RequestedToCapacityRatio(points) => {
                    let used = if offered < used { 100 } else { percent(used, offered) };
                    let score = on_line(points, used);
                    // A resource that earns nothing does not water down the others.
                    if score == 0 {
                        continue;
                    }
                    score
                }
            };
            sum += score * usage.weight;
            weights += usage.weight;
        }
        match &self.strategy {
            _ if weights == 0 => 0,
            Strategy::RequestedToCapacityRatio(_) => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }
}

/// The score at a utilisation, on the line through the points.
fn on_line(points: &[(i64, i64)], at: i64) -> i64 {
    for (n, (x, y)) in points.iter().enumerate() {
        if at <= *x {
            let Some((x0, y0)) = n.checked_sub(1).map(|before| points[before]) else { return *y };
            return y0 + (y - y0) * (at - x0) / (x - x0);
        }
    }
    points.last().map_or(0, |(_, y)| *y)
}

/// Prefers nodes on which no resource runs out before the others.
#[derive(Debug)]
pub(crate) struct BalancedAllocation {
    pub(crate) weighed: Vec<Weighed>,
}

impl Score for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn prepare(&self, world: &mut World, pod: &Shape) -> Option<Box<dyn Rate>> {
        let usages = Usage::of_all(&self.weighed, &world.nodes, pod, false);
        // A pod that asks for nothing would always find the same node best.
        let asks = usages.iter().any(|it| it.asked != 0);
        asks.then(|| Box::new(Balance(usages)) as _)
    }
}

#[derive(Debug)]
struct Balance(Vec<Usage>);

impl Rate for Balance {
    fn depends(&self) -> Depends {
        Depends::Row
    }

    fn reads(&self, pod: &Shape, part: &mut Shape) {
        part.requests.clone_from(&pod.requests);
    }

    fn rate(&self, world: &World, row: usize) -> i64 {
        let usages = || self.0.iter();
        let with = evenness(|| usages().map(|it| it.on(&world.nodes, row)));
        let without = evenness(|| usages().map(|it| it.held(&world.nodes, row)));
        // What counts is what the pod changes; both are between 50 and 100.
        MAX_SCORE / 2 + (MAX_SCORE / 2 + with - without) / 2
    }
}

/// 100 if the same share of all resources is used, less the further apart the shares are. Of each
/// resource `usages` says how much is used and how much there is.
fn evenness<I: Iterator<Item = (i64, i64)>>(usages: impl Fn() -> I) -> i64 {
    let shares = || {
        let offered = usages().filter(|(_, offered)| *offered != 0);
        offered.map(|(used, offered)| (used as f64 / offered as f64).min(1.0))
    };
    let (n, sum) = shares().fold((0_u32, 0.0), |(n, sum), share| (n + 1, sum + share));
    let deviation = match n {
        0 | 1 => 0.0,
        2 => {
            let mut both = shares();
            let (one, other) = (both.next().unwrap_or(0.0), both.next().unwrap_or(0.0));
            ((one - other) / 2.0).abs()
        }
        _ => {
            let mean = sum / f64::from(n);
            let squares: f64 = shares().map(|it| (it - mean) * (it - mean)).sum();
            (squares / f64::from(n)).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_SCORE as f64) as i64
}

fn percent(part: i64, whole: i64) -> i64 {
    match part.checked_mul(MAX_SCORE) {
        Some(product) => product / whole.max(1),
        None => {
            let share = i128::from(part) * i128::from(MAX_SCORE) / i128::from(whole.max(1));
            i64::try_from(share).unwrap_or(MAX_SCORE)
        }
    }
}
