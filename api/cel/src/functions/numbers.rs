//! Conversions between numbers, and quantities.

use std::sync::Arc;

use insula_api::quantity::Quantity;

use crate::{
    eval::{EvalError, Result},
    functions::time,
    value::Value,
};

/// `int(x)`, `string(x)` and the like.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "checked against the range first; doubles lose what CEL says they lose"
)]
pub(super) fn convert<'a>(to: &str, of: &Value<'a>) -> Result<Value<'a>> {
    let range = || EvalError::failed("integer overflow");
    let bad = || EvalError::failed(format!("type conversion error from {:?} to {to:?}", of.kind()));
    Ok(match (to, of) {
        ("int", Value::Int(_))
        | ("uint", Value::Uint(_))
        | ("double", Value::Double(_))
        | ("string", Value::Text(_))
        | ("bool", Value::Bool(_))
        | ("bytes", Value::Bytes(_)) => of.clone(),
        ("int", Value::Uint(it)) => Value::Int(i64::try_from(*it).map_err(|_| range())?),
        ("int", Value::Double(it)) if it.abs() < 9.2e18 => Value::Int(it.trunc() as i64),
        ("int", Value::Double(_)) => return Err(range()),
        ("int", Value::Text(text)) => Value::Int(text.parse().map_err(|_| bad())?),
        ("int", Value::Timestamp(at)) => Value::Int(at.as_second()),
        ("uint", Value::Int(it)) => Value::Uint(u64::try_from(*it).map_err(|_| range())?),
        ("uint", Value::Double(it)) if 0.0 <= *it && *it < 1.8e19 => {
            Value::Uint(format!("{:.0}", it.trunc()).parse().map_err(|_| range())?)
        }
        ("uint", Value::Text(text)) => Value::Uint(text.parse().map_err(|_| bad())?),
        ("double", Value::Int(it)) => Value::Double(*it as f64),
        ("double", Value::Uint(it)) => Value::Double(*it as f64),
        ("double", Value::Text(text)) => Value::Double(text.parse().map_err(|_| bad())?),
        ("bool", Value::Text(text)) => match text.as_ref() {
            "true" | "TRUE" | "True" | "t" | "1" => Value::Bool(true),
            "false" | "FALSE" | "False" | "f" | "0" => Value::Bool(false),
            _ => return Err(bad()),
        },
        ("bytes", Value::Text(text)) => Value::Bytes(text.as_bytes().into()),
        ("string", Value::Bytes(bytes)) => {
            Value::text(String::from_utf8(bytes.to_vec()).map_err(|_| bad())?)
        }
        ("string", Value::Int(it)) => Value::text(it.to_string()),
        ("string", Value::Uint(it)) => Value::text(it.to_string()),
        ("string", Value::Double(it)) => Value::text(it.to_string()),
        ("string", Value::Bool(it)) => Value::text(it.to_string()),
        ("string", Value::Timestamp(at)) => Value::text(at.to_string()),
        ("string", Value::Duration(span)) => Value::text(time::shown(*span)),
        ("string", Value::Ip(it)) => Value::text(it.to_string()),
        ("string", Value::Cidr(it)) => Value::text(it.to_string()),
        _ => return Err(bad()),
    })
}

pub(super) fn quantity<'a>(function: &str, text: &str) -> Result<Value<'a>> {
    let parsed = Quantity::parse(text);
    if function == "isQuantity" {
        return Ok(Value::Bool(parsed.is_ok()));
    }
    parsed
        .map(|it| Value::Quantity(Arc::new(it)))
        .map_err(|error| EvalError::failed(error.to_string()))
}

pub(super) fn of_quantity<'a>(
    function: &str,
    it: Quantity,
    arguments: &[Value<'a>],
) -> Result<Value<'a>> {
    let order = |other: &Quantity| it.partial_cmp(other).map_or(0, |it| it as i64);
    let made = |it| Ok(Value::Quantity(Arc::new(it)));
    let is_integer = it.milli_value() % 1000 == 0;
    match (function, arguments) {
        ("compareTo", [Value::Quantity(other)]) => Ok(Value::Int(order(other))),
        ("isGreaterThan", [Value::Quantity(other)]) => Ok(Value::Bool(0 < order(other))),
        ("isLessThan", [Value::Quantity(other)]) => Ok(Value::Bool(order(other) < 0)),
        ("add", [Value::Quantity(other)]) => made(it.saturating_add(**other)),
        ("add", [Value::Int(other)]) => made(it.saturating_add(Quantity::new(*other, it.format()))),
        ("sub", [Value::Quantity(other)]) => made(it.saturating_sub(**other)),
        ("sub", [Value::Int(other)]) => made(it.saturating_sub(Quantity::new(*other, it.format()))),
        ("sign", []) if it.is_zero() => Ok(Value::Int(0)),
        ("sign", []) => Ok(Value::Int(if it.is_negative() { -1 } else { 1 })),
        ("isInteger", []) => Ok(Value::Bool(is_integer)),
        ("asInteger", []) if is_integer => Ok(Value::Int(it.value())),
        ("asInteger", []) => Err(EvalError::failed("cannot convert value to integer")),
        ("asApproximateFloat", []) => {
            let milli = super::super::value::as_double(&Value::Int(it.milli_value()));
            Ok(Value::Double(milli.unwrap_or_default() / 1000.0))
        }
        _ => Err(EvalError::no_overload(function)),
    }
}
