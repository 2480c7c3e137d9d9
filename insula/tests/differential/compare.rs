//! Where two answers differ, in words.

use serde_json::Value;

use crate::answer::Answer;

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
    values("", &theirs.body, &ours.body, &mut found);
    found
}

fn values(at: &str, theirs: &Value, ours: &Value, found: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (name, value) in theirs {
                match ours.get(name) {
                    Some(other) => values(&format!("{at}.{name}"), value, other, found),
                    None => found.push(format!("{at}.{name}: nothing, not {value}")),
                }
            }
            for (name, value) in ours.iter().filter(|(name, _)| !theirs.contains_key(*name)) {
                found.push(format!("{at}.{name}: {value}, not nothing"));
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (index, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                values(&format!("{at}[{index}]"), theirs, ours, found);
            }
        }
        _ if theirs != ours => found.push(format!("{at}: {ours}, not {theirs}")),
        _ => (),
    }
}
