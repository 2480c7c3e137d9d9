use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value as Json, json};

use crate::{
    Budget, Decl, EvalError, Program, Type, Value,
    decl::{DeclKind, Fields},
};

fn decl() -> Decl {
    let text = || Decl::of(DeclKind::Text).at_most(Some(20));
    let list = |item: Decl| Decl::of(DeclKind::List(Arc::new(item))).at_most(Some(10));
    let fields = [
        ("name", text()),
        ("count", Decl::of(DeclKind::Int)),
        ("ratio", Decl::of(DeclKind::Double)),
        ("tags", list(text())),
        ("numbers", list(Decl::of(DeclKind::Int))),
        ("labels", Decl::of(DeclKind::Map(Arc::new(text()))).at_most(Some(10))),
        ("at", Decl::of(DeclKind::Timestamp)),
        ("for", Decl::of(DeclKind::Duration)),
        ("free", Decl::of(DeclKind::Dyn)),
        ("a-b", Decl::of(DeclKind::Bool)),
    ];
    let named: BTreeMap<String, (String, Decl)> = fields
        .into_iter()
        .filter_map(|(name, it)| Some((crate::escape::escape(name)?, (name.to_owned(), it))))
        .collect();
    Decl::of(DeclKind::Object(Arc::new(Fields { name: "Object".into(), fields: named })))
}

fn object() -> Json {
    json!({
        "name": "web", "count": 3, "ratio": 2, "tags": ["a", "b", "c"], "numbers": [3, 1, 2],
        "labels": {"app": "x", "tier": "front"}, "at": "2026-11-21T10:00:00Z", "for": "1h30m",
        "free": {"x": [1, "two", null]}, "a-b": true,
    })
}

fn run(source: &str, limit: u64) -> Result<String, String> {
    let (decl, it) = (decl(), object());
    let variables = [("self", decl.clone())];
    let program = Program::compile(source, &variables).map_err(|it| it.message)?;
    let mut budget = Budget::new(limit);
    let found = program.eval(&[("self", Value::of_json(&it, &decl))], &mut budget);
    found.map(|it| crate::functions::shown(&it)).map_err(|it| it.to_string())
}

#[track_caller]
fn check(source: &str, expected: &str) {
    assert_eq!(run(source, 10_000), Ok(expected.to_owned()), "{source}");
}

#[track_caller]
fn holds(sources: &[&str]) {
    for source in sources {
        check(source, "true");
    }
}

#[track_caller]
fn refused(source: &str, expected: &str) {
    assert_eq!(run(source, 10_000), Err(expected.to_owned()), "{source}");
}

#[test]
fn arithmetic_and_comparison() {
    check("1 + 2 * 3 - 4 / 2 % 3", "5");
    check("-7 / 2", "-3");
    check("-7 % 2", "-1");
    check("'a' + \"b\"", "ab");
    holds(&[
        "self.count == 3",
        "self.count < 3.5",
        "self.ratio == 2.0",
        "1 == 1.0",
        "[1, 2] + [3] == [1, 2, 3]",
        "{'a': 1} == {'a': 1}",
        "2u + 3u == 5u",
        "'b' > 'a' && !('b' < 'a')",
        "null == null",
    ]);
    refused("9223372036854775807 + 1", "integer overflow");
    refused("1 / 0", "division by zero");
}

#[test]
fn errors_are_absorbed_where_the_other_side_decides() {
    holds(&[
        "true || 1 / 0 == 1",
        "1 / 0 == 1 || true",
        "!(false && 1 / 0 == 1)",
        "!(1 / 0 == 1 && false)",
    ]);
    refused("1 / 0 == 1 && true", "division by zero");
    holds(&["[1, 0].exists(x, 1 / x == 1)", "![0, 2].all(x, 4 / x == 1)"]);
}

#[test]
fn fields_lists_and_maps() {
    holds(&[
        "has(self.name) && !has(self.free.y)",
        "self.a__dash__b",
        "self.tags[1] == 'b'",
        "'a' in self.tags && !('z' in self.tags)",
        "'app' in self.labels && self.labels.app == 'x' && self.labels['tier'] == 'front'",
        "self.free.x[1] == 'two'",
        "size(self.tags) == 3 && self.name.size() == 3",
        "self.labels.all(k, self.labels[k] != '')",
    ]);
    refused("self.tags[7]", "index out of bounds: 7");
    refused("self.labels.none", "no such key: none");
}

