//! What one tenant uses of this server at the moment, counted without a lock.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use insula_api::names::TenantName;
use parking_lot::RwLock;
use xxhash_rust::xxh3::xxh3_64;

use super::{config::Known, used::Used};
use crate::quota::Rates;

/// The weight of a tenant of which nothing else is said.
pub(super) const WEIGHT: u32 = 100;
/// A tenant that uses less than this part of the machine never waits for its turn.
const PART: u64 = 8;
/// It may have used that much before, of wall time.
const BURST: u64 = 10_000_000;
/// Tenants are found by hash in one of so many maps, each with a lock of its own.
const SHARDS: usize = 64;
/// Whoever asked nothing for so long is forgotten.
const KEPT: Duration = Duration::from_secs(600);
/// How many collections' sizes are remembered; one that falls on another's place takes it.
const SIZES: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Account {
    pub(super) id: u64,
    pub(super) weight: AtomicU32,
    /// Until when, in nanoseconds since the line began, what it used is what it may use.
    used_until: AtomicU64,
    /// Virtual time at which its turns so far are over. Changed by the line alone.
    pub(super) finish: AtomicU64,
    /// Requests that are under way and will end.
    under_way: AtomicU32,
    /// How many there may be, if somebody says so; else [`u32::MAX`].
    most_under_way: AtomicU32,
    /// Requests that go on: watches and streams.
    lasting: AtomicU32,
    most_lasting: AtomicU32,
    /// Requests that are at other servers.
    sent_on: AtomicU32,
    /// Requests that no level bounds.
    exempt: AtomicU32,
    /// Bytes of long answers that are being read.
    pub(crate) held: AtomicUsize,
    /// What it used until now.
    pub(crate) used: Used,
    /// Bytes of the last whole list of a resource.
    sizes: [AtomicU32; SIZES],
    /// Its flow schemas and priority levels.
    pub(super) known: Known,
    /// When it was last asked for, in milliseconds since the accounts began.
    seen: AtomicU64,
}

impl Account {
    pub(super) fn new(id: u64) -> Self {
        Self {
            id,
            weight: AtomicU32::new(WEIGHT),
            used_until: AtomicU64::new(0),
            finish: AtomicU64::new(0),
            under_way: AtomicU32::new(0),
            most_under_way: AtomicU32::new(u32::MAX),
            lasting: AtomicU32::new(0),
            most_lasting: AtomicU32::new(u32::MAX),
            sent_on: AtomicU32::new(0),
            exempt: AtomicU32::new(0),
            held: AtomicUsize::new(0),
            used: Used::default(),
            sizes: std::array::from_fn(|_| AtomicU32::new(0)),
            known: Known::default(),
            seen: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    pub(crate) fn of_test(id: u64) -> Arc<Self> {
        Arc::new(Self::new(id))
    }

    /// Whether it uses so little that nobody notices, at `now` in nanoseconds.
    pub(super) fn is_light(&self, now: u64) -> bool {
        self.used_until.load(Relaxed) <= now
    }

    /// Counts `cost` nanoseconds of one of `seats` processors.
    pub(super) fn charge(&self, now: u64, cost: u64, seats: u64) {
        let weight = u64::from(self.weight.load(Relaxed).max(1));
        let longer = cost.saturating_mul(PART * u64::from(WEIGHT)) / (seats * weight).max(1);
        // Two at once may lose one's cost: it is a matter of microseconds.
        let before = self.used_until.load(Relaxed);
        let begin = before.max(now.saturating_sub(BURST));
        self.used_until.store(begin.saturating_add(longer), Relaxed);
    }

    /// Goes by what the tenant's quotas say.
    pub(super) fn follow(&self, rates: Rates) {
        self.weight.store(rates.weight.unwrap_or(WEIGHT), Relaxed);
        self.most_under_way.store(rates.in_flight.unwrap_or(u32::MAX), Relaxed);
        self.most_lasting.store(rates.watches.unwrap_or(u32::MAX), Relaxed);
    }

    /// How many requests may be under way, if a quota says so.
    pub(super) fn most_under_way(&self) -> Option<u32> {
        Some(self.most_under_way.load(Relaxed)).filter(|it| *it != u32::MAX)
    }

    /// Requests that are under way now, and those that go on.
    pub(super) fn counts(&self) -> [u32; 2] {
        [self.under_way.load(Relaxed), self.lasting.load(Relaxed)]
    }

    /// One more request that is under way, if a quota allows it.
    pub(super) fn begins(self: &Arc<Self>) -> Option<Counted> {
        Counted::new(self, |it| &it.under_way, self.most_under_way.load(Relaxed))
    }

    /// One more request that goes on, if there may be `most` of them or what a quota says.
    pub(crate) fn goes_on(self: &Arc<Self>, most: u32) -> Option<Lasting> {
        let quota = Some(self.most_lasting.load(Relaxed)).filter(|it| *it != u32::MAX);
        let counted = Counted::new(self, |it| &it.lasting, quota.unwrap_or(most))?;
        Some(Lasting { began: self.used.watch_begins(), counted })
    }

    /// One more request that is sent to another server, if there may be `most` of them.
    pub(crate) fn is_sent_on(self: &Arc<Self>, most: u32) -> Option<Counted> {
        Counted::new(self, |it| &it.sent_on, most)
    }

    /// One more request that no level bounds, if there may be `most` of them.
    pub(super) fn is_exempted(self: &Arc<Self>, most: u32) -> Option<Counted> {
        Counted::new(self, |it| &it.exempt, most)
    }

    /// How many bytes a list of all of a resource may have, by what the last one had.
    pub(crate) fn size_of(&self, resource: &str) -> u32 {
        self.sizes[place_of(resource)].load(Relaxed)
    }

    pub(crate) fn learn_size(&self, resource: &str, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.sizes[place_of(resource)].store(bytes, Relaxed);
    }
}

fn place_of(resource: &str) -> usize {
    xxh3_64(resource.as_bytes()) as usize % SIZES
}

/// One of a counted number, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    account: Arc<Account>,
    which: fn(&Account) -> &AtomicU32,
}

impl Counted {
    fn new(account: &Arc<Account>, which: fn(&Account) -> &AtomicU32, most: u32) -> Option<Self> {
        let before = which(account).fetch_add(1, Relaxed);
        let counted = Self { account: account.clone(), which };
        (before < most).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.account).fetch_sub(1, Relaxed);
    }
}

