//! What is wrong with a value, by its schema, in the words of upstream's validator.
//!
//! On updates what was there before is tolerated: a part that did not change is not looked at.

use insula_api::field::FieldError;
use serde_json::{Map, Number, Value};

use crate::{
    path::Path,
    schema::{Additional, Checks, ListType, Schema, Type},
};

/// Most findings of one object.
const MAX_ERRORS: usize = 64;

/// Where errors without a place of their own are shown, as upstream does.
pub(crate) const NOWHERE: &str = "<nil>";

/// Checks `it`, and what is in it. `old` is what it was before, if it was.
pub fn value(schema: &Schema, it: &Value, old: Option<&Value>, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Errors(Vec::new());
    node(schema, it, old, path, &mut errors);
    errors.0
}

struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, error: FieldError) {
        if self.0.len() < MAX_ERRORS {
            self.0.push(error);
        }
    }
}

fn node(schema: &Schema, it: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Errors) {
    if old == Some(it) {
        return;
    }
    if it.is_null() && schema.nullable {
        return;
    }
    if let Some(wanted) = wrong_type(schema, it) {
        let found = type_of(it);
        let detail = format!("{path} in body must be of type {wanted}: {found:?}");
        match (it, wanted) {
            (Value::Number(number), "integer") => {
                not_an_integer(schema, number, path, errors);
            }
            _ => errors.push(FieldError::type_invalid(path.to_string(), &found.into(), &detail)),
        }
        if let Some(checks) = &schema.checks {
            check_allowed(checks, it, path, errors);
        }
        return;
    }
    if let Some(checks) = &schema.checks {
        check(checks, it, path, errors);
    }
    match it {
        Value::Object(fields) => {
            let old = old.and_then(Value::as_object);
            map(schema, fields, old, path, errors);
        }
        Value::Array(items) => {
            let Some(of_items) = &schema.items else { return };
            for (index, item) in items.iter().enumerate() {
                let old = old.and_then(|old| counterpart(&schema.list, item, old));
                node(of_items, item, old, &path.index(index), errors);
            }
        }
        _ => (),
    }
}

/// The item of `old` that `item` comes from, in a list whose items have keys.
pub(crate) fn counterpart<'a>(list: &ListType, item: &Value, old: &'a Value) -> Option<&'a Value> {
    let ListType::Map(keys) = list else { return None };
    let old = old.as_array()?;
    old.iter().find(|it| keys.iter().all(|key| it.get(key) == item.get(key)))
}

fn map(
    schema: &Schema,
    fields: &Map<String, Value>,
    old: Option<&Map<String, Value>>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    for (name, it) in fields {
        let below = match (schema.properties.get(name), &schema.additional) {
            (Some(property), _) => property,
            (None, Some(Additional::Of(property))) => property,
            _ => continue,
        };
        node(below, it, old.and_then(|old| old.get(name)), &path.field(name), errors);
    }
}

/// The name of the type that `it` should have but has not.
fn wrong_type(schema: &Schema, it: &Value) -> Option<&'static str> {
    if schema.int_or_string {
        let fits = it.is_string() || is_integer(it);
        return (!fits).then_some("integer,string");
    }
    let kind = schema.kind?;
    let fits = match kind {
        Type::Array => it.is_array(),
        Type::Boolean => it.is_boolean(),
        Type::Integer => is_integer(it),
        Type::Number => it.is_number(),
        Type::Object => it.is_object(),
        Type::String => it.is_string(),
    };
    (!fits).then_some(kind.as_str())
}

fn is_integer(it: &Value) -> bool {
    match it {
        Value::Number(number) => {
            // Others are not told apart by what reads JSON.
            let is_exact = |it: f64| it.fract() == 0.0 && it.abs() < 9_007_199_254_740_992.0;
            number.is_i64() || number.as_f64().is_some_and(is_exact)
        }
        _ => false,
    }
}

