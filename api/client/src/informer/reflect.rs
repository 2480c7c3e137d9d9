//! The task behind an informer: lists, watches, and starts over where it must.
//!
//! A watch over one partition resumes from the version of the last event. A watch over several
//! carries versions that no single event has: it resumes from the last bookmark, and the events
//! since then come again. Those are recognised by their versions: all versions of one object are
//! of one partition. What was deleted since is remembered until its deletion has come again.
//!
//! Of all tenants it may be some slots' only, and these may change ([`Signals::wanted`]). What is
//! not wanted any more goes at once. What is wanted anew is listed while the watch of the rest goes
//! on; then all is watched together, from the older of both versions on, and what comes again is
//! recognised as ever. An object of a new slot that was deleted in between may so be there for a
//! moment.
//!
//! Whoever must know that nothing is missing asks how far the server is, and then for a watch that
//! begins with a bookmark: one that is about to end does.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use insula_api::slots::Slots;
use rand::Rng;

use super::{
    Signals,
    copied::{Copied, Known},
};
use crate::{
    Backoff, Collection, Error, Follow, ListOptions, ObjectKey, WatchOptions, api::WireList, chain,
    watch::Line,
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

pub(super) struct Reflector {
    pub(super) collection: Collection<()>,
    /// How a list and a watch of it are asked for.
    pub(super) accept_list: &'static str,
    pub(super) accept: &'static str,
    pub(super) label_selector: Option<String>,
    pub(super) field_selector: Option<String>,
    pub(super) idle_limit: Duration,
    pub(super) copied: Arc<dyn Copied>,
    pub(super) signals: Arc<Signals>,
    pub(super) known: Known,
    /// The list of the slots that the copy is to show, too.
    pub(super) gain: Option<Listing>,
    /// Objects of slots that it is to show no longer, and does yet.
    pub(super) losing: Vec<ObjectKey>,
}

/// A list under way, of some slots.
pub(super) struct Listing {
    slots: Slots,
    options: ListOptions,
    /// That of the first page.
    version: Option<String>,
    page: NextPage,
    backoff: Backoff,
}

/// A page that has been asked for.
type NextPage = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

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

impl Reflector {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
        loop {
            self.idle().await;
            if let Err(error) = self.relist().await {
                self.pause(&mut backoff, &error, "list failed").await;
                continue;
            }
            self.signals.synced.send_replace(true);
            match self.follow(&mut backoff).await {
                // The list that answers an expired version must not become a loop of its own.
                Lost::Expired => tokio::time::sleep(backoff.next_delay()).await,
                Lost::Slots => (),
            }
        }
    }

    /// As long as no slot is wanted there is nothing to ask for, and nothing that is not known.
    async fn idle(&mut self) {
        let (mut wanted, mut asked) =
            (self.signals.wanted.subscribe(), self.signals.asked.subscribe());
        loop {
            // In this order: who asks has selected before.
            let number = *asked.borrow_and_update();
            if !wanted.borrow_and_update().is_none() {
                return;
            }
            self.narrow(&Slots::none());
            self.drop_lost().await;
            self.signals.synced.send_replace(true);
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
        let shown = gaining.iter().fold(self.known.held.clone(), |held, it| held.with(&it.slots));
        let lost = shown.without(wanted);
        if lost.is_none() {
            return;
        }
        self.known.held = std::mem::replace(&mut self.known.held, Slots::none()).without(&lost);
        self.losing = self.copied.outside(wanted);
    }

    /// Drops some of what is not wanted any more; says whether that was the last of it.
    fn drop_some(&mut self) -> bool {
        for _ in 0..DROPPED_AT_ONCE {
            let Some(key) = self.losing.pop() else { return true };
            self.copied.forget(&key);
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
    fn listing(&mut self, slots: Slots) -> Listing {
        self.known.round += 1;
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

    fn page(&self, options: &ListOptions, delay: Duration) -> NextPage {
        let (collection, accept) = (self.collection.clone(), self.accept_list);
        let options = options.clone();
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            collection.list_text(&options, accept).await
        })
    }

    /// Shows a page of a list. After the last one the copy shows these slots as they were at the
    /// version that is returned.
    fn listed(
        &mut self,
        listing: &mut Listing,
        page: Result<Bytes, Error>,
    ) -> Result<Option<String>, Error> {
        let page = match page {
            // Slower than the server keeps the state: take everything in one answer.
            Err(error) if error.is_expired() && listing.options.continue_token.is_some() => {
                listing.options.continue_token = None;
                listing.options.limit = None;
                listing.version = None;
                listing.page = self.page(&listing.options, Duration::ZERO);
                self.known.round += 1;
                return Ok(None);
            }
            other => other?,
        };
        let page = WireList::read(&page, &self.collection)?;
        // Pages are of one version; should a server not keep to that, the first is safe.
        let version = listing.version.get_or_insert_with(|| page.version().to_owned()).clone();
        for item in page.items.iter().flatten() {
            // One object that breaks its schema must not hide all others.
            let shown = self.copied.listed(item.get(), &listing.slots, self.known.round);
            if let Err(error) = shown {
                let resource = self.collection.resource();
                tracing::warn!(%resource, %error, "object left out of a list");
            }
        }
        let Some(token) = page.continue_token() else {
            for key in self.copied.unseen(self.known.round, &listing.slots) {
                self.copied.forget(&key);
            }
            return Ok(Some(version));
        };
        listing.options.continue_token = Some(token.to_owned());
        listing.page = self.page(&listing.options, Duration::ZERO);
        Ok(None)
    }

    /// Goes on with the list of what is wanted anew; says whether that is there now.
    fn gained(&mut self, page: Result<Bytes, Error>) -> bool {
        let Some(mut gain) = self.gain.take() else { return false };
        match self.listed(&mut gain, page) {
            Ok(Some(listed)) => {
                self.known.version = older(&self.known.version, &listed);
                self.known.held =
                    std::mem::replace(&mut self.known.held, Slots::none()).with(&gain.slots);
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

    /// Brings the copy to the newest state.
    async fn relist(&mut self) -> Result<(), Error> {
        let asked = *self.signals.asked.borrow();
        let wanted = self.signals.wanted.borrow().clone();
        self.narrow(&wanted);
        self.drop_lost().await;
        self.gain = None;
        self.known.held.clone_from(&wanted);
        let mut listing = self.listing(wanted);
        loop {
            let page = (&mut listing.page).await;
            if let Some(version) = self.listed(&mut listing, page)? {
                self.known.listed(version);
                self.answer(asked);
                return Ok(());
            }
        }
    }

    /// Watches until only a new list can help.
    async fn follow(&mut self, backoff: &mut Backoff) -> Lost {
        loop {
            let wanted = self.signals.wanted.borrow().clone();
            self.narrow(&wanted);
            if self.known.held.is_none() {
                return Lost::Slots;
            }
            let gained = wanted.clone().without(&self.known.held);
            let is_new = |known: &Listing| known.slots != gained;
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
                resource_version: Some(self.known.version.clone()),
                timeout_seconds: Some(seconds),
                slots: asked_as(&self.known.held),
            };
            self.known.watch += 1;
            let outcome = match self.collection.watch_text(&options, self.accept).await {
                Ok(lines) => self.consume(lines, &wanted, sought.as_ref()).await,
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
        let number = *self.signals.asked.borrow();
        let is_whole = self.is_whole() && *self.signals.wanted.borrow() == self.known.held;
        if number <= *self.signals.answered.borrow() || !is_whole {
            return Ok(None);
        }
        let options = ListOptions {
            label_selector: self.label_selector.clone(),
            field_selector: self.field_selector.clone(),
            limit: Some(1),
            slots: asked_as(&self.known.held),
            ..ListOptions::default()
        };
        let answer = self.collection.list_text(&options, self.accept_list).await?;
        let version = WireList::read(&answer, &self.collection)?.version().to_owned();
        Ok(Some(Sought { number, version }))
    }

    /// Whether it shows the slots that it is of, and no others.
    fn is_whole(&self) -> bool {
        self.gain.is_none() && self.losing.is_empty()
    }

    fn answer(&self, number: u64) {
        self.signals.answered.send_if_modified(|answered| {
            let newer = *answered < number;
            *answered = number.max(*answered);
            newer
        });
    }

    /// Applies events until the watch ends, or has come as far as is sought, or somebody asks, or
    /// other slots are to be watched.
    async fn consume(
        &mut self,
        mut lines: Follow,
        chosen: &Slots,
        sought: Option<&Sought>,
    ) -> Result<End, Error> {
        let (mut asked, mut wanted) =
            (self.signals.asked.subscribe(), self.signals.wanted.subscribe());
        let known = sought.map_or_else(|| *self.signals.answered.borrow(), |it| it.number);
        loop {
            if let Some(sought) = sought
                && covers(&self.known.version, &sought.version)
            {
                self.answer(sought.number);
                return Ok(End::Asked);
            }
            let next = tokio::time::timeout(self.idle_limit, lines.next());
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
                Happens::Page(page) => match self.gained(page) {
                    true => return Ok(End::Asked),
                    false => continue,
                },
                Happens::Time => {
                    self.drop_some();
                    continue;
                }
                Happens::Asked => return Ok(End::Asked),
            };
            let line = match event {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) => return Ok(End::Watch),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    tracing::debug!(resource = %self.collection.resource(), "watch fell silent");
                    return Ok(End::Watch);
                }
            };
            match self.apply(&line, &lines) {
                Ok(is_bookmark) => {
                    if let Some(sought) = sought
                        && is_bookmark
                        && !covers(&self.known.version, &sought.version)
                    {
                        return Ok(End::Watch);
                    }
                }
                // One object that breaks its schema must not hide all others.
                Err(error @ Error::Decode { .. }) => {
                    let resource = self.collection.resource();
                    tracing::warn!(%resource, error = chain(&error), "event skipped");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Shows what a line of a watch says; says whether that was a bookmark.
    fn apply(&mut self, line: &[u8], of: &Follow) -> Result<bool, Error> {
        self.known.is_gaining = self.gain.is_some();
        let shown = match Line::read(line, of)? {
            Line::Bookmark { resource_version } => {
                self.known.bookmark(resource_version);
                return Ok(true);
            }
            Line::Added(text) | Line::Modified(text) => self.copied.changed(text, &mut self.known),
            Line::Deleted(text) => self.copied.deleted(text, &mut self.known),
        };
        shown.map_err(|source| of.undecoded(source)).map(|()| false)
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
