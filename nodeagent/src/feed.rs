//! The node feed as nodes hear it: one stream with all that is told of their pods and their Node
//! objects, on which their heartbeats ride.
//!
//! A feed that is cut is opened again where it was, and is told what it missed; only if that
//! history is gone, or the first time, is everything told anew.

use std::{collections::HashSet, convert::Infallible, fmt, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::channel::{Channel, Sender};
use insula_client::{Backoff, Client, Error, Tenanted, chain};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::registration::LEASE_PERIOD;

const PATH: &str = "/insula/nodefeed";
/// Things said that the connection has not taken yet.
const UNSENT: usize = 8;
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// How soon a server that has no feeds is asked again: it may have been replaced.
const RETRY_UNSERVED: Duration = Duration::from_secs(60);
/// How long a server may take to open a feed, and how long it may be silent: twice as long as it
/// is where nothing happens.
const OPENED_WITHIN: Duration = Duration::from_secs(120);
const HEARD_WITHIN: Duration = Duration::from_secs(60);

/// One thing that is told.
#[derive(Debug)]
pub enum Told<'a> {
    /// A pod of one of the nodes is there, or other than it was.
    Pod(Box<Tenanted<Pod>>),
    /// The pod of that uid is gone, or no longer on these nodes.
    Gone(String),
    /// Everything was told anew, and there are no other pods than those that were told, by uid.
    Only(HashSet<String>),
    /// One of the Node objects is there, or other than it was.
    Node(NodeText<'a>),
    /// The Node object of that name is gone.
    NoNode(String),
    /// Heartbeats arrived: how many leases were renewed, which nodes have none, and how long after
    /// they were due.
    Beat { renewed: u64, missing: Vec<String>, after: Duration },
    /// The feed is not there, or no more; it is opened again.
    Cut(&'a Cut),
}

/// A Node object that has not been parsed.
#[derive(Debug)]
pub struct NodeText<'a>(&'a str);

impl NodeText<'_> {
    /// The object.
    pub fn parse(&self) -> Result<Tenanted<Node>, serde_json::Error> {
        serde_json::from_str(self.0)
    }
}

/// Why a feed is not there, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    #[error("the feed is not open")]
    Closed(#[source] Error),
    #[error("the server has ended the feed: {0}")]
    Ended(String),
    #[error("the feed broke off")]
    Broken,
    #[error("the server has been silent for too long")]
    Silent,
    #[error("what was told cannot be read")]
    Nonsense(#[from] serde_json::Error),
}

impl Cut {
    /// Whether the server has no feeds, or none for this caller: waiting does not help.
    pub fn is_unserved(&self) -> bool {
        match self {
            Self::Closed(error) => matches!(error.code(), Some(403 | 404 | 405 | 501)),
            _ => false,
        }
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Beaten<'a> {
    renewed: u64,
    missing: Vec<String>,
    /// What else may be said on this feed.
    #[serde(default, borrow)]
    wants: Vec<&'a str>,
}

/// As much of an object as says what it is.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Envelope {
    kind: String,
    metadata: Metadata,
    code: u16,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    resource_version: String,
}

/// The feed of some nodes, and how far it has come.
pub struct NodeFeed<N> {
    client: Client,
    names: N,
    /// What the last bookmark said.
    at: Option<String>,
    /// While everything is told anew: the pods that were told of.
    seen: HashSet<String>,
    /// When the next heartbeat is due.
    beat: Instant,
    /// Since when one waits for its answer.
    unanswered: Option<Instant>,
    /// Says what the nodes use, whenever that is news.
    usage: Option<Usage>,
    /// The server wants to be told that.
    wants_usage: bool,
}

/// A document of what nodes use, as feeds have it; `None` if nothing more was measured since it was
/// called last.
pub type Usage = Box<dyn Fn() -> Option<String> + Send + Sync>;

impl<N> fmt::Debug for NodeFeed<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeFeed").field("at", &self.at).finish_non_exhaustive()
    }
}

