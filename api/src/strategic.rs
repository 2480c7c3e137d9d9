//! Strategic merge patch: a merge patch that knows which lists have keys.
//!
//! Directives: `$patch` (`delete`, `replace`) in a map or list item, `$retainKeys`,
//! `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>`; null deletes a field.
//! What they do is what upstream's server does: its documentation differs in places, above all
//! about where new items of a list go (before what they do not know, if nothing says otherwise).
//!
//! Lists are indexed by their keys, so the cost is that of the patch and the object together.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::{PatchStrategy, Schema, Shape};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    #[error("invalid JSON document")]
    NotAnObject,
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    #[error("invalid patch format of setElementOrder list")]
    ElementOrder,
    #[error("the order in the patch of {field} does not match its $setElementOrder list")]
    OrderMismatch { field: String },
    #[error("map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { item: String, key: &'static str },
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("unknown patch type: {directive} in map: {map}")]
    Directive { directive: String, map: String },
    #[error("merging lists cannot yet be specified in the patch")]
    MergedList,
}

impl PatchError {
    /// The form of the patch itself is wrong, whatever it is applied to.
    pub fn is_format(&self) -> bool {
        matches!(
            self,
            Self::NotAnObject | Self::PrimitiveList | Self::RetainKeys | Self::ElementOrder
        )
    }
}

/// Applies `patch` to `live`, an object of `shape`.
pub fn merge(
    schema: &Schema,
    shape: &Shape,
    live: Value,
    patch: Value,
) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else { return Err(PatchError::NotAnObject) };
    let live = match live {
        Value::Object(live) => live,
        _ => Map::new(),
    };
    merge_map(schema, shape, live, patch).map(Value::Object)
}

fn merge_map(
    schema: &Schema,
    shape: &Shape,
    mut live: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.remove(DIRECTIVE) {
        None => (),
        Some(it) if it == "replace" => return Ok(cleaned_map(patch)),
        Some(it) if it == "delete" => return Ok(Map::new()),
        Some(it) => return Err(unknown_directive(&it, &patch)),
    }
    if let Some(keep) = patch.remove(RETAIN) {
        retain(&mut live, &patch, &keep)?;
    }
    // Orders first: they are merged together with the list that they are about.
    let orders: Vec<String> =
        patch.keys().filter_map(|it| it.strip_prefix(ORDER)).map(str::to_owned).collect();
    for field in orders {
        let order = patch.remove(&format!("{ORDER}{field}"));
        let (inner, strategy) = field_of(schema, shape, &field);
        let (order, list) = match (order, patch.remove(&field)) {
            (Some(Value::Array(order)), None | Some(Value::Null)) => (order, None),
            (Some(Value::Array(order)), Some(Value::Array(list))) => (order, Some(list)),
            _ => return Err(PatchError::ElementOrder),
        };
        let server = match live.remove(&field) {
            Some(Value::Array(server)) => Some(server),
            None => None,
            Some(_) => return Err(PatchError::ElementOrder),
        };
        if server.is_none() && list.is_none() {
            continue;
        }
        let key = strategy.merge_key;
        if list.as_ref().is_some_and(|list| !is_in_order(list, &order, key)) {
            return Err(PatchError::OrderMismatch { field });
        }
        let order = identities(&order, key)?;
        let server = server.unwrap_or_default();
        let was = identities(&server, key)?;
        let merged =
            merge_list(schema, item_of(&inner), &strategy, server, list.unwrap_or_default())?;
        live.insert(field, arrange(merged, &order, &was, key).into());
    }
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix(DELETE_FROM) {
            let Value::Array(gone) = value else { return Err(PatchError::PrimitiveList) };
            let gone: HashSet<String> = gone.iter().map(ToString::to_string).collect();
            if let Some(Value::Array(list)) = live.get_mut(field) {
                list.retain(|item| !gone.contains(&item.to_string()));
            }
        } else if value.is_null() {
            live.remove(&name);
        } else {
            let (inner, strategy) = field_of(schema, shape, &name);
            if let Some(merged) = merge_value(schema, &inner, &strategy, live.remove(&name), value)?
            {
                live.insert(name, merged);
            }
        }
    }
    Ok(live)
}

