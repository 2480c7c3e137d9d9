//! What is measured while a scenario runs.

mod lag;
mod network;
mod own;
mod processes;
mod series;
mod startup;

use std::{fmt, sync::Arc, time::Instant};

use insula_client::Error;
use insula_metrics::{Collector, Encoder, write::Writer};
use parking_lot::Mutex;

pub(crate) use self::{
    lag::Lag,
    own::Own,
    processes::{Processes, Watched},
    series::{Counts, Outcome, Series, TIMEOUT, Times, histogram, ms},
    startup::{Startup, UNTIL_SCHEDULED},
};
pub use self::{
    own::Generator,
    processes::{ProcessPoint, ProcessReport},
    series::{Key, Point},
};

/// All that is measured. Shared by who asks, who samples, and who shows.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) begun: Instant,
    series: Mutex<Vec<Arc<Series>>>,
    pub(crate) lag: Lag,
    pub(crate) startup: Startup,
    pub(crate) own: Own,
    pub(crate) processes: Processes,
}

impl Recorder {
    pub(crate) fn new(processes: Processes) -> Self {
        Self {
            begun: Instant::now(),
            series: Mutex::new(Vec::new()),
            lag: Lag::default(),
            startup: Startup::default(),
            own: Own::default(),
            processes,
        }
    }

    /// The requests of this kind.
    pub(crate) fn series(
        &self,
        step: &str,
        verb: &str,
        resource: &str,
        scope: &str,
    ) -> Arc<Series> {
        let [step, verb, resource, scope] = [step, verb, resource, scope].map(str::to_owned);
        let key = Key { step, verb, resource, scope };
        let mut all = self.series.lock();
        if let Some(known) = all.iter().find(|it| it.key == key) {
            return known.clone();
        }
        let new = Arc::new(Series::new(key));
        all.push(new.clone());
        new
    }

    /// All that have been asked for.
    pub(crate) fn all(&self) -> Vec<Arc<Series>> {
        self.series.lock().clone()
    }

    /// Forgets what pods took and processes used: it was preparation.
    pub(crate) fn measure_anew(&self) {
        self.startup.measure_anew();
        self.processes.measure_anew();
        self.processes.sample(self.begun.elapsed().as_secs_f64());
    }

    /// Ends an interval of so many seconds.
    pub(crate) fn tick(&self, seconds: f64) {
        let at = self.begun.elapsed().as_secs_f64();
        for series in self.all() {
            series.tick(at, seconds);
        }
        self.lag.forget_old();
    }
}

/// How an error is counted: the reason the server gave, or what happened instead of an answer.
pub(crate) fn outcome(error: &Error) -> Outcome {
    let kind = match error {
        Error::Timeout { .. } => TIMEOUT,
        Error::Transport { .. } => "Connection",
        Error::Body { .. } => "BrokenAnswer",
        Error::Api(_) if !error.reason().is_empty() => error.reason(),
        Error::Api(_) => {
            let kind = error.code().map_or_else(|| "Unknown".to_owned(), |it| format!("HTTP {it}"));
            return Outcome::Failed { kind, out_of_time: false };
        }
        _ => "BadAnswer",
    };
    Outcome::Failed { kind: kind.to_owned(), out_of_time: matches!(error, Error::Timeout { .. }) }
}

/// Shows what was measured so far.
#[derive(Debug)]
pub(crate) struct Measurements(pub(crate) Arc<Recorder>);

const QUANTILES: [(&str, f64); 3] = [("0.5", 0.5), ("0.99", 0.99), ("0.999", 0.999)];

impl Collector for Measurements {
    fn encode(&self, encoder: Encoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let all = self.0.all();
        let mut family =
            writer.counters("insula_loadtest_requests", "Requests that were answered")?;
        for series in &all {
            let key = &series.key;
            let labels = [("resource", &*key.resource), ("step", &*key.step), ("verb", &*key.verb)];
            family.number(&labels, series.read(Counts::n_answered))?;
        }
        let mut family = writer.counters("insula_loadtest_errors", "Requests that failed")?;
        for series in &all {
            let key = &series.key;
            for (kind, n) in series.read(|it| it.errors.clone()) {
                let labels = [
                    ("kind", &*kind),
                    ("resource", &*key.resource),
                    ("step", &*key.step),
                    ("verb", &*key.verb),
                ];
                family.number(&labels, n)?;
            }
        }
        let help = "How long requests took, from when they were meant to begin";
        let mut family = writer.gauges("insula_loadtest_latency_seconds", help)?;
        for series in &all {
            let key = &series.key;
            for (shown, quantile) in QUANTILES {
                let value = series.read(|it| ms(it.latency.value_at_quantile(quantile)) / 1000.0);
                let labels = [
                    ("quantile", shown),
                    ("resource", &*key.resource),
                    ("step", &*key.step),
                    ("verb", &*key.verb),
                ];
                family.fraction(&labels, value)?;
            }
        }
        let help = "Pods of the run, by how far they have got";
        let mut family = writer.gauges("insula_loadtest_pods", help)?;
        for (state, n) in self.0.startup.counts() {
            family.number(&[("state", state)], n)?;
        }
        Ok(())
    }
}
