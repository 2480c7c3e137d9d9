//! What is to be reconciled, and by whose turn.
//!
//! Keys are added from anywhere, any number of times, and handed out one by one. Tenants take
//! turns: a tenant with a million keys waiting delays another tenant's one key by one reconcile.
//!
//! # Invariants
//!
//! * A key is handed out again only after it was given back: no two reconciles of one key overlap.
//! * A key added while it is out is handed out once more after it comes back.
//! * A key rests after a pass that succeeded, as long as its controller says; what asks for it
//!   meanwhile is answered by one pass at the end.
//! * Keys of tenants that this replica does not own are neither kept nor handed out.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use insula_api::names::TenantName;
use insula_client::{Backoff, ObjectKey};
use insula_membership::Ownership;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{controller::Rest, metrics::Counts};

/// The delay after a key's first failure, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(120);

/// Names what a controller reconciles.
pub trait Key: Clone + Eq + Ord + Hash + fmt::Display + fmt::Debug + Send + Sync + 'static {
    /// In whose turn it is reconciled, and whose replica does it.
    fn tenant(&self) -> &TenantName;
}

impl Key for ObjectKey {
    fn tenant(&self) -> &TenantName {
        &self.tenant
    }
}

/// Keys waiting for a reconcile. Cheap to clone; clones share the keys.
#[derive(Debug)]
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

// Not derived: that would ask for `K: Clone`.
impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

#[derive(Debug)]
struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
    ownership: Arc<dyn Ownership>,
    counts: Arc<Counts>,
    rest: Rest,
}

#[derive(Debug)]
struct State<K> {
    counts: Arc<Counts>,
    /// The keys of each tenant that can be handed out, in the order they came.
    ready: HashMap<TenantName, VecDeque<K>>,
    /// The tenants in `ready`, in the order of their turns.
    turns: VecDeque<TenantName>,
    /// Where a key is. A key that is only delayed is not here.
    places: HashMap<K, Place>,
    /// Delayed keys by when they are due; the same in `due` by key.
    delayed: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    /// Keys that rest, or did, about in the order in which they end.
    resting: VecDeque<(Instant, K)>,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready {
        since: Instant,
    },
    /// Handed out.
    Out {
        since: Instant,
    },
    /// Handed out, and added again since.
    OutAndDirty {
        since: Instant,
    },
    /// Given back, and not handed out again before.
    Resting {
        until: Instant,
    },
}

impl<K: Key> Queue<K> {
    /// `name` is the controller's; after a pass that succeeded its keys rest as `rest` says.
    pub(crate) fn new(name: &'static str, ownership: Arc<dyn Ownership>, rest: Rest) -> Self {
        let counts = Counts::of(name);
        let state = State {
            counts: counts.clone(),
            ready: HashMap::new(),
            turns: VecDeque::new(),
            places: HashMap::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            resting: VecDeque::new(),
            closed: false,
        };
        let (state, changed) = (Mutex::new(state), Notify::new());
        let shared = Shared { state, changed, ownership, counts, rest };
        Self { shared: Arc::new(shared) }
    }

    /// Asks for a reconcile of `key`.
    pub fn add(&self, key: K) {
        if self.shared.ownership.owns(key.tenant()) {
            self.shared.state.lock().add(key);
            self.shared.changed.notify_one();
        }
    }

    /// Asks for a reconcile of `key` after `delay`, unless one is due earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        if self.shared.ownership.owns(key.tenant()) {
            self.shared.state.lock().delay(key, Instant::now() + delay);
            self.shared.changed.notify_one();
        }
    }

    /// Asks for another try, later the more often in a row it failed; returns the delay.
    pub(crate) fn retry(&self, key: K) -> Duration {
        let n_failures = {
            let mut state = self.shared.state.lock();
            let n_failures = state.failures.entry(key.clone()).or_default();
            let before = *n_failures;
            *n_failures = before.saturating_add(1);
            before
        };
        self.shared.counts.retried();
        let delay = Backoff::delay(FIRST_RETRY, LAST_RETRY, n_failures);
        self.add_after(key, delay);
        delay
    }

    /// Forgets that a key failed.
    pub(crate) fn succeeded(&self, key: &K) {
        self.shared.state.lock().failures.remove(key);
    }

    /// The next key; `None` once the queue is closed. Each key must be given back by
    /// [`Queue::done`].
    pub(crate) async fn next(&self) -> Option<K> {
        loop {
            let changed = self.shared.changed.notified();
            let due = {
                let mut state = self.shared.state.lock();
                if state.closed {
                    return None;
                }
                state.wake(Instant::now());
                while let Some(key) = state.hand_out() {
                    if self.shared.ownership.owns(key.tenant()) {
                        if !state.ready.is_empty() {
                            self.shared.changed.notify_one();
                        }
                        return Some(key);
                    }
                    if let Some(Place::Out { since }) = state.places.remove(&key) {
                        state.counts.done(since);
                    }
                    state.failures.remove(&key);
                }
                state.delayed.first().map(|(due, _)| *due)
            };
            match due {
                Some(due) => tokio::select! {
                    () = changed => (),
                    () = tokio::time::sleep_until(due) => (),
                },
                None => changed.await,
            }
        }
    }

    /// Gives a key back, after a pass that kept a processor busy for so long.
    pub(crate) fn done(&self, key: &K, busy: Duration) {
        let mut state = self.shared.state.lock();
        let place = state.places.remove(key);
        if let Some(Place::Out { since } | Place::OutAndDirty { since }) = place {
            state.counts.done(since);
        }
        let rest = self.shared.rest.after(busy);
        if !rest.is_zero() && !state.failures.contains_key(key) {
            state.rest(key.clone(), Instant::now() + rest);
        }
        if matches!(place, Some(Place::OutAndDirty { .. })) {
            state.add(key.clone());
            self.shared.changed.notify_one();
        }
    }

    /// Hands out nothing more.
    pub(crate) fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_waiters();
        self.shared.changed.notify_one();
    }

    /// How many keys wait for their turn.
    pub(crate) fn len(&self) -> usize {
        self.shared.state.lock().ready.values().map(VecDeque::len).sum()
    }
}

