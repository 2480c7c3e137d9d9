//! The regular expressions of a program.
//!
//! Compiling one is by far the most work that a call can cause, and says little of itself: a few
//! letters with a large count in braces are as long to compile as a page. What is written in the
//! program is compiled once, with it; what only evaluation comes to is small, and costs.

use std::{borrow::Cow, collections::BTreeMap};

use regex::Regex;

use crate::{
    ast::{Expr, Node},
    eval::{Budget, EvalError, Result},
    regex::{PatternError, compile, compile_small},
    value::Value,
};

/// Most patterns that a program keeps; more are as if they came in evaluation.
const MOST: usize = 16;
/// What compiling a pattern costs: a whole run can have a few hundred.
pub(crate) const COST: u64 = 4000;

/// Those that are written in a program.
#[derive(Debug, Default)]
pub(crate) struct Patterns(BTreeMap<String, Result<Regex, PatternError>>);

/// The pattern of a call, if it has one.
pub(crate) fn of_call<'a>(
    function: &str,
    is_method: bool,
    arguments: &'a [Expr],
) -> Option<&'a Expr> {
    match (function, is_method, arguments) {
        ("matches", true, [pattern]) | ("matches", false, [_, pattern]) => Some(pattern),
        ("find", true, [pattern]) | ("findAll", true, [pattern] | [pattern, _]) => Some(pattern),
        _ => None,
    }
}

impl Patterns {
    pub(crate) fn of(expr: &Expr) -> Self {
        let mut it = Self::default();
        expr.each(&mut |expr| {
            if let Node::Call { target, function, arguments } = &expr.node
                && let Some(Expr { node: Node::Text(text), .. }) =
                    of_call(function, target.is_some(), arguments)
                && it.0.len() < MOST
            {
                it.0.entry(text.clone()).or_insert_with(|| compile(text));
            }
        });
        it
    }

    /// Whether a pattern is at hand, and costs nothing.
    pub(crate) fn has(&self, written: &Expr) -> bool {
        matches!(&written.node, Node::Text(text) if self.0.contains_key(text))
    }

    /// The pattern that is written so and comes to `value`.
    pub(crate) fn get(
        &self,
        written: &Expr,
        value: Option<&Value<'_>>,
        budget: &mut Budget,
    ) -> Result<Cow<'_, Regex>> {
        let failed = |error: &PatternError| EvalError::failed(error.to_string());
        if let Node::Text(text) = &written.node
            && let Some(found) = self.0.get(text)
        {
            return found.as_ref().map(Cow::Borrowed).map_err(failed);
        }
        let text =
            value.and_then(Value::as_text).ok_or_else(|| EvalError::no_overload("matches"))?;
        budget.spend(COST)?;
        compile_small(text).map(Cow::Owned).map_err(|error| failed(&error))
    }
}