impl<N: Fn() -> Vec<String> + Send + Sync + 'static> NodeFeed<N> {
    /// Of the nodes of these names, which are asked for whenever it is opened.
    pub fn new(client: Client, names: N) -> Self {
        // All nodes at once would be a wave.
        let beat = Instant::now() + LEASE_PERIOD.mul_f64(rand::random());
        Self {
            client,
            names,
            at: None,
            seen: HashSet::new(),
            beat,
            unanswered: None,
            usage: None,
            wants_usage: false,
        }
    }

    /// Tells the server what `usage` says, with heartbeats, if it wants to be told.
    pub fn telling(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }

    /// Follows it; never ends by itself.
    pub fn run<H>(mut self, mut hear: H) -> BoxFuture<'static, ()>
    where
        H: FnMut(Told<'_>) + Send + 'static,
    {
        Box::pin(async move {
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            loop {
                let begun = Instant::now();
                let cut = match self.open(&mut hear).await {
                    Err(cut) => cut,
                    Ok(never) => match never {},
                };
                if begun.elapsed() > RETRY.1 {
                    backoff.reset();
                }
                let is_expired = matches!(&cut, Cut::Closed(error) if error.is_expired());
                if is_expired || cut.is_unserved() {
                    self.at = None;
                }
                hear(Told::Cut(&cut));
                tracing::debug!(cut = chain(&cut), "the node feed is to be opened again");
                let pause = backoff.next_delay();
                let pause = if cut.is_unserved() { RETRY_UNSERVED.max(pause) } else { pause };
                tokio::time::sleep(pause).await;
            }
        })
    }

    async fn open(&mut self, hear: &mut impl FnMut(Told<'_>)) -> Result<Infallible, Cut> {
        let (mut say, body) = Channel::<Bytes, Infallible>::new(UNSENT);
        let mut open = json!({"nodes": (self.names)()});
        match &self.at {
            Some(at) => open["at"] = at.as_str().into(),
            None => self.seen.clear(),
        }
        send(&mut say, &json!({"open": open})).await?;
        let opening = self.client.converse(PATH, body);
        let opened = tokio::time::timeout(OPENED_WITHIN, opening).await;
        let mut heard = opened.map_err(|_| Cut::Silent)?.map_err(Cut::Closed)?;
        self.unanswered = None;
        self.wants_usage = false;
        let mut patience = Instant::now() + HEARD_WITHIN;
        loop {
            tokio::select! {
                line = timeout_at(patience, heard.next()) => {
                    let line = line.map_err(|_| Cut::Silent)?;
                    let line = line.map_err(Cut::Closed)?.ok_or(Cut::Broken)?;
                    self.line(&line, hear)?;
                    patience = Instant::now() + HEARD_WITHIN;
                }
                () = sleep_until(self.beat) => {
                    self.unanswered.get_or_insert(self.beat);
                    send(&mut say, &json!({"beat": {}})).await?;
                    let usage = self.usage.as_ref().filter(|_| self.wants_usage);
                    while let Some(usage) = usage.and_then(|it| it()) {
                        send(&mut say, &format!("{{\"usage\":{usage}}}")).await?;
                    }
                    self.beat = (self.beat + LEASE_PERIOD).max(Instant::now());
                }
            }
        }
    }

    fn line(&mut self, line: &[u8], hear: &mut impl FnMut(Told<'_>)) -> Result<(), Cut> {
        let told: Line<'_> = serde_json::from_slice(line)?;
        let text = told.object.get();
        if told.kind == "BEAT" {
            let Beaten { renewed, missing, wants } = serde_json::from_str(text)?;
            self.wants_usage = wants.contains(&"usage");
            let after = self.unanswered.take().map(|due| due.elapsed()).unwrap_or_default();
            hear(Told::Beat { renewed, missing, after });
            return Ok(());
        }
        let it: Envelope = serde_json::from_str(text)?;
        match (told.kind, &*it.kind) {
            ("BOOKMARK", _) => {
                let before = self.at.replace(it.metadata.resource_version);
                if before.is_none() {
                    hear(Told::Only(std::mem::take(&mut self.seen)));
                }
            }
            ("ERROR", _) => {
                if it.code == 410 {
                    self.at = None;
                }
                return Err(Cut::Ended(it.message));
            }
            ("DELETED", "Pod") => hear(Told::Gone(it.metadata.uid)),
            (_, "Pod") => match serde_json::from_str(text) {
                Ok(pod) => {
                    if self.at.is_none() {
                        self.seen.insert(it.metadata.uid);
                    }
                    hear(Told::Pod(Box::new(pod)));
                }
                // One that breaks its schema must not hide all others.
                Err(error) => {
                    tracing::warn!(pod = it.metadata.name, %error, "a pod cannot be read");
                }
            },
            ("DELETED", "Node") => hear(Told::NoNode(it.metadata.name)),
            (_, "Node") => hear(Told::Node(NodeText(text))),
            // A newer server may tell of more.
            _ => {}
        }
        Ok(())
    }
}

async fn send(say: &mut Sender<Bytes>, what: &impl fmt::Display) -> Result<(), Cut> {
    let line = format!("{what}\n");
    say.send_data(line.into()).await.map_err(|_| Cut::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a feed hears of lines, shortly.
    fn heard(lines: &[&str]) -> (Vec<String>, Option<String>, Option<String>) {
        let service = tower::service_fn(|_: http::Request<insula_client::Sent>| async {
            Ok::<_, Infallible>(http::Response::new(http_body_util::Empty::<Bytes>::new()))
        });
        let client = Client::in_process(service, "test").unwrap();
        let mut feed = NodeFeed::new(client, Vec::new);
        let mut all = Vec::new();
        let mut cut = None;
        for line in lines {
            let mut hear = |told: Told<'_>| {
                all.push(match told {
                    Told::Pod(pod) => format!("pod {}", pod.name()),
                    Told::Gone(uid) => format!("gone {uid}"),
                    Told::Only(uids) => format!("only {}", uids.len()),
                    Told::Node(node) => format!("node {}", node.parse().unwrap().name()),
                    Told::NoNode(name) => format!("no node {name}"),
                    Told::Beat { renewed, missing, .. } => format!("beat {renewed} {missing:?}"),
                    Told::Cut(_) => "cut".to_owned(),
                });
            };
            cut = feed.line(line.as_bytes(), &mut hear).err().map(|it| it.to_string());
        }
        (all, feed.at, cut)
    }

    const POD: &str = r#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"tenant":"t","name":"p","uid":"1"}}}"#;
    const MARK: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"p1=7"}}}"#;

    #[tokio::test]
    async fn what_is_told_anew_is_all_there_is() {
        let broken = r#"{"type":"ADDED","object":{"kind":"Pod","metadata":{"name":"b","uid":"2"},"spec":7}}"#;
        let gone =
            r#"{"type":"DELETED","object":{"kind":"Pod","metadata":{"name":"p","uid":"1"}}}"#;
        let node = r#"{"type":"MODIFIED","object":{"kind":"Node","metadata":{"tenant":"system","name":"n"}}}"#;
        let newer = r#"{"type":"ADDED","object":{"kind":"Cloud","metadata":{"name":"x"}}}"#;
        let beat = r#"{"type":"BEAT","object":{"renewed":1,"missing":["n2"]}}"#;
        let (all, at, cut) = heard(&[POD, broken, MARK, node, newer, gone, MARK, beat]);
        assert_eq!(all, ["pod p", "only 1", "node n", "gone 1", "beat 1 [\"n2\"]"]);
        assert_eq!((at.as_deref(), cut), (Some("p1=7"), None));
    }

    #[tokio::test]
    async fn history_that_is_gone_is_not_asked_for_again() {
        let ended = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#;
        let (_, at, cut) = heard(&[MARK, ended]);
        assert_eq!(at, None);
        assert_eq!(cut.as_deref(), Some("the server has ended the feed: too old"));
        let ended = r#"{"type":"ERROR","object":{"kind":"Status","code":403,"message":"no"}}"#;
        assert_eq!(heard(&[MARK, ended]).1.as_deref(), Some("p1=7"));
    }
}
