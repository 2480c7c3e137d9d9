//! Evaluation, within a budget.
//!
//! Every node costs one; what walks texts and lists costs by their length. An error is absorbed
//! by `&&`, `||` and their macros where the other side decides.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    ast::{Expr, Loop, LoopKind, Node, Operator, is_qualified},
    functions,
    made::Made,
    operators,
    patterns::{self, Patterns},
    value::{Key, Value},
};

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("{0}")]
    Failed(String),
    /// It, or all together, cost too much.
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
}

impl EvalError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    pub(crate) fn no_overload(function: &str) -> Self {
        Self::Failed(format!("no such overload: {function}"))
    }
}

pub(crate) type Result<T, E = EvalError> = std::result::Result<T, E>;

/// What may still be spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    left: u64,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self { left: limit }
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes `cost`, if there is so much.
    pub fn spend(&mut self, cost: u64) -> Result<()> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(EvalError::Budget)
            }
        }
    }

    /// Takes what walking `length` bytes costs.
    pub(crate) fn walk(&mut self, length: usize) -> Result<()> {
        self.spend(length as u64 / 10 + 1)
    }
}

/// The variables of an expression.
pub trait Variables<'a> {
    /// Those whose values are known.
    fn known(&self) -> &[(&'a str, Value<'a>)];

    /// The variable `base.field`, if it is one that is computed when it is asked for.
    fn later(&self, base: &str, field: &str) -> Option<Value<'a>>;
}

impl<'a> Variables<'a> for &[(&'a str, Value<'a>)] {
    fn known(&self) -> &[(&'a str, Value<'a>)] {
        self
    }

    fn later(&self, _: &str, _: &str) -> Option<Value<'a>> {
        None
    }
}

struct Scope<'a, 'b> {
    variables: Vec<(&'a str, Value<'a>)>,
    /// Those that are not among them yet.
    others: &'b dyn Variables<'a>,
    patterns: &'a Patterns,
    budget: &'b mut Budget,
}

/// Evaluates `expr`.
pub(crate) fn eval<'a>(
    expr: &'a Expr,
    patterns: &'a Patterns,
    variables: &dyn Variables<'a>,
    budget: &mut Budget,
) -> Result<Value<'a>> {
    let known = variables.known().to_vec();
    Scope { variables: known, others: variables, patterns, budget }.node(expr)
}

