//! The node feed, `POST /insula/nodefeed`: one stream with all that a node's agent has to hear of,
//! and on which it says that its node lives.
//!
//! Both ways go JSON documents, one a line. The first that the agent says opens the feed:
//!
//! ```text
//! > {"open":{"nodes":["n1"],"at":"p1=12,p2=34"}}      `at`: where it goes on; absent: anew
//! < {"type":"ADDED","object":{"kind":"Pod",...}}        as in a watch; MODIFIED, DELETED
//! < {"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"p1=13,p2=34"}}}
//! > {"beat":{}}                                         every ten seconds
//! < {"type":"BEAT","object":{"renewed":1,"missing":[],"wants":["usage"]}}
//! > {"usage":{"window":20000,"nodes":[{"name":"n1","cpu":250000000,"memory":1073741824,
//!     "pods":[["UID",[["main",{"cpu":1000000,"memory":4096}]]]]}]}}
//! ```
//!
//! What an agent measures it says if a beat's answer wants that: older servers do not
//! ([`crate::measured`]).
//!
//! What is told are pods that are bound to the nodes, of all tenants, and the Node objects
//! themselves. A bookmark follows whatever is told, in the same piece, and the first one the whole
//! present state: whoever opens another feed with what it says is told exactly what has changed
//! since. History that is gone is answered with 410, and who gets that begins anew.
//!
//! # Invariants
//!
//! * It carries nothing that its caller could not watch or write one by one: the rules and the node
//!   authorizer are asked for each node before anything is read, and again every half a minute.
//! * A feed has no task of its own, as a watch has none: whoever reads its body drives it.

