//! Timestamps and durations.

use jiff::{
    SignedDuration, Timestamp,
    civil::Weekday,
    tz::{Offset, TimeZone},
};

use crate::{
    eval::{EvalError, Result},
    value::Value,
};

/// As Go reads durations: `1h30m`, `-1.5s`.
pub(crate) fn duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut total: i128 = 0;
    let mut parts = 0;
    while !rest.is_empty() {
        let end = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let (number, behind) = rest.split_at(end);
        let end = behind.find(|it: char| it.is_ascii_digit() || it == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit: i128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || 18 < whole.len() || 18 < fraction.len() {
            return None;
        }
        let read = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
        total = total.checked_add(read(whole)?.checked_mul(unit)?)?;
        let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
        total = total.checked_add(read(fraction)?.checked_mul(unit)? / scale)?;
        rest = behind;
        parts += 1;
    }
    if parts == 0 {
        return None;
    }
    let total = if negative { -total } else { total };
    let nanos = i64::try_from(total).ok()?;
    Some(SignedDuration::from_nanos(nanos))
}

/// In seconds, as `string()` shows it.
pub(crate) fn shown(span: SignedDuration) -> String {
    format!("{}s", span.as_secs_f64())
}

pub(super) fn convert<'a>(to: &str, of: &Value<'a>) -> Result<Value<'a>> {
    let bad = || EvalError::failed(format!("type conversion error from {:?} to {to:?}", of.kind()));
    match (to, of) {
        ("duration", Value::Duration(_)) | ("timestamp", Value::Timestamp(_)) => Ok(of.clone()),
        ("duration", Value::Text(text)) => duration(text).map(Value::Duration).ok_or_else(bad),
        ("timestamp", Value::Text(text)) => text.parse().map(Value::Timestamp).map_err(|_| bad()),
        ("timestamp", Value::Int(seconds)) => {
            Timestamp::from_second(*seconds).map(Value::Timestamp).map_err(|_| bad())
        }
        _ => Err(bad()),
    }
}

fn zone(arguments: &[Value<'_>]) -> Result<TimeZone> {
    let bad = || EvalError::failed("unknown time zone");
    match arguments {
        [] => Ok(TimeZone::UTC),
        [Value::Text(name)] if name == "UTC" => Ok(TimeZone::UTC),
        [Value::Text(name)] if name.contains(':') => {
            let (sign, digits) = match name.strip_prefix('-') {
                Some(digits) => (-1, digits),
                None => (1, name.trim_start_matches('+')),
            };
            let (hours, minutes) = digits.split_once(':').ok_or_else(bad)?;
            let hours: i32 = hours.parse().map_err(|_| bad())?;
            let minutes: i32 = minutes.parse().map_err(|_| bad())?;
            let seconds = sign * (hours.saturating_mul(3600).saturating_add(minutes * 60));
            Offset::from_seconds(seconds).map(TimeZone::fixed).map_err(|_| bad())
        }
        [Value::Text(name)] => TimeZone::get(name).map_err(|_| bad()),
        _ => Err(EvalError::no_overload("a time zone")),
    }
}

pub(super) fn of_timestamp<'a>(
    function: &str,
    at: Timestamp,
    arguments: &[Value<'a>],
) -> Result<Value<'a>> {
    let it = at.to_zoned(zone(arguments)?);
    Ok(Value::Int(match function {
        "getFullYear" => i64::from(it.year()),
        "getMonth" => i64::from(it.month()) - 1,
        "getDate" => i64::from(it.day()),
        "getDayOfMonth" => i64::from(it.day()) - 1,
        "getDayOfWeek" => i64::from(it.weekday().since(Weekday::Sunday)),
        "getDayOfYear" => i64::from(it.day_of_year()) - 1,
        "getHours" => i64::from(it.hour()),
        "getMinutes" => i64::from(it.minute()),
        "getSeconds" => i64::from(it.second()),
        "getMilliseconds" => i64::from(it.millisecond()),
        _ => return Err(EvalError::no_overload(function)),
    }))
}

pub(super) fn of_duration<'a>(function: &str, span: SignedDuration) -> Result<Value<'a>> {
    Ok(Value::Int(match function {
        "getHours" => span.as_hours(),
        "getMinutes" => span.as_mins(),
        "getSeconds" => span.as_secs(),
        "getMilliseconds" => i64::from(span.subsec_millis()),
        _ => return Err(EvalError::no_overload(function)),
    }))
}
