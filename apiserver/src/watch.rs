//! Watching: one stream of changes, over one partition or several.
//!
//! A watch is a task that pulls from the partitions' watchers and pushes encoded events into the
//! response body, whose buffer is small: a slow client makes its own task wait, and when the
//! history has moved past it, it gets a 410 and lists again.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use insula_api::proto;
use insula_partition::{
    snapshot::Entry,
    store::{ReadAt, Revision, Store, StoreError},
    watch::{Event, Watcher},
};
use prometheus_client::metrics::counter::Counter;
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    Server,
    accept::Form,
    body::Sender,
    error::{ApiError, Result},
    forms::{self, Shown},
    granted,
    matcher::Matcher,
    read,
    registry::{self, Served, Whose},
    request::{Encoding, ListOptions},
    revision::Vector,
};

/// How often a bookmark is sent.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A client that takes nothing for this long is gone.
const SEND_WITHIN: Duration = Duration::from_secs(60);
/// Size from which pending events are sent, in bytes.
const CHUNK: usize = 64 * 1024;
/// The longest that a client may ask a watch to last, in seconds.
const LONGEST: u64 = 30 * 24 * 3600;

/// Everything a watch needs to run by itself.
pub(crate) struct Watch {
    server: Arc<Server>,
    shown: Shown,
    matcher: Matcher,
    prefix: String,
    options: ListOptions,
    watchers: Vec<(String, Watcher)>,
    /// The state to send first, and the point it stands for.
    initial: Vec<(Arc<str>, Entry)>,
    at: Vector,
    sent_columns: bool,
    /// Its reader sees objects only in part.
    in_parts: bool,
    shutdown: CancellationToken,
    /// Events and bytes sent, of this resource.
    sent: (Counter, Counter),
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Watch {
    /// Checks the options and takes its place in the history; errors are plain answers.
    pub(crate) async fn start(
        server: Arc<Server>,
        shown: Shown,
        places: &[(String, Arc<dyn Store>)],
        whose: &Whose,
        namespace: &str,
        options: ListOptions,
    ) -> Result<Self> {
        let served = shown.served.clone();
        let matcher =
            Matcher::parse(options.labels.as_deref(), options.fields.as_deref(), &served.resource)?;
        let prefix = registry::prefix(whose, namespace);
        let names: Vec<&str> = places.iter().map(|(name, _)| name.as_str()).collect();
        let wants_state =
            options.initial_events.unwrap_or(matches!(options.resource_version.as_str(), "" | "0"));
        let from = match options.resource_version.as_str() {
            "" | "0" => None,
            text => Some(Vector::parse(text, &names)?),
        };
        let mut initial = Vec::new();
        let mut snapshots = Vec::new();
        let mut at = Vec::with_capacity(places.len());
        for (index, (name, store)) in places.iter().enumerate() {
            let revision = match (&from, wants_state) {
                (Some(vector), false) => vector.0[index].1,
                (from, _) => {
                    let read = match (from, options.resource_version.as_str()) {
                        (Some(vector), _) => ReadAt::NotOlderThan(vector.0[index].1),
                        (None, "0") => ReadAt::Any,
                        (None, _) => ReadAt::Latest,
                    };
                    let snapshot = store.read(&served.collection, read).await?;
                    if wants_state {
                        let entries = snapshot.range(&prefix, None);
                        let found = state(&server, &served, &matcher, entries).await?;
                        initial.extend(found);
                    }
                    let revision = snapshot.revision();
                    snapshots.push(snapshot);
                    revision
                }
            };
            at.push((name.clone(), revision));
        }
        if 1 < snapshots.len() {
            read::check_together(places, &snapshots)?;
        }
        let mut watchers = Vec::with_capacity(places.len());
        for ((name, store), (_, revision)) in places.iter().zip(&at) {
            let watcher = store.watch(&served.collection, *revision).map_err(cut_off)?;
            watchers.push((name.clone(), watcher));
        }
        let shutdown = server.shutdown.clone();
        let sent = server.metrics.watched(&served);
        Ok(Self {
            server,
            shown,
            matcher,
            prefix,
            options,
            watchers,
            initial,
            at: Vector(at),
            sent_columns: false,
            in_parts: false,
            shutdown,
            sent,
        })
    }

    /// The same, for a reader who sees objects only in part.
    pub(crate) fn of_parts(self) -> Self {
        Self { in_parts: true, ..self }
    }

    /// Runs until the deadline, the client's going, or the server's end.
    pub(crate) async fn run(mut self, sender: Sender) {
        let seconds = self
            .options
            .timeout_seconds
            .map(|it| it.min(LONGEST))
            .unwrap_or_else(|| 1800 + rand::rng().random_range(0..1800));
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = self.stream(&sender, deadline) => (),
            () = sleep_until(deadline) => (),
            () = shutdown.cancelled() => (),
            () = sender.closed() => (),
        }
    }