/// Keeps what the patch says to keep, which must be at least what it sets.
fn retain(
    live: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keep: &Value,
) -> Result<(), PatchError> {
    let keep: HashSet<&str> =
        keep.as_array().ok_or(PatchError::RetainKeys)?.iter().filter_map(Value::as_str).collect();
    let is_kept = |name: &str, value: &Value| {
        value.is_null()
            || name.starts_with(DELETE_FROM)
            || name.starts_with(ORDER)
            || keep.contains(name)
    };
    if !patch.iter().all(|(name, value)| is_kept(name, value)) {
        return Err(PatchError::RetainKeys);
    }
    live.retain(|name, _| keep.contains(name.as_str()));
    Ok(())
}

/// Shape and strategy of a field; what no type describes is merged as plain JSON.
fn field_of(schema: &Schema, shape: &Shape, name: &str) -> (Shape, PatchStrategy) {
    match shape {
        Shape::Object(id) => match schema.get(*id).field(name) {
            Some(field) => (field.shape.clone(), field.patch.clone()),
            None => (Shape::Any, PatchStrategy::default()),
        },
        Shape::Map(inner) => ((**inner).clone(), PatchStrategy::default()),
        _ => (Shape::Any, PatchStrategy::default()),
    }
}

fn item_of(shape: &Shape) -> &Shape {
    match shape {
        Shape::List(item) => item.as_ref(),
        _ => &Shape::Any,
    }
}

/// What becomes of a field; `None` if it goes.
fn merge_value(
    schema: &Schema,
    shape: &Shape,
    strategy: &PatchStrategy,
    live: Option<Value>,
    patch: Value,
) -> Result<Option<Value>, PatchError> {
    match (live, patch) {
        (Some(Value::Object(live)), Value::Object(patch)) => {
            merge_map(schema, shape, live, patch).map(Value::Object).map(Some)
        }
        (Some(Value::Array(live)), Value::Array(patch)) if strategy.merge => {
            let key = strategy.merge_key;
            let (order, was) = (identities(&patch, key)?, identities(&live, key)?);
            let merged = merge_list(schema, item_of(shape), strategy, live, patch)?;
            Ok(Some(arrange(merged, &order, &was, key).into()))
        }
        (_, patch) => Ok(cleaned(patch)),
    }
}

/// What an item of a list is known by; `None` for an item without it.
fn identity(item: &Value, key: &str) -> Option<String> {
    if key.is_empty() { Some(item.to_string()) } else { item.get(key).map(ToString::to_string) }
}

/// The place of each item in its list.
fn identities(list: &[Value], key: &str) -> Result<HashMap<String, usize>, PatchError> {
    let mut out = HashMap::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        if item.is_array() {
            return Err(PatchError::ListOfLists);
        }
        if let Some(id) = identity(item, key) {
            out.entry(id).or_insert(index);
        }
    }
    Ok(out)
}

