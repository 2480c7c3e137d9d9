//! What nodes and pods use, group `metrics.k8s.io`: told by node agents on their feeds, kept in
//! memory until it is old, and shown as a metrics server would (decision 72).
//!
//! What is told of a node is kept by the server that its feed is open at ([`Measured`]); whoever is
//! asked reads the pods, or the nodes, as any list does, and then what was measured of them, here
//! and at the other servers ([`ask`]). So selectors, pages and rules are those of pods and nodes.
//!
//! # Invariants
//!
//! * A node is measured by its own agent, and a pod by the agent of the node that it is bound to:
//!   what others say of it is not looked at.
//! * Only the newest of each node is kept, and none that is older than [`FRESH`] is shown.

pub(crate) mod ask;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use insula_partition::{
    snapshot::Entry,
    store::{ReadAt, Revision},
};
use jiff::Timestamp;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Server,
    call::Call,
    error::{ApiError, Result},
    read::{self, Page},
    registry::Served,
    request::ListOptions,
};

/// The group, of which there is one version.
pub(crate) const GROUP: &str = "metrics.k8s.io";
/// What was told longer ago is nothing.
const FRESH: Duration = Duration::from_secs(60);
/// Containers of one node, at most; more are nobody's.
const CONTAINERS: usize = 4096;
/// The longest uid, and the longest name of a container.
const NAME: usize = 63;
/// Entries that are made in one turn.
const AT_ONCE: usize = 100;

/// What an agent says: of some nodes, over how many milliseconds.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Told {
    window: u32,
    nodes: Vec<ToldNode>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct ToldNode {
    name: String,
    #[serde(flatten)]
    used: Used,
    /// Pods by their uids: what each container uses, in the order of their names.
    pods: Vec<(String, Vec<(String, Used)>)>,
}

/// CPU in billionths, memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    cpu: u64,
    memory: u64,
}

/// What was last told of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OfNode {
    /// When that was heard.
    at: Timestamp,
    window: u32,
    used: Used,
    /// By uid, which they are sorted by.
    pods: Vec<(String, Vec<(String, Used)>)>,
}

impl OfNode {
    fn pod(&self, uid: &str) -> Option<&[(String, Used)]> {
        let found = self.pods.binary_search_by(|(it, _)| it.as_str().cmp(uid)).ok()?;
        Some(&self.pods[found].1)
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        // In seconds, whichever clock is ahead.
        now.duration_since(self.at).unsigned_abs() <= FRESH
    }
}

/// What the agents whose feeds are open here have told. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    nodes: Arc<RwLock<HashMap<String, Arc<OfNode>>>>,
    swept: Arc<RwLock<Option<Instant>>>,
}

impl Measured {
    /// Keeps what is told of those of `nodes` that it is about.
    pub(crate) fn hear(&self, told: Told, nodes: &HashSet<String>) {
        let at = Timestamp::now();
        for ToldNode { name, used, mut pods } in told.nodes {
            if !is_bounded(&pods) || !nodes.contains(&name) {
                tracing::debug!(node = name, "what is told of a node is not kept");
                continue;
            }
            pods.sort_unstable_by(|left, right| left.0.cmp(&right.0));
            let it = OfNode { at, window: told.window, used, pods };
            self.nodes.write().insert(name, Arc::new(it));
        }
        self.sweep(at);
    }

    /// Forgets, from time to time, nodes of which nothing is heard here any more.
    fn sweep(&self, now: Timestamp) {
        let is_due = self.swept.read().is_none_or(|it| FRESH <= it.elapsed());
        if is_due {
            *self.swept.write() = Some(Instant::now());
            self.nodes.write().retain(|_, it| it.is_fresh(now));
        }
    }

    fn get(&self, node: &str, now: Timestamp) -> Option<Arc<OfNode>> {
        self.nodes.read().get(node).filter(|it| it.is_fresh(now)).cloned()
    }
}

fn is_bounded(pods: &[(String, Vec<(String, Used)>)]) -> bool {
    let n_containers: usize = pods.iter().map(|(_, containers)| containers.len()).sum();
    let mut names = pods
        .iter()
        .flat_map(|(uid, containers)| containers.iter().map(|(name, _)| name).chain([uid]));
    pods.len().max(n_containers) <= CONTAINERS && names.all(|it| it.len() <= NAME)
}

/// As much of a pod or a node as is shown beside what it uses.
#[derive(Deserialize)]
struct Seen {
    metadata: SeenMetadata,
    #[serde(default)]
    spec: SeenSpec,
}

#[derive(Deserialize)]
struct SeenMetadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    uid: String,
    labels: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenSpec {
    #[serde(default)]
    node_name: String,
}

/// Whether a resource is of this group, and not a tenant's own of the same name.
pub(crate) fn is_of_these(served: &Served) -> bool {
    served.resource.group == GROUP && served.custom().is_none()
}

/// The resource whose objects these metrics are of.
fn measured_of<'a>(server: &'a Server, call: &Call) -> Result<&'a Arc<Served>> {
    let found = server.registry.any_version("", &call.served.resource.name);
    found.ok_or_else(ApiError::unknown_resource)
}

