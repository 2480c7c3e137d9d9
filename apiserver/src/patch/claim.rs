//! What a `test` of a JSON patch claims of an object, as upstream understands it: a member that is
//! not there is null. Clients that add the first of a list rely on it, and so does who adds nothing
//! where something is.

use json_patch::TestOperation;
use serde_json::Value;

/// Why a test stops its patch.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    /// It can be asked, and is not so.
    #[error("testing value {0} failed: test failed")]
    Untrue(String),
    #[error("test operation does not apply: is missing path: {0}: missing value")]
    Nowhere(String),
    #[error(
        "error in test for path: '{path}': Unable to access invalid index: {index}: invalid index referenced"
    )]
    Beyond { path: String, index: i64 },
}

/// Whether `value` is what a test says.
pub(super) fn holds(value: &Value, claim: &TestOperation) -> Result<(), ClaimError> {
    let path = claim.path.as_str();
    let found = match path.rsplit_once('/') {
        None => Some(value),
        Some((parent, last)) => {
            let nowhere = || ClaimError::Nowhere(path.to_owned());
            match value.pointer(parent).ok_or_else(nowhere)? {
                Value::Object(members) => members.get(&last.replace("~1", "/").replace("~0", "~")),
                Value::Array(items) => {
                    let index: i64 = last.parse().map_err(|_| nowhere())?;
                    // From the end, if below zero.
                    let place = match usize::try_from(index.unsigned_abs()) {
                        Ok(back) if index < 0 => items.len().checked_sub(back),
                        forth => forth.ok(),
                    };
                    let item = place.and_then(|it| items.get(it));
                    let beyond = || ClaimError::Beyond { path: path.to_owned(), index };
                    Some(item.ok_or_else(beyond)?)
                }
                _ => return Err(nowhere()),
            }
        }
    };
    match found.unwrap_or(&Value::Null) == &claim.value {
        true => Ok(()),
        false => Err(ClaimError::Untrue(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Value, told: Option<&str>) {
        let value = json!({"a": {"b/c": 1, "n": null}, "l": ["x", "y"], "s": "t"});
        let claim = json!({"path": path, "value": expected});
        let found = holds(&value, &serde_json::from_value(claim).unwrap());
        match (found, told) {
            (Ok(()), None) => (),
            (Err(error), Some(told)) => assert!(error.to_string().contains(told), "{error}"),
            (found, _) => panic!("{path}: {found:?}"),
        }
    }

    #[test]
    fn absent_members_are_null() {
        check("/a/none", json!(null), None);
        check("/none", json!(null), None);
        check("/a/n", json!(null), None);
        check("/a/none", json!(1), Some("testing value /a/none failed: test failed"));
        check("/a/b~1c", json!(null), Some("testing value"));
        check("/none/none", json!(null), Some("is missing path: /none/none: missing value"));
        check("/s/none", json!(null), Some("is missing path"));
    }

    #[test]
    fn what_is_there_is_compared() {
        check("/a/b~1c", json!(1), None);
        check("/a/b~1c", json!(2), Some("test failed"));
        check("/l", json!(["x", "y"]), None);
        check("/l/1", json!("y"), None);
        check("/l/-1", json!("y"), None);
        check("/l/-2", json!("x"), None);
        check("/l/-3", json!("x"), Some("Unable to access invalid index: -3"));
        check("/l/2", json!(null), Some("Unable to access invalid index: 2"));
        check("/l/-", json!(null), Some("is missing path"));
        check("", json!(1), Some("test failed"));
        let whole = json!({"a": {"b/c": 1, "n": null}, "l": ["x", "y"], "s": "t"});
        check("", whole, None);
    }
}
