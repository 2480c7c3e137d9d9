//! Semantic versions.

use std::{cmp::Ordering, sync::Arc};

use crate::{
    eval::{EvalError, Result},
    value::Value,
};

/// A semantic version. Build metadata does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Semver {
    numbers: [u64; 3],
    before: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Text(String),
}

impl PartialOrd for Semver {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Semver {
    fn cmp(&self, other: &Self) -> Ordering {
        // What comes before a release is less than it.
        let released = |it: &Self| it.before.is_empty();
        self.numbers
            .cmp(&other.numbers)
            .then(released(self).cmp(&released(other)))
            .then_with(|| self.before.cmp(&other.before))
    }
}

impl Semver {
    /// `lenient` takes a leading `v`, missing parts and leading zeros.
    pub(crate) fn parse(text: &str, lenient: bool) -> Option<Self> {
        let text = if lenient { text.trim().trim_start_matches('v') } else { text };
        let text = text.split('+').next()?;
        let (numbers, before) = match text.split_once('-') {
            Some((numbers, before)) => (numbers, Some(before)),
            None => (text, None),
        };
        let parts: Vec<&str> = numbers.split('.').collect();
        if 3 < parts.len() || (!lenient && parts.len() != 3) {
            return None;
        }
        let number = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
            let is_padded = 1 < text.len() && text.starts_with('0');
            if !is_plain || (is_padded && !lenient) { None } else { text.parse().ok() }
        };
        let mut found = [0; 3];
        for (slot, part) in found.iter_mut().zip(&parts) {
            *slot = number(part)?;
        }
        let part = |text: &str| match number(text) {
            Some(it) => Some(Part::Number(it)),
            None if text.is_empty() => None,
            None => text
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'-')
                .then(|| Part::Text(text.to_owned())),
        };
        let before = match before {
            Some(before) => before.split('.').map(part).collect::<Option<Vec<_>>>()?,
            None => Vec::new(),
        };
        Some(Self { numbers: found, before })
    }
}

pub(super) fn function<'a>(
    function: &str,
    text: &str,
    lenient: Option<&Value<'a>>,
) -> Result<Value<'a>> {
    let parsed = Semver::parse(text, matches!(lenient, Some(Value::Bool(true))));
    if function == "isSemver" {
        return Ok(Value::Bool(parsed.is_some()));
    }
    let bad = || EvalError::failed(format!("{text:?} is not a semantic version"));
    parsed.map(|it| Value::Semver(Arc::new(it))).ok_or_else(bad)
}

pub(super) fn method<'a>(
    function: &str,
    it: &Semver,
    arguments: &[Value<'a>],
) -> Result<Value<'a>> {
    let number = |index: usize| {
        let found = i64::try_from(it.numbers[index]);
        found.map(Value::Int).map_err(|_| EvalError::failed("integer overflow"))
    };
    match (function, arguments) {
        ("major", []) => number(0),
        ("minor", []) => number(1),
        ("patch", []) => number(2),
        ("compareTo", [Value::Semver(other)]) => Ok(Value::Int(it.cmp(other) as i64)),
        ("isGreaterThan", [Value::Semver(other)]) => Ok(Value::Bool(**other < *it)),
        ("isLessThan", [Value::Semver(other)]) => Ok(Value::Bool(*it < **other)),
        _ => Err(EvalError::no_overload(function)),
    }
}
