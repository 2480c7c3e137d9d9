//! Asking the servers that have the feeds of nodes what was told there.
//!
//! Nobody keeps a record of which server has which feed: it is another one after every break. Nodes
//! that are not known here are asked for at all others at once, and the newest answer counts. Who
//! does not answer in time has nothing to say; what is not known is left out, as for nodes that are
//! not measured at all.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;

use super::{Measured, OfNode};
use crate::{Server, peers::HttpPeers};

/// How long another server may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Nodes, each with the uids of the pods on it that are meant.
pub(crate) type Wanted = BTreeMap<String, Vec<String>>;
type Known = HashMap<String, Arc<OfNode>>;

/// What is known of these nodes and pods, wherever their feeds are.
pub(super) async fn all(server: &Server, mut wanted: Wanted) -> Known {
    let now = Timestamp::now();
    let mut known = Known::new();
    wanted.retain(|node, _| match server.measured.get(node, now) {
        Some(it) => known.insert(node.clone(), it).is_some_and(|_| false),
        None => true,
    });
    let Some(peers) = server.peers.as_ref().filter(|_| !wanted.is_empty()) else { return known };
    let Ok(question) = serde_json::to_vec(&wanted).map(Bytes::from) else { return known };
    let map = server.partitions.map();
    let others = map.servers().iter().map(|it| &*it.name).filter(|it| *it != peers.own());
    let answers = join_all(others.map(|other| ask(peers, other, question.clone()))).await;
    for (node, it) in answers.into_iter().flatten() {
        let is_news = known.get(&node).is_none_or(|had| had.at < it.at);
        if is_news && it.is_fresh(now) && wanted.contains_key(&node) {
            known.insert(node, Arc::new(it));
        }
    }
    known
}

async fn ask(peers: &HttpPeers, other: &str, question: Bytes) -> HashMap<String, OfNode> {
    let asked = tokio::time::timeout(PATIENCE, peers.ask_measured(other, question)).await;
    let answer = match asked {
        Ok(Ok(answer)) => serde_json::from_slice(&answer).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(crate::error::chain(&error)),
        Err(_) => Err("it takes too long".to_owned()),
    };
    answer.unwrap_or_else(|why| {
        tracing::debug!(server = other, why, "what is measured there is not known");
        HashMap::new()
    })
}

/// What another server is told; `None` if it does not ask for anything that makes sense.
pub(crate) fn answer(measured: &Measured, question: &[u8]) -> Option<Bytes> {
    let wanted: Wanted = serde_json::from_slice(question).ok()?;
    let now = Timestamp::now();
    let mut known = HashMap::new();
    for (node, uids) in wanted {
        let Some(it) = measured.get(&node, now) else { continue };
        let pods = uids.into_iter().filter_map(|uid| {
            let containers = it.pod(&uid)?.to_vec();
            Some((uid, containers))
        });
        let mut pods: Vec<_> = pods.collect();
        pods.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        let OfNode { at, window, used, .. } = *it;
        known.insert(node, OfNode { at, window, used, pods });
    }
    serde_json::to_vec(&known).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_what_they_ask_for() {
        let measured = Measured::default();
        let told = r#"{"window":1,"nodes":[{"name":"n1","cpu":5,"memory":6,"pods":[
            ["u1",[["c",{"cpu":1,"memory":2}]]],["u2",[["c",{"cpu":3,"memory":4}]]]]}]}"#;
        let nodes = ["n1".to_owned()].into_iter().collect();
        measured.hear(serde_json::from_str(told).unwrap(), &nodes);
        let answer = answer(&measured, br#"{"n1":["u2","u9"],"n2":[]}"#).unwrap();
        let answer: HashMap<String, OfNode> = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer.len(), 1);
        assert_eq!((answer["n1"].used.cpu, answer["n1"].pods.len()), (5, 1));
        assert_eq!(answer["n1"].pod("u2").unwrap()[0].1.memory, 4);
        assert!(super::answer(&measured, b"[]").is_none());
    }
}
