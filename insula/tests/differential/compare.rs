//! Where two answers differ, in words.

use crate::{answer::Answer, harness::json};

/// One line for each place where `ours` is not as `theirs`.
pub(crate) fn differences(theirs: &Answer, ours: &Answer) -> Vec<String> {
    let mut found = Vec::new();
    if theirs.code != ours.code {
        found.push(format!("code: {}, not {}", ours.code, theirs.code));
    }
    if theirs.content_type != ours.content_type {
        found.push(format!("type: {:?}, not {:?}", ours.content_type, theirs.content_type));
    }
    if theirs.warnings != ours.warnings {
        found.push(format!("warnings: {:?}, not {:?}", ours.warnings, theirs.warnings));
    }
    json::differences("", &theirs.body, &ours.body, &mut found);
    found
}
