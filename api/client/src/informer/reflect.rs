//! The task behind an informer: lists, watches, and starts over where it must.
//!
//! A watch over one partition resumes from the version of the last event. A watch over several
//! carries versions that no single event has: it resumes from the last bookmark, and the events
//! since then come again. Those are recognised by their versions: all versions of one object are
//! of one partition. What was deleted since is remembered until its deletion has come again.
//!
//! Of all tenants it may be some slots' only, and these may change ([`Shared::wanted`]). What is
//! not wanted any more goes at once. What is wanted anew is listed while the watch of the rest goes
//! on; then all is watched together, from the older of both versions on, and what comes again is
//! recognised as ever. An object of a new slot that was deleted in between may so be there for a
//! moment.
//!
//! Whoever must know that nothing is missing asks how far the server is, and then for a watch that
//! begins with a bookmark: one that is about to end does.

use std::{
    collections::HashMap,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use insula_api::slots::Slots;
use rand::Rng;

use super::{Change, Shared, Trim};
use crate::{
    Backoff, Collection, Error, ListOptions, Object, ObjectKey, Page, Tenanted, Watch, WatchEvent,
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
/// Objects that are dropped before it is looked whether anything happened.
const DROPPED_AT_ONCE: usize = 64;
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
    /// The slots that the copy shows.
    pub(super) held: Slots,
    /// The list of those that it is to show, too.
    pub(super) gain: Option<Listing<K>>,
    /// Objects of slots that it is to show no longer, and does yet.
    pub(super) losing: Vec<ObjectKey>,
}

/// A list under way, of some slots.
pub(super) struct Listing<K> {
    slots: Slots,
    options: ListOptions,
    /// That of the first page.
    version: Option<String>,
    page: NextPage<K>,
    backoff: Backoff,
}

/// A page that has been asked for.
type NextPage<K> = Pin<Box<dyn Future<Output = Result<Page<K>, Error>> + Send>>;

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
    /// Somebody asks, or was answered; or other slots are to be watched.
    Asked,
}

/// Why following was given up.
enum Lost {
    /// The version to go on from is too old.
    Expired,
    /// Nothing of what was followed is wanted any more.
    Slots,
}

/// What happens first.
enum Happens<E, P> {
    Event(E),
    Page(P),
    /// Nothing else: there is time to drop something.
    Time,
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

/// The older of two versions: what is as old as it has to be in each partition.
fn older(one: &str, other: &str) -> String {
    if let (Ok(left), Ok(right)) = (one.parse::<u64>(), other.parse::<u64>()) {
        return left.min(right).to_string();
    }
    let of_other = |name: &str| -> Option<u64> {
        let parts = other.split(',').filter_map(|part| part.split_once('='));
        parts.into_iter().find(|(known, _)| *known == name)?.1.parse().ok()
    };
    let part = |part: &str| {
        let (name, number) = part.split_once('=')?;
        let number: u64 = number.parse().ok()?;
        Some(format!("{name}={}", of_other(name).map_or(number, |it| it.min(number))))
    };
    let parts: Option<Vec<_>> = one.split(',').map(part).collect();
    // What cannot be compared the server may judge.
    parts.map_or_else(|| one.to_owned(), |parts| parts.join(","))
}

/// How slots are asked for: all of them need no words.
fn asked_as(slots: &Slots) -> Option<Slots> {
    (!slots.is_all()).then(|| slots.clone())
}

impl<K: Object> Reflector<K> {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        loop {
            self.idle().await;
            let version = match self.relist().await {
                Ok(version) => version,
                Err(error) => {
                    self.pause(&mut backoff, &error, "list failed").await;
                    continue;
                }
            };
            self.shared.synced.send_replace(true);
            match self.follow(version, &mut backoff).await {
                // The list that answers an expired version must not become a loop of its own.
                Lost::Expired => tokio::time::sleep(backoff.next_delay()).await,
                Lost::Slots => (),
            }
        }
    }

    /// As long as no slot is wanted there is nothing to ask for, and nothing that is not known.
    async fn idle(&mut self) {
        let (mut wanted, mut asked) =
            (self.shared.wanted.subscribe(), self.shared.asked.subscribe());
        loop {
            // In this order: who asks has selected before.
            let number = *asked.borrow_and_update();
            if !wanted.borrow_and_update().is_none() {
                return;
            }
            self.narrow(&Slots::none());
            self.drop_lost().await;
            self.shared.synced.send_replace(true);
            self.answer(number);
            // Neither can fail while `self` holds the senders.
            tokio::select! {
                _ = wanted.changed() => (),
                _ = asked.changed() => (),
            }
        }
    }

