//! Whether the generator itself was the bottleneck.
//!
//! A load test measures its client as well. When that lacks CPU, requests begin late and answers
//! are noticed late; so it looks at its own timers, at how late requests began, and at its own CPU.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    processes::own_cpu,
    series::{histogram, micros, ms},
};

/// A timer's 99th percentile above this, in milliseconds, falsifies what is measured.
const MOST_TIMER_LAG: f64 = 20.0;
/// So does beginning requests later than this.
const MOST_LATENESS: f64 = 20.0;
/// And taking this share of all processors.
const MOST_CPU: f64 = 0.8;

/// See the module. Times in milliseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Generator {
    /// Processors that it used on average, and how many there are.
    pub cpus_used: f64,
    pub cpus: usize,
    /// How late its timers were: 99th percentile.
    pub timer_lag_p99: f64,
    /// How late requests at a rate began: 99th percentile.
    pub lateness_p99: f64,
    /// Requests that began late because too many others were under way: the target's doing.
    pub held_back: u64,
    /// Why the figures are partly the generator's own; empty if they are not.
    pub bottlenecks: Vec<String>,
}

/// What is known of oneself.
#[derive(Debug)]
pub(crate) struct Own {
    begun: Instant,
    cpu: Duration,
    counts: Mutex<(Histogram<u64>, Histogram<u64>, u64)>,
}

impl Default for Own {
    fn default() -> Self {
        let counts = Mutex::new((histogram(), histogram(), 0));
        Self { begun: Instant::now(), cpu: own_cpu(), counts }
    }
}

impl Own {
    /// A timer was so late.
    pub(crate) fn timer(&self, late: Duration) {
        self.counts.lock().0.saturating_record(micros(late).max(1));
    }

    /// A request at a rate began so late, for want of nothing but CPU.
    pub(crate) fn began(&self, late: Duration) {
        self.counts.lock().1.saturating_record(micros(late).max(1));
    }

    /// A request began late because too many were under way.
    pub(crate) fn held_back(&self) {
        self.counts.lock().2 += 1;
    }

    pub(crate) fn report(&self) -> Generator {
        let counts = self.counts.lock();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let used = own_cpu().saturating_sub(self.cpu).as_secs_f64();
        let p99 = |it: &Histogram<u64>| match it.is_empty() {
            true => 0.0,
            false => ms(it.value_at_quantile(0.99)),
        };
        let mut report = Generator {
            cpus_used: used / self.begun.elapsed().as_secs_f64().max(0.001),
            cpus,
            timer_lag_p99: p99(&counts.0),
            lateness_p99: p99(&counts.1),
            held_back: counts.2,
            bottlenecks: Vec::new(),
        };
        report.bottlenecks = bottlenecks(&report);
        report
    }
}

#[allow(clippy::cast_precision_loss, reason = "numbers of processors")]
fn bottlenecks(it: &Generator) -> Vec<String> {
    let mut found = Vec::new();
    if MOST_CPU * (it.cpus as f64) < it.cpus_used {
        found.push(format!("it used {:.1} of {} processors", it.cpus_used, it.cpus));
    }
    if MOST_TIMER_LAG < it.timer_lag_p99 {
        let lag = it.timer_lag_p99;
        found.push(format!("its timers were late by {lag:.0} ms (99th percentile)"));
    }
    if MOST_LATENESS < it.lateness_p99 {
        let late = it.lateness_p99;
        found.push(format!("requests began late by {late:.0} ms (99th percentile)"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bottleneck_is_named() {
        let idle =
            Generator { cpus: 2, cpus_used: 0.5, timer_lag_p99: 2.0, ..Generator::default() };
        assert_eq!(bottlenecks(&idle), [""; 0]);
        let busy = Generator { cpus_used: 1.9, timer_lag_p99: 35.0, lateness_p99: 90.0, ..idle };
        let expected = [
            "it used 1.9 of 2 processors",
            "its timers were late by 35 ms (99th percentile)",
            "requests began late by 90 ms (99th percentile)",
        ];
        assert_eq!(bottlenecks(&busy), expected);
    }
}
