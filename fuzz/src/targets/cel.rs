//! CEL: parsed, checked, estimated, and run within a budget.

use std::sync::LazyLock;

use insula_cel::{Budget, Decl, EvalError, Program, Value as Cel, decl::DeclKind, regex};
use insula_custom::{path::Path, rules, schema::Schema, validate};
use serde_json::{Value, json};

use crate::input;

/// What an expression may cost.
const BUDGET: u64 = 200_000;

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let document = json!({"type": "object", "properties": {
        "i": {"type": "integer"}, "d": {"type": "number"}, "b": {"type": "boolean"},
        "s": {"type": "string", "maxLength": 20}, "any": {"x-kubernetes-preserve-unknown-fields": true},
        "time": {"type": "string", "format": "date-time", "maxLength": 40},
        "span": {"type": "string", "format": "duration", "maxLength": 40},
        "raw": {"type": "string", "format": "byte", "maxLength": 40},
        "port": {"x-kubernetes-int-or-string": true},
        "texts": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 8}},
        "lists": {"type": "array", "maxItems": 3, "items": {
            "type": "array", "maxItems": 3, "items": {"type": "integer"}}},
        "map": {"type": "object", "maxProperties": 4, "additionalProperties": {"type": "integer"}},
        "items": {"type": "array", "maxItems": 4, "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"], "items": {
                "type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string", "maxLength": 9}, "value": {"type": "integer"}}}},
    }});
    Schema::compile(&document).expect("it is one")
});

static DECL: LazyLock<Decl> = LazyLock::new(|| rules::declared(&SCHEMA));
static ANY: LazyLock<Decl> = LazyLock::new(|| Decl::of(DeclKind::Dyn));
static OBJECT: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "apiVersion": "v1", "kind": "K", "metadata": {"name": "n"}, "i": -7, "d": 2.5, "b": true,
        "s": "höllo", "any": {"a": [1, "x", null]}, "time": "2026-01-02T03:04:05Z", "span": "1h2m",
        "raw": "aGk=", "port": "80%", "texts": ["a", "b", ""], "lists": [[1, 2], []],
        "map": {"k": 1, "l": -1}, "items": [{"name": "x", "value": 1}, {"name": "y"}],
    })
});

/// An expression, and an object for it.
pub(super) fn expressions(bytes: &[u8]) {
    let [source, object] = input::parts(bytes);
    let Some(source) = input::text(source) else { return };
    if let Ok(pattern) = regex::compile(source) {
        pattern.is_match("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab");
    }
    let variables = [("self", DECL.clone()), ("oldSelf", DECL.clone()), ("object", ANY.clone())];
    // A program that makes objects differs in what it may name alone.
    for program in
        [Program::compile(source, &variables), Program::compile_patch(source, &variables)]
    {
        let Ok(program) = program else { continue };
        let sent = input::json(object).filter(|it| {
            it.is_object() && validate::value(&SCHEMA, it, None, &Path::Root).is_empty()
        });
        let it = sent.as_ref().unwrap_or(&OBJECT);
        let estimate = program.estimate(&variables);
        let values = [
            ("self", Cel::of_json(it, &DECL)),
            ("oldSelf", Cel::of_json(&OBJECT, &DECL)),
            ("object", Cel::of_json(it, &ANY)),
        ];
        let mut budget = Budget::new(BUDGET);
        let found = program.eval(&values, &mut budget);
        let spent = BUDGET - budget.left();
        match &found {
            Err(EvalError::Budget) => assert!(BUDGET < estimate, "{estimate} is not enough"),
            _ => assert!(spent <= estimate, "{spent} of {estimate}"),
        }
        let mut again = Budget::new(BUDGET);
        let repeated = program.eval(&values, &mut again);
        assert_eq!((format!("{found:?}"), budget), (format!("{repeated:?}"), again));
    }
}
