//! Merging what somebody applies into the live object.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{
    extract::{at_index, is_divided_list, member},
    place::{Form, Misfit, Place, form, item_step},
    set::Step,
};

/// `live` with all that `config` says. Items of lists come in the order in which `config` has
/// them; those that only `live` has keep their place among them.
pub fn merge<P: Place>(root: P, live: Value, config: &Value) -> Result<Value, Misfit> {
    match (form(root, config), live, config) {
        (Form::Map, Value::Object(live), Value::Object(config))
            if !(live.is_empty() && config.is_empty()) =>
        {
            merge_map(root, live, config).map(Value::Object)
        }
        (Form::List, Value::Array(live), Value::Array(config))
            if !(live.is_empty() && config.is_empty()) =>
        {
            merge_list(root, live, config).map(Value::Array)
        }
        // Nothing is no reason to drop the items that others have put there.
        (Form::Map, Value::Object(live), Value::Null) if !live.is_empty() => {
            Ok(Value::Object(live))
        }
        (Form::List, Value::Array(live), Value::Null)
            if !live.is_empty() && is_divided_list(root.division()) =>
        {
            Ok(Value::Array(live))
        }
        (_, _, config) => Ok(config.clone()),
    }
}

fn merge_map<P: Place>(
    place: P,
    mut live: Map<String, Value>,
    config: &Map<String, Value>,
) -> Result<Map<String, Value>, Misfit> {
    for (name, value) in config {
        let step = Step::field(name);
        let member = member(place, name, &step)?;
        match live.get_mut(name) {
            Some(slot) => {
                let merged = merge(member.place, slot.take(), value);
                *slot = merged.map_err(|error| error.below(&step))?;
            }
            None => {
                live.insert(name.clone(), value.clone());
            }
        }
    }
    Ok(live)
}

fn merge_list<P: Place>(
    place: P,
    live: Vec<Value>,
    config: &[Value],
) -> Result<Vec<Value>, Misfit> {
    let wanted: Vec<Step<'static>> = steps(place, config)?;
    let places: HashMap<&Step<'_>, usize> =
        wanted.iter().enumerate().map(|(index, step)| (step, index)).collect();
    let live_steps = steps(place, &live)?;
    // Live items that the configuration names, by their place in it. Of items with one key none
    // can be told to be meant, so the configured one takes their place.
    let mut partners: Vec<Option<Value>> = vec![None; wanted.len()];
    let mut shared = vec![false; wanted.len()];
    let mut rest: Vec<Result<Value, usize>> = Vec::with_capacity(live.len());
    for (step, item) in live_steps.into_iter().zip(live) {
        match places.get(&step) {
            Some(&index) => {
                partners[index] = if shared[index] { None } else { Some(item) };
                shared[index] = true;
                rest.push(Err(index));
            }
            None => rest.push(Ok(item)),
        }
    }
    let mut out = Vec::with_capacity(rest.len().max(config.len()));
    let mut emit = |out: &mut Vec<Value>, index: usize| -> Result<(), Misfit> {
        let merged = match partners[index].take() {
            Some(partner) => merge(place.item(), partner, &config[index])
                .map_err(|error| error.below(&wanted[index]))?,
            None => config[index].clone(),
        };
        out.push(merged);
        Ok(())
    };
    let (mut next, mut turns) = (0, (0..config.len()).filter(|index| shared[*index]).peekable());
    for it in rest {
        match it {
            Ok(item) => out.push(item),
            // The next one that both have: all that the configuration puts before it comes first.
            Err(index) if turns.next_if_eq(&index).is_some() => {
                while next <= index {
                    emit(&mut out, next)?;
                    next += 1;
                }
            }
            // It came already, or comes when the configuration's order allows it.
            Err(_) => (),
        }
    }
    while next < config.len() {
        emit(&mut out, next)?;
        next += 1;
    }
    Ok(out)
}

fn steps<P: Place>(place: P, list: &[Value]) -> Result<Vec<Step<'static>>, Misfit> {
    list.iter()
        .enumerate()
        .map(|(index, item)| item_step(place, item).map_err(|error| at_index(index, error)))
        .collect()
}
