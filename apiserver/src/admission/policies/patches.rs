//! What expressions of mutations mean: parts of an object to apply, and JSON patches.

use insula_api::{
    schema::Schema,
    structural::{
        built_in::BuiltIn,
        merge::merge,
        place::{Deduced, Division, Place},
    },
};
use insula_cel::{Value as Cel, made::Made};
use insula_custom::place::Spot;
use serde_json::{Map, Value};

use crate::{admission::rules::Meant, patch};

/// Merges what an expression made into the object.
pub(super) fn apply(
    meant: &Meant,
    has_own_kind: bool,
    object: &Value,
    made: &Cel<'_>,
) -> Result<Value, String> {
    let Cel::Made(it) = made else {
        return Err(format!(
            "unsupported return type from ApplyConfiguration expression: {}",
            made.kind()
        ));
    };
    check_names(it)?;
    let mut config = made.to_json().ok_or("invalid return type: it has no form in JSON")?;
    for field in ["apiVersion", "kind"] {
        config[field] = object.get(field).cloned().unwrap_or_default();
    }
    match (meant.served.custom().filter(|_| has_own_kind), Schema::built_in().by_kind(&meant.kind))
    {
        (Some(custom), _) => merge_at(Spot::Object(&custom.version.schema), object, &config),
        (None, Some(id)) => merge_at(BuiltIn::root(id), object, &config),
        (None, None) => merge_at(Deduced, object, &config),
    }
}

fn check_names(made: &Made<'_>) -> Result<(), String> {
    match made.misnamed().as_slice() {
        [] => Ok(()),
        list => Err(format!("type mismatch: {}", list.join("\n"))),
    }
}

fn merge_at<P: Place>(root: P, object: &Value, config: &Value) -> Result<Value, String> {
    let mut whole = Vec::new();
    find_whole(root, config, &mut String::new(), &mut whole);
    if !whole.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            whole.join(", ")
        ));
    }
    merge(root, object.clone(), config).map_err(|error| {
        format!("error applying patch: failed to convert patch object to typed object: {error}")
    })
}

/// Finds lists and structures that can only be replaced as a whole: whoever names a part of them
/// would drop the rest.
fn find_whole<P: Place>(place: P, value: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    let is_whole = place.division() == Division::Whole;
    match value {
        Value::Object(map) => {
            if is_whole {
                found.push(path.clone());
            }
            for (name, value) in map {
                let Some(member) = place.member(name) else { continue };
                path.push('.');
                path.push_str(name);
                find_whole(member.place, value, path, found);
                path.truncate(length);
            }
        }
        Value::Array(list) => {
            if is_whole {
                found.push(path.clone());
            }
            for (index, value) in list.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                find_whole(place.item(), value, path, found);
                path.truncate(length);
            }
        }
        _ => (),
    }
}

/// Patches the object as an expression says. `None` if one of its tests does not hold.
pub(super) fn patch(object: &Value, made: &Cel<'_>) -> Result<Option<Value>, String> {
    let items =
        made.items().ok_or("type mismatch: JSONPatchType.expression should evaluate to array")?;
    let operations: Vec<Value> = items.iter().map(operation).collect::<Result<_, _>>()?;
    let patch: json_patch::Patch = serde_json::from_value(operations.into())
        .map_err(|error| format!("JSON Patch: {error}"))?;
    let mut patched = object.clone();
    match patch::run_tested(&mut patched, &patch) {
        Ok(true) => Ok(Some(patched)),
        Ok(false) => Ok(None),
        Err(error) => Err(format!("JSON Patch: {}", error.message)),
    }
}

fn operation(it: &Cel<'_>) -> Result<Value, String> {
    let Cel::Made(made) = it else {
        return Err(
            "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".into(),
        );
    };
    let mut operation = Map::new();
    for field in ["op", "path", "from"] {
        let text = made.fields.get(field).and_then(Cel::as_text).unwrap_or_default();
        if field != "from" || !text.is_empty() {
            operation.insert(field.into(), text.into());
        }
    }
    if let Some(value) = made.fields.get("value") {
        if let Cel::Made(value) = value {
            check_names(value)?;
        }
        let value = value
            .to_json()
            .ok_or("JSONPath valueExpression evaluated to a type that could not marshal to JSON")?;
        operation.insert("value".into(), value);
    }
    Ok(operation.into())
}
