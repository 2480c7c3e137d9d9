//! Methods of lists.

use std::cmp::Ordering;

use super::equal;
use crate::{
    eval::{Budget, EvalError, Result},
    value::{Value, as_double, compare},
};

#[allow(clippy::cast_possible_wrap, reason = "no list is so long")]
fn position(index: Option<usize>) -> Value<'static> {
    Value::Int(index.map_or(-1, |it| it as i64))
}

pub(super) fn method<'a>(
    function: &str,
    items: Vec<Value<'a>>,
    arguments: &[Value<'a>],
    budget: &mut Budget,
) -> Result<Value<'a>> {
    budget.spend(items.len() as u64)?;
    let empty = || EvalError::failed(format!("{function} called on empty list"));
    match (function, arguments) {
        ("isSorted", []) => {
            let sorted = items
                .windows(2)
                .all(|pair| compare(&pair[0], &pair[1]).is_some_and(|it| it != Ordering::Greater));
            Ok(Value::Bool(sorted))
        }
        ("sum", []) => sum(&items),
        ("min", []) => extreme(items, Ordering::Less).ok_or_else(empty),
        ("max", []) => extreme(items, Ordering::Greater).ok_or_else(empty),
        ("indexOf", [wanted]) => {
            for (index, item) in items.iter().enumerate() {
                if equal(item, wanted, budget)? {
                    return Ok(position(Some(index)));
                }
            }
            Ok(position(None))
        }
        ("lastIndexOf", [wanted]) => {
            for (index, item) in items.iter().enumerate().rev() {
                if equal(item, wanted, budget)? {
                    return Ok(position(Some(index)));
                }
            }
            Ok(position(None))
        }
        ("join", rest) => {
            let separator = match rest {
                [] => "",
                [it] => it.as_text().ok_or_else(|| EvalError::no_overload("join"))?,
                _ => return Err(EvalError::no_overload("join")),
            };
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_text).collect();
            let texts = texts.ok_or_else(|| EvalError::no_overload("join"))?;
            let length = texts.iter().map(|it| it.len() + separator.len()).sum();
            budget.walk(length)?;
            Ok(Value::text(texts.join(separator)))
        }
        ("distinct", []) => {
            let mut kept: Vec<Value<'a>> = Vec::new();
            for item in items {
                let mut is_known = false;
                for it in &kept {
                    is_known |= equal(it, &item, budget)?;
                }
                if !is_known {
                    kept.push(item);
                }
            }
            Ok(Value::list(kept))
        }
        ("sort", []) => {
            let mut items = items;
            items.sort_by(|left, right| compare(left, right).unwrap_or(Ordering::Equal));
            Ok(Value::list(items))
        }
        ("reverse", []) => Ok(Value::list(items.into_iter().rev().collect())),
        ("slice", [from, to]) => {
            let bound = |it: &Value<'_>| it.as_int().and_then(|it| usize::try_from(it).ok());
            let range = bound(from).zip(bound(to)).and_then(|(from, to)| items.get(from..to));
            let range = range.ok_or_else(|| EvalError::failed("index out of range"))?;
            Ok(Value::list(range.to_vec()))
        }
        ("flatten", []) => {
            let length = items.iter().filter_map(Value::len).fold(0, usize::saturating_add);
            budget.spend(length as u64)?;
            let flat = items.into_iter().flat_map(|it| match it.items() {
                Some(inner) => inner,
                None => vec![it],
            });
            Ok(Value::list(flat.collect()))
        }
        ("first", []) => Ok(Value::Optional(items.into_iter().next().map(Into::into))),
        ("last", []) => Ok(Value::Optional(items.into_iter().next_back().map(Into::into))),
        _ => Err(EvalError::no_overload(function)),
    }
}

fn extreme(items: Vec<Value<'_>>, wanted: Ordering) -> Option<Value<'_>> {
    items.into_iter().reduce(|best, it| if compare(&it, &best) == Some(wanted) { it } else { best })
}

fn sum<'a>(items: &[Value<'a>]) -> Result<Value<'a>> {
    let overflow = || EvalError::failed("integer overflow");
    match items.first() {
        None => Ok(Value::Int(0)),
        Some(Value::Int(_)) => {
            let total = items.iter().try_fold(0_i64, |total, it| match it {
                Value::Int(it) => total.checked_add(*it),
                _ => None,
            });
            total.map(Value::Int).ok_or_else(overflow)
        }
        Some(Value::Double(_)) => {
            let numbers: Option<Vec<f64>> = items.iter().map(as_double).collect();
            let numbers = numbers.ok_or_else(|| EvalError::no_overload("sum"))?;
            Ok(Value::Double(numbers.iter().sum()))
        }
        Some(Value::Duration(_)) => {
            let total = items.iter().try_fold(jiff::SignedDuration::ZERO, |total, it| match it {
                Value::Duration(it) => total.checked_add(*it),
                _ => None,
            });
            total.map(Value::Duration).ok_or_else(overflow)
        }
        _ => Err(EvalError::no_overload("sum")),
    }
}
