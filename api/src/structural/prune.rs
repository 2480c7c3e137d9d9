//! Taking paths out of an object.

use serde_json::Value;

use super::{
    extract::{Duplicates, set_of},
    place::{Form, Misfit, Place, form, item_step},
    set::{Set, Step},
};

/// `value` without the paths of `gone` and all that lies below them. What is emptied by that is
/// gone as well.
pub fn without<P: Place>(root: P, mut value: Value, gone: &Set<'_>) -> Value {
    take_out(root, &mut value, gone);
    value
}

/// False if nothing is left of what was there.
fn take_out<P: Place>(place: P, value: &mut Value, gone: &Set<'_>) -> bool {
    match (form(place, value), value) {
        (Form::Map, Value::Object(map)) if !map.is_empty() => {
            for node in &gone.nodes {
                let Step::Field(name) = &node.step else { continue };
                let Some(inner) = map.get_mut(name.as_ref()) else { continue };
                let kept = !node.owned
                    && place
                        .member(name)
                        .is_none_or(|member| take_out(member.place, inner, &node.below));
                if !kept {
                    map.remove(name.as_ref());
                }
            }
            !map.is_empty()
        }
        (Form::List, Value::Array(list)) if !list.is_empty() => {
            list.retain_mut(|item| {
                // What has no step is nobody's.
                let Ok(step) = item_step(place, item) else { return true };
                match gone.node(&step) {
                    Some(node) if node.owned => false,
                    Some(node) => {
                        take_out(place.item(), item, &node.below);
                        true
                    }
                    None => true,
                }
            });
            !list.is_empty()
        }
        _ => true,
    }
}

/// `merged` without what a manager applied before (`last`), applies no longer, and nobody else
/// holds (`held`: all that any manager has now).
pub fn prune<P: Place>(
    root: P,
    merged: Value,
    last: &Set<'_>,
    held: &Set<'_>,
) -> Result<Value, Misfit> {
    if last.is_within(held) {
        return Ok(merged);
    }
    let last = last.clone().with_named(Some(root));
    let held = held.clone().with_named(Some(root));
    let whole = set_of(root, &merged, Duplicates::One)?.with_named(Some(root));
    // Without all that was applied before, whoever it may belong to by now.
    let bare = without(root, merged.clone(), &last);
    // What went with it although somebody holds it, or something in it.
    let kept = set_of(root, &bare, Duplicates::One)?.with_named(Some(root)).union(held);
    let mut gone = whole.clone();
    gone.remove(&kept);
    let restored = without(root, merged.clone(), &gone);
    // And what nobody holds, but was never this manager's to remove.
    let kept = set_of(root, &restored, Duplicates::One)?.with_named(Some(root));
    let mut gone = whole.clone();
    gone.remove(&kept);
    gone.intersect(&last);
    let gone = gone.into_owned();
    Ok(without(root, merged, &gone))
}
