//! The part of JSONPath that definitions use: columns, scale, selectable fields.
//!
//! `.spec.replicas`, `.list[0].x`, `.list[*]`, `.list[-1]`, `['key']`, `.a\.b`,
//! `.conditions[?(@.type=="Ready")].status`, `..name`.

use serde_json::Value;

/// Longest path, in bytes.
const MAX_LENGTH: usize = 1024;
/// Most values that a path may lead to.
const MAX_FOUND: usize = 1000;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    /// All that is below.
    Below,
    Filter(Filter),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    path: JsonPath,
    operator: Operator,
    to: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Why a text is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid JSONPath {0:?}")]
pub struct JsonPathError(String);

impl JsonPath {
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        let bad = || JsonPathError(text.chars().take(128).collect());
        if MAX_LENGTH < text.len() {
            return Err(bad());
        }
        let text = text.trim().trim_start_matches('$');
        parse(text).ok_or_else(bad)
    }

    /// All that the path leads to, in order. What is absent is left out.
    pub fn find<'a>(&self, it: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![it];
        for step in &self.0 {
            let mut next = Vec::new();
            for it in found {
                step.take(it, &mut next);
                if MAX_FOUND < next.len() {
                    next.truncate(MAX_FOUND);
                    break;
                }
            }
            found = next;
        }
        found
    }

    /// The first that it leads to.
    pub fn first<'a>(&self, it: &'a Value) -> Option<&'a Value> {
        self.find(it).into_iter().next()
    }

    /// The names of its fields, if it has no other steps.
    pub fn fields(&self) -> Option<Vec<&str>> {
        if !self.0.iter().all(|step| matches!(step, Step::Field(_))) {
            return None;
        }
        let fields = self.0.iter().filter_map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            _ => None,
        });
        Some(fields.collect())
    }
}

impl Step {
    fn take<'a>(&self, it: &'a Value, out: &mut Vec<&'a Value>) {
        match self {
            Self::Field(name) => out.extend(it.get(name)),
            Self::Index(index) => {
                let Some(items) = it.as_array() else { return };
                out.extend(place(*index, items.len()).and_then(|at| items.get(at)));
            }
            Self::Slice(from, to) => {
                let Some(items) = it.as_array() else { return };
                let end = |at: Option<i64>, absent: usize| match at {
                    Some(at) if at < 0 => place(at, items.len()).unwrap_or(0),
                    Some(at) => usize::try_from(at).unwrap_or(0).min(items.len()),
                    None => absent,
                };
                out.extend(items.get(end(*from, 0)..end(*to, items.len())).into_iter().flatten());
            }
            Self::All => match it {
                Value::Array(items) => out.extend(items),
                Value::Object(fields) => out.extend(fields.values()),
                _ => (),
            },
            Self::Below => below(it, out),
            Self::Filter(filter) => match it {
                Value::Array(items) => out.extend(items.iter().filter(|it| filter.holds(it))),
                Value::Object(_) if filter.holds(it) => out.push(it),
                _ => (),
            },
        }
    }
}

fn place(index: i64, len: usize) -> Option<usize> {
    match usize::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => len.checked_sub(usize::try_from(index.unsigned_abs()).ok()?),
    }
}

fn below<'a>(it: &'a Value, out: &mut Vec<&'a Value>) {
    if MAX_FOUND < out.len() {
        return;
    }
    out.push(it);
    match it {
        Value::Array(items) => items.iter().for_each(|it| below(it, out)),
        Value::Object(fields) => fields.values().for_each(|it| below(it, out)),
        _ => (),
    }
}

impl Filter {
    fn holds(&self, it: &Value) -> bool {
        let Some(found) = self.path.first(it) else { return false };
        let order = || match (found, &self.to) {
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            (left, right) => left.as_f64()?.partial_cmp(&right.as_f64()?),
        };
        match self.operator {
            Operator::Exists => true,
            Operator::Equal => equal(found, &self.to),
            Operator::NotEqual => !equal(found, &self.to),
            Operator::Less => order().is_some_and(|it| it.is_lt()),
            Operator::LessOrEqual => order().is_some_and(|it| it.is_le()),
            Operator::Greater => order().is_some_and(|it| it.is_gt()),
            Operator::GreaterOrEqual => order().is_some_and(|it| it.is_ge()),
        }
    }
}

fn equal(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}

