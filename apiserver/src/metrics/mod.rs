//! What Prometheus sees. Names are upstream's where the meaning is the same.
//!
//! All of it is of all tenants together: labels name no tenant, and nobody but the platform sees
//! it. Names that tenants choose, as those of their webhooks, are told apart up to a number.

mod admission;
mod process;
mod requests;
mod storage;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use insula_metrics::{Collector, write::Writer};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use self::{admission::Admissions, requests::Requests};
pub(crate) use self::{
    admission::{Asked, Checked, Rejection},
    requests::{Labels, Names, names},
};
use crate::{Server, fair::Fair, quota::usage::Shown, registry::Served};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
}

/// Counters of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    counted: Arc<Counted>,
    watch_events: Family<Watched, Counter>,
    watch_bytes: Family<Watched, Counter>,
    superseded: Counter,
}

/// What is counted without a lock.
#[derive(Debug)]
struct Counted {
    fair: Arc<Fair>,
    requests: Requests,
    admissions: Admissions,
    /// Under way: those that read, and those that write.
    under_way: [AtomicU64; 2],
}

impl Collector for Counted {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut writer = Writer(encoder);
        self.requests.write(&mut writer)?;
        self.admissions.write(&mut writer)?;
        let name = "apiserver_current_inflight_requests";
        let help = "Requests under way, but for those that go on";
        let mut family = writer.gauges(name, help)?;
        for (kind, count) in ["readOnly", "mutating"].iter().zip(&self.under_way) {
            family.number(&[("request_kind", kind)], count.load(Ordering::Relaxed))?;
        }
        self.fair.write(&mut writer)?;
        process::write(&mut writer)
    }
}

impl Metrics {
    pub(crate) fn new(fair: Arc<Fair>) -> Self {
        let mut registry = Registry::default();
        let counted = Arc::new(Counted {
            fair,
            requests: Requests::default(),
            admissions: Admissions::default(),
            under_way: Default::default(),
        });
        let (watch_events, watch_bytes) = (Family::default(), Family::default());
        registry.register_collector(Box::new(counted.clone()));
        registry.register("apiserver_watch_events", "Events sent to watches", watch_events.clone());
        let help = "Bytes of events sent to watches";
        registry.register("insula_watch_event_bytes", help, watch_bytes.clone());
        let superseded = Counter::default();
        let help = "Writes refused because somebody else has taken over what they were for";
        registry.register("insula_superseded_writes", help, superseded.clone());
        registry.register_collector(Box::new(insula_partition::metrics::Etcds));
        Self { registry: Mutex::new(registry), counted, watch_events, watch_bytes, superseded }
    }

    /// A write came from somebody who was replaced.
    pub(crate) fn superseded(&self) {
        self.superseded.inc();
    }

    /// Shows what another part of the same process counts.
    pub(crate) fn add(&self, collector: Box<dyn Collector>) {
        self.registry.lock().register_collector(collector);
    }

    /// Counts an answer; `size` if it is known whole.
    pub(crate) fn record(&self, labels: &Labels, code: u16, took: Duration, size: Option<usize>) {
        self.counted.requests.record(labels, code, took, size);
    }

    /// A request is under way, until what is returned is dropped.
    pub(crate) fn under_way(&self, labels: &Labels) -> UnderWay {
        let kind = usize::from(!labels.reads());
        self.counted.under_way[kind].fetch_add(1, Ordering::Relaxed);
        UnderWay { counted: self.counted.clone(), kind }
    }

    pub(crate) fn admissions(&self) -> &Admissions {
        &self.counted.admissions
    }

    /// Counters of the events and bytes that one watch sends.
    pub(crate) fn watched(&self, served: &Served) -> (Counter, Counter) {
        let [group, version, resource] = served.names;
        let label = Watched { group, version, resource };
        (
            self.watch_events.get_or_create(&label).clone(),
            self.watch_bytes.get_or_create(&label).clone(),
        )
    }
}

impl Server {
    /// Shows in this server's metrics what another part of the same process counts.
    pub fn add_metrics(&self, collector: Box<dyn Collector>) {
        self.metrics.add(collector);
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics_text(&self) -> String {
        let mut out = String::new();
        let stored = storage::Stored::read(self).await;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(stored));
        registry.register_collector(Box::new(Shown::read(self).await));
        // Writing into a String cannot fail.
        let _ = encode(&mut out, &registry);
        // Its end is that of what follows.
        out.truncate(out.trim_end_matches("# EOF\n").len());
        let _ = encode(&mut out, &self.metrics.registry.lock());
        out
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    counted: Arc<Counted>,
    kind: usize,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.counted.under_way[self.kind].fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that goes on, until this is dropped.
#[derive(Debug)]
pub(crate) struct LongRunning(Arc<requests::Series>);

impl LongRunning {
    pub(crate) fn new(server: &Arc<Server>, labels: &Labels) -> Self {
        let series = server.metrics.counted.requests.of(labels);
        series.open.fetch_add(1, Ordering::Relaxed);
        Self(series)
    }
}

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
