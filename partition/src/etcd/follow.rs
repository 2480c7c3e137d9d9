//! Keeping the state in memory equal to the etcd: load once, then follow one watch for ever.
//!
//! # Invariants
//!
//! * The state's revision is never ahead of what the watch has delivered, whatever the etcd says
//!   its own is: old versions report progress before they have sent all changes up to it.
//! * After a lost connection the watch goes on where it was. Only when the etcd has compacted
//!   what was missed is everything loaded again, and watchers are sent back to their lists.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
use imbl::OrdMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    clock::Clock,
    keys::Keys,
    offsets::{Damaged, Offsets},
};
use crate::{
    error::chain,
    snapshot::Entry,
    state::{Image, State},
    store::Collection,
    text::Templates,
    value,
};

/// Objects per request while loading, at least. An etcd looks at all keys behind the first for
/// each page, so pages of small objects grow.
const PAGE: i64 = 256;

/// Objects per request at most.
const MOST: i64 = 16 * PAGE;

/// Pages with fewer bytes than this grow, and those with twice as many shrink.
const FULL: usize = 16 << 20;

/// Largest message taken: a page of the largest values.
const MAX_MESSAGE: usize = 512 << 20;

/// Changes applied under one lock.
const STEP: usize = 64;

/// How long to wait before connecting again, at first and at most.
const BACKOFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// How long an etcd may take to answer anything.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// How often the etcd is asked who leads it.
const ASK_STATUS: Duration = Duration::from_secs(10);

/// Why following stopped for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error("etcd failed")]
    Etcd(#[from] etcd_client::Error),
    #[error("etcd did not answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("etcd ended the watch: {0}")]
    Ended(String),
    #[error(transparent)]
    Damaged(#[from] Damaged),
    #[error("etcd compacted changes that were not seen yet")]
    Compacted,
    /// Not by itself ever right again.
    #[error(
        "etcd went back from revision {seen} to {now}: it was restored without raising its \
         revision; restore it with `--bump-revision --mark-compacted`, then restart this process"
    )]
    WentBack { seen: i64, now: i64 },
}

/// What is known of the etcd, for status pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    /// Why calls fail now.
    pub(super) unhealthy: Option<String>,
    pub(super) leader: String,
    /// Of its database.
    pub(super) size: Option<u64>,
}

/// See the module.
pub(super) struct Follower {
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) state: Arc<State>,
    pub(super) clock: Arc<Clock>,
    pub(super) health: Arc<Mutex<Health>>,
}

impl Follower {
    /// Follows until the task is ended.
    pub(super) async fn run(mut self) {
        let mut backoff = BACKOFF[0];
        loop {
            let begun = Instant::now();
            let Err(error) = self.follow().await;
            if let FollowError::Compacted = error {
                tracing::warn!(
                    partition = self.name,
                    "etcd compacted changes that were missed; loading everything"
                );
                match load(&self.client, &self.keys).await {
                    Ok(Loaded { image, offsets, seen }) => {
                        self.clock.set_offsets(offsets);
                        self.state.apply(|contents| contents.reset(image));
                        self.clock.advance(seen);
                        continue;
                    }
                    Err(error) => self.fail(&error),
                }
            } else {
                self.fail(&error);
            }
            if BACKOFF[1] < begun.elapsed() {
                backoff = BACKOFF[0];
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF[1]);
        }
    }

    fn fail(&self, error: &FollowError) {
        let reason = chain(error);
        let mut health = self.health.lock();
        if health.unhealthy.as_ref() != Some(&reason) {
            tracing::error!(
                partition = self.name,
                error = reason,
                "lost the etcd; connecting again"
            );
        }
        health.unhealthy = Some(reason);
    }

    async fn follow(&mut self) -> Result<std::convert::Infallible, FollowError> {
        let seen = self.clock.seen();
        let now = revision(&self.client, &self.keys).await?;
        if now < seen {
            return Err(FollowError::WentBack { seen, now });
        }
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(seen + 1)
            .with_progress_notify()
            .with_fragment();
        let mut watch = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let prefix = self.keys.prefix();
        let mut stream = tokio::time::timeout(ANSWER, watch.watch(prefix, Some(options))).await??;
        let mut ask = tokio::time::interval(ASK_STATUS);
        loop {
            tokio::select! {
                message = stream.message() => {
                    let Some(message) = message? else {
                        return Err(FollowError::Ended("the connection was closed".into()));
                    };
                    self.take(&message)?;
                }
                _ = ask.tick() => self.ask_status().await?,
            }
        }
    }

