//! `sets.*`: lists as sets.

use crate::{
    eval::{Budget, EvalError, Result},
    operators::contains,
    value::Value,
};

pub(super) fn call<'a>(
    function: &str,
    arguments: &[Value<'a>],
    budget: &mut Budget,
) -> Result<Value<'a>> {
    let [left, right] = arguments else { return Err(EvalError::no_overload(function)) };
    let (Some(of_left), Some(of_right)) = (left.items(), right.items()) else {
        return Err(EvalError::no_overload(function));
    };
    let mut has_all = |set: &Value<'a>, items: &[Value<'a>]| -> Result<bool> {
        for item in items {
            if !contains(set, item, budget)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    Ok(Value::Bool(match function {
        "contains" => has_all(left, &of_right)?,
        "equivalent" => has_all(left, &of_right)? && has_all(right, &of_left)?,
        "intersects" => {
            for item in &of_right {
                if contains(left, item, budget)? {
                    return Ok(Value::Bool(true));
                }
            }
            false
        }
        _ => return Err(EvalError::no_overload(function)),
    }))
}
