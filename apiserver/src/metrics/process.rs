//! The process, as the kernel sees it.

use std::fs;

use insula_metrics::write::Writer;
use rustix::param::{clock_ticks_per_second, page_size};

/// The numbers of `/proc/self/stat` that are shown.
struct Stat {
    cpu_seconds: f64,
    threads: u64,
    /// After the machine's start.
    started: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in brackets may contain anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<u64> = rest
            .split_whitespace()
            .skip(1)
            // Some are negative, none of those that are used.
            .map(|it| it.parse().unwrap_or(0))
            .collect();
        // By their number in proc(5), of which the first in `fields` is the fourth.
        let field = |number: usize| fields.get(number - 4).copied();
        let ticks = clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            started: field(22)? as f64 / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page_size() as u64,
        })
    }
}

/// When the machine started, in seconds.
fn boot() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// How many files may be open.
fn most_files() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Writes what is known; where there is no `/proc`, nothing is.
pub(super) fn write(writer: &mut Writer<'_>) -> std::fmt::Result {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(stat) = stat.as_deref().and_then(Stat::parse) {
        let help = "Time that processors worked for the process";
        writer.counters("process_cpu_seconds", help)?.fraction(&[], stat.cpu_seconds)?;
        let name = "process_resident_memory_bytes";
        writer.gauges(name, "Memory that is resident")?.number(&[], stat.resident_bytes)?;
        let name = "process_virtual_memory_bytes";
        writer.gauges(name, "Addresses that are mapped")?.number(&[], stat.virtual_bytes)?;
        writer.gauges("process_threads", "Threads")?.number(&[], stat.threads)?;
        if let Some(boot) = boot() {
            let name = "process_start_time_seconds";
            let help = "When the process started, in seconds since 1970";
            writer.gauges(name, help)?.fraction(&[], boot + stat.started)?;
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let count = open.count() as u64;
        writer.gauges("process_open_fds", "Files that are open")?.number(&[], count)?;
    }
    if let Some(most) = most_files() {
        writer.gauges("process_max_fds", "Files that may be open")?.number(&[], most)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_any_name() {
        let text = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 7 0 12345 8192000 300 18446744073709551615 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu_seconds, stat.threads, stat.started), (3.0, 7, 123.45));
        assert_eq!(
            (stat.virtual_bytes, stat.resident_bytes),
            (8_192_000, 300 * page_size() as u64)
        );
        assert!(Stat::parse("42 (a").is_none() && Stat::parse("42 (a) S 1").is_none());
    }
}
