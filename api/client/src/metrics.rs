//! Requests of all clients of this process, by method and by the code of the answer.

use std::{
    fmt,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use insula_metrics::{Collector, Encoder, Histogram, write::Writer};

const SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
const METHODS: [&str; 6] = ["DELETE", "GET", "PATCH", "POST", "PUT", "other"];
const CODES: usize = 600;

/// All requests of one method.
struct Series {
    /// By the code of the answer; 0 if there was none.
    codes: Vec<AtomicU64>,
    times: Histogram,
}

static SERIES: LazyLock<[Series; METHODS.len()]> = LazyLock::new(|| {
    std::array::from_fn(|_| Series {
        codes: (0..CODES).map(|_| AtomicU64::new(0)).collect(),
        times: Histogram::new(SECONDS),
    })
});

/// Counts a request that was answered, if it was.
pub(crate) fn sent(method: &Method, code: Option<StatusCode>, took: Duration) {
    let known = METHODS.iter().position(|it| *it == method.as_str());
    let Some(series) = SERIES.get(known.unwrap_or(METHODS.len() - 1)) else { return };
    let code = code.map_or(0, |it| usize::from(it.as_u16()));
    if let Some(count) = series.codes.get(code) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    series.times.took(took);
}

/// Shows them.
#[derive(Debug, Clone, Copy)]
pub struct Requests;

impl Collector for Requests {
    fn encode(&self, encoder: Encoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let mut family = writer.counters("rest_client_requests", "Requests to API servers")?;
        for (method, series) in METHODS.iter().zip(&*SERIES) {
            for (code, count) in series.codes.iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count == 0 {
                    continue;
                }
                // As upstream calls what was not answered.
                let code = if code == 0 { "<error>".to_owned() } else { code.to_string() };
                family.number(&[("code", &code), ("method", method)], count)?;
            }
        }
        let name = "rest_client_request_duration_seconds";
        let mut family = writer.histograms(name, "Time to the head of an answer")?;
        for (method, series) in METHODS.iter().zip(&*SERIES) {
            family.histogram(&[("verb", method)], &series.times)?;
        }
        Ok(())
    }
}
