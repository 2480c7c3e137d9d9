//! Values as Go writes them into messages.

use serde_json::Value;

/// As `%v` does.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            format!("[{}]", list.iter().map(plain).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let entries = map.iter().map(|(name, it)| format!("{name}:{}", plain(it)));
            format!("map[{}]", entries.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

/// As `%#v` does.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::Array(list) => {
            let items = list.iter().map(literal).collect::<Vec<_>>().join(", ");
            format!("{}{{{items}}}", type_name(value))
        }
        Value::Object(map) => {
            let entries = map.iter().map(|(name, it)| format!("{name:?}:{}", literal(it)));
            format!("{}{{{}}}", type_name(value), entries.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

/// As `%v` does what upstream's engine has around each value.
pub(super) fn wrapped(value: &Value) -> String {
    format!("&{{{}}}", plain(value))
}

/// As `%#v` does that.
pub(super) fn literal_wrapped(value: &Value) -> String {
    format!("&value.valueUnstructured{{Value:{}}}", literal(value))
}

/// As `%T` does.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::String(_) => "string",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
