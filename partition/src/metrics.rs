//! Requests to etcds, counted for all partitions of this process.

use std::{
    fmt,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use insula_metrics::{Collector, Histogram, Table, write::Writer};
use tokio::time::Instant;

use crate::store::Collection;

const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Most resources and operations that are told apart: more than there are built in.
const MOST: usize = 600;

/// What is asked of an etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

#[derive(Debug)]
struct Series {
    times: Histogram,
    errors: AtomicU64,
}

static SERIES: LazyLock<Table<(Collection, Operation), Series>> = LazyLock::new(Table::default);

/// Counts a request about an object of `collection` that began at `begun`.
pub(crate) fn asked(collection: &Collection, operation: Operation, begun: Instant, failed: bool) {
    let took: Duration = begun.elapsed();
    let mut key = (collection.clone(), operation);
    // What tenants define is as much as they like.
    let all = SERIES.all();
    if !all.contains_key(&key) && MOST <= all.len() {
        key.0 = Collection::of("others/others");
    }
    let make = || Series { times: Histogram::new(SECONDS), errors: AtomicU64::new(0) };
    SERIES.with(&key, make, |series| {
        series.times.took(took);
        series.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
    });
}

/// Shows them.
#[derive(Debug, Clone, Copy)]
pub struct Etcds;

impl Collector for Etcds {
    fn encode(&self, encoder: insula_metrics::Encoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let all = SERIES.all();
        type Write<'w> = &'w mut dyn FnMut(&[(&str, &str)], &Series) -> fmt::Result;
        let each = |write: Write<'_>| {
            all.iter().try_for_each(|((collection, operation), series)| {
                let (group, resource) = collection.split();
                let labels =
                    [("operation", operation.name()), ("group", group), ("resource", resource)];
                write(&labels, series)
            })
        };
        let mut family =
            writer.histograms("etcd_request_duration_seconds", "Time of a request to an etcd")?;
        each(&mut |labels, series| family.histogram(labels, &series.times))?;
        let mut family = writer.counters("etcd_requests", "Requests to etcds")?;
        each(&mut |labels, series| family.number(labels, series.times.count()))?;
        let mut family = writer.counters("etcd_request_errors", "Requests that an etcd failed")?;
        each(&mut |labels, series| family.counted(labels, &series.errors))
    }
}
