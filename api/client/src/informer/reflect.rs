//! The task behind an informer: lists, watches, and starts over where it must.
//!
//! A watch over one partition resumes from the version of the last event. A watch over several
//! carries versions that no single event has: it resumes from the last bookmark, and the events
//! since then come again. Those are recognised by their versions: all versions of one object are
//! of one partition. What was deleted since is remembered until its deletion has come again.
//!
//! Whoever must know that nothing is missing asks how far the server is, and then for a watch that
//! begins with a bookmark: one that is about to end does.

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
/// A watch this short begins with a bookmark, in seconds.
const SHORT: u32 = 2;
/// How long to wait before the next bookmark is asked for, if one was not enough.
const AGAIN: Duration = Duration::from_millis(20);
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
    /// Counts watches begun.
    pub(super) watch: u64,
    pub(super) deleted: Deletions,
}

/// What was deleted since the version from which the watch would resume. An event of such an
/// object up to the deletion is a replay.
pub(super) type Deletions = HashMap<ObjectKey, Deletion>;

#[derive(Debug)]
pub(super) struct Deletion {
    version: String,
    /// The last watch that told of it. Only that one's bookmarks cover it.
    watch: u64,
}

/// Whether something at version `known` is as new as `version`, of the same object.
fn is_as_new(known: &str, version: &str) -> bool {
    known == version || newer_version(known, version).is_some_and(|order| order.is_gt())
}

/// What somebody waits for.
struct Sought {
    /// Who asked up to here is answered by it.
    number: u64,
    /// How far the server was when it was asked.
    version: String,
}

/// Why a watch was left.
enum End {
    Watch,
    /// Somebody asks, or was answered.
    Asked,
}

