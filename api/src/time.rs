//! Times as Kubernetes writes them.

use std::time::Duration;

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};

/// `metav1.Time`: RFC 3339, UTC, whole seconds. `None` if `text` is not RFC 3339.
pub fn normalize(text: &str) -> Option<String> {
    let time: Timestamp = text.parse().ok()?;
    Some(seconds(time))
}

/// `metav1.MicroTime`: RFC 3339, UTC, six digits of fraction.
pub fn normalize_micro(text: &str) -> Option<String> {
    let time: Timestamp = text.parse().ok()?;
    Some(micros(time))
}

/// `time` with whole seconds, as in `2026-11-21T10:00:00Z`.
pub fn seconds(time: Timestamp) -> String {
    print(time, 0)
}

/// `time` with microseconds, as in `2026-11-21T10:00:00.000000Z`.
pub fn micros(time: Timestamp) -> String {
    print(time, 6)
}

fn print(time: Timestamp, precision: u8) -> String {
    let mut out = String::with_capacity(28);
    let printer = DateTimePrinter::new().precision(Some(precision));
    // Printing into a String cannot fail.
    let _ = printer.print_timestamp(&time, &mut out);
    out
}

/// The wall clock, whole seconds.
pub fn now() -> String {
    seconds(Timestamp::now())
}

/// A duration as Go writes it, such as `1m30s` or `1.5s`; `None` for others, and for negative ones.
pub fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text.strip_prefix('+').unwrap_or(text), 0.0);
    while !rest.is_empty() {
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|it: char| it.is_ascii_digit() || it == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[end..];
        seconds += number * unit;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_and_cut() {
        assert_eq!(normalize("2026-11-21T10:00:00.987+02:00").unwrap(), "2026-11-21T08:00:00Z");
        assert_eq!(normalize_micro("2026-11-21T10:00:00Z").unwrap(), "2026-11-21T10:00:00.000000Z");
        assert_eq!(normalize("yesterday"), None);
        assert_eq!(normalize("2026-11-21"), None);
    }
}