    fn take(&self, message: &WatchResponse) -> Result<(), FollowError> {
        if message.compact_revision() != 0 {
            return Err(FollowError::Compacted);
        }
        if message.canceled() {
            return Err(FollowError::Ended(message.cancel_reason().into()));
        }
        if message.created() {
            let recovered = self.health.lock().unhealthy.take().is_some();
            if recovered {
                tracing::info!(partition = self.name, "connected to the etcd again");
            }
            return Ok(());
        }
        for events in message.events().chunks(STEP) {
            let mut offsets = self.clock.offsets();
            self.state.apply(|contents| {
                for event in events {
                    let Some(kv) = event.kv() else { continue };
                    if kv.key() == self.keys.offsets().as_bytes() {
                        self.clock.set_offsets(Offsets::parse(kv.value(), kv.mod_revision())?);
                        offsets = self.clock.offsets();
                    }
                    let at = offsets.shown(kv.mod_revision());
                    match self.keys.split(kv.key()) {
                        Some((collection, key)) => match event.event_type() {
                            EventType::Put => contents.put_at(collection, key, kv.value(), at),
                            EventType::Delete => contents.delete_at(collection, key, at),
                        },
                        None => contents.advance(at),
                    }
                }
                Ok::<(), FollowError>(())
            })?;
            if let Some(last) = events.last().and_then(|event| event.kv()) {
                self.clock.advance(last.mod_revision());
            }
        }
        // Unasked, an etcd reports progress only on a watch that it has sent everything.
        if message.events().is_empty()
            && let Some(header) = message.header()
        {
            let revision = self.clock.offsets().shown(header.revision());
            self.state.apply(|contents| contents.advance(revision));
            self.clock.advance(header.revision());
        }
        Ok(())
    }

    async fn ask_status(&self) -> Result<(), FollowError> {
        let mut maintenance = self.client.maintenance_client();
        let status = tokio::time::timeout(ANSWER, maintenance.status()).await;
        // A user who may not ask is no reason to stop following.
        match status {
            Ok(Ok(status)) => {
                let mut health = self.health.lock();
                health.leader = format!("{:x}", status.leader());
                health.size = u64::try_from(status.db_size()).ok();
            }
            Ok(Err(error)) => {
                tracing::debug!(partition = self.name, %error, "etcd does not say who leads it");
            }
            Err(late) => return Err(late.into()),
        }
        Ok(())
    }
}

/// The etcd's revision, not older than the call.
pub(super) async fn revision(client: &Client, keys: &Keys) -> Result<i64, FollowError> {
    let options = GetOptions::new().with_count_only();
    let mut kv = client.kv_client();
    let answer = tokio::time::timeout(ANSWER, kv.get(keys.marker(), Some(options))).await??;
    Ok(answer.header().map_or(0, |header| header.revision()))
}

/// Everything under the prefix at one revision.
pub(super) struct Loaded {
    pub(super) image: Image,
    pub(super) offsets: Offsets,
    /// Etcd's revision of all that.
    pub(super) seen: i64,
}

pub(super) async fn load(client: &Client, keys: &Keys) -> Result<Loaded, FollowError> {
    let mut offsets = Offsets::default();
    let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
    let end = prefix_end(keys.prefix());
    let mut from = keys.prefix().as_bytes().to_vec();
    let (mut at, mut limit) = (0, PAGE);
    let mut collections: BTreeMap<Collection, OrdMap<Arc<str>, Entry>> = BTreeMap::new();
    let mut templates = Templates::new();
    loop {
        let options = GetOptions::new().with_range(end.clone()).with_limit(limit).with_revision(at);
        let page = match tokio::time::timeout(ANSWER, kv.get(from.clone(), Some(options))).await {
            Ok(Ok(page)) => page,
            // What comes next may be larger than what came before.
            _ if PAGE < limit => {
                limit = PAGE;
                continue;
            }
            Ok(Err(error)) => return Err(classify(error)),
            Err(late) => return Err(late.into()),
        };
        let size: usize = page.kvs().iter().map(|kv| kv.value().len()).sum();
        limit = match size {
            _ if size < FULL => (limit * 2).min(MOST),
            _ if 2 * FULL < size => (limit / 2).max(PAGE),
            _ => limit,
        };
        if at == 0 {
            at = page.header().map_or(0, |header| header.revision());
        }
        for kv in page.kvs() {
            // It lies before all objects.
            if kv.key() == keys.offsets().as_bytes() {
                offsets = Offsets::parse(kv.value(), kv.mod_revision())?;
            }
            if let Some((collection, key)) = keys.split(kv.key()) {
                let Entry { value, modified } = entry(kv, &offsets);
                let value = templates.keep(collection, key, value.into_bytes());
                let entries = collections.entry(Collection::of(collection)).or_default();
                entries.insert(key.into(), Entry { value, modified });
            }
        }
        match page.kvs().last() {
            Some(last) if page.more() => {
                from = last.key().to_vec();
                from.push(0);
            }
            _ => break,
        }
    }
    let collections = collections.into_iter().collect();
    let image = Image { revision: offsets.shown(at), collections };
    Ok(Loaded { image, offsets, seen: at })
}

/// A stored value as clients see it.
pub(super) fn entry(kv: &KeyValue, offsets: &Offsets) -> Entry {
    let modified = offsets.shown(kv.mod_revision());
    let value = value::own_with_revision(kv.value(), modified);
    Entry { value: value.into(), modified }
}

/// `bytes` with its last byte one higher: the end of all keys that begin with `prefix`, which
/// ends in `/`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn classify(error: etcd_client::Error) -> FollowError {
    if is_compacted(&error) { FollowError::Compacted } else { FollowError::Etcd(error) }
}

/// Whether etcd says that a revision is gone.
pub(super) fn is_compacted(error: &etcd_client::Error) -> bool {
    says(error, "required revision has been compacted")
}

/// Whether etcd's answer has `text` in its message: its errors have no finer codes.
pub(super) fn says(error: &etcd_client::Error, text: &str) -> bool {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message().contains(text),
        _ => false,
    }
}
