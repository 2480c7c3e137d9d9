//! Tables: what `kubectl get` prints is computed here, not in the client.
//!
//! A resource's columns are data: name, type, priority and where the cell comes from. Cells that
//! need logic are functions in [`cells`].

mod cells;
mod columns;
mod custom;
mod pod;

use insula_api::object;
use serde_json::{Value, json};

use crate::registry::Served;

/// How much of each object goes along with its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IncludeObject {
    None,
    Metadata,
    Object,
}

impl IncludeObject {
    /// The `includeObject` parameter; metadata if it is absent.
    pub(crate) fn parse(text: Option<&str>) -> crate::error::Result<Self> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(crate::error::ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {:?}: must be \
                 'Metadata', 'Object', 'None', or empty",
                other.chars().take(64).collect::<String>()
            ))),
        }
    }
}

/// One column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    kind: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    priority: u8,
    cell: Cell,
}

/// Where a cell comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cell {
    /// The text or number at a path, with what to show if it is absent.
    Path(&'static str, &'static str),
    /// The same, as text whatever it is.
    Text(&'static str, &'static str),
    /// Time since the timestamp at a path.
    Since(&'static str),
    /// The texts of the list at a path, with commas.
    Join(&'static str),
    /// How many items the list at a path has.
    Count(&'static str),
    Computed(fn(&Value) -> Value),
}

/// A `meta.k8s.io/v1` Table of `objects`, which are of `served`.
pub(crate) fn table(
    served: &Served,
    objects: &[Value],
    include: IncludeObject,
    list_metadata: &Value,
) -> Value {
    let is_scale = objects.first().is_some_and(is_scale);
    let built_in = |columns: &[Column]| {
        let definition = |column: &Column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": if is_name(column.name) && !is_scale { "name" } else { "" },
                "description": "",
                "priority": column.priority,
            })
        };
        columns.iter().map(definition).collect::<Vec<_>>()
    };
    let definitions = match Columns::of(served, is_scale) {
        Columns::BuiltIn(columns) => built_in(columns),
        Columns::Own(columns) => custom::definitions(columns),
    };
    let rows: Vec<Value> = objects.iter().map(|it| row(served, it, include)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

/// The row of one object.
pub(crate) fn row(served: &Served, it: &Value, include: IncludeObject) -> Value {
    // A kind has the same columns in all its versions.
    let kept = |it: &Value| {
        let mut kept = it.clone();
        served.other?.keep(&mut kept);
        Some(kept)
    };
    let cells: Vec<Value> = match Columns::of(served, is_scale(it)) {
        Columns::Own(columns) => custom::cells(columns, it),
        Columns::BuiltIn(columns) => {
            let kept = kept(it);
            let it = kept.as_ref().unwrap_or(it);
            columns.iter().map(|column| cell(column, it)).collect()
        }
    };
    let mut row = json!({ "cells": cells });
    match include {
        IncludeObject::None => row["object"] = Value::Null,
        IncludeObject::Metadata => row["object"] = object::partial_metadata(it),
        IncludeObject::Object => row["object"] = it.clone(),
    }
    row
}

/// The columns of a kind, or of a tenant's own definition.
enum Columns<'a> {
    BuiltIn(&'static [Column]),
    Own(&'a [insula_custom::definition::Column]),
}

impl<'a> Columns<'a> {
    fn of(served: &'a Served, is_scale: bool) -> Self {
        match served.custom() {
            Some(_) if is_scale => Self::Own(custom::of_scales()),
            Some(it) => Self::Own(&it.version.columns),
            None if is_scale => Self::BuiltIn(columns::of_scales()),
            None => Self::BuiltIn(columns::of(&served.resource)),
        }
    }
}

fn cell(column: &Column, object: &Value) -> Value {
    match column.cell {
        Cell::Path(path, absent) => match at(object, path) {
            None | Some(Value::Null) => absent_cell(column.kind, absent),
            Some(Value::String(text)) if text.is_empty() => absent_cell(column.kind, absent),
            Some(Value::Bool(is)) => (*is).into(),
            Some(value @ (Value::String(_) | Value::Number(_))) => value.clone(),
            Some(other) => other.to_string().into(),
        },
        Cell::Text(path, absent) => match at(object, path) {
            None | Some(Value::Null) => absent.into(),
            Some(Value::String(text)) => text.as_str().into(),
            Some(other) => other.to_string().into(),
        },
        Cell::Since(path) => cells::since(at(object, path).and_then(Value::as_str)),
        Cell::Join(path) => cells::more::join(at(object, path)),
        Cell::Count(path) => cells::more::count(at(object, path)),
        Cell::Computed(compute) => compute(object),
    }
}

/// Numbers stay numbers: `0` for an absent count.
fn absent_cell(kind: &str, text: &str) -> Value {
    match kind {
        "boolean" => (text == "true").into(),
        _ if text == "false" => false.into(),
        _ => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
    }
}

/// Whether a value is no object of the resource asked for, but the scale of one.
fn is_scale(it: &Value) -> bool {
    it["kind"] == "Scale" && it["apiVersion"] == "autoscaling/v1"
}

/// The column that clients know rows by.
fn is_name(column: &str) -> bool {
    matches!(column, "Name" | "Attacher")
}

/// The value at a dotted path.
pub(crate) fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, part| value.get(part))
}

/// The text at a dotted path, empty if absent.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The items at a dotted path.
pub(crate) fn items<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The number at a dotted path, 0 if absent.
pub(crate) fn number(object: &Value, path: &str) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        for served in crate::registry::Registry::built_in().all() {
            let resource = &served.resource;
            let made = table(
                served,
                &[json!({"metadata": {"name": "x"}})],
                IncludeObject::Metadata,
                &json!({}),
            );
            let columns = made["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(
                made["rows"][0]["cells"].as_array().unwrap().len(),
                columns,
                "{}",
                resource.name
            );
            // Events begin with the time.
            if resource.name != "events" {
                assert_eq!(made["rows"][0]["cells"][0], "x", "{}", resource.name);
            }
        }
    }
}
