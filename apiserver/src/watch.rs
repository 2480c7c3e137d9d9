//! Watching: one stream of changes, over one partition or several.
//!
//! A watch pulls from the partitions' watchers whenever its reader can take more: a slow client
//! holds nothing but its place, and when the history has moved past it, it gets a 410 and lists
//! again.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::select_all;
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
    body::Pen,
    error::{ApiError, Result},
    forms::{self, Shown},
    granted,
    matcher::{Matcher, Sight},
    per_event::Alike,
    read,
    registry::{self, Served, Whose},
    request::{Encoding, ListOptions},
    revision::Vector,
    topics::Scope,
};

/// How often a bookmark is sent.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How often a watch looks how far history has gone on without it, so that it keeps up where all
/// is quiet.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// What goes around an event's object, in bytes, at most.
const FRAME: usize = 48;
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
    watchers: Vec<(Arc<str>, Watcher)>,
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
        places: &[(Arc<str>, Arc<dyn Store>)],
        whose: &Whose,
        namespace: &str,
        options: ListOptions,
    ) -> Result<Self> {
        let served = shown.served.clone();
        let matcher =
            Matcher::parse(options.labels.as_deref(), options.fields.as_deref(), &served.resource)?;
        let prefix = registry::prefix(whose, namespace);
        let names: Vec<&str> = places.iter().map(|(name, _)| &**name).collect();
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
                    let mut snapshot = store.read(&served.collection, read).await?;
                    if wants_state {
                        let on_node = match matcher.node(&served.resource) {
                            Some(node) => {
                                let (server, place) = ((&*server, &*served), &places[index]);
                                read::pods_on(server, place, &mut snapshot, false, node, &prefix)
                                    .await
                            }
                            None => None,
                        };
                        let entries = read::candidates(&snapshot, &prefix, None, on_node.as_ref());
                        let entries = entries.filter(|(key, _)| options.is_of_slots(key));
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
        let topic = matcher.topic(&served.resource);
        for ((name, store), (_, revision)) in places.iter().zip(&at) {
            let mut watcher = store.watch(&served.collection, *revision).map_err(cut_off)?;
            if let Some(topic) = &topic {
                let scope = Scope::new(name, whose, &served.collection);
                watcher = server.topics.narrow(watcher, *revision, scope, topic);
            }
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

    /// Writes what there is to tell until the deadline or the server's end.
    pub(crate) async fn run(mut self, pen: Pen) {
        let seconds = self
            .options
            .timeout_seconds
            .map(|it| it.min(LONGEST))
            .unwrap_or_else(|| 1800 + rand::rng().random_range(0..1800));
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            ended = self.stream(&pen, deadline) => {
                if let Err(error) = ended {
                    pen.write(error_event(&error, self.shown.accept.encoding)).await;
                }
            }
            () = shutdown.cancelled() => (),
        }
    }

    /// Tells what there is, until `deadline`. Why it ends before is the last that is told.
    async fn stream(&mut self, pen: &Pen, deadline: Instant) -> Result<()> {
        let mut out = Told::default();
        for (key, entry) in std::mem::take(&mut self.initial) {
            let text = read::opened_for(self.shown.accept.form, entry.clone())?.value;
            let text = text.bytes();
            let added = self.event(out.buffer(), "ADDED", &key, entry.modified, &text);
            if added.is_err() || CHUNK < out.len() {
                pen.write(out.take()).await;
                if deadline <= Instant::now() {
                    return Ok(());
                }
            }
            added?;
        }
        if self.options.initial_events == Some(true) && self.options.bookmarks {
            self.mark(out.buffer(), true);
        }
        // A little before the deadline, so that the client resumes from a fresh point.
        let last_bookmark = deadline - Duration::from_secs(2).min(deadline - Instant::now());
        let mut bookmark = (Instant::now() + BOOKMARK_EVERY).min(last_bookmark);
        // One clock for all that is done from time to time: events neither start nor stop it.
        let first_look = Instant::now() + LOOK_EVERY;
        let mut clock = pin!(sleep_until(bookmark.min(first_look).min(deadline)));
        let mut watchers = std::mem::take(&mut self.watchers);
        let mut first = 0;
        loop {
            if !out.is_empty() {
                pen.write(out.take()).await;
            }
            tokio::select! {
                (index, events) = next_of(&mut watchers, first) => {
                    let outcome = match events {
                        Ok(mut events) => {
                            let name = &watchers[index].0;
                            self.changes(&mut out, pen, name, &mut events).await
                        }
                        Err(error) => Err(cut_off(error)),
                    };
                    if outcome.is_err() && !out.is_empty() {
                        pen.write(out.take()).await;
                    }
                    outcome?;
                    first = index + 1;
                }
                () = clock.as_mut() => {
                    let now = Instant::now();
                    if deadline <= now {
                        return Ok(());
                    }
                    for (name, watcher) in &mut watchers {
                        // What is wrong is told by the next look for changes.
                        if let Ok(Some(revision)) = watcher.progress() {
                            self.advance(name, revision);
                        }
                    }
                    if self.options.bookmarks && bookmark <= now {
                        self.mark(out.buffer(), false);
                        let again = now + BOOKMARK_EVERY;
                        bookmark = if now < last_bookmark { again.min(last_bookmark) } else { again };
                    }
                    let look = now + LOOK_EVERY;
                    let next = if bookmark <= now { look } else { look.min(bookmark) };
                    clock.as_mut().reset(next.min(deadline));
                }
            }
        }
    }

    /// Encodes changes of one partition.
    async fn changes(
        &mut self,
        out: &mut Told,
        pen: &Pen,
        name: &str,
        events: &mut [Arc<Event>],
    ) -> Result<()> {
        self.show(events).await?;
        for event in events.iter() {
            self.change(out, event)?;
            self.advance(name, event.revision);
            // Little waits for a slow client, however much happened at once.
            if CHUNK < out.len() {
                pen.write(out.take()).await;
            }
        }
        Ok(())
    }

    /// Has changes look as this version shows objects.
    async fn show(&self, events: &mut [Arc<Event>]) -> Result<()> {
        if !self.shown.served.is_converted() {
            return Ok(());
        }
        for event in events.iter_mut().filter(|it| concerns(&self.prefix, &self.options, it)) {
            let mut shown = (**event).clone();
            let entries = [Some(&mut shown.entry), shown.previous.as_mut()];
            let mut entries: Vec<_> = entries.into_iter().flatten().collect();
            for entry in &mut entries {
                **entry = read::opened((**entry).clone())?;
            }
            self.server.show(&self.shown.served, entries.into_iter()).await?;
            *event = Arc::new(shown);
        }
        Ok(())
    }

    fn advance(&mut self, name: &str, revision: Revision) {
        if let Some((_, at)) = self.at.0.iter_mut().find(|(known, _)| **known == *name) {
            *at = revision.max(*at);
        }
    }

    /// Encodes one change as this watch's selectors see it.
    fn change(&mut self, out: &mut Told, event: &Arc<Event>) -> Result<()> {
        if !concerns(&self.prefix, &self.options, event) {
            return Ok(());
        }
        let resource = &self.shown.served.resource;
        // What most watches ask of an event they all ask: it is looked at once.
        let seen = match self.matcher.is_empty() {
            true => None,
            false => Some(self.server.sights.of(event)),
        };
        let fits = |seen: &Sight| self.matcher.fits(resource, seen);
        let is = !event.deleted && seen.as_ref().is_none_or(|it| fits(&it[0]));
        let was = event.previous.as_ref().filter(|_| seen.as_ref().is_none_or(|it| fits(&it[1])));
        let kind = match (was, is) {
            (None, true) => "ADDED",
            (Some(_), true) => "MODIFIED",
            (Some(previous), false) if !event.deleted => {
                // Who could see it as it was is not told what it has become.
                let last = read::opened_for(self.shown.accept.form, previous.clone())?.value;
                let last = insula_partition::value::with_revision(&last.bytes(), event.revision);
                return self.leaves(out.buffer(), &last);
            }
            (Some(_), false) => "DELETED",
            (None, false) => return Ok(()),
        };
        let served = self.shown.served.clone();
        let form = self.shown.accept.form;
        let text = || {
            let value = &event.entry.value;
            let text = self.server.forms.text(&served, &event.key, event.revision, value);
            match form {
                Form::PartialMetadata | Form::PartialMetadataList => {
                    text.or_else(|_| Ok(value.glance()))
                }
                Form::Object | Form::Table => text,
            }
        };
        if !self.looks_like_others() {
            let text = text()?;
            return self.event(out.buffer(), kind, &event.key, event.revision, &text);
        }
        let frame = self.server.frames.of(event, Alike::new(kind, &self.shown.accept), || {
            let text = text()?;
            let made = self.server.forms.of(&self.shown, &event.key, event.revision, &text)?;
            let mut out = BytesMut::with_capacity(made.len() + FRAME);
            frame(&mut out, self.shown.accept.encoding, kind, &made);
            Ok(out.freeze())
        })?;
        self.count(frame.len());
        out.add(frame);
        Ok(())
    }

    /// Whether an event looks to this watch as to every other one of the same form.
    fn looks_like_others(&self) -> bool {
        let served = &self.shown.served;
        // What a tenant defines may look different tomorrow at the same revision.
        let is_fixed = served.custom().is_none() || self.shown.is_stored_form();
        is_fixed
            && !served.is_converted()
            && !self.in_parts
            && self.shown.accept.form != Form::Table
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
        // As if it were a list of one.
        let revision = insula_api::object::meta_str(&object, "resourceVersion");
        let metadata = json!({ "resourceVersion": revision });
        Ok(self.shown.table(&[object], &metadata, columns).to_string().into())
    }

    fn put(&self, out: &mut BytesMut, kind: &str, made: &Bytes) {
        let before = out.len();
        frame(out, self.shown.accept.encoding, kind, made);
        self.count(out.len() - before);
    }

    /// Counts an event of so many bytes.
    fn count(&self, length: usize) {
        self.sent.0.inc();
        self.sent.1.inc_by(length as u64);
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
}

/// Whether a watch is about an object, as far as its key says.
fn concerns(prefix: &str, options: &ListOptions, event: &Event) -> bool {
    event.key.starts_with(prefix) && options.is_of_slots(&event.key)
}

/// What waits to be sent: one frame that is shared with others, or many in a row.
#[derive(Default)]
struct Told {
    one: Option<Bytes>,
    rest: BytesMut,
}

impl Told {
    fn add(&mut self, frame: Bytes) {
        match self.is_empty() {
            true => self.one = Some(frame),
            false => self.buffer().put_slice(&frame),
        }
    }

    /// Where to append.
    fn buffer(&mut self) -> &mut BytesMut {
        if let Some(one) = self.one.take() {
            self.rest.put_slice(&one);
        }
        &mut self.rest
    }

    fn len(&self) -> usize {
        self.one.as_ref().map_or(self.rest.len(), Bytes::len)
    }

    fn is_empty(&self) -> bool {
        self.one.is_none() && self.rest.is_empty()
    }

    fn take(&mut self) -> Bytes {
        self.one.take().unwrap_or_else(|| self.rest.split().freeze())
    }
}

/// The next changes of one of several partitions, and which. None is told last for ever: they are
/// asked in turn, from `first` on. Cancel safe.
pub(crate) async fn next_of(
    watchers: &mut [(Arc<str>, Watcher)],
    first: usize,
) -> (usize, Result<Vec<Arc<Event>>, StoreError>) {
    if let [(_, only)] = watchers {
        return (0, only.next().await);
    }
    let n_watchers = watchers.len();
    let mut waiting: Vec<_> =
        watchers.iter_mut().map(|(_, watcher)| Box::pin(watcher.next())).collect();
    waiting.rotate_left(first.checked_rem(n_watchers).unwrap_or(0));
    if waiting.is_empty() {
        return std::future::pending().await;
    }
    let (events, index, _) = select_all(waiting).await;
    ((first + index) % n_watchers, events)
}

/// Why a watch cannot go on, or begin.
pub(crate) fn cut_off(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { requested, oldest } => {
            ApiError::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        other => other.into(),
    }
}

/// Appends one event of a stream.
pub(crate) fn frame(out: &mut BytesMut, encoding: Encoding, kind: &str, object: &[u8]) {
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