    async fn stream(&mut self, sender: &Sender, deadline: Instant) {
        let mut out = BytesMut::new();
        for (key, entry) in std::mem::take(&mut self.initial) {
            if let Err(error) = self.event(&mut out, "ADDED", &key, entry.modified, &entry.value) {
                out.put_slice(&error_event(&error, self.shown.accept.encoding));
                send(sender, out.split().freeze()).await;
                return;
            }
            if CHUNK < out.len() && !send(sender, out.split().freeze()).await {
                return;
            }
        }
        if self.options.initial_events == Some(true) && self.options.bookmarks {
            self.mark(&mut out, true);
        }
        if !out.is_empty() && !send(sender, out.split().freeze()).await {
            return;
        }
        let mut watchers = stream::select_all(std::mem::take(&mut self.watchers).into_iter().map(
            |(name, watcher)| {
                Box::pin(stream::unfold(Some((name, watcher)), |state| async {
                    let (name, mut watcher) = state?;
                    // Now and then without changes, so that bookmarks keep up where all is quiet.
                    let waited = tokio::time::timeout(BOOKMARK_EVERY / 4, watcher.next()).await;
                    let events = waited.unwrap_or_else(|_| Ok(Vec::new()));
                    let progress = watcher.progress();
                    let keep = events.is_ok().then(|| (name.clone(), watcher));
                    Some(((name, events, progress), keep))
                }))
            },
        ));
        // A little before the deadline, so that the client resumes from a fresh point.
        let last_bookmark = deadline - Duration::from_secs(2).min(deadline - Instant::now());
        let mut next_bookmark = (Instant::now() + BOOKMARK_EVERY).min(last_bookmark);
        loop {
            tokio::select! {
                next = watchers.next() => {
                    let Some((name, events, progress)) = next else { return };
                    match events {
                        Ok(mut events) => {
                            match self.changes(&mut out, sender, &name, &mut events).await {
                                Ok(true) => (),
                                Ok(false) => return,
                                Err(error) => {
                                    out.put_slice(&error_event(&error, self.shown.accept.encoding));
                                    send(sender, out.split().freeze()).await;
                                    return;
                                }
                            }
                            if let Ok(Some(revision)) = progress {
                                self.advance(&name, revision);
                            }
                        }
                        Err(error) => {
                            self.failure(&mut out, error);
                            send(sender, out.split().freeze()).await;
                            return;
                        }
                    }
                }
                () = sleep_until(next_bookmark), if self.options.bookmarks => {
                    self.mark(&mut out, false);
                    let again = Instant::now() + BOOKMARK_EVERY;
                    next_bookmark = if next_bookmark < last_bookmark { again.min(last_bookmark) } else { again };
                }
            }
            if !out.is_empty() && !send(sender, out.split().freeze()).await {
                return;
            }
        }
    }