#[test]
fn macros() {
    check("self.tags.filter(t, t != 'b').map(t, t + '!')", "[a!, c!]");
    check("self.numbers.map(n, n > 1, n * 10)", "[30, 20]");
    holds(&[
        "self.tags.all(t, t.size() == 1)",
        "self.tags.exists(t, t == 'c')",
        "self.tags.exists_one(t, t == 'c')",
        "self.tags.all(i, t, i < 3 && t != '')",
        "cel.bind(n, self.count, n * n == 9)",
        "self.numbers.transformMap(i, n, n * 2)[0] == 6",
        "self.tags.all(x, self.numbers.exists(y, y > 2))",
    ]);
}

#[test]
fn optionals() {
    holds(&[
        "self.?name.hasValue() && self.?name.value() == 'web'",
        "self.free.?y.orValue('none') == 'none'",
        "self.tags[?9].or(optional.of('z')).value() == 'z'",
        "self.?name.optMap(n, n + '!').value() == 'web!'",
        "[?self.?name, ?optional.none()] == ['web']",
    ]);
    refused("optional.none().value()", "optional.none() dereference");
}

#[test]
fn texts() {
    holds(&[
        "self.name.startsWith('w') && self.name.endsWith('b') && self.name.contains('e')",
        r"'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'x1'.find(r'\d') == '1'",
        r"'abc'.matches('^[a-c]+$') && matches('x', 'x')",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b'",
        "'hello'.substring(1, 3) == 'el' && 'hello'.indexOf('l') == 2 && 'hello'.lastIndexOf('l') == 3",
        "'AbC'.lowerAscii() == 'abc' && ' x '.trim() == 'x' && 'aab'.replace('a', 'c', 1) == 'cab'",
        "'%s is %d'.format(['x', 3]) == 'x is 3' && '%.2f'.format([1.5]) == '1.50'",
        "int('3') == 3 && string(3) == '3' && double('1.5') == 1.5",
        "base64.encode(b'a') == 'YQ=='",
        "'\u{e9}a'.size() == 2 && '\u{e9}a'.charAt(1) == 'a'",
    ]);
    refused("'a'.matches('(')", "error parsing regexp: unclosed group");
}

#[test]
fn time() {
    holds(&[
        "self.at > timestamp('2026-11-20T00:00:00Z') && self.at.getHours() == 10",
        "self.at + duration('1h') == timestamp('2026-11-21T11:00:00Z')",
        "self.at.getDayOfWeek() == 6 && self.at.getMonth() == 10",
    ]);
    holds(&["duration('90m').getHours() == 1 && duration('1h') < duration('61m')"]);
}

#[test]
fn the_kubernetes_library() {
    holds(&[
        "quantity('1Gi').isGreaterThan(quantity('1000Mi')) && isQuantity('5') && !isQuantity('x')",
        "quantity('1').add(2).compareTo(quantity('3')) == 0 && quantity('2').asInteger() == 2",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('10.0.0') && ip('::1').isLoopback()",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
        "cidr('10.0.0.0/8').prefixLength() == 8 && !isCIDR('10.0.0.0')",
        "url('https://a.b:80/c?d=e').getPort() == '80' && url('https://a.b/c?d=e').getQuery()['d'] == ['e']",
        "isURL('https://x') && !isURL('x y')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0-rc.1') && !isSemver('1.0')",
        "[1, 2, 2].isSorted() && [1, 2].sum() == 3 && [3, 1].min() == 1 && ['b', 'a'].max() == 'b'",
        "sets.contains([1, 2], [1]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 2], [2, 1])",
        "math.greatest(1, 3, 2) == 3 && math.least([1, 2]) == 1 && math.abs(-1) == 1",
        "!format.dns1123Label().validate('a-b').hasValue() && format.dns1123Label().validate('A').hasValue()",
        "[2, 1].sort() == [1, 2] && [1, 1].distinct() == [1] && [1, 2].reverse() == [2, 1]",
    ]);
}

