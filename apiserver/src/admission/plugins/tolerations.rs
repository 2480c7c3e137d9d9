//! Tolerations of two sources together: what another one covers is left out.

use insula_api::object;
use serde_json::Value;

/// All of `list` that no other one of it covers; of equal ones the first.
pub(super) fn merged(list: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for (index, it) in list.iter().enumerate() {
        let is_known = merged.iter().any(|other| covers(other, it));
        let rest = list.get(index + 1..).unwrap_or_default();
        if !is_known && !rest.iter().any(|other| other != it && covers(other, it)) {
            merged.push(it.clone());
        }
    }
    merged
}

/// Whether `wide` tolerates all that `narrow` does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let text = |it: &Value, field: &str| object::text(it, &[field]).to_owned();
    if wide == narrow {
        return true;
    }
    let is_any = text(wide, "key").is_empty() && text(wide, "operator") == "Exists";
    if text(narrow, "key") != text(wide, "key") && !is_any {
        return false;
    }
    let effect = text(wide, "effect");
    if text(narrow, "effect") != effect && !effect.is_empty() {
        return false;
    }
    let seconds = |it: &Value| it.get("tolerationSeconds").and_then(Value::as_i64);
    if effect == "NoExecute"
        && let Some(limit) = seconds(wide)
        && seconds(narrow).is_none_or(|it| limit < it)
    {
        return false;
    }
    match text(wide, "operator").as_str() {
        "" | "Equal" => {
            text(narrow, "operator") == "Equal" && text(narrow, "value") == text(wide, "value")
        }
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_wider_one_stays() {
        let all = json!({"operator": "Exists"});
        let one = json!({"key": "a", "operator": "Exists"});
        let equal = json!({"key": "a", "operator": "Equal", "value": "x"});
        let other = json!({"key": "b", "operator": "Equal", "value": "x"});
        assert_eq!(
            merged(&[equal.clone(), one.clone(), other.clone()]),
            [one.clone(), other.clone()]
        );
        assert_eq!(merged(&[one.clone(), equal.clone(), one.clone()]), std::slice::from_ref(&one));
        assert_eq!(merged(&[one, other, all.clone()]), [all]);
        let short = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let long = json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        assert_eq!(merged(&[short, long.clone()]), [long]);
    }
}
