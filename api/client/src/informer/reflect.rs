//! The task behind an informer: lists, watches, and starts over where it must.
//!
//! A watch over one partition resumes from the version of the last event. A watch over several
//! carries versions that no single event has: it resumes from the last bookmark, and the events
//! since then come again. Those are recognised by uid and version.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::Rng;

use super::{Change, Shared, Trim};
use crate::{
    Backoff, Collection, Error, ListOptions, Object, ObjectKey, Tenanted, Watch, WatchEvent,
    WatchOptions, chain, newer_version,
};

/// Servers send bookmarks about once a minute: silence for twice that is a dead connection.
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(130);
/// The objects of one page.
const PAGE: u32 = 500;
/// How long the server is asked to keep a watch, in seconds. Spread, so that many watches begun
/// together do not end together.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;
/// A watch that lasted this long shows that the server is well.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);
/// Deletions remembered to recognise their replay; forgotten all at once beyond.
const MAX_DELETIONS: usize = 65_536;

pub(super) struct Reflector<K> {
    pub(super) collection: Collection<K>,
    pub(super) label_selector: Option<String>,
    pub(super) field_selector: Option<String>,
    pub(super) trim: Option<Trim<K>>,
    pub(super) idle_limit: Duration,
    pub(super) shared: Arc<Shared<K>>,
    /// Counts lists begun. Objects that the newest did not show are gone.
    pub(super) round: u64,
    pub(super) deleted: Deletions,
}

/// What was deleted since the version from which the watch would resume: uid and version of the
/// deletion, by key. An event of such an object up to that version is a replay.
pub(super) type Deletions = HashMap<ObjectKey, (String, String)>;

impl<K: Object> Reflector<K> {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        loop {
            let version = match self.relist().await {
                Ok(version) => version,
                Err(error) => {
                    self.pause(&mut backoff, &error, "list failed").await;
                    continue;
                }
            };
            self.shared.synced.send_replace(true);
            self.follow(version, &mut backoff).await;
            // The list that answers an expired version must not become a loop of its own.
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn pause(&self, backoff: &mut Backoff, error: &Error, what: &str) {
        let delay = backoff.next_delay();
        let resource = self.collection.resource();
        // The end of one connection is no news; a server that stays away is.
        if delay < Duration::from_secs(2) {
            tracing::debug!(%resource, ?delay, error = chain(error), "{what}");
        } else {
            tracing::warn!(%resource, ?delay, error = chain(error), "{what}");
        }
        tokio::time::sleep(delay).await;
    }

    /// Brings the copy to the newest state; returns its version.
    async fn relist(&mut self) -> Result<String, Error> {
        let mut options = ListOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            limit: Some(PAGE),
            ..ListOptions::default()
        };
        let mut first_version = None;
        self.round += 1;
        loop {
            let page = match self.collection.list(&options).await {
                // Slower than the server keeps the state: take everything in one answer.
                Err(error) if error.is_expired() && options.continue_token.is_some() => {
                    options.continue_token = None;
                    options.limit = None;
                    first_version = None;
                    self.round += 1;
                    continue;
                }
                other => other?,
            };
            // Pages are of one version; should a server not keep to that, the first is safe.
            let version = first_version.get_or_insert(page.resource_version).clone();
            for object in page.items {
                self.show_listed(object);
            }
            if page.continue_token.is_none() {
                self.forget_unseen();
                self.deleted.clear();
                return Ok(version);
            }
            options.continue_token = page.continue_token;
        }
    }

    /// Watches from `version` on until only a new list can help.
    async fn follow(&mut self, mut version: String, backoff: &mut Backoff) {
        loop {
            let began = tokio::time::Instant::now();
            let options = WatchOptions {
                label_selector: self.label_selector.clone(),
                field_selector: self.field_selector.clone(),
                resource_version: Some(version.clone()),
                timeout_seconds: Some(rand::rng().random_range(WATCH_SECONDS)),
            };
            let outcome = match self.collection.watch(&options).await {
                Ok(watch) => self.consume(watch, &mut version).await,
                Err(error) => Err(error),
            };
            if began.elapsed() >= HEALTHY_AFTER {
                backoff.reset();
            }
            match outcome {
                // Ended at once: do not spin.
                Ok(()) if began.elapsed() < HEALTHY_AFTER => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Ok(()) => (),
                Err(error) if error.is_expired() => {
                    tracing::debug!(resource = %self.collection.resource(), "version expired");
                    return;
                }
                Err(error) => self.pause(backoff, &error, "watch failed").await,
            }
        }
    }

