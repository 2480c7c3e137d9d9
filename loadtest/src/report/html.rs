//! The page: all of a report in one file that needs nothing else.

use std::fmt::Write as _;

use super::{
    Ending, Report, Times, Verdict,
    plot::{Line, escape, plot, short},
};
use crate::measure::ProcessPoint;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:64em;margin:2em auto;padding:0 1em;color:#111}\
table{border-collapse:collapse;width:100%;margin:.5em 0 1.5em}th,td{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:right}\
th:first-child,td:first-child{text-align:left}td.text{text-align:left}code,pre{background:#f4f4f5;padding:.2em .4em;white-space:pre-wrap}\
svg{width:100%;height:auto}svg text{font-size:11px;fill:#555}.right{text-anchor:end}.middle{text-anchor:middle}\
.grid{stroke:#e5e5e5}polyline{fill:none;stroke-width:1.5}figure{margin:1em 0}figcaption{font-weight:600}.legend{font-size:13px;margin:0}\
.good{color:#047857}.bad{color:#b91c1c;font-weight:600}.note{background:#fef9c3;padding:.4em .8em}";

/// Tables and plots of a report.
pub(super) fn page(report: &Report) -> String {
    let mut page = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\
         <style>{STYLE}</style></head><body><h1>{0}</h1>",
        escape(&report.scenario)
    );
    head(&mut page, report);
    verdicts(&mut page, "Thresholds", &report.thresholds);
    verdicts(&mut page, "Service level objectives of Kubernetes", &report.slos);
    calls(&mut page, report);
    pods(&mut page, report);
    watches(&mut page, report);
    processes(&mut page, report);
    surroundings(&mut page, report);
    page.push_str("</body></html>\n");
    page
}

/// Appends formatted text. Writing to a String cannot fail.
macro_rules! put {
    ($page:expr, $($argument:tt)*) => { let _ = write!($page, $($argument)*); };
}

fn head(page: &mut String, report: &Report) {
    let (class, ending) = match report.ending {
        Ending::Passed => ("good", "passed"),
        Ending::Failed => ("bad", "failed"),
        Ending::Interrupted => ("bad", "interrupted: what follows was measured until then"),
    };
    put!(page, "<p>{}</p>", escape(&report.description));
    put!(page, "<p class=\"{class}\">{ending}");
    if let Some(reason) = &report.reason {
        put!(page, ": {}", escape(reason));
    }
    put!(page, "</p>");
    if !report.generator.bottlenecks.is_empty() {
        let why = escape(&report.generator.bottlenecks.join("; "));
        put!(
            page,
            "<p class=\"note bad\">The generator was a bottleneck: {why}. What follows is \
            partly its own slowness, not the target's.</p>"
        );
    }
    for note in &report.notes {
        put!(page, "<p class=\"note\">{}</p>", escape(note));
    }
}

fn verdicts(page: &mut String, title: &str, verdicts: &[Verdict]) {
    if verdicts.is_empty() {
        return;
    }
    put!(page, "<h2>{title}</h2><table>");
    for it in verdicts {
        let (class, word) = if it.held { ("good", "held") } else { ("bad", "missed") };
        let (what, measured) = (escape(&it.what), escape(&it.measured));
        put!(page, "<tr><td>{what}</td><td>{measured}</td><td class=\"{class}\">{word}</td></tr>");
    }
    put!(page, "</table>");
}

const COLUMNS: &str = "<th>count</th><th>mean</th><th>50 %</th><th>90 %</th><th>99 %</th><th>99.9 %</th><th>most</th>";

fn times(it: &Times) -> String {
    let mut cells = format!("<td>{}</td>", it.count);
    for value in [it.mean, it.p50, it.p90, it.p99, it.p999, it.max] {
        put!(cells, "<td>{}</td>", short(value));
    }
    cells
}

fn calls(page: &mut String, report: &Report) {
    put!(
        page,
        "<h2>Requests</h2><p>Milliseconds, from when a request was meant to begin; in brackets \
         the 99th percentile from when it did.</p><table><tr><th>step</th><th>request</th>\
         <th>a second</th>{COLUMNS}<th>failed</th></tr>"
    );
    for call in &report.calls {
        let key = &call.key;
        let scope =
            if key.scope == "resource" { String::new() } else { format!(" ({})", key.scope) };
        put!(
            page,
            "<tr><td>{}</td><td class=\"text\">{} {}{scope} [{}]</td><td>{}</td>{}<td>{}</td></tr>",
            escape(&key.step),
            escape(&key.verb),
            escape(&key.resource),
            short(call.service.p99),
            short(call.rate),
            times(&call.latency),
            call.failed
        );
        let errors: Vec<String> =
            call.errors.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        if !errors.is_empty() {
            let errors = escape(&errors.join(", "));
            put!(page, "<tr><td></td><td class=\"text bad\" colspan=\"10\">{errors}</td></tr>");
        }
    }
    put!(page, "</table>");
    let lines = |read: fn(&crate::measure::Point) -> f64| -> Vec<Line> {
        let line = |call: &super::Call| Line {
            name: format!("{}: {} {}", call.key.step, call.key.verb, call.key.resource),
            points: call.points.iter().map(|it| (it.at, read(it))).collect(),
        };
        report.calls.iter().filter(|it| 1 < it.points.len()).map(line).collect()
    };
    #[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
    let rate = |it: &crate::measure::Point| it.answered as f64 / it.seconds.max(0.001);
    #[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
    let failed = |it: &crate::measure::Point| it.failed as f64 / it.seconds.max(0.001);
    page.push_str(&plot("Answers", "a second", &lines(rate)));
    page.push_str(&plot("Latency, 99th percentile", "ms", &lines(|it| it.p99)));
    page.push_str(&plot("Latency, median", "ms", &lines(|it| it.p50)));
    if report.calls.iter().any(|it| 0 < it.failed) {
        page.push_str(&plot("Failures", "a second", &lines(failed)));
    }
}

fn pods(page: &mut String, report: &Report) {
    if report.pod_startup.is_empty() {
        return;
    }
    put!(page, "<h2>Pods</h2><p>");
    for (state, n) in &report.pods {
        put!(page, "{n} {state} ");
    }
    if let Some(rate) = report.pods_scheduled_per_second {
        put!(page, "; {} scheduled a second", short(rate));
    }
    put!(page, "</p><table><tr><th>milliseconds, as a watch tells</th>{COLUMNS}</tr>");
    for (phase, it) in &report.pod_startup {
        put!(page, "<tr><td>{phase}</td>{}</tr>", times(it));
    }
    put!(page, "</table>");
}

fn watches(page: &mut String, report: &Report) {
    let Some(watch) = &report.watch else { return };
    put!(
        page,
        "<h2>Watches</h2><p>{} events; {} watches ended and were opened again.</p>\
         <table><tr><th>milliseconds from write to event</th>{COLUMNS}</tr><tr><td>lag</td>{}</tr></table>",
        watch.events,
        watch.reopened,
        times(&watch.lag)
    );
}

/// What of a process is plotted: seconds, and values.
type Read<'a> = dyn Fn(&[ProcessPoint]) -> Vec<(f64, f64)> + 'a;

fn processes(page: &mut String, report: &Report) {
    if report.processes.is_empty() {
        return;
    }
    put!(
        page,
        "<h2>Processes</h2><table><tr><th>process</th><th>CPU seconds</th><th>memory, begin</th>\
         <th>most</th><th>end</th><th>written to disk</th><th>sent</th><th>received</th></tr>"
    );
    #[allow(clippy::cast_precision_loss, reason = "bytes")]
    let size = |bytes: u64| short(bytes as f64);
    let told = |bytes: Option<u64>| bytes.map_or_else(String::new, size);
    for it in &report.processes {
        put!(
            page,
            "<tr><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            escape(&it.name),
            it.cpu_seconds,
            size(it.memory_begin),
            size(it.memory_most),
            size(it.memory_end),
            told(it.written),
            told(it.sent),
            told(it.received)
        );
    }
    put!(page, "</table>");
    let lines = |read: &Read<'_>| -> Vec<Line> {
        report
            .processes
            .iter()
            .map(|it| Line { name: it.name.clone(), points: read(&it.points) })
            .collect()
    };
    let cpu = lines(&|points| {
        let steps = points.iter().zip(points.iter().skip(1));
        steps.map(|(a, b)| (b.at, ((b.cpu - a.cpu) / (b.at - a.at).max(0.001)).max(0.0))).collect()
    });
    #[allow(clippy::cast_precision_loss, reason = "bytes of memory")]
    let memory = lines(&|points| points.iter().map(|it| (it.at, it.memory as f64)).collect());
    #[allow(clippy::cast_precision_loss, reason = "bytes")]
    let rate = |count: fn(&ProcessPoint) -> Option<u64>| {
        lines(&|points| {
            let steps = points.iter().zip(points.iter().skip(1));
            let rates = steps.filter_map(|(a, b)| {
                let more = count(b)?.saturating_sub(count(a)?);
                Some((b.at, more as f64 / (b.at - a.at).max(0.001)))
            });
            rates.collect()
        })
    };
    page.push_str(&plot("CPU", "processors", &cpu));
    page.push_str(&plot("Memory", "bytes", &memory));
    page.push_str(&plot("Written to disk", "bytes a second", &rate(|it| it.written)));
    page.push_str(&plot("Sent", "bytes a second", &rate(|it| it.sent)));
    page.push_str(&plot("Received", "bytes a second", &rate(|it| it.received)));
}

fn surroundings(page: &mut String, report: &Report) {
    let (machine, server, own) = (&report.machine, &report.server, &report.generator);
    let words: Vec<String> = report.command.iter().map(|it| quoted(it)).collect();
    put!(page, "<h2>How it was measured</h2><pre>{}</pre><table>", escape(&words.join(" ")));
    let mut row = |name: &str, value: String| {
        put!(page, "<tr><td>{name}</td><td class=\"text\">{}</td></tr>", escape(&value));
    };
    row("began", format!("{}, {:.1} s, run {}", report.began, report.seconds, report.run));
    row("server", server.version["gitVersion"].as_str().unwrap_or("unknown").to_owned());
    row("client", report.client.clone());
    row(
        "places",
        format!(
            "{} tenants{}, {} namespaces, {} connections",
            server.tenants,
            if server.has_tenants { "" } else { " (the API has none)" },
            server.namespaces,
            server.connections
        ),
    );
    #[allow(clippy::cast_precision_loss, reason = "bytes of memory")]
    let memory = short(machine.memory as f64);
    row(
        "the generator's machine",
        format!(
            "{}: {} x {}, {memory}B, Linux {}, load {} when it began",
            machine.host, machine.cpus, machine.cpu, machine.kernel, machine.load
        ),
    );
    row(
        "the generator",
        format!(
            "used {:.2} of {} processors; 99th percentiles: its timers {:.1} ms late, requests at \
             a rate {:.1} ms late; {} held back by the target",
            own.cpus_used, own.cpus, own.timer_lag_p99, own.lateness_p99, own.held_back
        ),
    );
    put!(
        page,
        "</table><table><tr><th>step</th><th>began</th><th>seconds</th><th>rate asked for</th></tr>"
    );
    for step in &report.steps {
        let rate = step.wanted_rate.map_or_else(String::new, short);
        let name = escape(&step.name);
        put!(
            page,
            "<tr><td>{name}</td><td>{:.1}</td><td>{:.1}</td><td>{rate}</td></tr>",
            step.began,
            step.seconds
        );
    }
    put!(page, "</table>");
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&it);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::report, *};

    /// Takes a page apart into its tags, and stops where one is not ended in its turn.
    fn tags(page: &str) -> Vec<&str> {
        let (mut open, mut all) = (Vec::new(), Vec::new());
        for (at, _) in page.match_indices('<') {
            let tag = &page[at + 1..];
            let tag = &tag[..tag.find('>').unwrap_or_else(|| panic!("no end of {tag}"))];
            let name = tag.split([' ', '/']).find(|it| !it.is_empty()).unwrap();
            assert!(tag.matches('"').count().is_multiple_of(2), "quotes of {tag}");
            all.push(tag);
            match tag {
                _ if tag.ends_with('/') || ["!DOCTYPE", "meta"].contains(&name) => {}
                _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "before {tag}"),
                _ => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?} have no end");
        all
    }

    /// Whatever comes from a server or an operator is text, and nothing is fetched from anywhere.
    #[test]
    fn a_page_is_whole_and_needs_nothing_else() {
        let page = page(&report());
        let tags = tags(&page);
        assert_eq!(tags.iter().filter(|it| it.starts_with("svg")).count(), 6, "a plot each");
        for tag in tags {
            let fetches = ["script", "link", "img", "iframe", "object"];
            assert!(!fetches.iter().any(|it| tag.starts_with(it)), "{tag}");
            assert!(!tag.contains("src=") && !tag.contains("href="), "{tag}");
        }
        for fetched in ["url(", "@import", "http:", "https:"] {
            assert!(!page.contains(fetched), "{fetched}");
        }
        assert!(page.contains("Conflict &lt;&amp;&gt;") && page.contains("&lt;b&gt;"), "{page}");
    }
}
