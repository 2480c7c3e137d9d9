//! `math.*`.

use std::cmp::Ordering;

use crate::{
    eval::{EvalError, Result},
    value::{Value, compare},
};

pub(super) fn call<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    let unknown = || EvalError::no_overload(function);
    match (function, arguments) {
        ("greatest" | "least", arguments) => {
            let list = match arguments {
                [one] => one.items().unwrap_or_else(|| vec![one.clone()]),
                many => many.to_vec(),
            };
            let wanted = if function == "greatest" { Ordering::Greater } else { Ordering::Less };
            let best = list
                .into_iter()
                .reduce(|best, it| if compare(&it, &best) == Some(wanted) { it } else { best });
            best.ok_or_else(unknown)
        }
        ("ceil", [Value::Double(it)]) => Ok(Value::Double(it.ceil())),
        ("floor", [Value::Double(it)]) => Ok(Value::Double(it.floor())),
        ("round", [Value::Double(it)]) => Ok(Value::Double(it.round())),
        ("trunc", [Value::Double(it)]) => Ok(Value::Double(it.trunc())),
        ("isNaN", [Value::Double(it)]) => Ok(Value::Bool(it.is_nan())),
        ("isInf", [Value::Double(it)]) => Ok(Value::Bool(it.is_infinite())),
        ("isFinite", [Value::Double(it)]) => Ok(Value::Bool(it.is_finite())),
        ("abs", [Value::Int(it)]) => {
            it.checked_abs().map(Value::Int).ok_or_else(|| EvalError::failed("integer overflow"))
        }
        ("abs", [Value::Double(it)]) => Ok(Value::Double(it.abs())),
        ("abs", [Value::Uint(it)]) => Ok(Value::Uint(*it)),
        ("sign", [Value::Int(it)]) => Ok(Value::Int(it.signum())),
        ("sign", [Value::Uint(it)]) => Ok(Value::Uint(u64::from(*it != 0))),
        ("sign", [Value::Double(it)]) => {
            Ok(Value::Double(if *it == 0.0 { 0.0 } else { it.signum() }))
        }
        _ => Err(unknown()),
    }
}
