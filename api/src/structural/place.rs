//! What a schema says of one place in an object.

use std::borrow::Cow;

use serde_json::Value;

use super::set::Step;

/// How the value at a place is divided between managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// Not at all: a scalar, or an atomic list, map or structure.
    Whole,
    /// Each field of a structure, or each entry of a map, by itself.
    Fields,
    /// A list of scalars, each of which is there or not.
    Set,
    /// A list of structures that are known by their key fields.
    Keyed,
    /// No schema: maps by their entries, all else as a whole.
    Deduced,
}

/// A place below another one.
#[derive(Debug, Clone, Copy)]
pub struct Member<P> {
    pub place: P,
    /// A field that the schema names, unlike an entry of a map.
    pub named: bool,
    /// There in every object of the kind, even if nobody ever set it. Go's encoder always writes
    /// structures, and upstream's clients do not own what was there before they came.
    pub always: bool,
}

/// See the module. Cheap to copy.
pub trait Place: Copy {
    fn division(self) -> Division;

    /// The place of a field or map entry; `None` if the schema has none of that name.
    fn member(self, name: &str) -> Option<Member<Self>>;

    /// The place of the items of a list.
    fn item(self) -> Self;

    /// Names of the key fields of a keyed list.
    fn keys(&self) -> impl Iterator<Item = &str>;

    /// What an item of a keyed list has in a key field that it leaves out.
    fn key_default(&self, key: &str) -> Option<&Value>;
}

/// The place of everything of which there is no schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deduced;

impl Place for Deduced {
    fn division(self) -> Division {
        Division::Deduced
    }

    fn member(self, _name: &str) -> Option<Member<Self>> {
        Some(Member { place: self, named: false, always: false })
    }

    fn item(self) -> Self {
        self
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    fn key_default(&self, _key: &str) -> Option<&Value> {
        None
    }
}

/// Why an object does not fit its places.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct Misfit {
    /// As in `.spec.containers[name="a"]`.
    pub path: String,
    pub why: String,
}

impl Misfit {
    pub(super) fn here(why: impl Into<String>) -> Self {
        Self { path: String::new(), why: why.into() }
    }

    /// Seen from one step further out.
    pub(super) fn below(mut self, step: &Step<'_>) -> Self {
        self.path.insert_str(0, &step.to_string());
        self
    }
}

/// The form in which a value is taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Leaf,
    Map,
    List,
}

pub(super) fn form<P: Place>(place: P, value: &Value) -> Form {
    match place.division() {
        Division::Whole => Form::Leaf,
        Division::Fields => Form::Map,
        Division::Set | Division::Keyed => Form::List,
        Division::Deduced if value.is_object() || value.is_null() => Form::Map,
        Division::Deduced => Form::Leaf,
    }
}

/// The step from a divided list to one of its items.
pub(super) fn item_step<P: Place>(list: P, item: &Value) -> Result<Step<'static>, Misfit> {
    match list.division() {
        Division::Keyed => keyed_step(list, item),
        _ => scalar_step(item),
    }
}

fn scalar_step(item: &Value) -> Result<Step<'static>, Misfit> {
    match item {
        Value::Object(_) => {
            Err(Misfit::here("associative list without keys has an element that's a map type"))
        }
        Value::Array(_) => {
            Err(Misfit::here("not supported: associative list with lists as elements"))
        }
        Value::Null => Err(Misfit::here(
            "associative list without keys has an element that's an explicit null",
        )),
        scalar => Ok(Step::Item(Cow::Owned(format!("v:{scalar}")))),
    }
}

fn keyed_step<P: Place>(list: P, item: &Value) -> Result<Step<'static>, Misfit> {
    let Value::Object(fields) = item else {
        let what = if item.is_null() { "a null element" } else { "non-map elements" };
        return Err(Misfit::here(format!("associative list with keys may not have {what}")));
    };
    let mut parts: Vec<(&str, &Value)> = list
        .keys()
        .filter_map(|key| Some((key, fields.get(key).or_else(|| list.key_default(key))?)))
        .collect();
    if parts.is_empty() {
        let keys: Vec<&str> = list.keys().collect();
        return Err(Misfit::here(format!(
            "associative list with keys has an element that omits all key fields {keys:?} (and doesn't have default values for any key fields)"
        )));
    }
    parts.sort_unstable_by_key(|(key, _)| *key);
    let mut out = String::with_capacity(40);
    out.push_str("k:{");
    for (index, (key, value)) in parts.into_iter().enumerate() {
        if index != 0 {
            out.push(',');
        }
        super::fields::push_text(&mut out, "", key);
        out.push(':');
        match value {
            Value::String(text) => super::fields::push_text(&mut out, "", text),
            other => out.push_str(&other.to_string()),
        }
    }
    out.push('}');
    Ok(Step::Item(Cow::Owned(out)))
}
