//! What is said about a request beside its answer: warnings for its client, and annotations for
//! the audit log.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Longest warning, and most bytes of all of one answer.
const MAX_WARNING: usize = 256;
const MAX_WARNINGS: usize = 4096;
/// Most annotations of one request.
const MAX_ANNOTATIONS: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Remarks {
    warnings: Mutex<Vec<String>>,
    annotations: Mutex<BTreeMap<String, String>>,
}

impl Remarks {
    /// Tells the client something, once.
    pub(crate) fn warn(&self, warning: impl Into<String>) {
        let mut warning = warning.into();
        if warning.is_empty() {
            return;
        }
        let mut warnings = self.warnings.lock();
        let total: usize = warnings.iter().map(String::len).sum();
        if MAX_WARNINGS < total + warning.len() {
            // What is long is told shortly, so that the others are told as well.
            let end = (0..=MAX_WARNING).rev().find(|end| warning.is_char_boundary(*end));
            warning.truncate(end.unwrap_or(0).min(warning.len()));
        }
        if total + warning.len() <= MAX_WARNINGS && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Tells the audit log something. What was said first stays.
    pub(crate) fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        let mut annotations = self.annotations.lock();
        if annotations.len() < MAX_ANNOTATIONS {
            annotations.entry(key.into()).or_insert_with(|| value.into());
        }
    }

    /// The warnings so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// The annotations so far.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        self.annotations.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_said_once_and_are_bounded() {
        let remarks = Remarks::default();
        remarks.warn("a");
        remarks.warn("a");
        remarks.warn("");
        assert_eq!(remarks.warnings(), ["a"]);
        for each in 0..100 {
            remarks.warn(format!("{each}{}", "ä".repeat(200)));
        }
        let total: usize = remarks.warnings().iter().map(String::len).sum();
        assert!(total <= MAX_WARNINGS && 3500 < total, "{total}");
    }

    #[test]
    fn the_first_annotation_stays() {
        let remarks = Remarks::default();
        remarks.annotate("k", "1");
        remarks.annotate("k", "2");
        assert_eq!(remarks.annotations().get("k").map(String::as_str), Some("1"));
    }
}