/// Whether a copy at version `have` knows of all that there was at `target`. Versions over several
/// partitions are one number for each.
fn covers(have: &str, target: &str) -> bool {
    if let (Ok(have), Ok(target)) = (have.parse::<u64>(), target.parse::<u64>()) {
        return target <= have;
    }
    let parts = |text: &str| -> Option<Vec<(String, u64)>> {
        let part = |part: &str| {
            let (name, number) = part.split_once('=')?;
            Some((name.to_owned(), number.parse().ok()?))
        };
        text.split(',').map(part).collect()
    };
    let (Some(have), Some(target)) = (parts(have), parts(target)) else { return false };
    let has = |(name, number): &(String, u64)| {
        have.iter().any(|(known, reached)| known == name && number <= reached)
    };
    target.iter().all(has)
}

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
        let asked = *self.shared.asked.borrow();
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
                self.answer(asked);
                return Ok(version);
            }
            options.continue_token = page.continue_token;
        }
    }

    /// Watches from `version` on until only a new list can help.
    async fn follow(&mut self, mut version: String, backoff: &mut Backoff) {
        loop {
            let began = tokio::time::Instant::now();
            let sought = match self.seek().await {
                Ok(sought) => sought,
                Err(error) => {
                    self.pause(backoff, &error, "list failed").await;
                    continue;
                }
            };
            let seconds = match sought {
                Some(_) => SHORT,
                None => rand::rng().random_range(WATCH_SECONDS),
            };
            let options = WatchOptions {
                label_selector: self.label_selector.clone(),
                field_selector: self.field_selector.clone(),
                resource_version: Some(version.clone()),
                timeout_seconds: Some(seconds),
            };
            self.watch += 1;
            let outcome = match self.collection.watch(&options).await {
                Ok(watch) => self.consume(watch, &mut version, sought.as_ref()).await,
                Err(error) => Err(error),
            };
            if began.elapsed() >= HEALTHY_AFTER {
                backoff.reset();
            }
            match outcome {
                Ok(End::Asked) => (),
                Ok(End::Watch) if sought.is_some() => tokio::time::sleep(AGAIN).await,
                // Ended at once: do not spin.
                Ok(End::Watch) if began.elapsed() < HEALTHY_AFTER => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Ok(End::Watch) => (),
                Err(error) if error.is_expired() => {
                    tracing::debug!(resource = %self.collection.resource(), "version expired");
                    return;
                }
                Err(error) => self.pause(backoff, &error, "watch failed").await,
            }
        }
    }

    /// How far the copy has to come, if somebody asked.
    async fn seek(&self) -> Result<Option<Sought>, Error> {
        let number = *self.shared.asked.borrow();
        if number <= *self.shared.answered.borrow() {
            return Ok(None);
        }
        let options = ListOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            limit: Some(1),
            ..ListOptions::default()
        };
        let version = self.collection.list(&options).await?.resource_version;
        Ok(Some(Sought { number, version }))
    }

    fn answer(&self, number: u64) {
        self.shared.answered.send_if_modified(|answered| {
            let newer = *answered < number;
            *answered = number.max(*answered);
            newer
        });
    }

    /// Applies events until the watch ends, or has come as far as is sought, or somebody asks;
    /// `version` is then the one to resume from.
    async fn consume(
        &mut self,
        mut watch: Watch<K>,
        version: &mut String,
        sought: Option<&Sought>,
    ) -> Result<End, Error> {
        let mut asked = self.shared.asked.subscribe();
        let known = sought.map_or_else(|| *self.shared.answered.borrow(), |it| it.number);
        loop {
            if let Some(sought) = sought
                && covers(version, &sought.version)
            {
                self.answer(sought.number);
                return Ok(End::Asked);
            }
            let next = tokio::time::timeout(self.idle_limit, watch.next());
            let event = tokio::select! {
                event = next => event,
                // Cannot fail while `self` holds the sender.
                _ = asked.wait_for(|asked| known < *asked) => return Ok(End::Asked),
            };
            let event = match event {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) => return Ok(End::Watch),
                // One object that breaks its schema must not hide all others.
                Ok(Err(error @ Error::Decode { .. })) => {
                    let resource = self.collection.resource();
                    tracing::warn!(%resource, error = chain(&error), "event skipped");
                    continue;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    tracing::debug!(resource = %self.collection.resource(), "watch fell silent");
                    return Ok(End::Watch);
                }
            };
            let is_bookmark = matches!(event, WatchEvent::Bookmark { .. });
            self.apply(event, version);
            if let Some(sought) = sought
                && is_bookmark
                && !covers(version, &sought.version)
            {
                return Ok(End::Watch);
            }
        }
    }

    fn apply(&mut self, event: WatchEvent<K>, version: &mut String) {
        match event {
            WatchEvent::Bookmark { resource_version } => {
                if !resource_version.is_empty() {
                    *version = resource_version;
                    let watch = self.watch;
                    self.deleted.retain(|_, it| it.watch != watch);
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
        let is_past = |known: &str| is_as_new(known, object.resource_version());
        let was_deleted = self.deleted.get(&key).is_some_and(|it| is_past(&it.version));
        let is_known = || {
            let store = self.shared.store.read();
            store.get(&key).is_some_and(|old| is_past(old.resource_version()))
        };
        if !was_deleted && !is_known() {
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
        let deletion =
            Deletion { version: object.resource_version().to_owned(), watch: self.watch };
        match self.deleted.get_mut(&key) {
            // The replay of an earlier one; what was deleted last is not replayed yet.
            Some(known) if !is_as_new(&deletion.version, &known.version) => (),
            Some(known) => *known = deletion,
            None => drop(self.deleted.insert(key.clone(), deletion)),
        }
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
        let (key, old) = self.shared.store.write().put(key, object.clone(), self.round);
        for handler in handlers.iter() {
            handler(&Change { key: &key, old: old.as_ref(), new: Some(&object) });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_to_be_covered() {
        for (have, target, expected) in [
            ("7", "7", true),
            ("6", "7", false),
            ("p1=3,p2=9", "p1=3,p2=8", true),
            ("p2=9,p1=3", "p1=4,p2=8", false),
            ("p1=3", "p1=3,p2=8", false),
            ("p1=3,p2=9,p3=1", "p1=3", true),
            ("7", "p1=3", false),
            ("p1=9", "7", false),
        ] {
            assert_eq!(covers(have, target), expected, "{have} {target}");
        }
    }
}
