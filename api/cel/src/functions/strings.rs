//! Methods of texts, `format`, base64, and named formats.

use base64::Engine as _;

use super::shown;
use crate::{
    eval::{Budget, EvalError, Result},
    value::{Value, as_double},
};

fn text_of<'v>(value: &'v Value<'_>, function: &str) -> Result<&'v str> {
    value.as_text().ok_or_else(|| EvalError::no_overload(function))
}

#[allow(clippy::cast_possible_wrap, reason = "no text is so long")]
fn position(index: Option<usize>) -> Value<'static> {
    Value::Int(index.map_or(-1, |it| it as i64))
}

fn index(value: &Value<'_>) -> Result<usize> {
    let found = value.as_int().and_then(|it| usize::try_from(it).ok());
    found.ok_or_else(|| EvalError::failed("index out of range"))
}

/// Where the first or last `wanted` is, in characters, from `from` on or up to it.
fn find(text: &str, wanted: &str, from: Option<usize>, last: bool) -> Option<usize> {
    let letters: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let found = match (last, from) {
        (false, from) => {
            let start = *letters.get(from.unwrap_or(0))?;
            text.get(start..)?.find(wanted).map(|it| it + start)
        }
        (true, None) => text.rfind(wanted),
        (true, Some(from)) => {
            let start = *letters.get(from)?;
            let end = (start + wanted.len()).min(text.len());
            text.get(..end)?.rfind(wanted)
        }
    }?;
    letters.binary_search(&found).ok()
}

pub(super) fn method<'a>(
    function: &str,
    text: &str,
    arguments: &[Value<'a>],
    budget: &mut Budget,
) -> Result<Value<'a>> {
    let argument = |at: usize| match arguments.get(at) {
        Some(value) => text_of(value, function),
        None => Err(EvalError::no_overload(function)),
    };
    let letters = || text.chars().collect::<Vec<char>>();
    let out_of_range = || EvalError::failed("index out of range");
    Ok(match (function, arguments.len()) {
        ("startsWith", 1) => Value::Bool(text.starts_with(argument(0)?)),
        ("endsWith", 1) => Value::Bool(text.ends_with(argument(0)?)),
        ("contains", 1) => Value::Bool(text.contains(argument(0)?)),
        ("lowerAscii", 0) => Value::text(text.to_ascii_lowercase()),
        ("upperAscii", 0) => Value::text(text.to_ascii_uppercase()),
        ("trim", 0) => Value::text(text.trim().to_owned()),
        ("reverse", 0) => Value::text(text.chars().rev().collect::<String>()),
        ("charAt", 1) => {
            let (letters, at) = (letters(), index(&arguments[0])?);
            match letters.get(at) {
                Some(letter) => Value::text(letter.to_string()),
                None if at == letters.len() => Value::text(""),
                None => return Err(out_of_range()),
            }
        }
        ("indexOf" | "lastIndexOf", 1 | 2) => {
            let from = arguments.get(1).map(index).transpose()?;
            position(find(text, argument(0)?, from, function == "lastIndexOf"))
        }
        ("substring", 1 | 2) => {
            let letters = letters();
            let from = index(&arguments[0])?;
            let to = arguments.get(1).map_or(Ok(letters.len()), index)?;
            let range = letters.get(from..to).ok_or_else(out_of_range)?;
            Value::text(range.iter().collect::<String>())
        }
        ("replace", 2 | 3) => {
            let (from, to) = (argument(0)?, argument(1)?);
            let n_found = text.matches(from).count();
            budget.walk(text.len().saturating_add(n_found.saturating_mul(to.len())))?;
            Value::text(match arguments.get(2).and_then(Value::as_int) {
                Some(most) if 0 <= most => {
                    text.replacen(from, to, usize::try_from(most).unwrap_or(usize::MAX))
                }
                _ => text.replace(from, to),
            })
        }
        ("split", 1 | 2) => {
            let separator = argument(0)?;
            let most = arguments.get(1).and_then(Value::as_int).unwrap_or(-1);
            let parts: Vec<String> = match (most, separator) {
                (0, _) => Vec::new(),
                (_, "") => text.chars().map(|it| it.to_string()).collect(),
                (..0, _) => text.split(separator).map(str::to_owned).collect(),
                (most, _) => {
                    let most = usize::try_from(most).unwrap_or(usize::MAX);
                    text.splitn(most, separator).map(str::to_owned).collect()
                }
            };
            Value::list(parts.into_iter().map(Value::text).collect())
        }
        ("format", 1) => {
            let items = arguments[0].items().ok_or_else(|| EvalError::no_overload("format"))?;
            let made = format(text, &items)?;
            budget.walk(made.len())?;
            Value::text(made)
        }
        _ => return Err(EvalError::no_overload(function)),
    })
}

