//! The set of paths that an object has.

use serde_json::Value;

use super::{
    go,
    place::{Division, Form, Member, Misfit, Place, form, item_step},
    set::{Set, Step},
};

/// What two items of a list with the same key are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicates {
    /// A mistake of whoever wrote the object.
    Refused,
    /// One path, as objects were stored before anybody looked.
    One,
}

/// The paths that somebody who writes all of `object` speaks of: its leaves, the entries of its
/// maps and the items of its lists.
pub fn set_of<'a, P: Place>(
    root: P,
    object: &'a Value,
    duplicates: Duplicates,
) -> Result<Set<'a>, Misfit> {
    Ok(walk(root, object, duplicates)?.1)
}

/// Whether the path to `value` is itself in the set, and what is below it.
fn walk<'a, P: Place>(
    place: P,
    value: &'a Value,
    duplicates: Duplicates,
) -> Result<(bool, Set<'a>), Misfit> {
    let mut set = Set::default();
    match (form(place, value), value) {
        (Form::Leaf, _) => return Ok((true, set)),
        (Form::Map, Value::Object(map)) => {
            for (name, value) in map {
                let step = Step::field(name);
                let member = member(place, name, &step)?;
                let (owned, below) =
                    walk(member.place, value, duplicates).map_err(|error| error.below(&step))?;
                let empty = value.is_null() || value.as_object().is_some_and(|it| it.is_empty());
                set.push(step, owned || empty || !member.named, below);
            }
        }
        (Form::List, Value::Array(list)) => {
            let item_place = place.item();
            for (index, item) in list.iter().enumerate() {
                let step = item_step(place, item).map_err(|error| at_index(index, error))?;
                let (_, below) =
                    walk(item_place, item, duplicates).map_err(|error| error.below(&step))?;
                set.push(step, true, below);
            }
            fold(&mut set, duplicates)?;
        }
        // Null is an empty map and an empty list.
        (_, Value::Null) => (),
        (form, _) => return Err(mismatch(form, value)),
    }
    Ok((false, set))
}

/// Items that are there more than once are one path, with nothing below it.
fn fold(set: &mut Set<'_>, duplicates: Duplicates) -> Result<(), Misfit> {
    set.nodes.sort_by(|one, two| one.step.cmp(&two.step));
    let twice = set.nodes.windows(2).find(|pair| pair[0].step == pair[1].step);
    if let (Some(pair), Duplicates::Refused) = (twice, duplicates) {
        return Err(Misfit::here(format!("duplicate entries for key {}", pair[0].step)));
    }
    set.nodes.dedup_by(|later, kept| {
        let same = later.step == kept.step;
        if same {
            kept.below = Set::EMPTY;
        }
        same
    });
    Ok(())
}

pub(super) fn at_index(index: usize, error: Misfit) -> Misfit {
    Misfit { why: format!("element {index}: {}", error.why), ..error }
}

pub(super) fn mismatch(form: Form, value: &Value) -> Misfit {
    let wanted = if form == Form::Map { "map" } else { "list" };
    let found: String = go::plain(value).chars().take(120).collect();
    Misfit::here(format!("expected {wanted}, got &{{{found}}}"))
}

pub(super) fn member<P: Place>(place: P, name: &str, step: &Step<'_>) -> Result<Member<P>, Misfit> {
    place.member(name).ok_or_else(|| Misfit::here("field not declared in schema").below(step))
}

/// The paths that whoever creates `object` adds to what every new object has.
pub fn created<P: Place>(root: P, object: &Value) -> Result<Set<'_>, Misfit> {
    Ok(added(root, object, true)?.1)
}

/// As [`created`], below a place that every object has (`always`) or that is new.
pub(super) fn added<P: Place>(
    place: P,
    value: &Value,
    always: bool,
) -> Result<(bool, Set<'_>), Misfit> {
    let mut set = Set::default();
    if always && place.division() == Division::Deduced {
        // It was null before, which is nothing that could be divided.
        return Ok((!is_zero(value), set));
    }
    match (form(place, value), value) {
        (Form::Map, Value::Object(map)) if !map.is_empty() => {
            for (name, value) in map {
                let step = Step::field(name);
                let member = member(place, name, &step)?;
                let (owned, below) = added(member.place, value, always && member.always)
                    .map_err(|error| error.below(&step))?;
                set.push(step, owned, below);
            }
        }
        (Form::List, Value::Array(list)) if !list.is_empty() => {
            let item_place = place.item();
            for (index, item) in list.iter().enumerate() {
                let step = item_step(place, item).map_err(|error| at_index(index, error))?;
                let (owned, below) =
                    added(item_place, item, false).map_err(|error| error.below(&step))?;
                set.push(step, owned, below);
            }
            fold(&mut set, Duplicates::One)?;
        }
        (Form::Leaf, _) | (Form::Map, Value::Object(_)) | (Form::List, Value::Array(_)) => {
            return Ok((!(always && is_zero(value)), set));
        }
        (_, Value::Null) => return Ok((!always, set)),
        (form, _) => return Err(mismatch(form, value)),
    }
    Ok((!always, set))
}

/// What Go's encoder writes for a field that nobody set.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_zero),
    }
}

/// Whether lists of this division have items with names.
pub(super) fn is_divided_list(division: Division) -> bool {
    matches!(division, Division::Set | Division::Keyed)
}
