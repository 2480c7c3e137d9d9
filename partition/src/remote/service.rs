//! The answering end: what servers without a partition ask one that has it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, stream::BoxStream};
use tokio::sync::mpsc;

use super::wire::{Outcome, PIECE, Piece, Progress, Request, Start};
use crate::{
    fences,
    snapshot::Snapshot,
    store::{Collection, ReadAt, Revision, Store, StoreError},
    watch::{Event, Watcher},
};

/// The partition of that name, if it is on this server.
pub(crate) type Here = dyn Fn(&str) -> Option<Arc<dyn Store>> + Send + Sync;

/// Pieces that may wait for a slow reader. History is not lost with it: it is in the ring.
const AHEAD: usize = 4;

/// How often a stream without changes says how far the partition is.
const QUIET: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct RemoteService {
    here: Box<Here>,
}

impl std::fmt::Debug for RemoteService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteService").finish_non_exhaustive()
    }
}

impl RemoteService {
    pub(crate) fn new(
        here: impl Fn(&str) -> Option<Arc<dyn Store>> + Send + Sync + 'static,
    ) -> Self {
        Self { here: Box::new(here) }
    }

    /// Answers a call of a `RemoteStore`. A refusal is its text.
    pub(crate) async fn answer(&self, request: &[u8]) -> Result<Bytes, String> {
        let (partition, request) = Request::decode(request).map_err(|error| error.to_string())?;
        let Some(store) = (self.here)(partition) else {
            return Ok(Outcome::<()>::NotHere.encode());
        };
        Ok(match request {
            Request::Write(write) => Outcome::Done(store.write(write).await).encode(),
            Request::Progress { collection, have } => {
                Outcome::Done(progress(&*store, &collection, have).await).encode()
            }
            Request::Compact(revision) => Outcome::Done(store.compact(revision).await).encode(),
            Request::Raise(revision) => Outcome::Done(store.raise(revision).await).encode(),
            Request::Collections => Outcome::Done(store.collections().await).encode(),
            Request::Follow { .. } => return Err("a collection is followed by a stream".into()),
        })
    }

    /// Answers a stream of a `RemoteStore`.
    pub(crate) fn pieces(&self, request: &[u8]) -> Result<BoxStream<'static, Bytes>, String> {
        let (partition, request) = Request::decode(request).map_err(|error| error.to_string())?;
        let Request::Follow { collection, from } = request else {
            return Err("only a collection is followed by a stream".into());
        };
        let store = (self.here)(partition)
            .ok_or_else(|| format!("partition {partition} is not on this server"))?;
        let (sender, pieces) = mpsc::channel(AHEAD);
        let feed = Feed { store, collection, sender };
        // Not a task: it is polled by its reader, and ends with it.
        let work = async move {
            if let Err(error) = feed.run(from).await {
                let _ = feed.sender.send(Piece::Failed(error).encode()).await;
            }
        };
        Ok(Box::pin(Polled { work: Some(work.boxed()), pieces }))
    }
}

async fn progress(
    store: &dyn Store,
    collection: &Collection,
    have: Revision,
) -> Result<Progress, StoreError> {
    let newest = store.read(collection, ReadAt::Latest).await?.revision();
    // What is no longer known may have changed.
    let quiet = |collection: &Collection| match store.watch(collection, have) {
        Ok(mut watcher) => watcher.progress().ok().flatten(),
        Err(_) => None,
    };
    let fences = fences::collection();
    let unchanged = match (quiet(collection), quiet(&fences)) {
        (Some(one), Some(other)) if have <= newest => {
            Some(one.min(other)).filter(|quiet| newest <= *quiet)
        }
        _ => None,
    };
    Ok(Progress {
        revision: unchanged.unwrap_or(newest),
        unchanged: unchanged.is_some(),
        stats: store.stats(),
    })
}

/// A stream whose pieces are made by a future that is polled along with it.
struct Polled {
    work: Option<futures::future::BoxFuture<'static, ()>>,
    pieces: mpsc::Receiver<Bytes>,
}

impl futures::Stream for Polled {
    type Item = Bytes;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Bytes>> {
        let this = &mut *self;
        if let Some(work) = &mut this.work
            && work.as_mut().poll(context).is_ready()
        {
            this.work = None;
        }
        this.pieces.poll_recv(context)
    }
}

/// The reader is gone; nobody hears why it ended.
fn gone() -> StoreError {
    StoreError::Unavailable { reason: "the follower is gone".into(), source: None }
}

/// One stream.
struct Feed {
    store: Arc<dyn Store>,
    collection: Collection,
    sender: mpsc::Sender<Bytes>,
}

impl Feed {
    /// The collection and the partition's fences.
    fn collections(&self) -> Vec<Collection> {
        let fences = fences::collection();
        match self.collection == fences {
            true => vec![fences],
            false => vec![self.collection.clone(), fences],
        }
    }

    async fn send(&self, piece: &Piece) -> Result<(), StoreError> {
        self.sender.send(piece.encode()).await.map_err(|_| gone())
    }

