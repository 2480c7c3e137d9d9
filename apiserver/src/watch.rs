//! Watching: one stream of changes, over one partition or several.
//!
//! A watch is a task that pulls from the partitions' watchers and pushes encoded events into the
//! response body, whose buffer is small: a slow client makes its own task wait, and when the
//! history has moved past it, it gets a 410 and lists again.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use insula_partition::{
    snapshot::Entry,
    store::{ReadAt, Store, StoreError},
    watch::{Event, Watcher},
};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    Server,
    body::Sender,
    error::{ApiError, Result},
    matcher::Matcher,
    read,
    registry::{self, Served, Whose},
    request::{Form, ListOptions},
    revision::Vector,
    table::{self, IncludeObject},
};

/// How often a bookmark is sent.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A client that takes nothing for this long is gone.
const SEND_WITHIN: Duration = Duration::from_secs(60);
/// Size from which pending events are sent, in bytes.
const CHUNK: usize = 64 * 1024;

/// Everything a watch needs to run by itself.
pub(crate) struct Watch {
    server: Arc<Server>,
    served: Arc<Served>,
    matcher: Matcher,
    prefix: String,
    form: Form,
    include: IncludeObject,
    options: ListOptions,
    watchers: Vec<(String, Watcher)>,
    /// The state to send first, and the point it stands for.
    initial: Vec<Bytes>,
    at: Vector,
    sent_columns: bool,
    shutdown: CancellationToken,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The form of events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventForm {
    pub form: Form,
    pub include: IncludeObject,
}

impl Watch {
    /// Checks the options and takes its place in the history; errors are plain answers.
    pub(crate) async fn start(
        server: Arc<Server>,
        served: Arc<Served>,
        places: &[(String, Arc<dyn Store>)],
        whose: &Whose,
        namespace: &str,
        options: ListOptions,
        form: EventForm,
    ) -> Result<Self> {
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
                        let found =
                            state(&server, &served, &matcher, entries.map(|it| it.1)).await?;
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
            watchers.push((name.clone(), store.watch(&served.collection, *revision)?));
        }
        let shutdown = server.shutdown.clone();
        Ok(Self {
            server,
            served,
            matcher,
            prefix,
            form: form.form,
            include: form.include,
            options,
            watchers,
            initial,
            at: Vector(at),
            sent_columns: false,
            shutdown,
        })
    }

