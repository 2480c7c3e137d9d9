//! Reports beside each other: two, or as many as show how something grows.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Call, Report, plot::short};
use crate::measure::UNTIL_SCHEDULED;

/// A figure that all of them have.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub what: String,
    /// Of each report, in their order.
    pub values: Vec<f64>,
    /// What the worst of the others is to the first. Above 1 it is worse, whatever the figure is
    /// about.
    pub worse: f64,
}

/// A figure of one report.
struct Figure {
    what: String,
    value: f64,
    less_is_better: bool,
}

/// What a figure of a call is called, and where it is.
type OfCall = (&'static str, fn(&Call) -> f64);

#[allow(clippy::cast_precision_loss, reason = "bytes of memory")]
fn figures(report: &Report) -> Vec<Figure> {
    let mut all = Vec::new();
    let mut add = |what: String, value: f64, less_is_better: bool| {
        all.push(Figure { what, value, less_is_better });
    };
    for call in &report.calls {
        let name = |figure: &str| {
            format!("{}: {} {}, {figure}", call.key.step, call.key.verb, call.key.resource)
        };
        add(name("a second"), call.rate, false);
        let figures: [OfCall; 3] = [
            ("50 % ms", |it| it.latency.p50),
            ("99 % ms", |it| it.latency.p99),
            ("99.9 % ms", |it| it.latency.p999),
        ];
        for (figure, read) in figures {
            add(name(figure), read(call), true);
        }
    }
    for (phase, times) in &report.pod_startup {
        add(format!("pods {phase}, 50 % ms"), times.p50, true);
        add(format!("pods {phase}, 99 % ms"), times.p99, true);
    }
    if let Some(rate) = report.pods_scheduled_per_second {
        add("pods scheduled a second".into(), rate, false);
    }
    if let Some(watch) = &report.watch {
        add("watch lag, 50 % ms".into(), watch.lag.p50, true);
        add("watch lag, 99 % ms".into(), watch.lag.p99, true);
    }
    for process in &report.processes {
        let name = |figure: &str| format!("{}: {figure}", process.name);
        add(name("CPU seconds"), process.cpu_seconds, true);
        if let Some(pods) = scheduled(report) {
            let cpu = 1e3 * process.cpu_seconds / pods;
            add(name("CPU ms for each pod scheduled"), cpu, true);
        }
        add(name("most memory, bytes"), process.memory_most as f64, true);
        let told = [
            ("written to disk, bytes", process.written),
            ("sent, bytes", process.sent),
            ("received, bytes", process.received),
        ];
        for (figure, bytes) in told {
            if let Some(bytes) = bytes {
                add(name(figure), bytes as f64, true);
            }
        }
    }
    all.retain(|it| 0.0 < it.value);
    all
}

/// How many pods were scheduled while it was measured.
#[allow(clippy::cast_precision_loss, reason = "numbers of pods")]
fn scheduled(report: &Report) -> Option<f64> {
    let times = report.pod_startup.get(UNTIL_SCHEDULED)?;
    (0 < times.count).then_some(times.count as f64)
}

/// Figures that all reports have.
pub fn rows(reports: &[Report]) -> Vec<Row> {
    let mut others = reports.iter().map(figures);
    let Some(first) = others.next() else { return Vec::new() };
    let others: Vec<Vec<Figure>> = others.collect();
    let row = |figure: Figure| {
        let mut values = vec![figure.value];
        for other in &others {
            values.push(other.iter().find(|it| it.what == figure.what)?.value);
        }
        let times = |value: &f64| match figure.less_is_better {
            true => value / figure.value,
            false => figure.value / value,
        };
        let worse = values.iter().skip(1).map(times).fold(0.0, f64::max);
        Some(Row { what: figure.what, values, worse })
    };
    first.into_iter().filter_map(row).collect()
}

/// The rows as a table, and what to know of each report.
pub fn table(reports: &[Report], rows: &[Row]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (name, it) in ('A'..).zip(reports) {
        let server = it.server.version["gitVersion"].as_str().unwrap_or("unknown");
        let _ = writeln!(
            text,
            "{name}: {}{} on {server}, {}, {} x {}",
            it.scenario,
            variables(&it.command),
            it.began,
            it.machine.cpus,
            it.machine.cpu
        );
        for why in &it.generator.bottlenecks {
            let _ = writeln!(text, "   the generator was a bottleneck: {why}");
        }
    }
    if reports.windows(2).any(|it| it[0].scenario != it[1].scenario) {
        text.push_str("These are several scenarios: only steps of the same name are compared.\n");
    }
    let width = rows.iter().map(|it| it.what.len()).max().unwrap_or(0).max(6);
    let _ = write!(text, "{:width$}", "");
    for (name, _) in ('A'..).zip(reports) {
        let _ = write!(text, " {name:>10}");
    }
    let _ = writeln!(text, "{}", if reports.len() == 2 { "     B is" } else { "" });
    for row in rows {
        let _ = write!(text, "{:width$}", row.what);
        for value in &row.values {
            let _ = write!(text, " {:>10}", short(*value));
        }
        let told = match row.worse {
            // Of what grows nobody asks whether it is better.
            _ if reports.len() != 2 => String::new(),
            worse if 1.005 <= worse => format!("  {worse:.2} worse"),
            worse if worse <= 0.995 => format!("  {:.2} better", 1.0 / worse.max(1e-9)),
            _ => "  the same".to_owned(),
        };
        text.push_str(&told);
        text.push('\n');
    }
    text
}

/// What the command that made a report gave variables.
fn variables(command: &[String]) -> String {
    let given = command.windows(2).filter(|it| it[0] == "--set");
    given.map(|it| format!(" {}", it[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::report, *};

    #[test]
    fn what_all_have_stands_side_by_side() {
        let mut reports = vec![report(), report(), report()];
        reports[1].calls[0].rate = 50.0;
        reports[2].calls[0].latency.p99 = 80.0;
        reports[2].watch = None;
        reports[1].command = ["insula", "--set", "nodes=7"].map(String::from).to_vec();
        let rows = rows(&reports);
        let of = |what: &str| rows.iter().find(|it| it.what == what);
        let rate = of("fill: create pods, a second").unwrap();
        assert_eq!((&*rate.values, rate.worse), (&[100.0, 50.0, 100.0][..], 2.0));
        let p99 = of("fill: create pods, 99 % ms").unwrap();
        assert_eq!((&*p99.values, p99.worse), (&[20.0, 20.0, 80.0][..], 4.0));
        assert!(of("watch lag, 99 % ms").is_none(), "one has none");
        let table = table(&reports, &rows);
        assert!(table.contains("B: density nodes=7 on v1.36"), "{table}");
        assert!(!table.contains("worse"), "{table}");
        assert!(super::rows(&[]).is_empty());
    }
}