impl<'a> Scope<'a, '_> {
    fn node(&mut self, expr: &'a Expr) -> Result<Value<'a>> {
        self.budget.spend(1)?;
        match &expr.node {
            Node::Null => Ok(Value::Null),
            Node::Bool(it) => Ok(Value::Bool(*it)),
            Node::Int(it) => Ok(Value::Int(*it)),
            Node::Uint(it) => Ok(Value::Uint(*it)),
            Node::Double(it) => Ok(Value::Double(*it)),
            Node::Text(it) => Ok(Value::text(it.as_str())),
            Node::Bytes(it) => Ok(Value::Bytes(it.as_slice().into())),
            Node::Variable(name) => self.variable(name),
            Node::Select { of, field, is_optional } => {
                if let Some(found) = self.qualified(of, field) {
                    return found;
                }
                let of = self.node(of)?;
                select(&of, field, *is_optional)
            }
            Node::Has { of, field } if self.qualified(of, field).is_some() => Ok(Value::Bool(true)),
            Node::Has { of, field } => match self.node(of)? {
                Value::Optional(of) => {
                    Ok(Value::Bool(of.is_some_and(|it| it.field(field).is_some())))
                }
                of => Ok(Value::Bool(of.field(field).is_some())),
            },
            Node::Index { of, index, is_optional } => {
                let of = self.node(of)?;
                let index = self.node(index)?;
                at(&of, &index, *is_optional)
            }
            Node::Not(inner) => match self.node(inner)? {
                Value::Bool(it) => Ok(Value::Bool(!it)),
                _ => Err(EvalError::no_overload("!_")),
            },
            Node::Negate(inner) => operators::negate(self.node(inner)?),
            Node::Binary(operator, left, right) => {
                let left = self.node(left)?;
                let right = self.node(right)?;
                self.binary(*operator, &left, &right)
            }
            Node::And(list) => self.junction(list, false),
            Node::Or(list) => self.junction(list, true),
            Node::If { condition, then, otherwise } => match self.node(condition)? {
                Value::Bool(true) => self.node(then),
                Value::Bool(false) => self.node(otherwise),
                _ => Err(EvalError::no_overload("_?_:_")),
            },
            Node::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (item, is_optional) in items {
                    list.extend(present(self.node(item)?, *is_optional)?);
                }
                Ok(Value::list(list))
            }
            Node::Map(entries) => {
                let mut map = BTreeMap::new();
                for (key, value, is_optional) in entries {
                    let key = self.node(key)?;
                    let key =
                        Key::of(&key).ok_or_else(|| EvalError::failed("unsupported key type"))?;
                    if let Some(value) = present(self.node(value)?, *is_optional)? {
                        map.insert(key, value);
                    }
                }
                Ok(Value::Map(Arc::new(map)))
            }
            Node::Struct { name, fields } => {
                let mut made = BTreeMap::new();
                for (field, value, is_optional) in fields {
                    if let Some(value) = present(self.node(value)?, *is_optional)? {
                        made.insert(field.clone(), value);
                    }
                }
                Ok(Value::Made(Arc::new(Made { name: name.clone(), fields: made })))
            }
            Node::Call { target, function, arguments } => {
                self.call(target.as_deref(), function, arguments)
            }
            Node::Loop(it) => self.iterate(it),
            Node::Bind { name, value, body } => {
                let value = self.node(value)?;
                self.with(name, value, body)
            }
            Node::OptionalMap { of, name, body, flat } => match self.node(of)? {
                Value::Optional(None) => Ok(Value::Optional(None)),
                Value::Optional(Some(inner)) => {
                    let mapped = self.with(name, (*inner).clone(), body)?;
                    Ok(match flat {
                        true => mapped,
                        false => Value::Optional(Some(Arc::new(mapped))),
                    })
                }
                _ => Err(EvalError::no_overload("optMap")),
            },
        }
    }

    fn variable(&self, name: &str) -> Result<Value<'a>> {
        let found = self.variables.iter().rev().find(|(known, _)| *known == name);
        if let Some((_, value)) = found {
            return given(value);
        }
        operators::kind_named(name)
            .map(Value::Kind)
            .ok_or_else(|| EvalError::failed(format!("no such attribute(s): {name}")))
    }

    /// A variable whose name has a dot, unless a macro's variable stands before it.
    fn qualified(&self, of: &Expr, field: &str) -> Option<Result<Value<'a>>> {
        let Node::Variable(base) = &of.node else { return None };
        let found = self.variables.iter().rev().find(|(name, _)| is_qualified(name, base, field));
        match found {
            Some((_, value)) => Some(given(value)),
            None => self.others.later(base, field).map(|value| given(&value)),
        }
    }

    fn with(&mut self, name: &'a str, value: Value<'a>, body: &'a Expr) -> Result<Value<'a>> {
        self.variables.push((name, value));
        let found = self.node(body);
        self.variables.pop();
        found
    }

    fn binary(
        &mut self,
        operator: Operator,
        left: &Value<'a>,
        right: &Value<'a>,
    ) -> Result<Value<'a>> {
        operators::binary(operator, left, right, self.budget)
    }

    /// `&&` and `||`: `decisive` is what ends it.
    fn junction(&mut self, list: &'a [Expr], decisive: bool) -> Result<Value<'a>> {
        let mut failed = None;
        for it in list {
            match self.node(it) {
                Ok(Value::Bool(it)) if it == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => (),
                Ok(_) => failed = failed.or_else(|| Some(EvalError::no_overload("_&&_"))),
                Err(EvalError::Budget) => return Err(EvalError::Budget),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn call(
        &mut self,
        target: Option<&'a Expr>,
        function: &str,
        arguments: &'a [Expr],
    ) -> Result<Value<'a>> {
        let is_variable = |name: &str| self.variables.iter().any(|(known, _)| *known == name);
        let namespace = match target.map(|it| &it.node) {
            Some(Node::Variable(name)) if !is_variable(name) && functions::is_namespace(name) => {
                Some(name.as_str())
            }
            _ => None,
        };
        let target = match (target, namespace) {
            (Some(target), None) => Some(self.node(target)?),
            _ => None,
        };
        // Both are only asked where the first is none.
        if let (Some(Value::Optional(inner)), "or" | "orValue", [other]) =
            (&target, function, arguments)
        {
            return match (inner, function) {
                (Some(inner), "orValue") => Ok((**inner).clone()),
                (Some(_), _) => Ok(Value::Optional(inner.clone())),
                (None, _) => self.node(other),
            };
        }
        let given: Vec<Value<'a>> =
            arguments.iter().map(|it| self.node(it)).collect::<Result<_>>()?;
        if let Some(written) = patterns::of_call(function, target.is_some(), arguments) {
            let (text, rest) = match (&target, given.as_slice()) {
                (Some(target), [_, rest @ ..]) | (None, [target, _, rest @ ..]) => (target, rest),
                _ => return Err(EvalError::no_overload(function)),
            };
            let of_call = given.get(usize::from(target.is_none()));
            let found = self.patterns.get(written, of_call, self.budget)?;
            return functions::search(function, text, &found, rest, self.budget);
        }
        functions::call(namespace, function, target.as_ref(), &given, self.budget)
    }

    fn iterate(&mut self, it: &'a Loop) -> Result<Value<'a>> {
        let range = self.node(&it.range)?;
        // They are all laid out, even if the first is enough.
        self.budget.walk(range.len().unwrap_or_default())?;
        let pairs: Vec<(Value<'a>, Option<Value<'a>>)> = match (range.items(), &it.second) {
            (Some(items), None) => items.into_iter().map(|item| (item, None)).collect(),
            (Some(items), Some(_)) => {
                let indexed = (0..).zip(items);
                indexed.map(|(index, item)| (Value::Int(index), Some(item))).collect()
            }
            (None, second) => {
                let entries = range.entries().ok_or_else(|| EvalError::no_overload("@iter"))?;
                let pair = |(key, value)| (key, second.as_ref().map(|_| value));
                entries.into_iter().map(pair).collect()
            }
        };
        let n_variables = self.variables.len();
        let found = self.run(it, pairs);
        self.variables.truncate(n_variables);
        found
    }

    fn run(
        &mut self,
        it: &'a Loop,
        pairs: Vec<(Value<'a>, Option<Value<'a>>)>,
    ) -> Result<Value<'a>> {
        let n_variables = self.variables.len();
        let (mut failed, mut n_true) = (None, 0_usize);
        let (mut list, mut map) = (Vec::new(), BTreeMap::new());
        for (first, second) in pairs {
            self.budget.spend(1)?;
            self.variables.truncate(n_variables);
            self.variables.push((&it.first, first.clone()));
            if let (Some(name), Some(second)) = (&it.second, second) {
                self.variables.push((name, second));
            }
            if let Some(filter) = &it.filter
                && !self.truth(filter)?
            {
                continue;
            }
            match it.kind {
                LoopKind::All | LoopKind::Exists => {
                    let decisive = it.kind == LoopKind::Exists;
                    match self.truth(&it.body) {
                        Ok(is) if is == decisive => return Ok(Value::Bool(decisive)),
                        Ok(_) => (),
                        Err(EvalError::Budget) => return Err(EvalError::Budget),
                        Err(error) => failed = failed.or(Some(error)),
                    }
                }
                LoopKind::ExistsOne => n_true += usize::from(self.truth(&it.body)?),
                LoopKind::Filter => {
                    if self.truth(&it.body)? {
                        list.push(first);
                    }
                }
                LoopKind::Map => list.push(self.node(&it.body)?),
                LoopKind::TransformMap => {
                    let key = Key::of(&first);
                    let key = key.ok_or_else(|| EvalError::failed("unsupported key type"))?;
                    map.insert(key, self.node(&it.body)?);
                }
            }
        }
        match (failed, it.kind) {
            (Some(error), _) => Err(error),
            (None, LoopKind::All) => Ok(Value::Bool(true)),
            (None, LoopKind::Exists) => Ok(Value::Bool(false)),
            (None, LoopKind::ExistsOne) => Ok(Value::Bool(n_true == 1)),
            (None, LoopKind::Filter | LoopKind::Map) => Ok(Value::list(list)),
            (None, LoopKind::TransformMap) => Ok(Value::Map(Arc::new(map))),
        }
    }

    fn truth(&mut self, expr: &'a Expr) -> Result<bool> {
        match self.node(expr)? {
            Value::Bool(it) => Ok(it),
            _ => Err(EvalError::no_overload("a condition that is no bool")),
        }
    }
}

/// The value of a variable, if it has one.
fn given<'a>(value: &Value<'a>) -> Result<Value<'a>> {
    match value {
        Value::Failed(why) => Err(EvalError::failed(why.as_ref())),
        value => Ok(value.clone()),
    }
}

