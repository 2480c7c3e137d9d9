//! Taking paths out of an object.

use serde_json::Value;

use super::{
    extract::{Duplicates, set_of},
    place::{Form, Misfit, Place, form, item_step},
    set::{Set, Step},
    versions::{Held, InVersion, VersionError, Versions},
};

/// `value` without the paths of `gone` and all that lies below them. What is emptied by that is
/// gone as well, unless its path is in `kept`.
pub fn without<P: Place>(root: P, mut value: Value, gone: &Set<'_>, kept: &Set<'_>) -> Value {
    take_out(root, &mut value, gone, kept);
    value
}

/// False if nothing is left of what was there.
fn take_out<P: Place>(place: P, value: &mut Value, gone: &Set<'_>, kept: &Set<'_>) -> bool {
    let nothing = Set::EMPTY;
    match (form(place, value), value) {
        (Form::Map, Value::Object(map)) if !map.is_empty() => {
            for node in &gone.nodes {
                let Step::Field(name) = &node.step else { continue };
                let Some(inner) = map.get_mut(name.as_ref()) else { continue };
                let held = kept.node(&node.step);
                let below = held.map_or(&nothing, |it| &it.below);
                let mut has_more = || {
                    let member = place.member(name);
                    member.is_none_or(|it| take_out(it.place, inner, &node.below, below))
                };
                let stays = !node.owned && (has_more() || held.is_some_and(|it| it.owned));
                if !stays {
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
                        let below = kept.node(&step).map_or(&nothing, |it| &it.below);
                        take_out(place.item(), item, &node.below, below);
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

/// `merged` without what a manager applied before (`last`, in `version`), applies no longer, and
/// nobody else holds (`held`: all that any manager has now, by version).
pub(super) fn prune<V: Versions>(
    versions: &V,
    merged: Value,
    last: &Set<'_>,
    version: &str,
    held: &[Held<'_>],
) -> Result<Value, VersionError> {
    let all = Set::EMPTY;
    let same = held.iter().find(|it| it.version == version).map_or(&all, |it| &it.set);
    // Nothing that was applied is left to nobody.
    if last.is_within(same) {
        return Ok(merged);
    }
    let InVersion { root, object: before } = versions.in_version(&merged, version)?;
    let last = last.clone().with_named(Some(root));
    // Without all that was applied before, whoever it may belong to by now.
    let mut pruned = without(root, before.clone().into_owned(), &last, &Set::EMPTY);
    // What went with it although somebody holds it, or something in it, comes back: first what is
    // held in the same version, which others may need to be converted at all.
    let others = held.iter().filter(|it| it.version != version);
    for Held { version, set } in held.iter().filter(|it| it.version == version).chain(others) {
        let was = versions.in_version(&merged, version)?;
        let is = versions.in_version(&pruned, version)?;
        let mut gone = named(was.root, &was.object)?;
        let kept = named(is.root, &is.object)?.union(set.clone().with_named(Some(is.root)));
        gone.remove(&kept);
        let (gone, kept) = (gone.into_owned(), kept.into_owned());
        pruned = without(was.root, was.object.clone().into_owned(), &gone, &kept);
    }
    // And what nobody holds, but was never this manager's to remove.
    let restored = versions.in_version(&pruned, version)?;
    let kept = named(restored.root, &restored.object)?.into_owned();
    let mut gone = named(root, &before)?.into_owned();
    gone.remove(&kept);
    gone.intersect(&last);
    let left = without(root, before.into_owned(), &gone, &kept);
    Ok(versions.in_version(&left, versions.version())?.object.into_owned())
}

/// All paths of an object, with the structures on the way to them.
fn named<P: Place>(root: P, object: &Value) -> Result<Set<'_>, Misfit> {
    Ok(set_of(root, object, Duplicates::One)?.with_named(Some(root)))
}