mod beats;
mod lines;
pub(crate) mod names;

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Method, Response, header};
use insula_api::names::TenantName;
use insula_partition::{
    snapshot::Entry,
    store::{ReadAt, Revision},
    watch::{Event, Watcher},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use self::{
    beats::Beaten,
    lines::{Open, Said, Saying},
    names::node_of,
};
use crate::{
    Server,
    body::{Body, Pen, penned},
    error::{ApiError, Result},
    gate,
    identity::Identity,
    rbac::Attributes,
    registry::{self, Served, Whose},
    request::Encoding,
    revision::Vector,
    watch::{cut_off, error_event, frame, next_of},
};

/// The path.
const PATH: &str = "/insula/nodefeed";
/// One document a line.
const LINES: &str = "application/x-ndjson";
/// Nodes of one feed, at most.
const NODES: usize = 10_000;
/// Nodes asked about before others get their turn.
const TOGETHER: usize = 256;
/// How often a bookmark is told where all is quiet, and whether its caller may have the feed is
/// asked again.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// Size from which what waits is sent, in bytes.
const CHUNK: usize = 64 * 1024;

/// Whether a request is for a feed.
pub(crate) fn is_asked(method: &Method, path: &str) -> bool {
    path == PATH && method == Method::POST
}

/// Opens a feed; what is wrong with that is a plain answer.
pub(crate) async fn serve(
    server: &Arc<Server>,
    identity: Option<&Identity>,
    body: Body,
) -> Result<Response<Body>> {
    let identity = identity.ok_or_else(ApiError::unauthorized)?;
    let mut saying = Saying::new(body);
    let Some(Said::Open(open)) = saying.first().await? else {
        return Err(ApiError::bad_request("a feed begins with {\"open\":{\"nodes\":[..]}}"));
    };
    check(server, identity, &open.nodes).await?;
    let feed = Feed::start(server.clone(), identity.clone(), open).await?;
    let mut response = Response::new(penned(|pen| feed.run(pen, saying)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// Refuses who could not watch the pods of these nodes, or renew their leases.
async fn check<'a, N>(server: &Server, identity: &Identity, nodes: N) -> Result<()>
where
    N: IntoIterator<Item = &'a String, IntoIter: ExactSizeIterator>,
{
    let nodes = nodes.into_iter();
    if nodes.len() == 0 || NODES < nodes.len() {
        let why = format!("a feed is of 1 to {NODES} nodes, not of {}", nodes.len());
        return Err(ApiError::bad_request(why));
    }
    let of = |verb: &str, group: &str, resource: &str, namespace: &str, name: &str| Attributes {
        verb: verb.to_owned(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let judge = async |whose: &Whose, it: Attributes| match identity.tenant.is_system()
        && server.may(identity, whose, &it).await?
    {
        true => Ok(()),
        false => Err(gate::denied(identity, &it)),
    };
    let system = Whose::One(TenantName::system());
    let post =
        Attributes { verb: "post".to_owned(), path: PATH.to_owned(), ..Attributes::default() };
    judge(&Whose::All, of("watch", "", "pods", "", "")).await?;
    judge(&system, post).await?;
    for (count, node) in nodes.enumerate() {
        if count % TOGETHER == TOGETHER - 1 {
            tokio::task::yield_now().await;
        }
        let lease = of("update", "coordination.k8s.io", "leases", beats::NAMESPACE, node);
        if let Some(own) = identity.node().filter(|own| own != node) {
            let mut error = gate::denied(identity, &lease);
            error.message = format!("{}: node '{own}' may only access its own", error.message);
            return Err(error);
        }
        judge(&system, of("get", "", "nodes", "", node)).await?;
        judge(&system, lease).await?;
    }
    Ok(())
}

/// What a partition's changes are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Pods,
    Nodes,
}

/// One feed.
struct Feed {
    server: Arc<Server>,
    identity: Identity,
    nodes: HashSet<String>,
    /// Keys of the Node objects.
    keys: HashSet<String>,
    pods: Arc<Served>,
    objects: Arc<Served>,
    /// Pods of all partitions, then Node objects of all.
    watchers: Vec<(Arc<str>, Watcher)>,
    initial: Vec<(Of, Arc<str>, Entry)>,
    at: Vector,
}

impl Feed {
    async fn start(server: Arc<Server>, identity: Identity, open: Open) -> Result<Self> {
        let served = |resource| {
            let found = server.registry.any_version("", resource);
            found.cloned().ok_or_else(ApiError::unknown_resource)
        };
        let (pods, objects) = (served("pods")?, served("nodes")?);
        let names = server.partitions.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let from = open.at.as_deref().map(|it| Vector::parse(it, &names)).transpose()?;
        let system = TenantName::system();
        let keys: HashSet<String> =
            open.nodes.iter().map(|node| registry::key(&system, "", node)).collect();
        let mut this = Self {
            nodes: open.nodes.into_iter().collect(),
            keys,
            pods,
            objects,
            watchers: Vec::new(),
            initial: Vec::new(),
            at: from.clone().unwrap_or_else(|| Vector(Vec::new())),
            server,
            identity,
        };
        if from.is_none() {
            for name in names {
                let revision = this.read(name).await?;
                this.at.0.push((name.into(), revision));
            }
        }
        for served in [&this.pods, &this.objects] {
            for (name, revision) in &this.at.0 {
                let Some(store) = this.server.partitions.store(name) else {
                    return Err(ApiError::expired("the partitions have changed since"));
                };
                let watcher = store.watch(&served.collection, *revision).map_err(cut_off)?;
                this.watchers.push((name.clone(), watcher));
            }
        }
        Ok(this)
    }

    /// Takes what a partition has of these nodes; returns as of when.
    async fn read(&mut self, partition: &str) -> Result<Revision> {
        let Some(store) = self.server.partitions.store(partition) else {
            return Err(ApiError::expired("the partitions have changed since"));
        };
        let snapshot = store.read(&self.pods.collection, ReadAt::Latest).await?;
        let revision = snapshot.revision();
        let keys = self.server.bound.on(partition, &store, &self.nodes).await?;
        for key in keys {
            // What was bound after this is told as a change.
            if let Some(entry) = snapshot.get(&key).filter(|it| {
                node_of(&it.value.bytes()).is_some_and(|node| self.nodes.contains(&*node))
            }) {
                self.initial.push((Of::Pods, key, entry.clone()));
            }
        }
        let fresh = ReadAt::NotOlderThan(revision);
        let snapshot = store.read(&self.objects.collection, fresh).await?;
        for key in &self.keys {
            if let Some(entry) = snapshot.get(key) {
                self.initial.push((Of::Nodes, key.as_str().into(), entry.clone()));
            }
        }
        Ok(revision)
    }

    /// Tells what there is until the client or the server has enough.
    async fn run(mut self, pen: Pen, mut saying: Saying) {
        let shutdown = self.server.shutdown.clone();
        tokio::select! {
            biased;
            ended = self.stream(&pen, &mut saying) => {
                if let Err(error) = ended {
                    pen.write(error_event(&error, Encoding::Json)).await;
                }
            }
            () = shutdown.cancelled() => (),
        }
    }

    async fn stream(&mut self, pen: &Pen, saying: &mut Saying) -> Result<()> {
        let mut out = BytesMut::new();
        for (of, key, entry) in std::mem::take(&mut self.initial) {
            self.tell(&mut out, "ADDED", of, &key, entry.modified, &entry)?;
            if CHUNK < out.len() {
                pen.write(out.split().freeze()).await;
            }
        }
        self.mark(&mut out);
        let mut watchers = std::mem::take(&mut self.watchers);
        let mut beating: FuturesUnordered<BoxFuture<'static, Beaten>> = FuturesUnordered::new();
        let mut clock = pin!(sleep_until(Instant::now() + BOOKMARK_EVERY));
        let mut first = 0;
        loop {
            if !out.is_empty() {
                pen.write(out.split().freeze()).await;
            }
            tokio::select! {
                (index, events) = next_of(&mut watchers, first) => {
                    let of = if index < self.at.0.len() { Of::Pods } else { Of::Nodes };
                    let mut told = false;
                    for event in events.map_err(cut_off)? {
                        told |= self.change(&mut out, of, &event)?;
                        if CHUNK < out.len() {
                            pen.write(out.split().freeze()).await;
                        }
                    }
                    if told {
                        self.advance(&mut watchers)?;
                        self.mark(&mut out);
                    }
                    first = index + 1;
                }
                // One after the other: who says more than there is time for waits.
                said = saying.next(), if beating.is_empty() => match said? {
                    None => return Ok(()),
                    Some(Said::Beat) => {
                        let nodes = self.nodes.iter().cloned().collect();
                        beating.push(Box::pin(beats::beat(self.server.clone(), nodes)));
                    }
                    Some(Said::Usage(told)) => self.server.measured.hear(told, &self.nodes),
                    Some(Said::Open(_)) => {
                        return Err(ApiError::bad_request("the feed is open already"));
                    }
                },
                Some(beaten) = beating.next() => {
                    let Beaten { renewed, missing } = beaten;
                    let object = json!({"renewed": renewed, "missing": missing, "wants": ["usage"]})
                        .to_string();
                    frame(&mut out, Encoding::Json, "BEAT", object.as_bytes());
                }
                () = clock.as_mut() => {
                    check(&self.server, &self.identity, &self.nodes).await?;
                    self.advance(&mut watchers)?;
                    self.mark(&mut out);
                    clock.as_mut().reset(Instant::now() + BOOKMARK_EVERY);
                }
            }
        }
    }

    /// Goes on to where both watchers of a partition are, as far as all was told.
    fn advance(&mut self, watchers: &mut [(Arc<str>, Watcher)]) -> Result<()> {
        let count = self.at.0.len();
        for (index, (_, at)) in self.at.0.iter_mut().enumerate() {
            let mut reached = Some(Revision(u64::MAX));
            for which in [index, index + count] {
                let Some((_, watcher)) = watchers.get_mut(which) else { continue };
                let progress = watcher.progress().map_err(cut_off)?;
                reached = reached.zip(progress).map(|(a, b)| a.min(b));
            }
            if let Some(reached) = reached {
                *at = reached.max(*at);
            }
        }
        Ok(())
    }

    /// Tells of a change, if it is of these nodes.
    fn change(&self, out: &mut BytesMut, of: Of, event: &Arc<Event>) -> Result<bool> {
        let (was, is) = match of {
            Of::Pods => {
                let bound = self.server.bound_names.of(event);
                let has = |node: &Option<Box<str>>| {
                    node.as_ref().is_some_and(|it| self.nodes.contains(&**it))
                };
                (has(&bound.was), has(&bound.is))
            }
            Of::Nodes => {
                let has = self.keys.contains(&*event.key);
                (has && event.previous.is_some(), has && !event.deleted)
            }
        };
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return Ok(false),
        };
        self.tell(out, kind, of, &event.key, event.revision, &event.entry)?;
        Ok(true)
    }

    fn tell(
        &self,
        out: &mut BytesMut,
        kind: &str,
        of: Of,
        key: &Arc<str>,
        revision: Revision,
        entry: &Entry,
    ) -> Result<()> {
        let served = if of == Of::Pods { &self.pods } else { &self.objects };
        let text = self.server.forms.text(served, key, revision, &entry.value)?;
        frame(out, Encoding::Json, kind, &text);
        Ok(())
    }

    fn mark(&self, out: &mut BytesMut) {
        let object = json!({"metadata": {"resourceVersion": self.at.to_string()}}).to_string();
        frame(out, Encoding::Json, "BOOKMARK", object.as_bytes());
    }
}
