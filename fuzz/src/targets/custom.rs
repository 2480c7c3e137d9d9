//! Definitions of custom resources, objects of them, and paths into objects.

use insula_api::schema::Schema as Types;
use insula_custom::{
    Definition, check, default, definition::Names, embedded, jsonpath::JsonPath, lists, path::Path,
    prune, rules, validate,
};
use serde_json::Value;

use crate::input;

/// A definition, and an object of it.
pub(super) fn definitions(bytes: &[u8]) {
    let [definition, object] = input::parts(bytes);
    let kind =
        insula_api::schema::Gvk::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let types = Types::built_in();
    let Ok(decoded) = insula_api::decode::json(types, types.by_kind(&kind), definition) else {
        return;
    };
    let definition = decoded.value;
    let errors = check::definition(&definition, None);
    if !errors.is_empty() {
        return;
    }
    // What was let in can be compiled: nobody is told later.
    let names: Names = serde_json::from_value(definition["spec"]["names"].clone())
        .expect("names that were let in");
    let spec = definition["spec"].to_string();
    let compiled = Definition::compile(spec.as_bytes(), &names).expect("what was let in compiles");
    let Some(object) = input::json(object).filter(Value::is_object) else { return };
    for version in &compiled.versions {
        shaped(&version.schema, object.clone());
        for column in &version.columns {
            column.path.find(&object);
        }
    }
}

/// What is pruned and filled in once needs it no more; checking it comes to an end.
fn shaped(schema: &insula_custom::schema::Schema, mut it: Value) {
    if embedded::coerce_metadata(&mut it, "metadata").is_err() {
        return;
    }
    prune::object(schema, &mut it, &mut prune::Pruned::telling());
    if embedded::coerce(schema, &mut it).is_err() {
        return;
    }
    default::fill(schema, &mut it);
    let once = it.clone();
    let mut pruned = prune::Pruned::default();
    prune::object(schema, &mut it, &mut pruned);
    assert!(!pruned.any && !default::fill(schema, &mut it), "{once}");
    assert_eq!(it, once);
    let errors = validate::value(schema, &it, None, &Path::Root);
    lists::check(schema, &it, &Path::Root);
    embedded::check(schema, &it, &Path::Root);
    if errors.is_empty() {
        rules::validate(schema, &it, None);
        rules::validate(schema, &it, Some(&once));
    }
}

/// A path, and what it leads through.
pub(super) fn paths(bytes: &[u8]) {
    let [path, document] = input::parts(bytes);
    let Some(path) = input::text(path) else { return };
    let Ok(path) = JsonPath::parse(path) else { return };
    let Some(document) = input::json(document) else { return };
    let found = path.find(&document);
    assert_eq!(path.first(&document), found.first().copied());
    if path.fields().is_some() {
        assert!(found.len() <= 1);
    }
}
