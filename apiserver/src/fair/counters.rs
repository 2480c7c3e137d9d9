//! What came of requests, by flow schema and priority level: of all tenants together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use insula_metrics::{Histogram, Names, Table, write::Writer};

/// Pairs of names that are told apart: tenants choose them.
const NAMES: usize = 200;
const SECONDS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    QueueFull,
    ConcurrencyLimit,
    TimeOut,
}

const REASONS: [(Rejected, &str); 3] = [
    (Rejected::QueueFull, "queue-full"),
    (Rejected::ConcurrencyLimit, "concurrency-limit"),
    (Rejected::TimeOut, "time-out"),
];

/// Of the requests of one pair.
#[derive(Debug)]
pub(super) struct Counters {
    dispatched: AtomicU64,
    rejected: [AtomicU64; REASONS.len()],
    in_queue: AtomicI64,
    executing: AtomicI64,
    seats: AtomicI64,
    /// How long those waited that did, and got on.
    waited: Histogram,
}

impl Counters {
    fn new() -> Self {
        Self {
            dispatched: AtomicU64::new(0),
            rejected: Default::default(),
            in_queue: AtomicI64::new(0),
            executing: AtomicI64::new(0),
            seats: AtomicI64::new(0),
            waited: Histogram::new(SECONDS),
        }
    }

    pub(super) fn queued(&self) -> Queued<'_> {
        self.in_queue.fetch_add(1, Relaxed);
        Queued(self)
    }

    pub(super) fn rejected(&self, why: Rejected) {
        self.rejected[why as usize].fetch_add(1, Relaxed);
    }

    /// It goes on, after `waited` if it had to wait.
    pub(super) fn dispatched(self: &Arc<Self>, width: u32, waited: Option<Duration>) -> Executing {
        self.dispatched.fetch_add(1, Relaxed);
        self.executing.fetch_add(1, Relaxed);
        self.seats.fetch_add(i64::from(width), Relaxed);
        if let Some(waited) = waited {
            self.waited.took(waited);
        }
        Executing { counters: self.clone(), width }
    }
}

/// One that waits.
pub(super) struct Queued<'c>(&'c Counters);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.in_queue.fetch_sub(1, Relaxed);
    }
}

/// One that is under way.
#[derive(Debug)]
pub(super) struct Executing {
    counters: Arc<Counters>,
    width: u32,
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.counters.executing.fetch_sub(1, Relaxed);
        self.counters.seats.fetch_sub(i64::from(self.width), Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AllCounters {
    names: Names,
    known: Table<(Arc<str>, Arc<str>), Counters>,
}

impl Default for AllCounters {
    fn default() -> Self {
        Self { names: Names::new(NAMES), known: Table::default() }
    }
}

impl AllCounters {
    pub(super) fn of(&self, level: &str, schema: &str) -> Arc<Counters> {
        let pair = self.names.of(&format!("{level}/{schema}"));
        let (level, schema) = pair.split_once('/').unwrap_or((&pair, &pair));
        self.known.get(&(level.into(), schema.into()), Counters::new)
    }

    pub(crate) fn write(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let all = self.known.all();
        let labels = |(level, schema): &(Arc<str>, Arc<str>)| {
            [("priority_level", level.clone()), ("flow_schema", schema.clone())]
        };
        let mut family = writer.counters(
            "apiserver_flowcontrol_dispatched_requests",
            "Requests that were let on by priority and fairness",
        )?;
        for (pair, it) in all.iter() {
            let [level, schema] = labels(pair);
            family.counted(&[(level.0, &level.1), (schema.0, &schema.1)], &it.dispatched)?;
        }
        let mut family = writer.counters(
            "apiserver_flowcontrol_rejected_requests",
            "Requests that were refused by priority and fairness",
        )?;
        for (pair, it) in all.iter() {
            let [level, schema] = labels(pair);
            for ((_, reason), count) in REASONS.iter().zip(&it.rejected) {
                let labels = [(level.0, &*level.1), (schema.0, &*schema.1), ("reason", *reason)];
                family.counted(&labels, count)?;
            }
        }
        type Gauge = (&'static str, &'static str, fn(&Counters) -> &AtomicI64);
        let gauges: [Gauge; 3] = [
            (
                "apiserver_flowcontrol_current_inqueue_requests",
                "Requests that wait in queues",
                |it| &it.in_queue,
            ),
            (
                "apiserver_flowcontrol_current_executing_requests",
                "Requests that are under way, watches only while they begin",
                |it| &it.executing,
            ),
            ("apiserver_flowcontrol_current_executing_seats", "Seats in use", |it| &it.seats),
        ];
        for (name, help, gauge) in gauges {
            let mut family = writer.gauges(name, help)?;
            for (pair, it) in all.iter() {
                let [level, schema] = labels(pair);
                let number = u64::try_from(gauge(it).load(Relaxed)).unwrap_or(0);
                family.number(&[(level.0, &level.1), (schema.0, &schema.1)], number)?;
            }
        }
        let mut family = writer.histograms(
            "apiserver_flowcontrol_request_wait_duration_seconds",
            "Time that requests waited in queues, of those that did and were let on",
        )?;
        for (pair, it) in all.iter() {
            let [level, schema] = labels(pair);
            let labels = [(level.0, &*level.1), (schema.0, &*schema.1), ("execute", "true")];
            family.histogram(&labels, &it.waited)?;
        }
        Ok(())
    }
}