/// The items that a list with this strategy then has, in no particular order.
fn merge_list(
    schema: &Schema,
    item: &Shape,
    strategy: &PatchStrategy,
    mut live: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, PatchError> {
    let key = strategy.merge_key;
    if key.is_empty() {
        let mut seen = HashSet::with_capacity(live.len());
        live.extend(patch);
        live.retain(|item| seen.insert(item.to_string()));
        return Ok(live);
    }
    let mut gone = HashSet::new();
    let (mut replaces, mut kept) = (false, Vec::with_capacity(patch.len()));
    for value in patch {
        let Value::Object(map) = value else {
            return Err(PatchError::NoMergeKey { item: shown(&value), key });
        };
        match map.get(DIRECTIVE) {
            None => kept.push(map),
            Some(it) if it == "replace" => replaces = true,
            Some(it) if it == "delete" => match map.get(key) {
                Some(id) => {
                    gone.insert(id.to_string());
                }
                None => {
                    return Err(PatchError::NoMergeKey { item: shown(&Value::Object(map)), key });
                }
            },
            Some(it) if it == "merge" => return Err(PatchError::MergedList),
            Some(it) => return Err(unknown_directive(it, &map)),
        }
    }
    if replaces {
        return Ok(kept.into_iter().map(|map| Value::Object(cleaned_map(map))).collect());
    }
    live.retain(|it| identity(it, key).is_none_or(|id| !gone.contains(&id)));
    let mut places = identities(&live, key)?;
    for map in kept {
        let Some(id) = map.get(key).map(ToString::to_string) else {
            return Err(PatchError::NoMergeKey { item: shown(&Value::Object(map)), key });
        };
        match places.get(&id) {
            Some(&at) => {
                let old = live[at].take();
                live[at] = merge(schema, item, old, Value::Object(map))?;
            }
            None => {
                places.insert(id, live.len());
                live.push(merge(schema, item, Value::Null, Value::Object(map))?);
            }
        }
    }
    Ok(live)
}

/// Whether the items of a patch come in the order that it asks for.
fn is_in_order(patch: &[Value], order: &[Value], key: &str) -> bool {
    let mut order = order.iter().map(|it| identity(it, key));
    let told = patch.iter().filter(|it| it.get(DIRECTIVE).is_none());
    order.len() == 0 || told.into_iter().all(|item| order.any(|it| it == identity(item, key)))
}

/// Puts the items that `order` names in that order. The others keep theirs, and come before
/// those that were behind them (`was`) and after all else.
fn arrange(
    list: Vec<Value>,
    order: &HashMap<String, usize>,
    was: &HashMap<String, usize>,
    key: &str,
) -> Vec<Value> {
    struct Placed {
        /// In the wanted order.
        rank: Option<usize>,
        /// In the list as it was.
        before: Option<usize>,
        item: Value,
    }
    let size = list.len();
    let placed = list.into_iter().map(|item| {
        let id = identity(&item, key);
        let of =
            |places: &HashMap<String, usize>| id.as_ref().and_then(|id| places.get(id)).copied();
        Placed { rank: of(order), before: of(was), item }
    });
    let (mut named, mut others): (Vec<Placed>, Vec<Placed>) =
        placed.partition(|it| it.rank.is_some());
    named.sort_by_key(|it| it.rank);
    others.sort_by_key(|it| it.before);
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    let mut out = Vec::with_capacity(size);
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (Some(other), Some(named)) => match (other.before, named.before) {
                (Some(other), Some(named)) => other < named,
                _ => false,
            },
            (other, _) => other.is_some(),
        };
        let next = if other_first { others.next() } else { named.next() };
        match next {
            Some(it) => out.push(it.item),
            None => return out,
        }
    }
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(120).collect()
}

fn unknown_directive(directive: &Value, map: &Map<String, Value>) -> PatchError {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    PatchError::Directive { directive, map: shown(&Value::Object(map.clone())) }
}

fn is_directive(name: &str) -> bool {
    // `$ref` and `$schema` of JSON schemas are data.
    name == RETAIN || name.starts_with(DELETE_FROM) || name.starts_with(ORDER)
}

/// A map without directives and nulls, of what is taken over whole.
fn cleaned_map(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(name, value)| !value.is_null() && !is_directive(name))
        .filter_map(|(name, value)| Some((name, cleaned(value)?)))
        .collect()
}

/// As [`cleaned_map`]; what has a directive is nothing by itself.
fn cleaned(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(cleaned_map(map))),
        Value::Array(list) => Some(list.into_iter().filter_map(cleaned).collect()),
        scalar => Some(scalar),
    }
}

#[cfg(test)]
mod tests;
