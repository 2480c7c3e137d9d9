//! What is said about a request beside its answer: warnings for its client, and annotations for
//! the audit log.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Longest warning, and most bytes of all of one answer.
const MAX_WARNING: usize = 256;
const MAX_WARNINGS: usize = 4096;
/// Most annotations of one request, and the most bytes of one.
const MAX_ANNOTATIONS: usize = 256;
const MAX_ANNOTATION: usize = 10 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Remarks {
    warnings: Mutex<Vec<String>>,
    /// `None` if nobody reads them.
    annotations: Option<Mutex<BTreeMap<String, String>>>,
}

/// Keeps at most `limit` bytes of `text`, in whole characters.
fn cut(text: &mut String, limit: usize) {
    text.truncate(text.floor_char_boundary(limit));
}

impl Remarks {
    pub(crate) fn new(is_audited: bool) -> Self {
        Self { warnings: Mutex::default(), annotations: is_audited.then(Mutex::default) }
    }

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
            cut(&mut warning, MAX_WARNING);
        }
        if total + warning.len() <= MAX_WARNINGS && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Tells the client several things.
    pub(crate) fn warn_all(&self, warnings: impl IntoIterator<Item = String>) {
        warnings.into_iter().for_each(|it| self.warn(it));
    }

    /// Tells the audit log something, if there is one. What was said first stays.
    pub(crate) fn annotate(&self, key: impl Into<String>, value: impl FnOnce() -> String) {
        let Some(annotations) = &self.annotations else { return };
        let mut annotations = annotations.lock();
        if annotations.len() < MAX_ANNOTATIONS {
            annotations.entry(key.into()).or_insert_with(|| {
                let mut value = value();
                cut(&mut value, MAX_ANNOTATION);
                value
            });
        }
    }

    /// The warnings so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// The annotations so far.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        self.annotations.as_ref().map(|it| it.lock().clone()).unwrap_or_default()
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
        let remarks = Remarks::new(true);
        remarks.annotate("k", || "1".into());
        remarks.annotate("k", || "2".into());
        remarks.annotate("long", || "ä".repeat(100_000));
        let said = remarks.annotations();
        assert_eq!(said["k"], "1");
        assert_eq!(said["long"].len(), MAX_ANNOTATION);
        Remarks::new(false).annotate("k", || panic!("nobody reads it"));
    }
}