#[test]
fn what_makes_no_sense_is_refused_before() {
    refused("self.bogus", "undefined field 'bogus'");
    refused("other", "undeclared reference to 'other' (in container '')");
    refused(
        "self.name + 1 == 2",
        "found no matching overload for '_+_' applied to '(string, int)'",
    );
    refused(
        "self.count == 'a'",
        "found no matching overload for '_==_' applied to '(int, string)'",
    );
    refused("self.name.nope()", "undeclared reference to 'nope' (in container '')");
    refused(
        "self.count.startsWith('a')",
        "found no matching overload for 'startsWith' applied to 'int.(string)'",
    );
    refused(
        "self.count.all(x, true)",
        "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
    );
    let error = Program::compile("true &&\n self.x", &[("self", decl())]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "compilation failed: ERROR: <input>:2:6: undefined field 'x'\n |  self.x\n | .....^"
    );
    assert_eq!(*Program::compile("1 < 2", &[]).unwrap().result(), Type::Bool);
}

#[test]
fn evaluation_ends_when_the_budget_does() {
    let nested = "self.tags.all(a, self.tags.all(b, self.tags.all(c, a + b + c != 'x')))";
    assert!(run(nested, 10_000).is_ok());
    assert_eq!(run(nested, 100), Err(EvalError::Budget.to_string()));
    // Texts that double do not get far.
    let doubling =
        (0..60).fold("'aaaaaaaaaa'".to_owned(), |it, _| format!("cel.bind(x, {it}, x + x)"));
    assert!(run(&doubling, 1_000_000).is_err());
}

#[test]
fn estimates_bound_what_it_costs() {
    let (decl, it) = (decl(), object());
    let variables = [("self", decl.clone())];
    for source in [
        "self.count > 1",
        "self.tags.all(t, t.startsWith('a') || t.contains('b'))",
        "self.tags.all(a, self.tags.all(b, a == b || a != b))",
        "self.labels.all(k, k.size() < 10 && self.labels[k] != 'z')",
        "self.name.split('e').map(p, p + p).join('x') != ''",
        "self.tags.distinct().size() == self.tags.size()",
        "sets.contains(self.tags, self.tags)",
        "self.tags == self.tags && self.name in self.tags",
    ] {
        let program = Program::compile(source, &variables).unwrap();
        let mut budget = Budget::new(1_000_000);
        program.eval(&[("self", Value::of_json(&it, &decl))], &mut budget).unwrap();
        let spent = 1_000_000 - budget.left();
        let estimated = program.estimate(&variables);
        assert!(spent <= estimated, "{source}: {spent} {estimated}");
        assert!(estimated < 100_000, "{source}: {estimated}");
    }
    let unbounded = Decl::of(DeclKind::List(Arc::new(Decl::of(DeclKind::Text))));
    let variables = [("self", unbounded)];
    let quadratic = Program::compile("self.all(a, self.all(b, a == b))", &variables).unwrap();
    assert!(10_000_000 < quadratic.estimate(&variables));
}

/// Compiling a pattern is far more work than anything else, so a loop may not do it for nothing.
#[test]
fn patterns_that_are_not_written_cost() {
    assert_eq!(run("'abc'.matches('^a') && self.name.find('e.') == 'eb'", 100), Ok("true".into()));
    assert_eq!(run("'a1b2'.findAll('[0-9]', 1).size() == 1", 100), Ok("true".into()));
    let made = "self.numbers.all(x, 'abc'.matches('^a' + (x > 9 ? 'x' : '')))";
    assert_eq!(run(made, 20_000), Ok("true".into()));
    assert!(run(made, 10_000).is_err());
    assert!(run("'x'.matches('(' + '')", 20_000).unwrap_err().contains("error parsing regexp"));
    // As large as it is, it can only be written.
    let large = "(a{90}b{90}){90}";
    assert_eq!(run(&format!("'x'.matches('{large}')"), 100), Ok("false".into()));
    assert!(run(&format!("'x'.matches('{large}' + '')"), 20_000).is_err());
}

/// Laying out a list is work, also for who looks at its first item alone.
#[test]
fn what_is_laid_out_costs() {
    let source = "self.numbers.all(x, self.free.x.exists(y, true) && self.free.x != [])";
    let (decl, mut it) = (decl(), object());
    it["free"]["x"] = vec![0; 1000].into();
    let program = Program::compile(source, &[("self", decl.clone())]).unwrap();
    let mut budget = Budget::new(10_000);
    let value = program.eval(&[("self", Value::of_json(&it, &decl))], &mut budget).unwrap();
    assert!(matches!(value, Value::Bool(true)));
    assert!(budget.left() < 10_000 - 3 * 100, "{budget:?}");
}