    /// Encodes changes of one partition. False if the client takes no more.
    async fn changes(
        &mut self,
        out: &mut BytesMut,
        sender: &Sender,
        name: &str,
        events: &mut [Arc<Event>],
    ) -> Result<bool> {
        self.show(events).await?;
        for event in events.iter() {
            self.change(out, event)?;
            self.advance(name, event.revision);
            // Little waits for a slow client, however much happened at once.
            if CHUNK < out.len() && !send(sender, out.split().freeze()).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has changes look as this version shows objects.
    async fn show(&self, events: &mut [Arc<Event>]) -> Result<()> {
        if !self.shown.served.is_converted() {
            return Ok(());
        }
        for event in events.iter_mut().filter(|it| it.key.starts_with(&self.prefix)) {
            let mut shown = (**event).clone();
            let entries = [Some(&mut shown.entry), shown.previous.as_mut()];
            self.server.show(&self.shown.served, entries.into_iter().flatten()).await?;
            *event = Arc::new(shown);
        }
        Ok(())
    }

    fn advance(&mut self, name: &str, revision: Revision) {
        if let Some((_, at)) = self.at.0.iter_mut().find(|(known, _)| known == name) {
            *at = revision.max(*at);
        }
    }

    /// Encodes one change as this watch's selectors see it.
    fn change(&mut self, out: &mut BytesMut, event: &Event) -> Result<()> {
        if !event.key.starts_with(&self.prefix) {
            return Ok(());
        }
        let resource = &self.shown.served.resource;
        let is = !event.deleted && self.matcher.matches(resource, &event.entry);
        let was = event.previous.as_ref().filter(|it| self.matcher.matches(resource, it));
        let kind = match (was, is) {
            (None, true) => "ADDED",
            (Some(_), true) => "MODIFIED",
            (Some(previous), false) if !event.deleted => {
                // Who could see it as it was is not told what it has become.
                let last = insula_partition::value::with_revision(&previous.value, event.revision);
                return self.leaves(out, &last);
            }
            (Some(_), false) => "DELETED",
            (None, false) => return Ok(()),
        };
        self.event(out, kind, &event.key, event.revision, &event.entry.value)
    }

    /// Tells of an object that selectors no longer match. No other watch tells of it so.
    fn leaves(&mut self, out: &mut BytesMut, last: &Bytes) -> Result<()> {
        let part = self.in_parts.then(|| granted::part_of(last)).transpose()?;
        let last = part.as_ref().unwrap_or(last);
        let made = match self.shown.accept.form {
            Form::Table => self.rows(last)?,
            _ => self.shown.object(last)?,
        };
        self.put(out, "DELETED", &made);
        Ok(())
    }

    fn rows(&mut self, value: &Bytes) -> Result<Bytes> {
        let object: Value = serde_json::from_slice(value).map_err(ApiError::internal)?;
        let columns = !std::mem::replace(&mut self.sent_columns, true);
        Ok(self.shown.table(&[object], &json!({}), columns).to_string().into())
    }

    fn put(&self, out: &mut BytesMut, kind: &str, made: &Bytes) {
        frame(out, self.shown.accept.encoding, kind, made);
        self.sent.0.inc();
        self.sent.1.inc_by(made.len() as u64);
    }

    fn event(
        &mut self,
        out: &mut BytesMut,
        kind: &str,
        key: &Arc<str>,
        revision: Revision,
        value: &Bytes,
    ) -> Result<()> {
        let part = self.in_parts.then(|| granted::part_of(value)).transpose()?;
        let value = part.as_ref().unwrap_or(value);
        let made = match self.shown.accept.form {
            Form::Table => self.rows(value)?,
            // What others share is whole.
            _ if self.in_parts => self.shown.object(value)?,
            _ => self.server.forms.of(&self.shown, key, revision, value)?,
        };
        self.put(out, kind, &made);
        Ok(())
    }

    fn bookmark(&mut self, out: &mut BytesMut, end_of_state: bool) -> Result<()> {
        let resource = &self.shown.served.resource;
        let revision = self.at.to_string();
        let mut object = json!({
            "kind": resource.kind,
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": revision},
        });
        if end_of_state {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let made = match self.shown.accept.form {
            Form::Table => {
                let revision = json!({"resourceVersion": revision});
                self.shown.table(&[object], &revision, false).to_string().into()
            }
            _ => self.shown.object(&object.to_string().into())?,
        };
        frame(out, self.shown.accept.encoding, "BOOKMARK", &made);
        Ok(())
    }

    /// A bookmark, if it can be made; no client depends on any but the first.
    fn mark(&mut self, out: &mut BytesMut, end_of_state: bool) {
        if let Err(error) = self.bookmark(out, end_of_state) {
            tracing::error!(%error, "a bookmark cannot be encoded");
        }
    }

    fn failure(&self, out: &mut BytesMut, error: StoreError) {
        out.put_slice(&error_event(&cut_off(error), self.shown.accept.encoding));
    }
}

/// Why a watch cannot go on, or begin.
fn cut_off(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { requested, oldest } => {
            ApiError::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        other => other.into(),
    }
}

/// Appends one event of a stream.
fn frame(out: &mut BytesMut, encoding: Encoding, kind: &str, object: &[u8]) {
    if encoding == Encoding::Protobuf {
        let mut framed = Vec::with_capacity(object.len() + 32);
        proto::event(kind, object, &mut framed);
        out.put_slice(&framed);
        return;
    }
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}

/// The event that ends a stream with `error`.
pub(crate) fn error_event(error: &ApiError, encoding: Encoding) -> Bytes {
    let status = error.status();
    let mut out = BytesMut::new();
    let message = match encoding {
        Encoding::Protobuf => forms::message_of(&status).ok().flatten(),
        _ => None,
    };
    frame(&mut out, encoding, "ERROR", &message.unwrap_or_else(|| status.to_string().into()));
    out.freeze()
}

/// What a watch begins with, from what is kept.
async fn state<'a>(
    server: &Server,
    served: &Served,
    matcher: &Matcher,
    kept: impl Iterator<Item = (&'a Arc<str>, &'a Entry)>,
) -> Result<Vec<(Arc<str>, Entry)>> {
    let resource = &served.resource;
    let own = |(key, entry): (&Arc<str>, &Entry)| (key.clone(), entry.clone());
    if !served.is_converted() {
        let found = kept.filter(|(_, entry)| matcher.matches(resource, entry));
        return Ok(found.map(own).collect());
    }
    let mut shown: Vec<(Arc<str>, Entry)> = kept.map(own).collect();
    server.show(served, shown.iter_mut().map(|(_, entry)| entry)).await?;
    shown.retain(|(_, entry)| matcher.matches(resource, entry));
    Ok(shown)
}

/// False if the client is gone.
async fn send(sender: &Sender, bytes: Bytes) -> bool {
    matches!(tokio::time::timeout(SEND_WITHIN, sender.send(bytes)).await, Ok(true))
}

#[cfg(test)]
mod tests {
    use insula_api::schema::Schema;

    use super::*;

    #[test]
    fn the_end_is_told_in_the_streams_encoding() {
        let error = ApiError::expired("too old resource version: 1 (2)");
        let json: Value = serde_json::from_slice(&error_event(&error, Encoding::Json)).unwrap();
        assert_eq!(json["type"], "ERROR");
        assert_eq!(json["object"]["code"], 410);
        let frame = error_event(&error, Encoding::Protobuf);
        let object = frame.windows(4).position(|it| it == b"k8s\0").unwrap();
        let (kind, status) = proto::decode(Schema::built_in(), &frame[object..], None).unwrap();
        assert_eq!((kind.kind.as_str(), &status["code"]), ("Status", &json!(410)));
    }
}