/// One of those that go on, until it is dropped: how long it did is billed.
#[derive(Debug)]
pub(crate) struct Lasting {
    counted: Counted,
    began: u64,
}

impl Drop for Lasting {
    fn drop(&mut self) {
        self.counted.account.used.watch_ends(self.began);
    }
}

type Shard = RwLock<HashMap<TenantName, Arc<Account>>>;

/// The accounts of all tenants that asked for something lately.
#[derive(Debug)]
pub(crate) struct Accounts {
    shards: Box<[Shard]>,
    made: AtomicU64,
    began: Instant,
}

impl Default for Accounts {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { shards, made: AtomicU64::new(0), began: Instant::now() }
    }
}

impl Accounts {
    fn shard(&self, tenant: &TenantName) -> &Shard {
        &self.shards[xxh3_64(tenant.as_str().as_bytes()) as usize % SHARDS]
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn of(&self, tenant: &TenantName) -> Arc<Account> {
        let shard = self.shard(tenant);
        if let Some(found) = shard.read().get(tenant) {
            return found.clone();
        }
        let mut accounts = shard.write();
        let id = || self.made.fetch_add(1, Relaxed);
        let made = accounts.entry(tenant.clone()).or_insert_with(|| Arc::new(Account::new(id())));
        made.seen.store(self.now(), Relaxed);
        made.clone()
    }

    /// The account of a tenant that asked for something lately.
    pub(super) fn known(&self, tenant: &TenantName) -> Option<Arc<Account>> {
        self.shard(tenant).read().get(tenant).cloned()
    }

    /// All tenants that have one.
    pub(super) fn tenants(&self) -> Vec<TenantName> {
        let of = |it: &Shard| it.read().keys().cloned().collect::<Vec<_>>();
        self.shards.iter().flat_map(of).collect()
    }

    /// Forgets who has nothing under way and has not been seen since the last two times.
    pub(super) fn tidy(&self) {
        let now = self.now();
        let kept = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
        for shard in &self.shards {
            shard.write().retain(|_, account| {
                if account.known.was_used() || 1 < Arc::strong_count(account) {
                    account.seen.store(now, Relaxed);
                }
                now.saturating_sub(account.seen.load(Relaxed)) < kept
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantName {
        TenantName::parse(name).unwrap()
    }

    #[test]
    fn who_uses_little_is_light_and_who_uses_much_becomes_so_again() {
        let account = Account::new(0);
        // A hundredth of one of two processors.
        for n in 0..1000_u64 {
            assert!(account.is_light(n * 10_000_000), "{n}");
            account.charge(n * 10_000_000, 100_000, 2);
        }
        let later = 10_000_000_000;
        // All of one.
        (0..100_u64).for_each(|n| account.charge(later + n * 100_000, 100_000, 2));
        let now = later + 10_000_000;
        assert!(!account.is_light(now));
        assert!(account.is_light(now + 40_000_000));
    }

    #[test]
    fn quotas_bound_what_is_under_way_and_goes_on() {
        let account = Accounts::default().of(&tenant("acme"));
        let rates = Rates { in_flight: Some(1), watches: Some(2), weight: Some(7) };
        account.follow(rates);
        let one = account.begins().unwrap();
        assert!(account.begins().is_none());
        assert_eq!(account.most_under_way(), Some(1));
        drop(one);
        assert!(account.begins().is_some());
        let held: Vec<_> = (0..2).map(|_| account.goes_on(1).unwrap()).collect();
        assert!(account.goes_on(100).is_none());
        assert_eq!(account.counts(), [0, 2]);
        assert_eq!(account.weight.load(Relaxed), 7);
        drop(held);
        account.follow(Rates::default());
        assert_eq!(account.most_under_way(), None);
        assert_eq!(account.weight.load(Relaxed), WEIGHT);
        assert!(account.goes_on(0).is_none());
    }

    #[test]
    fn of_what_goes_on_there_is_only_so_much() {
        let accounts = Accounts::default();
        let acme = accounts.of(&tenant("acme"));
        let held: Vec<_> = (0..3).map(|_| acme.goes_on(3).unwrap()).collect();
        assert!(acme.goes_on(3).is_none());
        assert!(acme.is_sent_on(3).is_some(), "these are counted apart");
        assert!(accounts.of(&tenant("globex")).goes_on(3).is_some());
        drop(held);
        assert!(accounts.of(&tenant("acme")).goes_on(1).is_some());
    }
}
