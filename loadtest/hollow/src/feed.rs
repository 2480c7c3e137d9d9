//! Hearing of pods on the node feed: one stream for all nodes of a crew, on which their heartbeats
//! ride.
//!
//! A stream that is cut is opened again where it was; only if that history is gone, or the first
//! time, is everything told anew.

use std::{
    collections::HashSet,
    convert::Infallible,
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::channel::{Channel, Sender};
use insula_client::{Backoff, Client, Error, Lines, Tenanted, chain};
use insula_nodeagent::hollow::LEASE_PERIOD;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{
    sync::mpsc::UnboundedSender,
    time::{Instant, sleep_until},
};

use crate::{Shared, crew::News};

const PATH: &str = "/insula/nodefeed";
/// Things said that the connection has not taken yet.
const UNSENT: usize = 8;
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Why a feed is not there, or no more.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the feed is not open")]
    Closed(#[source] Error),
    #[error("the server has ended the feed: {0}")]
    Ended(String),
    #[error("the feed broke off")]
    Broken,
    #[error("what was told cannot be read")]
    Nonsense(#[from] serde_json::Error),
}

/// One thing that is told.
#[derive(Deserialize)]
struct Told<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Beaten {
    renewed: u64,
    missing: Vec<String>,
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

/// The feed of a crew.
pub(crate) struct Feed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Client,
    pub(crate) numbers: Range<u32>,
    pub(crate) told: UnboundedSender<News>,
}

/// How far a feed has come.
#[derive(Default)]
struct Place {
    /// What the last bookmark said.
    at: Option<String>,
    /// While everything is told anew: the pods that were told of.
    seen: HashSet<String>,
    is_counted: bool,
}

impl Feed {
    /// Follows it; never ends by itself.
    pub(crate) fn run(self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut place = Place::default();
            let mut backoff = Backoff::new(RETRY.0, RETRY.1);
            // All nodes of all crews at once would be a wave.
            let mut beat = Instant::now() + LEASE_PERIOD.mul_f64(rand::random());
            loop {
                let begun = Instant::now();
                let cut = match self.open(&mut place, &mut beat).await {
                    Err(cut) => cut,
                    Ok(never) => match never {},
                };
                if begun.elapsed() > RETRY.1 {
                    backoff.reset();
                }
                if let Cut::Closed(error) = &cut
                    && error.is_expired()
                {
                    place.at = None;
                }
                self.shared.counters.failures.fetch_add(1, Relaxed);
                tracing::debug!(
                    first = self.numbers.start,
                    cut = chain(&cut),
                    "to be opened again"
                );
                tokio::time::sleep(backoff.next_delay()).await;
            }
        })
    }

    async fn open(&self, place: &mut Place, beat: &mut Instant) -> Result<Infallible, Cut> {
        let nodes: Vec<String> = self.numbers.clone().map(|it| self.shared.name(it)).collect();
        let (mut say, body) = Channel::<Bytes, Infallible>::new(UNSENT);
        let mut open = json!({"nodes": nodes});
        match &place.at {
            Some(at) => open["at"] = at.as_str().into(),
            None => place.seen.clear(),
        }
        send(&mut say, &json!({"open": open})).await?;
        let mut heard = self.client.converse(PATH, body).await.map_err(Cut::Closed)?;
        let mut lines = Lines::default();
        // Since when a heartbeat waits for its answer.
        let mut beaten = None;
        loop {
            tokio::select! {
                piece = heard.next() => {
                    let piece = piece.map_err(Cut::Closed)?.ok_or(Cut::Broken)?;
                    lines.push(&piece).map_err(|_| Cut::Broken)?;
                    while let Some(line) = lines.pop() {
                        self.hear(place, &mut beaten, &line)?;
                    }
                }
                () = sleep_until(*beat) => {
                    beaten.get_or_insert(*beat);
                    send(&mut say, &json!({"beat": {}})).await?;
                    *beat = (*beat + LEASE_PERIOD).max(Instant::now());
                }
            }
        }
    }

    fn hear(
        &self,
        place: &mut Place,
        beaten: &mut Option<Instant>,
        line: &[u8],
    ) -> Result<(), Cut> {
        let told: Told<'_> = serde_json::from_slice(line)?;
        let text = told.object.get();
        // Who no longer listens has ended.
        let tell = |news| drop(self.told.send(news));
        match told.kind {
            "BEAT" => {
                let Beaten { renewed, missing } = serde_json::from_str(text)?;
                let counters = &self.shared.counters;
                counters.beats.fetch_add(renewed, Relaxed);
                if let Some(due) = beaten.take() {
                    counters.late.took(due.elapsed());
                }
                missing
                    .iter()
                    .filter_map(|it| self.number(it))
                    .for_each(|it| tell(News::NoLease(it)));
            }
            "BOOKMARK" => {
                let it: Envelope = serde_json::from_str(text)?;
                if place.at.replace(it.metadata.resource_version).is_none() {
                    tell(News::Only(std::mem::take(&mut place.seen)));
                }
                if !std::mem::replace(&mut place.is_counted, true) {
                    let count = u64::from(self.numbers.end - self.numbers.start);
                    self.shared.counters.listening.fetch_add(count, Relaxed);
                }
            }
            "ERROR" => {
                let it: Envelope = serde_json::from_str(text)?;
                if it.code == 410 {
                    place.at = None;
                }
                return Err(Cut::Ended(it.message));
            }
            kind => {
                let it: Envelope = serde_json::from_str(text)?;
                match (kind, &*it.kind) {
                    ("DELETED", "Pod") => tell(News::Gone(it.metadata.uid)),
                    (_, "Pod") => {
                        let pod: Tenanted<Pod> = serde_json::from_str(text)?;
                        let node = pod.spec.as_ref().and_then(|it| it.node_name.as_deref());
                        if let Some(number) = node.and_then(|it| self.number(it)) {
                            if place.at.is_none() {
                                place.seen.insert(it.metadata.uid);
                            }
                            tell(News::Pod(number, Arc::new(pod)));
                        }
                    }
                    ("DELETED", "Node") => {
                        if let Some(number) = self.number(&it.metadata.name) {
                            tell(News::NoNode(number));
                        }
                    }
                    // What others say of a node does not matter here.
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn number(&self, name: &str) -> Option<u32> {
        let number = name.strip_prefix(&*self.shared.options.prefix)?.parse().ok()?;
        self.numbers.contains(&number).then_some(number)
    }
}

async fn send(say: &mut Sender<Bytes>, what: &serde_json::Value) -> Result<(), Cut> {
    let line = format!("{what}\n");
    say.send_data(line.into()).await.map_err(|_| Cut::Broken)
}