fn type_of(it: &Value) -> &'static str {
    match it {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(it) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A number where an integer should be: what else is wrong with it is told as well.
fn not_an_integer(schema: &Schema, number: &Number, path: &Path<'_>, errors: &mut Errors) {
    let checks = schema.checks.as_deref();
    let format = checks.and_then(|it| it.format);
    let (wanted, found) = format.map_or(("integer", "number"), |it| (it.name(), "float64"));
    let detail = format!("{path} in body must be of type {wanted}: {found:?}");
    errors.push(FieldError::type_invalid(path.to_string(), &found.into(), &detail));
    let format = format.map_or_else(
        || "integer (default format)".to_owned(),
        |it| format!("integer with format {}", it.name()),
    );
    errors.push(out_of_range(&format, path));
    if let Some(checks) = checks {
        check_number(checks, number, path, errors);
    }
}

/// Upstream tells of numbers that do not fit without a place.
fn out_of_range(format: &str, path: &Path<'_>) -> FieldError {
    let why = format!("Checked value must be of type {format} in {path}");
    FieldError::invalid(NOWHERE, &"".into(), &why)
}

fn check_allowed(checks: &Checks, it: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(allowed) = &checks.allowed
        && !allowed.contains(it)
    {
        let texts: Vec<String> = allowed
            .iter()
            .map(|it| it.as_str().map_or_else(|| it.to_string(), str::to_owned))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        errors.push(FieldError::unsupported(path.to_string(), it, &texts));
    }
}

fn check(checks: &Checks, it: &Value, path: &Path<'_>, errors: &mut Errors) {
    check_allowed(checks, it, path, errors);
    match it {
        Value::String(text) => check_text(checks, text, path, errors),
        Value::Number(number) => check_number(checks, number, path, errors),
        Value::Array(items) => {
            if let Some(least) = checks.min_items
                && (items.len() as u64) < least
            {
                let detail = format!("{path} in body should have at least {least} items");
                let n_items = items.len().into();
                errors.push(FieldError::invalid(path.to_string(), &n_items, &detail));
            }
            if let Some(most) = checks.max_items
                && most < items.len() as u64
            {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                errors.push(FieldError::too_many(path.to_string(), items.len(), most));
            }
        }
        Value::Object(fields) => {
            for name in &checks.required {
                if !fields.contains_key(name) {
                    errors.push(FieldError::required(path.field(name).to_string(), ""));
                }
            }
            if let Some(least) = checks.min_properties
                && (fields.len() as u64) < least
            {
                let detail = format!("{path} in body should have at least {least} properties");
                let n_fields = fields.len().into();
                errors.push(FieldError::invalid(path.to_string(), &n_fields, &detail));
            }
            if let Some(most) = checks.max_properties
                && most < fields.len() as u64
            {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                errors.push(FieldError::too_many(path.to_string(), fields.len(), most));
            }
        }
        _ => (),
    }
    check_junctors(checks, it, path, errors);
}

fn check_text(checks: &Checks, text: &str, path: &Path<'_>, errors: &mut Errors) {
    let shown = Value::from(text);
    // Lengths are counted in characters, and only where somebody asks. One finding is told.
    if let Some(most) = checks.max_length
        && usize::try_from(most).is_ok_and(|most| most < text.chars().count())
    {
        errors.push(FieldError::too_long(
            path.to_string(),
            usize::try_from(most).unwrap_or(usize::MAX),
        ));
    } else if let Some(least) = checks.min_length
        && (text.chars().count() as u64) < least
    {
        let detail = format!("{path} in body should be at least {least} chars long");
        errors.push(FieldError::invalid(path.to_string(), &shown, &detail));
    } else if let Some(pattern) = &checks.pattern
        && !pattern.regex.is_match(text)
    {
        let detail = format!("{path} in body should match '{pattern}'", pattern = pattern.source);
        errors.push(FieldError::invalid(path.to_string(), &shown, &detail));
    }
    if let Some(format) = checks.format
        && !format.holds(text)
    {
        let detail = format!("{path} in body must be of type {}: {text:?}", format.name());
        errors.push(FieldError::type_invalid(path.to_string(), &shown, &detail));
    }
}

fn check_number(checks: &Checks, number: &Number, path: &Path<'_>, errors: &mut Errors) {
    let shown = Value::Number(number.clone());
    let mut refuse = |text: String| {
        let detail = format!("{path} in body should be {text}");
        errors.push(FieldError::invalid(path.to_string(), &shown, &detail));
    };
    if let (Some(factor), Some(it)) = (checks.multiple_of, number.as_f64())
        && factor != 0.0
    {
        let times = it / factor;
        // Of numbers this large nobody knows.
        if 1e-9 < (times - times.round()).abs() || 9e15 < times.abs() {
            refuse(format!("a multiple of {}", go_float(factor)));
        }
    }
    // A limit is shown in the type of what it limits.
    let shown_limit = |limit: &Number| {
        let limit = limit.as_f64().unwrap_or_default();
        go_float(if number.is_i64() { limit.trunc() } else { limit })
    };
    if let Some(limit) = &checks.maximum {
        let order = compare(number, limit);
        let limit = shown_limit(limit);
        match checks.exclusive_maximum {
            true if order != Some(std::cmp::Ordering::Less) => refuse(format!("less than {limit}")),
            false if order == Some(std::cmp::Ordering::Greater) => {
                refuse(format!("less than or equal to {limit}"));
            }
            _ => (),
        }
    }
    if let Some(limit) = &checks.minimum {
        let order = compare(number, limit);
        let limit = shown_limit(limit);
        match checks.exclusive_minimum {
            true if order != Some(std::cmp::Ordering::Greater) => {
                refuse(format!("greater than {limit}"));
            }
            false if order == Some(std::cmp::Ordering::Less) => {
                refuse(format!("greater than or equal to {limit}"));
            }
            _ => (),
        }
    }
    let out_of_32_bits = checks.format == Some(crate::formats::Format::Int32)
        && number.as_i64().is_some_and(|it| i32::try_from(it).is_err());
    if out_of_32_bits {
        errors.push(out_of_range("integer with format int32", path));
    }
    let out_of_float = checks.format == Some(crate::formats::Format::Float)
        && number.as_f64().is_some_and(|it| f64::from(f32::MAX) < it.abs());
    if out_of_float {
        errors.push(out_of_range("number with format float", path));
    }
}

fn compare(left: &Number, right: &Number) -> Option<std::cmp::Ordering> {
    match (left.as_i64(), right.as_i64()) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

/// A number as Go prints it: `10`, `1.5`, `1e+06`.
pub fn go_float(it: f64) -> String {
    let scientific = format!("{it:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&exponent) || it == 0.0 {
        return format!("{it}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn check_junctors(checks: &Checks, it: &Value, path: &Path<'_>, errors: &mut Errors) {
    let tried = |schemas: &[Schema]| -> Vec<Vec<FieldError>> {
        schemas.iter().map(|schema| value(schema, it, None, path)).collect()
    };
    let mut refuse = |text: &str| {
        errors.push(FieldError::invalid(NOWHERE, &"".into(), &format!("\"{path}\" must {text}")));
    };
    let best =
        |tried: Vec<Vec<FieldError>>| tried.into_iter().min_by_key(Vec::len).unwrap_or_default();
    let mut found: Vec<FieldError> = Vec::new();
    if !checks.all_of.is_empty() {
        let tried = tried(&checks.all_of);
        let n_valid = tried.iter().filter(|it| it.is_empty()).count();
        if n_valid == 0 {
            refuse("validate all the schemas (allOf). None validated");
        } else if n_valid < tried.len() {
            refuse("validate all the schemas (allOf)");
        }
        found.extend(tried.into_iter().flatten());
    }
    if !checks.any_of.is_empty() {
        let tried = tried(&checks.any_of);
        if tried.iter().all(|it| !it.is_empty()) {
            refuse("validate at least one schema (anyOf)");
            found.extend(best(tried));
        }
    }
    if !checks.one_of.is_empty() {
        let tried = tried(&checks.one_of);
        match tried.iter().filter(|it| it.is_empty()).count() {
            0 => {
                refuse("validate one and only one schema (oneOf). Found none valid");
                found.extend(best(tried));
            }
            1 => (),
            n_valid => refuse(&format!(
                "validate one and only one schema (oneOf). Found {n_valid} valid alternatives"
            )),
        }
    }
    if let Some(not) = &checks.not
        && value(not, it, None, path).is_empty()
    {
        refuse("not validate the schema (not)");
    }
    for error in found {
        errors.push(error);
    }
}

#[cfg(test)]
mod tests;
