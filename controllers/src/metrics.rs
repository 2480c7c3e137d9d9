//! Queues of controllers, by upstream's names.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use insula_metrics::{Collector, Encoder, Histogram, Table, write::Writer};
use tokio::time::Instant;

const SECONDS: &[f64] = &[1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0];

/// What is counted of all queues of one name.
#[derive(Debug)]
pub(crate) struct Counts {
    depth: AtomicU64,
    adds: AtomicU64,
    retries: AtomicU64,
    waited: Histogram,
    worked: Histogram,
    /// Keys that are being worked on, and the sum of when that began, in microseconds.
    running: AtomicU64,
    begun: AtomicU64,
}

static QUEUES: LazyLock<Table<&'static str, Counts>> = LazyLock::new(Table::default);
/// Times are told from here.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn micros(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_micros()).unwrap_or(u64::MAX)
}

impl Counts {
    fn new() -> Self {
        Self {
            depth: AtomicU64::new(0),
            adds: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            waited: Histogram::new(SECONDS),
            worked: Histogram::new(SECONDS),
            running: AtomicU64::new(0),
            begun: AtomicU64::new(0),
        }
    }

    pub(crate) fn of(name: &'static str) -> Arc<Self> {
        LazyLock::force(&EPOCH);
        QUEUES.get(&name, Self::new)
    }

    /// A key that was not asked for yet is asked for.
    pub(crate) fn added(&self) {
        self.adds.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A key waits for its turn.
    pub(crate) fn waits(&self) {
        self.depth.fetch_add(1, Ordering::Relaxed);
    }

    /// Its turn has come, at `now`.
    pub(crate) fn handed_out(&self, waited: Duration, now: Instant) {
        self.depth.fetch_sub(1, Ordering::Relaxed);
        self.waited.took(waited);
        self.running.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(micros(now), Ordering::Relaxed);
    }

    /// What was begun at `begun` is done.
    pub(crate) fn done(&self, begun: Instant) {
        self.worked.took(begun.elapsed());
        self.running.fetch_sub(1, Ordering::Relaxed);
        self.begun.fetch_sub(micros(begun), Ordering::Relaxed);
    }

    fn unfinished(&self) -> f64 {
        let running = self.running.load(Ordering::Relaxed);
        let whole = running.saturating_mul(micros(Instant::now()));
        whole.saturating_sub(self.begun.load(Ordering::Relaxed)) as f64 / 1e6
    }
}

static HELD: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Which share of the work this replica has.
#[derive(Debug)]
pub(crate) struct Membership;

impl Membership {
    /// How many slots it cares for now, and how many objects of tenants it has copies of.
    pub(crate) fn held(n_slots: usize, n_objects: usize) {
        HELD.store(n_slots as u64, Ordering::Relaxed);
        COPIED.store(n_objects as u64, Ordering::Relaxed);
    }

    /// So many more it has begun to care for.
    pub(crate) fn taken(n_slots: usize) {
        TAKEN.fetch_add(n_slots as u64, Ordering::Relaxed);
    }
}

/// Shows them.
#[derive(Debug, Clone, Copy)]
pub struct Queues;

impl Collector for Queues {
    fn encode(&self, encoder: Encoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let all = QUEUES.all();
        let mut family = writer.gauges("workqueue_depth", "Keys that wait for their turn")?;
        for (name, queue) in all.iter() {
            family.number(&[("name", name)], queue.depth.load(Ordering::Relaxed))?;
        }
        let mut family = writer.counters("workqueue_adds", "Keys that were asked for")?;
        for (name, queue) in all.iter() {
            family.number(&[("name", name)], queue.adds.load(Ordering::Relaxed))?;
        }
        let mut family = writer.counters("workqueue_retries", "Keys to be tried again")?;
        for (name, queue) in all.iter() {
            family.number(&[("name", name)], queue.retries.load(Ordering::Relaxed))?;
        }
        let name = "workqueue_queue_duration_seconds";
        let mut family = writer.histograms(name, "How long keys waited for their turn")?;
        for (name, queue) in all.iter() {
            family.histogram(&[("name", name)], &queue.waited)?;
        }
        let name = "workqueue_work_duration_seconds";
        let mut family = writer.histograms(name, "How long keys were worked on")?;
        for (name, queue) in all.iter() {
            family.histogram(&[("name", name)], &queue.worked)?;
        }
        let name = "insula_controllers_held_slots";
        let mut family = writer.gauges(name, "Slots that this replica cares for")?;
        family.number(&[], HELD.load(Ordering::Relaxed))?;
        let name = "insula_controllers_copied_objects";
        let help = "Objects of tenants in the local copies of a replica among others";
        let mut family = writer.gauges(name, help)?;
        family.number(&[], COPIED.load(Ordering::Relaxed))?;
        let name = "insula_controllers_taken_slots";
        let mut family = writer.counters(name, "Slots that this replica began to care for")?;
        family.number(&[], TAKEN.load(Ordering::Relaxed))?;
        let name = "workqueue_unfinished_work_seconds";
        let mut family = writer.gauges(name, "How long what is not done yet was worked on")?;
        for (name, queue) in all.iter() {
            family.fraction(&[("name", name)], queue.unfinished())?;
        }
        Ok(())
    }
}
