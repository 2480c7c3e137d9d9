//! Functions: of the language, of its extensions, and of Kubernetes.

mod lists;
mod math;
mod net;
mod numbers;
pub(crate) mod semver;
mod sets;
mod strings;
pub(crate) mod time;
pub(crate) mod url;

use std::sync::Arc;

use crate::{
    eval::{Budget, EvalError, Result},
    operators,
    value::Value,
};

/// Names that functions begin with, as in `math.greatest`.
pub(crate) fn is_namespace(name: &str) -> bool {
    matches!(
        name,
        "base64" | "cel" | "format" | "ip" | "jsonpatch" | "math" | "optional" | "sets" | "strings"
    )
}

/// Calls a function, or a method of `target`.
pub(crate) fn call<'a>(
    namespace: Option<&str>,
    function: &str,
    target: Option<&Value<'a>>,
    arguments: &[Value<'a>],
    budget: &mut Budget,
) -> Result<Value<'a>> {
    let walked = target.into_iter().chain(arguments).filter_map(Value::as_text).map(str::len);
    budget.walk(walked.sum())?;
    if let Some(namespace) = namespace {
        return match namespace {
            "math" => math::call(function, arguments),
            "sets" => sets::call(function, arguments, budget),
            "base64" => strings::base64(function, arguments),
            "strings" => strings::quoting(function, arguments),
            "optional" => optional(function, arguments),
            "ip" => net::canonical(function, arguments),
            "format" => strings::named_format(function, arguments),
            "jsonpatch" => strings::escape_key(function, arguments),
            _ => Err(EvalError::no_overload(function)),
        };
    }
    match target {
        None => global(function, arguments, budget),
        Some(target) => method(function, target, arguments, budget),
    }
}

fn global<'a>(function: &str, arguments: &[Value<'a>], budget: &mut Budget) -> Result<Value<'a>> {
    match (function, arguments) {
        ("size", [of]) => size(of),
        ("type", [of]) => Ok(Value::Kind(of.kind())),
        ("dyn", [of]) => Ok(of.clone()),
        ("int" | "uint" | "double" | "string" | "bool" | "bytes", [of]) => {
            numbers::convert(function, of)
        }
        ("duration" | "timestamp", [of]) => time::convert(function, of),
        ("quantity" | "isQuantity" | "isURL" | "url" | "isSemver" | "semver", _)
        | ("ip" | "isIP" | "cidr" | "isCIDR", _) => library(function, arguments),
        ("sets.contains", _) => sets::call("contains", arguments, budget),
        _ => Err(EvalError::no_overload(function)),
    }
}

fn method<'a>(
    function: &str,
    target: &Value<'a>,
    arguments: &[Value<'a>],
    budget: &mut Budget,
) -> Result<Value<'a>> {
    if function == "size" && arguments.is_empty() {
        return size(target);
    }
    match target {
        Value::Text(text) => strings::method(function, text, arguments, budget),
        Value::Timestamp(at) => time::of_timestamp(function, *at, arguments),
        Value::Duration(span) => time::of_duration(function, *span),
        Value::Optional(inner) => match (function, arguments) {
            ("hasValue", []) => Ok(Value::Bool(inner.is_some())),
            ("value", []) => match inner {
                Some(inner) => Ok((**inner).clone()),
                None => Err(EvalError::failed("optional.none() dereference")),
            },
            _ => Err(EvalError::no_overload(function)),
        },
        Value::Quantity(it) => numbers::of_quantity(function, **it, arguments),
        Value::Ip(it) => net::of_ip(function, *it),
        Value::Cidr(it) => net::of_cidr(function, *it, arguments),
        Value::Url(it) => url::method(function, it),
        Value::Semver(it) => semver::method(function, it, arguments),
        Value::Format(name) => strings::validate(function, name, arguments),
        Value::Asking(it) => it.method(function, arguments, budget),
        target => match target.items() {
            Some(items) => lists::method(function, items, arguments, budget),
            None => Err(EvalError::no_overload(function)),
        },
    }
}

fn library<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    let Some(text) = arguments.first().and_then(Value::as_text) else {
        return Err(EvalError::no_overload(function));
    };
    match function {
        "quantity" | "isQuantity" => numbers::quantity(function, text),
        "url" | "isURL" => url::function(function, text),
        "semver" | "isSemver" => semver::function(function, text, arguments.get(1)),
        _ => net::function(function, text),
    }
}

#[allow(clippy::cast_possible_wrap, reason = "no list or text is so long")]
fn size<'a>(of: &Value<'a>) -> Result<Value<'a>> {
    let size = match of {
        Value::Text(text) => text.chars().count(),
        Value::Bytes(bytes) => bytes.len(),
        of => of.len().ok_or_else(|| EvalError::no_overload("size"))?,
    };
    Ok(Value::Int(size as i64))
}

fn optional<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    match (function, arguments) {
        ("none", []) => Ok(Value::Optional(None)),
        ("of", [of]) => Ok(Value::Optional(Some(Arc::new(of.clone())))),
        ("ofNonZeroValue", [of]) => {
            let is_zero = match of {
                Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) => true,
                Value::Double(it) => *it == 0.0,
                Value::Text(text) => text.is_empty(),
                of => of.is_empty().unwrap_or(false),
            };
            Ok(Value::Optional((!is_zero).then(|| Arc::new(of.clone()))))
        }
        _ => Err(EvalError::no_overload(function)),
    }
}

/// A value as messages and `format` show it.
pub(crate) fn shown(value: &Value<'_>) -> String {
    match value {
        Value::Text(text) => text.clone().into_owned(),
        value => strings::literal(value),
    }
}

pub(crate) use operators::equal;
pub(crate) use strings::search;