impl<K: Key> State<K> {
    fn add(&mut self, key: K) {
        match self.places.get(&key).copied() {
            Some(Place::Ready { .. } | Place::OutAndDirty { .. }) => (),
            Some(Place::Out { since }) => {
                self.places.insert(key, Place::OutAndDirty { since });
                self.counts.added();
            }
            Some(Place::Resting { until }) if Instant::now() < until => self.delay(key, until),
            Some(Place::Resting { .. }) | None => {
                self.counts.added();
                self.ready(key);
            }
        }
    }

    /// A key waits for its turn now, and for nothing else.
    fn ready(&mut self, key: K) {
        if let Some(due) = self.due.remove(&key) {
            self.delayed.remove(&(due, key.clone()));
        }
        self.places.insert(key.clone(), Place::Ready { since: Instant::now() });
        self.counts.waits();
        let tenant = key.tenant().clone();
        let keys = self.ready.entry(tenant.clone()).or_default();
        if keys.is_empty() {
            self.turns.push_back(tenant);
        }
        keys.push_back(key);
    }

    fn delay(&mut self, key: K, due: Instant) {
        if matches!(self.places.get(&key), Some(Place::Ready { .. })) {
            return;
        }
        match self.due.get(&key).copied() {
            Some(known) if known <= due => return,
            Some(known) => {
                self.delayed.remove(&(known, key.clone()));
            }
            None => (),
        }
        self.due.insert(key.clone(), due);
        self.delayed.insert((due, key));
    }

    fn rest(&mut self, key: K, until: Instant) {
        self.places.insert(key.clone(), Place::Resting { until });
        self.resting.push_back((until, key));
    }

