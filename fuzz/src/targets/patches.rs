//! Merge, strategic and JSON patches of objects of every kind.

use insula_api::{
    decode,
    schema::{Schema, Shape},
    strategic,
};

use crate::input;

/// A kind's name, an object, and a patch.
pub(super) fn patches(bytes: &[u8]) {
    let [name, live, patch] = input::parts(bytes);
    let schema = Schema::built_in();
    let (_, id) = input::kind(name);
    let Ok(live) = decode::json(schema, Some(id), live) else { return };
    let Some(patch) = input::json(patch) else { return };
    let live = live.value;
    if !live.is_object() {
        return;
    }

    let mut once = live.clone();
    json_patch::merge(&mut once, &patch);
    let mut twice = once.clone();
    json_patch::merge(&mut twice, &patch);
    assert_eq!(once, twice, "a merge patch does nothing the second time");

    // What differs between two objects makes the one into the other.
    let typed = decode::value(schema, Some(id), once.clone());
    if let Ok(other) = typed.map(|it| it.value)
        && other.is_object()
    {
        let steps = json_patch::diff(&live, &other);
        let mut found = live.clone();
        json_patch::patch(&mut found, &steps).expect("steps that were found can be gone");
        assert_eq!(found, other);
    }

    let shape = Shape::Object(id);
    let Ok(once) = strategic::merge(schema, &shape, live, patch.clone()) else { return };
    assert!(once.is_object());
    // What a patch leaves is an object that was there before the next one.
    let Ok(once) = decode::value(schema, Some(id), once) else { return };
    let Ok(twice) = strategic::merge(schema, &shape, once.value.clone(), patch) else { return };
    assert!(twice.is_object());
}
