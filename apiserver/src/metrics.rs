//! What Prometheus sees. Names are upstream's where the meaning is the same.

use std::time::Duration;

use insula_partition::partitions::Partitions;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Requests {
    verb: String,
    resource: String,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: String,
    resource: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Partition {
    partition: String,
}

/// Counters of one server. Labels are bounded: verbs, resources and codes, never tenants or names.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Requests, Counter>,
    durations: Family<Verb, Histogram>,
    objects: Family<Partition, Gauge>,
    bytes: Family<Partition, Gauge>,
    revision: Family<Partition, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations = Family::<Verb, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_5, 2.0, 18))
        });
        let (objects, bytes, revision) = (Family::default(), Family::default(), Family::default());
        registry.register("apiserver_request", "Requests answered", requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time from a request's head to its answer's",
            durations.clone(),
        );
        registry.register("insula_partition_objects", "Live objects", objects.clone());
        registry.register("insula_partition_bytes", "Bytes of live objects", bytes.clone());
        registry.register("insula_partition_revision", "Newest revision", revision.clone());
        Self { registry, requests, durations, objects, bytes, revision }
    }
}

impl Metrics {
    pub(crate) fn record(&self, verb: &str, resource: &str, code: u16, took: Duration) {
        let labels = Requests { verb: verb.into(), resource: resource.into(), code };
        self.requests.get_or_create(&labels).inc();
        if verb != "watch" {
            let labels = Verb { verb: verb.into(), resource: resource.into() };
            self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self, partitions: &Partitions) -> String {
        for name in partitions.names() {
            let Some(stats) = partitions.store(&name).map(|it| it.stats()) else { continue };
            let label = Partition { partition: name.to_string() };
            let set = |family: &Family<Partition, Gauge>, value: u64| {
                family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.objects, stats.objects);
            set(&self.bytes, stats.bytes);
            set(&self.revision, stats.revision.0);
        }
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}