    /// Applies events until the watch ends; `version` is then the one to resume from.
    async fn consume(&mut self, mut watch: Watch<K>, version: &mut String) -> Result<(), Error> {
        loop {
            let event = match tokio::time::timeout(self.idle_limit, watch.next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Ok(()),
                // One object that breaks its schema must not hide all others.
                Ok(Err(error @ Error::Decode { .. })) => {
                    let resource = self.collection.resource();
                    tracing::warn!(%resource, error = chain(&error), "event skipped");
                    continue;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    tracing::debug!(resource = %self.collection.resource(), "watch fell silent");
                    return Ok(());
                }
            };
            self.apply(event, version);
        }
    }

    fn apply(&mut self, event: WatchEvent<K>, version: &mut String) {
        match event {
            WatchEvent::Bookmark { resource_version } => {
                if !resource_version.is_empty() {
                    *version = resource_version;
                    self.deleted.clear();
                }
            }
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.advance(version, object.resource_version());
                self.show_changed(object);
            }
            WatchEvent::Deleted(object) => {
                self.advance(version, object.resource_version());
                self.show_deleted(object);
            }
        }
    }

    /// Notes the version of an event, if versions here are those of single objects.
    fn advance(&mut self, version: &mut String, reached: &str) {
        if newer_version(reached, version).is_some_and(|order| order.is_gt()) {
            reached.clone_into(version);
            self.deleted.clear();
        }
    }

    fn show_listed(&self, object: Tenanted<K>) {
        let key = object.key();
        let known = self.shared.store.read().get(&key).is_some_and(|old| {
            old.uid() == object.uid() && old.resource_version() == object.resource_version()
        });
        if known {
            self.shared.store.write().touch(&key, self.round);
        } else {
            self.put(&key, object);
        }
    }

    fn show_changed(&self, object: Tenanted<K>) {
        let key = object.key();
        let is_replay_of = |uid: &str, version: &str| {
            uid == object.uid()
                && (version == object.resource_version()
                    || newer_version(version, object.resource_version())
                        .is_some_and(|it| it.is_gt()))
        };
        if let Some((uid, version)) = self.deleted.get(&key)
            && is_replay_of(uid, version)
        {
            return;
        }
        let replayed = self
            .shared
            .store
            .read()
            .get(&key)
            .is_some_and(|old| is_replay_of(old.uid(), old.resource_version()));
        if !replayed {
            self.put(&key, object);
        }
    }

    fn show_deleted(&mut self, object: Tenanted<K>) {
        let key = object.key();
        let other_incarnation =
            self.shared.store.read().get(&key).is_some_and(|old| old.uid() != object.uid());
        if self.deleted.len() >= MAX_DELETIONS {
            self.deleted.clear();
        }
        let memory = (object.uid().to_owned(), object.resource_version().to_owned());
        self.deleted.insert(key.clone(), memory);
        // Deleted long ago, and created anew since: a replay.
        if !other_incarnation {
            self.remove(&key, Some(self.trimmed(object)));
        }
    }

    fn forget_unseen(&self) {
        let unseen = self.shared.store.read().unseen(self.round);
        for key in unseen {
            self.remove(&key, None);
        }
    }

    fn trimmed(&self, mut object: Tenanted<K>) -> Arc<Tenanted<K>> {
        object.object.meta_mut().managed_fields = None;
        if let Some(trim) = &self.trim {
            trim(&mut object.object);
        }
        Arc::new(object)
    }

    fn put(&self, key: &ObjectKey, object: Tenanted<K>) {
        let object = self.trimmed(object);
        let handlers = self.shared.handlers.lock();
        let old = self.shared.store.write().put(key, object.clone(), self.round);
        for handler in handlers.iter() {
            handler(&Change { key, old: old.as_ref(), new: Some(&object) });
        }
    }

    /// `last` is the object's last state, where the server told it.
    fn remove(&self, key: &ObjectKey, last: Option<Arc<Tenanted<K>>>) {
        let handlers = self.shared.handlers.lock();
        let Some(known) = self.shared.store.write().remove(key) else {
            return;
        };
        let old = last.unwrap_or(known);
        for handler in handlers.iter() {
            handler(&Change { key, old: Some(&old), new: None });
        }
    }
}
