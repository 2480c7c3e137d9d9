//! What hollow nodes and their pods use, told on their feed as the agent's meter does.
//!
//! A container uses the same for as long as it runs: what its pod says ([`crate::behaviour`]). A node
//! uses what its pods do.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use insula_nodeagent::hollow::{NodeUsage, Used, usage};
use parking_lot::Mutex;

use crate::{
    Shared,
    life::Stage,
    pods::{HollowPod, HollowPods},
};

/// How often it is measured.
pub(crate) const PERIOD: Duration = Duration::from_secs(15);
/// Nodes and containers of one document: servers take no line of more than some megabytes.
const LONGEST: usize = 8192;

/// Documents that wait for the next heartbeat. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage(Arc<Mutex<VecDeque<String>>>);

impl Usage {
    /// The next document that was not told yet.
    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().pop_front()
    }

    /// Measures the nodes of these numbers. What was measured before and not told is forgotten.
    pub(crate) fn measure(&self, shared: &Shared, numbers: Range<u32>, pods: &HollowPods) {
        let mut on_nodes: HashMap<u32, Vec<(String, &HollowPod)>> = HashMap::new();
        for (uid, pod) in &pods.by_uid {
            if matches!(pod.life.stage, Stage::Running | Stage::Ready) {
                on_nodes.entry(pod.node).or_default().push((uid.to_string(), pod));
            }
        }
        let names: Vec<String> = numbers.clone().map(|it| shared.name(it)).collect();
        let nodes = numbers.zip(&names).map(|(number, name)| {
            of_node(name, on_nodes.get(&number).map_or(&[][..], Vec::as_slice))
        });
        let (mut told, mut together, mut length) = (VecDeque::new(), Vec::new(), 0);
        let tell = |nodes: &[NodeUsage<'_>]| match usage(PERIOD, nodes) {
            Ok(document) => Some(document),
            Err(error) => {
                tracing::error!(%error, "what is used cannot be told");
                None
            }
        };
        for node in nodes {
            length += 1 + node.pods.iter().map(|(_, uses)| uses.len()).sum::<usize>();
            together.push(node);
            if LONGEST <= length {
                told.extend(tell(&together));
                (together, length) = (Vec::new(), 0);
            }
        }
        if !together.is_empty() {
            told.extend(tell(&together));
        }
        *self.0.lock() = told;
    }
}

fn of_node<'a>(name: &'a str, pods: &'a [(String, &HollowPod)]) -> NodeUsage<'a> {
    let all = pods.iter().flat_map(|(_, pod)| pod.shape.uses.iter());
    let used = all.fold(Used::default(), |sum, (_, it)| Used {
        cpu: sum.cpu.saturating_add(it.cpu),
        memory: sum.memory.saturating_add(it.memory),
    });
    let each = |pod: &'a HollowPod| {
        pod.shape.uses.iter().map(|(name, used)| (&**name, *used)).collect::<Vec<_>>()
    };
    let pods = pods.iter().map(|(uid, pod)| (uid.as_str(), each(pod))).collect();
    NodeUsage { name, used, pods }
}