    async fn run(&self, from: Start) -> Result<(), StoreError> {
        let after = match from {
            Start::After(revision) => revision,
            Start::Image(history) => self.image(history).await?,
        };
        let mut sources = Vec::new();
        for collection in self.collections() {
            let watcher = self.store.watch(&collection, after)?;
            sources.push(Source { collection, watcher, events: Vec::new(), complete: after });
        }
        let mut sent = None;
        loop {
            for source in &mut sources {
                source.gather().await?;
            }
            let complete = sources.iter().map(|source| source.complete).min().unwrap_or(after);
            if sent < Some(complete) {
                self.changes(&mut sources, complete).await?;
                sent = Some(complete);
            }
            if sources.iter().any(|source| !source.events.is_empty()) {
                continue;
            }
            let waits = sources.iter_mut().map(|source| source.wait().boxed());
            let woken = futures::future::select_all(waits);
            // A quiet collection's watchers want to know how far the partition is, too. Who needs
            // it at once asks.
            if let Ok((woken, ..)) = tokio::time::timeout(QUIET, woken).await {
                woken?;
            }
        }
    }

    /// Sends everything that is live. Returns the revision that it stands for.
    async fn image(&self, mut history: Option<Revision>) -> Result<Revision, StoreError> {
        let mut oldest = Revision(0);
        let snapshots = loop {
            let at = history.map_or(ReadAt::Any, ReadAt::Exactly);
            match self.snapshots(at).await {
                Ok(snapshots) => break snapshots,
                // Perhaps forgotten between one read and the next: then there is newer.
                Err(StoreError::Compacted { oldest: known, .. }) => {
                    oldest = known.max(oldest);
                    history = None;
                }
                // This member is behind the one that the asker has heard of.
                Err(StoreError::Future { .. }) if history.is_some() => history = None,
                Err(error) => return Err(error),
            }
        };
        let revision = snapshots[0].revision();
        self.send(&Piece::Image { revision, oldest }).await?;
        for (collection, snapshot) in self.collections().into_iter().zip(&snapshots) {
            self.entries(collection, snapshot).await?;
        }
        self.send(&Piece::Complete).await?;
        Ok(revision)
    }

    /// All collections of the stream at one revision, in their order; at least one.
    async fn snapshots(&self, at: ReadAt) -> Result<Vec<Snapshot>, StoreError> {
        let first = self.store.read(&self.collection, at).await?;
        let at = ReadAt::Exactly(first.revision());
        let mut all = vec![first];
        for collection in self.collections().iter().skip(1) {
            all.push(self.store.read(collection, at).await?);
        }
        Ok(all)
    }

    async fn entries(&self, collection: Collection, snapshot: &Snapshot) -> Result<(), StoreError> {
        let (mut entries, mut size) = (Vec::new(), 0);
        for (key, entry) in snapshot.range_of_all("", None) {
            size += key.len() + entry.value.len();
            entries.push((key.clone(), entry.clone()));
            if PIECE < size {
                let entries = std::mem::take(&mut entries);
                self.send(&Piece::Entries { collection: collection.clone(), entries }).await?;
                size = 0;
            }
        }
        match entries.is_empty() {
            true => Ok(()),
            false => self.send(&Piece::Entries { collection, entries }).await,
        }
    }

    /// Sends what was gathered up to `complete`, in the order in which it happened.
    async fn changes(&self, sources: &mut [Source], complete: Revision) -> Result<(), StoreError> {
        let mut events = Vec::new();
        for source in sources {
            let known = source.events.partition_point(|event| event.revision <= complete);
            let ready = source.events.drain(..known);
            events.extend(ready.map(|event| (source.collection.clone(), event)));
        }
        events.sort_by_key(|(_, event)| event.revision);
        let (mut part, mut size) = (Vec::new(), 0);
        let mut events = events.into_iter().peekable();
        while let Some((collection, event)) = events.next() {
            size += event.key.len() + event.entry.value.len();
            let at = event.revision;
            part.push((collection, event));
            // Changes that share a revision are one step, or a reader would see half of it.
            let next = events.peek().map(|(_, event)| event.revision);
            if PIECE < size && next.is_some_and(|next| at < next) {
                let events = std::mem::take(&mut part);
                self.send(&Piece::Changes { events, complete: at }).await?;
                size = 0;
            }
        }
        self.send(&Piece::Changes { events: part, complete }).await
    }
}

/// One of a stream's collections.
struct Source {
    collection: Collection,
    watcher: Watcher,
    /// Gathered and not sent yet.
    events: Vec<Arc<Event>>,
    /// Everything up to here was gathered or sent.
    complete: Revision,
}

impl Source {
    /// Takes what there is, without waiting.
    async fn gather(&mut self) -> Result<(), StoreError> {
        match self.watcher.progress()? {
            Some(complete) => self.complete = complete.max(self.complete),
            None => self.wait().await?,
        }
        Ok(())
    }

    /// Waits for changes.
    async fn wait(&mut self) -> Result<(), StoreError> {
        let events = self.watcher.next().await?;
        if let Some(last) = events.last() {
            self.complete = last.revision.max(self.complete);
        }
        self.events.extend(events);
        Ok(())
    }
}