/// What all pods, or nodes, of a list use.
pub(crate) async fn list(server: &Server, call: &Call) -> Result<Page> {
    let of = measured_of(server, call)?;
    let options = ListOptions::parse(&call.query, &of.resource)?;
    let namespace = call.namespace();
    let places = of.places(&server.partitions, &call.whose, &namespace, &options);
    let page = read::list(server, of, &places, &call.whose, &namespace, &options).await?;
    let mut seen = Vec::with_capacity(page.entries.len());
    for (number, (key, entry)) in page.entries.into_iter().enumerate() {
        let it: Seen = serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
        seen.push((key, it));
        if number % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    let mut wanted = ask::Wanted::new();
    seen.iter().for_each(|(_, it)| want(&mut wanted, it));
    let known = ask::all(server, wanted).await;
    let mut entries = Vec::new();
    for (number, (key, it)) in seen.into_iter().enumerate() {
        let used = known.get(node_of(&it)).and_then(|node| shown(&it, node));
        entries.extend(used.map(|it| (key, Entry { value: it.into(), modified: Revision(0) })));
        if number % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    Ok(Page { entries, ..page })
}

/// What one pod, or one node, uses.
pub(crate) async fn get(server: &Server, call: &Call) -> Result<Bytes> {
    let of = measured_of(server, call)?;
    let name = &call.path.name;
    let (_, store) = of.place(&server.partitions, call.tenant()?, &call.namespace(), name);
    let not_found = || ApiError::not_found(GROUP, &of.resource.name, name);
    let found = read::find(of, &*store, &call.key(name)?, name, ReadAt::Latest).await;
    let entry = found.map_err(|error| if error.code == 404 { not_found() } else { error })?;
    let it: Seen = serde_json::from_slice(&entry.value.bytes()).map_err(ApiError::internal)?;
    let mut wanted = ask::Wanted::new();
    want(&mut wanted, &it);
    let known = ask::all(server, wanted).await;
    let used = known.get(node_of(&it)).and_then(|node| shown(&it, node));
    used.ok_or_else(not_found)
}

/// Nodes are in no namespace.
fn is_pod(it: &Seen) -> bool {
    !it.metadata.namespace.is_empty()
}

fn node_of(it: &Seen) -> &str {
    if is_pod(it) { &it.spec.node_name } else { &it.metadata.name }
}

fn want(wanted: &mut ask::Wanted, it: &Seen) {
    let node = node_of(it);
    if node.is_empty() {
        return;
    }
    let uids = wanted.entry(node.to_owned()).or_default();
    if is_pod(it) {
        uids.push(it.metadata.uid.clone());
    }
}

/// What a pod or a node uses, as it is told; `None` if that is not known.
fn shown(it: &Seen, node: &OfNode) -> Option<Bytes> {
    let SeenMetadata { name, namespace, tenant, uid, labels } = &it.metadata;
    let quantities = |it: &Used| json!({"cpu": format!("{}n", it.cpu), "memory": format!("{}Ki", it.memory / 1024)});
    let at = Timestamp::from_second(node.at.as_second()).unwrap_or(node.at).to_string();
    let mut metadata = json!({"name": name, "creationTimestamp": at, "tenant": tenant});
    if let Some(labels) = labels {
        metadata["labels"] = labels.clone();
    }
    let window = format!("{:.3}s", Duration::from_millis(node.window.into()).as_secs_f64());
    let mut made = json!({
        "kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
        "metadata": metadata, "timestamp": at, "window": window,
    });
    if is_pod(it) {
        made["kind"] = "PodMetrics".into();
        made["metadata"]["namespace"] = namespace.as_str().into();
        let containers = node.pod(uid)?.iter();
        made["containers"] =
            containers.map(|(name, it)| json!({"name": name, "usage": quantities(it)})).collect();
    } else {
        made["usage"] = quantities(&node.used);
    }
    Some(made.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Told {
        serde_json::from_str(text).unwrap()
    }

    const TEXT: &str = r#"{"window":20053,"nodes":[
        {"name":"n1","cpu":1500000000,"memory":2048,"pods":[
            ["u2",[["b",{"cpu":7,"memory":4096}]]],["u1",[["a",{"cpu":1,"memory":1024}]]]]},
        {"name":"n2","cpu":1,"memory":1,"pods":[]}]}"#;

    fn pod(uid: &str) -> Seen {
        serde_json::from_value(json!({
            "metadata": {
                "name": "p", "namespace": "ns", "tenant": "acme", "uid": uid,
                "labels": {"a": "b"},
            },
            "spec": {"nodeName": "n1"},
        }))
        .unwrap()
    }

    #[test]
    fn agents_speak_of_their_own_nodes() {
        let measured = Measured::default();
        measured.hear(told(TEXT), &["n1".to_owned()].into_iter().collect());
        let now = Timestamp::now();
        let node = measured.get("n1", now).unwrap();
        assert!(measured.get("n2", now).is_none(), "another's");
        let later = now + jiff::SignedDuration::from_secs(62);
        assert!(measured.get("n1", later).is_none(), "old");

        let used: Value = serde_json::from_slice(&shown(&pod("u2"), &node).unwrap()).unwrap();
        assert_eq!(used["containers"][0]["usage"], json!({"cpu": "7n", "memory": "4Ki"}));
        assert_eq!(used["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(used["window"], "20.053s");
        assert!(shown(&pod("u3"), &node).is_none(), "it is not measured");
    }

    #[test]
    fn what_is_kept_of_a_node_is_bounded() {
        let measured = Measured::default();
        let nodes = ["n1".to_owned()].into_iter().collect();
        let pods = |count: usize, name: &str| {
            let containers = vec![json!([name, {"cpu": 1, "memory": 1}]); count];
            let node = json!({"name": "n1", "cpu": 1, "memory": 1, "pods": [["u", containers]]});
            told(&json!({"window": 1, "nodes": [node]}).to_string())
        };
        for refused in [pods(CONTAINERS + 1, "a"), pods(1, &"x".repeat(NAME + 1))] {
            measured.hear(refused, &nodes);
            assert!(measured.get("n1", Timestamp::now()).is_none());
        }
        measured.hear(pods(CONTAINERS, "a"), &nodes);
        assert!(measured.get("n1", Timestamp::now()).is_some());
    }
}
