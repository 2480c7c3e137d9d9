//! Tables of custom resources: a name, and the columns of the definition.

use std::sync::LazyLock;

use insula_custom::{definition::Column, jsonpath::JsonPath};
use serde_json::{Value, json};

use super::cells;

/// The columns of what says how many replicas there are of an object.
pub(super) fn of_scales() -> &'static [Column] {
    static COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
        let columns = [
            ("Desired", "integer", ".spec.replicas"),
            ("Available", "integer", ".status.replicas"),
            ("Age", "date", ".metadata.creationTimestamp"),
        ];
        let column = |(name, kind, path): (&str, &str, &str)| {
            Some(Column {
                name: name.into(),
                kind: kind.into(),
                format: String::new(),
                description: String::new(),
                priority: 0,
                path: JsonPath::parse(path).ok()?,
            })
        };
        columns.into_iter().filter_map(column).collect()
    });
    &COLUMNS
}

/// `columnDefinitions`.
pub(super) fn definitions(columns: &[Column]) -> Vec<Value> {
    let name = json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name must be unique within a namespace.",
    });
    let own = columns.iter().map(|it| {
        json!({
            "name": it.name, "type": it.kind, "format": it.format, "priority": it.priority,
            "description": it.description,
        })
    });
    std::iter::once(name).chain(own).collect()
}

/// The cells of one object.
pub(super) fn cells(columns: &[Column], it: &Value) -> Vec<Value> {
    let name = Value::from(insula_api::object::name(it));
    std::iter::once(name).chain(columns.iter().map(|column| cell(column, it))).collect()
}

/// What is not of the column's type is shown as nothing, but for texts, which show everything.
fn cell(column: &Column, it: &Value) -> Value {
    let Some(found) = column.path.first(it).filter(|it| !it.is_null()) else {
        return Value::Null;
    };
    match (column.kind.as_str(), found) {
        ("string", Value::String(_)) => found.clone(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => number.into(),
            // As Go converts: towards zero.
            (None, Some(number)) => {
                let text = format!("{:.0}", number.trunc());
                text.parse::<i64>().map_or(Value::Null, Value::from)
            }
            _ => Value::Null,
        },
        ("number", Value::Number(number)) => number.as_f64().map_or(Value::Null, Value::from),
        ("boolean", Value::Bool(_)) => found.clone(),
        ("date", Value::String(text)) => cells::since(Some(text)),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: &str, value: Value, expected: Value) {
        let column = Column {
            name: "X".into(),
            kind: kind.into(),
            format: String::new(),
            description: String::new(),
            priority: 0,
            path: JsonPath::parse(".x").unwrap(),
        };
        let it = json!({"metadata": {"name": "n"}, "x": value});
        assert_eq!(cells(&[column], &it), [json!("n"), expected]);
    }

    #[test]
    fn cells_by_type() {
        check("string", json!("a"), json!("a"));
        check("string", json!(1), json!("1"));
        check("string", json!(["a"]), json!(r#"["a"]"#));
        check("integer", json!(3), json!(3));
        check("integer", json!(3.7), json!(3));
        check("integer", json!("3"), Value::Null);
        check("boolean", json!(true), json!(true));
        check("number", json!(1), json!(1.0));
        check("date", json!("yesterday"), json!("<invalid>"));
        check("string", Value::Null, Value::Null);
    }
}
