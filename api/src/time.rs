//! Times as Kubernetes writes them.

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