/// `matches`, `find` and `findAll`.
pub(crate) fn search<'a>(
    function: &str,
    text: &Value<'a>,
    pattern: &::regex::Regex,
    rest: &[Value<'a>],
    budget: &mut Budget,
) -> Result<Value<'a>> {
    let text = text_of(text, function)?;
    budget.walk(text.len())?;
    Ok(match function {
        "matches" => Value::Bool(pattern.is_match(text)),
        "find" => Value::text(pattern.find(text).map_or("", |it| it.as_str()).to_owned()),
        _ => {
            let most = rest.first().and_then(Value::as_int).filter(|it| 0 <= *it);
            let most = most.and_then(|it| usize::try_from(it).ok()).unwrap_or(usize::MAX);
            let found = pattern.find_iter(text).take(most);
            Value::list(found.map(|it| Value::text(it.as_str().to_owned())).collect())
        }
    })
}

/// `%s`, `%d`, `%f`, `%e`, `%x`, `%X`, `%o`, `%b` and `%%`.
fn format(template: &str, items: &[Value<'_>]) -> Result<String> {
    let mut out = String::new();
    let mut items = items.iter();
    let mut letters = template.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        if letters.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let mut precision = None;
        if letters.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision = digits.parse::<usize>().ok().filter(|it| *it <= 64);
        }
        let verb = letters.next().ok_or_else(|| EvalError::failed("unexpected end of format"))?;
        let item =
            items.next().ok_or_else(|| EvalError::failed("not enough arguments for format"))?;
        out.push_str(&formatted(verb, precision.unwrap_or(6), item)?);
    }
    Ok(out)
}

fn formatted(verb: char, precision: usize, item: &Value<'_>) -> Result<String> {
    let bad =
        || EvalError::failed(format!("no formatting function for %{verb} of {}", item.kind()));
    Ok(match (verb, item) {
        ('s', item) => shown(item),
        ('d', Value::Int(it)) => it.to_string(),
        ('d', Value::Uint(it)) => it.to_string(),
        ('f', item) => format!("{:.precision$}", as_double(item).ok_or_else(bad)?),
        ('e', item) => format!("{:.precision$e}", as_double(item).ok_or_else(bad)?),
        ('b', Value::Bool(it)) => it.to_string(),
        ('b', Value::Int(it)) => format!("{it:b}"),
        ('o', Value::Int(it)) => format!("{it:o}"),
        ('x', Value::Int(it)) => format!("{it:x}"),
        ('X', Value::Int(it)) => format!("{it:X}"),
        ('x', Value::Text(text)) => text.bytes().map(|it| format!("{it:02x}")).collect(),
        ('X', Value::Text(text)) => text.bytes().map(|it| format!("{it:02X}")).collect(),
        _ => return Err(bad()),
    })
}

/// A value as `%s` shows it within others.
pub(super) fn literal(value: &Value<'_>) -> String {
    if let Some(items) = value.items() {
        let parts: Vec<String> = items.iter().map(shown).collect();
        return format!("[{}]", parts.join(", "));
    }
    if let Some(entries) = value.entries() {
        let parts: Vec<String> =
            entries.iter().map(|(key, it)| format!("{}: {}", shown(key), shown(it))).collect();
        return format!("{{{}}}", parts.join(", "));
    }
    match value {
        Value::Null => "null".into(),
        Value::Bool(it) => it.to_string(),
        Value::Int(it) => it.to_string(),
        Value::Uint(it) => it.to_string(),
        Value::Double(it) => it.to_string(),
        Value::Bytes(it) => String::from_utf8_lossy(it).into_owned(),
        Value::Timestamp(at) => at.to_string(),
        Value::Duration(span) => super::time::shown(*span),
        Value::Kind(name) => (*name).to_owned(),
        Value::Quantity(it) => it.to_string(),
        Value::Ip(it) => it.to_string(),
        Value::Cidr(it) => it.to_string(),
        other => other.kind().to_owned(),
    }
}

