//! Where two documents differ.

use serde_json::Value;

/// Adds one line for each place below `at` where `ours` is not as `theirs`.
pub(crate) fn differences(at: &str, theirs: &Value, ours: &Value, found: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (name, value) in theirs {
                match ours.get(name) {
                    Some(other) => differences(&format!("{at}.{name}"), value, other, found),
                    None => found.push(format!("{at}.{name}: nothing, not {value}")),
                }
            }
            for (name, value) in ours.iter().filter(|(name, _)| !theirs.contains_key(*name)) {
                found.push(format!("{at}.{name}: {value}, not nothing"));
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (index, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
                differences(&format!("{at}[{index}]"), theirs, ours, found);
            }
        }
        _ if theirs != ours => found.push(format!("{at}: {ours}, not {theirs}")),
        _ => (),
    }
}