    /// Readies what is due, and forgets who has rested.
    fn wake(&mut self, now: Instant) {
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((until, key)) = self.resting.pop_front()
                && self.places.get(&key) == Some(&Place::Resting { until })
            {
                self.places.remove(&key);
            }
        }
        while self.delayed.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }

    fn hand_out(&mut self) -> Option<K> {
        let tenant = self.turns.pop_front()?;
        let keys = self.ready.get_mut(&tenant)?;
        let key = keys.pop_front()?;
        if keys.is_empty() {
            self.ready.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        let now = Instant::now();
        let before = self.places.insert(key.clone(), Place::Out { since: now });
        let since = match before {
            Some(Place::Ready { since }) => since,
            _ => now,
        };
        self.counts.handed_out(now - since, now);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use insula_membership::{Permit, Sole};

    use super::*;

    fn key(text: &str) -> ObjectKey {
        let (tenant, name) = text.split_once('/').unwrap();
        ObjectKey::new(&TenantName::parse(tenant).unwrap(), "ns", name)
    }

    fn queue() -> Queue<ObjectKey> {
        Queue::new("test", Arc::new(Sole), Rest::NONE)
    }

    async fn take(queue: &Queue<ObjectKey>) -> String {
        let key = queue.next().await.unwrap();
        format!("{}/{}", key.tenant, key.name)
    }

    /// What can be had without waiting.
    async fn take_ready(queue: &Queue<ObjectKey>) -> Option<String> {
        tokio::time::timeout(Duration::from_nanos(1), take(queue)).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_take_turns() {
        let queue = queue();
        for name in ["a/1", "a/2", "a/3", "b/1", "c/1", "c/2"] {
            queue.add(key(name));
        }
        let mut order = Vec::new();
        while queue.len() != 0 {
            order.push(take(&queue).await);
        }
        assert_eq!(order, ["a/1", "b/1", "c/1", "a/2", "c/2", "a/3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_out_twice() {
        let queue = queue();
        queue.add(key("a/1"));
        queue.add(key("a/1"));
        assert_eq!(take(&queue).await, "a/1");
        queue.add(key("a/1"));
        queue.add(key("a/1"));
        assert_eq!(take_ready(&queue).await, None);
        queue.done(&key("a/1"), Duration::ZERO);
        assert_eq!(take(&queue).await, "a/1");
        queue.done(&key("a/1"), Duration::ZERO);
        assert_eq!(take_ready(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = queue();
        let begin = Instant::now();
        queue.add_after(key("a/1"), Duration::from_secs(9));
        queue.add_after(key("a/1"), Duration::from_secs(3));
        queue.add_after(key("a/1"), Duration::from_secs(6));
        assert_eq!(take(&queue).await, "a/1");
        assert_eq!(begin.elapsed().as_secs(), 3);
        queue.done(&key("a/1"), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(take_ready(&queue).await, None, "later delays were replaced");
    }

    #[tokio::test(start_paused = true)]
    async fn adding_replaces_a_delay() {
        let queue = queue();
        queue.add_after(key("a/1"), Duration::from_secs(9));
        queue.add(key("a/1"));
        assert_eq!(take(&queue).await, "a/1");
        queue.done(&key("a/1"), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(take_ready(&queue).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_asked_for_while_out_is_kept() {
        let queue = queue();
        queue.add(key("a/1"));
        assert_eq!(take(&queue).await, "a/1");
        queue.add_after(key("a/1"), Duration::from_secs(5));
        queue.done(&key("a/1"), Duration::ZERO);
        assert_eq!(take_ready(&queue).await, None);
        assert_eq!(take(&queue).await, "a/1");
    }

    #[tokio::test(start_paused = true)]
    async fn what_asks_for_a_resting_key_is_answered_at_once() {
        let begin = Instant::now();
        let queue = Queue::new("test", Arc::new(Sole), Rest::COUNTING);
        let rest = Rest::COUNTING.least;
        queue.add(key("a/1"));
        assert_eq!(take(&queue).await, "a/1");
        queue.add(key("a/1"));
        queue.succeeded(&key("a/1"));
        queue.done(&key("a/1"), Duration::ZERO);
        queue.add(key("a/1"));
        queue.add(key("a/2"));
        assert_eq!(take(&queue).await, "a/2", "others need not wait");
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(take(&queue).await, "a/1");
        assert_eq!(begin.elapsed(), rest);
        queue.done(&key("a/1"), Duration::ZERO);
        tokio::time::advance(rest).await;
        assert_eq!(take_ready(&queue).await, None, "once for all that asked");
        queue.add(key("a/1"));
        assert_eq!(take_ready(&queue).await.as_deref(), Some("a/1"), "who has rested is ready");
        queue.done(&key("a/1"), Duration::ZERO);
        queue.done(&key("a/2"), Duration::ZERO);
        tokio::time::advance(rest).await;
        assert_eq!(take_ready(&queue).await, None);
        let state = queue.shared.state.lock();
        assert!(state.places.is_empty() && state.resting.is_empty(), "{state:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_looks_at_much_rests_longer() {
        let begin = Instant::now();
        let queue = Queue::new("test", Arc::new(Sole), Rest::LOOKING);
        for (busy, rest) in [(1, 0), (100, 900), (60_000, 10_000)] {
            queue.add(key("a/1"));
            assert_eq!(take(&queue).await, "a/1");
            let given_back = begin.elapsed();
            queue.done(&key("a/1"), Duration::from_millis(busy));
            queue.add(key("a/1"));
            assert_eq!(take(&queue).await, "a/1");
            assert_eq!(begin.elapsed() - given_back, Duration::from_millis(rest));
            queue.done(&key("a/1"), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_failed_does_not_rest() {
        let begin = Instant::now();
        let queue = Queue::new("test", Arc::new(Sole), Rest::COUNTING);
        queue.add(key("a/1"));
        assert_eq!(take(&queue).await, "a/1");
        queue.retry(key("a/1"));
        queue.done(&key("a/1"), Duration::ZERO);
        assert_eq!(take(&queue).await, "a/1");
        assert!(begin.elapsed() <= FIRST_RETRY);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_and_longer() {
        let queue = queue();
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            last = queue.retry(key("a/1"));
        }
        assert!(Duration::from_secs(2) < last, "{last:?}");
        queue.succeeded(&key("a/1"));
        assert!(queue.retry(key("a/1")) <= FIRST_RETRY);
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_wake_for_new_keys_and_for_the_end() {
        let queue = queue();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.add(key("a/1"));
        queue.add(key("a/2"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        queue.close();
        let mut found = Vec::new();
        for task in waiting {
            found.push(task.await.unwrap().map(|key| key.name.to_string()));
        }
        found.sort();
        assert_eq!(found, [None, Some("1".into()), Some("2".into())]);
    }

    #[derive(Debug)]
    struct OnlyA;
    impl Ownership for OnlyA {
        fn owns(&self, tenant: &TenantName) -> bool {
            tenant.as_str() == "a"
        }
        fn begin(&self, tenant: &TenantName) -> Option<Permit> {
            self.owns(tenant).then(Permit::default)
        }
        fn refused(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn others_keys_are_not_kept() {
        let queue = Queue::new("test", Arc::new(OnlyA), Rest::NONE);
        queue.add(key("b/1"));
        queue.add_after(key("b/2"), Duration::from_secs(1));
        queue.add(key("a/1"));
        assert_eq!(take(&queue).await, "a/1");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(take_ready(&queue).await, None);
    }
}