pub(super) fn base64<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    let engine = base64::engine::general_purpose::STANDARD;
    match (function, arguments) {
        ("encode", [Value::Bytes(it)]) => Ok(Value::text(engine.encode(it))),
        ("decode", [Value::Text(it)]) => {
            let bytes = engine.decode(it.as_bytes());
            let bytes = bytes.map_err(|_| EvalError::failed("illegal base64 data"))?;
            Ok(Value::Bytes(bytes.into()))
        }
        _ => Err(EvalError::no_overload(function)),
    }
}

/// `jsonpatch.escapeKey(text)`: a key as a part of a JSON pointer.
pub(super) fn escape_key<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    match (function, arguments) {
        ("escapeKey", [Value::Text(it)]) => {
            Ok(Value::text(it.replace('~', "~0").replace('/', "~1")))
        }
        _ => Err(EvalError::no_overload(function)),
    }
}

/// `strings.quote(text)`.
pub(super) fn quoting<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    match (function, arguments) {
        ("quote", [Value::Text(it)]) => Ok(Value::text(format!("{it:?}"))),
        _ => Err(EvalError::no_overload(function)),
    }
}

const FORMATS: &[&str] = &[
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

/// `format.dns1123Label()` and `format.named('dns1123Label')`.
pub(super) fn named_format<'a>(function: &str, arguments: &[Value<'a>]) -> Result<Value<'a>> {
    let known = |name: &str| FORMATS.iter().find(|it| **it == name).copied();
    match (function, arguments) {
        ("named", [Value::Text(name)]) => {
            let found = known(name).map(|it| Value::Format(it).into());
            Ok(Value::Optional(found))
        }
        (name, []) => {
            known(name).map(Value::Format).ok_or_else(|| EvalError::no_overload(function))
        }
        _ => Err(EvalError::no_overload(function)),
    }
}

/// What is wrong with a text, as an optional list of texts.
pub(super) fn validate<'a>(
    function: &str,
    name: &str,
    arguments: &[Value<'a>],
) -> Result<Value<'a>> {
    use insula_api::{names, selector};
    let ("validate", [Value::Text(text)]) = (function, arguments) else {
        return Err(EvalError::no_overload(function));
    };
    let padded = format!("{text}a");
    let is_1035 = |text: &str| {
        names::is_dns1123_label(text) && text.starts_with(|it: char| it.is_ascii_lowercase())
    };
    let is_hex = |text: &str| text.bytes().all(|it| it.is_ascii_hexdigit());
    let is_valid = match name {
        "dns1123Label" => names::is_dns1123_label(text),
        "dns1123Subdomain" => names::is_dns1123_subdomain(text),
        "dns1035Label" => is_1035(text),
        "dns1123LabelPrefix" => names::is_dns1123_label(&padded),
        "dns1123SubdomainPrefix" => names::is_dns1123_subdomain(&padded),
        "dns1035LabelPrefix" => is_1035(&padded),
        "qualifiedName" => selector::is_qualified_name(text),
        "labelValue" => selector::is_label_value(text),
        "uri" => matches!(super::url::function("isURL", text)?, Value::Bool(true)),
        "uuid" => {
            let digits = text.replace('-', "");
            digits.len() == 32 && is_hex(&digits)
        }
        "byte" => base64::engine::general_purpose::STANDARD.decode(text.as_bytes()).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        _ => text.parse::<jiff::Timestamp>().is_ok(),
    };
    let why = format!("does not match the format {name}");
    Ok(Value::Optional((!is_valid).then(|| Value::list(vec![Value::text(why)]).into())))
}
