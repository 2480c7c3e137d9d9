//! Two reports beside each other.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Call, Report, plot::short};
use crate::measure::UNTIL_SCHEDULED;

/// A figure of both, and how many times the first the second is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub what: String,
    pub first: f64,
    pub second: f64,
    /// Above 1 the second is worse, whatever the figure is about.
    pub worse: f64,
}

/// What a figure is called, and where it is.
type Figure = (&'static str, fn(&Call) -> f64);

/// Figures that both reports have.
pub fn rows(first: &Report, second: &Report) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |what: String, a: f64, b: f64, less_is_better: bool| {
        if 0.0 < a && 0.0 < b {
            let worse = if less_is_better { b / a } else { a / b };
            rows.push(Row { what, first: a, second: b, worse });
        }
    };
    for call in &first.calls {
        let Some(other) = second.calls.iter().find(|it| it.key == call.key) else { continue };
        let name = |figure: &str| {
            format!("{}: {} {}, {figure}", call.key.step, call.key.verb, call.key.resource)
        };
        add(name("a second"), call.rate, other.rate, false);
        let figures: [Figure; 3] = [
            ("50 % ms", |it| it.latency.p50),
            ("99 % ms", |it| it.latency.p99),
            ("99.9 % ms", |it| it.latency.p999),
        ];
        for (figure, read) in figures {
            add(name(figure), read(call), read(other), true);
        }
    }
    for (phase, times) in &first.pod_startup {
        if let Some(other) = second.pod_startup.get(phase) {
            add(format!("pods {phase}, 50 % ms"), times.p50, other.p50, true);
            add(format!("pods {phase}, 99 % ms"), times.p99, other.p99, true);
        }
    }
    if let (Some(one), Some(other)) =
        (first.pods_scheduled_per_second, second.pods_scheduled_per_second)
    {
        add("pods scheduled a second".into(), one, other, false);
    }
    if let (Some(one), Some(other)) = (&first.watch, &second.watch) {
        add("watch lag, 50 % ms".into(), one.lag.p50, other.lag.p50, true);
        add("watch lag, 99 % ms".into(), one.lag.p99, other.lag.p99, true);
    }
    #[allow(clippy::cast_precision_loss, reason = "bytes of memory")]
    for process in &first.processes {
        let Some(other) = second.processes.iter().find(|it| it.name == process.name) else {
            continue;
        };
        let name = |figure: &str| format!("{}: {figure}", process.name);
        add(name("CPU seconds"), process.cpu_seconds, other.cpu_seconds, true);
        if let (Some(one), Some(two)) = (scheduled(first), scheduled(second)) {
            let (one, two) = (process.cpu_seconds / one, other.cpu_seconds / two);
            add(name("CPU ms for each pod scheduled"), 1e3 * one, 1e3 * two, true);
        }
        let (one, two) = (process.memory_most as f64, other.memory_most as f64);
        add(name("most memory, bytes"), one, two, true);
    }
    rows
}

/// How many pods were scheduled while it was measured.
#[allow(clippy::cast_precision_loss, reason = "numbers of pods")]
fn scheduled(report: &Report) -> Option<f64> {
    let times = report.pod_startup.get(UNTIL_SCHEDULED)?;
    (0 < times.count).then_some(times.count as f64)
}

/// The rows as a table, and what to know of the two.
pub fn table(first: &Report, second: &Report, rows: &[Row]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (name, it) in [("A", first), ("B", second)] {
        let server = it.server.version["gitVersion"].as_str().unwrap_or("unknown");
        let _ = writeln!(
            text,
            "{name}: {} on {server}, {}, {} x {}",
            it.scenario, it.began, it.machine.cpus, it.machine.cpu
        );
        for why in &it.generator.bottlenecks {
            let _ = writeln!(text, "   the generator was a bottleneck: {why}");
        }
    }
    if first.scenario != second.scenario {
        text.push_str("These are two scenarios: only steps of the same name are compared.\n");
    }
    let width = rows.iter().map(|it| it.what.len()).max().unwrap_or(0).max(6);
    let _ = writeln!(text, "{:width$} {:>10} {:>10} {:>8}", "", "A", "B", "B is");
    for row in rows {
        let told = match row.worse {
            worse if 1.005 <= worse => format!("{worse:.2} worse"),
            worse if worse <= 0.995 => format!("{:.2} better", 1.0 / worse.max(1e-9)),
            _ => "the same".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:width$} {:>10} {:>10}  {told}",
            row.what,
            short(row.first),
            short(row.second)
        );
    }
    text
}