    /// Runs until the deadline, the client's going, or the server's end.
    pub(crate) async fn run(mut self, sender: Sender) {
        let seconds = self
            .options
            .timeout_seconds
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
        for value in std::mem::take(&mut self.initial) {
            self.event(&mut out, "ADDED", &value);
            if CHUNK < out.len() && !send(sender, out.split().freeze()).await {
                return;
            }
        }
        if self.options.initial_events == Some(true) && self.options.bookmarks {
            self.bookmark(&mut out, true);
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
                            if let Err(error) = self.show(&mut events).await {
                                let event = json!({"type": "ERROR", "object": error.status()});
                                send(sender, format!("{event}\n").into()).await;
                                return;
                            }
                            for event in &events {
                                self.change(&mut out, event);
                                self.advance(&name, event.revision);
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
                    self.bookmark(&mut out, false);
                    let again = Instant::now() + BOOKMARK_EVERY;
                    next_bookmark = if next_bookmark < last_bookmark { again.min(last_bookmark) } else { again };
                }
            }
            if !out.is_empty() && !send(sender, out.split().freeze()).await {
                return;
            }
        }
    }

    /// Has changes look as this version shows objects.
    async fn show(&self, events: &mut [Arc<Event>]) -> Result<()> {
        if !self.served.is_converted() {
            return Ok(());
        }
        for event in events.iter_mut().filter(|it| it.key.starts_with(&self.prefix)) {
            let mut shown = (**event).clone();
            let entries = [Some(&mut shown.entry), shown.previous.as_mut()];
            self.server.show(&self.served, entries.into_iter().flatten()).await?;
            *event = Arc::new(shown);
        }
        Ok(())
    }

    fn advance(&mut self, name: &str, revision: insula_partition::store::Revision) {
        if let Some((_, at)) = self.at.0.iter_mut().find(|(known, _)| known == name) {
            *at = revision.max(*at);
        }
    }

    /// Encodes one change as this watch's selectors see it.
    fn change(&mut self, out: &mut BytesMut, event: &Event) {
        if !event.key.starts_with(&self.prefix) {
            return;
        }
        let resource = &self.served.resource;
        let is = !event.deleted && self.matcher.matches(resource, &event.entry);
        let was = match &event.previous {
            Some(previous) => self.matcher.matches(resource, previous),
            None => false,
        };
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return,
        };
        self.event(out, kind, &event.entry.value);
    }

    fn event(&mut self, out: &mut BytesMut, kind: &str, value: &Bytes) {
        out.put_slice(b"{\"type\":\"");
        out.put_slice(kind.as_bytes());
        out.put_slice(b"\",\"object\":");
        match self.form {
            Form::Object => out.put_slice(value),
            form => {
                let shaped = self.shaped(form, value);
                out.put_slice(shaped.to_string().as_bytes());
            }
        }
        out.put_slice(b"}\n");
    }

    fn shaped(&mut self, form: Form, value: &Bytes) -> Value {
        let object: Value = serde_json::from_slice(value).unwrap_or_default();
        if form == Form::PartialMetadata {
            return insula_api::object::partial_metadata(&object);
        }
        let columns = !std::mem::replace(&mut self.sent_columns, true);
        let mut shaped = table::table(&self.served, &[object], self.include, &json!({}));
        if !columns {
            shaped["columnDefinitions"] = Value::Null;
        }
        shaped
    }

    fn bookmark(&mut self, out: &mut BytesMut, end_of_state: bool) {
        let mut object = json!({
            "kind": self.served.resource.kind,
            "apiVersion": self.served.resource.api_version(),
            "metadata": {"resourceVersion": self.at.to_string()},
        });
        if end_of_state {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Object => object,
            Form::PartialMetadata => insula_api::object::partial_metadata(&object),
            Form::Table => {
                let revision = json!({"resourceVersion": self.at.to_string()});
                let mut shaped = table::table(&self.served, &[object], self.include, &revision);
                shaped["columnDefinitions"] = Value::Null;
                shaped
            }
        };
        let event = json!({"type": "BOOKMARK", "object": object});
        out.put_slice(event.to_string().as_bytes());
        out.put_u8(b'\n');
    }

    fn failure(&self, out: &mut BytesMut, error: StoreError) {
        let error = match error {
            StoreError::Compacted { requested, oldest } => {
                ApiError::expired(format!("too old resource version: {requested} ({oldest})"))
            }
            other => other.into(),
        };
        let event = json!({"type": "ERROR", "object": error.status()});
        out.put_slice(event.to_string().as_bytes());
        out.put_u8(b'\n');
    }
}

/// What a watch begins with, from what is kept.
async fn state<'a>(
    server: &Server,
    served: &Served,
    matcher: &Matcher,
    kept: impl Iterator<Item = &'a Entry>,
) -> Result<Vec<Bytes>> {
    let resource = &served.resource;
    if !served.is_converted() {
        let found = kept.filter(|entry| matcher.matches(resource, entry));
        return Ok(found.map(|entry| entry.value.clone()).collect());
    }
    let mut shown: Vec<Entry> = kept.cloned().collect();
    server.show(served, shown.iter_mut()).await?;
    shown.retain(|entry| matcher.matches(resource, entry));
    Ok(shown.into_iter().map(|entry| entry.value).collect())
}

/// False if the client is gone.
async fn send(sender: &Sender, bytes: Bytes) -> bool {
    matches!(tokio::time::timeout(SEND_WITHIN, sender.send(bytes)).await, Ok(true))
}

/// The stream of a watch that asked for history that is gone: a 200 with one ERROR event.
pub(crate) fn expired_event(error: &ApiError) -> Bytes {
    let event = json!({"type": "ERROR", "object": error.status()});
    Bytes::from(format!("{event}\n"))
}
