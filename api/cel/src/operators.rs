//! Operators on values.

use jiff::SignedDuration;

use crate::{
    ast::Operator,
    eval::{Budget, EvalError, Result},
    value::{Value, as_double, compare},
};

pub(crate) fn kind_named(name: &str) -> Option<&'static str> {
    const KINDS: &[&str] =
        &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];
    KINDS.iter().find(|it| **it == name).copied()
}

pub(crate) fn negate(value: Value<'_>) -> Result<Value<'_>> {
    match value {
        Value::Int(it) => it.checked_neg().map(Value::Int).ok_or_else(overflow),
        Value::Double(it) => Ok(Value::Double(-it)),
        Value::Duration(it) => Ok(Value::Duration(-it)),
        _ => Err(EvalError::no_overload("-_")),
    }
}

fn overflow() -> EvalError {
    EvalError::failed("integer overflow")
}

pub(crate) fn binary<'a>(
    operator: Operator,
    left: &Value<'a>,
    right: &Value<'a>,
    budget: &mut Budget,
) -> Result<Value<'a>> {
    use std::cmp::Ordering::{Greater, Less};
    let ordered = |wanted: &[std::cmp::Ordering]| match compare(left, right) {
        Some(order) => Ok(Value::Bool(wanted.contains(&order))),
        // What is not a number is neither less nor greater.
        None if matches!((left, right), (Value::Double(_), _) | (_, Value::Double(_))) => {
            Ok(Value::Bool(false))
        }
        None => Err(EvalError::no_overload(operator.name())),
    };
    let is_order = matches!(
        operator,
        Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual
    );
    if let (true, Some(left), Some(right)) = (is_order, left.as_text(), right.as_text()) {
        budget.walk(left.len().min(right.len()))?;
    }
    match operator {
        Operator::Equal => Ok(Value::Bool(equal(left, right, budget)?)),
        Operator::NotEqual => Ok(Value::Bool(!equal(left, right, budget)?)),
        Operator::Less => ordered(&[Less]),
        Operator::LessOrEqual => ordered(&[Less, std::cmp::Ordering::Equal]),
        Operator::Greater => ordered(&[Greater]),
        Operator::GreaterOrEqual => ordered(&[Greater, std::cmp::Ordering::Equal]),
        Operator::In => contains(right, left, budget).map(Value::Bool),
        Operator::Add => add(left, right, budget),
        _ => arithmetic(operator, left, right),
    }
}

/// Whether `of` has `item`, as an item or as a key.
pub(crate) fn contains(of: &Value<'_>, item: &Value<'_>, budget: &mut Budget) -> Result<bool> {
    if let Some(items) = laid_out(of, budget)? {
        for it in &items {
            if equal(it, item, budget)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    match of.len() {
        Some(_) => Ok(of.at(item).is_some()),
        None => Err(EvalError::no_overload("@in")),
    }
}

/// The items of a list. Laying them out is work, also for who looks at the first alone.
fn laid_out<'a>(of: &Value<'a>, budget: &mut Budget) -> Result<Option<Vec<Value<'a>>>> {
    budget.spend(of.len().unwrap_or_default() as u64 / 10)?;
    Ok(of.items())
}

/// Whether two values are the same. Numbers are by their value, whatever their types.
pub(crate) fn equal(left: &Value<'_>, right: &Value<'_>, budget: &mut Budget) -> Result<bool> {
    budget.spend(1)?;
    if let (Some(one), Some(two)) = (left.len(), right.len())
        && one != two
    {
        return Ok(false);
    }
    if let (Some(left), Some(right)) = (laid_out(left, budget)?, right.items()) {
        for (left, right) in left.iter().zip(&right) {
            if !equal(left, right, budget)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    if let (Some(entries), Some(length)) = (left.entries(), right.len()) {
        if entries.len() != length || right.items().is_some() {
            return Ok(false);
        }
        for (key, value) in &entries {
            match right.at(key) {
                Some(other) if equal(value, &other, budget)? => (),
                _ => return Ok(false),
            }
        }
        return Ok(true);
    }
    if let (Value::Text(left), Value::Text(right)) = (left, right) {
        budget.walk(left.len().min(right.len()))?;
        return Ok(left == right);
    }
    Ok(match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(left)), Value::Optional(Some(right))) => equal(left, right, budget)?,
        (Value::Kind(left), Value::Kind(right)) => left == right,
        (Value::Quantity(left), Value::Quantity(right)) => left == right,
        (Value::Ip(left), Value::Ip(right)) => left == right,
        (Value::Cidr(left), Value::Cidr(right)) => left == right,
        (Value::Url(left), Value::Url(right)) => left == right,
        (Value::Format(left), Value::Format(right)) => left == right,
        (Value::Asking(left), Value::Asking(right)) => left.is_same(right),
        (Value::Made(left), Value::Made(right)) => {
            if left.name != right.name || left.fields.len() != right.fields.len() {
                return Ok(false);
            }
            for (name, value) in &left.fields {
                match right.fields.get(name) {
                    Some(other) if equal(value, other, budget)? => (),
                    _ => return Ok(false),
                }
            }
            true
        }
        (left, right) => compare(left, right).is_some_and(std::cmp::Ordering::is_eq),
    })
}

