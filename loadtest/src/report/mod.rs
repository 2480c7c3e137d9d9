//! What came of a run: for machines as JSON, for people as a page.

pub mod compare;
mod html;
mod plot;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::measure::{Counts, Generator, Key, Point, ProcessReport, Recorder, ms};

/// The form of a report. A reader that does not know it reads nothing into it.
pub const SCHEMA: &str = "insula-loadtest/1";
/// The names of the files in `--out`.
pub const JSON_FILE: &str = "report.json";
pub const HTML_FILE: &str = "report.html";

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ending {
    /// All steps were done, and all thresholds held.
    Passed,
    /// A threshold was missed, or a step could not be done.
    Failed,
    /// Somebody ended it early; what is reported was measured until then.
    Interrupted,
}

/// A run. Times of requests are in milliseconds, others in seconds, sizes in bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: String,
    pub run: String,
    pub scenario: String,
    pub description: String,
    /// What repeats it.
    pub command: Vec<String>,
    /// When it began, by RFC 3339.
    pub began: String,
    pub seconds: f64,
    pub ending: Ending,
    /// Why it did not pass, or ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub machine: Machine,
    pub client: String,
    pub server: Server,
    /// What a reader should know of how it was measured.
    pub notes: Vec<String>,
    pub steps: Vec<StepReport>,
    pub calls: Vec<Call>,
    /// By phase.
    pub pod_startup: BTreeMap<String, Times>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_scheduled_per_second: Option<f64>,
    pub pods: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<WatchReport>,
    pub processes: Vec<ProcessReport>,
    pub generator: Generator,
    /// The objectives of Kubernetes, as far as they can be judged.
    pub slos: Vec<Verdict>,
    pub thresholds: Vec<Verdict>,
}

/// The machine that the generator runs on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    pub host: String,
    pub cpu: String,
    pub cpus: usize,
    pub memory: u64,
    pub kernel: String,
    /// Processes that wanted to run when it began (the load average of a minute).
    pub load: String,
}

/// What was tested.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// What `/version` said.
    pub version: Value,
    pub has_tenants: bool,
    pub tenants: usize,
    pub namespaces: usize,
    pub connections: usize,
}

/// A step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    pub name: String,
    pub verb: String,
    /// From the beginning of the run.
    pub began: f64,
    pub seconds: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Requests of one kind in one step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    #[serde(flatten)]
    pub key: Key,
    pub answered: u64,
    pub failed: u64,
    /// By kind: the reason that the server gave, `Timeout`, `Connection`.
    pub errors: BTreeMap<String, u64>,
    /// Answers a second.
    pub rate: f64,
    /// From when a request was meant to begin.
    pub latency: Times,
    /// From when it began.
    pub service: Times,
    /// The longest time, in seconds, without an answer.
    pub longest_gap: f64,
    pub points: Vec<Point>,
}

/// How long something took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Times {
    pub(crate) fn of(it: &Histogram<u64>) -> Self {
        if it.is_empty() {
            return Self::default();
        }
        let at = |quantile| ms(it.value_at_quantile(quantile));
        Self {
            count: it.len(),
            mean: it.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: ms(it.max()),
        }
    }
}

/// What watches were told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchReport {
    pub events: u64,
    /// Watches that ended and were opened again.
    pub reopened: u64,
    /// From sending a write to receiving its event.
    pub lag: Times,
}

/// Whether a condition held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The condition, in words.
    pub what: String,
    pub held: bool,
    /// What was measured, in words.
    pub measured: String,
}