fn parse(text: &str) -> Option<JsonPath> {
    let mut steps = Vec::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        match next {
            '.' => {
                rest = &rest[1..];
                if let Some(behind) = rest.strip_prefix('.') {
                    steps.push(Step::Below);
                    rest = behind;
                }
                if rest.is_empty() || rest.starts_with('[') {
                    continue;
                }
                let (name, behind) = field(rest);
                rest = behind;
                steps.push(if name == "*" { Step::All } else { Step::Field(name) });
            }
            '[' => {
                let end = closing(rest)?;
                steps.push(bracket(rest.get(1..end)?.trim())?);
                rest = rest.get(end + 1..)?;
            }
            _ if steps.is_empty() => {
                let (name, behind) = field(rest);
                rest = behind;
                steps.push(Step::Field(name));
            }
            _ => return None,
        }
    }
    Some(JsonPath(steps))
}

/// A name up to the next step; a backslash takes the next character as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut escaped = false;
    for (at, it) in text.char_indices() {
        match it {
            _ if escaped => {
                name.push(it);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => return (name, &text[at..]),
            _ => name.push(it),
        }
    }
    (name, "")
}

/// Where the bracket that `text` begins with is closed.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, it) in text.char_indices() {
        match (it, quote) {
            (it, Some(open)) if it == open => quote = None,
            (_, Some(_)) => (),
            ('\'' | '"', None) => quote = Some(it),
            ('[', None) => depth += 1,
            (']', None) => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => (),
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(name) = quoted(inner) {
        return Some(Step::Field(name));
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|it| it.strip_suffix(')')) {
        return filter(condition.trim()).map(Step::Filter);
    }
    if let Some((from, to)) = inner.split_once(':') {
        let bound = |text: &str| match text.trim() {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        };
        return Some(Step::Slice(bound(from)?, bound(to)?));
    }
    inner.parse().ok().map(Step::Index)
}

fn quoted(text: &str) -> Option<String> {
    let open = text.chars().next().filter(|it| matches!(it, '\'' | '"'))?;
    let inner = text.strip_prefix(open)?.strip_suffix(open)?;
    Some(inner.replace(&format!("\\{open}"), &open.to_string()))
}

fn filter(condition: &str) -> Option<Filter> {
    const OPERATORS: &[(&str, Operator)] = &[
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ];
    let found = OPERATORS
        .iter()
        .filter_map(|(text, operator)| condition.find(text).map(|at| (at, *text, *operator)))
        .min_by_key(|(at, text, _)| (*at, std::cmp::Reverse(text.len())));
    let (left, operator, to) = match found {
        Some((at, text, operator)) => {
            let right = condition.get(at + text.len()..)?.trim();
            let to = match quoted(right) {
                Some(text) => Value::String(text),
                None => serde_json::from_str(right).ok()?,
            };
            (condition.get(..at)?.trim(), operator, to)
        }
        None => (condition, Operator::Exists, Value::Null),
    };
    let path = parse(left.strip_prefix('@')?)?;
    Some(Filter { path, operator, to })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(path: &str, expected: &[Value]) {
        let it = json!({
            "spec": {"replicas": 3, "list": [{"n": "a", "v": 1}, {"n": "b", "v": 2}]},
            "metadata": {"labels": {"app.kubernetes.io/name": "x"}},
            "status": {"conditions": [
                {"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        let found: Vec<Value> =
            JsonPath::parse(path).unwrap().find(&it).into_iter().cloned().collect();
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn paths() {
        check(".spec.replicas", &[json!(3)]);
        check("spec.replicas", &[json!(3)]);
        check(".spec.absent.x", &[]);
        check(".spec.list[0].n", &[json!("a")]);
        check(".spec.list[-1].n", &[json!("b")]);
        check(".spec.list[*].v", &[json!(1), json!(2)]);
        check(".spec.list[1:].v", &[json!(2)]);
        check(r".metadata.labels.app\.kubernetes\.io/name", &[json!("x")]);
        check(".metadata.labels['app.kubernetes.io/name']", &[json!("x")]);
        check(r#".status.conditions[?(@.type=="Ready")].status"#, &[json!("True")]);
        check(".status.conditions[?(@.type=='Ready')].status", &[json!("True")]);
        check(".spec.list[?(@.v>1)].n", &[json!("b")]);
        check("..v", &[json!(1), json!(2)]);
    }

    #[test]
    fn texts_that_are_none() {
        for bad in [".a[", ".a[x]", ".a[?(x)]", &".a".repeat(1000)] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_alone() {
        assert_eq!(JsonPath::parse(".spec.a").unwrap().fields(), Some(vec!["spec", "a"]));
        assert_eq!(JsonPath::parse(".spec[0]").unwrap().fields(), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "[.a\\[\\]'\"?(@)=*:0-9-]{0,20}") {
            if let Ok(path) = JsonPath::parse(&text) {
                path.find(&json!({"a": [1, {"a": 2}]}));
            }
        }
    }
}