/// What an item or entry comes to: an optional one may be absent.
fn present(value: Value<'_>, is_optional: bool) -> Result<Option<Value<'_>>> {
    match (is_optional, value) {
        (false, value) => Ok(Some(value)),
        (true, Value::Optional(inner)) => Ok(inner.map(|it| (*it).clone())),
        (true, _) => Err(EvalError::no_overload("?")),
    }
}

fn select<'a>(of: &Value<'a>, field: &str, is_optional: bool) -> Result<Value<'a>> {
    match of {
        Value::Optional(inner) => {
            let found = inner.as_ref().and_then(|it| it.field(field));
            Ok(Value::Optional(found.map(Arc::new)))
        }
        of if is_optional => Ok(Value::Optional(of.field(field).map(Arc::new))),
        of => of.field(field).ok_or_else(|| EvalError::failed(format!("no such key: {field}"))),
    }
}

fn at<'a>(of: &Value<'a>, index: &Value<'a>, is_optional: bool) -> Result<Value<'a>> {
    match of {
        Value::Optional(inner) => {
            let found = inner.as_ref().and_then(|it| it.at(index));
            Ok(Value::Optional(found.map(Arc::new)))
        }
        of if is_optional => Ok(Value::Optional(of.at(index).map(Arc::new))),
        of => of.at(index).ok_or_else(|| match (index.as_int(), of.items()) {
            (Some(index), Some(_)) => EvalError::failed(format!("index out of bounds: {index}")),
            _ => EvalError::failed(format!("no such key: {}", functions::shown(index))),
        }),
    }
}

#[cfg(test)]
mod tests;