/// The calls of a recorder.
pub(crate) fn calls(recorder: &Recorder) -> Vec<Call> {
    let call = |series: &std::sync::Arc<crate::measure::Series>| {
        series.read(|it: &Counts| {
            let answered = it.n_answered();
            let elapsed = it.elapsed().as_secs_f64();
            #[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
            let rate = if 0.0 < elapsed { answered as f64 / elapsed } else { 0.0 };
            Call {
                key: series.key.clone(),
                answered,
                failed: it.n_failed,
                errors: it.errors.clone(),
                rate,
                latency: Times::of(&it.latency),
                service: Times::of(&it.service),
                longest_gap: it.longest_gap.as_secs_f64(),
                points: it.over_time(),
            }
        })
    };
    let all = recorder.all();
    all.iter().map(call).filter(|it| 0 < it.answered + it.failed).collect()
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|it| it.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([':', '\t', ' ']).trim().to_owned()
        };
        let kib = field(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap_or_default();
        let name = rustix::system::uname();
        Self {
            host: name.nodename().to_string_lossy().into_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kib * 1024,
            kernel: name.release().to_string_lossy().into_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// Why a report cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("cannot read or write {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is no report of a load test")]
    Form {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has the form {found:?}, and this program knows {SCHEMA:?}")]
    Schema { path: PathBuf, found: String },
}

impl Report {
    /// Writes both forms into a directory, which is made if it is not there.
    pub fn write(&self, dir: &Path) -> Result<(), ReportError> {
        let write = |path: PathBuf, text: String| {
            fs::write(&path, text).map_err(|source| ReportError::File { path, source })
        };
        fs::create_dir_all(dir)
            .map_err(|source| ReportError::File { path: dir.to_owned(), source })?;
        let path = dir.join(JSON_FILE);
        let json = serde_json::to_string_pretty(self)
            .map_err(|source| ReportError::Form { path: path.clone(), source })?;
        write(path, json)?;
        write(dir.join(HTML_FILE), html::page(self))
    }

    /// Reads the JSON form; a directory is looked into.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let path = if path.is_dir() { path.join(JSON_FILE) } else { path.to_owned() };
        let text = fs::read_to_string(&path)
            .map_err(|source| ReportError::File { path: path.clone(), source })?;
        let form = |source| ReportError::Form { path: path.clone(), source };
        let value: Value = serde_json::from_str(&text).map_err(form)?;
        let found = value["schema"].as_str().unwrap_or_default();
        if found != SCHEMA {
            return Err(ReportError::Schema { found: found.to_owned(), path });
        }
        serde_json::from_value(value).map_err(form)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Report;

    /// One with something of everything that a report may have.
    pub(super) fn report() -> Report {
        let times = json!({"count": 100, "mean": 6.0, "p50": 5.0, "p90": 9.0, "p99": 20.0,
            "p999": 30.0, "max": 31.0});
        let point = |at: f64| {
            json!({"at": at, "seconds": 1.0, "answered": 50, "failed": 1, "p50": 5.0, "p99": 20.0,
                "max": 31.0})
        };
        let process = |at: f64| json!({"at": at, "cpu": at / 2.0, "memory": 5 << 20});
        let verdict = |held: bool| json!({"what": "p99 <= 1 s", "held": held, "measured": "20 ms"});
        serde_json::from_value(json!({
            "schema": super::SCHEMA, "run": "1a2b", "scenario": "density",
            "description": "Pods, <b>\"many\"</b> & more.", "command": ["insula", "it's <here>"],
            "began": "2026-01-01T00:00:00Z", "seconds": 2.0, "ending": "failed",
            "reason": "a step <failed>",
            "machine": {"host": "h", "cpu": "C & D", "cpus": 2, "memory": 1u64 << 33,
                "kernel": "6", "load": "0.1"},
            "client": "0.1.0",
            "server": {"version": {"gitVersion": "v1.36"}, "hasTenants": true, "tenants": 2,
                "namespaces": 2, "connections": 8},
            "notes": ["a <note>"],
            "steps": [{"name": "fill", "verb": "create", "began": 0.0, "seconds": 2.0,
                "wantedRate": 100.0}],
            "calls": [{"step": "fill", "verb": "create", "resource": "pods", "scope": "resource",
                "answered": 100, "failed": 2, "errors": {"Conflict <&>": 2}, "rate": 100.0,
                "latency": times, "service": times, "longestGap": 0.1,
                "points": [point(1.0), point(2.0)]}],
            "podStartup": {"running": times}, "podsScheduledPerSecond": 99.0,
            "pods": {"running": 100},
            "watch": {"events": 200, "reopened": 0, "lag": times},
            "processes": [{"name": "server", "cpuSeconds": 1.0, "memoryBegin": 1 << 20,
                "memoryMost": 5 << 20, "memoryEnd": 4 << 20,
                "points": [process(1.0), process(2.0), process(3.0)]}],
            "generator": {"cpusUsed": 0.5, "cpus": 2, "timerLagP99": 0.1, "latenessP99": 0.2,
                "heldBack": 0, "bottlenecks": ["timers <late>"]},
            "slos": [verdict(true)], "thresholds": [verdict(false)],
        }))
        .unwrap()
    }
}
