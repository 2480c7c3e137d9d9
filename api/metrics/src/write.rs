//! What a scrape reads.

use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::Histogram;

/// Labels and their values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// One family of metrics that is being written.
#[derive(Debug)]
pub struct Family<'e> {
    encoder: MetricEncoder<'e>,
    kind: MetricType,
}

/// Writes families, one after the other.
#[derive(Debug)]
pub struct Writer<'e>(pub DescriptorEncoder<'e>);

/// A family whose head is written.
pub type Begun<'e> = Result<Family<'e>, fmt::Error>;

impl Writer<'_> {
    fn family<'s>(&'s mut self, name: &'s str, help: &'s str, kind: MetricType) -> Begun<'s> {
        let encoder = self.0.encode_descriptor(name, help, None, kind)?;
        Ok(Family { encoder, kind })
    }

    /// Counters; `name` is without `_total`.
    pub fn counters<'s>(&'s mut self, name: &'s str, help: &'s str) -> Begun<'s> {
        self.family(name, help, MetricType::Counter)
    }

    /// Numbers that go up and down, or counters whose name is not that of one.
    pub fn gauges<'s>(&'s mut self, name: &'s str, help: &'s str) -> Begun<'s> {
        self.family(name, help, MetricType::Gauge)
    }

    /// How often numbers were how large.
    pub fn histograms<'s>(&'s mut self, name: &'s str, help: &'s str) -> Begun<'s> {
        self.family(name, help, MetricType::Histogram)
    }
}

impl Family<'_> {
    pub fn number(&mut self, labels: Labels<'_>, value: u64) -> fmt::Result {
        self.put(labels, |encoder, kind| match kind {
            MetricType::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
        })
    }

    pub fn fraction(&mut self, labels: Labels<'_>, value: f64) -> fmt::Result {
        self.put(labels, |encoder, kind| match kind {
            MetricType::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
            _ => encoder.encode_gauge(&value),
        })
    }

    fn put(
        &mut self,
        labels: Labels<'_>,
        put: impl FnOnce(&mut MetricEncoder<'_>, MetricType) -> fmt::Result,
    ) -> fmt::Result {
        match labels.is_empty() {
            true => put(&mut self.encoder, self.kind),
            false => put(&mut self.encoder.encode_family(&labels)?, self.kind),
        }
    }

    /// A counter, if it has counted anything.
    pub fn counted(&mut self, labels: Labels<'_>, value: &AtomicU64) -> fmt::Result {
        match value.load(std::sync::atomic::Ordering::Relaxed) {
            0 => Ok(()),
            value => self.number(labels, value),
        }
    }

    /// A histogram, if it has counted anything.
    pub fn histogram(&mut self, labels: Labels<'_>, value: &Histogram) -> fmt::Result {
        let (sum, count, buckets) = value.read();
        if count == 0 {
            return Ok(());
        }
        let mut encoder = self.encoder.encode_family(&labels)?;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::{collector::Collector, encoding::text::encode, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Some;

    impl Collector for Some {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let mut writer = Writer(encoder);
            let mut counters = writer.counters("a_requests", "Requests")?;
            counters.number(&[("code", "200"), ("verb", "GET")], 3)?;
            counters.counted(&[("code", "500"), ("verb", "GET")], &AtomicU64::new(0))?;
            let times = Histogram::new(&[0.5]);
            times.took(Duration::from_secs(1));
            writer.histograms("a_seconds", "Time")?.histogram(&[("name", "x")], &times)?;
            writer.gauges("a_depth", "Depth")?.number(&[], 7)?;
            writer.counters("a_cpu_seconds", "CPU")?.fraction(&[], 1.5)
        }
    }

    #[test]
    fn what_prometheus_reads() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Some));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                r#"a_requests_total{code="200",verb="GET"} 3"#,
                r#"a_seconds_sum{name="x"} 1.0"#,
                r#"a_seconds_count{name="x"} 1"#,
                r#"a_seconds_bucket{le="0.5",name="x"} 0"#,
                r#"a_seconds_bucket{le="+Inf",name="x"} 1"#,
                "a_depth 7",
                "a_cpu_seconds_total 1.5",
            ]
        );
    }
}