fn add<'a>(left: &Value<'a>, right: &Value<'a>, budget: &mut Budget) -> Result<Value<'a>> {
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => {
            budget.walk(left.len() + right.len())?;
            Ok(Value::text(format!("{left}{right}")))
        }
        (Value::Bytes(left), Value::Bytes(right)) => {
            budget.walk(left.len() + right.len())?;
            Ok(Value::Bytes([&**left, &**right].concat().into()))
        }
        (left, right) => match (left.items(), right.items()) {
            (Some(mut items), Some(more)) => {
                budget.spend((items.len() + more.len()) as u64)?;
                items.extend(more);
                Ok(Value::list(items))
            }
            _ => arithmetic(Operator::Add, left, right),
        },
    }
}

fn arithmetic<'a>(operator: Operator, left: &Value<'a>, right: &Value<'a>) -> Result<Value<'a>> {
    use Operator::{Add, Divide, Multiply, Remainder, Subtract};
    let unknown = || EvalError::no_overload(operator.name());
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => {
            let (left, right) = (*left, *right);
            if right == 0 && operator == Divide {
                return Err(EvalError::failed("division by zero"));
            }
            if right == 0 && operator == Remainder {
                return Err(EvalError::failed("modulus by zero"));
            }
            let found = match operator {
                Add => left.checked_add(right),
                Subtract => left.checked_sub(right),
                Multiply => left.checked_mul(right),
                Divide => left.checked_div(right),
                Remainder => left.checked_rem(right),
                _ => return Err(unknown()),
            };
            found.map(Value::Int).ok_or_else(overflow)
        }
        (Value::Uint(left), Value::Uint(right)) => {
            let (left, right) = (*left, *right);
            let found = match operator {
                Add => left.checked_add(right),
                Subtract => left.checked_sub(right),
                Multiply => left.checked_mul(right),
                Divide if right == 0 => return Err(EvalError::failed("division by zero")),
                Remainder if right == 0 => return Err(EvalError::failed("modulus by zero")),
                Divide => left.checked_div(right),
                Remainder => left.checked_rem(right),
                _ => return Err(unknown()),
            };
            found.map(Value::Uint).ok_or_else(|| EvalError::failed("unsigned integer overflow"))
        }
        (Value::Timestamp(at), Value::Duration(span)) => {
            let found = match operator {
                Add => at.checked_add(*span),
                Subtract => at.checked_sub(*span),
                _ => return Err(unknown()),
            };
            found.map(Value::Timestamp).map_err(|_| EvalError::failed("timestamp overflow"))
        }
        (Value::Duration(span), Value::Timestamp(at)) if operator == Add => at
            .checked_add(*span)
            .map(Value::Timestamp)
            .map_err(|_| EvalError::failed("timestamp overflow")),
        (Value::Timestamp(left), Value::Timestamp(right)) if operator == Subtract => {
            Ok(Value::Duration(left.duration_since(*right)))
        }
        (Value::Duration(left), Value::Duration(right)) => {
            let found: Option<SignedDuration> = match operator {
                Add => left.checked_add(*right),
                Subtract => left.checked_sub(*right),
                _ => return Err(unknown()),
            };
            found.map(Value::Duration).ok_or_else(|| EvalError::failed("duration overflow"))
        }
        (left, right) => {
            let is_double = matches!(left, Value::Double(_)) || matches!(right, Value::Double(_));
            let (Some(left), Some(right)) = (as_double(left), as_double(right)) else {
                return Err(unknown());
            };
            if !is_double {
                return Err(unknown());
            }
            Ok(Value::Double(match operator {
                Add => left + right,
                Subtract => left - right,
                Multiply => left * right,
                Divide => left / right,
                _ => return Err(unknown()),
            }))
        }
    }
}