    /// Begins to drop what is not wanted any more.
    fn narrow(&mut self, wanted: &Slots) {
        let gaining = self.gain.take_if(|it| !it.slots.clone().without(wanted).is_none());
        let shown = gaining.iter().fold(self.held.clone(), |held, it| held.with(&it.slots));
        let lost = shown.without(wanted);
        if lost.is_none() {
            return;
        }
        self.held = std::mem::replace(&mut self.held, Slots::none()).without(&lost);
        let store = self.shared.store.read();
        self.losing =
            store.keys().filter(|key| !wanted.has_tenant(key.tenant.as_str())).cloned().collect();
    }

    /// Drops some of what is not wanted any more; says whether that was the last of it.
    fn drop_some(&mut self) -> bool {
        for _ in 0..DROPPED_AT_ONCE {
            let Some(key) = self.losing.pop() else { return true };
            self.remove(&key, None);
        }
        self.losing.is_empty()
    }

    /// Drops all that is not wanted any more, before some of it is listed anew.
    async fn drop_lost(&mut self) {
        while !self.drop_some() {
            tokio::task::yield_now().await;
        }
    }

    /// Begins to list the objects of some slots.
    fn listing(&mut self, slots: Slots) -> Listing<K> {
        self.round += 1;
        let options = ListOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            limit: Some(PAGE),
            slots: asked_as(&slots),
            ..ListOptions::default()
        };
        let page = self.page(&options, Duration::ZERO);
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        Listing { slots, options, version: None, page, backoff }
    }

    fn page(&self, options: &ListOptions, delay: Duration) -> NextPage<K> {
        let (collection, options) = (self.collection.clone(), options.clone());
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            collection.list(&options).await
        })
    }

    /// Shows a page of a list. After the last one the copy shows these slots as they were at the
    /// version that is returned.
    fn listed(
        &mut self,
        listing: &mut Listing<K>,
        page: Result<Page<K>, Error>,
    ) -> Result<Option<String>, Error> {
        let page = match page {
            // Slower than the server keeps the state: take everything in one answer.
            Err(error) if error.is_expired() && listing.options.continue_token.is_some() => {
                listing.options.continue_token = None;
                listing.options.limit = None;
                listing.version = None;
                listing.page = self.page(&listing.options, Duration::ZERO);
                self.round += 1;
                return Ok(None);
            }
            other => other?,
        };
        // Pages are of one version; should a server not keep to that, the first is safe.
        let version = listing.version.get_or_insert(page.resource_version).clone();
        for object in page.items {
            // A server that does not know of slots tells of all.
            if listing.slots.has_tenant(object.tenant.as_str()) {
                self.show_listed(object);
            }
        }
        if page.continue_token.is_none() {
            self.forget_unseen(&listing.slots);
            return Ok(Some(version));
        }
        listing.options.continue_token = page.continue_token;
        listing.page = self.page(&listing.options, Duration::ZERO);
        Ok(None)
    }

    /// Goes on with the list of what is wanted anew; says whether that is there now, and watches
    /// begin at `version` from then on.
    fn gained(&mut self, page: Result<Page<K>, Error>, version: &mut String) -> bool {
        let Some(mut gain) = self.gain.take() else { return false };
        match self.listed(&mut gain, page) {
            Ok(Some(listed)) => {
                *version = older(version, &listed);
                self.held = std::mem::replace(&mut self.held, Slots::none()).with(&gain.slots);
                return true;
            }
            Ok(None) => (),
            Err(error) => {
                let delay = gain.backoff.next_delay();
                let resource = self.collection.resource();
                tracing::debug!(%resource, ?delay, error = chain(&error), "list failed");
                gain.page = self.page(&gain.options, delay);
            }
        }
        self.gain = Some(gain);
        false
    }

    async fn pause(&mut self, backoff: &mut Backoff, error: &Error, what: &str) {
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
        let wanted = self.shared.wanted.borrow().clone();
        self.narrow(&wanted);
        self.drop_lost().await;
        self.gain = None;
        self.held.clone_from(&wanted);
        let mut listing = self.listing(wanted);
        loop {
            let page = (&mut listing.page).await;
            if let Some(version) = self.listed(&mut listing, page)? {
                self.deleted.clear();
                self.answer(asked);
                return Ok(version);
            }
        }
    }

    /// Watches from `version` on until only a new list can help.
    async fn follow(&mut self, mut version: String, backoff: &mut Backoff) -> Lost {
        loop {
            let wanted = self.shared.wanted.borrow().clone();
            self.narrow(&wanted);
            if self.held.is_none() {
                return Lost::Slots;
            }
            let gained = wanted.clone().without(&self.held);
            let is_new = |known: &Listing<K>| known.slots != gained;
            if !gained.is_none() && self.gain.as_ref().is_none_or(is_new) {
                self.drop_lost().await;
                self.gain = Some(self.listing(gained));
            }
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
                slots: asked_as(&self.held),
            };
            self.watch += 1;
            let outcome = match self.collection.watch(&options).await {
                Ok(watch) => self.consume(watch, &mut version, &wanted, sought.as_ref()).await,
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
                    return Lost::Expired;
                }
                Err(error) => self.pause(backoff, &error, "watch failed").await,
            }
        }
    }

    /// How far the copy has to come, if somebody asked.
    async fn seek(&mut self) -> Result<Option<Sought>, Error> {
        let number = *self.shared.asked.borrow();
        let is_whole = self.is_whole() && *self.shared.wanted.borrow() == self.held;
        if number <= *self.shared.answered.borrow() || !is_whole {
            return Ok(None);
        }
        let options = ListOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            limit: Some(1),
            slots: asked_as(&self.held),
            ..ListOptions::default()
        };
        let version = self.collection.list(&options).await?.resource_version;
        Ok(Some(Sought { number, version }))
    }

    /// Whether it shows the slots that it is of, and no others.
    fn is_whole(&self) -> bool {
        self.gain.is_none() && self.losing.is_empty()
    }

    fn answer(&self, number: u64) {
        self.shared.answered.send_if_modified(|answered| {
            let newer = *answered < number;
            *answered = number.max(*answered);
            newer
        });
    }

    /// Applies events until the watch ends, or has come as far as is sought, or somebody asks, or
    /// other slots are to be watched; `version` is then the one to resume from.
    async fn consume(
        &mut self,
        mut watch: Watch<K>,
        version: &mut String,
        chosen: &Slots,
        sought: Option<&Sought>,
    ) -> Result<End, Error> {
        let (mut asked, mut wanted) =
            (self.shared.asked.subscribe(), self.shared.wanted.subscribe());
        let known = sought.map_or_else(|| *self.shared.answered.borrow(), |it| it.number);
        loop {
            if let Some(sought) = sought
                && covers(version, &sought.version)
            {
                self.answer(sought.number);
                return Ok(End::Asked);
            }
            let next = tokio::time::timeout(self.idle_limit, watch.next());
            let (is_whole, is_losing) = (self.is_whole(), !self.losing.is_empty());
            let gain = self.gain.as_mut();
            let page = async {
                match gain {
                    Some(gain) => (&mut gain.page).await,
                    None => pending().await,
                }
            };
            let happens = tokio::select! {
                event = next => Happens::Event(event),
                page = page => Happens::Page(page),
                () = tokio::task::yield_now(), if is_losing => Happens::Time,
                // Neither can fail while `self` holds the senders.
                _ = asked.wait_for(|asked| known < *asked), if is_whole => Happens::Asked,
                _ = wanted.wait_for(|wanted| wanted != chosen) => Happens::Asked,
            };
            let event = match happens {
                Happens::Event(event) => event,
                Happens::Page(page) => match self.gained(page, version) {
                    true => return Ok(End::Asked),
                    false => continue,
                },
                Happens::Time => {
                    self.drop_some();
                    continue;
                }
                Happens::Asked => return Ok(End::Asked),
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
                    if self.gain.is_none() {
                        self.deleted.retain(|_, it| it.watch != watch);
                    }
                }
            }
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.advance(version, object.resource_version());
                if self.held.has_tenant(object.tenant.as_str()) {
                    self.show_changed(object);
                }
            }
            WatchEvent::Deleted(object) => {
                self.advance(version, object.resource_version());
                if self.held.has_tenant(object.tenant.as_str()) {
                    self.show_deleted(object);
                }
            }
        }
    }

    /// Notes the version of an event, if versions here are those of single objects.
    fn advance(&mut self, version: &mut String, reached: &str) {
        if newer_version(reached, version).is_some_and(|order| order.is_gt()) {
            reached.clone_into(version);
            // After a list beside the watch it begins where that was made, perhaps further back.
            if self.gain.is_none() {
                self.deleted.retain(|_, it| !is_as_new(reached, &it.version));
            }
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
        let is_newer = |known: &str| {
            newer_version(known, object.resource_version()).is_some_and(|it| it.is_gt())
        };
        let is_past = self
            .shared
            .store
            .read()
            .get(&key)
            .is_some_and(|old| old.uid() != object.uid() || is_newer(old.resource_version()));
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
        // Deleted long ago, and created anew since, or chosen by a selector anew: a replay.
        if !is_past {
            self.remove(&key, Some(self.trimmed(object)));
        }
    }

    fn forget_unseen(&self, slots: &Slots) {
        let unseen = self.shared.store.read().unseen(self.round, slots);
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
    fn the_older_version_is_so_in_every_partition() {
        for (one, other, expected) in [
            ("7", "9", "7"),
            ("9", "7", "7"),
            ("p1=3,p2=9", "p1=4,p2=8", "p1=3,p2=8"),
            ("p1=3,p2=9", "p2=8", "p1=3,p2=8"),
            ("p1=3", "p1=5,p2=8", "p1=3"),
            ("p1=3", "7", "p1=3"),
        ] {
            assert_eq!(older(one, other), expected, "{one} {other}");
        }
    }

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
